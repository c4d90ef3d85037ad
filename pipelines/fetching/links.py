"""Which links may be asked at all, before a name is looked up."""

import re

from yarl import URL

from ..media import Unfit
from .addresses import is_public, literal

LONGEST = 8000  # characters; many servers refuse a longer request line
SHOWN = 200  # characters of a stranger's text that a report repeats
NAME = re.compile(r"(?=.{1,253}\.?$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.ASCII)  # RFC 1035, with underscores
WEB_PORTS = (80, 443)
LOWEST_OTHER_PORT = 1024  # below lie other protocols, which a link must not make us talk to


def shown(text: object) -> str:
    """Cut and escape a stranger's text so that it may stand in a report."""
    return ascii(str(text))[1:-1][:SHOWN]


def read_link(text: object, base: URL | None = None) -> URL:
    """Read a link from a table, or a redirect's target relative to the link that was asked.

    Raises:
      Unfit: where it is no link to a web server, or names an address that is not public.
    """
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST:
        found = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
        raise Unfit("failed", "unusable link", f"{found}; a link has 1 to {LONGEST} characters")
    try:
        link = URL(text.strip())
        return checked((base.join(link) if base else link).with_fragment(None))
    except (ValueError, IndexError) as error:  # also the codec of international names; yarl 1.25 raises both
        raise Unfit("failed", "unusable link", f"{shown(text)}: {shown(error)}") from None


def checked(link: URL) -> URL:
    """Return the link, an address in it in its usual spelling.

    Raises:
      Unfit: where it may not be asked.
      ValueError: where its host is neither a name nor an address.
    """
    if link.scheme not in ("http", "https"):
        raise Unfit("failed", "not http or https", shown(link))
    if link.raw_user is not None or link.raw_password is not None:
        raise ValueError("it holds a user name or password")
    if link.port not in WEB_PORTS and (link.port or 0) < LOWEST_OTHER_PORT:
        raise ValueError(f"port {link.port} is none of {WEB_PORTS} or from {LOWEST_OTHER_PORT} up")
    host = link.raw_host or ""
    address = literal(host)
    if address is None:
        if not NAME.fullmatch(host):
            raise ValueError("its host is no name")
        return link
    if not is_public(address):
        raise Unfit("failed", "private address", f"{shown(host)} is {address}")
    return link.with_host(address)
