"""Generation against a model that reads everything anew for every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from worldloom.errors import UserError
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training import config
from worldloom.training.config import Model
from worldloom.training.generation import generate, loop
from worldloom.training.generation.cache import bytes_per_device
from worldloom.training.generation.generate import Generator, place, place_leaf
from worldloom.training.generation.sample import Sampling
from worldloom.training.mesh import make_mesh
from worldloom.training.model import apply, heads, init

V = Vocabulary(40, 1, 2, "text", 12, "vision")
MODEL = Model(preset="debug", width=16, layers=2, heads=4, kv_heads=2, ffn=24)
PARAMS = jax.tree.map(lambda x: 9 * x if x.std() else x, init(jax.random.key(10), MODEL, V))  # one of them ends early
SEEN = 128  # tokens that the reference reads, whatever the length
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, 40, n).tolist() for n in (5, 17, 30)]
BLANK = [1, 7, 8]


def mesh_of(**sizes):
    return make_mesh(config.Mesh(**{"fsdp": 1, **sizes}), jax.devices()[: int(np.prod(list(sizes.values()) or 1))])


def generator(rows=16, **sizes):
    mesh = mesh_of(**sizes)
    return Generator(place(PARAMS, MODEL, mesh), MODEL, V, mesh, rows)


@jax.jit
def _hidden(tokens, segments):
    return apply(PARAMS, tokens, jnp.arange(SEEN)[None], segments, MODEL)


def hidden(ids):
    """Read one row from its start: the last hidden state."""
    row = np.zeros((2, 1, SEEN), np.int32)
    row[:, 0, : len(ids)] = ids, np.ones(len(ids))
    return np.asarray(_hidden(*row))[0, len(ids) - 1]


def logits(ids, pictures=False):
    return hidden(ids) @ np.asarray(heads(PARAMS)[pictures])[:, : 12 if pictures else 40]


def written(ids, new):
    """Take the most probable text id, again and again, until EOS."""
    ids, start = list(ids), len(ids)
    while len(ids) < start + new and (len(ids) == start or ids[-1] != V.eos):
        ids.append(int(logits(ids).argmax()))
    return ids[start:]


@pytest.mark.parametrize("ring", [1, 2, 4])
def test_cached_decoding_equals_reading_all_anew(ring, monkeypatch):
    for name, size in (("CHUNK", 4), ("LEAST", 4), ("SLOTS", 64)):  # many chunks; a ring of 1 has to grow its cache
        monkeypatch.setattr(generate, name, size)
    gen = generator(sp=ring)
    state = gen.begin(3, 1)
    rows, said = [list(prompt) for prompt in PROMPTS], []
    for prompts in (PROMPTS, [[4] * 9, [], [5, 6]]):  # of the second turn, one row hears nothing
        heard = [bool(prompt) for prompt in prompts]
        if prompts is not PROMPTS:
            rows = [row + prompt for row, prompt in zip(rows, prompts, strict=True)]
        state = gen.hear(state, prompts)
        compare(state, rows, heard)
        state, replies = gen.speak(state, 12, prompts=[n if heard[n] else -1 for n in range(3)])
        want = [written(row, 12) if heard[n] else [] for n, row in enumerate(rows)]
        assert replies == [[t for t in row if t != V.eos] for row in want]
        rows = [row + more for row, more in zip(rows, want, strict=True)]
        said += want
        compare(state, rows, [len(more) == 12 for more in want])
    assert any(row and row[-1] == V.eos for row in said) and any(len(row) == 12 for row in said)
    assert state.cache.lengths.tolist() == [len(row) for row in rows]


def compare(state, rows, those):
    """Compare the next token's logits of some rows."""
    for n, row in enumerate(rows):
        if those[n]:
            want = hidden(row)
            np.testing.assert_allclose(state.hidden[n], want, atol=1e-5 * np.abs(want).max())


def drawn(prompt, frames, codes, first, later):
    """Draw the most probable codes under guidance, and read the endings that no one drew."""
    told, blank, pictures = list(prompt), list(BLANK), []
    for frame in range(frames):
        scale, picture = (first, later)[frame > 0], []
        for _ in range(codes):
            c, u = logits(told, True), logits(blank, True)
            picture.append(int((u + scale * (c - u)).argmax()))
            told, blank = ([*ids, V.text_size + picture[-1]] for ids in (told, blank))
        ending = V.eov if frame + 1 == frames else V.eof
        told, blank = [*told, ending], [*blank, ending]
        pictures.append(picture)
    return pictures


def test_frames_are_guided_and_ended_by_force():
    gen, how = generator(dp=2, tp=2), Sampling(guidance=3.0)
    got = gen.draw(PROMPTS[:2], BLANK, 3, 4, how, Sampling())
    assert [film.tolist() for film in got] == [drawn(prompt, 3, 4, 3.0, 1.0) for prompt in PROMPTS[:2]]
    assert drawn(PROMPTS[0], 1, 4, 3.0, 1.0) != drawn(PROMPTS[0], 1, 4, 1.0, 1.0)  # guidance shows
    # What was read since then: each frame's codes, which are those of `draw`, and its ending.
    state = gen.hear(gen.begin(4, 48), [PROMPTS[0], BLANK, PROMPTS[1], BLANK])
    state, _ = gen.paint(state, 1, 4, False, how, prompts=range(2))
    rows = [[*prompt, *(film[0] + V.text_size), V.eof] for prompt, film in zip(PROMPTS[:2], got, strict=True)]
    compare(state._replace(hidden=state.hidden[::2]), rows, [True, True])
    state, _ = gen.paint(loop.every_other(state), 2, 4, True, Sampling(), prompts=range(2))
    ends = [[*(film[1] + V.text_size), V.eof, *(film[2] + V.text_size), V.eov] for film in got]
    compare(state, [row + end for row, end in zip(rows, ends, strict=True)], [True, True])


def test_a_sample_depends_on_its_seed_and_number_alone():
    how, prompts = Sampling(temperature=1.0, top_k=9), [PROMPTS[0], PROMPTS[1][:9], PROMPTS[2][:16], PROMPTS[0]]
    gen = generator(rows=4)
    together = gen.reply(prompts, 8, how, seed=3)
    assert generator(rows=2).reply(prompts, 8, how, seed=3) == together
    assert together[0] != together[3]
    assert gen.reply(prompts, 8, how, seed=4) != together


def test_nothing_makes_nothing():
    assert generator().reply([], 4) == []


@pytest.mark.parametrize("sizes", [{}, {"sp": 2}, {"tp": 2, "sp": 2}, {"dp": 2, "fsdp": 2}, {"sp": 4}])
def test_the_caches_size_is_known_before(sizes):
    gen = generator(**sizes)
    cache = gen.begin(4, 512).cache
    parts = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(cache)]
    assert bytes_per_device(MODEL, 4, 512, gen.mesh) == sum(parts)


def test_a_million_tokens_of_7b_on_32_devices():
    mesh = AbstractMesh((1, 1, 1, 32), ("dp", "fsdp", "tp", "sp"))
    model = Model.model_validate({"preset": "7b", "dtype": "bfloat16"})
    each = 2 * 32 * 4096 * 2 + 8  # keys and values of 32 layers in two bytes a number, and where it stands
    assert bytes_per_device(model, 1, 2**20, mesh) == 2**15 * each + 8  # 17.2 GB


def test_a_mesh_must_divide_the_model():
    with pytest.raises(UserError, match=r"sp 3 does not divide layers/q"):
        mesh = make_mesh(config.Mesh(fsdp=1, sp=3), jax.devices()[:3])
        place_leaf(["layers", "q"], PARAMS["layers"]["q"], MODEL, mesh)


def test_a_row_may_not_outgrow_the_positions(monkeypatch):
    monkeypatch.setattr(generate, "MAX_POSITIONS", 20)
    with pytest.raises(UserError, match="counts 20"):
        generator().reply([[3] * 18], 8)
