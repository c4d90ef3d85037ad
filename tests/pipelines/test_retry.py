"""Retries: what was mended is read and nothing else, and what comes out is what a clean build makes of that input."""

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from worldloom.cli import main
from worldloom.errors import RunFailed
from worldloom.packing.ledger import FAILED
from worldloom.packing.report import UNITS, UnitWriter, finished_units, read_rejects, read_report, report_name
from worldloom.packing.storage import Folder
from worldloom.packing.verify import verify
from worldloom.pipelines import question_rows, to_codes
from worldloom.pipelines.asking.outcome import Outcome
from worldloom.pipelines.build import describe_examples
from worldloom.pipelines.deny import with_deny_lists
from worldloom.pipelines.job import finish, pending, reopen, run_in_memory, run_unit
from worldloom.pipelines.media import Unfit
from worldloom.pipelines.reading import files
from worldloom.pipelines.retry import RetryJob, retry
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.recipe import load_recipe
from worldloom.tokenizers.codebook import Codebook
from worldloom.tokenizers.text import TextTokenizer

WORDS = "a quick brown fox jumps over the lazy dog while seven wizards box hexed jugs of amber zinc".split()  # noqa: SIM905
BROKEN = b"\xff\xfe is no UTF-8"
SIZE = 32


def prose(name: str) -> str:
    draw = random.Random(name)
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(5, 60))) + f" {name}."


class World:
    """Books in all forms, of which some records are broken, each of which can be mended alone."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.broken = {f"{form}{i}" for form in ("txt", "line", "member", "row") for i in (1, 4, 5)}
        self.mend(set())

    def mend(self, names: set[str]) -> set[str]:
        """Mend records. Returns the names of the files that are others now."""
        self.broken -= names
        texts = {f"txt{i}": f"txt{i}.txt" for i in range(7)}
        forms = {"line": (self._lines, "b.jsonl"), "member": (self._tar, "c.tar"), "row": (self._table, "d.parquet")}
        for name, file in texts.items():
            if name in names or not (self.folder / file).exists():
                (self.folder / file).write_bytes(self._text(name))
        for form, (write, file) in forms.items():
            if any(name.startswith(form) for name in names) or not (self.folder / file).exists():
                write(self.folder / file)
        return {texts.get(name) or forms[name[:-1]][1] for name in names}

    def _text(self, name: str) -> bytes:
        data = prose(name).encode()
        return BROKEN.ljust(len(data), b"\xff") if name in self.broken else data

    def _lines(self, path: Path) -> None:
        rows = [json.dumps({"text": prose(f"line{i}")}) if f"line{i}" not in self.broken else "{ no" for i in range(7)]
        path.write_text("\n".join(rows) + "\n")

    def _tar(self, path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for i in range(7):
                add(archive, f"member{i}.txt", self._text(f"member{i}"))

    def _table(self, path: Path) -> None:
        texts = [None if f"row{i}" in self.broken else prose(f"row{i}") for i in range(7)]
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def recipe_at(folder: Path, model: Path, source: dict[str, Any], **keys: Any) -> Path:
    data = {"vocabulary": {"text": str(model)}, "sources": [source], "limits": {"failed": 1.0}, **keys}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def world(tmp_path: Path, small_model: Path) -> World:
    (tmp_path / "books").mkdir()
    made = World(tmp_path / "books")
    recipe_at(
        tmp_path, small_model, {"name": "b", "kind": "books", "path": "books", "unit_bytes": 900}, pack={"length": 64}
    )
    return made


def job_of(recipe: Path, out: Path) -> TokenizeJob:
    return TokenizeJob(with_deny_lists(load_recipe(recipe)), str(out / "examples"))


def told(job: TokenizeJob) -> dict[str, Any]:
    """Say all of a job's units that does not depend on where they are: key, rows, counts and rejects in their order."""
    reports = [read_report(job.folder, name) for name in sorted(finished_units(job.folder))]
    return {
        r.unit: (
            r.key,
            r.shard.content,
            r.shard.file,
            r.ledger.to_json(),
            [(x, x.row) for x in read_rejects(job.folder, r)],
        )
        for r in reports
        if r
    }


def clean(recipe: Path, out: Path) -> dict[str, Any]:
    job = job_of(recipe, out)
    run_in_memory(job)
    return told(job)


def retried(job: TokenizeJob) -> list[str]:
    """Retry in this process. Returns the units that were done."""
    units = [unit for part in job.parts() for unit in pending(RetryJob(job), part)]
    for unit in units:
        run_unit(RetryJob(job), unit)
    return [unit.name for unit in units]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the names of source files as they are opened."""
    names: list[str] = []
    whole = files.LocalFileSystem._open

    def spy(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        if path.rpartition("/")[0].endswith(("books", "pictures")):
            names.append(path.rpartition("/")[2])
        return whole(self, path, mode, **options)

    monkeypatch.setattr(files.LocalFileSystem, "_open", spy)
    return names


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the texts that are tokenized."""
    texts: list[str] = []
    whole = TextTokenizer.encode

    def spy(self: TextTokenizer, text: str) -> np.ndarray:
        texts.append(text)
        return whole(self, text)

    monkeypatch.setattr(TextTokenizer, "encode", spy)
    return texts


@pytest.mark.parametrize("seed", range(4))
def test_only_what_was_mended_is_read_and_tokenized(world, tmp_path, opened, encoded, seed):
    """In one unit, whose borders no file's size moves."""
    recipe, out, draw = tmp_path / "recipe.yaml", tmp_path / "out", random.Random(seed)
    source = {"name": "b", "kind": "books", "path": "books"}
    job = job_of(recipe_at(tmp_path, Path(job_of(recipe, out).recipe.vocabulary.text), source), out)
    run_in_memory(job)
    mended = {name for name in sorted(world.broken) if draw.random() < (0.4, 1)[seed == 0]} or {"row4"}
    changed = world.mend(mended)
    units = {part: list(pending(RetryJob(job), part)) for part in job.parts()}
    opened.clear(), encoded.clear()
    for unit in units["b"]:
        RetryJob(job).run(unit)
    assert set(opened) == changed
    assert sorted(encoded) == sorted(map(prose, mended))
    assert told(job) == clean(recipe, tmp_path / "clean")
    assert retried(job) == []
    plain = job_of(recipe, tmp_path / "plain")
    shutil.copytree(out, tmp_path / "plain")
    run_in_memory(plain)
    assert told(plain) == told(job)


def test_what_stays_broken_and_unchanged_is_not_read_again(world, tmp_path, opened):
    job = job_of(tmp_path / "recipe.yaml", tmp_path / "out")
    run_in_memory(job)
    opened.clear()
    units = list(pending(RetryJob(job), "b"))
    assert units == [] and set(opened) <= {"b.jsonl", "d.parquet"}  # whose beginnings are looked at


def test_other_changes_of_the_input_come_along(world, tmp_path, encoded):
    """A record that was kept says something else now, one is gone and one is new: the result is a clean build's."""
    recipe = tmp_path / "recipe.yaml"
    job = job_of(recipe, tmp_path / "out")
    run_in_memory(job)
    world.mend({"txt1"})
    (world.folder / "txt0.txt").write_text("Quite another text about foxes.")
    (world.folder / "txt3.txt").unlink()
    (world.folder / "txt9.txt").write_text("A new one.")
    lines = (world.folder / "b.jsonl").read_bytes().splitlines()
    lines[2:3] = [json.dumps({"text": "Instead of the third."}).encode(), json.dumps({"text": "And more."}).encode()]
    (world.folder / "b.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    encoded.clear()
    retried(job)
    assert set(encoded) >= {"Quite another text about foxes.", "Instead of the third.", "And more.", "A new one."}
    for name in set(finished_units(job.folder)) - {unit.name for unit in job.units("b")}:
        job.folder.remove(report_name(name))
    assert told(job) == clean(recipe, tmp_path / "clean")


@pytest.mark.parametrize("how", ["shard", "rejects", "report", "old", "settings", "deny"])
def test_what_cannot_be_trusted_is_made_of_its_source(world, tmp_path, encoded, how):
    """Damage must not be copied under a new checksum, nor rows of other settings or of an unknown input be kept."""
    recipe = tmp_path / "recipe.yaml"
    job = job_of(recipe, tmp_path / "out")
    run_in_memory(job)
    unit = next(unit for unit in job.units("b") if any(part.id == "txt1.txt" for part in unit.parts))
    report = read_report(job.folder, unit.name)
    assert report is not None and report.rejects is not None and report.shard.rows
    if how in ("shard", "rejects"):
        path = Path(job.folder.path((report.shard if how == "shard" else report.rejects).path))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "report":
        Path(job.folder.path(report_name(unit.name))).write_bytes(b"{ damaged")
    elif how == "old":  # of a worldloom that noted nothing
        job.folder.overwrite(report_name(unit.name), replace(report, settings="").to_bytes())
    else:
        keys = {"settings": {"filters": {"min_tokens": 4}}, "deny": {"deny": [next_kept(job, unit.name)]}}[how]
        recipe_at(
            tmp_path,
            Path(job.recipe.vocabulary.text),
            {"name": "b", "kind": "books", "path": "books", "unit_bytes": 900, **keys},
        )
        job = job_of(recipe, tmp_path / "out")
    world.mend({"txt1"})
    encoded.clear()
    retried(job)
    assert len(encoded) > 1
    assert told(job) == clean(recipe, tmp_path / "clean")


def next_kept(job: TokenizeJob, unit: str) -> str:
    from worldloom.packing.shard import Shard

    report = read_report(job.folder, unit)
    assert report is not None
    return next(Shard(job.folder, report.shard.path).rows()).segments[0].record


def test_a_line_of_a_large_file_is_sought(tmp_path, small_model, opened, monkeypatch):
    """Where the file is as it was and a failure may have healed, the line is found without reading all before it."""
    (tmp_path / "books").mkdir()
    lines = [json.dumps({"text": prose(str(i))}) for i in range(40)]
    (tmp_path / "books" / "b.jsonl").write_text("\n".join(lines) + "\n")
    recipe = recipe_at(tmp_path, small_model, {"name": "b", "kind": "books", "path": "books"})
    job = job_of(recipe, tmp_path / "out")
    from worldloom.pipelines import books as module
    from worldloom.pipelines import retry as retrying

    whole, seen = module.examine, list[str]()

    def flaky(found: Any, *others: Any) -> Any:
        seen.append(found.record)
        admitted = whole(found, *others)
        if down and found.record.endswith(f"@{sum(len(line) + 1 for line in lines[:17])}"):
            from worldloom.pipelines.admission import reject

            return reject(found, others[0], "fetch", FAILED, "timed out", "")
        return admitted

    down = True
    monkeypatch.setattr(module, "examine", flaky)
    monkeypatch.setattr(retrying, "BLOCK", 100)
    run_in_memory(job)
    down, _ = False, seen.clear()
    assert len(retried(job)) == 1 and len(seen) == 1
    assert told(job) == clean(recipe, tmp_path / "clean")


# --- pictures and chats


def png(number: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def pictures(tmp_path: Path, small_model: Path) -> Callable[..., Path]:
    """Write a folder `pictures` and a codebook; returns what writes a recipe for one source."""
    pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
    (tmp_path / "pictures").mkdir()
    patches = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), np.uint8)
    Codebook(np.unique(patches, axis=0), SIZE).save(str(tmp_path / "codebook.npz"))
    vision = {"text": str(small_model), "vision": {"kind": "codebook", "path": "codebook.npz"}}

    def write(**source: Any) -> Path:
        return recipe_at(tmp_path, small_model, {"path": "pictures", **source}, vocabulary=vision)

    return write


def by_folder(folder: Path) -> None:
    for i in range(6):
        (folder / f"{i}.png").write_bytes(b"damaged" if i == 2 else png(i))
        (folder / f"{i}.txt").write_text(f"number {i}")


def by_table(folder: Path) -> None:
    rows = [{"file_name": f"{i}.png", "text": f"number {i}"} for i in range(6)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(6):
        (folder / f"{i}.png").write_bytes(b"damaged" if i == 2 else png(i))


def by_chats(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWho is it?"}, {"from": "gpt", "value": "The fox."}]
    rows = [{"id": str(i), "image": f"{i}.png", "conversations": turns} for i in range(6)]
    (folder / "chats.json").write_text(json.dumps(rows))
    for i in range(6):
        if i != 2:  # it is not there at all
            (folder / f"{i}.png").write_bytes(png(i))


def by_tar(folder: Path) -> None:
    with tarfile.open(folder / "0.tar", "w") as archive:
        for i in range(6):
            add(archive, f"{i}.png", png(i) if i != 2 or (folder.parent / "mended").exists() else b"damaged")
            add(archive, f"{i}.txt", f"number {i}".encode())


def mend_picture(folder: Path) -> None:
    (folder / "2.png").write_bytes(png(2))


def mend_tar(folder: Path) -> None:
    (folder.parent / "mended").touch()
    by_tar(folder)


@pytest.mark.parametrize(
    ("kind", "write", "mend", "expected"),
    [
        ("image-text", by_folder, mend_picture, {"2.png", "2.txt", "2.json"}),
        ("image-text", by_table, mend_picture, {"2.png", "metadata.jsonl"}),
        ("chat", by_chats, mend_picture, {"2.png", "chats.json"}),
        ("image-text", by_tar, mend_tar, {"0.tar"}),
    ],
)
def test_of_pictures_only_the_mended_one_is_read(pictures, tmp_path, opened, kind, write, mend, expected):
    folder = tmp_path / "pictures"
    write(folder)
    recipe = pictures(name="p", kind=kind, **({"filters": {"min_side": SIZE}} if kind == "chat" else {}))
    job = job_of(recipe, tmp_path / "out")
    run_in_memory(job)
    report = read_report(job.folder, "p-0000000")
    assert report is not None and (report.ledger.kept, report.ledger.failed) == (5, 1), report.ledger
    mend(folder)
    (unit,) = pending(RetryJob(job), "p")
    opened.clear()
    RetryJob(job).run(unit)
    assert set(opened) <= expected and set(opened) & {"2.png", "0.tar"}
    assert told(job) == clean(recipe, tmp_path / "clean")
    assert told(job)["p-0000000"][3]["failed"] == 0


def test_only_links_that_failed_are_asked_again(pictures, tmp_path, monkeypatch):
    from worldloom.pipelines.fetching.fetch import Fetched

    rows = [{"url": f"http://example.com/{i}.png", "caption": f"number {i}"} for i in range(8)]
    (tmp_path / "pictures" / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked: list[str] = []
    down = {"http://example.com/3.png", "http://example.com/7.png"}

    class Web:
        def __init__(self, limits: Any):
            pass

        def __enter__(self) -> "Web":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def interrupt(self) -> None:
            pass

        def fetch(self, items: Iterator[Any], link_of: Callable[[Any], str | None], folder: Any) -> Iterator[Any]:
            for item in items:
                if (link := link_of(item)) is None:
                    yield item, None
                    continue
                asked.append(link)
                data = png(int(link[-5]))
                yield item, Unfit(FAILED, "timed out", "") if link in down else Fetched(data, None, len(data), link)

    monkeypatch.setattr(to_codes, "Fetcher", Web)
    recipe = pictures(name="p", kind="image-text")
    job = job_of(recipe, tmp_path / "out")
    run_in_memory(job)
    down = {"http://example.com/7.png"}
    asked.clear()
    assert retried(job) == ["p-0000000"] and asked == [rows[3]["url"], rows[7]["url"]]
    assert told(job)["p-0000000"][3]["failed"] == 1
    down = set()
    asked.clear()
    assert retried(job) == ["p-0000000"] and asked == [rows[7]["url"]]
    assert told(job) == clean(recipe, tmp_path / "clean")
    run_in_memory(job)  # a plain build finds everything done
    assert retried(job) == []


# --- the whole command


@pytest.fixture
def built(world: World, tmp_path: Path, plain_engine: None) -> Path:
    assert main(["build", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def roots(out: Path) -> dict[str, str]:
    return {p.parent.name: json.loads(p.read_text())["root"] for p in sorted(out.glob("*/manifest.json"))}


def clean_roots(tmp_path: Path) -> dict[str, str]:
    if not (tmp_path / "whole").exists():
        assert main(["build", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "whole")]) == 0
    return roots(tmp_path / "whole")


def test_a_retry_goes_on_as_a_build_does(world, built, tmp_path, capsys):
    capsys.readouterr()
    assert main(["retry", str(built)]) == 0
    said = capsys.readouterr().out
    assert "examples: something to read again in 0 units" in said and "failed 12, now 12" in said
    assert "still fails" in said and "txt4.txt: not UTF-8" in said
    world.mend({"txt4", "line1"})
    assert main(["retry", str(built), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["before"]["examples"]["failed"] == 12 and found["after"]["examples"]["failed"] == 10
    assert {name for unit in found["again"]["examples"] for name in unit["files"]} == {"b.jsonl", "txt4.txt"}
    assert roots(built) == clean_roots(tmp_path) and verify(str(built)) == []
    when = {p: p.stat().st_mtime_ns for p in built.glob(f"*/{UNITS}/*")}
    assert main(["build", str(tmp_path / "recipe.yaml"), "--out", str(built)]) == 0
    assert {p: p.stat().st_mtime_ns for p in built.glob(f"*/{UNITS}/*")} == when


def test_on_beam_it_is_the_same(world, tmp_path):
    assert main(["build", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 0
    world.mend({"txt4", "member1"})
    (path,) = (tmp_path / "out" / "packed-64" / "shards").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["repair", str(tmp_path / "out" / "packed-64")]) == 0
    assert main(["retry", str(tmp_path / "out")]) == 0
    assert roots(tmp_path / "out") == clean_roots(tmp_path) and verify(str(tmp_path / "out")) == []


class Killed(BaseException):
    """The process dies here."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Die just before the change of the data set whose number `at` says, and from then on before every other."""
    state = {"at": -1, "changes": 0}

    def deadly(name: str) -> None:
        whole = getattr(Folder, name)

        def change(self: Folder, *args: Any) -> Any:
            state["changes"] += 1
            if 0 <= state["at"] < state["changes"]:
                raise Killed
            return whole(self, *args)

        monkeypatch.setattr(Folder, name, change)

    for name in ("create", "replace", "overwrite", "adopt", "remove"):
        deadly(name)
    return state


def test_a_retry_that_is_killed_anywhere_is_taken_up(world, tmp_path, dying):
    """By the next retry, or by a build: each of them makes what a clean build does."""
    recipe, start = tmp_path / "recipe.yaml", tmp_path / "start"
    run_in_memory(job_of(recipe, start))
    finish(job_of(recipe, start), describe_examples(job_of(recipe, start)), 1.0)
    world.mend({"txt1", "line4"})
    expected, job = clean(recipe, tmp_path / "clean"), job_of(recipe, tmp_path / "out")
    described = describe_examples(job)

    def whole(job: TokenizeJob) -> None:
        reopen(job)
        retried(job)
        finish(job, described, 1.0)

    at, died = 0, True
    while died:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(start, tmp_path / "out")
        dying |= {"at": at, "changes": 0}
        try:
            whole(job)
            died = False
        except Killed:
            pass
        dying["at"] = -1
        run_in_memory(job) if at % 4 else retried(job)
        finish(job, described, 1.0)
        assert told(job) == expected, at
        at += 2
    assert at > 12


@pytest.mark.parametrize("at", [3, 11])
def test_a_command_that_is_killed_is_taken_up_by_either(world, built, tmp_path, dying, at):
    world.mend({"txt1", "line4"})
    dying |= {"at": at, "changes": 0}
    with pytest.raises(Killed):
        retry(str(built), [], 1)
    dying["at"] = -1
    again = ["retry", str(built)] if at == 3 else ["build", str(tmp_path / "recipe.yaml"), "--out", str(built)]
    assert main(again) == 0
    assert roots(built) == clean_roots(tmp_path) and verify(str(built)) == []


def test_of_two_that_do_a_unit_at_once_the_first_wins(world, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    job = job_of(recipe, tmp_path / "out")
    run_in_memory(job)
    world.mend({"txt1"})
    whole, others = UnitWriter.commit, list[bytes]()

    def commit(self: UnitWriter, *args: Any, **named: Any) -> bool:
        if not others:  # another build commits the unit just before
            others.append(b"")
            job.run(unit)
            others[0] = job.folder.read(report_name(unit.name)) or b""
            (path := Path(job.folder.path(report_name(unit.name)))).write_bytes(others[0] + b"\n")
            others[0] = path.read_bytes()
            assert not whole(self, *args, **named)
            return False
        return whole(self, *args, **named)

    (unit,) = pending(RetryJob(job), "b")
    monkeypatch.setattr(UnitWriter, "commit", commit)
    RetryJob(job).run(unit)
    assert job.folder.read(report_name(unit.name)) == others[0]
    assert told(job) == clean(recipe, tmp_path / "clean")


def test_a_file_that_changes_while_it_is_read_fails_its_unit(tmp_path, pictures, monkeypatch):
    folder = tmp_path / "pictures"
    by_table(folder)
    job = job_of(pictures(name="p", kind="image-text"), tmp_path / "out")
    run_in_memory(job)
    before = told(job)
    mend_picture(folder)
    (unit,) = pending(RetryJob(job), "p")
    table = folder / "metadata.jsonl"
    table.write_text(table.read_text().replace("\n", "\n ", 3))
    with pytest.raises(RunFailed, match="changes while it is read"):
        RetryJob(job).run(unit)
    assert told(job) == before


def test_questions_without_a_reply_are_asked_again_and_no_other(tmp_path, small_model, plain_engine, monkeypatch):
    (tmp_path / "books").mkdir()
    for i in range(3):
        text = f"A miller kept {i} brown geese behind the door. They spoke of weather and of bread all morning. "
        (tmp_path / "books" / f"{i}.txt").write_text(text * 20)
    (tmp_path / "books" / "3.txt").write_bytes(BROKEN)
    source = {"name": "q", "kind": "book-questions", "path": "books", "chunk": 50, "length": 400, "trained": 0.1}
    recipe = str(recipe_at(tmp_path, small_model, source | {"unit_bytes": 1}, pack={"length": 400}))
    healthy, asked = question_rows.ask, list[str]()

    def ask(chunks: Any, section: Any, seed: int, replies: Any) -> Iterator[Outcome]:
        for number, outcome in enumerate(healthy(chunks, section, seed, replies)):
            asked.append(outcome.chunk.book)
            down = broken and outcome.chunk.book == "1.txt" and number < 3
            yield outcome._replace(found=Unfit("failed", "no reply", "500")) if down else outcome

    broken = True
    monkeypatch.setattr(question_rows, "ask", ask)
    assert main(["build", recipe, "--out", str(tmp_path / "out")]) == 0
    once = [book for book in asked if book == "1.txt"]
    asked.clear()
    assert main(["retry", str(tmp_path / "out")]) == 0
    assert asked == once  # and not by the build that follows, too
    broken, _ = False, asked.clear()
    (tmp_path / "books" / "3.txt").write_text("The fox went over the river. He carried seven lanterns in winter. " * 9)
    assert main(["retry", str(tmp_path / "out")]) == 0
    assert set(asked) == {"1.txt", "3.txt"}
    assert roots(tmp_path / "out") == clean_roots(tmp_path)


def test_wrong_calls_are_refused_in_words(tmp_path, built, capsys):
    assert main(["retry", str(tmp_path / "nowhere")]) == 2
    assert "has no recipe.yaml" in capsys.readouterr().err
    assert main(["retry", str(built / "examples")]) == 2
    assert "name the folder that 'build' was given" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "books")
    assert main(["retry", str(built)]) == 2
    assert "mend the path" in capsys.readouterr().err
