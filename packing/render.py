"""Show what `inspect` found on a terminal, with colour or without. No text that is shown can steer the terminal."""

import re
from typing import Any

from rich.console import Group, RenderableType
from rich.rule import Rule as Line
from rich.table import Table
from rich.text import Text

from .inspect import Summary

BAR = 40  # characters of the longest bar
SHOWN = 400  # characters of a run that are shown, half at each end
TRAINED, UNTRAINED = "bold green", "dim"
# Control characters, and the invisible ones that reorder or hide what stands beside them.
UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str, newlines: bool = False) -> str:
    """Write every character that could steer a terminal as its escape; newlines stay where they are asked for."""
    return UNSAFE.sub(lambda m: m[0] if newlines and m[0] == "\n" else ascii(m[0])[1:-1], text)


def elided(text: str, limit: int = SHOWN) -> str:
    """Leave out the middle of a long text, and say how much."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ⟨… {len(text) - 2 * half:,} characters …⟩ {text[-half:]}"


def clock(seconds: float) -> str:
    """Write a time as minutes and seconds, and hours where there are any."""
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    short = f"{minutes % 60:02}:{rest / 100:05.2f}"
    return f"{minutes // 60}:{short}" if minutes >= 60 else short


def weighed(segment: dict[str, Any]) -> str:
    """Say how many tokens of a segment are trained, and what one of them weighs."""
    parts = [
        f"{segment[f'trained_{name}']:,} trained {name} tokens of weight {weight:.6g}"
        for name, weight in segment["weights"].items()
        if segment[f"trained_{name}"]
    ]
    return ", ".join(parts) or "nothing trained"


def render_summary(summary: Summary) -> RenderableType:
    """Lay a summary out as tables, with bars for the lengths of segments."""
    blocks: list[RenderableType] = [_facts(summary), _parts(summary), _lengths(summary)]
    if summary.rejects:
        blocks.append(_rejects(summary))
    return Group(*blocks)


def _facts(s: Summary) -> Table:
    chosen = ", ".join(f"{name} {value}" for name, value in (("task", s.task), ("source", s.source)) if value)
    least, mean, most = s.per_sequence
    vocabulary = f"{s.vocabulary['size']:,} ids, {s.vocabulary['text_size']:,} of them text"
    facts = {
        "kind": s.kind + (f" of {s.length:,} tokens" if s.length else ""),
        "chosen": chosen,
        "sequences" if s.length else "rows": f"{s.sequences:,}",
        "tokens": f"{s.tokens:,}",
        "fill": f"{s.fill:.2%}, {s.padding:,} tokens of padding" if s.fill is not None else "",
        "trained": f"{s.trained:.2%} of the tokens",
        "segments": f"{s.segments:,}; in a row {least:,} to {most:,}, {mean:,.2f} on average",
        "records": ", ".join(f"{n:,} {name}" for name, n in s.ledger.items()),
        "weights": s.weights,
        "vocabulary": vocabulary,
        "root": s.root,
    }
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(Text(name), _cell(value))
    return table


def _parts(s: Summary) -> Table:
    table = _table("by source and task", "source", "task", "segments", "tokens", "trained")
    for p in s.parts:
        share = p["trained"] / p["tokens"] if p["tokens"] else 0.0
        counts = f"{p['segments']:,}", f"{p['tokens']:,}", f"{share:.1%}"
        table.add_row(_cell(p["source"]), _cell(p["task"]), *map(Text, counts))
    return table


def _lengths(s: Summary) -> Table:
    table = _table("length of segments", "tokens from", "segments", "")
    most = max(s.lengths.values(), default=1)
    for low, n in s.lengths.items():
        table.add_row(Text(f"{int(low):,}"), Text(f"{n:,}"), Text("█" * max(1, round(BAR * n / most)), style="cyan"))
    return table


def _rejects(s: Summary) -> Table:
    table = _table("not in it", "reason", "records")
    for reason, n in s.rejects.items():
        table.add_row(_cell(reason), Text(f"{n:,}"))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for name in columns:
        numeric = name in ("segments", "tokens", "tokens from", "trained", "records")
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    return table


def _cell(text: str) -> Text:
    return Text(visible(text))


def render_row(detail: dict[str, Any], full: bool = False) -> RenderableType:
    """Lay one row out: its segments under headings, trained text bold and green between ⟦ and ⟧, the rest dim.

    Args:
      full: show long texts whole, not without their middle.
    """
    head = (
        f"row {detail['row']:,} (row {detail['row_in_shard']:,} of {visible(detail['shard'])}): "
        f"{detail['length']:,} tokens, {detail['padding']:,} of them padding; weights by the rule '{detail['rule']}'"
    )
    legend = Text.assemble("legend: ", ("⟦trained⟧", TRAINED), " ", ("not trained", UNTRAINED))
    blocks: list[RenderableType] = [Text(head), legend]
    for segment in detail["segments"]:
        blocks += [Line(Text(f"segment {segment['segment']}"), align="left"), _heading(segment)]
        blocks.append(_content(segment["runs"], full))
    if detail["padding"]:
        blocks += [Line(Text("padding"), align="left"), Text(f"{detail['padding']:,} tokens", style=UNTRAINED)]
    return Group(*blocks)


def _heading(s: dict[str, Any]) -> Text:
    low, high = s["place"]
    lines = [
        f"{s['task']} from {s['source']}, record {s['record']}" + (f" at token {s['start']:,}" if s["start"] else ""),
        f"tokens {low:,} to {high - 1:,}, positions 0 to {s['positions'][1]:,}; {weighed(s)}",
        *(f"span {p['start']:,} to {p['end']:,}: {p['kind']} {elided(p['ref'])}".rstrip() for p in s["spans"]),
    ]
    return Text("\n".join(map(visible, lines)), style="cyan")


def _content(runs: list[dict[str, Any]], full: bool) -> Text:
    text = Text(overflow="fold")
    for run in runs:
        shown = run["text"] if full else elided(run["text"])
        shown = visible(shown, newlines=True)
        text.append(f"⟦{shown}⟧" if run["trained"] else shown, style=TRAINED if run["trained"] else UNTRAINED)
    return text
