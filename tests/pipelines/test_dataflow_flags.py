"""Dataflow's flags: what is derived, what is refused before anything is submitted, and who gets an accelerator."""

from pathlib import Path
from typing import Any

import pytest
from worldloom.errors import UserError
from worldloom.packing.storage import Folder
from worldloom.pipelines import dataflow
from worldloom.pipelines.dataflow import ACCELERATOR, complete, for_hints, hints
from worldloom.pipelines.pack import PackJob
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.recipe import PackSection, Recipe
from worldloom.schema import validate

OUT = "gs://bucket/folder"
FLAGS = ["--runner=DataflowRunner", "--project=p", "--region=r"]


class Store:
    """A store with one bucket."""

    def call(self, method: str, path: str, bucket: str, **options: Any) -> None:
        if bucket == "locked":
            raise PermissionError("Forbidden: https://store/b/locked\nsays the store")
        if bucket != "bucket":
            raise FileNotFoundError(bucket)


@pytest.fixture(autouse=True)
def cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "fs", property(lambda self: Store()))
    monkeypatch.setattr(dataflow, "_missing", lambda module: False)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:1")


def test_what_is_left_out_is_derived() -> None:
    assert complete(FLAGS, OUT, "worldloom-books") == [
        *FLAGS,
        "--staging_location=gs://bucket/folder/.staging",
        "--temp_location=gs://bucket/folder/.staging/temp",
        "--job_name=worldloom-books",
    ]


def test_what_the_user_says_stays() -> None:
    own = ["--staging_location=gs://bucket/s", "--temp_location", "gs://bucket/t", "--job_name=mine"]
    assert complete([*FLAGS, *own], OUT, "worldloom-books") == [*FLAGS, *own]
    assert complete([*FLAGS, *own], "s3://elsewhere", "worldloom-books") == [*FLAGS, *own]


@pytest.mark.parametrize(
    ("flags", "out", "said"),
    [
        (["--region=r"], OUT, "Dataflow needs a project, and the flags name none: add --project=my-project"),
        (["--project=p"], OUT, "Dataflow needs a region, and the flags name none: add --region=europe-west4"),
        (FLAGS, "/data/out", "--out /data/out is in none: give --out gs://BUCKET/FOLDER"),
        (FLAGS, "s3://bucket/out", "--out s3://bucket/out is in none: give --out gs://BUCKET/FOLDER"),
        (FLAGS, "gs://none/out", "the bucket gs://none does not exist: mend gs://none/out/.staging"),
        ([*FLAGS, "--temp_location=gs://none/t"], OUT, "the bucket gs://none does not exist"),
        (
            FLAGS,
            "gs://locked/out",
            r"gs://locked cannot be listed \(Forbidden: https://store/b/locked says the",
        ),
    ],
)
def test_bad_calls_are_refused_in_one_sentence(flags: list[str], out: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        complete(flags, out, "n")
    assert "\n" not in str(refused.value)


def test_without_credentials_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"no Google Cloud credentials here \(File .*none.json was not found\): call"):
        complete(FLAGS, OUT, "n")
    assert complete([*FLAGS, "--no_auth"], OUT, "n")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not dataflow._missing("json") and dataflow._missing("no_such.module.at_all")
    monkeypatch.setattr(dataflow, "_missing", lambda module: True)
    with pytest.raises(UserError, match=r"pip install 'worldloom\[gcp\]'"):
        complete(FLAGS, OUT, "n")


def job(kind: str = "vqgan", device: str | None = "cuda", replies: str = "") -> TokenizeJob:
    vision = {"kind": kind, "path": "gs://b/v", "device": device} if kind else None
    source = {"name": "s", "kind": "image-text" if kind else "books", "path": "gs://b/x"}
    recipe = validate(Recipe, {"vocabulary": {"text": "gs://b/t", "vision": vision}, "sources": [source]}, "")
    return TokenizeJob(recipe, OUT, replies=replies)


def test_only_the_job_that_runs_a_vqgan_gets_an_accelerator() -> None:
    assert hints(job(), FLAGS) == {"accelerator": ACCELERATOR}
    others = [job(device="cpu"), job("codebook", None), job(""), job(replies="gs://b/replies")]
    assert [hints(other, FLAGS) for other in others] == [{}] * 4
    packing = PackJob("gs://b/e", "root", OUT, PackSection(length=64), "", 0, 0.0)
    assert hints(packing, FLAGS) == {}


def test_other_engines_know_no_accelerators() -> None:
    assert [hints(job(), flags) for flags in ([], ["--runner=FlinkRunner"])] == [{}, {}]


L4 = "type:nvidia-l4;count:1;install-nvidia-driver"


@pytest.mark.parametrize(
    "named",
    [
        [f"--resource_hint=accelerator={L4}"],
        ["--resource_hint", f"accelerator={L4}"],
        ["--resource_hints=min_ram=8GB", f"--resource_hints=accelerator={L4}"],
    ],
)
def test_another_accelerator_is_for_that_step_as_well(named: list[str]) -> None:
    flags = [*FLAGS, *named]
    assert hints(job(), flags) == {"accelerator": L4}
    assert not any("accelerator" in flag for flag in for_hints(flags, {}))
    assert ("--resource_hints=min_ram=8GB" in for_hints(flags, {})) == (len(named) == 2 and "min_ram" in named[0])


def test_what_gives_all_workers_one_is_left_alone() -> None:
    flags = [*FLAGS, f"--dataflow_service_options=worker_accelerator={L4}", "--dataflow_service_options=enable_prime"]
    assert hints(job(), flags) == {}
    assert for_hints(flags, {}) == flags


@pytest.mark.parametrize("more", [[], [f"--dataflow_service_options=worker_accelerator={L4}"]])
def test_flexrs_has_no_accelerators(more: list[str]) -> None:
    flags = [*FLAGS, "--flexrs_goal=COST_OPTIMIZED", *more]
    assert hints(job(device="cpu"), flags) == {}
    with pytest.raises(UserError, match=r"leave --flexrs_goal out, .* by --set vocabulary.vision.device=cpu"):
        hints(job(), flags)


def test_beside_an_accelerator_there_is_one_process() -> None:
    given = {"accelerator": L4}
    assert for_hints(FLAGS, {}) == FLAGS
    one = ["--experiments=no_use_multiple_sdk_containers", "--number_of_worker_harness_threads=2"]
    assert for_hints(FLAGS, given) == [*FLAGS, *one]
    own = ["--experiments=use_runner_v2", "--number_of_worker_harness_threads=7"]
    assert for_hints([*FLAGS, *own], given) == [*FLAGS, *own, one[0]]
