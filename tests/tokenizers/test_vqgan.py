"""The VQGAN against diffusers' own `VQModel`, called plainly: codes, pictures, how files are judged, and the range.

The networks are tiny and of random weights, but for two that give pictures back: their encoder and decoder pass colours
through, and their codebooks hold the colours of one pixel range each.
"""

import itertools
import json
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from safetensors.torch import load_file, save_file
from worldloom.benchmarks.vqgan import pictures
from worldloom.errors import UserError
from worldloom.tokenizers import vqgan
from worldloom.tokenizers.vqgan import VQGAN, Setting, probe
from worldloom.tokenizers.vqgan_folder import CONFIG, RANGE, WEIGHTS

# amused/amused-512's vqvae/config.json as it is published (Hugging Face, 804 bytes), but for the sizes in TINY.
AMUSED = {
    "_class_name": "VQModel",
    "_diffusers_version": "0.25.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 256, 512, 768],
    "down_block_types": ["DownEncoderBlock2D"] * 5,
    "in_channels": 3,
    "latent_channels": 64,
    "layers_per_block": 2,
    "lookup_from_codebook": True,
    "mid_block_add_attention": False,
    "norm_num_groups": 32,
    "norm_type": "group",
    "num_vq_embeddings": 8192,
    "out_channels": 3,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 5,
    "vq_embed_dim": None,
    "force_upcast": True,
}
TINY = AMUSED | {
    "block_out_channels": [8, 8, 8, 16, 16],
    "latent_channels": 8,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "num_vq_embeddings": 64,
}
BOUNDS = {"-1..1": (-1.0, 1.0), "0..1": (0.0, 1.0)}


def random_model(seed: int = 0, twins: bool = False) -> VQModel:
    """Make a tiny network; with twins, each entry of its codebook has another beside it, a few roundings away."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VQModel(**{key: value for key, value in TINY.items() if not key.startswith("_")})
        entries = model.quantize.embedding.weight.detach().normal_(std=0.5)
        if twins:
            entries[32:] = entries[:32] + 1e-6 * torch.randn(32, 8)
    return model.eval()


def write(model: VQModel, folder: Path, pixel_range: str | None = None) -> str:
    """Write a network as diffusers does, and the pixel range where one is given; returns the folder's path."""
    model.save_pretrained(folder)
    if pixel_range:
        change_config(folder, {RANGE: pixel_range})
    return str(folder)


def change_config(folder: Path, change: dict[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | change))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vqgan") / "vqvae"
    write(random_model(), path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "vqvae"))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return pictures(16, seed=1)


@torch.inference_mode()
def peer_distances(folder: Path, frames: np.ndarray, pixel_range: str) -> np.ndarray:
    """Return the squared distance of each place to each entry, `float64[n, 256, codes]`, in diffusers' latents."""
    model = VQModel.from_pretrained(folder, use_safetensors=True).eval()
    low, high = BOUNDS[pixel_range]
    pixels = torch.tensor(frames / 255.0 * (high - low) + low, dtype=torch.float32).permute(0, 3, 1, 2).contiguous()
    latents = torch.cat([model.encode(one[None]).latents for one in pixels]).double()
    places = latents.permute(0, 2, 3, 1).reshape(len(frames), -1, 1, latents.shape[1]).numpy()
    return ((places - model.quantize.embedding.weight.double().numpy()) ** 2).sum(-1)


@torch.inference_mode()
def peer_pictures(folder: Path, codes: np.ndarray, pixel_range: str) -> np.ndarray:
    """Return levels from 0 to 255, not rounded, by diffusers' own lookup and decoder."""
    model = VQModel.from_pretrained(folder, use_safetensors=True).eval()
    low, high = BOUNDS[pixel_range]
    shape = (len(codes), 16, 16, model.config["latent_channels"])
    sample = model.decode(torch.from_numpy(codes.astype(np.int64)), force_not_quantize=True, shape=shape).sample
    return np.clip((sample.permute(0, 2, 3, 1).double().numpy() - low) / (high - low) * 255, 0, 255)


@pytest.mark.parametrize("pixel_range", BOUNDS)
def test_codes_are_the_nearest_entries_to_diffusers_latents(folder: Path, frames: np.ndarray, pixel_range: str) -> None:
    ours = VQGAN.load(str(folder), pixel_range)
    codes = ours.encode(frames[:4])
    distances = peer_distances(folder, frames[:4], pixel_range)
    nearest, second = np.sort(distances, -1)[..., :2].transpose(2, 0, 1)
    clear = second - nearest > 1e-4 * second  # the rest, where float32 may choose either, is next to nothing
    assert (codes.dtype, codes.shape, ours.grid, ours.codes) == (np.uint16, (4, 256), 16, 64)
    assert len(np.unique(codes)) > 10
    assert clear.mean() > 0.99
    assert np.array_equal(codes[clear], distances.argmin(-1)[clear])


@pytest.mark.parametrize("pixel_range", BOUNDS)
def test_pictures_are_diffusers_rounded(folder: Path, pixel_range: str) -> None:
    codes = np.random.default_rng(2).integers(0, 64, (4, 256))
    back = VQGAN.load(str(folder), pixel_range).decode(codes)
    assert (back.dtype, back.shape) == (np.uint8, (4, 256, 256, 3))
    assert back.std() > 10
    assert np.abs(back - peer_pictures(folder, codes, pixel_range)).max() < 0.501


@pytest.mark.parametrize("internal", [1, 4])
def test_codes_do_not_depend_on_the_callers_batches(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch, internal: int
) -> None:
    """Twins in the codebook make a code of every bit that another batch would change in a latent."""
    monkeypatch.setitem(vqgan.SETTINGS, "cpu", Setting(torch.float32, internal, threads=1, at_once=2))
    ours = VQGAN.load(write(random_model(twins=True), tmp_path), "-1..1")
    once = ours.encode(frames)
    assert (once >= 32).mean() > 0.2  # both twins are taken
    for batch in (1, 3, 7):
        parts = [ours.encode(frames[start : start + batch]) for start in range(0, 16, batch)]
        assert np.array_equal(once, np.concatenate(parts)), batch
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert np.array_equal(once[:2], ours.encode(frames[:2])), f"{threads} threads of the caller's"


def threads_of_a_new_thread() -> int:
    """Return how many threads torch gives to a thread that begins now; one that is there keeps its own number."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_of_a_caller_take_turns(folder: Path, frames: np.ndarray) -> None:
    """A second that began while the first is at work would take the first one's number of threads for the caller's."""
    torch.set_num_threads(3)
    ours, release, second_begins = VQGAN.load(str(folder), "-1..1"), threading.Event(), threading.Event()
    first_begins, found = threading.Event(), []

    def hold(rows: np.ndarray) -> np.ndarray:
        first_begins.set()
        assert release.wait(60)
        return rows

    def follow(rows: np.ndarray) -> np.ndarray:
        second_begins.set()
        first.join()
        return ours._encode(rows)

    first = threading.Thread(target=lambda: ours._run(hold, frames[:1], frames[:0]))
    second = threading.Thread(target=lambda: found.append(ours._run(follow, frames[:1], np.empty((0, 256), np.uint16))))
    first.start()
    assert first_begins.wait(60)
    second.start()
    second_begins.wait(0.3)  # where they take turns it does not
    release.set()
    second.join()
    assert threads_of_a_new_thread() == 3
    assert np.array_equal(found[0], ours.encode(frames[:1]))


def test_a_gpus_type_leaves_the_codebook_exact(
    folder: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the latents are diffusers' in bfloat16, and are compared with the entries in float32."""
    monkeypatch.setitem(vqgan.SETTINGS, "cpu", Setting(torch.bfloat16, batch=2, threads=1, at_once=2))
    ours = VQGAN.load(str(folder), "-1..1")
    model = VQModel.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        pixels = (torch.tensor(frames[:2]).permute(0, 3, 1, 2) / 127.5 - 1).contiguous().bfloat16()
        latents = model.encode(pixels).latents.permute(0, 2, 3, 1).reshape(2, 256, 1, 8).double().numpy()
    entries = load_file(folder / WEIGHTS)["quantize.embedding.weight"].double().numpy()
    distances = ((latents - entries) ** 2).sum(-1)
    nearest, second = np.sort(distances, -1)[..., :2].transpose(2, 0, 1)
    clear = second - nearest > 1e-4 * second
    assert clear.mean() > 0.99
    assert np.array_equal(ours.encode(frames[:2])[clear], distances.argmin(-1)[clear])


def test_nothing_makes_nothing(folder: Path, frames: np.ndarray) -> None:
    ours = VQGAN.load(str(folder), "-1..1")
    codes, back = ours.encode(frames[:0]), ours.decode(np.empty((0, 256), np.int32))
    assert (codes.dtype, codes.shape) == (np.uint16, (0, 256))
    assert (back.dtype, back.shape) == (np.uint8, (0, 256, 256, 3))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((1, 256, 256, 3), np.float32), np.zeros((1, 128, 128, 3), np.uint8), np.zeros((256, 256, 3), np.uint8)],
)
def test_other_pictures_are_refused(folder: Path, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pictures must be uint8"):
        VQGAN.load(str(folder), "-1..1").encode(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.full((1, 256), 64), r"in \[0, 64\), not in \[64, 64\]"),
        (np.full((1, 256), -1), "not in"),
        (np.zeros((1, 255), int), "must be"),
        (np.zeros(256, int), "must be"),
    ],
)
def test_other_codes_are_refused(folder: Path, wrong: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQGAN.load(str(folder), "-1..1").decode(wrong)


def test_torch_gets_its_threads_back(folder: Path, frames: np.ndarray) -> None:
    for threads in (2, 3):
        torch.set_num_threads(threads)
        ours = VQGAN.load(str(folder), "-1..1")
        ours.decode(ours.encode(frames[:2]))
        assert torch.get_num_threads() == threads_of_a_new_thread() == threads
        with pytest.raises(IndexError):
            ours._run(lambda rows: rows[9], frames[:2], frames[:0])
        assert torch.get_num_threads() == threads_of_a_new_thread() == threads


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_folder_as_amused_publishes_it_needs_a_pixel_range(copy: Path, frames: np.ndarray) -> None:
    (copy / CONFIG).write_text(json.dumps(TINY, indent=2))
    with pytest.raises(UserError, match=r'names no pixel range: give pixel_range, "0..1" for aMUSEd'):
        VQGAN.load(str(copy))
    codes = VQGAN.load(str(copy), "0..1").encode(frames[:1])
    assert (codes == peer_distances(copy, frames[:1], "0..1").argmin(-1)).mean() > 0.99


@pytest.mark.parametrize(
    ("named", "given", "message"),
    [
        ("-1..1", "0..1", "names the pixel range -1..1, but 0..1 is given: leave pixel_range out"),
        (None, "0..255", "'0..255': it must be one of -1..1, 0..1"),
        ("[-1, 1]", None, "must be one of"),
        ([-1, 1], None, "must be one of"),
        (["-1..1"], "-1..1", "must be one of"),
        ("", "-1..1", "must be one of"),
    ],
)
def test_ranges_that_cannot_be_are_refused(copy: Path, named: Any, given: str | None, message: str) -> None:
    change_config(copy, {RANGE: named})
    with pytest.raises(UserError, match=message):
        VQGAN.load(str(copy), given)


def test_a_named_range_may_be_given_again(copy: Path) -> None:
    change_config(copy, {RANGE: "0..1"})
    digests = {VQGAN.load(str(copy), given).digest for given in (None, "0..1")}
    assert len(digests) == 1


def test_the_digest_is_that_of_whatever_decides_a_code(copy: Path, folder: Path) -> None:
    def one_bit(tensors: dict[str, torch.Tensor]) -> None:
        value = tensors["decoder.conv_out.bias"]
        value[0] = torch.nextafter(value[0], torch.tensor(9.0))

    first = VQGAN.load(str(folder), "0..1").digest
    assert VQGAN.load(str(copy), "0..1").digest == first
    assert len(first) == 32
    assert int(first, 16) > 0
    change_config(copy, {"act_fn": "relu"})
    digests = [first, VQGAN.load(str(folder), "-1..1").digest, VQGAN.load(str(copy), "0..1").digest]
    change_config(copy, {"act_fn": "silu", "_diffusers_version": "0.1", "_name_or_path": "elsewhere"})
    assert VQGAN.load(str(copy), "0..1").digest == first
    change_weights(copy, one_bit)
    digests.append(VQGAN.load(str(copy), "0..1").digest)
    assert len(set(digests)) == 4


def test_the_digest_is_that_of_how_the_network_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = vqgan.SETTINGS["cpu"]
    others = [{"dtype": torch.bfloat16}, {"batch": 2}, {"threads": 2}, {"at_once": 1}]  # the last decides no code
    digests = []
    for change in ({}, *others):
        monkeypatch.setitem(vqgan.SETTINGS, "cpu", replace(usual, **change))
        digests.append(VQGAN.load(str(folder), "-1..1").digest)
    assert digests[0] == digests[-1]
    assert len(set(digests)) == 4


def test_a_folder_at_a_url_is_the_same(folder: Path, frames: np.ndarray) -> None:
    local = VQGAN.load(str(folder), "-1..1")
    with fsspec.open_files([f"memory://models/vqvae/{name}" for name in (CONFIG, WEIGHTS)], "wb") as files:
        for file, name in zip(files, (CONFIG, WEIGHTS), strict=True):
            file.write((folder / name).read_bytes())
    remote = VQGAN.load("memory://models/vqvae", "-1..1")
    assert remote.digest == local.digest
    assert np.array_equal(remote.encode(frames[:2]), local.encode(frames[:2]))  # the copy is gone by now
    with pytest.raises(UserError, match=f"memory://models/none has no {CONFIG}"):
        VQGAN.load("memory://models/none", "-1..1")


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("no config", lambda f: (f / CONFIG).unlink(), f"has no {CONFIG}: give a folder .* convert-vqgan"),
    ("no weights", lambda f: (f / WEIGHTS).unlink(), f"has no {WEIGHTS}: give a folder .* convert-vqgan"),
    ("nothing", lambda f: shutil.rmtree(f), f"has no {CONFIG}"),
    ("folders for files", lambda f: [(f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()], f"has no {WEIGHTS}"),
    ("a pickle", lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04K\x01."), f"{WEIGHTS} .* fetch both again"),
    ("empty weights", lambda f: cut(f / WEIGHTS, 0), f"{WEIGHTS} .* fetch both again"),
    ("half the weights", lambda f: cut(f / WEIGHTS, 100_000), f"{WEIGHTS} .* fetch both again"),
    ("half the config", lambda f: cut(f / CONFIG, 100), f"{CONFIG} .* is no JSON .* fetch it again"),
    ("a config of bytes", lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), f"{CONFIG} .* is no JSON"),
    ("a config of lists", lambda f: (f / CONFIG).write_text("[" * 10_000), f"{CONFIG} .* is no JSON"),
    ("a list", lambda f: (f / CONFIG).write_text("[]"), f"{CONFIG} .* describes no VQModel: give"),
    ("another class", lambda f: change_config(f, {"_class_name": "AutoencoderKL"}), "describes no VQModel"),
    ("an unknown key", lambda f: change_config(f, {"latent_magic": 1}), "latent_magic"),
    ("other channels", lambda f: change_config(f, {"latent_channels": 4}), r"of shape \[.*4.*\], the file has"),
    ("more levels", lambda f: change_config(f, {"block_out_channels": [8] * 6}), "make no VQGAN"),
    ("no levels", lambda f: change_config(f, {"block_out_channels": []}), "make no VQGAN"),
    ("a word for a number", lambda f: change_config(f, {"latent_channels": "8"}), "make no VQGAN"),
    ("no groups", lambda f: change_config(f, {"norm_num_groups": 0}), "make no VQGAN"),
    ("an unknown block", lambda f: change_config(f, {"up_block_types": ["Up"] * 5}), "make no VQGAN"),
    ("grey pictures", lambda f: grey(f), "in_channels is 1, a picture has 3"),
    ("too many codes", lambda f: many(f), "num_vq_embeddings is 65537, at most 65536"),
    ("a tensor too few", lambda f: change_weights(f, lambda t: t.pop("quant_conv.bias")), "quant_conv.bias .* None"),
    ("one too many", lambda f: change_weights(f, lambda t: t.update(ema=torch.ones(1))), r"ema .* None, .* \[1\]"),
    ("whole numbers", lambda f: change_weights(f, integers), "quant_conv.weight is of type torch.int32"),
]


def integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["quant_conv.weight"] = tensors["quant_conv.weight"].int()


def grey(folder: Path) -> None:
    change_config(folder, {"in_channels": 1})
    change_weights(folder, lambda t: t.update({"encoder.conv_in.weight": t["encoder.conv_in.weight"][:, :1].clone()}))


def many(folder: Path) -> None:
    change_config(folder, {"num_vq_embeddings": 65537})
    change_weights(folder, lambda t: t.update({"quantize.embedding.weight": torch.zeros(65537, 8)}))


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE, ids=[name for name, *_ in DAMAGE])
def test_files_that_make_no_vqgan_are_refused(
    copy: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        VQGAN.load(str(copy), "-1..1")
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["nowhere://models/vqvae", "https://", "::"])
def test_a_place_that_cannot_be_read_is_a_users_error(path: str) -> None:
    with pytest.raises(UserError, match=f"The VQGAN at {path} "):
        VQGAN.load(path, "-1..1")


def through(convolution: torch.nn.Conv2d, weights: torch.Tensor) -> None:
    """Make a convolution that looks at each pixel alone."""
    convolution.weight[:, :, 1, 1] = weights


@torch.no_grad()
def colours(pixel_range: str) -> VQModel:
    """Make a network that gives a picture back in the 7 * 7 * 7 colours that it knows, those of one pixel range.

    Channels are 4 groups of x, -x, K, -K, so that a group's mean is 0 and its deviation, of a K so large, the same for
    all pictures; and of SiLU's outputs the difference silu(x) - silu(-x) is x.
    """
    large, channels = 1e3, 16
    config = {"block_out_channels": [channels], "down_block_types": ["DownEncoderBlock2D"], "norm_num_groups": 4}
    config |= {"up_block_types": ["UpDecoderBlock2D"], "mid_block_add_attention": False, "num_vq_embeddings": 7**3}
    model = VQModel(**config)
    for weight in model.parameters():
        weight.zero_()
    spread, gather, constant = torch.zeros(channels, 3), torch.zeros(3, channels), torch.zeros(channels)
    for colour in range(3):
        spread[4 * colour, colour], spread[4 * colour + 1, colour] = 1, -1
        gather[colour, 4 * colour], gather[colour, 4 * colour + 1] = 1, -1
    constant[2::4], constant[3::4] = large, -large
    for part in (model.encoder, model.decoder):
        through(part.conv_in, spread)
        part.conv_in.bias.copy_(constant)
        part.conv_norm_out.weight.fill_(1)
        through(part.conv_out, gather * large / 2**0.5)
    for convolution in (model.quant_conv, model.post_quant_conv):
        convolution.weight[:, :, 0, 0] = torch.eye(3)
    levels = np.linspace(*BOUNDS[pixel_range], 7)
    model.quantize.embedding.weight.copy_(torch.tensor(list(itertools.product(levels, repeat=3))))
    return model


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(("right", "wrong"), [tuple(BOUNDS), tuple(BOUNDS)[::-1]])
def test_a_range_that_looks_wrong_is_warned_of(tmp_path: Path, right: str, wrong: str) -> None:
    path = write(colours(right), tmp_path)
    with no_warning():
        ours = VQGAN.load(path, right)
    picture = probe().repeat(4, 0).repeat(4, 1)[None]
    assert np.abs(ours.decode(ours.encode(picture)).astype(int) - picture).max() <= 23  # half a level, of 255 / 6
    with pytest.warns(UserWarning, match=f"pixel range {wrong} .* looks wrong: .* set pixel_range: {right}"):
        VQGAN.load(path, wrong)


def test_random_weights_are_not_warned_of(folder: Path) -> None:
    with no_warning():
        for pixel_range in BOUNDS:
            VQGAN.load(str(folder), pixel_range)
