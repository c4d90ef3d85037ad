"""What workers on other machines need: paths that they can reach, extras, and one device for all codes."""

from typing import Any

import pytest
import yaml
from worldloom.errors import UserError
from worldloom.pipelines import models, remote
from worldloom.recipe import Recipe
from worldloom.schema import validate


def recipe(text: str = "gs://b/t.model", vision: dict[str, Any] | None = None, **source: Any) -> Recipe:
    about = {"name": "s", "kind": "image-text" if vision else "books", "path": "gs://b/x", **source}
    return validate(Recipe, {"vocabulary": {"text": text, "vision": vision}, "sources": [about]}, "")


VQGAN = {"kind": "vqgan", "path": "gs://b/vq"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (recipe(), []),
        (recipe("/models/t.model"), ["vocabulary.text: /models/t.model"]),
        (recipe("memory://t.model"), ["vocabulary.text: memory://t.model"]),
        (recipe("file:///t.model"), ["vocabulary.text: file:///t.model"]),
        (recipe(vision=VQGAN | {"path": "/vq"}), ["vocabulary.vision.path: /vq"]),
        (recipe(path=["s3://a/b", "/c", "hf://d"]), ["sources.s.path: /c"]),
        (recipe(path="filecache::gs://b/x"), []),
        (recipe(path="zip://*.txt::/x.zip"), ["sources.s.path: zip://*.txt::/x.zip"]),
        (recipe(vision=VQGAN, media_root="/m"), ["sources.s.media_root: /m"]),
        (recipe(deny="/deny.txt"), []),  # the submitter reads it
    ],
)
def test_paths_of_this_machine_are_found(given: Recipe, expected: list[str]) -> None:
    assert [f"{key}: {path}" for key, path in remote.unreachable_paths(given)] == expected


@pytest.mark.parametrize(("host", "reached"), [("localhost:8000", False), ("127.0.0.1", False), ("llm.example", True)])
def test_a_server_on_this_machine_is_none_to_others(host: str, reached: bool) -> None:
    asked = recipe(kind="book-questions", questions={"by": "server", "url": f"http://{host}/v1", "model": "m"})
    assert remote.unreachable_paths(asked) == ([] if reached else [("sources.s.questions.url", f"http://{host}/v1")])


DATAFLOW = ["--runner=DataflowRunner"]


def test_what_workers_elsewhere_cannot_reach_is_refused() -> None:
    local = recipe("/models/t.model", path="/x")
    with pytest.raises(UserError, match=r"Dataflow's workers cannot reach the recipe's vocabulary.text, /m.*t.model"):
        remote.need_reachable(local, DATAFLOW)
    for flags in ([], ["--runner=PrismRunner"], ["--runner=DaskRunner"]):  # workers of this machine
        remote.need_reachable(local, flags)
    remote.need_reachable(recipe(), DATAFLOW)


def test_models_may_be_in_an_image() -> None:
    image = [*DATAFLOW, "--sdk_container_image=an/image"]
    remote.need_reachable(recipe("/models/t.model"), image)
    with pytest.raises(UserError, match=r"sources.s.path, /x: put it where .* by --set sources.s.path=URL"):
        remote.need_reachable(recipe("/models/t.model", path="/x"), image)


def test_a_network_disk_is_reached_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "on_network_disk", lambda path: path.startswith("/nfs/"))
    remote.need_reachable(recipe("/nfs/t.model", path="/nfs/x"), DATAFLOW)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (recipe("/t"), ["gcs"]),
        (recipe("/t", path="/x"), []),
        (recipe("s3://t", path=["/x", "gs://y"]), ["gcs", "s3"]),
        (recipe("/t", VQGAN | {"path": "/vq"}, path="/x"), ["vision"]),
    ],
)
def test_extras_are_those_of_the_pictures_and_the_paths(given: Recipe, expected: list[str]) -> None:
    assert remote.extras(given) == expected


class Pictures:
    device = "cpu"


@pytest.mark.parametrize(
    ("flags", "named", "expected"),
    [
        ([], None, None),  # on one machine it is what there is
        (["--runner=DataflowRunner"], None, "cuda"),
        (["--runner", "DataflowRunner"], "cpu", "cpu"),
        (["--runner=FlinkRunner"], None, "cpu"),  # the submitter's
        (["--runner=FlinkRunner"], "cuda", "cuda"),
    ],
)
def test_the_device_is_settled_once(
    flags: list[str], named: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "pictures_of", lambda section: Pictures())
    settled = remote.with_device(recipe(vision=VQGAN | {"device": named}), flags)
    assert settled.vocabulary.vision and settled.vocabulary.vision.device == expected
    assert yaml.safe_load(settled.to_yaml())["vocabulary"]["vision"]["device"] == expected


def test_without_a_vqgan_there_is_nothing_to_settle() -> None:
    for given in (recipe(), recipe(vision={"kind": "codebook", "path": "gs://b/c"})):
        assert remote.with_device(given, ["--runner=DataflowRunner"]) is given


def test_threads_that_ask_at_once_load_a_model_once() -> None:
    import time
    from concurrent.futures import ThreadPoolExecutor

    loads = []

    @models.once(2)
    def load(path: str) -> object:
        loads.append(path)
        time.sleep(0.05)
        return object()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load, ["a"] * 4))
    assert loads == ["a"] and len(set(map(id, found))) == 1
