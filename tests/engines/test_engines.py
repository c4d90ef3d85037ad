"""One recipe, any engine: the same roots, nothing left over. Only the flags after `--` differ."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from apache_beam.metrics import monitoring_infos
from apache_beam.portability.api import beam_job_api_pb2
from worldloom.cli import main
from worldloom.errors import RunFailed
from worldloom.packing.dataset import open_dataset
from worldloom.packing.manifest import MANIFEST
from worldloom.packing.report import finished_units
from worldloom.packing.storage import Folder
from worldloom.packing.verify import verify
from worldloom.pipelines import beam_jobs, duplicates, eval_ngrams, staged
from worldloom.pipelines.build import describe_examples, run
from worldloom.pipelines.engine_errors import AGAIN
from worldloom.pipelines.engines import engine
from worldloom.pipelines.job import run_in_memory
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.recipe import load_recipe
from worldloom.tests.engines.conftest import PROSE, asked, environment, eventually, free_port, server
from worldloom.tests.pipelines.failing import Failing

pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("ignore")]  # the engines' own warnings
BOOKS = 40
RECIPES = ("text", "vision", "questions")
ENGINES = ("in-memory", "local processes", "multi-process", "dask", "dask by address", "prism", "flink",
           "flink runner", "flink cluster", "flink process")  # fmt: skip


@pytest.fixture(scope="module")
def flags(request: pytest.FixtureRequest) -> list[str]:
    """Return what follows `worldloom build RECIPE --out DIR` for an engine, started if it is not."""
    engine, value = request.param, request.getfixturevalue
    portable = ["--", "--runner=PortableRunner"]
    if engine == "local processes":
        return ["--workers", "3"]
    if engine == "in-memory":
        return ["--", "--runner=FnApiRunner"]
    if engine == "multi-process":
        return ["--", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    if engine == "dask":
        pytest.importorskip("distributed", reason="SKIPPED FOR LACK OF DASK: pip install 'worldloom[dask]'")
        return ["--", "--runner=DaskRunner"]
    if engine == "dask by address":
        return ["--", "--runner=DaskRunner", f"--dask_client_address={value('dask_scheduler')}"]
    if engine == "prism":
        return ["--", "--runner=PrismRunner", f"--prism_location={value('prism')}"]
    if engine == "flink":
        return [*portable, f"--job_endpoint={value('job_server')}", "--environment_type=LOOPBACK"]
    if engine == "flink runner":
        return ["--", "--runner=FlinkRunner", f"--flink_job_server_jar={value('job_server_jar')}",
                f"--flink_master={value('cluster')}", "--environment_type=EXTERNAL",
                f"--environment_config={value('worker_pool')}"]  # fmt: skip
    if engine == "flink process":
        config = json.dumps({"command": str(value("boot"))})
        return [*portable, f"--job_endpoint={value('job_server')}", "--environment_type=PROCESS",
                f"--environment_config={config}"]  # fmt: skip
    return [*portable, f"--job_endpoint={value('cluster_job_server')}", "--environment_type=EXTERNAL",
            f"--environment_config={value('worker_pool')}"]  # fmt: skip


def build(recipe: Path, out: Path, *flags: str) -> dict[str, str]:
    """Build, and return the roots."""
    assert main(["build", str(recipe), "--out", str(out), *flags]) == 0
    return {path.parent.name: open_dataset(str(path.parent)).root for path in sorted(out.glob(f"*/{MANIFEST}"))}


@contextmanager
def plain_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have builds run without any engine."""

    def find(job: Any, flags: list[str], key: str, records: int) -> None:
        shards = [shard for part in job.parts() for shard in duplicates_shards(job, part)]
        members = [m for path, unit in shards for m in duplicates.hashes(job.folder, path, unit, near=False)]
        duplicates.write(job.folder, duplicates.find_in_memory(members), key)

    def listed(search: Any, flags: list[str], tokens: int) -> Any:
        paths = [path for part in search.parts() for path, _ in beam_jobs.shards_of(search.folder, part)]
        eval_ngrams.write_slice(search, 0, 1, [eval_ngrams.write_shard(search, path, 1) for path in paths])
        return eval_ngrams.merge(search, 1)

    with monkeypatch.context() as patch:
        patch.setattr(beam_jobs, "run_job", lambda job, flags, workers: run_in_memory(job))
        patch.setattr(beam_jobs, "run_duplicates", find)
        patch.setattr(beam_jobs, "run_eval_ngrams", listed)
        yield


def duplicates_shards(job: Any, part: str) -> Iterator[tuple[str, str]]:
    return beam_jobs.shards_of(Folder(job.url), part)


@pytest.fixture(scope="module")
def expected(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """The roots of a recipe by the plain loop."""

    @lru_cache
    def roots(recipe: str) -> dict[str, str]:
        out = tmp_path_factory.mktemp("plain")
        with pytest.MonkeyPatch.context() as patch, plain_loop(patch):
            build(recipes[recipe], out / "warm")  # what is loaded once is no engine's cost
            started = time.monotonic()
            found = build(recipes[recipe], out / recipe)
            told("bare loop", recipe, time.monotonic() - started)
        assert verify(str(out / recipe)) == []
        return found

    return roots


def told(engine: str, recipe: str, seconds: float) -> None:
    """Say what docs/engines.md tabulates: seen with pytest -s."""
    print(f"\n{engine}, {recipe}: {seconds:.1f} s")  # noqa: T201


def left_over(out: Path) -> list[str]:
    """List what a finished build should not leave: staged and temporary files, drafts, what was underway."""
    return [str(path) for path in out.rglob("*") if path.name.startswith((".", "underway"))]


@pytest.mark.parametrize(
    ("flags", "recipe"),
    [(one, recipe) for one in ENGINES for recipe in RECIPES if one != "flink runner" or recipe == "text"],
    indirect=["flags"],
)
def test_every_engine_gives_the_roots_of_the_plain_loop(
    recipe: str, flags: list[str], recipes: dict[str, Path], expected: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    roots = expected(recipe)
    started = time.monotonic()
    found = build(recipes[recipe], tmp_path / "out", *flags)
    told(" ".join(flags), recipe, time.monotonic() - started)
    assert found == roots and len(found) > 1
    assert left_over(tmp_path / "out") == []


# Ctrl-C, failures and other code: as on the laptop.


def command(recipe: Path, out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "worldloom.cli", "build", str(recipe), "--out", str(out), *flags]


@pytest.fixture(scope="module")
def long_recipe(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """Books that take some seconds, in many units."""
    folder = tmp_path_factory.mktemp("long")
    for i in range(150):
        (folder / f"{i:03d}.txt").write_text(" ".join(PROSE) * 300 + str(i))
    source = {"name": "books", "kind": "books", "path": "*.txt", "unit_bytes": 1}
    (folder / "long.yaml").write_text(yaml.safe_dump({"vocabulary": {"text": str(small_model)}, "sources": [source]}))
    return folder / "long.yaml"


@pytest.fixture(scope="module")
def long_root(long_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch, plain_loop(patch):
        return build(long_recipe, tmp_path_factory.mktemp("long-plain") / "out")["examples"]


@pytest.mark.parametrize("flags", ["dask by address", "prism", "flink", "flink cluster"], indirect=True)
def test_ctrl_c_cancels_on_the_engine_and_the_next_call_resumes_on_another(
    flags: list[str], long_recipe: Path, long_root: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(long_recipe, out, *flags), stderr=subprocess.PIPE, text=True, env=environment())
    try:
        eventually(lambda: len(list(out.glob("examples/units/*.json"))) >= 3 or process.poll() is not None, 200)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    done = len(list(out.glob("examples/units/*.json")))
    assert process.returncode == 1 and "interrupted; what was finished is kept" in said, said
    assert "Traceback" not in said and not (out / "examples" / MANIFEST).exists()
    if flags[-1].startswith("--environment_config"):
        overview = f"http://{request.getfixturevalue('cluster')}/jobs/overview"
        eventually(lambda: {job["state"] for job in asked(overview)["jobs"]} <= {"CANCELED", "FAILED", "FINISHED"})
    time.sleep(2)  # no worker goes on with units that nobody waits for, but those that it had begun
    assert len(list(out.glob("examples/units/*.json"))) < done + 20 < 150
    assert build(long_recipe, out)["examples"] == long_root and left_over(out) == []


@pytest.mark.parametrize("flags", ["multi-process", "dask", "prism", "flink"], indirect=True)
def test_units_that_fail_are_lines_on_any_engine(
    flags: list[str], recipes: dict[str, Path], expected: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    recipe = load_recipe(recipes["text"])
    job = TokenizeJob(recipe, str(tmp_path / "out"))
    names = [unit.name for unit in job.units("books")]
    assert len(names) > 5
    failing = Failing(job, (names[1], names[3]), "bug", str(tmp_path))
    described = describe_examples(job)
    with engine(flags[1:], str(tmp_path), "failing") as complete:
        with pytest.raises(RunFailed) as caught:
            run(failing, "tokenize", described, 1.0, complete, 1)
        assert str(caught.value).split("\n") == [
            f"unit {names[1]}: KeyError: 'colour'", f"unit {names[3]}: KeyError: 'colour'", f"2 units failed: {AGAIN}"
        ]  # fmt: skip
        assert sorted(finished_units(job.folder)) == sorted({*names} - {names[1], names[3]})
        assert run(job, "tokenize", described, 1.0, complete, 1)["root"] == expected("text")["examples"]
    assert left_over(tmp_path / "out") == []


def test_workers_of_another_version_refuse(
    cluster_job_server: str, recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other" / "worldloom"
    shutil.copytree(staged.ROOT, other, ignore=shutil.ignore_patterns(".*", "tests", "docs", "__pycache__"))
    with (other / "pipelines" / "books.py").open("a") as changed:
        changed.write("# a change\n")
    port = free_port()
    pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    variables = {**environment(), "PYTHONPATH": str(other.parent)}
    with server(pool, tmp_path / "pool.log", port, env=variables):
        flags = ["--runner=PortableRunner", f"--job_endpoint={cluster_job_server}", "--environment_type=EXTERNAL",
                 f"--environment_config=localhost:{port}"]  # fmt: skip
        assert main(["build", str(recipes["text"]), "--out", str(tmp_path / "out"), "--", *flags]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("worldloom: this worker has another worldloom") and "install the same one on both" in said
    assert not list((tmp_path / "out" / "examples" / "units").iterdir())


# What passes through an engine, read from its own counters.


class Passed(NamedTuple):
    """What passed between two steps: elements, bytes of all of them by those that the engine measured, and of one."""

    elements: int
    bytes: float
    most: int


def passed(result: Any) -> dict[str, Passed]:
    """Return what passed in a pipeline, by collection, as the engine has committed it."""
    request = beam_job_api_pb2.GetJobMetricsRequest(job_id=result._job_id)
    counts, sizes = {}, {}
    for info in result._job_service.GetJobMetrics(request).metrics.committed:
        if info.urn == monitoring_infos.ELEMENT_COUNT_URN:
            counts[info.labels["PCOLLECTION"]] = monitoring_infos.extract_counter_value(info)
        if info.urn == monitoring_infos.SAMPLED_BYTE_SIZE_URN:
            sizes[info.labels["PCOLLECTION"]] = monitoring_infos.extract_distribution(info)
    return {
        name: Passed(counts[name], counts[name] * total / count, most)
        for name, (count, total, _, most) in sizes.items()
        if count and counts[name]
    }


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Passed]]:
    """Collect what passes in each pipeline, at its end."""
    found: list[dict[str, Passed]] = []
    monkeypatch.setattr(beam_jobs, "close", lambda result: found.append(passed(result)))
    return found


def wordy(folder: Path, model: Path, times: int) -> Path:
    """Write books, each a unit, some of them copies; `times` makes them longer."""
    folder.mkdir()
    words = " ".join(PROSE).split()
    for i in range(BOOKS):
        (folder / f"{i:02d}.txt").write_text(" ".join(random.Random(i % 35).choices(words, k=60 * times)))
    source = {"name": "books", "kind": "books", "path": "*.txt", "unit_bytes": 1}
    data = {"vocabulary": {"text": str(model)}, "sources": [source], "pack": {"length": 64}, "duplicates": "near"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    return folder / "recipe.yaml"


@pytest.mark.parametrize("flags", ["prism"], indirect=True)
def test_only_small_messages_pass_however_long_the_texts(
    flags: list[str], small_model: Path, tmp_path: Path, metered: list[dict[str, Passed]]
) -> None:
    for name, times in (("short", 1), ("long", 30)):
        build(wordy(tmp_path / name, small_model, times), tmp_path / f"{name}-out", *flags)
    short, long = metered[:3], metered[3:]
    for step, few, many in zip(("tokenize", "duplicates", "pack"), short, long, strict=True):
        bytes_few, bytes_many = (sum(one.bytes for one in found.values()) for found in (few, many))
        most = max(one.bytes for one in many.values()) / BOOKS
        told(f"{step}: {bytes_few:,.0f} and {bytes_many:,.0f} bytes, {most:.0f} a book between two steps", "any", 0.0)
        assert 0 < most < 1000
        if step != "pack":  # whose units are as many as the tokens ask for
            assert bytes_many == pytest.approx(bytes_few, rel=0.1)
    for found in (short[0], long[0], short[2], long[2]):
        assert max(one.most for one in found.values()) < 1000


def peak(call: list[str]) -> int:
    """Run a command. Returns the most anonymous memory of its process, in bytes."""
    process, most = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()), 0
    until = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < until:
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            most = max(most, int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024)
        time.sleep(0.01)
    process.kill()
    assert process.wait(10) == 0, process.stderr and process.stderr.read().decode()
    return most


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="SKIPPED: no /proc to read RssAnon from")
@pytest.mark.parametrize("flags", ["flink cluster"], indirect=True)
def test_ten_times_the_data_take_the_submitter_the_same_memory(
    flags: list[str], small_model: Path, tmp_path: Path
) -> None:
    found = []
    for name, units in (("once", 6), ("ten", 60)):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(units):
            (folder / f"{i:02d}.txt").write_text(" ".join(PROSE) * 500 + str(i))
        source = {"name": "books", "kind": "books", "path": "*.txt", "unit_bytes": 1}
        recipe = {"vocabulary": {"text": str(small_model)}, "sources": [source]}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        found.append(peak(command(folder / "recipe.yaml", folder / "out", *flags)))
    once, ten = found
    told(f"{once:,} and {ten:,} bytes", "memory", 0.0)
    assert 10**7 < ten <= 1.1 * once
