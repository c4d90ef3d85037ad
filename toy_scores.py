"""How well a model knows the toy world: what its pictures and clips show, and what it answers about true ones."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from .errors import UserError
from .packing.row import Row, row_examples
from .pipelines.toy.reader import read_motion, read_scene
from .pipelines.toy.world import Scene, caption, questions, scene
from .tokenizers.text import TextTokenizer
from .tokenizers.vocabulary import Vocabulary
from .training.evaluation.long_video import agrees

NUMBERS = 6000  # scenes of a world among which a caption is looked for: some turns of all that there are

Judged = dict[str, Any]


class Shown(NamedTuple):
    """Hold a scene, and how a build saw it: codes `[frames, codes of a frame]`."""

    scene: Scene
    codes: np.ndarray


Answer = Callable[[list[tuple[Shown, str]]], Sequence[str]]  # questions, each about a scene that is shown


def shown_in(rows: Iterable[Row], text: TextTokenizer, vocabulary: Vocabulary, world: int, medium: str) -> list[Shown]:
    """Find the toy world's scenes in packed pairs, by their captions: each once, in order.

    Args:
      rows: of a packed data set of captioned pictures or clips, as pairs or as requests.
      world: the seed that the scenes were written with.
      medium: `image` or `video`.

    Raises:
      UserError: if there is none.
    """
    scenes = (scene(world, number, medium == "video") for number in reversed(range(NUMBERS)))
    known = {caption(one): one for one in scenes}
    found: dict[Scene, np.ndarray] = {}
    for example in (example for row in rows for example in row_examples(row)):
        words = text.decode(example.tokens[example.tokens < vocabulary.text_size])
        one = next((one for said, one in known.items() if said in words), None)
        span = next((span for span in example.spans if span.kind == medium), None)
        if one and span:
            ids = example.tokens[span.start : span.end].astype(np.int32) - vocabulary.text_size
            frames = ids.reshape(np.count_nonzero(ids >= vocabulary.codes), -1)
            found.setdefault(one, frames[:, :-1].astype(np.uint16))
    if not found:
        raise UserError(
            f"no caption is one of the toy world {world}: name packed pairs of its {medium}s, and its seed by --world"
        )
    return [Shown(*item) for item in found.items()]


def judge_pictures(scenes: Sequence[Scene], pictures: np.ndarray) -> list[Judged]:
    """Tell what pictures uint8 `[n, size, size, 3]` show, and whether shape and colour are those of the scenes."""
    judged = []
    for shown, picture in zip(scenes, pictures, strict=True):
        expected, seen = (shown.shape, shown.colour), read_scene(picture)
        parts = {"shape": bool(seen and seen[0] == expected[0]), "colour": bool(seen and seen[1] == expected[1])}
        told = {"number": shown.number, "caption": caption(shown), "expected": expected, "seen": seen}
        judged.append(told | parts | {"right": seen == expected})
    return judged


def judge_clips(scenes: Sequence[Scene], clips: np.ndarray) -> list[Judged]:
    """Tell where the shapes in clips uint8 `[n, frames, size, size, 3]` move, and whether it is where they should.

    `look` says whether the first frame shows the right shape in the right colour.
    """
    judged = []
    for shown, frames in zip(scenes, clips, strict=True):
        seen, look = read_motion(frames), read_scene(frames[0]) == (shown.shape, shown.colour)
        told = {"number": shown.number, "caption": caption(shown), "expected": shown.motion, "seen": seen}
        judged.append(told | {"look": look, "right": seen == shown.motion})
    return judged


def judge_answers(shown: Sequence[Shown], answer: Answer) -> list[Judged]:
    """Ask all that there is to ask of true scenes, each question alone, and tell which answers are true."""
    asked = [(one, *question) for one in shown for question in questions(one.scene)]
    said = answer([(one, question) for one, question, _ in asked])
    return [
        {"number": one.scene.number, "question": q, "expected": true, "said": told, "right": agrees(told, true)}
        for (one, q, true), told in zip(asked, said, strict=True)
    ]


def sum_up(judged: Sequence[Judged]) -> Judged:
    """Return the share of what is right, and of the parts that are told of each, before the list of all."""
    parts = [name for name in ("right", "shape", "colour", "look") if name in judged[0]]
    return {"count": len(judged), **{name: fmean(one[name] for one in judged) for name in parts}, "all": list(judged)}
