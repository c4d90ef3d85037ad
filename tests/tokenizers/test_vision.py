"""Both kinds of vision tokenizer through the one door, held to what every tokenizer of pictures promises."""

import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from worldloom.benchmarks.vqgan import pictures, write_random_vqgan
from worldloom.errors import UserError
from worldloom.tokenizers import codebook
from worldloom.tokenizers.vision import Kind, VisionTokenizer, load


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    codebook.fit(pictures(8), codes=64).save(str(folder / "patches.npz"))
    write_random_vqgan(folder / "vqgan", tiny=True)
    return {"codebook": str(folder / "patches.npz"), "vqgan": str(folder / "vqgan")}


@pytest.fixture(params=get_args(Kind))
def tokenizer(request: pytest.FixtureRequest, models: dict[str, str]) -> VisionTokenizer:
    return load(request.param, models[request.param])


def test_a_tokenizer_says_what_it_makes(tokenizer: VisionTokenizer) -> None:
    frames = pictures(3)
    codes = tokenizer.encode(frames)
    back = tokenizer.decode(codes)
    assert (tokenizer.size, tokenizer.grid, tokenizer.codes) == (256, 16, 64)
    assert (codes.dtype, codes.shape) == (np.uint16, (3, 256))
    assert len(np.unique(codes)) > 5
    assert codes.max() < tokenizer.codes
    assert (back.dtype, back.shape) == (np.uint8, frames.shape)
    assert len(tokenizer.digest) == 32
    assert set(tokenizer.digest) <= set("0123456789abcdef")


def test_a_picture_is_itself_among_others(tokenizer: VisionTokenizer) -> None:
    frames = pictures(3)
    codes, alone = tokenizer.encode(frames), [tokenizer.encode(frame[None])[0] for frame in frames]
    assert np.array_equal(codes, alone)
    assert np.array_equal(tokenizer.encode(frames[::-1]), codes[::-1])
    assert np.array_equal(tokenizer.decode(codes), [tokenizer.decode(one[None])[0] for one in codes])
    assert len({one.tobytes() for one in alone}) == 3


def quarter(changes: np.ndarray) -> tuple[int, int]:
    """Return the row and column of the quarter of a square with the most changes."""
    side = len(changes) // 2
    return divmod(int(changes.reshape(2, side, 2, side).sum((1, 3)).argmax()), 2)


def test_codes_are_read_row_by_row(tokenizer: VisionTokenizer) -> None:
    frame = np.full((1, 256, 256, 3), 90, np.uint8)
    changed = frame.copy()
    changed[0, :32, 224:] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    before, after = tokenizer.encode(frame), tokenizer.encode(changed)
    moved = np.abs(tokenizer.decode(after).astype(int) - tokenizer.decode(before)).sum((0, 3))
    assert before[0, 15] != after[0, 15]
    assert quarter((before != after).reshape(16, 16)) == quarter(moved) == (0, 1)


def test_models_differ(models: dict[str, str]) -> None:
    assert len({load(kind, path).digest for kind, path in models.items()}) == 2


def test_a_codebook_has_no_pixel_range(models: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"A codebook has no pixel range, but '0..1' is given: leave pixel_range out"):
        load("codebook", models["codebook"], "0..1")


def test_a_vqgans_range_is_handed_on(models: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"names the pixel range -1..1, but 0..1 is given"):
        load("vqgan", models["vqgan"], "0..1")


def test_an_unknown_kind_is_refused(models: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"kind is 'vae': give one of codebook, vqgan"):
        load("vae", models["vqgan"])


def test_one_kinds_model_is_not_the_others(models: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"patches\.npz"):
        load("vqgan", models["codebook"])
    with pytest.raises(UserError, match="vqgan"):
        load("codebook", models["vqgan"])


def test_a_codebook_needs_no_torch(models: dict[str, str]) -> None:
    code = (
        "import sys; from worldloom.tokenizers.vision import load; load('codebook', sys.argv[1]);"
        "print(*({'torch', 'diffusers', 'jax'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, models["codebook"]]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []
