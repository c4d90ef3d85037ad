"""Packed equals unpacked, in loss and gradients: from examples through planner, shard, loader and step (design §4).

The reference knows no packing: each example stands alone in a row of its own, under an attention that is causal and
nothing else, and the loss is §4's formula over the flags that the example was made with.
"""

from collections.abc import Iterator
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array
from jax.sharding import Mesh, NamedSharding
from worldloom.packing.binpack import plan
from worldloom.packing.dataset import Dataset
from worldloom.packing.example import Draft
from worldloom.packing.manifest import write_index, write_manifest
from worldloom.packing.report import REJECTS, SHARDS, UNITS, UnitWriter, read_report
from worldloom.packing.row import Row, example_row, sequence_row
from worldloom.packing.shard import EXAMPLES, Batch, Kind, record_batch, schema
from worldloom.packing.storage import Folder
from worldloom.packing.thin import Thinning
from worldloom.packing.weights import Rule
from worldloom.pipelines.pack import PieceList
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training.attention import attention
from worldloom.training.config import Memory, Model
from worldloom.training.config import Mesh as Sizes
from worldloom.training.loader import Loader
from worldloom.training.mesh import PARTS, make_mesh, state_shardings
from worldloom.training.mixture import Mixture
from worldloom.training.model import Params, apply, shapes
from worldloom.training.ring.ring import make_ring
from worldloom.training.ring.xla import Xla
from worldloom.training.step import Parts, cut, loss_and_gradients

LENGTH, ROWS = 24, 8  # of every step, so that each program is compiled once; a smaller data set comes round again
WHOLE, WINDOWS = 11, 3  # most examples that fit a row, and most windows of the one text that does not
ALONE = ROWS * (WHOLE + 1)  # rows of the reference, enough for any step
MODEL = Model(preset="debug", width=16, layers=2, heads=4, kv_heads=2, ffn=24)
VOCABULARIES = {
    "text": Vocabulary(20, 1, 2, "text"),
    "text and vision": Vocabulary(20, 1, 2, "text", codes=6, vision_digest="vision"),
}


class Toy(NamedTuple):
    """An example before anything has seen it: ids `[n]`, and which of them to train, maybe even the first."""

    tokens: np.ndarray
    trained: np.ndarray


class Split(NamedTuple):
    """How a step is cut: over hosts, by rows and by columns, and every host's rows into parts.

    Where there is more than one host, each is a device of a mesh, and those of one row make a ring.
    """

    rows: int
    columns: int
    accumulation: int


# Every split is a program that takes seconds to compile. It knows of a rule only whether that counts examples: `lwm`
# and `example` differ in nothing but their weights.
SPLITS = {
    "text": {True: [Split(1, 1, 4)], False: [Split(1, 1, 1)]},
    "text and vision": {True: [Split(1, 1, 4), Split(2, 2, 1), Split(4, 1, 2)], False: [Split(2, 2, 2)]},
}


@st.composite
def toys(draw: st.DrawFn, vocabulary: Vocabulary) -> list[Toy]:
    """Draw examples of unequal lengths, some with nothing to train, and at times a text longer than a row."""
    shares = st.sampled_from([0.0, 0.3, 0.8, 1.0])
    shapes = draw(st.lists(st.tuples(st.integers(1, LENGTH), shares, st.booleans()), min_size=1, max_size=WHOLE))
    if draw(st.booleans()):
        shapes.append((draw(st.integers(LENGTH + 1, WINDOWS * LENGTH)), draw(shares), False))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return [
        Toy(rng.integers(0, vocabulary.size if pictures else vocabulary.text_size, length), rng.random(length) < share)
        for length, share, pictures in shapes
    ]


# ---- the reference ----------------------------------------------------------------------------------------------


def alone(examples: list[Toy]) -> dict[tuple[str, int], Toy]:
    """Cut what is longer than a row into windows, by record and start; a single token left over is dropped."""
    return {
        (str(number), low): Toy(toy.tokens[low : low + LENGTH], toy.trained[low : low + LENGTH])
        for number, toy in enumerate(examples)
        for low in range(0, len(toy.tokens), LENGTH)
        if low == 0 or len(toy.tokens) - low > 1
    }


def padded(examples: list[Toy]) -> Toy:
    """Give every example a row of its own, `[ALONE, LENGTH]`."""
    tokens, trained = np.zeros((ALONE, LENGTH), np.int32), np.zeros((ALONE, LENGTH), bool)
    for r, toy in enumerate(examples):
        tokens[r, : len(toy.tokens)], trained[r, : len(toy.tokens)] = toy
    return Toy(tokens, trained)


def placed(q: Array, positions: Array) -> Array:
    """Make attention sharper further on: RoPE sees distances alone, and would forgive positions that do not restart."""
    return q * (1 + positions[..., None, None] / LENGTH)


def causal(q: Array, k: Array, v: Array, positions: Array, segments: Array) -> Array:
    """Attend to everything before, whatever segments say."""
    q = placed(q, positions)
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[3])
    shares = jax.nn.softmax(jnp.where(np.tri(q.shape[1], dtype=bool), scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhd->bqhd", shares, v)


def reference(params: Params, tokens: Array, trained: Array, examples: int, rule: int, vocabulary: Vocabulary) -> Array:
    """Compute the loss of rows of one example each, `[ALONE, LENGTH]`, of which the first `examples` are real.

    `rule` counts in the order of `Rule`.
    """
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    hidden = apply(params, tokens, positions, jnp.ones_like(tokens), MODEL, causal)[:, :-1]
    targets, trained = tokens[:, 1:], trained[:, 1:]
    vision = targets >= vocabulary.text_size
    found = [summed_ce(hidden @ params["text"]["head"], targets, trained & ~vision)]
    if vocabulary.codes:
        codes = targets - vocabulary.text_size
        found.append(summed_ce(hidden @ params["vision"]["head"], codes, trained & vision))
    ce, n = map(jnp.array, zip(*found, strict=True))  # [modalities, ALONE]
    by_rule = {
        Rule.LWM: (mean(ce, n) * (1 / 2 if vocabulary.codes else 1)).sum() / examples,
        Rule.EXAMPLE: mean(ce.sum(0), n.sum(0)).sum() / examples,
        Rule.TOKEN: mean(ce.sum(), n.sum()),
    }
    return jnp.array([by_rule[rule] for rule in Rule])[rule]


def summed_ce(logits: Array, targets: Array, own: Array) -> tuple[Array, Array]:
    """Sum each row's cross-entropy over its own targets, and count them."""
    ce = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(own, targets, 0)[..., None], axis=2)[..., 0]
    return jnp.where(own, ce, 0).sum(1), own.sum(1)


def mean(total: Array, count: Array) -> Array:
    return total / jnp.maximum(count, 1)


# ---- the chain --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def without_lint() -> Iterator[None]:
    """Let rows be written that no job writes: the weights must be right for examples without a trained token too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worldloom.packing.report.broken_rules", lambda *_: [])
        yield


def pack(examples: list[Toy], vocabulary: Vocabulary) -> list[Row]:
    """Turn examples into sequences as the pack job does."""
    made = []
    for number, toy in enumerate(examples):
        draft = Draft(vocabulary)
        for token, trained in zip(*toy, strict=True):
            draft.add([token], bool(trained))
        made.append(example_row(draft.example("text", "toy", str(number)), vocabulary, b"", np.empty(0, np.uint64)))
    found = PieceList()
    batch = Batch(record_batch(made, [0] * len(made), schema(vocabulary, EXAMPLES)))
    found.add(batch, np.arange(len(made)), LENGTH, [Thinning(1, 1, len(row.tokens)) for row in made])
    pieces = found.close()
    packed = plan(pieces.high - pieces.low, LENGTH)
    bins = [packed.order[low:high] for low, high in pairwise(packed.offsets)]
    return [sequence_row(map(pieces.example, chosen), LENGTH, vocabulary) for chosen in bins]


def write(folder: Folder, rows: list[Row], vocabulary: Vocabulary) -> Dataset:
    """Write a complete data set of one shard."""
    folder.make(UNITS, SHARDS, REJECTS)
    with UnitWriter(folder, "toy", vocabulary, Kind("sequences", LENGTH)) as writer:
        for row in rows:
            writer.add(row)
            writer.ledger.tokens_read += sum(s.length for s in row.segments)
        writer.commit("toy", key="k")
    report = read_report(folder, "toy")
    assert report
    about = {"kind": "sequences", "length": LENGTH, "weights": "example", "fingerprint": vocabulary.fingerprint}
    write_manifest(folder, write_index(folder, [report]), {**about, "vocabulary": vars(vocabulary)})
    return Dataset(folder.url)


def load(loader: Loader, t: int, split: Split) -> tuple[Parts, int]:
    """Let every host load and cut its own share of step `t`, then join the shares as a mesh of hosts would see them."""
    step = loader.plan(t)
    shuffled = np.random.default_rng(t).permutation(LENGTH) if split.columns > 1 else None
    hosts = [
        [loader.load(step, rows, columns, shuffled) for columns in shares(LENGTH, split.columns)]
        for rows in shares(ROWS, split.rows)
    ]
    cuts = [[cut(batch, split.accumulation) for batch in line] for line in hosts]
    parts = {name: np.block([[part[name] for part in line] for line in cuts]) for name in cuts[0][0]}
    (examples,) = {batch.examples for line in hosts for batch in line}
    return parts, examples


@cache
def mesh_of(split: Split) -> Mesh | None:
    if split.rows * split.columns == 1:
        return None
    return make_mesh(Sizes(fsdp=split.rows, sp=split.columns), jax.devices("cpu")[: split.rows * split.columns])


RING = make_ring(block=Xla(3), gather_below=0)


def attend(q: Array, k: Array, v: Array, positions: Array, segments: Array) -> Array:
    return attention(placed(q, positions), k, v, positions, segments)


def attend_in_a_ring(q: Array, k: Array, v: Array, positions: Array, segments: Array) -> Array:
    return RING(placed(q, positions), k, v, positions, segments)


def packed(params: Params, loader: Loader, t: int, split: Split, rule: Rule) -> tuple[Array, Params]:
    """Compute a step's loss and gradients as training does, with remat and chunks on a mesh."""
    rule = Rule.EXAMPLE if rule.by_examples else rule
    parts, examples = load(loader, t, split)
    if (mesh := mesh_of(split)) is None:
        return packed_step(params, parts, examples, MODEL, rule, attend)
    placed_params = jax.device_put(params, state_shardings(params, mesh))
    placed_parts = jax.device_put(parts, NamedSharding(mesh, PARTS))
    memory = Memory(remat="attention", ffn_chunk=4, loss_chunk=5)
    return packed_step(placed_params, placed_parts, examples, MODEL, rule, attend_in_a_ring, memory, mesh)


def shares(size: int, hosts: int) -> list[slice]:
    each = size // hosts
    return [slice(host * each, (host + 1) * each) for host in range(hosts)]


# ---- the property -----------------------------------------------------------------------------------------------

CHEAPLY = {"xla_cpu_use_fusion_emitters": False}  # these take XLA twice the time
packed_step = jax.jit(
    loss_and_gradients, static_argnames=("model", "rule", "attend", "memory", "mesh"), compiler_options=CHEAPLY
)
unpacked_step = jax.jit(jax.value_and_grad(reference), static_argnames="vocabulary", compiler_options=CHEAPLY)


@cache
def parameters(vocabulary: Vocabulary) -> Params:
    """Draw parameters large enough that logits and attention are far from even."""
    rng = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(shapes(MODEL, vocabulary), is_leaf=lambda x: isinstance(x, tuple))
    return jax.tree.unflatten(tree, [rng.normal(0, 0.4, leaf).astype(np.float32) for leaf in leaves])


@pytest.mark.parametrize("ids", VOCABULARIES)
@pytest.mark.parametrize("rule", Rule)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data(), t=st.integers(0, 3))
def test_packed_equals_unpacked(ids: str, rule: Rule, data: st.DataObject, t: int) -> None:
    """For every rule, example and split, loss and each gradient agree to 1e-5 of the largest in its array."""
    vocabulary = VOCABULARIES[ids]
    params = parameters(vocabulary)
    examples = data.draw(toys(vocabulary))
    with TemporaryDirectory() as folder:
        dataset = write(Folder(folder), pack(examples, vocabulary), vocabulary)
        names = [[(s.record, s.start) for s in row.segments] for row in dataset]
        by_name = alone(examples)
        assert sorted(chain.from_iterable(names)) == sorted(by_name)
        loader = Loader(dataset, ROWS, seed=0, weights=rule)
        taken = [by_name[name] for row in loader.plan(t).rows for name in names[row]]
        want = unpacked_step(params, *padded(taken), len(taken), list(Rule).index(rule), vocabulary)
        for split in SPLITS[ids][rule.by_examples]:
            got = packed(params, loader, t, split, rule)
            jax.tree.map_with_path(lambda path, x, y, split=split: check(f"{split} {path}", x, y), got, want)


KINDS = ["text", "vision", "both"]


def of_kind(kind: str, rng: np.random.Generator, length: int, vocabulary: Vocabulary) -> Toy:
    """Draw an example that trains text alone, picture codes alone after a BOS and a caption, or both in turn."""
    text = rng.integers(3, vocabulary.text_size, length)
    vision = rng.integers(vocabulary.text_size, vocabulary.size, length)
    places = np.arange(length)
    if kind == "text":
        return Toy(text, places > 1)
    if kind == "vision":
        return Toy(np.where(places < 2, text, vision), places > 1)
    return Toy(np.where(places % 3, vision, text), (places > 0) & (places % 4 != 2))


def modalities(toy: Toy, vocabulary: Vocabulary) -> frozenset[str]:
    return frozenset("vision" if t >= vocabulary.text_size else "text" for t in toy.tokens[1:][toy.trained[1:]])


@pytest.mark.parametrize("sets", [[KINDS], [[kind] for kind in KINDS]], ids=["one data set", "a mixture of three"])
def test_lwm_on_a_batch_of_text_of_vision_and_of_both(sets: list[list[str]], tmp_path: Path) -> None:
    """An example that trains one modality adds nothing for the other and counts in S all the same."""
    vocabulary, rng = VOCABULARIES["text and vision"], np.random.default_rng(7)
    drawn = [[of_kind(kind, rng, n, vocabulary) for n in (4, 5, 7, 9, 11) for kind in kinds] for kinds in sets]
    made = [
        write(Folder(f"{tmp_path}/{i}"), pack(examples, vocabulary), vocabulary) for i, examples in enumerate(drawn)
    ]
    loader = Loader(Mixture(dict.fromkeys(made, 1)), ROWS, seed=0, weights=Rule.LWM)
    plan = loader.plan(2)
    rows = [(drawn[i], made[i].row(row)) for i, row in zip(plan.sets.tolist(), plan.rows.tolist(), strict=True)]
    by_row = [[examples[int(s.record)] for s in row.segments] for examples, row in rows]
    kinds = [{modalities(toy, vocabulary) for toy in row} for row in by_row]
    assert set().union(*kinds) == {frozenset(["text"]), frozenset(["vision"]), frozenset(["text", "vision"])}
    assert max(map(len, kinds)) == (1 if len(sets) > 1 else 3)
    params, taken = parameters(vocabulary), [*chain.from_iterable(by_row)]
    want = unpacked_step(params, *padded(taken), len(taken), list(Rule).index(Rule.LWM), vocabulary)
    for split in SPLITS["text and vision"][True]:
        got = packed(params, loader, 2, split, Rule.LWM)
        jax.tree.map_with_path(lambda path, x, y, split=split: check(f"{split} {path}", x, y), got, want)


def check(name: str, got: Array, want: Array) -> None:
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), name
