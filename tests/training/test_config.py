"""Configs: what is filled in, and what every fault is told in."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from worldloom.errors import UserError
from worldloom.packing.weights import Rule
from worldloom.training.config import PRESETS, Model, load, parse
from worldloom.training.mixture import By

REST = {"out": "run", "steps": 100, "rows": 4}
LEAST = {"data": {"path": "packed"}, **REST}


def test_the_least_config_has_every_default():
    config = parse(LEAST)
    assert (config.model, config.accumulation, config.seed) == (Model.model_validate("tiny"), 1, 0)
    assert config.data.weights is None and config.evaluation is None
    assert (config.optimizer.betas, config.optimizer.clip, config.optimizer.weight_decay) == ((0.9, 0.95), 1.0, 0.1)


def test_a_preset_by_name_or_with_numbers_replaced():
    assert parse(LEAST | {"model": "debug"}).model.width == PRESETS["debug"]["width"]
    model = parse(LEAST | {"model": {"preset": "debug", "layers": 7, "theta": 5e7}}).model
    assert (model.layers, model.theta, model.width) == (7, 5e7, PRESETS["debug"]["width"])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset):
    assert Model.model_validate(preset).preset == preset


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rowz": 4}, ["unknown key rowz", "rows", "accumulation"]),
        ({"optimizer": {"learning_rate": 1}}, ["unknown key optimizer.learning_rate", "min_lr", "warmup"]),
        ({"evaluation": {"path": "x", "often": 1}}, ["unknown key evaluation.often", "every", "batches"]),
        ({"steps": None}, ["steps", "integer", "None"]),
        ({"steps": 0}, ["steps", "greater than or equal to 1", "found 0"]),
        ({"rows": "many"}, ["rows", "integer", "'many'"]),
        ({"data": {}}, ["data.path is missing"]),
        ({"data": {"path": "x", "weights": "lmw"}}, ["data.weights", "'lwm', 'example' or 'token'", "'lmw'"]),
        ({"model": "huge"}, ["model: found", "'debug', 'tiny', 'small'", "'65b'", "'huge'"]),
        ({"model": {"width": 50}}, ["model", "width 50", "heads"]),
        ({"model": {"heads": 6, "kv_heads": 4}}, ["model", "kv_heads 4 must divide", "6"]),
        ({"model": {"dtype": "float16"}}, ["model.dtype", "'float32' or 'bfloat16'", "'float16'"]),
        ({"optimizer": {"min_lr": 1}}, ["optimizer", "min_lr 1.0", "lr"]),
        ({"optimizer": {"betas": [0.9]}}, ["optimizer.betas", "missing"]),
        ({"optimizer": {"lr": float("inf")}}, ["optimizer.lr", "finite number", "inf"]),
        ({"optimizer": {"betas": [0.9, 1.0]}}, ["optimizer.betas", "less than 1", "1.0"]),
        ({"mesh": {"sp": -1, "tp": -1}}, ["mesh", "tp and sp are both -1", "give all but one a size"]),
        ({"mesh": {"sp": 0}}, ["mesh.sp", "1 or more, or -1"]),
        ({"optimizer": {"schedule": "linear"}}, ["optimizer.schedule", "'cosine' or 'constant'", "'linear'"]),
        ({"accumulation": 3}, ["accumulation 3 must divide rows, which is 4"]),
        ({"optimizer": {"warmup": 100}}, ["optimizer.warmup 100 must be below steps, which is 100"]),
        ({"out": "gs://bucket/run"}, ["out", "local directory"]),
    ],
)
def test_faults_name_the_key_what_was_found_and_what_is_allowed(change, words):
    with pytest.raises(UserError) as caught:
        parse(LEAST | change)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text and "pydantic" not in text


def mix(*members: tuple[str, object]) -> dict[str, object]:
    return {"mixture": [{"data": data, "share": share} for data, share in members]}


def test_a_mixture_is_read_in_exact_shares():
    source = parse(REST | mix(("chat", 0.7), ("books", "3/10"))).source
    assert source.shares == {"chat": Fraction(7, 10), "books": Fraction(3, 10)}
    assert (source.by, source.weights, source.vocabulary) == (By.SEQUENCES, None, None)


def test_a_mixture_with_all_its_keys():
    mixture = {"sets": mix(("a", 7), ("b", 3))["mixture"], "by": "tokens", "weights": "lwm", "vocabulary": "f00"}
    source = parse(REST | {"mixture": mixture}).source
    assert (source.by, source.weights, source.vocabulary) == (By.TOKENS, Rule.LWM, "f00")


def test_a_data_set_is_a_mixture_of_one():
    source = parse(REST | {"data": {"path": "a", "weights": "token", "vocabulary": "f00"}}).source
    assert (source.shares, source.weights, source.vocabulary) == ({"a": 1}, Rule.TOKEN, "f00")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ["data is missing", "mixture: [{data: …, share: …}, …]"]),
        ({"data": None}, ["data is missing"]),
        (LEAST | mix(("a", 1)), ["both data and mixture are given", "leave one out"]),
        (mix(("a", 0.7), ("b", 0.2)), ["mixture", "7/10 + 1/5 = 9/10", "add up to 1"]),
        (mix(("a", 0), ("b", 1)), ["mixture.0.share", "a share of 0", "above 0"]),
        (mix(("a", 1), ("b", "much")), ["mixture.1.share", "'much'", "7/10"]),
        (mix(("a", 1), ("b", 1), ("a", 2)), ["mixture: a is named twice", "sum of its shares"]),
        ({"mixture": []}, ["mixture", "at least 1"]),
        ({"mixture": [{"data": "a"}]}, ["mixture.0.share is missing"]),
        ({"mixture": [{"data": "a", "share": 1, "rows": 2}]}, ["unknown key mixture.0.rows", "data, share"]),
        ({"mixture": {"sets": [{"data": "a", "share": 1}], "by": "rows"}}, ["mixture.by", "'sequences' or 'tokens'"]),
    ],
)
def test_faults_of_a_mixture_name_the_key_and_the_remedy(change, words):
    with pytest.raises(UserError) as caught:
        parse(REST | change)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text and "pydantic" not in text


def test_the_configs_in_the_docs_are_valid():
    text = (Path(__file__).resolve().parents[2] / "docs" / "mixtures.md").read_text()
    sources = [parse(yaml.safe_load(block)).source for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    assert [list(map(str, source.shares.values())) for source in sources] == [["7/10", "3/10"], ["42", "42", "16"]]


@pytest.mark.parametrize("whole", [False, True])
def test_load_takes_a_mixtures_paths_from_the_configs_folder(tmp_path: Path, whole):
    path, members = tmp_path / "run.yaml", mix(("chat", 7), ("gs://bucket/books", 3))["mixture"]
    path.write_text(yaml.safe_dump({"mixture": {"sets": members} if whole else members, **REST}))
    assert list(load(path).source.shares) == [str(tmp_path / "chat"), "gs://bucket/books"]
    if not whole:
        source = load(path, ["mixture.1.share=1/2", "mixture.1.data=here"]).source
        assert source.shares == {str(tmp_path / "chat"): 7, str(Path.cwd() / "here"): Fraction(1, 2)}


def test_load_takes_paths_from_the_configs_folder(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(LEAST | {"evaluation": {"path": "gs://bucket/held-out"}}))
    config = load(path)
    assert config.data.path == str(tmp_path / "packed")
    assert config.out == str(tmp_path / "run")
    assert config.evaluation and config.evaluation.path == "gs://bucket/held-out"


def test_load_reads_rates_as_people_write_them(tmp_path: Path):
    """YAML takes 1e-4, without a point, for text."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(LEAST | {"data": {"path": "x", "weights": "token"}}) + "optimizer: {lr: 1e-4}\n")
    assert load(path).optimizer.lr == 1e-4
    assert load(path).data.weights is Rule.TOKEN


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "run.yaml does not exist"),
        ("a: [1", "run.yaml is no readable YAML: .*line 1"),
        ("- a", "run.yaml holds list"),
        ("", "run.yaml holds NoneType"),
        ("steps: x", "run.yaml: .*data is missing"),
    ],
)
def test_load_says_what_is_wrong_with_a_file(tmp_path: Path, text, words):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
