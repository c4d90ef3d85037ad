"""The snippets of docs/other-tools.md, run as they stand on a data set: each tool reads the rows that are there."""

import re
from pathlib import Path

import numpy as np
import pytest
from worldloom.export import export
from worldloom.packing.dense import DenseRows

PAGE = Path(__file__).resolve().parents[1] / "docs" / "other-tools.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def run(tool, **names):
    """Run the one snippet that imports a tool. Returns its names; a tool that is missing skips the test, in words."""
    pytest.importorskip(tool, reason=f"SKIPPED FOR LACK OF {tool}: pip install -c constraints.txt {tool}")
    (snippet,) = [s for s in SNIPPETS if re.search(rf"^(import|from) {tool}\b", s, re.M)]
    assert len(snippet.strip().splitlines()) <= 6
    exec(compile(snippet, tool, "exec"), names)
    return names


@pytest.fixture
def dataset(toy_dataset):
    return toy_dataset(rows=20)


@pytest.fixture
def folder(dataset):
    return dataset.folder.url


def test_every_snippet_is_run():
    tools = ("datasets", "polars", "duckdb", "torch", "grain", "webdataset")
    assert len(SNIPPETS) == len(tools)
    assert all(sum(bool(re.search(rf"^(import|from) {tool}\b", s, re.M)) for s in SNIPPETS) == 1 for tool in tools)


@pytest.mark.filterwarnings("ignore")  # the tools' own
def test_hugging_face_reads_every_row(dataset, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = run("datasets", folder=folder)["rows"]
    assert len(rows) == 20
    for i, row in enumerate(rows):
        assert row["tokens"] == dataset.tokens(i).tolist()
        assert [s["record"] for s in row["segments"]] == [s.record for s in dataset.row(i).segments]


def test_polars_reads_every_row(dataset, folder):
    rows = run("polars", folder=folder)["rows"].collect()
    assert rows["tokens"].to_list() == [dataset.tokens(i).tolist() for i in range(20)]
    assert rows["crc32"].n_unique() == 20


def test_duckdb_counts_as_the_manifest_does(dataset, folder, capsys):
    names = run("duckdb", folder=folder)
    shards = names["shards"]  # DuckDB finds it by this name
    (found,) = names["duckdb"].sql(f"select sum(s.length), count(*) from ({names['segments']})").fetchall()
    assert found == (dataset.manifest["tokens"], sum(len(dataset.row(i).segments) for i in range(20)))
    assert shards.count_rows() == 20


@pytest.mark.filterwarnings("ignore")  # of fewer processors than workers
def test_torch_s_loader_deals_every_row_once_over_its_workers(dataset, folder, capsys):
    names = run("torch", folder=folder)
    rows = sorted(
        tuple(row)
        for batch in names["DataLoader"](DenseRows(folder), 8, num_workers=2)
        for row in batch["tokens"].tolist()
    )
    assert rows == sorted(tuple(dataset.tokens(i).tolist()) for i in range(20))
    assert capsys.readouterr().out.count("torch.Size([8, 64])") == 2


@pytest.mark.filterwarnings("ignore")  # the tools' own
def test_grain_shuffles_and_batches_rows(dataset, folder):
    rows = run("grain", folder=folder)["rows"]
    found = np.concatenate([rows[i]["tokens"] for i in range(len(rows))])
    assert sorted(map(tuple, found.tolist())) == sorted(tuple(dataset.tokens(i).tolist()) for i in range(20))
    assert rows[0]["weights"].dtype == np.float32


@pytest.mark.filterwarnings("ignore")  # the tools' own
def test_webdataset_reads_an_export(dataset, folder, tmp_path):
    export(folder, str(tmp_path / "dense"), "webdataset")
    batches = list(run("webdataset", export=str(tmp_path / "dense"))["batches"])
    tokens = np.concatenate([batch[0] for batch in batches])
    assert np.array_equal(tokens, np.stack([dataset.tokens(i) for i in range(20)]))
    assert sum(int(np.sum(batch[3])) for batch in batches) == sum(len(dataset.row(i).segments) for i in range(20))
