"""`worldloom toy-world`: writes a small world to learn: pictures, clips, questions about them, and its words."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from .errors import UserError
from .pipelines.pairs import BEGIN, END
from .pipelines.pictured import PROMPTS
from .pipelines.toy.files import write_clips, write_images, write_questions
from .pipelines.toy.world import MOVING, SMALLEST, STILL, caption, questions, scene
from .sources import TemplateSection

SECONDS = 1.25  # of a clip: a move takes one, so that at four frames a second the fifth shows its end
FRAMING = 50  # times that the words around pictures and chats stand among the others


def run(options: argparse.Namespace, console: Console) -> None:
    """Write a toy world into DIR: images and clips with captions, questions about all of them, and words.txt.

    Raises:
      UserError: pictures or clips cannot have that size.
    """
    root, seed, size = Path(options.dir), options.seed, options.size
    if size % 2 or size < SMALLEST:
        raise UserError(
            f"--size {size} is no side that pictures and clips can have: give an even size from {SMALLEST} on"
        )
    write_images(root / "images", options.images, seed, size)
    write_questions(root / "images.jsonl", options.images, seed, folder="images")
    write_clips(root / "clips", options.clips, seed, size, SECONDS)
    write_questions(root / "clips.jsonl", options.clips, seed, clips=True, folder="clips")
    (root / "words.txt").write_text("".join(f"{line}\n" for line in words(seed)), encoding="utf-8", newline="\n")
    console.print(
        f"{root}: {options.images:,} images, {options.clips:,} clips, and questions about them", soft_wrap=True
    )


def words(seed: int) -> Iterator[str]:
    """Yield all that is said in the toy world, in two turns of its captions and one of its questions."""
    yield from (caption(scene(seed, number)) for number in range(2 * STILL))
    yield from (caption(scene(seed, number, moving=True)) for number in range(2 * MOVING))
    for number in range(STILL):
        for moving in (False, True):
            yield from (line for one in questions(scene(seed, number, moving)) for line in one)
    template = TemplateSection()
    asked = [f"{template.system} {template.user.format('')}{template.assistant}"]
    yield from [*asked, *(prompt.removesuffix(" {}") for prompt in PROMPTS.values()), BEGIN, END] * FRAMING
