"""Whether a server asks that its pictures are not collected."""

from collections.abc import Iterable

# What img2dataset heeds by default; `none` is `noindex, nofollow`.
# https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag
OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
# Rules that have a value behind a colon; any other word there is a robot's name.
VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def opt_out(headers: Iterable[str], agent: str) -> str | None:
    """Find the first rule in `X-Robots-Tag` headers that forbids collecting, or None.

    A robot's name holds for the rules behind it in its header: `X-Robots-Tag: somebot: noai, noindex`.

    Args:
      headers: the values of all such headers of one answer.
      agent: our user agent; its name is what stands before the first slash or space.
    """
    ours = {"*", agent.replace("/", " ").split(" ")[0].lower()}
    for header in headers:
        applies = True
        for part in header.lower().split(","):
            rule = part.strip()
            name, colon, rest = (piece.strip() for piece in part.partition(":"))
            if colon and name not in VALUED and " " not in name:  # with a space it is the middle of a date
                applies, rule = name in ours, rest
            if applies and rule in OPT_OUTS:
                return rule
    return None
