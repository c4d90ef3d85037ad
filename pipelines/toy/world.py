"""A toy world for tests and first tries: small scenes as pictures and clips, with words that are true of them.

A scene is one shape of one colour on a plain background; in a clip it moves. Everything lies on a lattice of
8 x 8 cells, where each move takes a cell in a quarter of a second. So at LWM's four frames a second, pictures of
128 pixels are made of few different 16 x 16 patches, and a small codebook shows them well.
"""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross", "diamond")
COLOURS = {
    "red": (225, 40, 40),
    "yellow": (250, 215, 40),
    "green": (40, 165, 65),
    "cyan": (50, 205, 230),
    "blue": (30, 70, 235),
    "purple": (200, 40, 195),
}
BACKGROUNDS = {"white": (250, 250, 250), "black": (10, 10, 10)}
SIZES = {"small": 2, "large": 4}  # cells
MOTIONS = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}

STILL, MOVING = 1080, 1440  # scenes of each kind, after which they begin anew
CELLS = 8  # along a picture's side
SPEED = 2  # steps between places in a second; a step is two cells
FINE = 4  # edges are drawn this many times finer, then averaged
SMALLEST = 16  # pixels: two a cell


@dataclass(frozen=True)
class Scene:
    """Say all there is to see.

    Attributes:
      seed, number: what the scene was drawn from; its words are drawn from them as well.
      shape, colour, background, size: keys of `SHAPES`, `COLOURS`, `BACKGROUNDS` and `SIZES`.
      column, row: 0, 1 or 2: where the shape is, for a moving one where it begins.
      motion: a key of `MOTIONS`, or "" where nothing moves.
    """

    seed: int
    number: int
    shape: str
    colour: str
    background: str
    size: str
    column: int
    row: int
    motion: str = ""


class Question(NamedTuple):
    """A question about a scene and its true answer."""

    question: str
    answer: str


def scene(seed: int, number: int, moving: bool = False) -> Scene:
    """Return a scene; the same seed and number give the same one. A moving one crosses the picture.

    The first `STILL` (1,080) scenes of a seed are all that there are, each once, and so on; of moving ones there are
    `MOVING` (1,440). So what is held out of them was never shown. They are shuffled, but each 120 in a row show every
    shape, colour, background and size together once: so many pictures make a codebook that knows every look.
    """
    scenes = MOVING if moving else STILL
    return Scene(seed, number, *_shuffled(seed, number // scenes, moving)[number % scenes])


@lru_cache(maxsize=16)
def _shuffled(seed: int, turn: int, moving: bool) -> list[tuple[Any, ...]]:
    """Shuffle all there is to see, every look once in each round: what follows seed and number in a `Scene`."""
    rng = _rng(seed, turn, "moving" if moving else "still")
    ways = [(*where, motion) for motion in MOTIONS for where in _starts(motion)] if moving else _starts("")
    looks = [(look, rng.sample(ways, len(ways))) for look in product(SHAPES, COLOURS, BACKGROUNDS, SIZES)]
    rounds = ([(*look, *order[n]) for look, order in looks] for n in range(len(ways)))
    return [shown for one in rounds for shown in rng.sample(one, len(one))]


def _starts(motion: str) -> list[tuple[int, int]]:
    """Return every column and row where something with this motion may begin."""
    columns = {"left": (2,), "right": (0,)}.get(motion, (0, 1, 2))
    rows = {"up": (2,), "down": (0,)}.get(motion, (0, 1, 2))
    return list(product(columns, rows))


# --- Words


def caption(scene: Scene) -> str:
    """Describe a scene in a sentence or two, of several forms."""
    rng = _rng(scene.seed, scene.number, "caption")
    size, shape, colour, background = scene.size, scene.shape, scene.colour, scene.background
    if scene.motion:
        does = f"{rng.choice(('moves', 'goes'))} {MOTIONS[scene.motion]} {path(scene)}"
        forms = (
            f"A {size} {colour} {shape} {does} of a {background} picture.",
            f"A {colour} {shape} {does}. It is {size}, and the background is {background}.",
            f"On a {background} background a {size} {colour} {shape} {does}.",
        )
    else:
        forms = (
            f"A {size} {colour} {shape} {place(scene)} of a {background} picture.",
            f"There is a {colour} {shape} {place(scene)}. It is {size}, and the background is {background}.",
            f"On a {background} background, a {size} {colour} {shape} {place(scene)}.",
        )
    return rng.choice(forms)


def questions(scene: Scene) -> tuple[Question, ...]:
    """Ask what there is to ask of a scene, each question in one of several forms and with its true answer."""
    rng = _rng(scene.seed, scene.number, "questions")
    shape = scene.shape
    guess = rng.choice((scene.colour, rng.choice([*COLOURS])))
    asked = [
        (f"What colour is the {shape}?", f"Which colour has the {shape}?", scene.colour),
        ("What shape is it?", f"Which shape is {scene.colour}?", f"a {shape}"),
        ("What colour is the background?", f"On what colour is the {shape}?", scene.background),
        (f"Is the {shape} small or large?", f"How large is the {shape}?", scene.size),
        (f"Is the {shape} {guess}?", f"Is there a {guess} {shape}?", "yes" if guess == scene.colour else "no"),
    ]
    if scene.motion:
        asked.append(("Where does it move?", f"Which way does the {shape} move?", MOTIONS[scene.motion]))
    else:
        asked.append(("Where is it?", f"Where is the {shape}?", place(scene)))
    return tuple(Question(rng.choice(forms), answer) for *forms, answer in asked)


def place(scene: Scene) -> str:
    """Say where a shape is that does not move: "in the centre", "at the top left", "on the right"."""
    side, height = ("left", "", "right")[scene.column], ("top", "", "bottom")[scene.row]
    if height:
        return f"at the {height} {side}".rstrip()
    return f"on the {side}" if side else "in the centre"


def path(scene: Scene) -> str:
    """Say where a shape moves along: "along the top", "through the centre", "along the left"."""
    across = scene.motion in ("left", "right")
    side = ("top", "", "bottom")[scene.row] if across else ("left", "", "right")[scene.column]
    return f"along the {side}" if side else "through the centre"


# --- Pictures


def draw(scene: Scene, size: int = 256, time: float = 0.0) -> np.ndarray:
    """Draw a scene `time` seconds after its beginning as uint8[size, size, 3].

    A move takes one second; after it the shape rests. Raises ValueError below 16 pixels.
    """
    if size < SMALLEST:
        raise ValueError(f"a scene cannot be drawn in {size} pixels: give at least {SMALLEST}")
    picture = np.empty((size, size, 3), np.uint8)
    picture[:] = BACKGROUNDS[scene.background]
    cover = _cover(scene.shape, round(SIZES[scene.size] * size / CELLS))
    x, y = (round(cells * size / CELLS) for cells in corner(scene, time))
    under = picture[y : y + len(cover), x : x + len(cover)]
    ink = np.array(COLOURS[scene.colour])
    under[:] = (under * (255 - cover) + ink * cover + 127) // 255
    return picture


def corner(scene: Scene, time: float) -> tuple[float, float]:
    """Return where the shape's box begins, x and y in cells."""
    first = (CELLS - SIZES[scene.size] - 4) // 2  # of the three places, which are two cells apart
    gone = min(max(SPEED * time, 0.0), 2.0)
    along = {"left": (-gone, 0.0), "right": (gone, 0.0), "up": (0.0, -gone), "down": (0.0, gone)}
    right, down = along.get(scene.motion, (0.0, 0.0))
    return first + 2 * (scene.column + right), first + 2 * (scene.row + down)


@lru_cache(maxsize=64)
def _cover(shape: str, side: int) -> np.ndarray:
    """Return how far a shape covers each pixel of its box, 0 to 255, int64[side, side, 1]."""
    from PIL import Image, ImageDraw

    fine = side * FINE
    mask = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(mask)
    last, half, quarter = fine - 1, (fine - 1) / 2, fine // 4
    if shape == "circle":
        pen.ellipse((0, 0, last, last), fill=255)
    elif shape == "square":
        pen.rectangle((0, 0, last, last), fill=255)
    elif shape == "triangle":
        pen.polygon([(half, 0), (last, last), (0, last)], fill=255)
    elif shape == "diamond":
        pen.polygon([(half, 0), (last, half), (half, last), (0, half)], fill=255)
    else:
        pen.rectangle((quarter, 0, last - quarter, last), fill=255)
        pen.rectangle((0, quarter, last, last - quarter), fill=255)
    cover = np.asarray(mask.resize((side, side), Image.Resampling.BOX)).astype(np.int64)[..., None]
    cover.flags.writeable = False
    return cover


def clip(scene: Scene, size: int = 256, seconds: float = 2.0, rate: int = 24) -> bytes:
    """Film a scene, see `film`."""
    return film([scene], size, seconds, rate)


def film(scenes: Sequence[Scene], size: int = 256, seconds: float = 2.0, rate: int = 24) -> bytes:
    """Film scenes one after the other as H.264 in MP4, with B-frames, `seconds` each; equal bytes on one machine.

    `rate` is of frames a second; `size` must be even. Raises ValueError where it is odd or too small.
    """
    if size % 2:
        raise ValueError(f"a clip cannot be {size} pixels wide, for its colours are stored by twos: give an even size")
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "bitexact"}) as container:
        # mbtree: in pictures of under 128 pixels it looks at memory that nobody wrote, and the bytes differ (x264 165)
        options = {"preset": "veryfast", "crf": "18", "bf": "2", "threads": "1", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for shown, n in product(scenes, range(round(seconds * rate))):
            frame = av.VideoFrame.from_ndarray(draw(shown, size, n / rate), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _rng(seed: int, number: int, purpose: str) -> random.Random:
    return random.Random(f"toy world {seed} {number} {purpose}")
