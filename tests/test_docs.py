"""What is written down is true: the recipe's schema, the shipped recipes, and the README's Python."""

import json
import re
from pathlib import Path

import pytest
import yaml
from worldloom.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_the_schema_in_docs_is_the_recipe_s():
    """Made by: python -m worldloom.recipe > docs/recipe.schema.json."""
    assert json.loads((ROOT / "docs" / "recipe.schema.json").read_text()) == Recipe.model_json_schema()


@pytest.mark.parametrize("path", [p for p in RECIPES if "train" not in p.name], ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path):
    recipe = load_recipe(path)
    assert recipe.description and recipe.pack


BANDS = {  # LWM's stages: sequence length and document length in tokens (paper, data figure and Table 11)
    "32k": (2**15, 10_000, 100_000),
    "128k": (2**17, 100_000, 200_000),
    "256k": (2**18, 200_000, 500_000),
    "512k": (2**19, 500_000, 1_000_000),
    "1m": (2**20, 1_000_000, None),
}


@pytest.mark.parametrize("stage", BANDS)
def test_text_stages_have_the_paper_s_numbers(stage):
    recipe = load_recipe(ROOT / "recipes" / "lwm" / f"text-{stage}.yaml")
    filters = recipe.sources[0].filters
    assert (recipe.pack[0].length, filters.min_tokens, filters.max_tokens) == BANDS[stage]


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_the_readme_s_python_runs(toy_dataset, tmp_path, monkeypatch):
    """Each snippet is at most five lines and runs as it stands, in a folder that holds the data set it names."""
    toy_dataset(rows=40, url=str(tmp_path / "packed-4096"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert len(snippets()) >= 2
    for snippet in snippets():
        assert snippet.count("\n") <= 5
        exec(compile(snippet, "README.md", "exec"), {})


def test_the_design_s_recipe_in_the_readme_is_valid(tmp_path):
    found = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert found
    for number, text in enumerate(found):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert yaml.safe_load(text) and load_recipe(path)
