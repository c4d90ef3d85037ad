"""One shard a unit and nothing else, whatever happens between workers and the place that they write to."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worldloom.errors import RunFailed
from worldloom.packing import object_store
from worldloom.packing.dataset import Dataset
from worldloom.packing.inspect import find_record, row_detail, summarise
from worldloom.packing.manifest import sweep
from worldloom.packing.report import REJECTS, SHARDS, UNITS, UnitWriter, finished_units, read_report, report_name
from worldloom.packing.storage import Folder
from worldloom.packing.verify import verify
from worldloom.pipelines.build import build, describe_examples
from worldloom.pipelines.deny import with_deny_lists
from worldloom.pipelines.job import finish, prepare, run_in_memory
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.recipe import Recipe, load_recipe
from worldloom.tests.engines.servers import BUCKET, Faults, amazon, fake_gcs, google, moto_app, serving

pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("ignore")]
SECONDS = 60  # for anything that another thread or process is to do
PLACES = ["local", "gs", "s3"]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_gcs(tmp_path_factory.mktemp("gcs")) as server, google(server.url):
        yield f"gs://{BUCKET}"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with serving(Faults(moto_app())) as url, amazon(url):
        yield f"s3://{BUCKET}"


@pytest.fixture(params=PLACES)
def out(request, tmp_path) -> str:
    """An empty folder on a disk or in a store."""
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue(request.param)}/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def recipe(recipes: dict[str, Path]) -> Recipe:
    return with_deny_lists(load_recipe(recipes["text"], ["duplicates=none"]))


@pytest.fixture(scope="module")
def clean(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the plain loop makes: the manifest, and all files of its units."""
    job = TokenizeJob(recipe, str(tmp_path_factory.mktemp("clean")))
    prepare(job)
    run_in_memory(job)
    return finish_job(job), contents(job.folder)


def finish_job(job: TokenizeJob) -> dict[str, Any]:
    return finish(job, describe_examples(job), 1.0)


def contents(folder: Folder) -> dict[str, bytes | None]:
    """Read all files of a data set, less those that packing keeps beside it."""
    names = [f"{part}/{name}" if part else name for part in ("", UNITS, SHARDS, REJECTS) for name in folder.names(part)]
    return {name: folder.read(name) for name in names if not name.startswith("eval-ngrams-")}


def assert_clean(job: TokenizeJob, clean: tuple[dict[str, Any], dict[str, bytes]]) -> None:
    """One shard for each unit, nothing torn, nothing over, the same ledger and root."""
    assert finish_job(job) == clean[0]
    found = contents(job.folder)
    assert found.keys() == clean[1].keys()
    assert [name for name in found if found[name] != clean[1][name]] == []
    assert verify(job.folder.url) == []


def units_of(job: TokenizeJob) -> list[Any]:
    return [unit for part in job.parts() for unit in job.units(part)]


def held(moment: str, wait: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every writer wait: `adopting` its shard, or `reporting`, with shard and rejects adopted."""
    name = {"adopting": "_adopt_shard", "reporting": "_adopt_rejects"}[moment]
    method = getattr(UnitWriter, name)

    def waiting(self: UnitWriter, *given: Any) -> Any:
        if moment == "adopting":
            wait()
        done = method(self, *given)
        if moment == "reporting":
            wait()
        return done

    monkeypatch.setattr(UnitWriter, name, waiting)


def in_processes(works: list[Callable[[], Any]]) -> None:
    started = [FORK.Process(target=work) for work in works]
    for process in started:
        process.start()
    for process in started:
        process.join(SECONDS)
        process.kill()
    assert [process.exitcode for process in started] == [0] * len(works)


def in_threads(works: list[Callable[[], Any]]) -> None:
    errors: list[BaseException] = []

    def guarded(work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(SECONDS)
    assert errors == [] and not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize("moment", ["adopting", "reporting"])
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_every_unit_run_twice_at_the_same_time(out, recipe, clean, kind, moment, monkeypatch):
    job = TokenizeJob(recipe, out)
    prepare(job)
    barrier = (threading if kind == "threads" else FORK).Barrier(2)
    held(moment, lambda: barrier.wait(SECONDS), monkeypatch)
    units = units_of(job)
    assert len(units) > 5

    def work() -> None:
        for unit in units:
            job.run(unit)

    (in_threads if kind == "threads" else in_processes)([work, work])
    assert sorted(finished_units(job.folder)) == [unit.name for unit in units]
    assert_clean(job, clean)


@pytest.mark.parametrize("moment", ["adopting", "reporting"])
def test_every_unit_run_late(out, recipe, clean, moment, monkeypatch):
    """Workers that began before the units were done come back when the job is finished, swept and declared done."""
    job = TokenizeJob(recipe, out)
    prepare(job)
    declared, arrived = threading.Event(), threading.Semaphore(0)
    units = units_of(job)

    def wait() -> None:
        if threading.current_thread() is not threading.main_thread():
            arrived.release()
            assert declared.wait(SECONDS)

    held(moment, wait, monkeypatch)
    late = threading.Thread(target=in_threads, args=([lambda u=unit: job.run(u) for unit in units],), daemon=True)
    late.start()
    assert all(arrived.acquire(timeout=SECONDS) for _ in units)
    for unit in units:
        job.run(unit)
    made = finish_job(job)
    done = contents(job.folder)
    declared.set()
    late.join(SECONDS)
    assert not late.is_alive() and made == clean[0]
    left = contents(job.folder)
    assert {name: left[name] for name in done} == done  # the data set that was declared done is as it was
    assert_clean(job, clean)


def test_of_workers_that_read_different_things_the_first_is_kept(out, recipe, clean, monkeypatch):
    """As of a page that changes between two fetches. Both shards are there, one is named, the other swept."""
    job, other = TokenizeJob(recipe, out), TokenizeJob(reversed_books(recipe), out)
    prepare(job)
    barrier = threading.Barrier(2)
    with monkeypatch.context() as patch:
        held("reporting", lambda: barrier.wait(SECONDS), patch)
        pairs = list(zip(units_of(job), units_of(other), strict=True))
        in_threads([lambda: [job.run(a) for a, _ in pairs], lambda: [other.run(b) for _, b in pairs]])
    reports = [read_report(job.folder, unit.name) for unit in units_of(job)]
    assert all(reports) and len(list(job.folder.names(SHARDS))) > len(reports)
    run_in_memory(job)  # where the other came first, its key is not this job's
    assert_clean(job, clean)
    with monkeypatch.context() as patch:  # late ones see no report, as if they had begun before
        read = Folder.read
        patch.setattr(Folder, "read", lambda self, name: None if name.startswith(UNITS) else read(self, name))
        for unit in units_of(other):
            other.run(unit)
    assert len(list(job.folder.names(SHARDS))) > len(reports)
    assert_clean(job, clean)


def reversed_books(recipe: Recipe) -> Recipe:
    """The same units with other rows."""
    filters = recipe.sources[0].filters.model_copy(update={"min_tokens": 250})
    return recipe.model_copy(update={"sources": [recipe.sources[0].model_copy(update={"filters": filters})]})


def test_two_builds_at_the_same_time(out, recipe, clean):
    job = TokenizeJob(recipe, out)
    prepare(job)
    made: list[dict[str, Any]] = []

    def work() -> None:
        run_in_memory(job)
        made.append(finish_job(job))

    in_threads([work, work])
    assert made == [clean[0]] * 2
    assert_clean(job, clean)


@pytest.fixture
def listing(monkeypatch) -> dict[str, list[str]]:
    """Let listings answer what they did before, for the folders put into the dictionary."""
    shown: dict[str, list[str]] = {}
    for kind in (object_store.GoogleStore, object_store.AmazonStore):
        names = kind.names

        def stale(self: Any, path: str, deep: bool = False, names: Any = names) -> Iterator[str]:
            return iter(shown[path]) if path in shown else names(self, path, deep)

        monkeypatch.setattr(kind, "names", stale)
    return shown


@pytest.mark.parametrize("out", ["gs", "s3"], indirect=True)
def test_a_listing_that_lags_behind_loses_nothing(out, recipe, clean, listing):
    job = TokenizeJob(recipe, out)
    prepare(job)
    folders = {job.folder.path(part): part for part in (UNITS, SHARDS, REJECTS)}
    listing.update({path: [] for path in folders})  # what is put is not shown
    run_in_memory(job)
    stray = f"{SHARDS}/books-0000000-{'0' * 32}.arrow"
    job.folder.create(stray, b"of a lost race")
    job.folder.create(report_name("of-a-book-that-is-gone"), b"{}")
    assert finish_job(job) == clean[0]
    assert job.folder.exists(stray)
    listing.clear()
    assert_clean(job, clean)  # and the next call sweeps what it sees then

    listing.update({path: list(job.folder.names(part)) for path, part in folders.items()})  # what is removed is shown
    gone = units_of(job)[:3]
    for unit in gone:
        report = read_report(job.folder, unit.name)
        assert report
        job.folder.remove(report_name(unit.name))
        job.folder.remove(report.shard.path)
    with pytest.raises(RunFailed, match=f"unit {gone[0].name} .* is not done"):
        finish_job(job)
    run_in_memory(job)
    assert finish_job(job) == clean[0]
    listing.clear()
    assert_clean(job, clean)


@pytest.mark.parametrize("out", ["gs", "s3"], indirect=True)
def test_an_index_read_too_early_does_not_sweep_what_was_committed_since(out, recipe, clean):
    job, other = TokenizeJob(recipe, out), TokenizeJob(reversed_books(recipe), out)
    prepare(job)
    run_in_memory(other)
    finish_job(other)
    run_in_memory(job)  # the index still names the other's shards
    sweep(job.folder)
    assert_clean(job, clean)


@pytest.mark.parametrize("out", ["gs", "s3"], indirect=True)
def test_an_upload_that_a_kill_interrupts_leaves_nothing_to_see(out, tmp_path):
    folder, draft = Folder(out), tmp_path / "draft"
    with draft.open("wb") as file:
        file.truncate(120 * 2**20)
    name = f"{SHARDS}/u-{'0' * 32}.arrow"
    process = FORK.Process(target=die_uploading, args=(folder, draft, name))
    process.start()
    process.join(SECONDS)
    process.kill()
    assert process.exitcode == 9
    assert not folder.exists(name) and folder.is_empty() and list(folder.names(SHARDS)) == []
    assert folder.abort_uploads() == (1 if out.startswith("s3") else 0) and folder.abort_uploads() == 0
    folder.adopt(draft, name)
    assert folder.size(name) == 120 * 2**20 and list(folder.names(SHARDS)) == [name.rpartition("/")[2]]


def die_uploading(folder: Folder, draft: Path, name: str) -> None:
    """Send one part of a large file, then die."""
    import gcsfs.core
    from aiobotocore.client import AioBaseClient

    send, call, sent = gcsfs.core.upload_chunk, AioBaseClient._make_api_call, []

    async def send_one(*args: Any) -> Any:
        if sent:
            os._exit(9)
        sent.append(1)
        return await send(*args)

    async def call_one(self: Any, operation: str, asked: Any) -> Any:
        if operation == "UploadPart":
            if sent:
                os._exit(9)
            sent.append(1)
        return await call(self, operation, asked)

    gcsfs.core.upload_chunk, AioBaseClient._make_api_call = send_one, call_one
    folder.adopt(draft, name)


@pytest.mark.parametrize("out", ["gs", "s3"], indirect=True)
def test_built_verified_and_loaded_from_a_store(out, recipe, tmp_path):
    from worldloom.training.loader import Loader

    here = build(recipe, str(tmp_path / "here"), [], 1)
    there = build(recipe, out, [], 2)
    assert {name: made["root"] for name, made in there.items()} == {name: made["root"] for name, made in here.items()}
    assert verify(out) == [] and verify(str(tmp_path / "here")) == []
    summaries = [summarise(f"{place}/examples") for place in (out, tmp_path / "here")]
    assert summaries[0] == summaries[1]
    assert find_record(out, "03.txt") == find_record(str(tmp_path / "here"), "03.txt") != []
    for name in here:
        mine, theirs = Dataset(f"{out}/{name}"), Dataset(f"{tmp_path}/here/{name}")
        assert [row_detail(mine, i) for i in range(mine.rows)] == [row_detail(theirs, i) for i in range(theirs.rows)]
    loaders = [Loader(Dataset(f"{place}/packed-64"), 5, seed=3) for place in (out, tmp_path / "here")]
    for t in range(4):
        batches = [loader.load(loader.plan(t)) for loader in loaders]
        assert all(np.array_equal(getattr(batches[0], n), getattr(batches[1], n)) for n in ("tokens", "weights"))
    again = build(recipe, out, [], 1)
    assert again == there
    listed = sorted(os.path.relpath(p, tmp_path / "here") for p in (tmp_path / "here").rglob("*") if p.is_file())
    assert sorted(Folder(out).fs.find(Folder(out).path())) == [Folder(out).path(name) for name in listed]


def begin(recipe: Path, out: str, log: Path) -> "subprocess.Popen[bytes]":
    """Start a build as a user does."""
    call = [sys.executable, "-m", "worldloom.cli", "build", str(recipe), "--out", out, "--workers", "2"]
    call += ["--set", "duplicates=none"]
    with log.open("wb") as said:
        return subprocess.Popen(call, stdout=said, stderr=said)


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_the_storage_server_is_killed_and_comes_back(recipes, recipe, clean, tmp_path, seconds):
    with fake_gcs(tmp_path / "gcs") as server, google(server.url):
        out = f"gs://{BUCKET}/out"
        process = begin(recipes["text"], out, tmp_path / "log")
        try:
            end, units = time.monotonic() + SECONDS, tmp_path / "gcs" / BUCKET / "out" / "examples" / UNITS
            while not (units.exists() and any(units.glob("*.json"))):
                assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.01)
            server.kill()
            time.sleep(seconds)
            server.start()
            code = process.wait(2 * SECONDS)
        finally:
            process.kill()
            process.wait(SECONDS)
        said = (tmp_path / "log").read_text()
        assert "Traceback" not in said and code in (0, 1), said
        made = build(recipe, out, [], 1)
        assert made["examples"] == clean[0]
        assert_clean(TokenizeJob(recipe, f"{out}/examples"), clean)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte, or a skip for one who may not mount it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("SKIPPED FOR LACK OF A SMALL DISK: this user may not mount one")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills_up(recipes, recipe, clean, tmp_path, small_disk):
    """One sentence, no draft and no unit that is half there; with more room the next call does the rest."""
    out = small_disk / "out"
    (small_disk / "filler").write_bytes(b"x" * (512 - 60) * 1024)
    process = begin(recipes["text"], str(out), tmp_path / "log")
    assert process.wait(SECONDS * 2) == 1
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said and "no space is left for" in said and "choose another --out" in said
    examples = Folder(str(out / "examples"))
    assert not examples.exists("manifest.json")
    assert [name for part in ("", UNITS, SHARDS, REJECTS) for name in examples.names(part) if name[0] == "."] == []
    assert all(read_report(examples, name) for name in finished_units(examples))
    (small_disk / "filler").unlink()
    assert build(recipe, str(out), [], 1)["examples"] == clean[0]
    assert_clean(TokenizeJob(recipe, str(out / "examples")), clean)
