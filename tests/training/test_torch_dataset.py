"""The same rows through torch's DataLoader, and the shards through Hugging Face `datasets`."""

import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from worldloom.errors import UserError
from worldloom.packing.dataset import Dataset
from worldloom.training.loader import Loader
from worldloom.training.mixture import open_mixture
from worldloom.training.torch_dataset import TorchRows

NAMES = ("tokens", "targets", "positions", "segments", "weights")


def test_samples_are_the_loaders_rows_in_its_order(toy_dataset):
    dataset = toy_dataset(rows=10)
    batch = (loader := Loader(dataset, 10, seed=4)).load(loader.plan(0))
    samples = list(TorchRows(dataset.folder.url, seed=4))
    assert len(samples) == 10
    for i, sample in enumerate(samples):
        for name in NAMES:
            assert sample[name].dtype == (torch.float32 if name == "weights" else torch.int64)
            assert np.array_equal(sample[name].numpy(), getattr(batch, name)[i])
    assert sum(int(sample["examples"]) for sample in samples) == batch.examples


def test_a_data_loader_makes_batches(toy_dataset):
    rows = TorchRows(toy_dataset(rows=10, length=64).folder.url)
    batches = list(DataLoader(rows, batch_size=4))
    assert [tuple(batch["tokens"].shape) for batch in batches] == [(4, 64), (4, 64), (2, 64)]
    assert batches[0]["examples"].tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize(("ranks", "workers"), [(3, 1), (1, 2), (2, 4)])
def test_each_row_comes_once_over_ranks_and_workers(toy_dataset, monkeypatch, ranks, workers):
    dataset = toy_dataset(rows=11)
    seen = Counter()
    for rank in range(ranks):
        rows = TorchRows(dataset.folder.url, seed=9, rank=rank, ranks=ranks)
        before = seen.total()
        for worker in range(workers):
            info = SimpleNamespace(id=worker, num_workers=workers)
            monkeypatch.setattr("worldloom.training.torch_dataset.get_worker_info", lambda info=info: info)
            seen.update(sample["tokens"].numpy().tobytes() for sample in rows)
        assert seen.total() - before in (11 // ranks, 11 // ranks + 1)
    assert seen == every_row(dataset)


WORKERS = """
import sys
from torch.utils.data import DataLoader
from worldloom.training.torch_dataset import TorchRows
for batch in DataLoader(TorchRows(sys.argv[1]), batch_size=4, num_workers=2):
    for row in batch["tokens"].tolist():
        print(*row)
"""


def test_real_workers_share_the_rows(toy_dataset):
    """In a process of its own: one that has loaded JAX must not be forked."""
    dataset = toy_dataset(rows=11)
    printed = run(WORKERS, dataset.folder.url)
    assert sorted(printed) == sorted(" ".join(map(str, row.tokens.tolist())) for row in dataset)


def run(program, *arguments, **environment):
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def every_row(dataset):
    return Counter(row.tokens.astype(np.int64).tobytes() for row in dataset)


def test_start_and_stop_choose_epochs_and_resume(toy_dataset):
    url = toy_dataset(rows=6).folder.url
    stream = [s["tokens"].tolist() for s in TorchRows(url, stop=12)]
    assert [s["tokens"].tolist() for s in TorchRows(url, start=4, stop=12)] == stream[4:]
    assert sorted(stream[:6]) == sorted(stream[6:]) and stream[:6] != stream[6:]


@pytest.mark.parametrize("by", ["sequences", "tokens"])
def test_a_mixtures_samples_are_the_loaders_rows(toy_dataset, tmp_path, by):
    urls = [toy_dataset(rows=rows, url=str(tmp_path / f"set-{rows}")).folder.url for rows in (13, 7)]
    shares = dict(zip(urls, [7, 3], strict=True))
    loader = Loader(open_mixture(shares, by), 20, seed=4)
    batch = loader.load(loader.plan(0))
    samples = [list(TorchRows(shares, seed=4, rank=rank, ranks=3, by=by)) for rank in range(3)]
    assert [len(part) for part in samples] == [7, 7, 6]
    for i in range(20):
        for name in NAMES:
            assert np.array_equal(samples[i % 3][i // 3][name].numpy(), getattr(batch, name)[i])


def test_a_rank_beyond_the_ranks_is_refused(toy_dataset):
    with pytest.raises(UserError, match="rank 2 is none of 2"):
        TorchRows(toy_dataset(rows=3).folder.url, rank=2, ranks=2)


READ = """
import sys
from datasets import load_dataset
files, cache = sys.argv[1:]
rows = load_dataset("arrow", data_files=files, split="train", cache_dir=cache)
for row in rows:
    print(row["segments"][0]["record"], sum(row["tokens"]), sum(row["trained"]))
"""


def test_hugging_face_datasets_open_the_shards(toy_dataset, tmp_path):
    """In a process of its own: `datasets` reads its environment when it is imported."""
    url = toy_dataset(rows=12).folder.url
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    printed = run(READ, f"{url}/shards/*.arrow", str(tmp_path / "cache"), **offline)
    expected = [f"{row.segments[0].record} {row.tokens.sum()} {row.trained.sum()}" for row in Dataset(url)]
    assert sorted(printed) == sorted(expected)
