"""Rows of a data set as one HTML page: plain data and PNGs in, a string out. It needs no network and no script."""

from collections.abc import Mapping, Sequence
from typing import Any

from .packing.render import elided, shortened, weighed
from .packing.turn_words import overview
from .page_content import LINES, Pictures, View, content, ids, safe, words
from .page_style import POLICY, STYLE
from .tokenizers.vocabulary import Vocabulary

REF = 400  # characters of a ref: the most shown


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
<title>{safe(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#rows">Skip to the rows</a>
<header>
<h1 id="top">{words(title)}</h1>
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


def _facts(facts: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{safe(name)}</dt><dd>{words(value)}</dd>\n" for name, value in facts.items() if value)
    return f"<dl>\n{lines}</dl>\n"


def _name(row: dict[str, Any], segment: dict[str, Any]) -> str:
    return f"row-{row['row']}-segment-{segment['segment']}"


def _contents(rows: list[dict[str, Any]]) -> str:
    lines, count = "", sum(len(row["segments"]) for row in rows)
    is_open = " open" if count <= LINES else ""
    for row in rows:
        for s in row["segments"]:
            what = f"{words(s['task'])}, {s['length']:,} tokens"
            where = f"row {row['row']:,}, segment {s['segment']}" if len(rows) > 1 else f"segment {s['segment']}"
            lines += f'<li><a href="#{_name(row, s)}">{where}</a> <span class="quiet">{what}</span></li>\n'
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
<p class="quiet">Row {row["row_in_shard"]:,} of {words(row["shard"])}: {row["length"]:,} tokens, {padding};
weights by the rule {words(row["rule"])}.</p>
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
        **overview(s),
    }
    view = View(row["row"], s, name, pictures, full)
    return f"""<article id="{name}" aria-labelledby="{name}-title" tabindex="-1">
<h3 id="{name}-title">Segment {s["segment"]}: {words(s["task"])}</h3>
{_facts(facts)}{content(view, vocabulary)}{_spans(s["spans"], full)}{_runs(s["runs"], full)}{_steps(row, s)}</article>
"""


def _steps(row: dict[str, Any], s: dict[str, Any]) -> str:
    links = '<li><a href="#top">To the top</a></li>'
    for number, way in ((s["segment"] - 1, "Back to"), (s["segment"] + 1, "On to")):
        if 1 <= number <= len(row["segments"]):
            links += f'<li><a href="#row-{row["row"]}-segment-{number}">{way} segment {number}</a></li>'
    return f'<ul class="steps">{links}</ul>\n'


def _spans(spans: list[dict[str, Any]], full: bool) -> str:
    cells = [
        (f"{s['start']:,} to {s['end'] - 1:,}", words(s["kind"]), words(s["ref"] if full else elided(s["ref"], REF)))
        for s in spans
    ]
    return _table("Spans", ("positions", "kind", "what is known"), cells, full)


def _runs(runs: list[dict[str, Any]], full: bool) -> str:
    cells = [
        (
            f"{r['start']:,} to {r['end'] - 1:,}",
            f"{r['modality']}, trained, weight {r['weight']:.6g}" if r["trained"] else f"{r['modality']}, not trained",
            ids(r["tokens"], full),
        )
        for r in runs
    ]
    return _table("Runs of tokens that are alike", ("tokens", "kind", "ids"), cells, full)


def _table(what: str, columns: tuple[str, ...], cells: Sequence[tuple[str, ...]], full: bool) -> str:
    """Lay out cells of HTML under a summary that opens them, without the middle where they are many."""
    if not cells:
        return ""
    first, hidden, last = shortened(list(cells), LINES, full)
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>\n" for line in first + last]
    if hidden:
        lines.insert(len(first), f'<tr><td colspan="{len(columns)}">⟨… {len(hidden):,} lines …⟩</td></tr>\n')
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    return f"""<details><summary>{what}: {len(cells):,}</summary>
<table><thead><tr>{head}</tr></thead>
<tbody>
{"".join(lines)}</tbody></table></details>
"""
