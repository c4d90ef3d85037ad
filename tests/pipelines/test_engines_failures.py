"""Units that fail: each is one line, the others go on, what may pass is tried again, and nothing is left over."""

import pickle
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.errors import RunFailed, UserError
from worldloom.packing.report import finished_units
from worldloom.packing.storage import Folder
from worldloom.pipelines import progress, same_code, underway
from worldloom.pipelines.beam_jobs import Sent
from worldloom.pipelines.build import describe_examples, run
from worldloom.pipelines.engine_errors import AGAIN, said_by
from worldloom.pipelines.job import pending, prepare, run_in_memory
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.pipelines.underway import UNDERWAY, Errand, attempt, errand, unit_of
from worldloom.pipelines.units import Part, Unit
from worldloom.recipe import Recipe
from worldloom.tests.pipelines.failing import Failing

BOOKS = 8


@pytest.fixture
def job(tmp_path: Path, small_model: Path) -> TokenizeJob:
    """Eight books, each a unit."""
    (tmp_path / "books").mkdir()
    for i in range(BOOKS):
        (tmp_path / "books" / f"{i}.txt").write_text(f"Good morning, said fox {i}.")
    source = {"name": "books", "kind": "books", "path": f"{tmp_path}/books/*.txt", "unit_bytes": 1}
    recipe = Recipe.model_validate({"vocabulary": {"text": str(small_model)}, "sources": [source]})
    return TokenizeJob(recipe, str(tmp_path / "out"))


@pytest.fixture
def failing(job: TokenizeJob, tmp_path: Path) -> Callable[..., Failing]:
    def make(*numbers: int, error: str = "bug", times: int = 1000) -> Failing:
        log = tmp_path / "tries"
        shutil.rmtree(log, ignore_errors=True)
        log.mkdir()
        return Failing(job, tuple(f"books-{n:07d}" for n in numbers), error, str(log), times)

    return make


def do(job: Any, workers: int = 1) -> str:
    """Run a job as a build does. Returns the root."""
    described = describe_examples(job.job if isinstance(job, Failing) else job)
    return str(run(job, "tokenize", described, 1.0, [], workers)["root"])


@pytest.mark.parametrize("workers", [1, 2])
def test_units_that_fail_are_a_line_each_and_the_others_are_done(
    job: TokenizeJob, failing: Callable[..., Failing], tmp_path: Path, workers: int
) -> None:
    with pytest.raises(RunFailed) as caught:
        do(failing(2, 5), workers)
    assert str(caught.value).split("\n") == [
        "unit books-0000002: KeyError: 'colour'",
        "unit books-0000005: KeyError: 'colour'",
        f"2 units failed: {AGAIN}",
    ]
    assert sorted(finished_units(job.folder)) == [f"books-{n:07d}" for n in range(BOOKS) if n not in (2, 5)]
    assert not job.folder.exists(UNDERWAY)
    alone = TokenizeJob(job.recipe, str(tmp_path / "alone"))
    run_in_memory(alone)
    assert do(job, workers) == do(alone)


def test_what_may_pass_is_tried_again_and_what_may_not_is_not(
    failing: Callable[..., Failing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(underway, "PAUSES", (0.0, 0.0))
    passing = failing(3, error="network", times=2)
    do(passing)
    assert passing.tries(passing.broken[0]) == 3
    shutil.rmtree(passing.folder.url)
    for error, tries in (("network", 3), ("lost", 1), ("full", 1), ("bug", 1)):
        lasting = failing(3, error=error)
        with pytest.raises(RunFailed, match=r"^unit books-0000003: \w+: .*\n1 unit failed"):
            do(lasting)
        assert lasting.tries(lasting.broken[0]) == tries, error


def test_too_many_failures_end_the_job(failing: Callable[..., Failing], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(underway, "MOST_FAILED", 3)
    broken = failing(*range(BOOKS))
    with pytest.raises(RunFailed) as caught:
        do(broken)
    *lines, last = str(caught.value).split("\n")
    assert len(lines) == 3 == len(list(Path(broken.log).iterdir())) and last.startswith("3 units failed, so that no")
    assert last.count(AGAIN) == 1


def test_a_failure_that_cannot_be_noted_is_raised(failing: Callable[..., Failing], tmp_path: Path) -> None:
    """As on a disk that is full: the job ends, for no other unit could be written either."""
    broken = failing(0, error="full")
    prepare(broken)
    unit, run = next(pending(broken, "books")), Folder(str(tmp_path))
    (tmp_path / "running").touch()
    with pytest.raises(OSError, match="No space left"):
        attempt(broken, run, errand(run, unit))


def test_a_unit_that_failed_and_was_done_by_another_try_has_not_failed(
    job: TokenizeJob, failing: Callable[..., Failing]
) -> None:
    prepare(job)
    unit, broken = next(pending(job, "books")), failing(0, times=1)
    with underway.underway(job.folder) as run:
        assert attempt(broken, run, errand(run, unit)) is None
        assert list(run.names("failed")) == [unit.name]
        assert attempt(broken, run, errand(run, unit)) is not None


def test_no_unit_is_begun_when_nobody_waits_for_it_any_more(job: TokenizeJob, tmp_path: Path) -> None:
    """As on a cluster whose job was not ended when the call that sent it off was."""
    prepare(job)
    unit, run = next(pending(job, "books")), Folder(str(tmp_path))
    with pytest.raises(RunFailed, match="the call that began this job has ended"):
        attempt(job, run, errand(run, unit))
    (tmp_path / "running").touch()
    assert attempt(job, run, errand(run, unit)) is not None


def test_what_killed_calls_left_is_gone_after_a_success(job: TokenizeJob) -> None:
    left = job.folder.sub(f"{UNDERWAY}/of-a-killed-call")
    left.make("failed")
    left.overwrite("failed/books-0000000", b"an old story")
    do(job)
    assert not job.folder.exists(UNDERWAY)


def test_the_bar_bears_a_store_that_does_not_answer(
    job: TokenizeJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[int] = []

    def finished(folder: Folder) -> Iterator[str]:
        looks.append(1)
        if len(looks) == 2:
            raise ConnectionResetError(104, "Connection reset by peer")
        return finished_units(folder)

    monkeypatch.setattr(progress, "SECONDS", 0.01)
    monkeypatch.setattr(progress, "finished_units", finished)
    prepare(job)
    with progress.ReportBar("tokenize", job.folder, BOOKS, 0):
        run_in_memory(job)
        until = time.monotonic() + 30
        while len(looks) < 4 and time.monotonic() < until:
            time.sleep(0.01)
    assert len(looks) > 4  # and once more at the end
    assert capsys.readouterr().err.startswith("tokenize: 8 records, ")


def test_a_unit_that_is_done_needs_nothing_of_its_errand(job: TokenizeJob, tmp_path: Path) -> None:
    """An engine may ask for it once more when the job is long over."""
    do(job)
    for unit in job.units("books"):
        late = Errand(unit.name, unit.source, unit.key, b"")
        report = attempt(job, Folder(str(tmp_path / "gone")), late)
        assert report is not None and report.unit == unit.name


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4096), st.integers(0, 2**32))
def test_an_errand_is_small_and_makes_the_same_unit(tmp_path_factory: Any, count: int, seed: int) -> None:
    draw = random.Random(seed)
    parts = tuple(
        Part(f"shelf/{draw.random()}.txt", f"gs://b/{i}.txt", 0, -1, draw.getrandbits(30), f"{draw.getrandbits(64):x}")
        for i in range(count)
    )
    run = Folder(str(tmp_path_factory.mktemp("run")))
    run.make("parts")
    unit = Unit("books-0000007", "books", parts, "k" * 32)
    sent = errand(run, unit)
    assert len(pickle.dumps(tuple(sent))) < 1000
    assert unit_of(run, Errand(*pickle.loads(pickle.dumps(tuple(sent))))) == unit


def test_an_errand_whose_parts_are_elsewhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="does every worker see that folder"):
        unit_of(Folder(str(tmp_path)), Errand("u", "s", "k", b""))


class Unopened:
    """What must not be opened by other code."""

    def __reduce__(self) -> Any:
        return (exit, (99,))


def test_other_code_opens_nothing_but_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Sent()
    step.work = Unopened()
    there = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(step))))  # some engines pass it on unopened
    with pytest.raises(SystemExit):
        there.start_bundle()
    there = pickle.loads(pickle.dumps(step))
    monkeypatch.setattr(same_code, "code_digest", lambda: "other" * 8)
    with pytest.raises(UserError, match=r"another worldloom .* install the same one on both"):
        there.start_bundle()


BEAM = """java.lang.RuntimeException: Error received from SDK harness for instruction 3:
Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1498, in process
  File "/site-packages/worldloom/pipelines/pack.py", line 80, in run
worldloom.errors.{kind}: {text} [while running 'RunUnits-ptransform-31']

    at org.apache.beam.vendor.guava.SettableFuture.get(SettableFuture.java:5)
Caused by: java.lang.RuntimeException: it went wrong
"""


@pytest.mark.parametrize("kind", [UserError, RunFailed])
def test_what_a_worker_says_is_found_in_an_engines_words(kind: type[UserError]) -> None:
    with pytest.raises(UserError) as caught, said_by("flink"):
        raise RuntimeError(BEAM.format(kind=kind.__name__, text="name another folder"))
    assert type(caught.value) is kind and str(caught.value) == "name another folder"


def test_another_error_of_a_worker_or_engine_is_one_sentence() -> None:
    for raised, words in (
        (
            RuntimeError(BEAM.format(kind="OSError", text="[Errno 28] No space left on device")),
            "a worker failed: [Errno 28",
        ),
        (RuntimeError("Pipeline x failed in state FAILED: unknown error"), "the engine (flink) failed: Pipeline x"),
        (PermissionError(13, "Permission denied"), "a worker failed: [Errno 13] Permission denied"),
    ):
        with pytest.raises(RunFailed) as caught, said_by("flink"):
            raise raised
        assert str(caught.value).startswith(words) and str(caught.value).endswith(AGAIN)
        assert "\n" not in str(caught.value)


def test_an_unexpected_error_in_this_process_passes_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), said_by(""):
        _ = 1 / 0
    for words in ("KeyboardInterrupt [while running 'RunUnits']", "KeyboardInterrupt: [while running 'RunUnits']"):
        with pytest.raises(KeyboardInterrupt), said_by(""):
            raise RuntimeError(words)
