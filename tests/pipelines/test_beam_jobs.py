"""Every engine makes what the plain loop makes."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from worldloom.packing.manifest import shards_of
from worldloom.packing.report import UNITS
from worldloom.packing.storage import Folder
from worldloom.pipelines import duplicates
from worldloom.pipelines.beam_jobs import run_duplicates, run_job
from worldloom.pipelines.build import describe_examples, describe_packed, duplicates_key, pack_job
from worldloom.pipelines.job import finish, pending, prepare, run_in_memory, run_unit
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.recipe import Recipe, load_recipe

ENGINES = {
    "in memory": ([], 1),
    "local processes": ([], 2),
    "multi-process": (["--direct_running_mode=multi_processing", "--direct_num_workers=2"], 1),
    "dask": (["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"], 1),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Recipe:
    """Twenty-four books, some of them copies, one of them broken."""
    folder = tmp_path_factory.mktemp("books")
    draw = random.Random(3)
    texts = [" ".join(draw.choice(["ferry", "fox", "river", "lantern"]) for _ in range(50 + 20 * i)) for i in range(20)]
    for i, text in enumerate([*texts, *texts[3:7]]):
        (folder / f"{i:02d}.txt").write_text(text)
    (folder / "broken.txt").write_bytes(b"\xff")
    source = {"name": "toy", "kind": "books", "path": str(folder / "*.txt"), "unit_bytes": 3000}
    data = {"vocabulary": {"text": str(small_model)}, "sources": [source], "limits": {"failed": 1.0}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**data, "pack": {"length": 64}}))
    return load_recipe(path)


def everything(recipe: Recipe, out: Path, flags: list[str], workers: int, in_memory: bool = False) -> dict[str, bytes]:
    """Run all three jobs. Returns the bytes of all files.

    Packing runs by the same glue as tokenizing: an engine that takes long to start is spared it.
    """
    job = TokenizeJob(recipe, str(out / "examples"))
    prepare(job)
    run_in_memory(job) if in_memory else run_job(job, flags, workers)
    made = finish(job, describe_examples(job), 1.0)
    key = duplicates_key(made)
    if in_memory:
        shards = [shard for part in job.parts() for shard in shards_of(job.folder, part)]
        members = [m for path, unit in shards for m in duplicates.hashes(job.folder, path, unit, near=False)]
        duplicates.write(job.folder, duplicates.find_in_memory(members), key)
    else:
        run_duplicates(job, flags, key, made["rows"])
    packing = pack_job(job.url, str(out / "packed"), recipe.pack[0])
    prepare(packing)
    run_in_memory(packing) if in_memory or flags else run_job(packing, flags, workers)
    finish(packing, describe_packed(packing), 1.0)
    assert made["units"] > 5 and made["ledger"]["failed"] == 1
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def expected(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return everything(recipe, tmp_path_factory.mktemp("expected"), [], 1, in_memory=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore")  # the engines' own
def test_an_engine_makes_the_same_bytes_as_the_plain_loop(engine, recipe, expected, tmp_path):
    if engine == "dask":
        pytest.importorskip("distributed", reason="SKIPPED FOR LACK OF DASK: pip install 'apache-beam[dask]'")
    flags, workers = ENGINES[engine]
    found = everything(recipe, tmp_path, flags, workers)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_four_copies_are_found(expected, recipe, tmp_path):
    assert everything(recipe, tmp_path, [], 1, in_memory=True) == expected
    table = duplicates.read(Folder(str(tmp_path / "examples")))
    assert table.column("record").to_pylist() == ["20.txt", "21.txt", "22.txt", "23.txt"]
    assert table.column("of_record").to_pylist() == ["03.txt", "04.txt", "05.txt", "06.txt"]


def test_a_unit_run_twice_at_once_commits_once(recipe, tmp_path):
    """Two workers do every unit at the same time: one report each, and the second finds it done."""
    from concurrent.futures import ThreadPoolExecutor

    job = TokenizeJob(recipe, str(tmp_path / "examples"))
    prepare(job)
    units = [unit for part in job.parts() for unit in pending(job, part)]
    with ThreadPoolExecutor(2) as pool:
        for unit in units:
            list(pool.map(job.run, [unit, unit]))
    assert len(list((tmp_path / "examples" / UNITS).glob("*.json"))) == len(units)
    made = finish(job, describe_examples(job), 1.0)
    alone = replace(job, url=str(tmp_path / "alone"))
    run_in_memory(alone)
    assert finish(alone, describe_examples(alone), 1.0)["root"] == made["root"]
    stale = replace(job, recipe=recipe.model_copy(update={"seed": 1}))
    units = [unit for part in stale.parts() for unit in pending(stale, part)]
    assert len(units) == made["units"]
    with ThreadPoolExecutor(4) as pool:
        for unit in units:
            assert len(list(pool.map(partial(run_unit, stale), [unit] * 4))) == 4
    assert finish(stale, describe_examples(stale), 1.0)["root"] == made["root"]
    files = [sorted(p.name for p in (tmp_path / d / "shards").iterdir()) for d in ("examples", "alone")]
    assert files[0] == files[1]
