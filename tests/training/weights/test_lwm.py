"""LWM's streams: against bytes that flax writes, a forward pass of LWM's written out in NumPy, and hostile files."""

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.tokenizers.vocabulary import CODES, Vocabulary
from worldloom.training.config import Model
from worldloom.training.model import apply, heads, init
from worldloom.training.weights import lwm, stream
from worldloom.training.weights.leaves import put
from worldloom.training.weights.stream import Stream, write_stream

TEXT = Vocabulary(17, 1, 2, "text")
BOTH = Vocabulary(17, 1, 2, "text", CODES, "vision")
MODEL = Model(width=24, layers=3, heads=3, kv_heads=3, ffn=20, theta=5e4, eps=1e-6)
TOKENS = np.array([1, 5, 16, 17 + 3, 17 + 8191, 17 + 8192, 17 + 40, 17 + 8193, 9, 2], np.int32)  # both endings too


def lwms(seed=0, vision=True):
    """LWM's parameters as its module makes them, layers one by one, all rows filled."""
    rng, e, f = np.random.default_rng(seed), MODEL.width, MODEL.ffn

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32) * (0.3 if len(shape) > 1 else 0.1) + (len(shape) == 1)

    layers = {}
    for n in range(MODEL.layers):
        attention = {name: {"kernel": draw(e, e)} for name in ("wq", "wk", "wv", "wo")}
        feed = {"w1": {"kernel": draw(e, f)}, "w2": {"kernel": draw(f, e)}, "w3": {"kernel": draw(e, f)}}
        layers[str(n)] = {"attention": attention, "feed_forward": feed}
        layers[str(n)] |= {"attention_norm": {"kernel": draw(e)}, "ffn_norm": {"kernel": draw(e)}}
    top = {"wte": {"embedding": draw(17, e)}, "h": layers, "ln_f": {"kernel": draw(e)}}
    params = {"transformer": top, "lm_head": {"kernel": draw(e, 17)}}
    if vision:
        top["vte"] = {"embedding": draw(8448, e)}
        params["vision_head"] = {"kernel": draw(e, 8448)}
    return params


def flat(tree, path=()):
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: leaf for name, branch in tree.items() for key, leaf in flat(branch, (*path, name)).items()}


def in_one(params):
    """Stack the layers as `scan_layers` does."""
    layers = list(params["transformer"]["h"].values())
    stack = jax.tree.map(lambda *parts: np.stack(parts), *layers)
    return {**params, "transformer": {**params["transformer"], "h": {"scan_decoder": stack}}}


def tux(path, tensors):
    """Write a stream as tux does (checkpoint.py: save_train_state_to_file)."""
    serialization = pytest.importorskip("flax.serialization", reason="flax writes the stream that is read here")
    packer = msgpack.Packer()
    with path.open("wb") as file:
        for key, tensor in tensors.items():
            file.write(packer.pack((key, serialization.to_bytes(tensor))))


def forward(params, tokens):
    """LWM's logits over all ids of one sequence in float64, heads one by one, rotations of neighbours as complex."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    top, d, e = p["transformer"], MODEL.head_width, MODEL.width
    seen = tokens >= 17
    x = np.where(seen[:, None], top["vte"]["embedding"][np.where(seen, tokens - 17, 0)],
                 top["wte"]["embedding"][np.where(seen, 0, tokens)])  # fmt: skip

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + MODEL.eps) * scale

    def turned(x):  # [L, D]
        pairs = x[:, 0::2] + 1j * x[:, 1::2]
        frequencies = 1 / MODEL.theta ** (np.arange(0, d, 2) / d)
        pairs = pairs * np.exp(1j * np.arange(len(x))[:, None] * frequencies)
        return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

    for n in range(MODEL.layers):
        w = top["h"][str(n)]
        y, mixed = norm(x, w["attention_norm"]["kernel"]), []
        q, k, v = (y @ w["attention"][name]["kernel"] for name in ("wq", "wk", "wv"))
        for own in (slice(h * d, (h + 1) * d) for h in range(MODEL.heads)):
            scores = turned(q[:, own]) @ turned(k[:, own]).T / np.sqrt(d)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(shares / shares.sum(-1, keepdims=True) @ v[:, own])
        x = x + np.concatenate(mixed, -1) @ w["attention"]["wo"]["kernel"]
        y, feed = norm(x, w["ffn_norm"]["kernel"]), w["feed_forward"]
        gate = y @ feed["w1"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ feed["w3"]["kernel"])) @ feed["w2"]["kernel"]
    x = norm(x, top["ln_f"]["kernel"])
    assert x.shape == (len(tokens), e)
    return np.concatenate([x @ p["lm_head"]["kernel"], (x @ p["vision_head"]["kernel"])[:, : CODES + 2]], -1)


def read(path, vocabulary=BOTH, model=MODEL):
    params = {}
    for key, leaf in lwm.read(path, model, vocabulary):
        assert leaf.dtype == np.float32
        put(params, key, leaf)
    return params


def logits(params):
    places = np.arange(len(TOKENS), dtype=np.int32)[None]
    hidden = apply(params, TOKENS[None], places, np.ones_like(places), MODEL)[0]
    return np.concatenate([np.asarray(hidden @ jnp.asarray(head)) for head in heads(params)], axis=-1)


def same(a, b):
    flat = [jax.tree.flatten_with_path(tree)[0] for tree in (a, b)]
    assert [path for path, _ in flat[0]] == [path for path, _ in flat[1]]
    for (_, x), (_, y) in zip(*flat, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("form", [lambda params: params, in_one])
def test_a_stream_has_the_logits_of_lwm(tmp_path, form):
    params = lwms()
    tux(tmp_path / "streaming_params", flat(form(params)))
    want = forward(params, TOKENS)
    np.testing.assert_allclose(logits(read(tmp_path / "streaming_params")), want, atol=1e-5 * np.abs(want).max())


def test_without_the_permutation_the_logits_differ(tmp_path, monkeypatch):
    tux(tmp_path / "s", flat(in_one(lwms())))
    monkeypatch.setattr(lwm, "_ours", lambda leaf, array: array)
    want = forward(lwms(), TOKENS)
    assert np.abs(logits(read(tmp_path / "s")) - want).max() > 0.01 * np.abs(want).max()


def test_a_whole_state_and_a_stream_of_text_alone_are_read(tmp_path):
    state = {("params", "params", *key): leaf for key, leaf in flat(in_one(lwms())).items()}
    tux(tmp_path / "state", {("step",): np.int32(7), ("opt_state", "0", "mu", "lm_head"): np.ones(3), **state})
    tux(tmp_path / "params", flat(in_one(lwms())))
    same(read(tmp_path / "state"), read(tmp_path / "params"))
    tux(tmp_path / "text", flat(in_one(lwms(vision=False))))
    assert set(read(tmp_path / "text")) == {"text", "layers", "norm"}
    assert set(read(tmp_path / "params", TEXT)) == {"text", "layers", "norm"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("vocabulary", [TEXT, BOTH])
def test_what_is_written_is_what_tux_writes_and_reads_back_exactly(tmp_path, dtype, vocabulary):
    params = init(jax.random.key(0), MODEL, vocabulary)
    lwm.write(params, MODEL, vocabulary, tmp_path / "ours", dtype)
    rounded = jax.tree.map(lambda x: np.asarray(x.astype(dtype).astype(jnp.float32)), params)
    same(rounded, read(tmp_path / "ours", vocabulary))
    tensors = {key: Stream(tmp_path / "ours").tensor(key) for key in Stream(tmp_path / "ours")}
    tux(tmp_path / "theirs", tensors)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    if vocabulary is BOTH:
        head, table = tensors["vision_head", "kernel"], tensors["transformer", "vte", "embedding"]
        assert (head.shape, table.shape) == ((24, 8448), (8448, 24))
        assert head[:, 8193].any() and not head[:, 8194:].any() and not table[8194:].any()


def test_written_weights_have_our_logits_there(tmp_path):
    params = jax.tree.map(lambda x: 8 * x if x.std() else x, init(jax.random.key(0), MODEL, BOTH))
    lwm.write(params, MODEL, BOTH, tmp_path / "s", "float32")
    tensors, tree = Stream(tmp_path / "s"), {}
    for key in tensors:
        put(tree, key, tensors.tensor(key))
    stack = tree["transformer"]["h"]["scan_decoder"]
    tree["transformer"]["h"] = {str(n): jax.tree.map(lambda x, n=n: x[n], stack) for n in range(MODEL.layers)}
    want = forward(tree, TOKENS)
    np.testing.assert_allclose(logits(params), want, atol=1e-5 * np.abs(want).max())


def test_arrays_in_chunks_are_as_flax_makes_them(tmp_path, monkeypatch):
    serialization = pytest.importorskip("flax.serialization")
    tensors = {
        ("a", "b"): np.arange(60, dtype=np.float32).reshape(3, 4, 5),
        ("c" * 40,): np.arange(7, dtype=np.float16),
    }
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
    monkeypatch.setattr(stream, "CHUNK", 16)
    tux(tmp_path / "theirs", tensors)
    write_stream(tmp_path / "ours", tensors.items())
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(Stream(tmp_path / "theirs").tensor(key), tensor)


def test_sizes_at_the_borders_of_the_forms_are_as_flax_writes_them(tmp_path):
    sizes = [1, 2, 15, 16, 31, 32, 127, 128, 255, 256, 65535, 65536]
    tensors = {(f"{n}",): np.zeros(n, np.float16) for n in sizes}
    tensors |= {(f"d{n}",): np.zeros((1,) * n, np.float32) for n in (1, 15, 16, 17)}
    tux(tmp_path / "theirs", tensors)
    write_stream(tmp_path / "ours", tensors.items())
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert Stream(tmp_path / "ours").tensor(("65536",)).shape == (65536,)


def pair(value, path=("a",)):
    return msgpack.packb((path, value))


def array(shape=(2,), dtype="float32", data=b"\0" * 8, code=1):
    return msgpack.packb(msgpack.ExtType(code, msgpack.packb((shape, dtype, data))))


def chunked(shape, chunks):
    return msgpack.packb({stream.CHUNKED: True, "shape": shape, "chunks": chunks})


PICKLE = b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "cannot be read"),
        (PICKLE, "no pair|begins nothing"),
        (b"\xc1", "begins nothing"),
        (pair(array())[:-3], "ends before them"),
        (b"\x92\x91\xa1a\xc6\xff\xff\xff\xff", "4294967295 bytes follow"),
        (b"\xdd\xff\xff\xff\xff", "array of 4294967295, longer"),
        (b"\xdf\xff\xff\xff\xff", "map of 4294967295, longer"),
        (b"\x92\x91\xdb\x7f\xff\xff\xff", "str of 2147483647, longer"),
        (b"\x91" * 100_000, "deeper"),
        (msgpack.packb({"a": 1}), "no pair"),
        (msgpack.packb((["a", 3], b"")), "no pair"),
        (msgpack.packb((["a"], "text")), "no pair"),
        (b"\x92\x91\xa2\xff\xfe\xc4\x00", "no name"),
        (b"\x90" * (2**17 + 1), "no pair"),
    ],
)
def test_hostile_streams_are_refused(tmp_path, data, word):
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(UserError, match=word):
        Stream(tmp_path / "s")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (array(code=3), "Extension 3 where an array"),
        (array(code=42), "Extension 42 where an array"),
        (array(dtype="object"), "'object'"),
        (array(dtype="int64"), "'int64'"),
        (array(data=b"\0" * 7), "no whole number"),
        (array(shape=(3,)), "shape is .3.*has 2 numbers"),
        (array(shape=(2**40, 2**40)), "has 2 numbers"),
        (array(shape=(True, 2)), "shape is"),
        (array(shape=2), "shape is 2"),
        (msgpack.packb(5), "neither an array"),
        (msgpack.packb({"x": 5}), "neither an array"),
        (msgpack.packb(msgpack.ExtType(1, b"\x93\x91\x02")), "ends before"),
        (msgpack.packb(msgpack.ExtType(1, b"\x91\x02")), "a shape, a type and bytes"),
        (chunked({"0": 2}, {}), "several types, or none"),
        (chunked({"0": 2}, {"1": 5}), "not numbered"),
        (chunked({"0": 2}, {"0": 5}), "int  where an array"),
        (chunked({"0": 5}, {"0": msgpack.ExtType(1, msgpack.packb(((2,), "float32", b"\0" * 8)))}), "has 2 numbers"),
        (b"", "ends before"),
    ],
)
def test_hostile_tensors_are_refused(tmp_path, value, word):
    (tmp_path / "s").write_bytes(pair(value))
    with pytest.raises(UserError, match=word):
        Stream(tmp_path / "s").tensor(("a",))


def test_too_many_tensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "TENSORS", 3)
    (tmp_path / "s").write_bytes(pair(array()) * 4)
    with pytest.raises(UserError, match="more than 3 tensors"):
        Stream(tmp_path / "s")


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_byte_never_breaks_more_than_its_word(tmp_path, seed):
    write_stream(tmp_path / "s", [(("a", "b"), np.arange(6, dtype=np.float32)), (("c",), np.ones((2, 3), np.float16))])
    data = bytearray((tmp_path / "s").read_bytes())
    rng = np.random.default_rng(seed)
    data[rng.integers(len(data))] = rng.integers(256)
    (tmp_path / "s").write_bytes(data)
    try:
        found = Stream(tmp_path / "s")
        assert all(found.tensor(key).nbytes <= len(data) for key in found)
    except UserError as error:
        assert str(tmp_path / "s") in str(error)


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ({"ffn": 21}, r"w2/kernel has the shape \[3, 20, 24\], but the model's is \[3, 21, 24\]"),
        ({"layers": 2}, "has the shape"),
        ({"width": 48}, "has the shape"),
    ],
)
def test_a_model_of_other_numbers_is_refused(tmp_path, numbers, word):
    tux(tmp_path / "s", flat(in_one(lwms())))
    with pytest.raises(UserError, match=word):
        read(tmp_path / "s", model=Model(**{**MODEL.model_dump(), **numbers}))


def test_other_vocabularies_are_refused(tmp_path):
    tux(tmp_path / "s", flat(lwms()))
    with pytest.raises(UserError, match="8192 picture codes, but the vocabulary has 5"):
        read(tmp_path / "s", Vocabulary(17, 1, 2, "text", 5, "vision"))
    with pytest.raises(UserError, match="wte/embedding has the shape"):
        read(tmp_path / "s", Vocabulary(18, 1, 2, "text"))
    with pytest.raises(UserError, match="lacks transformer/h/3/"):
        read(tmp_path / "s", model=Model(**{**MODEL.model_dump(), "layers": 4}))


def test_what_lwm_has_not_is_not_written(tmp_path, monkeypatch):
    params = init(jax.random.key(0), MODEL, TEXT)
    grouped = Model(**{**MODEL.model_dump(), "kv_heads": 1})
    with pytest.raises(UserError, match="key head for each of its 3 heads"):
        lwm.write(params, grouped, TEXT, tmp_path / "s")
    with pytest.raises(UserError, match="and this one 5"):
        lwm.write(params, MODEL, Vocabulary(17, 1, 2, "text", 5, "vision"), tmp_path / "s")
    monkeypatch.setattr(stream, "LONGEST", 1000)
    with pytest.raises(UserError, match="a smaller type"):
        lwm.write(params, MODEL, TEXT, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").touch()
    with pytest.raises(UserError, match="there already"):
        lwm.write(params, MODEL, TEXT, tmp_path / "s")
