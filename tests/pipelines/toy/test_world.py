"""The toy world: each scene is there once, the drawing is what the formulas say, and all words are true of the pixels.

What a picture shows is found here by formulas of this file alone: colours by their hue, shapes by the plain definition
of each, places by the box around what is not background.
"""

import colorsys
import hashlib
import io
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from worldloom.pipelines.decoding.clips import ClipLimits, read_clip
from worldloom.pipelines.toy.world import Scene, caption, clip, draw, questions, scene

av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")

# Points (x, y) from -1 to 1 across the shape's box; y grows downwards.
INSIDE = {
    "circle": lambda x, y: x * x + y * y < 1,
    "square": lambda x, y: max(abs(x), abs(y)) < 1,
    "triangle": lambda x, y: -1 < y < 1 and abs(x) < (1 + y) / 2,  # its tip is at the top
    "cross": lambda x, y: max(abs(x), abs(y)) < 1 and min(abs(x), abs(y)) < 1 / 2,
    "diamond": lambda x, y: abs(x) + abs(y) < 1,
}
HUES = {  # degrees on the colour circle
    "red": (-20, 20),
    "yellow": (40, 70),
    "green": (90, 150),
    "cyan": (170, 200),
    "blue": (215, 250),
    "purple": (270, 320),
}
SIDES = {"small": 1 / 4, "large": 1 / 2}  # of the picture's side
ACROSS, ALONG = ("left", "", "right"), ("top", "", "bottom")
TOWARDS = {"to the left": (-1, 0), "to the right": (1, 0), "upwards": (0, -1), "downwards": (0, 1)}
STILL, MOVING = 5 * 6 * 2 * 2 * 9, 5 * 6 * 2 * 2 * 12

# --- What a picture shows, found slowly


def seen(picture: np.ndarray) -> dict[str, str]:
    """Say of a picture what its caption must say: background, colour, size, shape and place."""
    ground = np.median(picture.reshape(-1, 3), axis=0)  # the shape covers a quarter of it at the most
    far = np.abs(picture - ground).sum(axis=-1)
    ink = np.median(picture[far > 0.8 * far.max()], axis=0)
    mask = ((picture - ink) ** 2.0).sum(axis=-1) < ((picture - ground) ** 2).sum(axis=-1)
    left, top, right, bottom = box(mask)
    side, size = max(right - left, bottom - top), len(picture)
    return {
        "background": {True: "white", False: "black"}[bool(ground.mean() > 128)],
        "colour": hue(ink),
        "size": min(SIDES, key=lambda name: abs(SIDES[name] - side / size)),
        "shape": likest(mask[top:bottom, left:right]),
        "place": place((left + right) / 2 / size, (top + bottom) / 2 / size),
    }


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom, the last two excluded."""
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def hue(ink: np.ndarray) -> str:
    degrees = 360 * colorsys.rgb_to_hsv(*ink / 255)[0]
    (name,) = (n for n, (low, high) in HUES.items() if low <= degrees <= high or low <= degrees - 360 <= high)
    return name


def likest(mask: np.ndarray) -> str:
    """Name the shape whose formula gives the other answer at the fewest pixels."""
    high, wide = mask.shape
    wrong = Counter(dict.fromkeys(INSIDE, 0))
    for y, x in np.ndindex(high, wide):
        for name, inside in INSIDE.items():
            wrong[name] += inside((2 * x + 1) / wide - 1, (2 * y + 1) / high - 1) != mask[y, x]
    (_, second), (name, least) = wrong.most_common()[-2:]
    assert 2 * least < second and least < 0.1 * mask.size  # it is clear
    return name


def third(middle: float) -> int:
    return min(range(3), key=lambda number: abs((number + 1) / 4 - middle))


def place(x: float, y: float) -> str:
    across, along = ACROSS[third(x)], ALONG[third(y)]
    if along:
        return f"at the {along} {across}".strip()
    return f"on the {across}" if across else "in the centre"


def watched(frames: np.ndarray) -> dict[str, str]:
    """The same of a clip: its place is where it moves along."""
    told = [seen(frame) for frame in frames]
    (look,) = {tuple((key, one[key]) for key in ("background", "colour", "size", "shape")) for one in told}
    boxes = np.array([box(np.abs(f - np.median(f, axis=(0, 1))).sum(axis=-1) > 200) for f in frames.astype(int)])
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2 / frames.shape[1]
    way = middles[-1] - middles[0]
    motion = max(TOWARDS, key=lambda name: float(way @ TOWARDS[name]))
    assert abs(way).max() == pytest.approx(0.5, abs=0.02) and abs(way).min() < 0.02  # half the picture, straight
    across = TOWARDS[motion][0] != 0
    side = (ALONG if across else ACROSS)[third(middles[0][1 if across else 0])]
    return dict(look) | {"motion": motion, "path": f"along the {side}" if side else "through the centre"}


def said(text: str) -> dict[str, str]:
    """Take a caption apart: each thing is said once."""
    shape, size = one(INSIDE, text), one(SIDES, text)
    told = {"background": one(("white", "black"), text), "colour": one(HUES, text), "size": size, "shape": shape}
    if found := re.search(r"\b(?:moves|goes) (to the left|to the right|upwards|downwards) (.*?)(?: of a |\.)", text):
        return told | {"motion": found[1], "path": found[2]}
    found = re.search(
        r"\b(at the (?:top|bottom)(?: left| right)?|on the (?:left|right)|in the centre)(?: of a |\.)", text
    )
    assert found
    return told | {"place": found[1]}


def one(words: object, text: str) -> str:
    (found,) = re.findall(rf"\b({'|'.join(words)})\b", text)  # type: ignore[arg-type]
    return found


def answered(question: str, look: dict[str, str]) -> str:
    """Answer a question about what was seen."""
    if guess := re.fullmatch(r"(?:Is the (\w+) (\w+)|Is there a (\w+) (\w+))\?", question):
        shape, colour = (guess[1], guess[2]) if guess[1] else (guess[4], guess[3])
        return "yes" if (shape, colour) == (look["shape"], look["colour"]) else "no"
    for form, answer in {
        rf"What colour is the {look['shape']}\?|Which colour has the {look['shape']}\?": look["colour"],
        rf"What shape is it\?|Which shape is {look['colour']}\?": f"a {look['shape']}",
        rf"What colour is the background\?|On what colour is the {look['shape']}\?": look["background"],
        rf"Is the {look['shape']} small or large\?|How large is the {look['shape']}\?": look["size"],
        rf"Where is it\?|Where is the {look['shape']}\?": look.get("place", ""),
        rf"Where does it move\?|Which way does the {look['shape']} move\?": look.get("motion", ""),
    }.items():
        if re.fullmatch(form, question):
            return answer
    raise AssertionError(f"nobody asks this: {question}")


# --- Scenes


@pytest.mark.parametrize(("moving", "count"), [(False, STILL), (True, MOVING)])
def test_a_seed_shows_every_scene_once_and_then_again(moving: bool, count: int) -> None:
    looks = [
        (shape, colour, ground, size, column, row, motion)
        for shape, colour, ground, size, column, row in product(
            INSIDE, HUES, ("white", "black"), SIDES, range(3), range(3)
        )
        for motion in (("left", "right", "up", "down") if moving else ("",))
        if (motion, column) not in {("left", 0), ("left", 1), ("right", 1), ("right", 2)}
        and (motion, row) not in {("up", 0), ("up", 1), ("down", 1), ("down", 2)}
    ]
    assert len(looks) == count
    first, second, other = (
        [
            (s.shape, s.colour, s.background, s.size, s.column, s.row, s.motion)
            for s in (scene(seed, low + n, moving) for n in range(count))
        ]
        for seed, low in ((0, 0), (0, count), (1, 0))
    )
    assert sorted(first) == sorted(second) == sorted(other) == sorted(looks)
    assert first != second and first != other
    for low in range(0, count, 120):  # each 120 show each look once, all ways that there are among them
        rows = first[low : low + 120]
        assert len({row[:4] for row in rows}) == 120
        assert {row[4:] for row in rows} == {row[4:] for row in looks}
    assert [row[:4] for row in first[:120]] != [row[:4] for row in first[120:240]]  # in another order each


def test_a_scene_keeps_what_it_was_drawn_from() -> None:
    shown = scene(3, 17, moving=True)
    assert (shown.seed, shown.number) == (3, 17) and shown == scene(3, 17, moving=True) != scene(3, 18, moving=True)


MAKE = """
import hashlib, sys
from worldloom.pipelines.toy.files import encode
from worldloom.pipelines.toy.world import caption, clip, draw, questions, scene
for moving in (False, True):
    for number in (0, 7, 1500):
        shown = scene(5, number, moving)
        parts = [encode(draw(shown, 64, 0.4), "png"), caption(shown).encode(), repr(questions(shown)).encode()]
        parts += [clip(shown, 64, 0.5, 12)] if moving else []
        print(number, *(hashlib.sha256(part).hexdigest() for part in parts))
"""


def test_two_processes_make_the_same_bytes() -> None:
    """Whatever order sets have, and whatever lies in memory that a library did not write, where glibc can fill it."""

    def made(number: str) -> list[str]:
        ran = subprocess.run(
            [sys.executable, "-c", MAKE], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": number, "MALLOC_PERTURB_": number},
        )  # fmt: skip
        return ran.stdout.split()

    one, other = made("1"), made("170")
    assert one == other and len(set(one)) > 15
    assert hashlib.sha256(caption(scene(5, 7)).encode()).hexdigest() in one


# --- Pictures


def test_each_pixel_is_what_the_shape_s_formula_says() -> None:
    """A pixel is ink where all points around it are inside, ground where all are outside, and else between the two."""
    size, near = 64, [(a, b) for a in (-0.75, 0.0, 0.75) for b in (-0.75, 0.0, 0.75)]
    for number, (shape, large) in enumerate(product(INSIDE, (False, True))):
        shown = next(
            s for n in range(number * 100, STILL)
            if (s := scene(0, n)).shape == shape and (s.size == "large") == large
        )  # fmt: skip
        picture, side = draw(shown, size).astype(int), size * SIDES[shown.size]
        ink, ground = picture[middle(shown, size)], np.median(picture, axis=(0, 1))
        assert hue(ink) == shown.colour and np.abs(ground - {"white": 255, "black": 0}[shown.background]).max() < 16
        left, top = ((at + 1) / 4 * size - side / 2 for at in (shown.column, shown.row))
        for y, x in np.ndindex(size, size):
            points = [((x + 0.5 + a - left) / side * 2 - 1, (y + 0.5 + b - top) / side * 2 - 1) for a, b in near]
            inside = [INSIDE[shape](*point) for point in points]
            if all(inside):
                assert (picture[y, x] == ink).all(), (shown, x, y)
            elif not any(inside):
                assert (picture[y, x] == ground).all(), (shown, x, y)
            else:
                low, high = np.minimum(ink, ground), np.maximum(ink, ground)
                assert ((low <= picture[y, x]) & (picture[y, x] <= high)).all(), (shown, x, y)


def middle(shown: Scene, size: int) -> tuple[int, int]:
    """Return the row and column of a pixel in the middle of a shape, where every shape has ink."""
    return (shown.row + 1) * size // 4, (shown.column + 1) * size // 4


def test_edges_are_neither_jagged_nor_blurred() -> None:
    """What a shape covers is its area, by the formulas of school."""
    areas = {"circle": np.pi / 4, "square": 1, "triangle": 1 / 2, "cross": 3 / 4, "diamond": 1 / 2}
    for shape in INSIDE:
        shown = Scene(0, 0, shape, "red", "black", "large", 1, 1)
        red = draw(shown, 256)[..., 0].astype(float)
        assert ((red - 10) / (225 - 10)).sum() == pytest.approx(128**2 * areas[shape], rel=0.01)
        assert len(np.unique(red)) <= 17 and (len(np.unique(red)) > 2) == (shape in ("circle", "triangle", "diamond"))


@pytest.mark.parametrize("size", [16, 50, 256])
def test_pictures_of_any_size_show_the_same(size: int) -> None:
    for number in range(6):
        shown = scene(1, number)
        picture = draw(shown, size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        if size > 16:
            assert seen(picture) == seen(draw(shown, 64))


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="in 15 pixels: give at least 16"):
        draw(scene(0, 0), 15)


# --- Words


def test_captions_and_answers_are_true_of_the_pixels() -> None:
    for number in range(250):
        shown = scene(2, number)
        look = seen(draw(shown, 48))
        assert said(caption(shown)) == look, (shown, caption(shown))
        asked = questions(shown)
        assert len(asked) == 6
        for question, answer in asked:
            assert answered(question, look) == answer, (shown, question)


def test_captions_and_answers_are_true_of_moving_scenes() -> None:
    for number in range(60):
        shown = scene(2, number, moving=True)
        look = watched(np.stack([draw(shown, 48, time) for time in (0.0, 0.5, 1.0)]))
        assert said(caption(shown)) == look, (shown, caption(shown))
        for question, answer in questions(shown):
            assert answered(question, look) == answer, (shown, question)


def test_a_move_is_steady_takes_a_second_and_then_rests() -> None:
    shown = Scene(0, 0, "square", "red", "white", "small", 2, 1, "left")
    lefts = [box(draw(shown, 64, time)[..., 1] < 100)[0] for time in (-1, 0, 0.25, 0.5, 0.75, 1, 9)]
    assert lefts == [40, 40, 32, 24, 16, 8, 8]


@pytest.mark.parametrize("moving", [False, True])
def test_no_answer_is_constant_and_none_is_rare(moving: bool) -> None:
    """Whoever answers without looking is right as often as a die: of all scenes each answer comes equally often."""
    kinds: list[Counter[str]] = [Counter() for _ in range(6)]
    forms: list[Counter[str]] = [Counter() for _ in range(6)]
    count = MOVING if moving else STILL
    for number in range(count):
        shown = scene(0, number, moving)
        for kind, (question, answer) in enumerate(questions(shown)):
            kinds[kind][answer] += 1
            forms[kind][re.sub("|".join([*INSIDE, *HUES]), "…", question)] += 1
    colours, shapes, grounds, sizes, guesses, places = kinds
    for answers, values in (
        (colours, set(HUES)),
        (shapes, {f"a {shape}" for shape in INSIDE}),
        (grounds, {"white", "black"}),
        (sizes, set(SIDES)),
        (places, set(TOWARDS) if moving else {place(x, y) for x in (0.25, 0.5, 0.75) for y in (0.25, 0.5, 0.75)}),
    ):
        assert answers == {value: count // len(values) for value in values}
    assert set(guesses) == {"yes", "no"} and 0.5 < guesses["yes"] / count < 0.66
    assert all(len(form) == 2 and min(form.values()) > 0.4 * count for form in forms)


@pytest.mark.parametrize("moving", [False, True])
def test_captions_take_their_forms_in_turn(moving: bool) -> None:
    first = Counter(caption(scene(0, number, moving)).split()[0] for number in range(600))
    words = Counter(word for number in range(600) for word in re.findall(r"\w+", caption(scene(0, number, moving))))
    assert set(first) == ({"A", "On"} if moving else {"A", "There", "On"}) and min(first.values()) > 150
    assert not moving or min(words["moves"], words["goes"]) > 240
    assert not set("\n\t") & set("".join(caption(scene(0, number, moving)) for number in range(50)))


# --- Clips


def test_clips_are_h264_and_their_frames_show_what_is_said(tmp_path: Path) -> None:
    for number in range(8):
        shown = scene(4, number, moving=True)
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(clip(shown, 64))
        with av.open(str(path)) as container:
            (stream,) = container.streams
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 64, 64)
            assert stream.average_rate == 24 and stream.frames == 48 and stream.codec_context.has_b_frames
            assert container.format.name.startswith("mov,mp4")
        info, batches = read_clip(str(path), ClipLimits(size=64))
        frames = np.concatenate(list(batches))
        assert len(frames) == info.total == 8 and info.rate == 4
        for k, frame in enumerate(frames):
            assert np.abs(frame.astype(int) - draw(shown, 64, k / 4)).mean() < 4
        assert watched(frames) == said(caption(shown)), shown


def test_a_clip_may_be_longer_and_of_another_rate() -> None:
    with av.open(io.BytesIO(clip(scene(0, 0, moving=True), 32, seconds=3.0, rate=5))) as container:
        times = sorted(float(frame.time) for frame in container.decode(video=0))
    assert times == pytest.approx([n / 5 for n in range(15)])


def test_a_clip_of_an_odd_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"65 pixels wide.*give an even size"):
        clip(scene(0, 0, moving=True), 65)
