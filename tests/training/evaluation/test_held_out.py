"""Held-out loss by task, against sums over single tokens, and against the training loss."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from worldloom.packing.row import row_examples
from worldloom.packing.weights import Rule
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training import model as models
from worldloom.training.attention import attention
from worldloom.training.config import Mesh, Model
from worldloom.training.evaluation.held_out import batches, make_nll, measure
from worldloom.training.mesh import make_mesh, specs
from worldloom.training.ring.ring import make_ring
from worldloom.training.ring.xla import Xla

VISION = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test", codes=64, vision_digest="codes")
SIZES = Model.model_validate({"preset": "debug", "width": 16, "layers": 1, "heads": 2, "kv_heads": 2, "ffn": 16})
TASKS = ("image", "chat", "text")


@pytest.fixture
def dataset(toy_dataset, monkeypatch):
    """A packed set of pictures and text, whose segments are of three tasks."""
    from worldloom.packing.shard import Batch

    made = toy_dataset(rows=7, length=48, vocabulary=VISION)
    whole = Batch.row

    def row(self, i):
        found = whole(self, i)
        named = [s._replace(task=TASKS[s.length % 3]) for s in found.segments]
        return replace(found, segments=tuple(named))

    monkeypatch.setattr(Batch, "row", row)
    return made


def made_up(targets, positions):
    return (targets * 7 + positions * 3) % 11 / 4 + 0.25


def by_hand(dataset, rule, limit):
    """Add up every trained token, one after the other."""
    found: dict = {}
    for number in range(limit):
        for example in row_examples(dataset.row(number)):
            trained = [t for t in range(len(example.tokens)) if example.trained[t]]
            kinds = ["vision" if example.tokens[t] >= 300 else "text" for t in trained]
            for task in (example.task, "all"):
                told = found.setdefault(task, {"examples": 0, "loss": 0.0, "weights": 0.0, "text": [], "vision": []})
                told["examples"] += 1
                for t, kind in zip(trained, kinds, strict=True):
                    nll = made_up(int(example.tokens[t]), t - 1)
                    weight = {"token": 1, "example": 1 / len(trained), "lwm": 0.5 / kinds.count(kind)}[rule]
                    told[kind].append(nll)
                    told["loss"] += weight * nll
                    told["weights"] += weight
    return found


@pytest.mark.parametrize("rule", ["lwm", "example", "token"])
@pytest.mark.parametrize(("rows", "limit"), [(1, None), (3, None), (2, 5), (16, None)])
def test_sums_are_those_of_single_tokens(dataset, rule, rows, limit):
    found = measure(dataset, lambda b: made_up(b.targets, b.positions), Rule(rule), rows, limit)
    expected = by_hand(dataset, rule, limit or dataset.rows)
    assert [told["task"] for told in found] == [*sorted(set(expected) - {"all"}), "all"] and len(found) > 2
    for told in found:
        wanted = expected[told["task"]]
        assert told["examples"] == wanted["examples"]
        divisor = wanted["weights"] if rule == "token" else wanted["examples"]
        np.testing.assert_allclose(told["loss"], wanted["loss"] / divisor, rtol=1e-6)
        for name, part in [("text", told["text"]), ("vision", told["vision"]), ("", told)]:
            nll = wanted[name] if name else wanted["text"] + wanted["vision"]
            assert part["tokens"] == len(nll)
            np.testing.assert_allclose([part["nll"], part["perplexity"]], [np.mean(nll), np.exp(np.mean(nll))])


@jax.jit
def hidden_of(params, tokens, segments):
    return models.apply(params, tokens, np.arange(48, dtype=np.int32)[None], segments, SIZES)[0]


def softmax_nll(params, tokens):
    """Score one example alone, padded, by the head of each target."""
    ids, segments = np.zeros((2, 1, 48), np.int32)
    ids[0, : len(tokens)], segments[0, : len(tokens)] = tokens, 1
    hidden, nll = np.asarray(hidden_of(params, ids, segments), np.float64), []
    for t, target in enumerate(tokens[1:].tolist()):
        name, low = ("vision", 300) if target >= 300 else ("text", 0)
        logits = hidden[t] @ np.asarray(params[name]["head"], np.float64)
        nll.append(np.log(np.exp(logits).sum()) - logits[target - low])
    return nll


@pytest.mark.parametrize("sizes", [{}, {"dp": 2, "tp": 2}, {"fsdp": 2, "sp": 2}], ids=str)
def test_the_nll_of_packed_tokens_is_that_of_an_example_alone(dataset, sizes):
    params = jax.tree.map(lambda x: 8 * x, models.init(jax.random.key(0), SIZES, VISION))
    mesh = make_mesh(Mesh(**sizes)) if sizes else None
    if mesh:
        params = jax.device_put(params, jax.tree.map(lambda s: jax.sharding.NamedSharding(mesh, s), specs(params)))
    attend = make_ring(block=Xla(8)) if "sp" in sizes else attention
    nll, whole = make_nll(params, SIZES, attend, mesh), jax.device_get(params)
    ((batch, _), *_) = batches(dataset, Rule.TOKEN, 4)
    found = nll(batch)
    assert found.dtype == np.float32
    for number, own in enumerate(found[:2]):
        low = 0
        for example in row_examples(dataset.row(number)):
            length = len(example.tokens)
            expected = np.where(example.trained[1:], softmax_nll(whole, example.tokens), 0)
            np.testing.assert_allclose(own[low : low + length - 1], expected, rtol=2e-5, atol=1e-6)
            assert own[low + length - 1] == 0
            low += length
        assert not own[low:].any()
