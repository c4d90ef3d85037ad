"""Exports against the loader's own batches, read by the tools that they are for."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from worldloom.cli import main
from worldloom.errors import UserError
from worldloom.export import export
from worldloom.packing.dense import COLUMNS
from worldloom.packing.weights import Rule
from worldloom.training.loader import Loader

from .conftest import VISION


def expected(dataset, rule):
    """Lay every row out alone: what a loader of one row a batch gives, by the row's number."""
    loader = Loader(dataset, 1, seed=0, weights=rule)
    return {int(plan.rows[0]): loader.load(plan) for plan in map(loader.plan, range(dataset.rows))}


def read_parquet(out):
    for path in sorted(out.glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()


def read_tars(out):
    for path in sorted(out.glob("*.tar")):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode():
            assert sample["__key__"] == f"{sample['json']['row']:09d}"
            yield (
                sample["json"]
                | {name: sample[f"{name}.npy"] for name in COLUMNS}
                | {"examples": sample["examples.cls"]}
            )


READ = {"parquet": read_parquet, "webdataset": read_tars}


@pytest.mark.parametrize("to", READ)
@pytest.mark.parametrize("rule", [None, "token", "lwm"])
def test_every_row_is_written_as_the_loader_gives_it(toy_dataset, tmp_path, to, rule):
    dataset = toy_dataset(rows=11, length=64, vocabulary=VISION, weights="example")
    told = export(dataset.folder.url, str(tmp_path / "out"), to, rule)
    want = expected(dataset, Rule(rule or "example"))
    found = list(READ[to](tmp_path / "out"))
    assert sorted(row["row"] for row in found) == list(range(11)) and told["rows"] == 11
    for row in found:
        batch = want[row["row"]]
        assert row["examples"] == batch.examples
        assert [r["record"] for r in row["records"]] == [s.record for s in dataset.row(row["row"]).segments]
        for name in COLUMNS:
            array = np.asarray(row[name])
            assert np.array_equal(array, getattr(batch, name)[0]), name
            assert array.dtype == getattr(batch, name).dtype or to == "parquet"


@pytest.mark.parametrize("to", READ)
def test_files_are_the_same_bytes_by_any_number_of_workers_and_after_a_kill(toy_dataset, tmp_path, to):
    url = toy_dataset(rows=11).folder.url
    export(url, str(tmp_path / "one"), to)
    export(url, str(tmp_path / "two"), to, workers=2)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    (tmp_path / "two" / files[1]).unlink()  # as a kill in between leaves it, with a draft
    (tmp_path / "two" / ".tmp-999999999-draft").write_bytes(b"half")
    kept = (tmp_path / "two" / files[2]).stat().st_mtime_ns
    export(url, str(tmp_path / "two"), to)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == files and len(files) == 4
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    assert (tmp_path / "two" / files[2]).stat().st_mtime_ns == kept


def test_the_command_says_how_weights_are_used(toy_dataset, tmp_path, capsys):
    url = toy_dataset(rows=4).folder.url
    assert main(["export", url, "--to", "parquet", "--out", str(tmp_path / "a"), "--weights", "token"]) == 0
    assert (
        "4 rows of 64 tokens in 3 files, weights by the rule token: divide by the sum of `weights`"
        in capsys.readouterr().out
    )
    assert main(["export", url, "--to", "parquet", "--out", str(tmp_path / "b"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "b" / "export.json").read_bytes())
    assert told["divide_by"] == "the sum of `examples`"


def test_a_folder_of_something_else_is_refused(toy_dataset, tmp_path):
    url = toy_dataset(rows=4).folder.url
    export(url, str(tmp_path / "a"), "parquet")
    with pytest.raises(UserError, match=r"holds another export .* choose another --out"):
        export(url, str(tmp_path / "a"), "parquet", "token")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match=r"holds mine.txt, which is none of this export's files"):
        export(url, str(tmp_path / "b"), "webdataset")
    with pytest.raises(UserError, match=r"is no complete data set"):
        export(str(tmp_path / "b"), str(tmp_path / "c"), "webdataset")
    assert not (tmp_path / "c").exists()
