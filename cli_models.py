"""The commands about models: training, and all that is done with what was trained."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from .arguments import Formatter, add_command, add_json, add_set, console, positive


def add_commands(commands: Any) -> None:
    """Describe the commands about models."""
    for add in (
        _train_command,
        _stages_command,
        _generate_command,
        _evaluate_command,
        _weights_command,
        _toy_world_command,
        _needles_command,
    ):
        add(commands)


def _train_command(commands: Any) -> None:
    parser = add_command(
        commands,
        "train",
        run_train,
        "Train a model on packed sequences, resuming from its checkpoint.",
        "worldloom train config.yaml --set steps=200",
    )
    parser.add_argument("config", help="a YAML file")
    add_set(parser)
    add_json(parser)


def _stages_command(commands: Any) -> None:
    parser = add_command(commands, "stages", run_stages, "Train a ladder of stages, each with another's weights.",
                         "worldloom stages recipes/lwm/stages.yaml --out lwm --list")  # fmt: skip
    parser.add_argument("stages", metavar="FILE", help="a YAML file; relative paths in it start at its folder")
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="folder of the ladder: data of recipe R in data/R, stage NAME in NAME")  # fmt: skip
    parser.add_argument("--init", metavar="PATH", help="weights that stages without a parent begin with")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--only", nargs="+", default=[], metavar="NAME", help="take these stages")
    some.add_argument("--from", dest="first", metavar="NAME", help="take this stage and all that descend from it")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="show the stages, and do nothing")
    what.add_argument("--build", action="store_true", help="build the stages' data, and train nothing")
    parser.add_argument("--set", action="append", default=[], metavar="[NAME.]KEY=VALUE",
                        help="change a key of every stage's config, or of one's; may be repeated")  # fmt: skip
    parser.set_defaults(beam=[])
    parser.add_argument("--workers", type=positive, default=1, help="processes of a build's default, local runner")
    parser.epilog = f"{parser.epilog}\n\nAll that follows -- goes to Apache Beam where data are built"


def _weights_command(commands: Any) -> None:
    parser = commands.add_parser("weights", help="Read weights of others, or write some for them.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    reading = add_command(
        actions,
        "import",
        run_weights_import,
        "Make weights of LLaMA or LWM the folder of a run.",
        "worldloom weights import LWM/params --out runs/lwm --text tokenizer.model --model 7b --set theta=5e7",
    )
    reading.add_argument("path", help="a folder of Hugging Face's (safetensors), or a stream of LWM's")
    reading.add_argument("--out", required=True, help="a new folder")
    reading.add_argument("--text", required=True, metavar="MODEL", help="the SentencePiece model of these weights")
    reading.add_argument("--vision", metavar="PATH", help="tokenizer of pictures, where the model is to know them")
    reading.add_argument("--model", metavar="PRESET", help="sizes, which LWM's file does not tell: 7b")
    reading.add_argument("--seed", type=int, default=0, help="of tables of pictures that the weights have not")
    add_set(reading)
    writing = add_command(
        actions,
        "export",
        run_weights_export,
        "Write a run's latest parameters as others read them.",
        "worldloom weights export runs/lwm --out lwm-hf --to huggingface",
    )
    writing.add_argument("run", help="the folder of a run")
    writing.add_argument("--out", required=True, help="a new folder, or for lwm a new file")
    writing.add_argument("--to", choices=("huggingface", "lwm"), default="huggingface", help="the form")
    writing.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the numbers"
    )


def _toy_world_command(commands: Any) -> None:
    parser = add_command(commands, "toy-world", run_toy_world, "Write a small world: images, clips and questions.",
                         "worldloom toy-world toy-world --images 2160 --clips 1440")  # fmt: skip
    parser.add_argument("dir", metavar="DIR", help="folder to write")
    parser.add_argument("--images", type=positive, default=2160, help="still scenes; after 1,080 in other words")
    parser.add_argument("--clips", type=positive, default=1440, help="moving scenes, of which there are 1,440")
    parser.add_argument("--size", type=positive, default=64, help="side of a picture in pixels, even")
    parser.add_argument("--seed", type=int, default=0, help="of the order of scenes, and of their words")


def _needles_command(commands: Any) -> None:
    parser = add_command(commands, "needles", run_needles, "Write chats that teach a model to find numbers in books.",
                         "worldloom needles chats.jsonl --tokenizer my.model --length 512 --count 2000")  # fmt: skip
    parser.add_argument("out", metavar="FILE", help="JSONL of chats; a .txt gets their words, for a tokenizer to learn")
    parser.add_argument("--count", type=positive, default=1000, help="chats, or lines of words")
    parser.add_argument("--tokenizer", metavar="MODEL", help="text model whose tokens --length counts")
    parser.add_argument("--length", type=positive, help="tokens of a chat, at the most")
    parser.add_argument("--needles", type=positive, default=1, help="numbers hidden in a chat, at the most")
    parser.add_argument("--asked", type=positive, default=1, help="questions in a chat, at the most")
    parser.add_argument(
        "--books", nargs="+", default=[], help="files, folders or globs; default: Python's documentation"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")


def _generate_command(commands: Any) -> None:
    parser = add_command(commands, "generate", run_generate, "Write texts, draw pictures and videos, and talk.",
                         "worldloom generate runs/toy image --prompt 'a red circle' --out made")  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="folder of a run or of Hugging Face's, or LWM's stream")
    parser.add_argument("what", choices=("text", "image", "video", "chat"), help="what to make")
    parser.add_argument("--prompt", action="append", help="of anything but a chat; may be repeated")
    parser.add_argument("--prompts", metavar="FILE", help="a prompt a line; of chat: JSONL of messages, left out: talk")
    parser.add_argument("--out", metavar="DIR", help="folder of what is drawn; of chat: the JSONL file of replies")
    _add_model(parser)
    parser.add_argument("--rows", type=positive, default=16, help="prompts that are worked on at once")
    parser.add_argument("--cache", type=positive, metavar="TOKENS", help="print what a cache of so many tokens takes")
    parser.add_argument("--temperature", type=float, help="of what is drawn; 0 takes the likeliest")
    parser.add_argument("--top-k", type=int, help="ids that are drawn from; default: LWM's for pictures, else all")
    parser.add_argument("--guidance", type=float, help="of images and first frames; default: LWM's, 5")
    parser.add_argument("--frames", type=positive, default=8, help="of a video")
    parser.add_argument("--new-tokens", type=positive, default=256, help="of a text or a reply, at the most")


def _evaluate_command(commands: Any) -> None:
    what = "Measure a model: needles in books, questions about long videos, held-out loss, the toy world."
    parser = commands.add_parser("evaluate", help=what, description=what, formatter_class=Formatter)
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    needle = add_command(
        kinds,
        "needle",
        run_evaluate,
        "Hide numbers in books and ask for them, over lengths and depths.",
        "worldloom evaluate needle run --lengths 1024 4096 --out charts",
    )
    _add_run(needle, nargs="?")
    needle.add_argument("--haystack", nargs="+", default=[], metavar="BOOKS",
                        help="files, folders or globs; left out, the books that Python carries")  # fmt: skip
    needle.add_argument("--lengths", nargs="+", type=positive, required=True, help="tokens of prompt and reply")
    needle.add_argument("--needles", type=positive, default=1, help="numbers that are hidden")
    needle.add_argument("--asked", type=positive, default=1, help="numbers of them that are asked for")
    needle.add_argument("--new-tokens", type=positive, default=32, help="tokens of a reply, kept free in each length")
    needle.add_argument("--server", metavar="URL", help="instead of a run, an OpenAI-compatible server, up to /v1;"
                        " WORLDLOOM_API_KEY holds its key")  # fmt: skip
    needle.add_argument("--model", help="the server's name of its model")
    needle.add_argument("--at-once", type=positive, default=4, help="requests to the server in flight")
    needle.add_argument("--per-minute", type=float, help="requests to the server a minute")
    videos = add_command(kinds, "videos", run_evaluate, "Ask about one of the clips that are joined into a long video.",
                         "worldloom evaluate videos run --clip-data data/eval --clips 1 2 4 --out charts")  # fmt: skip
    _add_run(videos)
    _add_world(videos)
    videos.add_argument("--clips", nargs="+", type=positive, required=True, help="clips joined into one video")
    videos.add_argument("--template", default="In clip {number}, {question}",
                        help="of a question; {number} or {ordinal} names the clip")  # fmt: skip
    for parser in (needle, videos):
        parser.add_argument("--depths", type=positive, default=10, help="from 0 to 100 percent, evenly")
        parser.add_argument("--trials", type=positive, default=5, help="in each cell of the chart")
    loss = add_command(kinds, "loss", run_evaluate, "Measure the loss of each task on packed data.",
                "worldloom evaluate loss run data/packed-eval --out charts")  # fmt: skip
    _add_run(loss)
    loss.add_argument("data", metavar="DATA", help="a packed data set")
    loss.add_argument("--weights", choices=("lwm", "example", "token"), help="rule of the weights; default: the data's")
    loss.add_argument("--rows", type=positive, default=1, help="computed at once")
    loss.add_argument("--limit", type=positive, help="rows that are measured, the first ones")
    toy = add_command(kinds, "toy-world", run_evaluate, "Judge what a model draws and answers in the toy world.",
               "worldloom evaluate toy-world run --image-data data/packed-images-eval"
               " --clip-data data/packed-clips-eval --out charts")  # fmt: skip
    _add_run(toy)
    _add_world(toy)
    toy.add_argument("--image-data", required=True, metavar="DATA", help="packed images that were held out")
    toy.add_argument("--temperature", type=float, help="of codes; default: LWM's, 1")
    toy.add_argument("--top-k", type=int, help="codes that are drawn from; default: LWM's")
    toy.add_argument("--guidance", type=float, help="of images and first frames; default: LWM's, 5")


def _add_run(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument("run", metavar="RUN", nargs=nargs, help="folder of a run or of Hugging Face's, or LWM's stream")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the figures and charts")
    _add_model(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", metavar="MODEL", help="text model; default: that of the run's data")
    parser.add_argument("--vision", metavar="PATH", help="vision tokenizer; default: that of the run's data")
    parser.add_argument("--form", choices=("pair", "chat"), help="how captions are written out; default: the recipe's")
    parser.add_argument("--mesh", metavar="SIZES", help="devices along each axis, as sp=4,tp=2; default: one device")
    parser.add_argument("--preset", help="sizes of LWM's model, as 7b, where the file does not tell")
    parser.add_argument("--theta", type=float, help="of its rotary angles")


def _add_world(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clip-data", required=True, metavar="DATA", help="packed clips that were held out")
    parser.add_argument("--world", type=int, default=0, metavar="SEED", help="of the toy world")
    parser.add_argument("--count", type=positive, default=100, help="scenes of each kind, at the most")


def run_train(options: argparse.Namespace) -> int:
    from .training.config import load

    summary = train_with_bar(load(options.config, options.set))
    if options.json:
        print(json.dumps(asdict(summary), indent=1, default=str))
        return 0
    _print_summary(summary)
    return 0


def _print_summary(summary: Any) -> None:
    held_out = "" if summary.held_out_loss is None else f", held out {summary.held_out_loss:.3f}"
    print(f"{summary.steps:,} steps, {summary.parameters:,} parameters, {summary.tokens_per_second:,.0f} tokens/s")
    print(f"loss {summary.first_loss:.3f} -> {summary.last_loss:.3f}{held_out}")
    print(f"{summary.metrics}\n{summary.curve}")


def run_stages(options: argparse.Namespace) -> int:
    from .cli import main
    from .stages import run_stages

    run_stages(options, console(), main, lambda config: _print_summary(train_with_bar(config)))
    return 0


def train_with_bar(config: Any) -> Any:
    """Train, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .training.train import train

    columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty())
    with bar:
        task = bar.add_task("train", total=config.steps, told="")

        def report(line: dict[str, Any]) -> None:
            if "loss" in line:
                told = f"loss {line['loss']:.3f}  {line['tokens_per_second']:,.0f} tokens/s"
                bar.update(task, completed=line["step"], told=told)

        return train(config, report=report)


def run_weights_import(options: argparse.Namespace) -> int:
    from .weights import run_import

    names = options.text, options.vision, options.model
    print(f"{options.out}: {run_import(options.path, options.out, *names, options.set, options.seed)}")
    return 0


def run_weights_export(options: argparse.Namespace) -> int:
    from .weights import run_export

    print(f"{options.out}: {run_export(options.run, options.out, options.to, options.dtype):,} parameters")
    return 0


def run_evaluate(options: argparse.Namespace) -> int:
    from .evaluation import run_evaluate

    run_evaluate(options, console())
    return 0


def run_generate(options: argparse.Namespace) -> int:
    from .generation import run_generate

    run_generate(options, console())
    return 0


def run_toy_world(options: argparse.Namespace) -> int:
    from .toy_world import run

    run(options, console())
    return 0


def run_needles(options: argparse.Namespace) -> int:
    from .needles import run_needles

    run_needles(options, console())
    return 0
