"""The cost of a build: hours, bytes and money of the whole set, from what this machine took for a sample."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from ..recipe import RatesSection, Recipe
from ..sources import BookQuestionsSource
from .asking.prompt import PROMPT
from .models import text_tokenizer
from .rehearsal import Pace, Rehearsal

HOUR, GIGABYTE = 3600.0, 1e9
Plain = dict[str, Any]


def cost_of(recipe: Recipe, plan: Plain, rehearsed: dict[str, Rehearsal], pace: Pace | None) -> Plain:
    """Price a plan: plain data.

    Args:
      plan: of `plan_recipe`, its sources' seconds without those of the model of pictures.
      rehearsed: the sources' examples, by name.
      pace: of the model of pictures, where the recipe has one.
    """
    sources = {name: source_cost(recipe, name, told, rehearsed[name]) for name, told in plan["sources"].items()}
    packs = {
        section.name: pack_cost(
            section.name, section.sources or list(sources), plan["packs"][f"packed-{section.name}"], plan, rehearsed
        )
        for section in recipe.pack
    }
    frames = sum(told["frames"] for told in plan["sources"].values())
    model = model_cost(recipe, frames, pace)
    questions = [s["questions"] for s in sources.values() if s["questions"]]
    worker = sum(sum(s["seconds"].values()) for s in sources.values()) + sum(p["seconds"] for p in packs.values())
    total = {
        "tokens": sum(told["tokens"] for told in plan["sources"].values()),
        "bytes_read": sum(told["bytes"] for told in plan["sources"].values()),
        "bytes_written": sum(s["bytes"] + s["reject_bytes"] for s in sources.values())
        + sum(p["bytes"] for p in packs.values()),
        "worker_hours": (worker + model["worker_seconds"]) / HOUR,
        "accelerator_hours": model["accelerator_seconds"] / HOUR,
    }
    asked = sum(q["dollars"] for q in questions)
    priced = money(recipe.rates, total, asked if questions else None)
    return {"sources": sources, "packs": packs, "model": model, "total": total, "dollars": priced}


def source_cost(recipe: Recipe, name: str, told: Plain, done: Rehearsal) -> Plain:
    """Scale what the examples of a source took to all of them: seconds of one worker by step, and bytes."""
    more = told["tokens"] / done.tokens if done.tokens else 0.0
    each = told["kept"] / done.examples if done.examples else 0.0
    seconds = {
        "read_and_tokenize": told["seconds"],
        "write": done.write_seconds * more,
        "duplicates": done.duplicate_seconds * each,
    }
    return {
        "seconds": seconds,
        "bytes": round(done.bytes * more),
        "reject_bytes": round(done.reject_bytes * (told["records"] - told["kept"])),
        "questions": questions_cost(recipe, name, told),
    }


def questions_cost(recipe: Recipe, name: str, told: Plain) -> Plain | None:
    """Price the questions of a language model: one reply about each chunk, as long as it may be.

    The prompts are counted in the recipe's own tokens. None where no model is asked.
    """
    source = recipe.source(name)
    if not isinstance(source, BookQuestionsSource) or source.questions.by != "server":
        return None
    section, requests = source.questions, told["chunks"]
    around = len(text_tokenizer(recipe.vocabulary.text).encode((section.prompt or PROMPT).replace("{}", "")))
    prompts, replies = told["chunk_tokens"] + requests * around, requests * section.max_tokens
    paid = (prompts * section.dollars_in + replies * section.dollars_out) / 1e6
    return {"requests": requests, "prompt_tokens": prompts, "completion_tokens": replies, "dollars": paid}


def pack_cost(name: str, sources: list[str], planned: Plain, plan: Plain, rehearsed: dict[str, Rehearsal]) -> Plain:
    """Scale what packing some sources' examples took to all of them."""
    seconds, rows, size = 0.0, 0, 0
    for source in sources:
        done = rehearsed[source]
        written = done.packs[name]
        rows, size = rows + written.rows, size + written.bytes
        seconds += written.seconds * plan["sources"][source]["tokens"] / done.tokens if done.tokens else 0.0
    return {"seconds": seconds, "bytes": round(planned["sequences"] * size / rows) if rows else 0}


def model_cost(recipe: Recipe, frames: int, pace: Pace | None) -> Plain:
    """Say how long the model of pictures runs, and on what.

    A codebook runs on the workers. A VQGAN runs on an accelerator where the recipe rates one or this machine has one,
    at the rate's pace or at the one measured, and else on the workers.
    """
    told: Plain = {"kind": None, "frames": frames, "device": None, "measured": None, "by_rate": False}
    spent = {"worker_seconds": 0.0, "accelerator_seconds": 0.0}
    if pace is None or recipe.vocabulary.vision is None:
        return told | spent
    kind, rate = recipe.vocabulary.vision.kind, recipe.rates.frames_per_second
    by_rate = kind == "vqgan" and rate is not None
    where = "accelerator_seconds" if by_rate or pace.device != "cpu" else "worker_seconds"
    spent[where] = frames / (rate if by_rate and rate else pace.frames_per_second)
    told |= {"kind": kind, "device": pace.device, "measured": pace.frames_per_second, "by_rate": by_rate}
    return told | spent


def money(rates: RatesSection, total: Plain, questions: float | None) -> Plain:
    """Price hours and bytes by what rates are given; None is what has none, and is no part of the sum."""

    def priced(rate: float | None, amount: float) -> float | None:
        return None if rate is None else rate * amount

    parts = {
        "workers": priced(rates.worker_hour, total["worker_hours"]),
        "accelerators": priced(rates.accelerator_hour, total["accelerator_hours"]),
        "storage_month": priced(rates.gigabyte_month, total["bytes_written"] / GIGABYTE),
        "questions": questions,
    }
    return {**parts, "total": sum(part for part in parts.values() if part is not None)}


def render_cost(cost: Plain, plan: Plain) -> Iterator[Any]:
    """Show a cost as tables, and say what its hours are."""
    yield _by_source(cost, plan)
    packed = Table("data set", "time", "bytes", title="Packing: processor time")
    for name, told in cost["packs"].items():
        packed.add_row(f"packed-{name}", duration(told["seconds"]), amount(told["bytes"]))
    yield packed
    yield from _questions(cost)
    yield from _model(cost["model"])
    yield _in_all(cost)


def _by_source(cost: Plain, plan: Plain) -> Table:
    heads = ("frames", "read and tokenize", "write", "duplicates", "bytes", "of rejects")
    table = Table("source", *heads, title="Examples: processor time, the model of pictures left out")
    for name, told in cost["sources"].items():
        spent = [duration(told["seconds"][step]) for step in ("read_and_tokenize", "write", "duplicates")]
        sizes = amount(told["bytes"]), amount(told["reject_bytes"])
        table.add_row(name, amount(plan["sources"][name]["frames"]), *spent, *sizes)
    return table


def _questions(cost: Plain) -> Iterator[str]:
    for name, source in cost["sources"].items():
        if asked := source["questions"]:
            tokens = (
                f"{asked['prompt_tokens']:,} tokens of prompts and at most {asked['completion_tokens']:,} of replies"
            )
            yield f"Questions of {name}: {asked['requests']:,} replies, {tokens}, {dollars(asked['dollars'])} dollars"


def _model(model: Plain) -> Iterator[str]:
    if model["kind"] is None:
        return
    spent = duration(model["worker_seconds"] + model["accelerator_seconds"])
    second = "for a second of one processor" if model["device"] == "cpu" else f"a second on {model['device']}"
    pace = f"The {model['kind']} encoded {model['measured']:,.2f} frames {second}"
    if model["by_rate"]:
        yield f"{pace}; at rates.frames_per_second all take an accelerator {spent}."
    elif model["kind"] == "vqgan" and model["device"] == "cpu":
        yield (
            f"{pace}: all take workers {spent}, measured on the processor. For the hours of an accelerator instead, "
            "set rates.frames_per_second to what it encodes."
        )
    else:
        yield f"{pace}: all take {spent}."


def _in_all(cost: Plain) -> Table:
    total, priced = cost["total"], cost["dollars"]
    table = Table("of the whole set", "in all", "dollars")
    table.add_row("tokens", f"{total['tokens']:,}", "")
    table.add_row("bytes read", f"{total['bytes_read']:,}", "")
    table.add_row("bytes written, for a month", f"{total['bytes_written']:,}", dollars(priced["storage_month"]))
    table.add_row("worker-hours", number(total["worker_hours"]), dollars(priced["workers"]))
    table.add_row("accelerator-hours", number(total["accelerator_hours"]), dollars(priced["accelerators"]))
    if priced["questions"] is not None:
        table.add_row("questions", "", dollars(priced["questions"]))
    table.add_row("what has a rate", "", dollars(priced["total"]))
    return table


def duration(seconds: float) -> str:
    """Write seconds in a unit that suits them."""
    for size, name in ((HOUR, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"


def amount(count: float) -> str:
    """Write a count, a large one rounded."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:,.2f}{name}"
    return f"{count:,}"


def number(found: float) -> str:
    return f"{found:,.2f}" if found >= 1 or not found else f"{found:.2g}"


def dollars(found: float | None) -> str:
    return "no rate" if found is None else number(found)
