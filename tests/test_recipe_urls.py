"""Recipes in buckets: read where they lie, with paths that begin there."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import yaml
from worldloom.errors import UserError
from worldloom.pipelines.deny import with_deny_lists
from worldloom.recipe import load_recipe

URL = "memory://bucket/recipes/books.yaml"
RECIPE = {
    "vocabulary": {"text": "../models/t.model", "vision": {"kind": "codebook", "path": "gs://other/c.npz"}},
    "sources": [
        {"name": "a", "kind": "books", "path": ["books/*.txt", "/mnt/books", "s3://b/x"], "deny": "deny.txt"},
        {"name": "b", "kind": "image-text", "path": "tars", "media_root": "."},
    ],
}


@pytest.fixture(autouse=True)
def stored() -> Iterator[None]:
    write(URL, "\ufeff" + yaml.safe_dump(RECIPE))
    write("memory://bucket/recipes/deny.txt", "two\none\n")
    yield
    fsspec.filesystem("memory").store.clear()


def write(url: str, text: str) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(text.encode())


def test_its_paths_begin_at_its_folder() -> None:
    recipe = load_recipe(URL)
    assert recipe.vocabulary.text == "memory://bucket/models/t.model"
    assert recipe.vocabulary.vision and recipe.vocabulary.vision.path == "gs://other/c.npz"
    first, second = recipe.sources
    assert first.path == ["memory://bucket/recipes/books/*.txt", "/mnt/books", "s3://b/x"]
    assert (second.path, getattr(second, "media_root", "")) == (
        "memory://bucket/recipes/tars",
        "memory://bucket/recipes",
    )
    assert with_deny_lists(recipe).sources[0].deny == ["one", "two"]


def test_what_the_command_line_sets_begins_where_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(URL, ["vocabulary.text=here.model"]).vocabulary.text == str(tmp_path / "here.model")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://bucket/none.yaml", "memory://bucket/none.yaml does not exist"),
        ("nosuch://bucket/a.yaml", "nosuch://bucket/a.yaml is no readable YAML: Protocol not known"),
        ("memory://bucket/list.yaml", "holds list where a mapping of keys is needed"),
        ("memory://bucket/latin.yaml", "is no readable YAML: 'utf-8' codec can't decode"),
    ],
)
def test_what_cannot_be_read_is_said(url: str, said: str) -> None:
    write("memory://bucket/list.yaml", "[1]")
    with fsspec.open("memory://bucket/latin.yaml", "wb") as file:
        file.write(b"a: \xe9")
    with pytest.raises(UserError, match=said):
        load_recipe(url)
