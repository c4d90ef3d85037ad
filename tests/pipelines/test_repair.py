"""Repairs: what verify finds is made again, those units alone, until every byte is the one that was first written."""

import json
import os
import random
import shutil
from bisect import bisect_right
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from worldloom.cli import main
from worldloom.packing.report import REJECTS, SHARDS, UNITS
from worldloom.packing.storage import Folder
from worldloom.packing.verify import verify
from worldloom.pipelines.repair import repair

WORDS = "a quick brown fox jumps over the lazy dog while seven wizards box hexed jugs of amber zinc".split()  # noqa: SIM905
BOOKS = 12


def prose(seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(60)) + ".\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests of this file have their corpus and build, one after the other: rejects tell paths."""
    return tmp_path_factory.mktemp("repair") / "place"


@pytest.fixture
def built(place: Path, small_model: Path, plain_engine: None) -> Path:
    """A corpus, its recipe and its build in `out`: one unit a book, of which two repeat others and one is broken."""
    kept = place.with_name("kept")
    if not kept.exists():
        (place / "books").mkdir(parents=True)
        for i in range(BOOKS):
            (place / "books" / f"{i:02d}.txt").write_text(prose(i % 10))
        (place / "books" / "99.txt").write_bytes(b"\xff\xfe")
        source = {"name": "toy", "kind": "books", "path": "books/*.txt", "unit_bytes": 1}
        recipe = {"vocabulary": {"text": str(small_model)}, "sources": [source], "limits": {"failed": 0.1}}
        recipe |= {"pack": [{"length": 128}, {"length": 64}]}
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        assert main(["build", str(place / "recipe.yaml"), "--out", str(place / "out")]) == 0
        place.rename(kept)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(kept, place)
    return place / "out"


def snapshot(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def marks(out: Path) -> dict[str, tuple[int, int]]:
    """Tell files that were written anew, even with the same bytes."""
    return {str(p.relative_to(out)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.rglob("*") if p.is_file()}


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at if at >= 0 else len(data) // 2] ^= 1
    path.write_bytes(data)


def shards(folder: Path) -> list[Path]:
    return sorted((folder / SHARDS).iterdir())


def spoil(path: Path) -> set[int]:
    """Flip two bytes of a shard's tokens. Returns the rows that they are of."""
    with pa.memory_map(str(path)) as source:
        tokens = pa.ipc.open_file(source).get_batch(0).column("tokens")
        values, offsets = tokens.values.to_numpy().copy(), tokens.offsets.to_pylist()
    data = path.read_bytes()
    start = data.index(values.tobytes())
    places = [len(values) // 3, len(values) - 1]
    for place in places:
        flip(path, start + place * values.itemsize)
    return {bisect_right(offsets, place) - 1 for place in places}


def unit_of(path: Path) -> str:
    return path.name.rpartition("-")[0]


def test_twenty_flipped_bytes_in_ten_shards(built, capsys):
    """Verify names each shard and changed row; repair makes those ten units again and touches nothing else."""
    before, when, draw = snapshot(built), marks(built), random.Random(0)
    filled = [path for path in shards(built / "examples") if "toy-0000012" not in path.name]  # that of the broken book
    chosen = [*draw.sample(filled, 9), *shards(built / "packed-64")]
    changed = {str(path.relative_to(built)): spoil(path) for path in chosen}
    found = verify(str(built))
    assert {p.path for p in found} == changed.keys() and {p.unit for p in found} == {unit_of(p) for p in chosen}
    for path, rows in changed.items():
        assert {row for p in found if p.path == path for row in p.rows} == rows
    done = repair(str(built), [], 1)
    assert done.found == found and not done.left and not done.lost and not done.roots
    assert done.ran == {
        "examples": sorted(unit_of(p) for p in chosen if p.parent.parent.name == "examples"),
        "packed-64": ["toy-0000000"],
    }
    assert snapshot(built) == before and verify(str(built)) == []
    after = marks(built)
    rejects = {name for name in before if f"/{REJECTS}/" in name}
    assert {name for name in when if when[name] != after[name]} - rejects == {str(p.relative_to(built)) for p in chosen}
    capsys.readouterr()
    assert main(["repair", str(built)]) == 0
    assert capsys.readouterr().out == "every shard, row, count and digest is right\n"


def damage_report(out: Path) -> None:
    next(iter(sorted((out / "examples" / UNITS).iterdir()))).write_bytes(b"{ torn")


def damage_ledger(out: Path) -> None:
    path = out / "examples" / UNITS / "toy-0000003.json"
    path.write_text(path.read_text().replace('"kept": 1', '"kept": 2'))


def lose_report(out: Path) -> None:
    (out / "examples" / UNITS / "toy-0000003.json").unlink()


def lose_shard(out: Path) -> None:
    shards(out / "packed-128")[0].unlink()


def damage_rejects(out: Path) -> None:
    flip(next((out / "examples" / REJECTS).iterdir()))


def damage_manifest(out: Path) -> None:
    for name in ("examples", "packed-64"):
        (out / name / "manifest.json").write_bytes(b"{ torn")
    flip(shards(out / "examples")[2])
    flip(shards(out / "packed-64")[0])


def edit_manifest(out: Path) -> None:
    path = out / "packed-64" / "manifest.json"
    path.write_text(path.read_text().replace('"root": "', '"root": "0'))


def damage_index(out: Path) -> None:
    (out / "examples" / "index.parquet").write_bytes(b"PAR1 torn")
    (out / "packed-64" / "index.parquet").unlink()


def damage_duplicates(out: Path) -> None:
    flip(out / "examples" / "duplicates.parquet", 8)


def leave_strays(out: Path) -> None:
    folder = out / "examples"
    (folder / SHARDS / f"toy-0000001-{'0' * 32}.arrow").write_bytes(b"left over")
    (folder / SHARDS / ".tmp-999999999-x").write_bytes(b"left over")
    report = json.loads((folder / UNITS / "toy-0000001.json").read_text())
    (folder / UNITS / "toy-0000077.json").write_text(json.dumps(report | {"unit": "toy-0000077"}))


def damage_manifest_and_reports(out: Path) -> None:
    (out / "examples" / "manifest.json").write_bytes(b"{ torn")
    damage_report(out), lose_report(out)


DAMAGES = [damage_manifest_and_reports, damage_report, damage_ledger, lose_report, lose_shard, damage_rejects,
           damage_manifest, edit_manifest, damage_index, damage_duplicates, leave_strays]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_verify_finds_is_mended(built, damage):
    before = snapshot(built)
    damage(built)
    found = verify(str(built))
    assert found
    done = repair(str(built), [], 1)
    assert done.found == found and not done.left and not done.lost, done
    assert snapshot(built) == before


def test_what_is_packed_is_packed_of_mended_examples(built):
    """Also where a packed set alone is named; one that is not named is left."""
    before = snapshot(built)
    for path in (shards(built / "examples")[0], *shards(built / "packed-64"), *shards(built / "packed-128")):
        spoil(path)
    done = repair(str(built / "packed-64"), [], 1)
    assert not done.left and done.ran == {"examples": ["toy-0000000"], "packed-64": ["toy-0000000"]}
    (other,) = shards(built / "packed-128")
    assert {n for n, data in snapshot(built).items() if data != before[n]} == {str(other.relative_to(built))}


def test_a_unit_whose_input_changed_is_left_as_it_is(built, capsys):
    """Its shard stays damaged, and every other is mended; nothing is packed of it."""
    before, (first, second, *_) = snapshot(built), shards(built / "examples")
    (packed,) = shards(built / "packed-64")
    spoil(first), spoil(second), spoil(packed)
    book = built.parent / "books" / "00.txt"
    times = book.stat()
    book.write_text("Quite another book.")
    assert main(["repair", str(built)]) == 1
    said = capsys.readouterr().out
    assert f"{unit_of(first)} of {built}/examples cannot be made again, since its input has changed" in said
    damaged = {str(path.relative_to(built)) for path in (first, packed)}
    assert {name for name, data in snapshot(built).items() if data != before[name]} == damaged
    book.write_text(prose(0))
    os.utime(book, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert main(["repair", str(built)]) == 0
    assert snapshot(built) == before


def test_without_its_sources_index_and_manifest_are_written_from_the_reports(built):
    before = snapshot(built)
    shutil.rmtree(built.parent / "books")
    (built / "examples" / "manifest.json").write_bytes(b"{ torn")
    assert not repair(str(built), [], 1).left
    assert snapshot(built) == before
    (built / "examples" / "index.parquet").unlink()
    assert not repair(str(built), [], 1).left
    assert snapshot(built) == before
    spoil(shards(built / "examples")[0])
    damaged = snapshot(built)
    done = repair(str(built), [], 1)
    assert done.left and "mend the path" in done.lost[0] and snapshot(built) == damaged


def test_a_build_that_was_not_finished_is_none_to_repair(built):
    (built / "examples" / "manifest.json").unlink()
    assert not repair(str(built), [], 1).left  # as it turned out, nothing was missing
    (built / "examples" / "manifest.json").unlink()
    (built.parent / "books" / "11.txt").write_text("Quite another book.")
    done = repair(str(built), [], 1)
    assert done.left and "call 'build'" in done.lost[0]


def test_a_root_that_comes_out_otherwise_is_told(built, monkeypatch, capsys):
    """As with other versions of libraries: the examples are no longer the same, and are packed anew."""
    from worldloom.pipelines import books

    monkeypatch.setattr(books, "examine", _otherwise(books.examine))
    spoil(shards(built / "examples")[3])
    assert main(["repair", str(built)]) == 0
    said = capsys.readouterr().out
    assert "examples: its root was" in said and "packed-64: its root was" in said
    assert verify(str(built)) == []


def _otherwise(examine: Any) -> Any:
    def changed(found: Any, *others: Any) -> Any:
        admitted = examine(found, *others)
        return admitted._replace(text=admitted.text.upper()) if hasattr(admitted, "text") else admitted

    return changed


class Killed(BaseException):
    """The process dies here."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Die just before the change of a data set whose number `at` says, and from then on before every other."""
    state = {"at": -1, "changes": 0}

    def deadly(name: str) -> None:
        whole = getattr(Folder, name)

        def change(self: Folder, *args: Any) -> Any:
            state["changes"] += 1
            if 0 <= state["at"] < state["changes"]:
                raise Killed
            return whole(self, *args)

        monkeypatch.setattr(Folder, name, change)

    for name in ("create", "replace", "overwrite", "adopt", "remove"):
        deadly(name)
    return state


def test_a_repair_that_is_killed_anywhere_is_taken_up(built, tmp_path, dying):
    def damaged() -> None:
        shutil.rmtree(built)
        shutil.copytree(start, built)

    before = snapshot(built)
    flip(shards(built / "examples")[1])
    damage_report(built), lose_report(built), damage_duplicates(built), edit_manifest(built)
    start = tmp_path / "start"
    shutil.copytree(built, start)
    dying["changes"] = 0
    assert not repair(str(built), [], 1).left
    changes = dying["changes"]
    for at in (1, changes // 2, changes - 2):
        damaged()
        dying |= {"at": at, "changes": 0}
        with pytest.raises(Killed):
            repair(str(built), [], 1)
        dying["at"] = -1
        assert not repair(str(built), [], 1).left, at
        assert snapshot(built) == before, at


def test_a_build_that_replaces_a_report_meanwhile_wins(built, monkeypatch):
    """Repair puts a report only in the place of the one that it read."""
    path = built / "examples" / UNITS / "toy-0000003.json"
    damage_ledger(built)
    whole, theirs = Folder.replace, list[bytes]()

    def replace(self: Folder, name: str, old: bytes, data: bytes) -> bool:
        if name.endswith("toy-0000003.json") and not theirs:
            theirs.append(data + b"\n")
            path.write_bytes(theirs[0])
        return whole(self, name, old, data)

    monkeypatch.setattr(Folder, "replace", replace)
    assert not repair(str(built), [], 1).left
    assert path.read_bytes() == theirs[0]


def test_wrong_calls_are_refused_in_words(built, tmp_path, capsys):
    assert main(["repair", str(built.parent / "books")]) == 2
    assert "is no data set" in capsys.readouterr().err
    alone = tmp_path / "alone" / "packed"
    shutil.copytree(built / "packed-64", alone)
    assert main(["repair", str(alone)]) == 2
    assert "that says what" in capsys.readouterr().err
    recipe = yaml.safe_load((built / "recipe.yaml").read_text())
    head = (built / "recipe.yaml").read_text().splitlines()[0]
    recipe["pack"] = recipe["pack"][:1]
    (built / "recipe.yaml").write_text(f"{head}\n{yaml.safe_dump(recipe)}")
    flip(shards(built / "packed-64")[0])
    assert main(["repair", str(built), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert "has no pack section 64" in told["lost"][0] and len(told["left"])
