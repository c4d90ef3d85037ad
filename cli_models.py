"""The commands about models: training, and all that is done with what was trained."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from .arguments import add_command, add_json, add_set


def add_commands(commands: Any) -> None:
    """Describe the commands about models."""
    for add in (_train_command, _weights_command):
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


def run_train(options: argparse.Namespace) -> int:
    from .training.config import load

    summary = train_with_bar(load(options.config, options.set))
    if options.json:
        print(json.dumps(asdict(summary), indent=1, default=str))
        return 0
    held_out = "" if summary.held_out_loss is None else f", held out {summary.held_out_loss:.3f}"
    print(f"{summary.steps:,} steps, {summary.parameters:,} parameters, {summary.tokens_per_second:,.0f} tokens/s")
    print(f"loss {summary.first_loss:.3f} -> {summary.last_loss:.3f}{held_out}")
    print(f"{summary.metrics}\n{summary.curve}")
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
