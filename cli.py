"""The command line: `worldloom COMMAND`. Results go to stdout, the bar and messages to stderr."""

import argparse
import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from . import __version__
from .arguments import Formatter, Handler, add_command, add_json, add_set, bar, console, positive
from .cli_models import add_commands as add_models
from .errors import RunFailed, UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 for a failed run, 2 for a wrong call."""
    arguments = sys.argv[1:] if arguments is None else arguments
    own, beam = split_beam_flags(arguments)
    parser = make_parser()
    options = parser.parse_args(own)
    if beam and not hasattr(options, "beam"):
        parser.error(f"{options.command} takes no Beam flags after --")
    if beam:
        options.beam = beam
    logging.basicConfig(level=logging.ERROR)
    handler: Handler = options.handler
    try:
        return handler(options)
    except UserError as error:
        print(f"worldloom: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    except ModuleNotFoundError as error:
        print(f"worldloom: {missing_extra(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"worldloom: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("worldloom: interrupted; what was finished is kept: call the same command again", file=sys.stderr)
        return 1


def split_beam_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Take Beam's flags off: all that follows `--`."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


EXTRAS = {
    "apache_beam": "build",
    "dask": "dask",
    "datasets": "build",
    "distributed": "dask",
    "openai": "build",
    "py3langid": "build",
    "re2": "build",
    "jax": "train",
    "optax": "train",
    "orbax": "train",
    "matplotlib": "train",
    "safetensors": "train",
    "tensorboardX": "train",
    "PIL": "vision",
    "aiohttp": "vision",
    "av": "vision",
    "diffusers": "vision",
    "simplejpeg": "vision",
    "torch": "vision",
    "webdataset": "vision",
    "gcsfs": "gcs",
    "s3fs": "s3",
}


def missing_extra(error: ModuleNotFoundError) -> str:
    """Say which extra brings a missing module."""
    name = (error.name or "").split(".")[0]
    if name not in EXTRAS:
        raise error
    return f"this command needs {name}: pip install 'worldloom[{EXTRAS[name]}]'"


def make_parser() -> argparse.ArgumentParser:
    """Describe all commands."""
    parser = argparse.ArgumentParser("worldloom", description=__doc__, formatter_class=Formatter)
    parser.add_argument("--version", action="version", version=f"worldloom {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_build_command, _questions_command, _pack_command, _plan_command, _inspect_command, _verify_command,
                _retry_command, _repair_command, _export_command, _train_tokenizer_command, _train_codebook_command,
                _convert_vqgan_command, _quickstart_command):  # fmt: skip
        add(commands)
    add_models(commands)
    return parser


def _build_command(commands: Any) -> None:
    parser = add_command(commands, "build", run_build, "Build a data set from a recipe, resuming what is there.",
                  "worldloom build recipes/lwm/text-32k.yaml --out data/text-32k --workers 8")  # fmt: skip
    parser.add_argument("recipe", help="a YAML file; relative paths in it start at its folder")
    parser.add_argument("--out", required=True, help="folder or URL of the data set")
    add_set(parser)
    _add_beam(parser)


def _questions_command(commands: Any) -> None:
    parser = add_command(commands, "questions", run_questions, "Make the questions about books, as build does first.",
                  "worldloom questions recipes/lwm/text-chat-128k.yaml --out data/text-chat-128k")  # fmt: skip
    parser.add_argument("recipe", help="a YAML file with a source of kind book-questions")
    parser.add_argument("--out", required=True, help="folder or URL of the data set, the same as build's")
    add_set(parser)
    _add_beam(parser)


def _pack_command(commands: Any) -> None:
    parser = add_command(commands, "pack", run_pack, "Pack finished examples into sequences.",
                  "worldloom pack data/text-32k/examples --out data/packed-8192 --length 8192")  # fmt: skip
    parser.add_argument("examples", help="a finished folder of examples (DIR/examples of a build)")
    parser.add_argument("--out", required=True, help="folder or URL of the packed data set")
    parser.add_argument("--length", required=True, type=int, help="tokens of a sequence")
    parser.add_argument("--weights", choices=("lwm", "example", "token"), default="example",
                        help="default rule of loss weights")  # fmt: skip
    parser.add_argument("--split", choices=("all", "train", "eval"), default="all", help="side of the eval split")
    parser.add_argument("--frames", type=frames, metavar="fit|N",
                        help="thin videos to N frames, or to as many as fit; default: leave none out")  # fmt: skip
    _add_beam(parser)


def _plan_command(commands: Any) -> None:
    parser = add_command(
        commands,
        "plan",
        run_plan,
        "Estimate rows, tokens, sequences, bytes, time and cost from a sample.",
        "worldloom plan recipes/lwm/text-1m.yaml --measure --set rates.worker_hour=0.05",
    )
    parser.add_argument("recipe", help="a YAML file")
    parser.add_argument("--measure", action="store_true", help="time each step here: hours, bytes and dollars")
    parser.add_argument("--seconds", type=float, default=20.0, help="time spent on each source's sample")
    add_set(parser)
    add_json(parser)


def _inspect_command(commands: Any) -> None:
    parser = add_command(commands, "inspect", run_inspect, "Summarise a data set, or show rows of it.",
                  "worldloom inspect data/text-32k/packed-32768 --row 0")  # fmt: skip
    parser.add_argument("data", metavar="DIR", help="a folder of examples or sequences, or of a whole build")
    parser.add_argument("--row", type=int, help="show this row in detail")
    parser.add_argument("--record", metavar="ID", help="find a record's rows, or why there are none")
    parser.add_argument("--sample", type=positive, metavar="N", help="show N rows chosen at random, always the same")
    parser.add_argument("--task", help="only this task")
    parser.add_argument("--source", help="only this source")
    parser.add_argument("--weights", choices=("lwm", "example", "token"), help="rule of the weights shown")
    parser.add_argument("--tokenizer", metavar="MODEL", help="text model to decode with; default: the build's own")
    parser.add_argument("--vision", metavar="PATH", help="vision tokenizer to draw with; default: the build's own")
    parser.add_argument("--html", metavar="FILE", help="write the rows, frames drawn, as one web page")
    parser.add_argument("--sheet", metavar="FILE", help="write the rows' frames as one picture, a PNG")
    parser.add_argument("--full", action="store_true", help="shorten no text, and leave no frame out of the page")
    add_json(parser)


def _verify_command(commands: Any) -> None:
    parser = add_command(commands, "verify", run_verify, "Check every shard, row, count and digest of a data set.",
                  "worldloom verify data/text-32k")  # fmt: skip
    parser.add_argument("data", metavar="DIR", help="a folder of examples or sequences, or of a whole build")
    add_json(parser)


def _retry_command(commands: Any) -> None:
    parser = add_command(commands, "retry", run_retry, "Read again what failed in a build, and nothing else.",
                  "worldloom retry data/text-32k")  # fmt: skip
    parser.add_argument("data", metavar="DIR", help="the folder of a build")
    _add_beam(parser)


def _repair_command(commands: Any) -> None:
    parser = add_command(commands, "repair", run_repair, "Make again what verify finds wrong, and nothing else.",
                  "worldloom repair data/text-32k")  # fmt: skip
    parser.add_argument("data", metavar="DIR", help="the folder of a build, or of one data set in it")
    _add_beam(parser)


def _export_command(commands: Any) -> None:
    parser = add_command(commands, "export", run_export, "Write packed sequences as dense rows for other trainers.",
                  "worldloom export data/text-32k/packed-32768 --to parquet --out dense/text-32k")  # fmt: skip
    parser.add_argument("data", metavar="DIR", help="a folder of packed sequences (DIR/packed-NAME of a build)")
    parser.add_argument("--to", required=True, choices=("webdataset", "parquet"), help="tars, or parquet files")
    parser.add_argument("--out", required=True, help="folder or URL of the files")
    parser.add_argument("--weights", choices=("lwm", "example", "token"),
                        help="rule of the loss weights; default: the data set's own")  # fmt: skip
    parser.add_argument("--workers", type=positive, default=1, help="processes")
    add_json(parser)


def _train_tokenizer_command(commands: Any) -> None:
    parser = add_command(
        commands,
        "train-tokenizer",
        run_train_tokenizer,
        "Make a SentencePiece model from text files.",
        "worldloom train-tokenizer 'books/*.txt' --out my.model --size 8000",
    )
    parser.add_argument("paths", nargs="+", help="text files, folders or globs")
    parser.add_argument("--out", required=True, help="the model file to write")
    parser.add_argument("--size", type=positive, default=32000, help="number of pieces")
    parser.add_argument("--seed", type=int, default=0, help="of the sample of sentences")


def _train_codebook_command(commands: Any) -> None:
    parser = add_command(
        commands,
        "train-codebook",
        run_train_codebook,
        "Make a codebook of picture patches from pictures.",
        "worldloom train-codebook 'pictures/*.png' --out codebook.npz --codes 1024",
    )
    parser.add_argument("paths", nargs="+", metavar="IMAGES", help="picture files, folders or globs")
    parser.add_argument("--out", required=True, help="the codebook file to write")
    parser.add_argument("--codes", type=positive, default=8192, help="number of codes, 8192 at the most")
    parser.add_argument("--size", type=positive, default=256, help="side of a picture in pixels")
    parser.add_argument("--patch", type=positive, default=16, help="side of a patch in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the sample of patches")


def _convert_vqgan_command(commands: Any) -> None:
    parser = add_command(
        commands,
        "convert-vqgan",
        run_convert_vqgan,
        "Turn LWM's VQGAN, a pickle, into safetensors.",
        "worldloom convert-vqgan LWM-Chat-1M-Jax/vqgan --out models/vqgan",
    )
    parser.add_argument("file", help="the `vqgan` file of LWM; nothing in it is run")
    parser.add_argument("--out", required=True, help="folder to write")


def _quickstart_command(commands: Any) -> None:
    parser = add_command(commands, "quickstart", run_quickstart, "See it all: corpus, build, pack, inspect, train.",
                  "worldloom quickstart quickstart-out")  # fmt: skip
    parser.add_argument("out", metavar="DIR", help="a new folder, or that of an earlier quickstart")


def _add_beam(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(beam=[])
    parser.add_argument("--workers", type=positive, default=1, help="processes of the default, local runner")
    add_json(parser)
    parser.epilog = (
        f"{parser.epilog}\n\nAll that follows -- goes to Apache Beam, as in -- --runner=PrismRunner (docs/engines.md)"
    )


def frames(text: str) -> int | str:
    """Read `fit`, or a number of frames: a clip keeps its first and its last."""
    if text != "fit" and (not text.isdecimal() or int(text) < 2):
        raise argparse.ArgumentTypeError(f"{text!r} is neither fit nor a whole number from 2 on")
    return text if text == "fit" else int(text)


def run_build(options: argparse.Namespace) -> int:
    from .pipelines.build import build
    from .recipe import load_recipe

    recipe = load_recipe(options.recipe, options.set)
    if recipe.vocabulary.vision and recipe.vocabulary.vision.kind == "vqgan":
        from .tokenizers.allocator import own_allocator

        own_allocator()  # one worker encodes in this very process
    made = build(recipe, options.out, options.beam, options.workers, PurePath(options.recipe).stem)
    _print_made(made, options.json)
    return 0


def run_questions(options: argparse.Namespace) -> int:
    from .pipelines.build import QUESTIONS, questions
    from .recipe import load_recipe

    recipe = load_recipe(options.recipe, options.set)
    made = questions(recipe, options.out, options.beam, options.workers, PurePath(options.recipe).stem)
    _print_made({QUESTIONS: made}, options.json)
    return 0


def run_pack(options: argparse.Namespace) -> int:
    from .pipelines.build import pack
    from .recipe import PackSection
    from .schema import validate

    data = {"length": options.length, "weights": options.weights, "split": options.split, "frames": options.frames}
    section = validate(PackSection, data, "pack")
    _print_made(
        {options.out: pack(options.examples, options.out, section, options.beam, options.workers)}, options.json
    )
    return 0


def bill(usage: dict[str, int], section: dict[str, Any]) -> str:
    """Say what questions cost: requests, tokens, and dollars by the recipe's prices."""
    asked, replied = usage["prompt_tokens"], usage["completion_tokens"]
    dollars = (asked * section["dollars_in"] + replied * section["dollars_out"]) / 1e6
    return f"{usage['requests']:,} replies, {asked:,} + {replied:,} tokens, ${dollars:,.2f}"


def _print_made(made: dict[str, dict[str, Any]], as_json: bool) -> None:
    for name, manifest in made.items():
        for source, ledger in manifest["sources"].items():
            if ledger["read"] and not ledger["kept"]:
                why = max(ledger["reasons"], key=ledger["reasons"].get)
                print(f"worldloom: {name} keeps none of the {ledger['read']:,} records of {source}, mostly {why}",
                      file=sys.stderr)  # fmt: skip
    if as_json:
        print(json.dumps(made, indent=1))
        return
    for name, manifest in made.items():
        ledger, length = manifest["ledger"], manifest["length"]
        fill = f", fill {manifest['tokens'] / max(1, manifest['rows'] * length):.4f}" if length else ""
        print(f"{name}: {manifest['rows']:,} rows, {manifest['tokens']:,} tokens{fill}, root {manifest['root']}")
        for source, counts in manifest["sources"].items():
            if counts["usage"].get("requests"):
                print(f"  {source}: {bill(counts['usage'], manifest['about'][source]['questions'])}")
        counts = ", ".join(f"{n:,} {reason}" for reason, n in ledger["reasons"].items())
        print(f"  read {ledger['read']:,} = kept {ledger['kept']:,} + dropped {ledger['dropped']:,}"
              f" + failed {ledger['failed']:,}{f' ({counts})' if counts else ''}")  # fmt: skip


def run_plan(options: argparse.Namespace) -> int:
    from .pipelines.plan import measure_recipe, plan_recipe, render_plan
    from .recipe import load_recipe

    plan = measure_recipe if options.measure else plan_recipe
    found = plan(load_recipe(options.recipe, options.set), options.seconds)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        console().print(render_plan(found))
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    from .inspection import inspect

    return inspect(options, console())


def run_verify(options: argparse.Namespace) -> int:
    from .packing.verify import data_sets, verify

    names = data_sets(options.data)
    with bar("verify") as progress:
        problems = verify(options.data, progress)
    if options.json:
        print(json.dumps({"checked": names, "problems": [asdict(p) for p in problems]}, indent=1))
        return int(bool(problems))
    print(*problems, sep="\n", end="\n" if problems else "")
    checked = ", ".join(name or options.data for name in names)
    print(f"{checked}: {f'{len(problems)} problems' if problems else 'every shard, row, count and digest is right'}")
    return int(bool(problems))


def run_retry(options: argparse.Namespace) -> int:
    from .pipelines.retry import retry

    done = retry(options.data, options.beam, options.workers)
    if options.json:
        print(json.dumps(done.to_json(), indent=1))
    else:
        print(*done.lines(), sep="\n")
        _print_made(done.made, False)
    return 0


def run_repair(options: argparse.Namespace) -> int:
    from .packing.verify import verify
    from .pipelines.repair import repair

    def looked_at(url: str) -> list[Any]:
        with bar("verify") as progress:
            return list(verify(url, progress))

    done = repair(options.data, options.beam, options.workers, looked_at)
    print(json.dumps(asdict(done), indent=1) if options.json else "\n".join(done.lines()))
    return int(bool(done.left or done.lost))


def run_export(options: argparse.Namespace) -> int:
    from .export import export

    with bar("export") as progress:
        told = export(options.data, options.out, options.to, options.weights, options.workers, progress)
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        print(f"{options.out}: {told['rows']:,} rows of {told['length']:,} tokens in {len(told['files']):,} files, "
              f"weights by the rule {told['weights']}: divide by {told['divide_by']}")  # fmt: skip
    return 0


def run_train_tokenizer(options: argparse.Namespace) -> int:
    from .pipelines.books import texts
    from .tokenizers.train import train

    train(texts(options.paths), options.out, options.size, options.seed)
    print(f"{options.out}: {options.size:,} pieces")
    return 0


def run_train_codebook(options: argparse.Namespace) -> int:
    from .pipelines.reading.squares import squares
    from .tokenizers.codebook import fit

    unread: list[str] = []
    pictures = squares(options.paths, options.size, unread)
    codebook = fit(pictures, options.codes, size=options.size, patch=options.patch, seed=options.seed)
    codebook.save(options.out)
    if unread:
        print(f"worldloom: {len(unread):,} files cannot be read and were passed over, the first {unread[0]}",
              file=sys.stderr)  # fmt: skip
    print(f"{options.out}: {codebook.codes:,} codes of {options.patch} x {options.patch} pixels")
    return 0


def run_convert_vqgan(options: argparse.Namespace) -> int:
    from .tokenizers.lwm_vqgan import convert

    convert(options.file, options.out)
    print(f"{options.out}: name it in a recipe as vocabulary.vision: {{kind: vqgan, path: {options.out}}}")
    return 0


def run_quickstart(options: argparse.Namespace) -> int:
    from .quickstart import quickstart

    quickstart(options.out, console(), main)
    return 0


def entry() -> None:
    """Run one command and end the process at once: threads of Arrow or Beam may be caught in its dismantling."""
    try:
        code = main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
