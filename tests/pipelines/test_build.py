"""Builds end to end through the command line: resumed, killed, changed and refused, as a user meets them."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from worldloom.cli import main
from worldloom.packing.dataset import open_dataset
from worldloom.packing.report import SHARDS, UNITS
from worldloom.packing.verify import verify

WORDS = "a quick brown fox jumps over the lazy dog while seven wizards box hexed jugs of amber zinc".split()  # noqa: SIM905


def prose(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words)) + ".\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve short books."""
    folder = tmp_path / "books"
    folder.mkdir()
    for i in range(12):
        (folder / f"book-{i:02d}.txt").write_text(prose(i, 40 + 60 * i))
    return folder


@pytest.fixture
def recipe(tmp_path: Path, corpus: Path, small_model: Path) -> Callable[..., Path]:
    """Write a recipe of one source; keywords change or add top-level keys, `source` the source's."""

    def write(source: dict[str, Any] | None = None, name: str = "recipe.yaml", **keys: Any) -> Path:
        data = {
            "vocabulary": {"text": str(small_model)},
            "sources": [{"name": "toy", "kind": "books", "path": "books/*.txt", "unit_bytes": 2000, **(source or {})}],
            "pack": {"length": 128},
            **keys,
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump(data))
        return path

    return write


def build(recipe: Path, out: Path, *flags: str) -> None:
    assert main(["build", str(recipe), "--out", str(out), *flags]) == 0


def root(folder: Path) -> str:
    return open_dataset(str(folder)).root


def snapshot(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (folder / UNITS).iterdir()}


def written(folder: Path) -> dict[str, int]:
    """Tell shards that were written anew by their inodes, even where the bytes are the same."""
    return {p.name: p.stat().st_ino for p in (folder / SHARDS).iterdir()}


def test_a_second_call_does_nothing_and_a_fresh_build_has_the_same_bytes(recipe, tmp_path):
    path = recipe()
    build(path, tmp_path / "a")
    first, when = snapshot(tmp_path / "a"), times(tmp_path / "a" / "examples")
    assert len(when) > 5
    build(path, tmp_path / "a")
    assert times(tmp_path / "a" / "examples") == when
    build(path, tmp_path / "b", "--workers", "2")
    assert snapshot(tmp_path / "b") == first


def test_added_lengths_and_raised_limits_tokenize_nothing_again(recipe, tmp_path):
    out = tmp_path / "out"
    build(recipe(), out)
    when = times(out / "examples")
    build(recipe(pack=[{"length": 128}, {"length": 64}], limits={"failed": 0.5}), out)
    assert times(out / "examples") == when
    assert open_dataset(str(out / "packed-64")).rows > open_dataset(str(out / "packed-128")).rows


def test_a_deny_entry_added_and_taken_back_redoes_its_unit_alone(recipe, tmp_path):
    out = tmp_path / "out"
    build(recipe(), out)
    before, clean = written(out / "examples"), root(out / "packed-128")
    build(recipe({"deny": ["book-07.txt", "nowhere.txt"]}), out)
    reports = [json.loads(p.read_text()) for p in (out / "examples" / UNITS).iterdir()]
    changed = [r["unit"] for r in reports if r["ledger"]["reasons"]]
    assert len(changed) == 1 and sum(r["ledger"]["reasons"].get("dropped: denied", 0) for r in reports) == 1
    assert root(out / "packed-128") != clean
    denied = snapshot(out)
    build(recipe({"deny": ["book-07.txt", "nowhere.txt"]}), tmp_path / "fresh")
    assert snapshot(tmp_path / "fresh") == denied
    after = written(out / "examples")
    assert len(before.keys() - after.keys()) == 1 and len(after.keys() - before.keys()) == 1
    assert all(before[name] == after[name] for name in before.keys() & after.keys())
    build(recipe(), out)
    again = written(out / "examples")
    assert root(out / "packed-128") == clean and again.keys() == before.keys()
    assert sum(again[name] != after.get(name) for name in again) == 1


def test_a_deny_list_that_changes_while_a_build_runs_is_not_agreed_with(recipe, tmp_path):
    """What was tokenized under the old list must not pass for what the new one allows."""
    from worldloom.errors import RunFailed
    from worldloom.pipelines.deny import with_deny_lists
    from worldloom.pipelines.job import finish, run_in_memory
    from worldloom.pipelines.tokenize import TokenizeJob
    from worldloom.recipe import load_recipe

    url = str(tmp_path / "examples")
    run_in_memory(TokenizeJob(with_deny_lists(load_recipe(recipe())), url))
    changed = TokenizeJob(with_deny_lists(load_recipe(recipe({"deny": ["book-07.txt"]}))), url)
    with pytest.raises(RunFailed, match="is not done"):
        finish(changed, {}, 1.0)


def test_a_lost_shard_is_made_again(recipe, tmp_path):
    out = tmp_path / "out"
    build(recipe(), out)
    clean = snapshot(out)
    for lost in (next((out / "examples" / SHARDS).iterdir()), next((out / "packed-128" / SHARDS).iterdir())):
        lost.unlink()
        build(recipe(), out)
        assert snapshot(out) == clean


def test_two_builds_at_once_end_with_the_same_bytes(recipe, tmp_path):
    path = recipe({"unit_bytes": 500})
    build(path, tmp_path / "alone")
    command = [sys.executable, "-m", "worldloom.cli", "build", str(path), "--out", str(tmp_path / "out")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=240)[1].decode() for process in both]
    assert any(process.returncode == 0 for process in both), said
    assert all("Traceback" not in text for text in said), said
    build(path, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "alone")


def test_pack_refuses_a_folder_of_something_else(recipe, tmp_path, capsys):
    build(recipe(), tmp_path / "out")
    mine = tmp_path / "mine"
    (mine / "shards").mkdir(parents=True)
    (mine / "shards" / "000.tar").write_text("precious")
    for out, words in ((mine, "not empty"), (tmp_path / "out", "not empty"), (tmp_path / "out" / "examples", "kind")):
        assert main(["pack", str(tmp_path / "out" / "examples"), "--out", str(out), "--length", "64"]) == 2
        assert words in capsys.readouterr().err
    assert (mine / "shards" / "000.tar").read_text() == "precious"


def test_ctrl_c_is_said_in_one_sentence(recipe, tmp_path):
    folder = tmp_path / "books"
    text = prose(0, 60_000)
    for i in range(40):
        (folder / f"long-{i:02d}.txt").write_text(f"{i} {text}")
    path = recipe({"unit_bytes": 10_000})
    for workers in ("1", "2"):
        out = tmp_path / f"out-{workers}"
        command = [sys.executable, "-m", "worldloom.cli", "build", str(path), "--out", str(out), "--workers", workers]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        while process.poll() is None and len(list(out.glob("examples/units/*.json"))) < 3:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 1 and "interrupted; what was finished is kept" in said, said
        assert "Traceback" not in said, said


def test_only_units_whose_input_changed_are_done_again(recipe, corpus, tmp_path):
    out = tmp_path / "out"
    build(recipe(), out)
    before = times(out / "examples")
    (corpus / "book-11.txt").write_text(prose(99, 700))
    build(recipe(), out)
    after = times(out / "examples")
    assert sum(after[name] != before[name] for name in before) == 1
    (corpus / "book-11.txt").unlink()
    build(recipe(), out)
    assert open_dataset(str(out / "examples")).rows == 11
    build(recipe(), tmp_path / "fresh")
    assert root(tmp_path / "fresh" / "packed-128") == root(out / "packed-128")


def test_every_kind_of_bad_file_is_accounted_for(recipe, corpus, tmp_path):
    (corpus / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (corpus / "empty.txt").write_bytes(b"")
    (corpus / "nul.txt").write_bytes(b"a\0b")
    (corpus / "rows.jsonl").write_bytes(b'{"text": "one good line"}\n{"text": "cut of')
    out = tmp_path / "out"
    path = recipe({"path": "books/*"}, limits={"failed": 0.5})
    build(path, out)
    ledger = open_dataset(str(out / "examples")).manifest["ledger"]
    assert (ledger["read"], ledger["kept"], ledger["dropped"], ledger["failed"]) == (17, 13, 1, 3)
    assert ledger["reasons"] == {
        "dropped: empty": 1,
        "failed: NUL byte": 1,
        "failed: not JSON": 1,
        "failed: not UTF-8": 1,
    }
    assert verify(str(out)) == []


def test_too_many_failures_stop_the_job_and_a_raised_limit_goes_on(recipe, corpus, tmp_path, capsys):
    for i in range(3):
        (corpus / f"bad-{i}.txt").write_bytes(b"\xff\xff")
    out = tmp_path / "out"
    assert main(["build", str(recipe()), "--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert "3 of 15 records failed" in message and "not UTF-8 (3)" in message and "limits.failed" in message
    assert not (out / "examples" / "manifest.json").exists()
    when = times(out / "examples")
    build(recipe(limits={"failed": 0.3}), out)
    assert times(out / "examples") == when


def test_duplicates_are_dropped_when_packing(recipe, corpus, tmp_path):
    (corpus / "copy.txt").write_text((corpus / "book-05.txt").read_text())
    out = tmp_path / "out"
    build(recipe(), out)
    assert open_dataset(str(out / "packed-128")).manifest["ledger"]["reasons"] == {"dropped: exact duplicate": 1}
    build(recipe(duplicates="none"), tmp_path / "kept")
    assert open_dataset(str(tmp_path / "kept" / "packed-128")).manifest["ledger"]["kept"] == 13


def test_train_and_eval_share_no_record(recipe, tmp_path):
    sides = [{"length": 128, "split": "train"}, {"length": 128, "split": "eval"}]
    build(recipe(pack=sides, eval=0.4), tmp_path / "out")
    records = [
        {s.record for row in open_dataset(str(tmp_path / "out" / f"packed-128-{side}")) for s in row.segments}
        for side in ("train", "eval")
    ]
    assert all(records) and not records[0] & records[1] and len(records[0] | records[1]) == 12


def test_pack_from_finished_examples_equals_the_build(recipe, tmp_path):
    build(recipe(), tmp_path / "out")
    assert main(["pack", str(tmp_path / "out" / "examples"), "--out", str(tmp_path / "p"), "--length", "128"]) == 0
    assert root(tmp_path / "p") == root(tmp_path / "out" / "packed-128")


BAD_CALLS = {
    "unknown key": ({"packs": {"length": 8}}, "unknown key packs", "did you mean pack"),
    "missing model": ({"vocabulary": {"text": "no.model"}}, "no.model", ""),
    "wrong type": ({"pack": {"length": "long"}}, "pack.length: found 'long'", "integer"),
    "no files": ({"source": {"path": "none/*.txt"}}, "none/*.txt matches no file", "mend the path"),
    "no deny list": ({"source": {"deny": "none.txt"}}, "the deny list", "does not exist"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_recipe_is_refused_before_anything_is_written(recipe, tmp_path, capsys, case):
    keys, *parts = BAD_CALLS[case]
    assert main(["build", str(recipe(**keys)), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in parts), message
    assert message.count("\n") == 1 and "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_an_output_of_another_recipe_is_refused(recipe, corpus, tmp_path, capsys):
    build(recipe(), tmp_path / "out")
    kept = snapshot(tmp_path / "out")
    assert main(["build", str(recipe({"name": "other"})), "--out", str(tmp_path / "out")]) == 2
    assert "another recipe (source toy is gone)" in capsys.readouterr().err
    assert main(["build", str(recipe(seed=5)), "--out", str(tmp_path / "out")]) == 2
    assert "seed 0 is now 5" in capsys.readouterr().err
    assert main(["build", str(recipe()), "--out", str(corpus)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert snapshot(tmp_path / "out") == kept


def test_an_unwritable_output_is_refused(recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["build", str(recipe()), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_parquet_without_the_column_is_refused_before_the_start(recipe, corpus, tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["a text"]}), corpus / "rows.parquet")
    assert main(["build", str(recipe({"path": "books/*"})), "--out", str(tmp_path / "out")]) == 2
    assert "has no column text; it has body: set columns" in capsys.readouterr().err


def test_kills_leave_the_same_bytes(recipe, tmp_path, kill_often):
    """The bytes of an undisturbed build, and no file more, after some ninety kills."""
    folder, out = tmp_path / "books", tmp_path / "out"
    for i in range(42):
        (folder / f"long-{i:02d}.txt").write_text(prose(1000 + i, 1200))
    path = recipe({"unit_bytes": 3000}, pack=[{"length": 128}, {"length": 4096}])
    build(path, tmp_path / "calm")
    assert len(times(tmp_path / "calm" / "examples")) >= 40
    kill_often(path, out, 1)
    build(path, out, "--workers", "2")
    calm, found = snapshot(tmp_path / "calm"), snapshot(out)
    assert found.keys() == calm.keys()
    assert [name for name in calm if found[name] != calm[name]] == []
