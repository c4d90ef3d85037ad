"""`worldloom evaluate`: joins the tests of training/evaluation with tokenizers, models, servers and the toy world."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import tee
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from .chat_server import ask
from .conversation import prompts_of
from .errors import UserError
from .generation import changed
from .packing.dataset import open_dataset
from .packing.weights import Rule
from .pipelines.books import texts
from .pipelines.chat_layout import ASSISTANT, USER, Frames, Line
from .pipelines.toy import joined
from .pipelines.toy.books import write_corpus
from .pipelines.toy.world import caption, questions
from .studio import Studio, open_studio
from .tokenizers.text import TextTokenizer, load
from .toy_scores import Judged, Shown, judge_answers, judge_clips, judge_pictures, shown_in, sum_up
from .training.evaluation import long_video, needle
from .training.evaluation.chart import Axis
from .training.evaluation.held_out import make_nll, measure
from .training.evaluation.long_video import agrees
from .training.evaluation.scores import Outcome, digest, grouped, write, write_json
from .training.generation.sample import IMAGE, LATER
from .training.ring.ring import make_ring

AT_ONCE = 64  # prompts that a model is given at once; it takes as many of them together as it has room for
ANSWER = 16  # tokens of an answer about a picture or a clip
LENGTH, CLIPS, DEPTH = Axis("length in tokens"), Axis("clips in the video"), Axis("depth", "%")


def depths(count: int) -> list[int]:
    """Spread depths evenly from 0 to 100 percent, rounded as LWM's; one alone is 50."""
    return np.round(np.linspace(0, 100, count)).astype(int).tolist() if count > 1 else [50]


def replies(prompts: Iterable[Sequence[int] | np.ndarray], studio: Studio, new_tokens: int) -> Iterator[str]:
    """Yield what a model replies to each prompt; prompts may be made while it is asked."""
    for group in grouped(prompts, AT_ONCE):
        ids = studio.generator.reply([np.asarray(prompt).tolist() for prompt in group], new_tokens)
        yield from map(studio.text.decode, ids)


def shown_prompt(codes: np.ndarray, question: str, studio: Studio) -> list[int]:
    """Write a question about frames `[n, codes of a frame]` out as training's chats are."""
    asked = Line(USER, [question, Frames("video" if len(codes) > 1 else "image", codes, {})])
    (prompt,) = prompts_of([asked, Line(ASSISTANT, [])], studio)
    return prompt


def run_needle(options: argparse.Namespace, console: Console, text: TextTokenizer, studio: Studio | None) -> None:
    """Hide numbers in books and ask a model for them, or the server that is named where there is no model.

    The books are those that are named, or else those that Python carries.

    Raises:
      UserError: if there is not enough of books for a length, or a length is too short.
    """
    coder, out, room = needle.Coder(text.encode, text.decode, text.bos), Path(options.out), options.new_tokens
    if not options.haystack:
        write_corpus(out / "books")
    haystack = needle.make_haystack(texts(options.haystack or [str(out / "books")]), coder)

    def trial(length: int, depth: int, number: int) -> needle.Trial:
        form = options.seed, options.needles, options.asked, room
        return needle.make_trial(haystack, coder, length, depth, number, *form)

    lengths, grid = sorted(options.lengths), depths(options.depths)
    for length in lengths:  # what cannot be made is refused before anything is asked
        trial(length, grid[0], 0)
    mine, asked = tee(trial(*cell, n) for cell in _cells(lengths, grid) for n in range(options.trials))
    if studio:
        said = replies((one.prompt for one in asked), studio, room)
    else:
        words = (one.text(text.decode) for one in asked)
        server = options.server, options.model, room, out / "replies", options.at_once, options.per_minute
        said = ask(words, *server)
    outcomes = []
    for one, told in zip(mine, said, strict=True):
        right = tuple(digits in told for digits in one.expected)
        cell = one.length, one.depth, one.number
        outcomes.append(Outcome(*cell, digest(one.prompt), one.expected, told, right, round(one.true_depth, 3)))
    about = {name: getattr(options, name) for name in ("seed", "needles", "asked")}
    title = f"{options.needles} needles, {options.asked} asked for" if options.needles > 1 else "Needle in a haystack"
    model = {"model": options.run if studio else options.model}
    share = write(out, "needle", title, LENGTH, DEPTH, outcomes, model | about)
    console.print(f"{share:.1%} right in {len(outcomes):,} trials: {out}/needle.json and .png", soft_wrap=True)


def _cells(columns: Sequence[int], rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    return ((column, row) for column in columns for row in rows)


def run_videos(options: argparse.Namespace, console: Console, studio: Studio) -> None:
    """Ask about one clip of each long video of the toy world, once with all frames and once with eight of them.

    Raises:
      UserError: if more clips are to be joined than there are.
    """
    joined.check_template(options.template)
    pool = [long_video.Clip(codes, questions(one)) for one, codes in held_out(options, studio, "video")]
    trials = [
        long_video.make_trial(pool, lambda n, q: joined.word(n, q, options.template), *cell, n, options.seed)
        for cell in _cells(sorted(options.clips), depths(options.depths))
        for n in range(options.trials)
    ]
    for name, shown_frames in (("all", lambda codes: codes), (str(long_video.FEW), long_video.few)):
        prompts = [shown_prompt(shown_frames(t.codes), t.question, studio) for t in trials]
        outcomes = [
            Outcome(t.clips, t.depth, t.number, digest(p), (t.answer,), told, (agrees(told, t.answer),))
            for t, p, told in zip(trials, prompts, replies(prompts, studio, ANSWER), strict=True)
        ]
        about = {"model": options.run, "seed": options.seed, "frames": name, "template": options.template}
        out, title = Path(options.out), f"Questions about long videos, {name} frames"
        share = write(out, f"videos-{name}", title, CLIPS, DEPTH, outcomes, about)
        console.print(
            f"{name} frames: {share:.1%} right of {len(outcomes):,}: {out}/videos-{name}.json and .png", soft_wrap=True
        )


def held_out(options: argparse.Namespace, studio: Studio, medium: str) -> list[Shown]:
    """Read the toy world's scenes in a packed data set that was kept from training, the first ones."""
    rows = open_dataset(options.clip_data if medium == "video" else options.image_data)
    return shown_in(rows, studio.text, studio.generator.vocabulary, options.world, medium)[: options.count]


def run_loss(options: argparse.Namespace, console: Console, studio: Studio) -> None:
    """Measure the held-out loss of each task, and write it as JSON and as a table.

    Raises:
      UserError: if the data was made with another vocabulary.
    """
    dataset, generator = open_dataset(options.data), studio.generator
    vocabulary = generator.vocabulary
    if dataset.vocabulary.fingerprint != vocabulary.fingerprint:
        raise UserError(
            f"the vocabulary of {options.data} is {dataset.vocabulary.fingerprint}, and the model's is "
            f"{vocabulary.fingerprint}: measure on data built with that one"
        )
    rule = Rule(options.weights) if options.weights else dataset.weights
    attend = make_ring()
    nll = make_nll(generator.params, generator.model, attend, generator.mesh)
    tasks = measure(dataset, nll, rule, options.rows, options.limit)
    told = {"model": options.run, "data": dataset.root, "weights": str(rule), "tasks": tasks}
    write_json(Path(options.out), "loss", told)
    table = Table("task", "examples", "loss", "tokens", "nll", "perplexity", "text", "vision", box=None)
    for task in tasks:
        parts = [task, *(task.get(name, {}) for name in ("text", "vision"))]
        counts = f"{task['examples']:,}", f"{task['loss']:.4g}", f"{task['tokens']:,}"
        means = [task["nll"], *(part.get("perplexity") for part in parts)]
        table.add_row(task["task"], *counts, *("" if mean is None else f"{mean:.4g}" for mean in means))
    console.print(table)


def run_toy_world(options: argparse.Namespace, console: Console, studio: Studio) -> None:
    """Draw from held-out captions and ask about held-out scenes; tell how much of it a program finds right."""
    how = changed(IMAGE, options), changed(LATER, options, guided=False)

    def answer(asked: list[tuple[Shown, str]]) -> list[str]:
        prompts = (shown_prompt(one.codes, question, studio) for one, question in asked)
        return list(replies(prompts, studio, ANSWER))

    stills, films = (held_out(options, studio, medium) for medium in ("image", "video"))
    still, moving = ([one.scene for one in shown] for shown in (stills, films))
    pictures = studio.images([caption(one) for one in still], how[0], options.seed)
    clips = studio.videos([caption(one) for one in moving], len(films[0].codes), *how, options.seed)
    judged: dict[str, list[Judged]] = {
        "images": judge_pictures(still, pictures),
        "clips": judge_clips(moving, clips),
        "questions about images": judge_answers(stills, answer),
        "questions about clips": judge_answers(films, answer),
    }
    told = {name: sum_up(all_) for name, all_ in judged.items()}
    write_json(
        Path(options.out), "toy-world", {"model": options.run, "world": options.world, "seed": options.seed, **told}
    )
    table = Table("toy world", "count", "right")
    for name, part in told.items():
        table.add_row(name, f"{part['count']:,}", f"{part['right']:.1%}")
    console.print(table)


def run_evaluate(options: argparse.Namespace, console: Console) -> None:
    """Measure what the command line asks for.

    Raises:
      UserError: if neither a run nor a server is named, or both are.
    """
    server = getattr(options, "server", None)
    if bool(server) == bool(options.run):
        raise UserError("there is nothing to measure, or too much: name a RUN, or a server by --server and --model")
    if server:
        if not (options.tokenizer and options.model):
            raise UserError("a server needs --model, its name of it, and --tokenizer, which lengths are counted by")
        run_needle(options, console, load(options.tokenizer), None)
        return
    place = options.run, options.tokenizer, options.vision, options.form, options.mesh or ""
    studio = open_studio(*place, preset=options.preset, theta=options.theta)
    if options.what == "needle":
        run_needle(options, console, studio.text, studio)
    else:
        {"videos": run_videos, "loss": run_loss, "toy-world": run_toy_world}[options.what](options, console, studio)
