"""Whatever is done to a data set, verify says so; and it says nothing of a sound one."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worldloom.errors import UserError
from worldloom.packing import check
from worldloom.packing import shard as layout
from worldloom.packing.check import Claim, check_shard, payloads
from worldloom.packing.example import Draft, Example, Span
from worldloom.packing.ledger import DROPPED, FAILED, KEPT
from worldloom.packing.manifest import write_index, write_manifest
from worldloom.packing.report import REJECTS, SHARDS, UNITS, Reject, UnitWriter, read_report, report_name
from worldloom.packing.row import Row, Segment, example_row, payload, sequence_row
from worldloom.packing.shard import EXAMPLES, Kind, Shard, ShardWriter
from worldloom.packing.storage import Folder
from worldloom.packing.verify import Problem, data_sets, verify
from worldloom.tokenizers.vocabulary import Vocabulary

VISION = Vocabulary(text_size=300, bos=1, eos=2, text_digest="t", codes=64, vision_digest="v")
LENGTH = 32


def example(rng: np.random.Generator, n: int, record: str) -> Example:
    draft = Draft(VISION)
    draft.add([1], trained=False)
    draft.add(rng.integers(3, 300, n // 2), trained=False, kind="user", ref='{"a":"é\\""}')
    draft.add([*rng.integers(300, 364, n - n // 2 - 3), VISION.eov], trained=True, kind="image")
    draft.add([2], trained=True)
    return draft.example("image-to-text", 'so"],"",[urce', record)


def packed(rng: np.random.Generator, name: str) -> Row:
    return sequence_row([example(rng, 14, f"{name}.{i}") for i in range(2)], LENGTH, VISION)


def single(rng: np.random.Generator, name: str) -> Row:
    return example_row(example(rng, 12, name), VISION, bytes(range(16)), np.arange(2, dtype=np.uint64))


def write_shard(path: Path, rows: list[Row], kind: Kind) -> Claim:
    writer = ShardWriter(path, VISION, kind)
    tasks: dict[str, dict[str, int]] = {}
    for row in rows:
        writer.add(row)
        for s in row.segments:
            counts = tasks.setdefault(s.task, {"examples": 0, "tokens": 0, "trained": 0})
            for name, n in zip(counts, (1, s.length, s.trained_text + s.trained_vision), strict=True):
                counts[name] += n
    writer.close()
    return Claim(writer.info("shards/x.arrow"), tasks, VISION, kind)


def named(findings: list[Any]) -> set[int]:
    return {row for finding in findings for row in finding.rows}


def readable(data: bytes) -> list[str | None]:
    """Read a shard as any Arrow user would: the text of each row, None for each batch that cannot be read."""
    try:
        reader = pa.ipc.open_file(pa.BufferReader(data))
    except Exception:
        return [None]
    rows: list[str | None] = []
    for i in range(reader.num_record_batches):
        try:
            batch = reader.get_batch(i)
            batch.validate(full=True)
            rows += map(repr, batch.to_pylist())
        except Exception:
            rows.append(None)
    return rows


@pytest.mark.parametrize(("kind", "mask", "step"), [(Kind("sequences", LENGTH), 0xFF, 1), (EXAMPLES, 0x01, 5)])
def test_every_flipped_byte_is_found_and_every_changed_row_is_named(tmp_path, monkeypatch, kind, mask, step):
    """Without the rules that rows must keep, which take most of the time: checksums and digests alone must tell."""
    monkeypatch.setattr(check, "broken_rules", lambda *_: [])
    monkeypatch.setattr(layout, "BATCH_TOKENS", 2 * LENGTH if kind.length else 24)
    rng = np.random.default_rng(0)
    rows = [packed(rng, f"r{i}") if kind.length else single(rng, f"r{i}") for i in range(3)]
    sound, bad = tmp_path / "sound.arrow", tmp_path / "bad.arrow"
    claim = write_shard(sound, rows, kind)
    assert check_shard(sound, claim) == []
    data = sound.read_bytes()
    before = readable(data)
    assert len(before) == 3
    for at in range(0, len(data), step):
        flipped = bytearray(data)
        flipped[at] ^= mask
        bad.write_bytes(flipped)
        found = check_shard(bad, claim)
        after = readable(bytes(flipped))
        assert found, at
        if None not in after:
            changed = {i for i in range(3) if i >= len(after) or after[i] != before[i]}
        else:  # where a batch is lost the numbers of the others are; where the file is, its footer is broken
            changed = {i for i in range(3) if before[i] not in after} if len(after) > 1 else set()
        assert changed <= named(found), at


def test_damage_of_any_size_is_survived_and_found(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BATCH_TOKENS", 2 * LENGTH)
    rng = np.random.default_rng(0)
    sound, bad = tmp_path / "sound.arrow", tmp_path / "bad.arrow"
    claim = write_shard(sound, [packed(rng, f"r{i}") for i in range(5)], Kind("sequences", LENGTH))
    data = sound.read_bytes()
    for trial in range(300):
        low = int(rng.integers(0, len(data)))
        high = low + int(rng.integers(1, 400))
        fill = [b"", bytes(high - low), rng.bytes(high - low), data[high : 2 * high - low]][trial % 4]
        damaged = data[:low] + fill + data[high:]
        if damaged != data:
            bad.write_bytes(damaged)
            assert check_shard(bad, claim), trial


def test_a_lost_footer_leaves_the_rows_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BATCH_TOKENS", 2 * LENGTH)
    rng = np.random.default_rng(0)
    path = tmp_path / "x.arrow"
    claim = write_shard(path, [packed(rng, f"r{i}") for i in range(6)], Kind("sequences", LENGTH))
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    found = check_shard(path, claim)
    assert "footer" in found[1].what and named(found) == set()
    third = data.index(b"r4.0")
    path.write_bytes(data[:third])
    assert named(check_shard(path, claim)) == {4, 5}


def test_a_footer_that_lists_a_batch_twice_is_noticed(tmp_path, monkeypatch):
    """Each row agrees with its checksum then, and there are as many as there should be."""
    monkeypatch.setattr(layout, "BATCH_TOKENS", LENGTH)
    rng = np.random.default_rng(0)
    path = tmp_path / "x.arrow"
    claim = write_shard(path, [packed(rng, f"{i}") for i in range(3)], Kind("sequences", LENGTH))
    data = path.read_bytes()
    first = data.index(b"\xff\xff\xff\xff", 12)  # the message after the schema's
    block = data.rindex(struct.pack("<q", first))  # in the footer: offset, length of the metadata, of the body
    path.write_bytes(data[: block + 24] + data[block : block + 24] + data[block + 48 :])
    assert named(check_shard(path, claim)) == {1}


def test_another_shard_of_as_many_rows_is_noticed(tmp_path):
    rng = np.random.default_rng(0)
    claims = [write_shard(tmp_path / name, [packed(rng, name)], Kind("sequences", LENGTH)) for name in "ab"]
    found = check_shard(tmp_path / "a", replace(claims[1], info=claims[0].info._replace(content="ff")))
    assert [f.what for f in found] == [f.what for f in found if "not the rows that its report describes" in f.what]
    assert len(found) == 1


def test_an_empty_shard_is_checked_too(tmp_path):
    claim = write_shard(tmp_path / "x", [], EXAMPLES)
    assert check_shard(tmp_path / "x", claim) == []
    data = (tmp_path / "x").read_bytes()
    for at in range(0, len(data), 3):
        (tmp_path / "x").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert check_shard(tmp_path / "x", claim)


def test_fast_payloads_are_the_slow_ones(tmp_path):
    rng = np.random.default_rng(0)
    nasty = ['],"",[', '"', "\\", "", "]],[[", "é\n\x00", "r\u2028", "\U0001d54f"]
    rows = []
    for i, text in enumerate(nasty):
        base = packed(rng, f"r{i}")
        spans = (Span(0, 3, text, text), Span(1, 2, "", text))
        segments = tuple(s._replace(record=text, task=text, spans=spans[: i % 3]) for s in base.segments)
        rows.append(replace(base, segments=segments[: 1 + i % 2]))
    rows.append(Row(np.zeros(LENGTH, VISION.dtype), (), np.array([LENGTH], np.int32)))
    write_shard(tmp_path / "s.arrow", rows, Kind("sequences", LENGTH))
    examples = [single(rng, text) for text in nasty] + [
        replace(single(rng, "x"), near=np.empty(0, np.uint64), exact=b"")
    ]
    write_shard(tmp_path / "e.arrow", examples, EXAMPLES)
    for name, expected in (("s.arrow", rows), ("e.arrow", examples)):
        (batch,) = Shard(Folder(str(tmp_path)), name).batches()
        assert list(map(bytes, payloads(batch))) == [payload(row) for row in expected]
        assert [payload(row) for row in batch.read()] == [payload(row) for row in expected]


def broken(row: Row, **changes: Any) -> Row:
    """Change a row, or the fields of its first segment."""
    if not changes.keys() & set(Segment._fields):
        return replace(row, **changes)
    return replace(row, segments=(row.segments[0]._replace(**changes), *row.segments[1:]))


TOKENS = np.ones(LENGTH, VISION.dtype)
RULES: list[tuple[Callable[[Row], Row], str]] = [
    (
        lambda r: broken(r, tokens=r.tokens[:-1], trained=np.array([LENGTH - 1], np.int32)),
        "does not have the 32 tokens",
    ),
    (lambda r: broken(r, trained=np.array([LENGTH - 1], np.int32)), "do not sum up"),
    (lambda r: broken(r, trained=np.array([LENGTH + 1, -1], np.int32)), "negative or an empty run"),
    (lambda r: broken(r, trained=np.array([4, 0, 28], np.int32)), "negative or an empty run"),
    (lambda r: broken(r, length=20), "longer than the row"),
    (lambda r: broken(r, length=0), "segment without tokens"),
    (lambda r: broken(r, trained_text=2), "counts other trained tokens"),
    (lambda r: broken(r, trained_vision=0), "counts other trained tokens"),
    (lambda r: broken(r, trained=np.array([0, 1, LENGTH - 1], np.int32)), "trains the first token"),
    (lambda r: broken(r, trained=np.array([14, 1, 17], np.int32)), "trains the first token"),
    (lambda r: broken(r, trained=np.array([LENGTH - 1, 1], np.int32)), "trains padding"),
    (lambda r: broken(r, tokens=TOKENS), "padding other than id 0"),
    (lambda r: broken(r, tokens=np.where(np.arange(LENGTH) == 3, 366, r.tokens).astype(VISION.dtype)), "beyond the"),
    (lambda r: broken(r, spans=(Span(0, 15, "user"),)), "span that leaves"),
    (lambda r: broken(r, spans=(Span(3, 2, "user"),)), "span that leaves"),
    (lambda r: broken(r, spans=(Span(-1, 2, "user"),)), "span that leaves"),
]


@pytest.mark.parametrize(("change", "what"), RULES)
def test_rows_that_break_a_rule_are_named(tmp_path, change, what):
    """Written with the right checksums, so that nothing but the rule can tell."""
    rng = np.random.default_rng(0)
    rows = [packed(rng, f"r{i}") for i in range(4)]
    rows[2] = change(rows[2])
    found = check_shard(tmp_path / "x", write_shard(tmp_path / "x", rows, Kind("sequences", LENGTH)))
    assert [f.rows for f in found if what in f.what] == [range(2, 3)]
    assert named(found) == {2}


def test_an_example_row_holds_one_example(tmp_path):
    rng = np.random.default_rng(0)
    two = sequence_row([example(rng, 8, "a"), example(rng, 8, "b")], 16, VISION)
    rows = [single(rng, "x"), replace(two, exact=bytes(16)), replace(single(rng, "y"), segments=())]
    found = check_shard(tmp_path / "x", write_shard(tmp_path / "x", rows, EXAMPLES))
    assert [f.rows for f in found if "exactly one example" in f.what] == [range(1, 2), range(2, 3)]


@pytest.fixture(params=["local", "memory"])
def built(request, tmp_path) -> Folder:
    """Make a data set of three units of two sources, with rejects in two of them."""
    url = str(tmp_path / "build/packed-32") if request.param == "local" else f"memory://{tmp_path.name}/packed-32"
    folder = Folder(url)
    folder.make(UNITS, SHARDS, REJECTS)
    rng = np.random.default_rng(0)
    kind, units = Kind("sequences", LENGTH), ["a-0", "a-1", "b-0"]
    for number, unit in enumerate(units):
        with UnitWriter(folder, unit, VISION, kind) as writer:
            for i in range(4):
                writer.add(packed(rng, f"{unit}.{i}"))
                writer.ledger.read += 1
                writer.ledger.count(KEPT)
            for i in range(number):
                writer.reject(Reject(unit[0], f"bad{i}", "read", (DROPPED, FAILED)[i], "too short"))
            writer.ledger.read += number
            writer.ledger.tokens_read = sum(t["tokens"] for t in writer.ledger.tasks.values())
            assert writer.commit(unit[0], key="k")
    reports = [r for r in (read_report(folder, unit) for unit in units) if r]
    described = {"kind": "sequences", "length": LENGTH, "weights": "lwm", "fingerprint": VISION.fingerprint}
    write_manifest(folder, write_index(folder, reports), {**described, "vocabulary": vars(VISION)})
    assert verify(url) == []
    return folder


def shard_of(folder: Folder, unit: str) -> str:
    report = read_report(folder, unit)
    assert report
    return report.shard.path


def edit(folder: Folder, name: str, *keys: str, value: Any) -> None:
    data = json.loads(folder.read(name) or b"")
    place = data
    for key in keys[:-1]:
        place = place[key]
    assert place[keys[-1]] != value
    place[keys[-1]] = value
    folder.overwrite(name, json.dumps(data, indent=1).encode())


def says(problems: list[Problem], path: str, what: str) -> bool:
    """Is it said, and in one sentence a problem?"""
    assert all("\n" not in str(p) and len(str(p)) < 700 for p in problems)
    return any(p.path == path and what in str(p) for p in problems)


def test_progress_ends_with_all_bytes(built):
    calls: list[tuple[int, int]] = []
    verify(built.url, lambda *call: calls.append(call))
    assert len(calls) == 3 and calls[-1][0] == calls[-1][1] == Folder(built.url).fs.du(built.path(SHARDS))


@pytest.mark.parametrize("size", [0, 1, 9, 700])
def test_a_truncated_shard_is_named(built, size):
    path = shard_of(built, "a-1")
    built.overwrite(path, (built.read(path) or b"")[:size])
    found = verify(built.url)
    assert says(found, path, f"has {size} bytes where its report says")
    assert {p.unit for p in found} == {"a-1"} and {r for p in found for r in p.rows} == {0, 1, 2, 3}


def test_a_missing_file_is_named(built):
    path, rejects = shard_of(built, "a-0"), read_report(built, "b-0").rejects.path
    built.remove(path)
    built.remove(rejects)
    found = verify(built.url)
    assert len(found) == 2 and says(found, path, "is missing") and says(found, rejects, "is missing")


@pytest.mark.parametrize("extra", ["shards/a-0-ff.arrow", "rejects/x.parquet", "units/.tmp-1", "units/x", ".tmp-77"])
def test_an_extra_file_is_named(built, extra):
    built.overwrite(extra, b"x")
    assert [(p.path, p.what) for p in verify(built.url)] == [(extra, "is a file that no report names: remove it")]


def test_an_extra_report_is_named(built):
    built.overwrite(report_name("c-0"), built.read(report_name("a-0")) or b"")
    assert says(verify(built.url), report_name("c-0"), "is the report of another unit: 'a-0'")


def test_swapped_shards_are_both_named(built):
    one, two = shard_of(built, "a-0"), shard_of(built, "a-1")
    first, second = built.read(one), built.read(two)
    built.overwrite(one, second or b"")
    built.overwrite(two, first or b"")
    found = verify(built.url)
    assert says(found, one, "it is another shard") and says(found, two, "it is another shard")


def test_a_flipped_byte_of_the_rejects_is_found(built):
    path = read_report(built, "b-0").rejects.path
    data = bytearray(built.read(path) or b"")
    data[len(data) // 2] ^= 1
    built.overwrite(path, bytes(data))
    assert [(p.path, p.unit) for p in verify(built.url)] == [(path, "b-0")]


@pytest.mark.parametrize(
    ("keys", "value", "what"),
    [
        (("ledger", "kept"), 9, "does not add up"),
        (("ledger", "reasons"), {}, "where the unit's ledger counts 0"),
        (("ledger", "tasks", "image-to-text", "trained"), 1, "where its report says 1"),
        (("ledger", "tasks", "image-to-text", "tokens"), 1, "its tasks have 1 tokens"),
        (("shard", "rows"), 3, "holds 4 rows where its report says 3"),
        (("shard", "rows"), 5, "holds 4 rows where its report says 5"),
        (("shard", "tokens"), 5, "holds 112 tokens where its report says 5"),
        (("shard", "bytes"), 555, "bytes where its report says 555"),
        (("shard", "bytes"), 5, "is no unit report"),
        (("shard", "rows"), 10**15, "is no unit report"),
        (("shard", "rows"), "4", "is no unit report"),
        (("ledger", "read"), None, "is no unit report"),
        (("ledger", "dropped"), -1, "is no unit report"),
        (("ledger", "tasks"), {"a": {}}, "is no unit report"),
        (("shard", "content"), "ff", "not the rows that its report describes"),
        (("shard", "file"), "ff", "its digest is not the one in its report"),
        (("shard", "path"), "shards/none.arrow", "is missing"),
        (("rejects", "rows"), 7, "lists 2 records where its report says 7"),
        (("rejects", "file"), "ff", "its digest is not the one in its report"),
        (("rejects",), None, "counts 2 rejects but lists none"),
        (("unit",), "z", "is the report of another unit"),
        (("source",), "z", "says of the unit b-0 that its source is 'b', its report 'z'"),
        (("ledger",), 5, "is no unit report"),
    ],
)
def test_an_edited_report_is_noticed(built, keys, value, what):
    edit(built, report_name("b-0"), *keys, value=value)
    found = verify(built.url)
    assert any(what in str(p) and p.unit == "b-0" for p in found), list(map(str, found))


def test_a_ledger_that_adds_up_but_counts_other_rejects_is_noticed(built):
    edit(built, report_name("b-0"), "ledger", "dropped", value=2)
    edit(built, report_name("b-0"), "ledger", "failed", value=0)
    rejects = read_report(built, "b-0").rejects.path
    assert says(verify(built.url), rejects, "lists 1 dropped records where the unit's ledger counts 2")


@pytest.mark.parametrize("name", ["root", "units", "rows", "tokens", "bytes", "fingerprint", "ledger", "sources"])
def test_an_edited_total_in_the_manifest_is_noticed(built, name):
    edit(built, "manifest.json", name, value={"a": 1} if name in ("ledger", "sources") else 7)
    assert [p for p in verify(built.url) if p.path == "manifest.json" and f"says that {name} is" in p.what]


@pytest.mark.parametrize(
    ("keys", "value", "what"),
    [
        (("weights",), "best", "names the rule of weights 'best'"),
        (("format",), 99, "format version 99"),
        (("vocabulary",), 3, "damaged or edited"),
        (("vocabulary", "eos"), 7, "vocabulary) that is not what the manifest says"),
        (("vocabulary", "codes"), 2**17, "has other columns than"),
        (("length",), "x", "damaged or edited"),
        (("bytes",), None, "damaged or edited"),
        (("length",), 64, "vocabulary) that is not what the manifest says"),
        (("kind",), "examples", "vocabulary) that is not what the manifest says"),
    ],
)
def test_an_edited_manifest_is_noticed(built, keys, value, what):
    edit(built, "manifest.json", *keys, value=value)
    found = verify(built.url)
    assert any(what in str(p) for p in found), list(map(str, found))


def test_a_lost_manifest_is_noticed(built):
    built.remove("manifest.json")
    assert says(verify(built.url), "manifest.json", "has no manifest.json")
    built.overwrite("manifest.json", b"{")
    assert says(verify(built.url), "manifest.json", "damaged or edited")


def rewrite_index(folder: Folder, change: Callable[[list[dict[str, Any]]], object]) -> None:
    rows = pq.read_table(pa.BufferReader(folder.read("index.parquet"))).to_pylist()
    change(rows)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    folder.overwrite("index.parquet", sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda rows: rows[1].update(rows=5), "says of the unit a-1 that its rows is 5, its report 4"),
        (lambda rows: rows[1].update(path="x"), "says of the unit a-1 that its path is 'x'"),
        (lambda rows: rows.pop(), "does not list the unit b-0"),
        (lambda rows: rows.reverse(), "in the order of their names"),
        (lambda rows: rows.append(rows[0]), "does not list each unit once"),
        (lambda rows: rows.append({**rows[0], "unit": "z"}), "lists the unit z, which has no report"),
        (lambda rows: [row.pop("tokens") for row in rows], "is no index of shards"),
    ],
)
def test_an_edited_index_is_noticed(built, change, what):
    rewrite_index(built, change)
    assert says(verify(built.url), "index.parquet", what)


def test_a_damaged_or_missing_index_is_noticed(built):
    built.overwrite("index.parquet", b"PAR1 and no more")
    assert says(verify(built.url), "index.parquet", "is no index of shards")
    built.remove("index.parquet")
    assert says(verify(built.url), "index.parquet", "is missing")


def test_a_missing_report_is_noticed(built):
    built.remove(report_name("a-0"))
    found = verify(built.url)
    assert says(found, "index.parquet", "lists the unit a-0, which has no report")
    assert says(found, "manifest.json", "says that root is")


def test_the_data_sets_of_a_build_are_verified_together(built):
    parent = built.url.rsplit("/", 1)[0]
    assert data_sets(parent) == ["packed-32"] and data_sets(built.url) == [""] and verify(parent) == []
    built.overwrite("shards/x", b"")
    assert [p.path for p in verify(parent)] == ["packed-32/shards/x"]


def test_a_folder_without_data_sets_is_a_wrong_call(tmp_path):
    with pytest.raises(UserError, match="is no data set and has none in it"):
        verify(str(tmp_path))
    with pytest.raises(UserError, match="is no data set"):
        verify(str(tmp_path / "missing"))
