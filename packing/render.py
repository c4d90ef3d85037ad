"""Show what `inspect` found on a terminal, with colour or without. No text that is shown can steer the terminal."""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.rule import Rule as Line
from rich.table import Table
from rich.text import Text

from .inspect import Summary
from .turn_words import about_words, chunk_words, names_anew, overview, place_words, spread_of, trained_words, untold
from .turns import begin, by_turn, holder

T = TypeVar("T")
BAR = 40  # characters of the longest bar
SHOWN = 400  # characters of a run that are shown, half at each end
SPANS, TURNS, RUNS, CHUNKS = 12, 24, 40, 2  # the most that are shown of a segment, and of a turn or its context
LEVELS = "·▁▂▃▄▅▆▇█"  # of a cell, from none to the most
TRAINED, UNTRAINED, LABEL = "bold green", "dim", "bold cyan"
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


def shortened(items: list[T], limit: int, full: bool) -> tuple[list[T], list[T], list[T]]:
    """Part a long list into its beginning, its middle, which is left out, and its end, unless it shall stay `full`."""
    half = limit // 2
    if full or len(items) <= limit:
        return items, [], []
    return items[:half], items[half:-half], items[-half:]


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
        blocks += [Line(Text(f"segment {segment['segment']}"), align="left"), _heading(segment, full)]
        blocks += _sections(segment, full)
    if detail["padding"]:
        blocks += [Line(Text("padding"), align="left"), Text(f"{detail['padding']:,} tokens", style=UNTRAINED)]
    return Group(*blocks)


def _heading(s: dict[str, Any], full: bool) -> Text:
    first, hidden, last = shortened(s["spans"] if full else untold(s), SPANS, full)
    lines = [
        f"{s['task']} from {s['source']}, record {s['record']}" + (f" at token {s['start']:,}" if s["start"] else ""),
        f"{place_words(s['place'])}, positions 0 to {s['positions'][1]:,}; {weighed(s)}",
        *(f"{name}: {value}" for name, value in overview(s).items() if value),
        *_spread(s),
        *map(_span, first),
        *([f"⟨… {len(hidden):,} spans …⟩"] if hidden else []),
        *map(_span, last),
    ]
    return Text("\n".join(map(visible, lines)), style="cyan")


def _span(span: dict[str, Any]) -> str:
    return f"span {span['start']:,} to {span['end']:,}: {span['kind']} {elided(span['ref'])}".rstrip()


def _spread(s: dict[str, Any]) -> Iterator[str]:
    """Draw where in the context the chunks lie that are asked about."""
    counts = spread_of(s, BAR)
    if most := max(counts):
        cells = "".join(LEVELS[-(-(len(LEVELS) - 1) * count // most)] for count in counts)
        yield f"0% ▕{cells}▏ 100%, up to {most:,} question{'s' * (most != 1)} a cell"


def _sections(s: dict[str, Any], full: bool) -> Iterator[Text]:
    """Lay out a segment turn by turn."""
    first, hidden, last = shortened(list(by_turn(s, s["runs"], lambda run: int(run["start"]))), TURNS, full)
    for turn, runs in first:
        yield _section(s, turn, runs, full)
    if hidden:
        tokens = hidden[-1][1][-1]["end"] - hidden[0][1][0]["start"]
        yield Text(f"⟨… {len(hidden):,} turns, {tokens:,} tokens …⟩", style="cyan")
    for turn, runs in last:
        yield _section(s, turn, runs, full)


def _section(s: dict[str, Any], turn: dict[str, Any] | None, runs: list[dict[str, Any]], full: bool) -> Text:
    text = Text(overflow="fold")
    if turn:
        told = [place_words(turn["place"]), trained_words(turn)]
        told += [about_words(turn["about"])] if names_anew(turn, s) else []
        text.append(turn["role"], style=LABEL).append(f": {', '.join(told)}\n", style="cyan")
    elif s["turns"]:
        place = runs[0]["start"], runs[-1]["end"]
        text.append("no turn", style=LABEL).append(f": {place_words(place)}\n", style="cyan")
    groups = [list(group) for _, group in groupby(runs, key=lambda run: begin(holder(s["contexts"], run["start"])))]
    first, hidden, last = shortened(groups, RUNS, full)
    for group in first:
        _append_group(text, group, s, full)
    if hidden:
        text.append(_left_out([run for group in hidden for run in group]), style=UNTRAINED)
    for group in last:
        _append_group(text, group, s, full)
    return text


def _append_group(text: Text, runs: list[dict[str, Any]], s: dict[str, Any], full: bool) -> None:
    """Append the runs of a context on lines of their own, or those outside one."""
    inside = holder(s["contexts"], runs[0]["start"]) is not None
    first, hidden, last = shortened(runs, CHUNKS if inside else RUNS, full)
    _append(text, first, s["chunks"], full)
    if hidden:
        text.append("\n" * inside + _left_out(hidden), style=UNTRAINED)
    _append(text, last, s["chunks"], full)
    text.append("\n" * inside)


def _left_out(runs: list[dict[str, Any]]) -> str:
    return f"⟨… {runs[-1]['end'] - runs[0]['start']:,} tokens …⟩"


def _append(text: Text, runs: list[dict[str, Any]], chunks: list[dict[str, Any]], full: bool) -> None:
    for run in runs:
        chunk = holder(chunks, run["start"])
        if chunk and chunk["place"][0] == run["start"]:
            text.append(f"\n⟨{chunk_words(chunk)}⟩ ", style="cyan")
        shown = run["text"] if full else elided(run["text"])
        shown = visible(shown, newlines=True)
        text.append(f"⟦{shown}⟧" if run["trained"] else shown, style=TRAINED if run["trained"] else UNTRAINED)
