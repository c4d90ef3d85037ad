"""Look into a data set: what it holds as a whole, one row in detail, and where a record went. Plain data only."""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..tokenizers.vocabulary import Vocabulary
from .dataset import Dataset, open_dataset
from .report import REJECT_FIELDS
from .row import Row, Segment, decode_runs
from .shard import Batch
from .storage import Folder
from .turns import Talk, begin, by_turn, facts, holder, talk
from .verify import data_sets
from .weights import Rule, segment_weights

Decode = Callable[[list[int]], str]
PICTURES = ("image", "video")  # kinds of the spans that cover frames


@dataclass(frozen=True)
class Summary:
    """What a data set holds, or what its segments of one task or source do.

    Attributes:
      kind, length, root, weights, vocabulary: what the manifest says.
      task, source: what was chosen; empty for all.
      sequences: rows with at least one such segment.
      tokens, padding: of such segments, and of no segment in those rows.
      fill: tokens of segments as a fraction of the rows' length; None where rows have no fixed length.
      trained: trained tokens as a fraction of tokens.
      segments: number of such segments; a row has `per_sequence` of them: the fewest, the mean and the most.
      lengths: by power of two: `{"1024": n}` counts segments of 1,024 to 2,047 tokens.
      parts: by source and task: segments, tokens, trained tokens.
      ledger: records or examples read, kept, dropped and failed: the source's where the manifest has it, else all.
      rejects: how many were dropped or failed for which reason.
    """

    kind: str
    length: int
    root: str
    weights: str
    vocabulary: dict[str, Any]
    task: str
    source: str
    sequences: int
    tokens: int
    padding: int
    fill: float | None
    trained: float
    segments: int
    per_sequence: tuple[int, float, int]
    lengths: dict[str, int]
    parts: list[dict[str, Any]]
    ledger: dict[str, int]
    rejects: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(url: str, task: str | None = None, source: str | None = None) -> Summary:
    """Count what a data set holds, from its manifest and the tables of segments; no token is read.

    Args:
      task, source: count only segments of these.

    Raises:
      UserError: if there is no complete data set.
    """
    dataset = open_dataset(url)
    tally = _Tally()
    for _, batch in _tables(dataset):
        tally.add(batch, chosen(batch, task, source))
    manifest = dataset.manifest
    ledger = manifest["sources"].get(source, manifest["ledger"]) if source else manifest["ledger"]
    rows, tokens = tally.rows, sum(part[1] for part in tally.parts.values())
    return Summary(
        kind=manifest["kind"],
        length=dataset.length,
        root=dataset.root,
        weights=manifest["weights"],
        vocabulary={**manifest["vocabulary"], "size": dataset.vocabulary.size},
        task=task or "",
        source=source or "",
        sequences=rows,
        tokens=tokens,
        padding=max(0, rows * dataset.length - tally.used),
        fill=tally.used / (rows * dataset.length) if rows * dataset.length else None,
        trained=sum(part[2] for part in tally.parts.values()) / tokens if tokens else 0.0,
        segments=tally.segments,
        per_sequence=(tally.fewest, tally.segments / rows if rows else 0.0, tally.most),
        lengths={str(1 << i): int(n) for i, n in enumerate(tally.lengths) if n},
        parts=[
            {"source": s, "task": t, "segments": n, "tokens": size, "trained": trained}
            for (s, t), (n, size, trained) in sorted(tally.parts.items())
        ],
        ledger={name: ledger[name] for name in ("read", "kept", "dropped", "failed")},
        rejects=dict(sorted(ledger["reasons"].items(), key=lambda item: (-item[1], item[0]))),
    )


def _tables(dataset: Dataset) -> Iterator[tuple[int, Batch]]:
    """Yield each batch's first row and its segments; the tokens stay where they are."""
    row = 0
    for number in range(dataset.index.num_rows):
        shard = dataset.shard(number)
        for table in map(shard.table, range(shard.batch_count)):
            yield row, table
            row += table.rows


def chosen(batch: Batch, task: str | None, source: str | None) -> np.ndarray:
    """Mark the segments of a task and a source: bool, one a segment."""
    mask = np.ones(len(batch.column("length")), bool)
    for name, wanted in (("task", task), ("source", source)):
        if wanted is not None:
            mask &= _equal(batch.strings(name), wanted)
    return mask


def _equal(strings: pa.Array, wanted: str) -> np.ndarray:
    return pc.equal(strings, wanted).to_numpy(zero_copy_only=False)


class _Tally:
    """Counts over the batches seen."""

    def __init__(self) -> None:
        self.rows = self.used = self.segments = self.fewest = self.most = 0
        self.lengths = np.zeros(64, np.int64)
        self.parts: dict[tuple[str, str], list[int]] = {}  # segments, tokens, trained tokens

    def add(self, batch: Batch, mask: np.ndarray) -> None:
        """Count the marked segments, and the rows that have one."""
        lengths = batch.column("length")
        per_row = _row_sums(mask, batch.segment_offsets)
        hit = per_row > 0 if not mask.all() else np.ones(len(per_row), bool)
        if hit.any():
            least, most = int(per_row[hit].min()), int(per_row[hit].max())
            self.fewest, self.most = (min(self.fewest, least), max(self.most, most)) if self.rows else (least, most)
        self.rows += int(hit.sum())
        self.used += int(_row_sums(lengths, batch.segment_offsets)[hit].sum())
        self.segments += int(mask.sum())
        self.lengths += np.bincount(np.log2(np.maximum(lengths[mask], 1)).astype(np.int64), minlength=64)
        self._add_parts(batch, mask)

    def _add_parts(self, batch: Batch, mask: np.ndarray) -> None:
        names = [batch.strings(name).dictionary_encode() for name in ("source", "task")]
        sources, tasks = (n.dictionary.to_pylist() for n in names)
        codes = names[0].indices.to_numpy()[mask] * max(1, len(tasks)) + names[1].indices.to_numpy()[mask]
        trained = batch.column("trained_text").astype(np.int64) + batch.column("trained_vision")
        for code in np.unique(codes).tolist():
            of = codes == code
            counts = [int(of.sum()), int(batch.column("length")[mask][of].sum()), int(trained[mask][of].sum())]
            key = sources[code // len(tasks)], tasks[code % len(tasks)]
            self.parts[key] = [a + b for a, b in zip(self.parts.get(key, [0, 0, 0]), counts, strict=True)]


def _row_sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    total = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    return total[offsets[1:]] - total[offsets[:-1]]


def sample_rows(
    dataset: Dataset, n: int, seed: int = 0, task: str | None = None, source: str | None = None
) -> list[int]:
    """Choose at most `n` rows, in ascending order; with a task or source among those that have such a segment."""
    rows: range | list[int] = range(dataset.rows)
    if task is not None or source is not None:
        rows = [
            first + i
            for first, batch in _tables(dataset)
            for i in np.flatnonzero(_row_sums(chosen(batch, task, source), batch.segment_offsets)).tolist()
        ]
    return sorted(random.Random(seed).sample(rows, min(n, len(rows))))


def find_record(url: str, record: str) -> list[dict[str, Any]]:
    """Find where a record went, in a data set or in all of a build's.

    Returns:
      One dictionary a find, with `data_set`, its name in the build or empty: for each segment its `row`, `segment`
      (its number in the row, from 1) and `task`, `source`, `start`, `length`; for each reject its fields.

    Raises:
      UserError: if there is no complete data set.
    """
    found = []
    for name in data_sets(url):
        dataset = open_dataset(str(Folder(url).sub(name).url) if name else url)
        found += [{"data_set": name, **hit} for hit in _record_rows(dataset, record)]
        found += [{"data_set": name, **hit} for hit in _record_rejects(dataset, record)]
    return found


def _record_rows(dataset: Dataset, record: str) -> Iterator[dict[str, Any]]:
    for first, batch in _tables(dataset):
        for i in np.flatnonzero(_equal(batch.strings("record"), record)).tolist():
            row = int(np.searchsorted(batch.segment_offsets, i, side="right")) - 1
            fields = {name: batch.strings(name)[i].as_py() for name in ("task", "source", "start", "length")}
            yield {"row": first + row, "segment": i - int(batch.segment_offsets[row]) + 1, **fields}


def _record_rejects(dataset: Dataset, record: str) -> Iterator[dict[str, Any]]:
    folder = dataset.folder
    for path in filter(None, dataset.index.column("rejects").to_pylist()):
        with folder.fs.open(folder.path(path), "rb") as file:
            yield from pq.read_table(file, filters=[("record", "==", record)], columns=list(REJECT_FIELDS)).to_pylist()


def row_detail(dataset: Dataset, row: int, rule: Rule | None = None, decode: Decode | None = None) -> dict[str, Any]:
    """Take one row apart: its segments, and in each the runs of tokens that are alike.

    Args:
      rule: how trained tokens are weighed; the data set's own rule by default.
      decode: turns text ids into text; without it the ids stand for themselves.

    Returns:
      Plain data. `start` and `end` are places in the row but those of spans, which are positions; `positions` restart
      in each segment. `weight` is what the loss counts for predicting one of the run's tokens, before it is divided by
      the rule's divisor. `turns`, `contexts` and `chunks` are what a segment's spans tell of a chat, as in
      `turns.Turn`, `turns.Context` and `turns.Chunk`; no run goes over an edge of one of them. Spans that lack a field
      are left out.

    Raises:
      IndexError: if there is no such row.
    """
    rule = rule or dataset.weights
    content = dataset.row(row)
    number = int(np.searchsorted(dataset.starts, row, side="right")) - 1
    return {
        "row": row,
        "shard": dataset.index.column("path")[number].as_py(),
        "row_in_shard": row - int(dataset.starts[number]),
        "length": len(content.tokens),
        "padding": len(content.tokens) - sum(s.length for s in content.segments),
        "rule": str(rule),
        "segments": list(_segment_details(content, dataset.vocabulary, rule, decode)),
    }


def _segment_details(row: Row, vocabulary: Vocabulary, rule: Rule, decode: Decode | None) -> Iterator[dict[str, Any]]:
    flags = decode_runs(row.trained)
    low = 0
    for number, segment in enumerate(row.segments, 1):
        high = low + segment.length
        counts = (np.array([segment.trained_text]), np.array([segment.trained_vision]))
        text, vision = (float(w[0]) for w in segment_weights(rule, *counts, vocabulary))
        segment = segment._replace(spans=tuple(span for span in segment.spans if None not in span))
        told = talk(segment.spans, flags[low:high], low)
        cuts = np.array(told.edges(), np.int64) - low
        pieces = _pieces(row.tokens[low:high], flags[low:high], vocabulary, cuts)
        yield {
            "segment": number,
            **_named(segment),
            **_told(told),
            "place": [low, high],
            "positions": [0, segment.length - 1],
            "weights": {"text": text, "vision": vision},
            "runs": [_run(piece, low, {"text": text, "vision": vision}, vocabulary, decode) for piece in pieces],
        }
        low = high


def _named(segment: Segment) -> dict[str, Any]:
    return {**segment._asdict(), "spans": [span._asdict() for span in segment.spans]}


def _told(told: Talk) -> dict[str, list[dict[str, Any]]]:
    return {name: list(map(asdict, items)) for name, items in told._asdict().items()}


class _Piece(NamedTuple):
    """Tokens of a segment that are alike, the place of the first in it, and whether a clip goes on with them."""

    start: int
    tokens: np.ndarray
    trained: bool
    vision: bool
    follows: bool


def _pieces(tokens: np.ndarray, trained: np.ndarray, vocabulary: Vocabulary, cuts: np.ndarray) -> Iterator[_Piece]:
    """Cut before the places `cuts`, where training begins or ends, between text and vision, and after each frame."""
    vision = vocabulary.is_vision(tokens)
    edges = (trained[1:] != trained[:-1]) | (vision[1:] != vision[:-1])
    if vocabulary.codes:
        edges |= tokens[:-1] >= vocabulary.eof
    edges[cuts[(cuts > 0) & (cuts < len(tokens))] - 1] = True
    for low, high in _parts(edges):
        follows = low > 0 and bool(vocabulary.codes) and bool(tokens[low - 1] == vocabulary.eof)
        yield _Piece(low, tokens[low:high], bool(trained[low]), bool(vision[low]), follows)


def _parts(edges: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut `[0, n)` after each marked place: bool `[n - 1]`."""
    return pairwise([0, *(np.flatnonzero(edges) + 1).tolist(), len(edges) + 1])


def _run(
    piece: _Piece, offset: int, weights: dict[str, float], vocabulary: Vocabulary, decode: Decode | None
) -> dict[str, Any]:
    modality = "vision" if piece.vision else "text"
    ids = piece.tokens.tolist()
    low = offset + piece.start
    return {
        "start": low,
        "end": low + len(ids),
        "trained": piece.trained,
        "modality": modality,
        "weight": weights[modality] if piece.trained else 0.0,
        "tokens": ids,
        "text": _frame(ids, piece.follows, vocabulary) if piece.vision else _text(ids, decode),
    }


def _text(ids: list[int], decode: Decode | None) -> str:
    return decode(ids) if decode else " ".join(map(str, ids))


def _frame(ids: list[int], follows: bool, vocabulary: Vocabulary) -> str:
    """Describe a frame by its codes and what ends it, or a part of one."""
    endings = {vocabulary.eof: "frame", vocabulary.eov: "last frame" if follows else "image"}
    what = endings.get(ids[-1], "part of a frame")
    return f"⟨{what} of {len(ids) - (ids[-1] in endings):,} codes⟩"


class Frame(NamedTuple):
    """A frame of a clip, or what a row holds of one.

    Attributes:
      number: its place in the clip, from 1.
      start, end: its places in the row, its ending included.
      codes: what a vision tokenizer decodes: uint16 `[n]`, without the ending.
      ended: is there an ending? Without one the frame may go on where the row does not.
      trained: how many of its tokens are trained.
      seconds: its time in the video, where the row says it.
    """

    number: int
    start: int
    end: int
    codes: np.ndarray
    ended: bool
    trained: int
    seconds: float | None


class Clip(NamedTuple):
    """Frames up to the end of an image or a video; `kind` is one of `PICTURES`, `ref` what its span says."""

    kind: str
    ref: dict[str, Any]
    frames: tuple[Frame, ...]


def blocks(segment: dict[str, Any], vocabulary: Vocabulary) -> Iterator[list[dict[str, Any]] | Clip]:
    """Group the runs of a segment of `row_detail` as one reads them: yields runs of text, and clips, in order.

    A block lies in one turn or outside all of them; runs of text likewise in one context or outside all of them.
    """
    low = segment["place"][0]
    spans = sorted((low + s["start"], low + s["end"], s["kind"], s["ref"]) for s in segment["spans"])
    spans = [span for span in spans if span[2] in PICTURES]
    for _, section in by_turn(segment, segment["runs"], lambda run: int(run["start"])):
        for (vision, _), group in groupby(section, key=lambda run: _group(run, segment["contexts"])):
            runs = list(group)
            if not vision:
                yield runs
                continue
            tokens = np.concatenate([run["tokens"] for run in runs])
            trained = np.repeat([run["trained"] for run in runs], [len(run["tokens"]) for run in runs])
            for a, b in _parts(tokens[:-1] == vocabulary.eov):
                yield _clip(runs[0]["start"] + a, tokens[a:b], trained[a:b], spans, vocabulary)


def _group(run: dict[str, Any], contexts: list[dict[str, Any]]) -> tuple[bool, int]:
    """Tell what the runs of a block have in common: are they of frames, and where does their context begin, if any?"""
    vision = run["modality"] == "vision"
    return vision, -1 if vision else begin(holder(contexts, run["start"]))


def block_start(block: list[dict[str, Any]] | Clip) -> int:
    """Return the place in the row where a block begins."""
    return block.frames[0].start if isinstance(block, Clip) else int(block[0]["start"])


def _clip(
    low: int,
    tokens: np.ndarray,
    trained: np.ndarray,
    spans: list[tuple[int, int, str, str]],
    vocabulary: Vocabulary,
) -> Clip:
    parts = list(_parts(tokens[:-1] >= vocabulary.eof))
    at = bisect_right(spans, low, key=lambda span: span[0]) - 1
    inside = at >= 0 and low < spans[at][1]
    kind = spans[at][2] if inside else PICTURES[len(parts) > 1]
    ref = facts(spans[at][3]) if inside else {}
    times = _times(ref, len(parts))
    frames = []
    for number, (a, b) in enumerate(parts):
        ended = bool(tokens[b - 1] >= vocabulary.eof)
        codes = (tokens[a : b - ended] - vocabulary.text_size).astype(np.uint16)
        frames.append(Frame(number + 1, low + a, low + b, codes, ended, int(trained[a:b].sum()), times[number]))
    return Clip(kind, ref, tuple(frames))


def _times(ref: dict[str, Any], frames: int) -> list[float | None]:
    """Tell the seconds of a clip's frames; of none where its ref does not say it of so many frames."""
    start, rate = _number(ref.get("start")), _number(ref.get("rate"))
    known = 0 <= start < 1e9 and 1e-6 < rate < 1e6 and ref.get("frames", frames) == frames
    return [start + i / rate if known else None for i in range(frames)]


def _number(value: Any) -> float:
    return value if type(value) in (int, float) else math.nan
