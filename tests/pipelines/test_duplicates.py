"""Duplicates: who survives, whatever the order, and the list on disk."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.packing.example import TEXT, Draft
from worldloom.packing.ledger import KEPT
from worldloom.packing.report import REJECTS, SHARDS, UNITS, UnitWriter, read_report
from worldloom.packing.row import example_row
from worldloom.packing.shard import EXAMPLES
from worldloom.packing.storage import Folder
from worldloom.pipelines import duplicates
from worldloom.pipelines.duplicates import Duplicate, Member, find_in_memory, hashes, losers, strongest
from worldloom.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test")
KEYS = [b"ea", b"eb", b"n0:a", b"n0:b", b"n1:a"]
MEMBERS = st.builds(
    Member, st.sampled_from("st"), st.sampled_from(["r1", "r10", "r2"]), st.sampled_from("uv"), st.integers(0, 3)
)


def plain(pairs: list[tuple[bytes, Member]]) -> dict[tuple[str, int], tuple[str, str, str]]:
    """Compare everyone with everyone: each loses to the smallest it shares a hash with, exact hashes first."""
    found = {}
    for _, m in pairs:
        groups = {key: min(o for k, o in pairs if k == key) for key, o in pairs if o == m}
        lost = {key: first for key, first in groups.items() if first != m}
        exact = [first for key, first in lost.items() if key.startswith(b"e")]
        near = [first for key, first in lost.items() if key.startswith(b"n")]
        if lost:
            first = min(exact or near)
            found[m.unit, m.row] = ("exact" if exact else "near", first.source, first.record)
    return found


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.tuples(st.sampled_from("uv"), st.integers(0, 4)), MEMBERS), st.data())
def test_duplicates_are_those_of_the_plain_comparison(
    places: dict[tuple[str, int], Member], data: st.DataObject
) -> None:
    members = [m._replace(unit=unit, row=row) for (unit, row), m in places.items()]
    pairs = [(key, m) for m in members for key in data.draw(st.sets(st.sampled_from(KEYS), min_size=1))]
    found = find_in_memory(pairs)
    assert {(d.unit, d.row): (d.kind, d.of_source, d.of_record) for d in found} == plain(pairs)
    assert found == sorted(found)
    assert all(m in members for d in found for m in members if (m.unit, m.row) == (d.unit, d.row))
    random.Random(0).shuffle(pairs)
    assert find_in_memory(pairs) == found


def test_the_smallest_source_and_id_survives_wherever_it_lies() -> None:
    group = [
        Member("t", "a", "t-0", 0),
        Member("s", "b", "s-1", 5),
        Member("s", "a", "s-9", 9),
        Member("s", "a", "s-2", 0),
    ]
    found = strongest(losers(b"ex", group))
    assert [(d.unit, d.row) for d in found] == [("s-1", 5), ("s-9", 9), ("t-0", 0)]
    assert {(d.of_source, d.of_record) for d in found} == {("s", "a")}


def test_an_exact_duplicate_is_not_called_near() -> None:
    first, other = Member("s", "a", "u", 0), Member("s", "b", "u", 1)
    nearer = Member("s", "0", "u", 2)
    pairs = [(b"n0:x", first), (b"n0:x", other), (b"n0:x", nearer), (b"ex", first), (b"ex", other)]
    assert [(d.record, d.kind, d.of_record) for d in find_in_memory(pairs)] == [("a", "near", "0"), ("b", "exact", "a")]


def test_each_chain_of_near_duplicates_keeps_its_smallest() -> None:
    pairs = [(b"n0:%d" % (i // 2), Member("s", f"{i - i % 2 // 2}", "u", i)) for i in range(6)]
    pairs += [(b"n1:%d" % ((i + 1) // 2), m) for i, (_, m) in enumerate(pairs)]
    assert [d.row for d in find_in_memory(pairs)] == [1, 2, 3, 4, 5]


def write_examples(folder: Folder, unit: str, rows: list[tuple[str, bytes, list[int]]]) -> str:
    """Write a shard of examples from records, exact hashes and band hashes; return its path."""
    folder.make(UNITS, SHARDS, REJECTS)
    with UnitWriter(folder, unit, VOCABULARY, EXAMPLES) as writer:
        for record, exact, bands in rows:
            draft = Draft(VOCABULARY)
            draft.add([1, 5, 2], trained=True)
            writer.add(example_row(draft.example(TEXT, "s", record), VOCABULARY, exact, np.array(bands, np.uint64)))
            writer.ledger.read += 1
            writer.ledger.count(KEPT)
        writer.commit("s", key="k")
    report = read_report(folder, unit)
    assert report is not None
    return report.shard.path


def test_the_hashes_of_a_shard_are_all_its_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldloom.packing.shard.BATCH_TOKENS", 9)  # three record batches
    folder = Folder(str(tmp_path / "x"))
    rows = [(f"r{i}", bytes([i % 3]) * 16, [i, 2**64 - 1 - i % 2]) for i in range(7)]
    path = write_examples(folder, "u", rows)
    expected = {(b"e" + exact, Member("s", name, "u", i)) for i, (name, exact, _) in enumerate(rows)}
    assert set(hashes(folder, path, "u", near=False)) == expected
    near = {
        (b"n%d:" % band + value.to_bytes(8, "little"), Member("s", name, "u", i))
        for i, (name, _, values) in enumerate(rows)
        for band, value in enumerate(values)
    }
    assert sorted(hashes(folder, path, "u", near=True)) == sorted(expected | near)


def test_the_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert (duplicates.read_key(folder), duplicates.read(folder).num_rows) == ("", 0)
    found = [Duplicate("u", i, "s", f"r\n{i}", "exact", "s", "\u00e9") for i in range(3)]
    found += [Duplicate("v", 0, "s", "q", "near", "s", "p")]
    duplicates.write(folder, found, "key")
    assert duplicates.read_key(folder) == "key"
    table = duplicates.read(folder)
    assert [Duplicate(**row) for row in table.to_pylist()] == found
    assert duplicates.of_units(table, ["v", "w"]).to_pylist() == [found[-1]._asdict()]
    assert duplicates.of_units(table, []).num_rows == 0
    duplicates.write(folder, [], "none")
    assert (duplicates.read_key(folder), duplicates.read(folder).num_rows) == ("none", 0)
    assert [path.name for path in tmp_path.iterdir()] == [duplicates.DUPLICATES]


def test_the_same_list_makes_the_same_bytes(tmp_path: Path) -> None:
    found = [Duplicate("u", 1, "s", "r", "exact", "s", "q")]
    for name in ("a", "b"):
        Folder(str(tmp_path / name)).make()
        duplicates.write(Folder(str(tmp_path / name)), found, "key")
    assert (tmp_path / "a" / duplicates.DUPLICATES).read_bytes() == (
        tmp_path / "b" / duplicates.DUPLICATES
    ).read_bytes()
