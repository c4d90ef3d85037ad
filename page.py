"""Rows of a data set as one HTML page: plain data and PNGs in, a string out. It needs no network and no script."""

import base64
import hashlib
import struct
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .packing.inspect import Clip, Frame, blocks
from .packing.render import clock, elided, visible, weighed
from .tokenizers.vocabulary import Vocabulary

Place = tuple[int, int]  # a row, and the place in it of a frame's first token
Pictures = Mapping[Place, bytes | str]  # a PNG, or why there is none
TEXT, REF, LINES, IDS = (
    4000,
    400,
    100,
    8,
)  # characters of a run and a ref, lines of a table, ids of a run: the most shown

STYLE = """
:root { color-scheme: light dark;
  --ground: #f6f5f2; --card: #ffffff; --ink: #1c1b19; --quiet: #5d5a54; --line: #d8d4cb; --link: #0b5a8c;
  --on: #0d4a21; --on-ground: #e2f3e5; --on-line: #1c7a37; --off-line: #8b8882; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #131416; --card: #1c1e21; --ink: #e9e7e3; --quiet: #aaa8a2; --line: #3a3d42; --link: #82c7f2;
  --on: #c0f0ca; --on-ground: #15351f; --on-line: #4fbf6d; --off-line: #77756f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; margin: 0 0 .6rem; text-wrap: balance; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; } h3 { font-size: 1.1rem; }
p { margin: 0 0 .8rem; } .card p:last-child, nav details { margin: 0; }
a { color: var(--link); text-underline-offset: .15em; }
a, summary { border-radius: .2rem; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
main:focus, article:focus { outline: none; }
header, nav, .row { margin-bottom: 1.5rem; }
nav, article, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; }
article { margin-bottom: 1.25rem; scroll-margin-top: .5rem; }
article:target { border-color: var(--link); }
.skip { position: absolute; left: 1rem; top: -4rem; padding: .5rem .8rem; background: var(--card); }
.skip:focus { top: .5rem; z-index: 1; }
.quiet { color: var(--quiet); }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
  user-select: none; }
dl { display: grid; grid-template-columns: minmax(5.5rem, max-content) 1fr; gap: .15rem 1rem; margin: 0 0 .8rem; }
dt { color: var(--quiet); } dd { margin: 0; min-width: 0; font-variant-numeric: tabular-nums; }
.steps, .list { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
.steps a, .list a, summary { display: inline-block; padding: .25rem 0; min-height: 1.75rem; }
summary { display: list-item; cursor: pointer; color: var(--link); }
.text { white-space: pre-wrap; border-left: .25rem solid var(--line); padding: .1rem 0 .1rem .8rem; margin: 0 0 1rem;
  overflow: clip; overflow-clip-margin: 4px; }
mark, .off { -webkit-box-decoration-break: clone; box-decoration-break: clone; }
mark { color: var(--on); background: var(--on-ground); border-bottom: 2px solid var(--on-line); font-weight: 600;
  padding: 0 .1em; }
mark::before { content: "\\27E6"; } mark::after { content: "\\27E7"; }
.off { color: var(--quiet); }
.frames { list-style: none; margin: 0 0 1rem; padding: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 8.25rem), 1fr)); }
.one { grid-template-columns: minmax(0, 16.5rem); }
figure { margin: 0; border: 2px dashed var(--off-line); border-radius: .4rem; padding: .25rem; height: 100%; }
figure.on { border: 3px solid var(--on-line); background: var(--on-ground); color: var(--on); }
figure img { display: block; width: 100%; height: auto; border-radius: .2rem; background: var(--line); }
figcaption { font-size: .8rem; line-height: 1.35; padding: .3rem .1rem .1rem; font-variant-numeric: tabular-nums; }
.none { display: grid; place-items: center; aspect-ratio: 1; text-align: center; font-size: .8rem; padding: .4rem;
  background: var(--card); color: var(--quiet); border-radius: .2rem; }
details { margin: 0 0 .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .5rem .25rem 0; border-bottom: 1px solid var(--line); }
th, td:first-child { overflow-wrap: normal; } td:nth-child(2) { min-width: 5.5rem; } td:last-child { padding-right: 0; }
td[colspan] { text-align: center; }
th { color: var(--quiet); font-weight: 600; }
@media (min-width: 40rem) { body { padding: 2rem; } article, nav, .card { padding: 1.25rem 1.5rem; } }
@media print { nav, .skip, .steps { display: none; } article { break-inside: avoid-page; } }
"""
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; img-src data:; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"


def page(
    title: str,
    facts: Mapping[str, str],
    rows: list[dict[str, Any]],
    vocabulary: Vocabulary,
    pictures: Pictures,
    full: bool = False,
) -> str:
    """Write rows as one HTML document.

    Args:
      title: heads the page.
      facts: what stands above the rows, by name.
      rows: as `row_detail` gives them, each another one.
      pictures: the frames to show: a PNG, or why there is none. How many are not in it is said.
      full: shorten no text, ref or table.

    Returns:
      The document, which UTF-8 can encode whatever the rows hold.
    """
    body = "".join(_row(row, vocabulary, pictures, full) for row in rows)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_safe(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#rows">Skip to the rows</a>
<header>
<h1 id="top">{_words(title)}</h1>
{_facts(facts)}{_LEGEND}</header>
{_contents(rows)}<main id="rows" tabindex="-1">
{body}</main>
</body>
</html>
"""


_LEGEND = """<section class="card" aria-labelledby="legend">
<h2 id="legend">How to read this page</h2>
<p><mark>trained text</mark> stands between double brackets, bold and underlined: the loss counts predicting it.
<span class="off">Other text</span> is quiet and bare: the model reads it and learns nothing from predicting it.
A trained frame has a solid border, an untrained one a dashed border, and its caption says which it is.</p>
<p class="quiet">Characters that cannot be seen or that reorder their neighbours are written as escapes, such as
\\u202e. Text between ⟨ and ⟩ is a remark of this page.</p>
</section>
"""


def _safe(text: str, newlines: bool = False) -> str:
    return escape(visible(text, newlines))


def _words(text: str, newlines: bool = False) -> str:
    """Write text of unknown direction so that it cannot reorder what stands beside it."""
    return f"<bdi>{_safe(text, newlines)}</bdi>"


def _facts(facts: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{_safe(name)}</dt><dd>{_words(value)}</dd>\n" for name, value in facts.items() if value)
    return f"<dl>\n{lines}</dl>\n"


def _name(row: dict[str, Any], segment: dict[str, Any]) -> str:
    return f"row-{row['row']}-segment-{segment['segment']}"


def _contents(rows: list[dict[str, Any]]) -> str:
    lines, count = "", sum(len(row["segments"]) for row in rows)
    is_open = " open" if count <= LINES else ""
    for row in rows:
        for s in row["segments"]:
            words = f"{_words(s['task'])}, {s['length']:,} tokens"
            where = f"row {row['row']:,}, segment {s['segment']}" if len(rows) > 1 else f"segment {s['segment']}"
            lines += f'<li><a href="#{_name(row, s)}">{where}</a> <span class="quiet">{words}</span></li>\n'
    return f"""<nav aria-labelledby="contents">
<h2 id="contents">Segments</h2>
<details{is_open}><summary>All {count:,}</summary>
<ol class="list">
{lines}</ol></details>
</nav>
"""


def _row(row: dict[str, Any], vocabulary: Vocabulary, pictures: Pictures, full: bool) -> str:
    head = f"row-{row['row']}"
    padding = f"{row['padding']:,} of them padding" if row["padding"] else "no padding"
    parts = "".join(_segment(row, s, vocabulary, pictures, full) for s in row["segments"])
    return f"""<section class="row" aria-labelledby="{head}">
<h2 id="{head}">Row {row["row"]:,}</h2>
<p class="quiet">Row {row["row_in_shard"]:,} of {_words(row["shard"])}: {row["length"]:,} tokens, {padding};
weights by the rule {_words(row["rule"])}.</p>
{parts}</section>
"""


def _segment(row: dict[str, Any], s: dict[str, Any], vocabulary: Vocabulary, pictures: Pictures, full: bool) -> str:
    name, (low, high) = _name(row, s), s["place"]
    facts = {
        "source": s["source"],
        "record": s["record"] + (f" (from its token {s['start']:,})" if s["start"] else ""),
        "tokens": f"{low:,} to {high - 1:,}: {s['length']:,}",
        "positions": f"0 to {s['positions'][1]:,}",
        "weights": weighed(s),
    }
    content = ""
    for block in blocks(s, vocabulary):
        if isinstance(block, Clip):
            content += _clip(block, s["record"], row["row"], pictures)
        else:
            content += f'<div class="text">{"".join(_run(run, full) for run in block)}</div>\n'
    return f"""<article id="{name}" aria-labelledby="{name}-title" tabindex="-1">
<h3 id="{name}-title">Segment {s["segment"]}: {_words(s["task"])}</h3>
{_facts(facts)}{content}{_spans(s["spans"], full)}{_runs(s["runs"], full)}{_steps(row, s)}</article>
"""


def _steps(row: dict[str, Any], s: dict[str, Any]) -> str:
    links = '<li><a href="#top">To the top</a></li>'
    for number, way in ((s["segment"] - 1, "Back to"), (s["segment"] + 1, "On to")):
        if 1 <= number <= len(row["segments"]):
            links += f'<li><a href="#row-{row["row"]}-segment-{number}">{way} segment {number}</a></li>'
    return f'<ul class="steps">{links}</ul>\n'


def _run(run: dict[str, Any], full: bool) -> str:
    text = run["text"] or f"⟨no text: id {_ids(run['tokens'], full)}⟩"
    words = _words(text if full else elided(text, TEXT), newlines=True)
    if run["trained"]:
        return f'<mark><span class="sr">trained: </span>{words}</mark>'
    return f'<span class="off">{words}</span>'


def _clip(clip: Clip, record: str, row: int, pictures: Pictures) -> str:
    shown = [frame for frame in clip.frames if (row, frame.start) in pictures]
    one = " one" if len(clip.frames) == 1 else ""
    items = "".join(_figure(clip, frame, record, pictures[row, frame.start]) for frame in shown)
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


def _figure(clip: Clip, frame: Frame, record: str, picture: bytes | str) -> str:
    alone = clip.kind == "image" and len(clip.frames) == 1
    name = "Image" if alone else f"Frame {frame.number:,} of {len(clip.frames):,}"
    time = clock(frame.seconds) if frame.seconds is not None else ""
    size = frame.end - frame.start
    trained = {0: "not trained", size: "trained"}.get(frame.trained, f"{frame.trained:,} of {size:,} tokens trained")
    trained += "" if frame.ended else ", no ending"
    if isinstance(picture, str):
        image = f'<div class="none">No picture: {_safe(picture)}</div>'
    else:
        alt = _safe(f"{name}{time and f' at {time}'}, decoded from the tokens of {elided(record, 100)}")
        width, height = struct.unpack(">II", picture[16:24])  # PNG's first chunk, IHDR
        data = base64.b64encode(picture).decode()
        image = f'<img alt="{alt}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
    on = ' class="on"' if frame.trained else ""
    return f"<li><figure{on}>{image}<figcaption>{name}<br>{time and f'{time}, '}{trained}</figcaption></figure></li>\n"


def _spans(spans: list[dict[str, Any]], full: bool) -> str:
    cells = [
        (f"{s['start']:,} to {s['end'] - 1:,}", _words(s["kind"]), _words(s["ref"] if full else elided(s["ref"], REF)))
        for s in spans
    ]
    return _table("Spans", ("positions", "kind", "what is known"), cells, full)


def _runs(runs: list[dict[str, Any]], full: bool) -> str:
    cells = [
        (
            f"{r['start']:,} to {r['end'] - 1:,}",
            f"{r['modality']}, trained, weight {r['weight']:.6g}" if r["trained"] else f"{r['modality']}, not trained",
            _ids(r["tokens"], full),
        )
        for r in runs
    ]
    return _table("Runs of tokens that are alike", ("tokens", "kind", "ids"), cells, full)


def _ids(ids: list[int], full: bool) -> str:
    if full or len(ids) <= IDS:
        return " ".join(map(str, ids))
    return f"{' '.join(map(str, ids[: IDS - 2]))} … {' '.join(map(str, ids[-2:]))}"


def _table(what: str, columns: tuple[str, ...], cells: Sequence[tuple[str, ...]], full: bool) -> str:
    """Lay out cells of HTML under a summary that opens them, without the middle where they are many."""
    if not cells:
        return ""
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>\n" for line in cells]
    if len(lines) > LINES and not full:
        hidden = f'<tr><td colspan="{len(columns)}">⟨… {len(lines) - LINES:,} lines …⟩</td></tr>\n'
        lines[LINES // 2 : -(LINES // 2)] = [hidden]
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    return f"""<details><summary>{what}: {len(cells):,}</summary>
<table><thead><tr>{head}</tr></thead>
<tbody>
{"".join(lines)}</tbody></table></details>
"""
