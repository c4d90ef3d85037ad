"""`worldloom generate`: texts, pictures and videos from the prompts of a command line, and conversations."""

import argparse
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
from rich.console import Console

from . import conversation
from .drawing import png
from .errors import UserError
from .studio import Studio, open_studio
from .training.generation.cache import bytes_per_device
from .training.generation.generate import Generator
from .training.generation.sample import IMAGE, LATER, Sampling

RATE = 4  # frames a second: lwm/vision_generation.py, and what training's clips are sampled at


def lines_of(options: argparse.Namespace) -> list[str]:
    """List the prompts of the command line: each --prompt, and each line of a file.

    Raises:
      UserError: there is none, or the file cannot be read.
    """
    prompts = list(options.prompt or [])
    if options.prompts:
        try:
            prompts += [line for line in Path(options.prompts).read_text("utf-8").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{options.prompts} cannot be read ({error}): give a text with a prompt a line") from error
    if not prompts:
        raise UserError("there is nothing to generate from: give a --prompt, or a file of them by --prompts")
    return prompts


def changed(sampling: Sampling, options: argparse.Namespace, guided: bool = True) -> Sampling:
    """Change how is sampled as the command line says, and say so where it makes no sense."""
    names = ("temperature", "top_k", *(("guidance",) if guided else ()))
    given = {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
    if any(value < 0 for value in given.values()):
        raise UserError("--temperature, --top-k and --guidance are numbers from 0 on")
    return sampling._replace(**given)


def run_text(options: argparse.Namespace, console: Console) -> None:
    """Continue texts, on the terminal or in DIR/replies.jsonl."""
    prompts, studio = lines_of(options), _opened(options, console)
    replies = studio.write(prompts, options.new_tokens, changed(Sampling(), options, False), options.seed)
    if not options.out:
        for prompt, reply in zip(prompts, replies, strict=True):
            console.print(f"{prompt}{'' if reply[:1] in ('', ' ') else ' '}{reply}", markup=False, soft_wrap=True)
        return
    rows = [{"prompt": prompt, "reply": reply} for prompt, reply in zip(prompts, replies, strict=True)]
    console.print(str(conversation.write_rows(_folder(options.out) / "replies.jsonl", rows)), soft_wrap=True)


def run_image(options: argparse.Namespace, console: Console) -> None:
    """Draw pictures into DIR, as PNG."""
    captions, studio = lines_of(options), _opened(options, console)
    pictures, out = studio.images(captions, changed(IMAGE, options), options.seed), _folder(options.out or ".")
    for number, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        path = out / f"{number:06d}-{slug(caption)}.png"
        path.write_bytes(png(picture, len(picture)))
        console.print(str(path), soft_wrap=True)


def run_video(options: argparse.Namespace, console: Console) -> None:
    """Draw videos into DIR, as MP4 and as a folder of PNGs each."""
    if options.frames < 1:
        raise UserError(f"--frames {options.frames} is no video: give 1 or more")
    captions, studio = lines_of(options), _opened(options, console)
    how = changed(IMAGE, options), changed(LATER, options, False)
    films, out = studio.videos(captions, options.frames, *how, options.seed), _folder(options.out or ".")
    for number, (caption, film) in enumerate(zip(captions, films, strict=True)):
        path = out / f"{number:06d}-{slug(caption)}.mp4"
        write_video(path, film)
        folder = _folder(str(path.with_suffix("")))
        for n, frame in enumerate(film):
            (folder / f"{n:04d}.png").write_bytes(png(frame, len(frame)))
        console.print(str(path), soft_wrap=True)


def run_chat(options: argparse.Namespace, console: Console) -> None:
    """Talk at the terminal, or answer the conversations of a JSONL file."""
    studio = _opened(options, console)
    how = options.new_tokens, changed(Sampling(), options, False), options.seed
    if not options.prompts:
        conversation.talk(studio, console, *how)
        return
    out = Path(options.out or Path(options.prompts).with_suffix(".replies.jsonl"))
    conversation.answer_file(studio, Path(options.prompts), out, *how)
    console.print(str(out), soft_wrap=True)


COMMANDS = {"text": run_text, "image": run_image, "video": run_video, "chat": run_chat}


def run_generate(options: argparse.Namespace, console: Console) -> None:
    """Generate what the command line asks for."""
    COMMANDS[options.what](options, console)


def _opened(options: argparse.Namespace, console: Console) -> Studio:
    given = options.run, options.tokenizer, options.vision, options.form, options.mesh or "", options.rows
    studio = open_studio(*given, preset=options.preset, theta=options.theta)
    if options.cache:
        console.print(cache_words(studio.generator, options.cache), soft_wrap=True)
    return studio


def cache_words(generator: Generator, tokens: int) -> str:
    """Say what a cache of one row of so many tokens takes on each device."""
    size = bytes_per_device(generator.model, 1, tokens, generator.mesh)
    return f"a cache of {tokens:,} tokens takes {size / 1e9:,.3f} GB on each of {generator.mesh.size} devices"


def write_video(path: Path, frames: np.ndarray, rate: int = RATE) -> None:
    """Write frames uint8 [n, size, size, 3] as H.264 in MP4; an odd size gets one more row and column."""
    import av

    odd = frames.shape[1] % 2
    frames = np.pad(frames, [(0, 0), (0, odd), (0, odd), (0, 0)], "edge")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options={"crf": "18", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def slug(text: str) -> str:
    """Shorten a caption to what any file may be called."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "untitled"


def _folder(path: str) -> Path:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}: choose another --out") from error
    return Path(path)
