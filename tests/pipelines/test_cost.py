"""Costs of whole builds: the arithmetic by hand, the timing by a clock of its own, and plans beside true builds."""

import io
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from worldloom.cli import main
from worldloom.errors import UserError
from worldloom.packing.example import Span
from worldloom.packing.storage import Folder
from worldloom.pipelines import cost, plan, rehearsal
from worldloom.pipelines.asking.prompt import PROMPT
from worldloom.pipelines.build import claim, pack_job
from worldloom.pipelines.build import describe_examples as described
from worldloom.pipelines.encoding import BATCH
from worldloom.pipelines.job import finish, run_in_memory
from worldloom.pipelines.models import pictures_of, text_tokenizer
from worldloom.pipelines.plan import plan_source
from worldloom.pipelines.rehearsal import Pace, Rehearsal, Written, pace_of, rehearse, with_blank_codes
from worldloom.pipelines.tokenize import TokenizeJob, key_facts
from worldloom.recipe import Recipe, load_recipe
from worldloom.tokenizers.codebook import Codebook

VQGAN = {"kind": "vqgan", "path": "nowhere"}


def made(*sources: dict[str, Any], text: object = "some.model", **more: Any) -> Recipe:
    vocabulary = {"text": str(text), **({"vision": more.pop("vision")} if "vision" in more else {})}
    return Recipe.model_validate({"vocabulary": vocabulary, "sources": list(sources), **more})


def books(name: str = "a", path: object = "x", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "books", "path": str(path), **more}


def planned(**more: Any) -> dict[str, Any]:
    numbers = {"bytes": 5000, "records": 100, "kept": 90, "tokens": 9000, "seconds": 36.0}
    return {**numbers, "frames": 0, "chunks": 0, "chunk_tokens": 0, **more}


REHEARSED = Rehearsal(9, 900, 2000, 3.0, 0.5, 0.2, {"8": Written(0.25, 10, 2500)})


def test_a_cost_is_what_one_works_out_by_hand() -> None:
    """The rehearsed 900 tokens are a tenth of a's and a hundredth of b's; 10 rehearsed sequences took 2,500 bytes."""
    rates = {"worker_hour": 7.2, "gigabyte_month": 1e6}
    recipe = made(books("a"), books("b"), pack={"length": 8}, rates=rates)
    sources = {"a": planned(), "b": planned(tokens=90_000, kept=450, records=450, seconds=72.0)}
    found = cost.cost_of(
        recipe,
        {"sources": sources, "packs": {"packed-8": {"sequences": 120}}},
        {"a": REHEARSED, "b": REHEARSED},
        None,
    )
    assert found["sources"]["a"] == {
        "seconds": {"read_and_tokenize": 36.0, "write": 5.0, "duplicates": 2.0},
        "bytes": 20_000,
        "reject_bytes": 30,
        "questions": None,
    }
    assert found["sources"]["b"]["seconds"] == {"read_and_tokenize": 72.0, "write": 50.0, "duplicates": 10.0}
    assert found["packs"] == {"8": {"seconds": 27.5, "bytes": 30_000}}
    total = found["total"]
    assert (total["tokens"], total["bytes_read"], total["accelerator_hours"]) == (99_000, 10_000, 0)
    assert total["bytes_written"] == 20_000 + 30 + 200_000 + 0 + 30_000
    assert total["worker_hours"] == pytest.approx((36 + 5 + 2 + 72 + 50 + 10 + 27.5) / 3600)
    paid = {"workers": 202.5 / 500, "accelerators": None, "storage_month": 250.03, "questions": None}
    assert found["dollars"] == pytest.approx({**paid, "total": 202.5 / 500 + 250.03})


def test_a_source_without_examples_costs_its_reading() -> None:
    nothing = Rehearsal(0, 0, 300, 2.0, 0.1, 0.1, {"8": Written(0.1, 0, 99)})
    sources = {"a": planned(tokens=0, kept=0)}
    found = cost.cost_of(
        made(books(), pack={"length": 8}),
        {"sources": sources, "packs": {"packed-8": {"sequences": 0}}},
        {"a": nothing},
        None,
    )
    assert found["total"]["worker_hours"] == pytest.approx(0.01)
    assert (found["total"]["bytes_written"], found["packs"]["8"]["bytes"]) == (200, 0)


@pytest.mark.parametrize(
    ("vision", "device", "rate", "worker", "accelerator"),
    [
        (VQGAN, "cpu", None, 500.0, 0.0),
        (VQGAN, "cpu", 250.0, 0.0, 4.0),
        (VQGAN, "cuda", None, 0.0, 500.0),
        (VQGAN, "cuda", 250.0, 0.0, 4.0),
        ({"kind": "codebook", "path": "nowhere"}, "cpu", 250.0, 500.0, 0.0),
    ],
)
def test_a_vqgan_takes_an_accelerator_where_there_is_one(
    vision: dict[str, str], device: str, rate: float | None, worker: float, accelerator: float
) -> None:
    recipe = made(books(), vision=vision, rates={"frames_per_second": rate})
    found = cost.model_cost(recipe, 1000, Pace(device, 2.0))
    assert (found["worker_seconds"], found["accelerator_seconds"]) == (worker, accelerator)


def test_questions_of_a_server_cost_its_prices(small_model: Path) -> None:
    """3 chunks of 500 tokens in all, each with the prompt around it, and a reply of 40 tokens at the most."""
    server = {"by": "server", "url": "http://a.example/v1", "model": "m", "max_tokens": 40}
    source = {**books(), "kind": "book-questions", "questions": {**server, "dollars_in": 2.0, "dollars_out": 10.0}}
    recipe = made(source, text=small_model)
    around = len(text_tokenizer(str(small_model)).encode(PROMPT.replace("{}", "")))
    found = cost.questions_cost(recipe, "a", planned(chunks=3, chunk_tokens=500))
    prompts = 500 + 3 * around
    assert found == {
        "requests": 3,
        "prompt_tokens": prompts,
        "completion_tokens": 120,
        "dollars": pytest.approx((2 * prompts + 10 * 120) / 1e6),
    }
    assert cost.questions_cost(made({**source, "questions": {"by": "cloze"}}), "a", planned(chunks=3)) is None


class Encoder:
    """A model of pictures with a clock of its own: each frame takes `seconds`, and its first call ten more."""

    size, grid, device = 16, 1, "cpu"

    def __init__(self, seconds: float):
        self.now, self._seconds, self.calls = 10.0, seconds, list[int]()

    def encode(self, frames: np.ndarray) -> np.ndarray:
        assert frames.shape[1:] == (16, 16, 3) and frames.dtype == np.uint8
        self.now += len(frames) * self._seconds + 10 * (not self.calls)
        self.calls.append(len(frames))
        return np.zeros((len(frames), 1), np.uint16)


@pytest.mark.parametrize(
    ("seconds", "calls"), [(3.0, [1, 4]), (0.2, [1, 4, 8, 16]), (0.01, [1, 4, 8, 16, 32, *[BATCH] * 4])]
)
def test_frames_are_timed_in_the_batches_of_a_build(seconds: float, calls: list[int]) -> None:
    encoder: Any = Encoder(seconds)
    assert pace_of(encoder, lambda: encoder.now) == ("cpu", pytest.approx(1 / seconds))
    assert encoder.calls == calls


def test_frames_that_several_chats_show_are_encoded_once() -> None:
    def span(kind: str, content: str, **more: int) -> Span:
        return Span(0, 1, kind, json.dumps({"content": content, **more}))

    shown: set[str] = set()
    first = [span("image", "a"), span("user", "a"), span("video", "b", frames=30)]
    assert plan.frames_of(first, shown, once=True) == 31
    assert plan.frames_of([*first, span("image", "c")], shown, once=True) == 1
    assert plan.frames_of(first, shown, once=False) == 31
    assert plan.frames_of([Span(0, 1, "image")], set(), once=False) == 1


@pytest.fixture
def corpus(tmp_path: Path, small_model: Path) -> Path:
    """Write three books, one too short, and a recipe of them that packs twice."""
    draw = np.random.default_rng(0)
    for name, words in (("a", 3000), ("b", 2000), ("short", 5)):
        (tmp_path / f"{name}.txt").write_text(" ".join(map(str, draw.integers(0, 9999, words))))
    source = books("b", "*.txt", filters={"min_tokens": 100})
    recipe = {"vocabulary": {"text": str(small_model)}, "sources": [source], "eval": 0.5}
    sections = [{"length": 1000}, {"length": 256, "split": "train"}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "pack": sections}))
    return tmp_path / "recipe.yaml"


def build(recipe: Recipe, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Build without an engine. Returns the manifests of the examples and of the sequences."""
    job = TokenizeJob(recipe, str(out / "examples"))
    run_in_memory(job)
    about = {**described(job), "duplicates": "none"}
    examples, packed = finish(job, about, 1.0), []
    for section in recipe.pack:
        packing = pack_job(job.url, str(out / section.name), section)
        run_in_memory(packing)
        packed.append(finish(packing, {**about, "kind": "sequences", "length": section.length}, 1.0))
    return examples, packed


def test_a_measured_plan_tells_what_the_build_then_makes(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(1).__next__  # so that a busy machine, too, has time to read all
    monkeypatch.setattr(plan, "time", SimpleNamespace(monotonic=lambda: clock() / 1000))
    monkeypatch.setattr(rehearsal, "TOKENS", 2**18)
    sets = ["--set", "rates.worker_hour=36", "--set", "rates.gigabyte_month=1e6"]
    assert main(["plan", str(corpus), "--measure", "--seconds", "0.05", "--json", *sets]) == 0
    found = json.loads(capsys.readouterr().out)
    examples, packed = build(load_recipe(corpus), tmp_path / "out")
    cost, source = found["cost"], found["sources"]["b"]
    assert (source["records"], source["kept"], source["tokens"]) == (3, 2, examples["tokens"])
    assert cost["total"]["tokens"] == examples["tokens"]
    assert cost["total"]["bytes_read"] == sum(f.stat().st_size for f in tmp_path.glob("*.txt"))
    row = 2 * examples["tokens"] / 2  # bytes of the mean example: its tokens, and little beside them
    assert row < cost["sources"]["b"]["bytes"] / 2 < 1.05 * row
    for name, made in zip(("1000", "256-train"), packed, strict=True):
        told = found["packs"][f"packed-{name}"]
        assert told["sequences"] == made["rows"]
        assert cost["packs"][name]["bytes"] == pytest.approx(told["bytes"], rel=0.25)
    seconds = [*cost["sources"]["b"]["seconds"].values(), *(p["seconds"] for p in cost["packs"].values())]
    assert all(s > 0 for s in seconds) and sum(seconds) < 60
    assert cost["total"]["worker_hours"] == pytest.approx(sum(seconds) / 3600)
    dollars = cost["dollars"]
    assert dollars["workers"] == pytest.approx(36 * cost["total"]["worker_hours"])
    assert dollars["storage_month"] == pytest.approx(cost["total"]["bytes_written"] / 1e3)
    assert dollars["total"] == pytest.approx(dollars["workers"] + dollars["storage_month"])


def test_examples_are_rehearsed_by_the_clock(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the clock is a second later: every step takes one."""
    monkeypatch.setattr(rehearsal, "TOKENS", 2**18)
    recipe = load_recipe(corpus)
    _, found = plan_source(recipe, recipe.sources[0], 1e9, keep=10**9)
    clock = map(float, itertools.count()).__next__
    [done] = rehearse(recipe, {"b": (found.rows, found.rejected)}, tmp_path / "rehearsed", clock).values()
    assert (len(found.rows), len(found.rejected)) == (2, 1)
    assert (done.write_seconds, done.duplicate_seconds) == (1, 1)
    assert {name: w.seconds for name, w in done.packs.items()} == {"1000": 1, "256-train": 1}
    mean = sum(len(row.tokens) for row in found.rows) / 2
    assert done.tokens == pytest.approx(2**18, abs=2 * mean)
    assert done.examples == pytest.approx(2**18 / mean, abs=2)
    assert 0 < done.reject_bytes < 100
    assert done.packs["1000"].rows == pytest.approx(done.tokens / 1000, rel=0.05)


def test_records_scale_a_sample_to_the_whole_source(corpus: Path) -> None:
    recipe, whole = load_recipe(corpus), load_recipe(corpus, ["sources.b.records=3000"])
    here, sample = plan_source(recipe, recipe.sources[0], 1e9)
    there, scaled = plan_source(whole, whole.sources[0], 1e9)
    for name in ("bytes", "parts", "records", "kept", "tokens"):
        assert getattr(there, name) == 1000 * getattr(here, name), name
    assert there.reasons == {reason: 1000 * n for reason, n in here.reasons.items()}
    assert (there.sampled, scaled.scale, scaled.examples) == (0.001, 1000, sample.examples)
    few, first = plan_source(whole, whole.sources[0], 0.0)
    assert (few.records, few.kept, few.tokens) == (3000, 3000, 3000 * first.examples[0].length)


def test_a_small_source_is_read_again_until_the_time_is_over(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all passes but the first took, 30 seconds by this clock, is shared among them."""
    recipe = load_recipe(corpus, ["sources.b.records=3000"])
    wall, processor, passes = itertools.count().__next__, iter([10.0, 40.0]).__next__, list[int]()
    tokenize = plan.tokenize
    monkeypatch.setattr(plan, "time", SimpleNamespace(monotonic=lambda: float(wall())))
    monkeypatch.setattr(plan, "processor_seconds", processor)
    monkeypatch.setattr(plan, "tokenize", lambda *given: passes.append(1) or tokenize(*given))
    found, sample = plan.measure_source(recipe, recipe.sources[0], 50.0)
    assert len(passes) > 10
    assert found.seconds == pytest.approx(1000 * 30 / (len(passes) - 1))
    assert (found.records, len(sample.rows), len(sample.rejected)) == (3000, 2, 1)


def test_processor_time_is_that_of_ended_children_too() -> None:
    begun = rehearsal.processor_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(5_000_000))"], check=True)
    assert rehearsal.processor_seconds() - begun > 0.02


def test_records_of_book_questions_are_books(corpus: Path) -> None:
    """Each book is several passages, each of which is a record of the plan."""
    settings = {"chunk": 200, "length": 4000, "trained": 0.5}
    source = {**books("b", corpus.parent / "[ab].txt"), "kind": "book-questions", **settings}
    text = yaml.safe_load(corpus.read_text())["vocabulary"]["text"]
    here, _ = plan_source(*((r := made(source, text=text)), r.sources[0]), 1e9)
    there, _ = plan_source(*((r := made({**source, "records": 200}, text=text)), r.sources[0]), 1e9)
    assert here.records > 2
    assert (there.records, there.tokens, there.bytes) == (100 * here.records, 100 * here.tokens, 100 * here.bytes)
    assert there.chunk_tokens == 100 * here.chunk_tokens <= 100 * here.tokens
    assert there.chunks == 100 * here.chunks >= there.chunk_tokens / 200


def test_records_need_a_sample(corpus: Path) -> None:
    nothing = corpus.parent / "none.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), nothing)
    recipe = load_recipe(corpus, ["sources.b.records=5", f"sources.b.path={nothing}"])
    with pytest.raises(UserError, match=r"source b: records is 5, and path holds none to scale up from: name a sample"):
        plan_source(recipe, recipe.sources[0], 1.0)


def test_small_samples_share_sequences_with_what_they_stand_for() -> None:
    """One text of 40 tokens that stands for many: two of them share a sequence of 100."""
    recipe = made(books(), pack={"length": 100})
    shape = plan.Shape(40, (), "train", 0, ())
    for scale, sequences in ((1.0, 1), (1.9, 2), (1000.0, 500)):
        found = {"a": plan.Sample([shape], scale)}
        assert plan.plan_pack(recipe.pack[0], recipe, found, 2).sequences == sequences


KEY = {
    "source": {
        "name": "a",
        "dataset": None,
        "split": "train",
        "sample": 1.0,
        "record_bytes": 268435456,
        "columns": {"text": "text", "id": None},
        "filters": {"min_tokens": None, "max_tokens": None, "equals": {}},
        "strip_gutenberg": False,
        "kind": "books",
    },
    "seed": 0,
    "near": False,
}


def test_rates_and_records_are_outside_every_unit(corpus: Path, tmp_path: Path) -> None:
    """The facts are those of 2026-11-23, before there were records: no finished unit is done again."""
    recipe = made(books(records=5), rates={"worker_hour": 1.0, "accelerator_hour": 2, "frames_per_second": 3})
    assert key_facts(recipe, recipe.sources[0]) == KEY
    priced = load_recipe(corpus, ["rates.worker_hour=1", "sources.b.records=7"])

    def units(recipe: Recipe) -> list[Any]:
        return list(TokenizeJob(recipe, "").units("b"))

    assert units(priced) == units(load_recipe(corpus)) != []
    claim(Folder(str(tmp_path / "out")), load_recipe(corpus), "fingerprint")
    claim(Folder(str(tmp_path / "out")), priced, "fingerprint")
    assert load_recipe(tmp_path / "out" / "recipe.yaml").rates.worker_hour == 1.0


@pytest.fixture
def pictures(tmp_path: Path, small_model: Path) -> Iterator[Recipe]:
    """Make a recipe of ten pictures of 64 pixels, with a codebook of 30 codes in a grid of 2."""
    image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
    draw = np.random.default_rng(0)
    for number in range(10):
        image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a fox")
    Codebook(np.unique(draw.integers(0, 256, (30, 16, 16, 3), np.uint8), axis=0), 32).save(str(tmp_path / "c.npz"))
    vision = {"kind": "codebook", "path": str(tmp_path / "c.npz")}
    yield made(
        {"name": "p", "kind": "image-text", "path": str(tmp_path / "*.png")},
        text=small_model,
        vision=vision,
        pack={"length": 64},
    )


def test_the_model_of_pictures_is_left_out_and_timed_apart(
    pictures: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "ENOUGH", 0.05)
    blank = with_blank_codes(pictures, tmp_path)
    assert (pictures_of(blank.vocabulary).codes, pictures_of(blank.vocabulary).grid) == (1, 2)
    true, blanked = (plan_source(recipe, recipe.sources[0], 1e9) for recipe in (pictures, blank))
    assert blanked[0].tokens == true[0].tokens and blanked[0].frames == true[0].frames == 10
    assert blanked[1].examples == true[1].examples
    found = plan.measure_recipe(pictures, 0.0)
    model = found["cost"]["model"]
    assert (model["kind"], model["frames"], model["device"]) == ("codebook", 10, "cpu")
    assert model["worker_seconds"] == pytest.approx(10 / model["measured"])


def test_what_is_shown_says_where_a_vqgan_was_measured() -> None:
    def shown(**rates: float) -> str:
        recipe = made(books(), pack={"length": 8}, vision=VQGAN, rates=rates)
        told = {"sources": {"a": planned(frames=10**10)}, "packs": {"packed-8": {"sequences": 1}}}
        priced = cost.cost_of(recipe, told, {"a": REHEARSED}, Pace("cpu", 2.0))
        console = Console(width=100, file=io.StringIO(), record=True)
        console.print(*cost.render_cost(priced, told), sep="\n")
        return " ".join(console.export_text().split())

    without = shown(worker_hour=0.1)
    assert "encoded 2.00 frames for a second of one processor: all take workers 1,388,888.9 h, measured on" in without
    assert "set rates.frames_per_second" in without and "no rate" in without and "10.00B" in without
    with_rate = shown(frames_per_second=1000.0, accelerator_hour=2.0)
    assert "at rates.frames_per_second all take an accelerator 2,777.8 h." in with_rate
    assert "5,555.56" in with_rate


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rates.worker_hour=-1", "rates.worker_hour: found -1; input should be greater than or equal to 0"),
        ("rates.frames_per_second=0", "rates.frames_per_second: found 0; input should be greater than 0"),
        ("rates.workerhour=1", "unknown key rates.workerhour; .* did you mean worker_hour"),
        ("sources.b.records=0", "sources.0.records: found 0; input should be greater than or equal to 1"),
    ],
)
def test_wrong_rates_are_one_sentence(
    corpus: Path, setting: str, said: str, capfd: pytest.CaptureFixture[str], match: Callable[[str, str], None]
) -> None:
    assert main(["plan", str(corpus), "--measure", "--set", setting]) == 2
    match(said, capfd.readouterr().err)


@pytest.fixture
def match() -> Callable[[str, str], None]:
    import re

    def check(pattern: str, text: str) -> None:
        assert re.search(pattern, text), text
        assert text.count("\n") == 1

    return check
