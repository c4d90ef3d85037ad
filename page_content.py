"""What a segment says, as HTML: turn by turn where it is a chat, its text, pictures, and the books asked about."""

import base64
import struct
from collections.abc import Callable, Collection, Mapping
from html import escape
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from .packing.inspect import Clip, Frame, block_start, blocks
from .packing.render import clock, elided, shortened, visible
from .packing.turn_words import about_words, chunk_words, into_words, names_anew, place_words, spread_of, trained_words
from .packing.turns import USER, begin, by_turn, holder
from .tokenizers.vocabulary import Vocabulary

T = TypeVar("T")
Place = tuple[int, int]  # a row, and the place in it of a frame's first token
Pictures = Mapping[Place, bytes | str]  # a PNG, or why there is none
Block = list[dict[str, Any]] | Clip | str  # runs of text, frames, or a remark about what is left out
Said = tuple[dict[str, Any] | None, list[Block]]  # a turn, or None, and what stands in it
TEXT, LINES, IDS, NAME = 4000, 100, 8, 100  # characters of a run, lines of a table, ids, a name: the most shown
CELLS, HEIGHT = 100, 24  # of the picture of where the chunks lie that are asked about


class View(NamedTuple):
    """A segment of `row_detail`, and what is shown of it.

    Attributes:
      row: its row.
      name: begins the names of places in it that links lead to.
      pictures: of frames; those that are not in it are not shown.
      full: shorten nothing.
    """

    row: int
    segment: dict[str, Any]
    name: str
    pictures: Pictures
    full: bool


class Passage(NamedTuple):
    """A part of a context: a chunk of `row_detail`, or None for what is none; its first place in the row, its runs."""

    start: int
    chunk: dict[str, Any] | None
    runs: list[dict[str, Any]]


class Links(NamedTuple):
    """Turns that are shown, by the place where the chunk begins that they are about; and the chunks that are shown."""

    asked: Mapping[int, list[int]]
    shown: Collection[int]


def safe(text: str, newlines: bool = False) -> str:
    """Write text so that it is only text, with what cannot be seen as escapes."""
    return escape(visible(text, newlines))


def words(text: str, newlines: bool = False) -> str:
    """Write text of unknown direction so that it cannot reorder what stands beside it."""
    return f"<bdi>{safe(text, newlines)}</bdi>"


def content(view: View, vocabulary: Vocabulary) -> str:
    """Write what a segment says."""
    s = view.segment
    if not s["turns"]:
        return "".join(_block(block, view, Links({}, ())) for block in blocks(s, vocabulary))
    turns: list[Said] = [(turn, _few(inner, view)) for turn, inner in by_turn(s, blocks(s, vocabulary), block_start)]
    parts = _some(turns, view, lambda said: any(_pictured(block, view) for block in said[1]))
    links = _links([said for part in parts if isinstance(part, list) for said in part], view)
    return _spread(s) + "".join(
        _remark(f"{part:,} turns") if isinstance(part, int) else "".join(_turn(said, view, links) for said in part)
        for part in parts
    )


def _few(inner: list[list[dict[str, Any]] | Clip], view: View) -> list[Block]:
    """Leave out what is in the middle of very many blocks, but no pictures."""
    found: list[Block] = []
    for part in _some(inner, view, lambda block: _pictured(block, view)):
        found += [_remark(f"{part:,} texts and pictures")] if isinstance(part, int) else part
    return found


def _some(items: list[T], view: View, wanted: Callable[[T], bool]) -> list[list[T] | int]:
    """Keep the first and last of many items, and those that are wanted; of others say how many are left out."""
    first, middle, last = shortened(items, LINES, view.full)
    parts: list[list[T] | int] = [first]
    for kept, group in groupby(middle, key=wanted):
        these = list(group)
        parts.append(these if kept else len(these))
    return [*parts, last]


def _pictured(block: Block, view: View) -> bool:
    """Are there pictures of a block to show?"""
    return isinstance(block, Clip) and any((view.row, frame.start) in view.pictures for frame in block.frames)


def _remark(what: str) -> str:
    return f'<p class="quiet">⟨… {what} …⟩</p>\n'


def _links(turns: list[Said], view: View) -> Links:
    """Find what is shown of the chunks, and which shown questions are about them."""
    asked: dict[int, list[int]] = {}
    for turn, _ in turns:
        if turn and turn["role"] == USER and turn["about"] and turn["about"]["place"]:
            asked.setdefault(turn["about"]["place"][0], []).append(turn["turn"])
    inner = [block for _, inner in turns for block in inner if isinstance(block, list)]
    passages = [_passages(block, view.segment) for block in inner if _context(block, view.segment)]
    shown = {p.start for parts in passages for p in parts if p.chunk and _kept(p, parts, asked, view.full)}
    return Links(asked, shown)


def _turn(said: Said, view: View, links: Links) -> str:
    turn, inner = said
    text = "".join(_block(block, view, links) for block in inner)
    if not turn:
        return f'<section class="turn">\n<h4>no turn</h4>\n{text}</section>\n'
    name = f"{view.name}-turn-{turn['turn']}"
    return f"""<section class="turn{" learnt" if turn["trained"] else ""}" id="{name}" aria-labelledby="{name}-title">
<h4 id="{name}-title">{turn["role"]} <span class="quiet">turn {turn["turn"]:,}</span></h4>
<div class="told">{_told(turn, view, links)}</div>
{text}</section>
"""


def _told(turn: dict[str, Any], view: View, links: Links) -> str:
    """Tell where a turn stands, and of a question which chunk it is about, with a link to it where it is shown."""
    by = f", by {words(elided(turn['by'], NAME))}" if turn["by"] else ""
    told = f'<span class="quiet">{place_words(turn["place"])}, {trained_words(turn)}{by}</span>'
    about = turn["about"]
    if not about or not names_anew(turn, view.segment):
        return told
    said = about_words(about)
    if about["place"] and about["place"][0] in links.shown:
        said = f'<a href="#{view.name}-token-{about["place"][0]}">{said}</a>'
    return f"{told}<br>{said}{_mark(about, view.segment)}"


def _block(block: Block, view: View, links: Links) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Clip):
        return _clip(block, view)
    if not _context(block, view.segment):
        return _text(block, view.full)
    parts = _passages(block, view.segment)
    text = ""
    for kept, group in groupby(parts, key=lambda part: _kept(part, parts, links.asked, view.full)):
        these = list(group)
        tokens = these[-1].runs[-1]["end"] - these[0].start
        text += "".join(_passage(part, view, links) for part in these) if kept else _remark(f"{tokens:,} tokens")
    return f'<div class="context" role="group" aria-label="Context">\n{text}</div>\n'


def _text(runs: list[dict[str, Any]], full: bool) -> str:
    first, hidden, last = shortened(runs, LINES, full)
    middle = f'<span class="quiet">⟨… {len(hidden):,} runs …⟩</span>' if hidden else ""
    text = "".join(_run(run, full) for run in first) + middle + "".join(_run(run, full) for run in last)
    return f'<div class="text">{text}</div>\n'


def _context(block: list[dict[str, Any]], s: dict[str, Any]) -> bool:
    return holder(s["contexts"], block[0]["start"]) is not None


def _passages(block: list[dict[str, Any]], s: dict[str, Any]) -> list[Passage]:
    """Cut a context's runs into its chunks, and what stands between them; a chunk's later parts count as that."""
    parts = []
    for _, group in groupby(block, key=lambda run: begin(holder(s["chunks"], run["start"]))):
        runs = list(group)
        chunk = holder(s["chunks"], runs[0]["start"])
        parts.append(Passage(runs[0]["start"], chunk if begin(chunk) == runs[0]["start"] else None, runs))
    return parts


def _kept(part: Passage, parts: list[Passage], asked: Collection[int], full: bool) -> bool:
    """Is a part of a context shown? The ends of one are, and the chunks that questions are about."""
    ends = part.start in (parts[0].start, parts[-1].start)
    return full or ends or (part.chunk is not None and part.start in asked)


def _passage(part: Passage, view: View, links: Links) -> str:
    if not part.chunk:
        return _text(part.runs, view.full)
    chunk, where = part.chunk, part.chunk["into"]
    facts = [place_words(chunk["place"]), *([into_words(where)] if where is not None else [])]
    if chunk["offsets"]:
        facts.append(f"{place_words(chunk['offsets'])} of the book")
    summary = f'{chunk_words(chunk)} <span class="quiet">{", ".join(facts)}</span>'
    back = "".join(
        f'<li><a href="#{view.name}-turn-{turn}">asked about in turn {turn:,}</a></li>'
        for turn in shortened(links.asked.get(part.start, []), LINES, view.full)[0]
    )
    return f"""<details class="chunk" id="{view.name}-token-{part.start}"><summary>{summary}</summary>
{_text(part.runs, view.full)}{back and f'<ul class="steps">{back}</ul>'}</details>
"""


def _spread(s: dict[str, Any]) -> str:
    """Draw where in the context the chunks lie that are asked about: a column for each part of it."""
    counts = spread_of(s, CELLS)
    if not (most := max(counts)):
        return ""
    label = f"Where in the context the chunks lie that {sum(counts):,} questions are about, in {CELLS} columns"
    columns = "".join(
        f'<rect x="{x}" y="{HEIGHT - tall}" width="1" height="{tall}"/>'
        for x, n in enumerate(counts)
        if n
        for tall in [max(1, HEIGHT * n // most)]
    )
    return f"""<svg viewBox="0 0 {CELLS} {HEIGHT + 1}" preserveAspectRatio="none" role="img" aria-label="{label}">
{columns}<rect class="all" y="{HEIGHT}" width="{CELLS}" height="1"/></svg>
<div class="scale quiet"><span>0%</span>
<span>where the chunks asked about lie in the context: up to {most:,} in a hundredth of it</span><span>100%</span></div>
"""


def _mark(about: dict[str, Any], s: dict[str, Any]) -> str:
    """Draw where in its context a chunk lies; the words beside it say the same."""
    context = holder(s["contexts"], about["place"][0]) if about["place"] else None
    if context is None:
        return ""
    size = context["place"][1] - context["place"][0]
    left = min(99.5, 100 * about["into"])
    wide = max(0.5, min(100 * (about["place"][1] - about["place"][0]) / size, 100 - left))
    return f"""<svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
<rect class="all" y="1" width="100" height="2"/>
<rect x="{left:.2f}" width="{wide:.2f}" height="4"/></svg>
"""


def _run(run: dict[str, Any], full: bool) -> str:
    text = run["text"] or f"⟨no text: id {ids(run['tokens'], full)}⟩"
    shown = words(text if full else elided(text, TEXT), newlines=True)
    if run["trained"]:
        return f'<mark><span class="sr">trained: </span>{shown}</mark>'
    return f'<span class="off">{shown}</span>'


def _clip(clip: Clip, view: View) -> str:
    shown = [frame for frame in clip.frames if (view.row, frame.start) in view.pictures]
    one = " one" if len(clip.frames) == 1 else ""
    items = "".join(_figure(clip, frame, view) for frame in shown)
    gallery = f'<ul class="frames{one}">\n{items}</ul>\n' if shown else ""
    said = "" if one and shown else f'<p class="quiet">{_said(clip, len(shown))}</p>\n'
    return said + gallery


def _said(clip: Clip, shown: int) -> str:
    """Tell how long a clip is, which part of the video it is, and how many frames are not shown."""
    n, times = len(clip.frames), (clip.frames[0].seconds, clip.frames[-1].seconds)
    said = clip.kind.capitalize() + (f" of {n:,} frames" if n > 1 else "")
    if times[0] is not None and times[1] is not None and n > 1:
        said += f", {clock(times[0])} to {clock(times[1])}"
    if type(of := clip.ref.get("of")) is int and of > n:
        said += f", of {of:,} in the video"
    if shown == n:
        return said + "."
    hidden = "not shown" if n == 1 else f"{shown:,} shown, {n - shown:,} not shown"
    return f"{said}: {hidden}; --full shows all."


def _figure(clip: Clip, frame: Frame, view: View) -> str:
    picture, record = view.pictures[view.row, frame.start], view.segment["record"]
    alone = clip.kind == "image" and len(clip.frames) == 1
    name = "Image" if alone else f"Frame {frame.number:,} of {len(clip.frames):,}"
    time = clock(frame.seconds) if frame.seconds is not None else ""
    size = frame.end - frame.start
    trained = {0: "not trained", size: "trained"}.get(frame.trained, f"{frame.trained:,} of {size:,} tokens trained")
    trained += "" if frame.ended else ", no ending"
    if isinstance(picture, str):
        image = f'<div class="none">No picture: {safe(picture)}</div>'
    else:
        alt = safe(f"{name}{time and f' at {time}'}, decoded from the tokens of {elided(record, 100)}")
        width, height = struct.unpack(">II", picture[16:24])  # PNG's first chunk, IHDR
        data = base64.b64encode(picture).decode()
        image = f'<img alt="{alt}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
    on = ' class="on"' if frame.trained else ""
    return f"<li><figure{on}>{image}<figcaption>{name}<br>{time and f'{time}, '}{trained}</figcaption></figure></li>\n"


def ids(ids: list[int], full: bool) -> str:
    """List ids, without the middle where they are many."""
    if full or len(ids) <= IDS:
        return " ".join(map(str, ids))
    return f"{' '.join(map(str, ids[: IDS - 2]))} … {' '.join(map(str, ids[-2:]))}"
