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


@pytest.mark.parametrize(
    "path", [p for p in RECIPES if "sources" in yaml.safe_load(p.read_text())], ids=lambda p: p.stem
)
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


# LWM's figures: reference tables 1.1, 1.2 and 1.3 of the paper's stages (arXiv 2402.08268 v4, Tables 11 and 13).
TEXT_CHAT = {"128k": (2**17, 100_000), "256k": (2**18, 200_000), "512k": (2**19, 500_000), "1m": (2**20, 1_000_000)}
CHAT = {"32k": (2**15, 100), "128k": (2**17, 450), "1m": (2**20, 4000)}


@pytest.mark.parametrize("stage", TEXT_CHAT)
def test_text_chat_is_seven_to_three_and_packed_apart(stage):
    length, shortest = TEXT_CHAT[stage]
    recipe = load_recipe(ROOT / "recipes" / "lwm" / f"text-chat-{stage}.yaml")
    chats, books = recipe.sources
    assert (books.chunk, books.length, books.trained, books.filters.min_tokens) == (1000, length, 0.01, shortest)
    assert [(p.sources, p.share, p.length) for p in recipe.pack] == [
        ([chats.name], 0.7, length),
        ([books.name], 0.3, length),
    ]
    assert {str(p.weights) for p in recipe.pack} == {"lwm"}


@pytest.mark.parametrize("stage", CHAT)
def test_chat_is_four_tasks_in_equal_shares(stage):
    length, frames = CHAT[stage]
    recipe = load_recipe(ROOT / "recipes" / "lwm" / f"chat-{stage}.yaml")
    asked = [s for s in recipe.sources if s.kind == "chat" and s.name != "sharegpt4v"]
    assert {(s.frames, s.sampling) for s in asked} == {(frames, "uniform")} and len(asked) == 2
    assert {s.render.form for s in recipe.sources if s.kind in ("image-text", "video-text")} == {"chat"}
    assert [(p.share, p.length, str(p.weights)) for p in recipe.pack] == [(0.25, length, "lwm")] * 4
    assert recipe.pack[3].frames == "fit" and sorted(recipe.pack[3].sources) == ["valley", "videochatgpt"]


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
