"""The reader of the toy world: right about every drawing, right through a codebook, silent where there is nothing.

That the drawings are what their scenes say is held by test_world.py.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from worldloom.pipelines.reading.squares import squares
from worldloom.pipelines.toy.files import write_clips, write_images
from worldloom.pipelines.toy.reader import read_motion, read_scene
from worldloom.pipelines.toy.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, Scene, clip, draw, scene
from worldloom.quickstart import CLIPS, CODES, IMAGES
from worldloom.tokenizers.codebook import Codebook, fit

av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
CEILING = 0.98  # what a model that answers in codes can reach at best, with the quickstart's codebook


@pytest.fixture(scope="module")
def codebook(tmp_path_factory: pytest.TempPathFactory) -> Codebook:
    """Make the codebook that the quickstart makes."""
    world = tmp_path_factory.mktemp("world")
    write_images(world / "images", IMAGES)
    write_clips(world / "clips", CLIPS)
    return fit(squares([str(world / "images"), str(world / "clips")], 256, []), CODES)


def through(codebook: Codebook, frames: np.ndarray) -> np.ndarray:
    return codebook.decode(codebook.encode(frames))


def filmed(shown: Scene, folder: Path) -> np.ndarray:
    """Film a scene, and take its frames out of the file, uint8[5, 256, 256, 3]."""
    path = folder / f"{shown.number}.mp4"
    path.write_bytes(clip(shown, seconds=1.25, rate=12))
    return np.stack(list(squares([str(path)], 256, [])))


# --- Without a codebook


@pytest.mark.parametrize("size", [64, 100, 256])
def test_it_reads_every_look(size: int) -> None:
    for shape, colour, ground, large in product(SHAPES, COLOURS, BACKGROUNDS, SIZES):
        for column, row in ((0, 1), (2, 0)):
            assert read_scene(draw(Scene(0, 0, shape, colour, ground, large, column, row), size)) == (shape, colour)


def test_it_reads_every_still_place_and_every_moment_of_a_move() -> None:
    for column, row in product(range(3), range(3)):
        for ground, large in product(BACKGROUNDS, SIZES):
            assert read_scene(draw(Scene(0, 0, "cross", "green", ground, large, column, row), 64)) == ("cross", "green")
    for number, k in product(range(20), range(5)):
        shown = scene(0, number, moving=True)
        assert read_scene(draw(shown, 128, k / 4)) == (shown.shape, shown.colour)


def test_between_two_cells_it_may_say_nothing_but_nothing_wrong() -> None:
    for number, time in product(range(60), (0.05, 0.1, 0.6)):
        shown = scene(0, number, moving=True)
        assert read_scene(draw(shown, 128, time)) in ((shown.shape, shown.colour), None)


@pytest.mark.parametrize("motion", MOTIONS)
def test_it_reads_motions_of_drawn_frames(motion: str) -> None:
    shown = [s for number in range(80) if (s := scene(0, number, moving=True)).motion == motion]
    assert len(shown) > 10
    for each in shown:
        assert read_motion(np.stack([draw(each, 64, k / 4) for k in range(5)])) == motion
        assert read_motion(np.stack([draw(each, 64, 1.0)] * 5)) is None


def test_a_moment_s_noise_changes_nothing() -> None:
    shown = Scene(0, 0, "circle", "cyan", "black", "small", 0, 1, "right")
    frames = np.stack([draw(shown, 64, k / 4) for k in range(8)])
    noise = np.random.default_rng(0).integers(0, 256, frames.shape, np.uint8)
    frames[3] = noise[3]  # one frame is lost
    frames[:, :8, :8] = noise[:, :8, :8]  # and one patch of each
    assert read_motion(frames) == "right"
    assert [read_scene(frame) for frame in frames[4:]] == [("circle", "cyan")] * 4


def test_it_says_nothing_where_there_is_nothing_clear() -> None:
    empty = np.full((64, 64, 3), 250, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    circle = Scene(0, 0, "circle", "yellow", "white", "large", 0, 1, "right")
    square = Scene(0, 0, "square", "cyan", "white", "large", 2, 1)
    both = np.minimum(draw(circle, 64), draw(square, 64))  # white is the largest
    half = draw(circle, 64)
    half[:, 16:] = 250
    for picture in (empty, 255 - empty, noise, both, half, np.full_like(empty, 120)):
        assert read_scene(picture) is None
    assert read_motion(np.stack([empty] * 5)) is None
    assert read_motion(np.stack([draw(circle, 64), empty, empty, empty, draw(circle, 64, 1.0)])) is None
    assert read_motion(np.stack([draw(circle, 64)])) is None


# --- Through a codebook


def test_the_ceiling_of_pictures(codebook: Codebook) -> None:
    """Of scenes that the codebook has not seen; the quickstart's 96 do not hold all 120 looks."""
    shown = [scene(0, number) for number in range(IMAGES, IMAGES + 200)]
    back = through(codebook, np.stack([draw(s) for s in shown]))
    right = sum(read_scene(picture) == (s.shape, s.colour) for s, picture in zip(shown, back, strict=True))
    assert right >= CEILING * len(shown)


def test_the_ceiling_of_clips(codebook: Codebook, tmp_path: Path) -> None:
    right, motions = [], set()
    for number in range(CLIPS, CLIPS + 40):
        shown = scene(0, number, moving=True)
        frames = through(codebook, filmed(shown, tmp_path))
        assert len(frames) == 5 and read_motion(frames) == shown.motion
        right += [read_scene(frame) == (shown.shape, shown.colour) for frame in frames]
        motions.add(shown.motion)
    assert motions == set(MOTIONS) and sum(right) >= CEILING * len(right)


def test_random_codes_show_nothing(codebook: Codebook) -> None:
    """A model that has learned nothing scores nothing: what is right is not there by chance."""
    rng = np.random.default_rng(0)
    noise = codebook.decode(rng.integers(0, codebook.codes, (50, 256)))
    codes = codebook.encode(np.stack([draw(scene(0, number)) for number in range(50)]))
    shuffled = codebook.decode(rng.permuted(codes, axis=1))
    assert not any(read_scene(picture) for picture in [*noise, *shuffled])


def test_a_world_of_128_pixels_is_made_of_392_patches() -> None:
    """So 392 codes show every picture and every frame exactly, as the module says."""
    shown = [draw(scene(0, number), 128) for number in range(480)]
    shown += [draw(scene(0, number, True), 128, k / 4) for number in range(40) for k in range(5)]
    codebook = fit(shown, 512, 128)
    others = [draw(scene(0, number), 128) for number in range(480, 1080, 2)]
    others += [draw(scene(0, number, True), 128, k / 4) for number in range(40, 1440, 20) for k in range(5)]
    assert codebook.codes == 392 and np.array_equal(through(codebook, np.stack(others)), others)
