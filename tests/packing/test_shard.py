"""Rows written are the rows read, in batches of bounded size, and the same rows give the same bytes."""

import hashlib
import json
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.packing import shard as layout
from worldloom.packing.example import Span
from worldloom.packing.row import Row, Segment, decode_runs, encode_runs
from worldloom.packing.shard import EXAMPLES, Kind, Shard, ShardInfo, ShardWriter, schema
from worldloom.packing.storage import Folder
from worldloom.tokenizers.vocabulary import Vocabulary

TEXT_ONLY = Vocabulary(text_size=200, bos=1, eos=2, text_digest="t")
VISION = Vocabulary(text_size=32000, bos=1, eos=2, text_digest="t", codes=8192, vision_digest="v")
LARGE = Vocabulary(text_size=100_000, bos=1, eos=2, text_digest="t")
LENGTH = 24

words = st.text(max_size=6)
int32 = st.integers(0, 2**31 - 1)
spans = st.builds(Span, int32, int32, words, words)


@st.composite
def rows(draw, vocabulary: Vocabulary, kind: Kind) -> Row:
    """Draw a row; of its rules only the lengths are kept, for a shard stores what it is given."""
    n = kind.length or draw(st.integers(1, 40))
    ids = st.integers(0, vocabulary.size - 1)
    tokens = np.array(draw(st.lists(ids, min_size=n, max_size=n)), vocabulary.dtype)
    flags = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    segment = st.builds(
        Segment, int32, words, words, words, st.integers(0, 2**62), int32, int32, st.lists(spans, max_size=2).map(tuple)
    )
    segments = tuple(draw(st.lists(segment, min_size=0 if kind.length else 1, max_size=3 if kind.length else 1)))
    if kind.length:
        return Row(tokens, segments, encode_runs(flags))
    near = np.array(draw(st.lists(st.integers(0, 2**64 - 1), max_size=3)), np.uint64)
    return Row(tokens, segments, encode_runs(flags), draw(st.binary(min_size=16, max_size=16)), near)


def plain(row: Row) -> tuple[object, ...]:
    """Say all that a row is, in Python's own values."""
    segments = [(*s[:-1], tuple(map(tuple, s.spans))) for s in row.segments]
    return row.tokens.dtype, row.tokens.tolist(), segments, row.trained.tolist(), row.exact, row.near.tolist()


def naive_payload(row: Row) -> bytes:
    """Do what docs/formats.md says, word by word."""
    segments = [[*s[:-1], [list(span) for span in s.spans]] for s in row.segments]
    parts = [
        b"".join(int(t).to_bytes(row.tokens.itemsize, "little") for t in row.tokens),
        json.dumps(segments, ensure_ascii=True, separators=(",", ":")).encode("ascii"),
        b"".join(int(n).to_bytes(4, "little") for n in row.trained),
        row.exact,
        b"".join(int(n).to_bytes(8, "little") for n in row.near),
    ]
    return b"".join(struct.pack("<Q", len(p)) for p in parts) + b"".join(parts)


def write(path: Path, written: list[Row], vocabulary: Vocabulary, kind: Kind) -> ShardInfo:
    writer = ShardWriter(path, vocabulary, kind)
    for row in written:
        writer.add(row)
    writer.close()
    return writer.info(path.name)


@pytest.mark.parametrize("kind", [EXAMPLES, Kind("sequences", LENGTH)])
@pytest.mark.parametrize("vocabulary", [TEXT_ONLY, VISION, LARGE])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_written_are_the_rows_read(kind, vocabulary, data):
    written = data.draw(st.lists(rows(vocabulary, kind), max_size=5))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BATCH_TOKENS", 2 * LENGTH)
        info = write(Path(folder, "x.arrow"), written, vocabulary, kind)
        shard = Shard(Folder(folder), "x.arrow")
        expected = [plain(row) for row in written]
        assert [plain(row) for row in shard.rows()] == expected
        batches = list(shard.batches())
        assert [plain(b.row(i)) for b in batches for i in range(b.rows)] == expected
        assert [b.crc32(i) for b in batches for i in range(b.rows)] == [zlib.crc32(naive_payload(r)) for r in written]
        places = [shard.locate(i) for i in range(len(written))]
        assert [plain(place.rows.row(place.number)) for place in places] == expected
        content = hashlib.blake2b(b"".join(map(naive_payload, written)), digest_size=16).hexdigest()
        data_bytes = Path(folder, "x.arrow").read_bytes()
        digest = hashlib.blake2b(data_bytes, digest_size=16).hexdigest()
        tokens = sum(s.length for row in written for s in row.segments)
        assert info == ShardInfo("x.arrow", len(written), tokens, len(data_bytes), content, digest)
        assert (shard.vocabulary, shard.kind) == (vocabulary, kind)


def simple(tokens: int, record: str = "r") -> Row:
    ids = (np.arange(tokens) % 200).astype(np.uint8)
    return Row(ids, (Segment(tokens, "text", "s", record, 0, 0, 0),), np.array([tokens], np.int32))


def test_a_batch_holds_no_more_than_its_tokens_or_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BATCH_TOKENS", 100)
    sizes = [50, 50, 1, 99, 100, 101, 7, 250, 250, 30, 30, 30, 30]
    write(tmp_path / "x", [simple(n) for n in sizes], TEXT_ONLY, EXAMPLES)
    shard = Shard(Folder(str(tmp_path)), "x")
    found = [np.diff(batch.token_offsets).tolist() for batch in shard.batches()]
    assert found == [[50, 50], [1, 99], [100], [101], [7], [250], [250], [30, 30, 30], [30]]
    assert [shard.locate(i)[1:] for i in (0, 3, 4, 11, 12)] == [(0, 0), (1, 1), (2, 0), (7, 2), (8, 0)]
    with pytest.raises(IndexError):
        shard.locate(13)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    written = [simple(n, f"r{n}") for n in (3, 9, 27)]
    infos = [write(tmp_path / name, written, TEXT_ONLY, EXAMPLES)._replace(path="") for name in "ab"]
    assert infos[0] == infos[1] and (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    other = write(tmp_path / "c", written[::-1], TEXT_ONLY, EXAMPLES)
    assert other.content != infos[0].content and other.file != infos[0].file


def test_a_shard_is_read_by_any_arrow_reader(tmp_path):
    write(tmp_path / "x", [simple(3, "é")], TEXT_ONLY, EXAMPLES)
    (row,) = pa.ipc.open_file(tmp_path / "x").read_all().to_pylist()
    assert row["tokens"] == [0, 1, 2] and row["segments"][0]["record"] == "é" and row["trained"] == [3]


def arrow(path: Path, metadata: dict[str, str] | None) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("a", pa.int8())], metadata)):
        pass


def test_what_is_no_shard_of_this_format_is_refused(tmp_path):
    folder = Folder(str(tmp_path))
    with pytest.raises(UserError, match="is missing"):
        Shard(folder, "x")
    (tmp_path / "x").write_bytes(b"nothing of ours at all")
    with pytest.raises(UserError, match="cannot be read"):
        Shard(folder, "x")
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        Shard(folder, "x")
    arrow(tmp_path / "x", None)
    with pytest.raises(UserError, match="no worldloom shard"):
        Shard(folder, "x")
    described = json.loads(schema(TEXT_ONLY, EXAMPLES).metadata[b"worldloom"])
    arrow(tmp_path / "x", {"worldloom": json.dumps({**described, "format": 99})})
    with pytest.raises(UserError, match="format version 99"):
        Shard(folder, "x")


@given(st.lists(st.booleans(), max_size=40))
@settings(max_examples=50, deadline=None)
def test_runs_are_the_flags(flags):
    runs = encode_runs(np.array(flags, bool))
    naive, at = [], False
    for n in runs.tolist():
        naive += [at] * n
        at = not at
    assert naive == flags == decode_runs(runs).tolist()
    assert runs.dtype == np.int32 and all(n > 0 for n in runs[1:].tolist())
