"""Recipes: defaults, paths, changes, and refusals in one sentence."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from worldloom.errors import UserError
from worldloom.recipe import Recipe, load_recipe
from worldloom.schema import validate

SOURCE: dict[str, Any] = {"name": "books", "kind": "books", "path": "books/*.txt"}
LEAST: dict[str, Any] = {"vocabulary": {"text": "some.model"}, "sources": [SOURCE]}


def load(tmp_path: Path, data: dict[str, Any], *assignments: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_recipe(path, list(assignments))


def test_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    recipe = load(tmp_path, {**LEAST, "pack": {"length": 32768}})
    assert (recipe.seed, recipe.eval, recipe.duplicates) == (0, 0.0, "exact")
    assert (recipe.limits.failed, recipe.pack[0].name, str(recipe.pack[0].weights)) == (0.02, "32768", "example")
    assert load(tmp_path, LEAST).pack == []


def test_a_pack_section_is_named_by_its_length_and_side(tmp_path: Path) -> None:
    sections = [{"length": 8}, {"length": 8, "split": "eval"}, {"length": 8, "name": "short"}]
    assert [p.name for p in load(tmp_path, {**LEAST, "eval": 0.5, "pack": sections}).pack] == ["8", "8-eval", "short"]


def test_relative_paths_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("HOME", "/home/someone")
    source = {**SOURCE, "path": ["a.txt", "/b.txt", "s3://c/d.txt", "~/e.txt"], "deny": "deny.txt"}
    recipe = load(tmp_path, {"vocabulary": {"text": "m/t.model"}, "sources": [source]})
    assert recipe.vocabulary.text == f"{tmp_path}/m/t.model"
    assert recipe.sources[0].path == [f"{tmp_path}/a.txt", "/b.txt", "s3://c/d.txt", "/home/someone/e.txt"]
    assert recipe.sources[0].deny == f"{tmp_path}/deny.txt"


def test_changed_paths_start_where_the_command_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    recipe = load(tmp_path, LEAST, "vocabulary.text=other.model", "sources.books.path=[x.txt]", "sources.0.deny=[id]")
    assert recipe.vocabulary.text == f"{tmp_path.parent}/other.model"
    assert recipe.sources[0].paths == [f"{tmp_path.parent}/x.txt"]
    assert recipe.sources[0].deny == ["id"]


def test_the_effective_recipe_says_the_same_again(tmp_path: Path) -> None:
    sections = [{"length": 8, "weights": "lwm", "sources": ["books"]}, {"length": 8, "split": "train"}]
    source = {**SOURCE, "filters": {"equals": {"meta.set": "Böcker", "n": 1, "ok": True}}, "deny": ["a: b"]}
    recipe = load(tmp_path, {**LEAST, "sources": [source], "eval": 0.25, "pack": sections, "description": "é: 'x'"})
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml(), "utf-8")
    assert load_recipe(again) == recipe
    assert load_recipe(again).to_yaml() == recipe.to_yaml()


def test_every_shipped_recipe_is_one() -> None:
    folder = Path(__file__).resolve().parents[1] / "recipes"
    found = [path for path in folder.rglob("*.yaml") if "sources" in yaml.safe_load(path.read_text())]
    assert len(found) >= 5
    for path in found:
        load_recipe(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sed": 1}, "unknown key sed; .* did you mean seed?"),
        ({"seed": -1}, "seed: found -1"),
        ({"seed": 1.0}, "seed: found 1.0"),
        ({"eval": float("nan")}, "eval: found nan"),
        ({"eval": 1.5}, "eval: found 1.5"),
        ({"limits": {"failed": 2}}, "limits.failed: found 2"),
        ({"sources": [{**SOURCE, "record_bytes": 10**30}]}, "record_bytes"),
        ({"duplicates": False}, "duplicates: found False; input should be 'none', 'exact' or 'near'"),
        ({"vocabulary": "some.model"}, "vocabulary: found 'some.model'; a mapping of keys is needed"),
        ({"vocabulary": {}}, "the key vocabulary.text is missing"),
        ({"sources": []}, "sources: found"),
        ({"sources": [SOURCE, SOURCE]}, "sources: the name books is used twice"),
        ({"pack": {"length": 1}}, "pack.length: found 1"),
        ({"pack": {"length": "8"}}, "pack.length: found '8'"),
        ({"pack": {"length": True}}, "pack.length: found True"),
        ({"pack": {}}, "the key pack.length is missing"),
        ({"pack": [{"length": 8}, {"length": 8}]}, "pack: the name 8 is used twice"),
        ({"pack": {"length": 8, "sources": ["x"]}}, "pack 8: there is no source x; sources: books"),
        ({"pack": {"length": 8, "split": "eval"}}, "split eval is empty while eval is 0"),
        ({"pack": {"length": 8, "weights": "even"}}, "pack.weights: found 'even'"),
    ],
)
def test_recipes_at_fault_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        validate(Recipe, {**LEAST, **change}, "r.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "book"}, "sources.0.kind: found 'book'"),
        ({"path": ""}, "give either path or dataset"),
        ({"dataset": "x"}, "give either path or dataset"),
        ({"path": 3}, "sources.0.path: found 3"),
        ({"colums": {}}, "unknown key sources.0.colums; .* did you mean columns?"),
        ({"columns": {"txt": "x"}}, "unknown key sources.0.columns.txt"),
        ({"filters": {"min_tokens": 5, "max_tokens": 5}}, "min_tokens 5 must be below max_tokens 5"),
        ({"filters": {"min_tokens": 0}}, "min_tokens: found 0"),
        ({"filters": {"equals": {"a": [1]}}}, "sources.0.filters.equals.a: found"),
        ({"name": "Some Books"}, "sources.0.name: found 'Some Books'"),
        ({"name": "../up"}, "sources.0.name"),
        ({"name": "a\n"}, "sources.0.name"),
        ({"deny": [3]}, "sources.0.deny.0: found 3"),
        ({"sample": -0.1}, "sources.0.sample"),
        ({"unit_bytes": 0}, "sources.0.unit_bytes"),
    ],
)
def test_sources_at_fault_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        validate(Recipe, {**LEAST, "sources": [{**SOURCE, **change}]}, "r.yaml")
    assert "\n" not in str(caught.value)


def test_a_path_of_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such user"):
        load(tmp_path, {**LEAST, "vocabulary": {"text": "~nobody-of-that-name/t.model"}})


@pytest.mark.parametrize("data", [{"sources": 3}, {"sources": [3]}, {"vocabulary": 3}, {"sources": [{"path": [3]}]}])
def test_wrong_shapes_reach_the_check(tmp_path: Path, data: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml: "):
        load(tmp_path, data)
