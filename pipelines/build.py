"""Builds: recipe checked, examples tokenized, duplicates found, sequences packed; each step resumes where it was."""

import json
from dataclasses import asdict, replace
from typing import Any

import yaml

from ..errors import UserError
from ..packing.dataset import Dataset
from ..packing.ledger import FAILED, NO_REPLY
from ..packing.manifest import MANIFEST, read_manifest
from ..packing.report import UNITS, finished_units, read_report, report_name
from ..packing.storage import Folder
from ..recipe import PackSection, Recipe
from ..sources import BookQuestionsSource, Source
from . import duplicates, eval_ngrams
from .asking.replies import sweep
from .deny import with_deny_lists
from .engine_flags import for_step
from .engines import engine
from .job import Job, finish, is_done, prepare, reopen
from .pack import PackJob
from .progress import ReportBar
from .remote import extras, need_reachable, with_device
from .tokenize import TokenizeJob, surroundings, versions
from .underway import clear
from .units import digest

EXAMPLES, QUESTIONS, REPLIES, RECIPE = "examples", "questions", "replies", "recipe.yaml"


def build(recipe: Recipe, out: str, flags: list[str], workers: int, name: str = "") -> dict[str, Any]:
    """Build all that a recipe describes under `out`. Returns the manifests by folder name.

    Finished units are kept: the same call after a kill, with more packing sections or on another engine, does the rest.

    Args:
      flags: of Beam, which choose the engine; what they leave out is derived.
      workers: processes of the default engine.
      name: of the job on an engine that names jobs; default: the output folder's.

    Raises:
      UserError: if the recipe, the input, the engine or the output is not as it must be, or too many records failed.
    """
    need_reachable(recipe, flags)
    with engine(flags, out, name or base(out), extras(recipe)) as complete:
        return _build(recipe, out, complete, workers)


def _build(recipe: Recipe, out: str, flags: list[str], workers: int) -> dict[str, Any]:
    folder = Folder(out)
    recipe = with_device(with_deny_lists(recipe), flags)
    job = TokenizeJob(recipe, folder.sub(EXAMPLES).url, questions=folder.sub(QUESTIONS).url)
    check(job)
    claim(folder, recipe, job.vocabulary.fingerprint)
    asking = question_job(recipe, folder)
    made = {QUESTIONS: ask(asking, flags, workers)} if asking.parts() else {}
    made[EXAMPLES] = run(job, "tokenize", describe_examples(job), recipe.limits.failed, flags, workers)
    find_duplicates(job, made[EXAMPLES], flags)
    for section in recipe.pack:
        name = f"packed-{section.name}"
        packing = with_eval_ngrams(pack_job(job.url, folder.sub(name).url, section), flags)
        made[name] = run(packing, name, describe_packed(packing), 1.0, flags, workers)
    return made


def questions(recipe: Recipe, out: str, flags: list[str], workers: int, name: str = "") -> dict[str, Any]:
    """Make the questions that a recipe wants about its books, as `build` does first. Returns the manifest.

    Args are those of `build`.

    Raises:
      UserError: as `build`, and if no source of the recipe wants questions.
    """
    folder = Folder(out)
    recipe = with_device(with_deny_lists(recipe), flags)
    job = question_job(recipe, folder)
    if not job.parts():
        raise UserError("no source of this recipe is of kind book-questions, so there is nothing to ask")
    check(job)
    need_reachable(recipe, flags)
    with engine(flags, out, name or base(out), extras(recipe)) as complete:
        claim(folder, recipe, job.vocabulary.fingerprint)
        return ask(job, complete, workers, again=True)


def question_job(recipe: Recipe, folder: Folder) -> TokenizeJob:
    """Return the job that makes the questions; it has no parts where the recipe wants none."""
    return TokenizeJob(recipe, folder.sub(QUESTIONS).url, replies=folder.sub(REPLIES).url)


def ask(job: TokenizeJob, flags: list[str], workers: int, again: bool = False) -> dict[str, Any]:
    """Make questions. Returns their manifest.

    Args:
      again: ask what had no reply even if all units are done; after a run that failed that is always asked again.
    """
    complete = job.folder.exists(MANIFEST)
    if again or not complete:
        forget_unanswered(job.folder)
    described = {**describe_examples(job), "duplicates": "none"}
    made = run(job, "questions", described, job.recipe.limits.failed, flags, workers)
    if not complete:  # drafts are what a kill left
        sweep(Folder(job.replies))
    return made


def forget_unanswered(folder: Folder) -> None:
    """Take back the units with chunks that a language model gave no reply about, so that those are asked again."""
    for name in list(finished_units(folder)) if folder.exists(UNITS) else ():
        report = read_report(folder, name)
        if report and f"{FAILED}: {NO_REPLY}" in report.ledger.reasons:
            folder.remove(MANIFEST)
            folder.remove(report_name(name))


def pack(examples: str, out: str, section: PackSection, flags: list[str], workers: int) -> dict[str, Any]:
    """Pack finished examples into sequences under `out`, without their recipe. Returns the manifest.

    Raises:
      UserError: if the examples are not complete, or `out` cannot be written.
    """
    with engine(flags, out, base(out)) as complete:
        job = with_eval_ngrams(pack_job(examples, out, section), complete)
        return run(job, "pack", describe_packed(job), 1.0, complete, workers)


def base(url: str) -> str:
    """Return the last name of a path or URL."""
    return url.rstrip("/").rpartition("/")[2]


def pack_job(examples: str, out: str, section: PackSection) -> PackJob:
    """Say what to pack: finished examples, less the duplicates that were found among them.

    Raises:
      UserError: if the examples or their list of duplicates are not complete, or `out` holds something else.
    """
    dataset = Dataset(examples)
    made = dataset.manifest
    if made["kind"] != EXAMPLES:
        raise UserError(f"{examples} holds packed {made['kind']}: name the folder of examples that they came from")
    if (section.split == "eval" or section.remove_eval_ngrams) and not made["eval"]:
        raise UserError(f"{examples} was built with eval 0, so that its eval side is empty: set eval in its recipe")
    claim_packed(Folder(out), section.length, made)
    listed = duplicates_key(made)
    if listed and duplicates.read_key(Folder(examples)) != listed:
        raise UserError(f"{examples} has no list of the duplicates among its present rows: call its build again")
    return PackJob(examples, dataset.root, out, section, listed, made["seed"], made["eval"])


def claim_packed(folder: Folder, length: int, examples: dict[str, Any]) -> None:
    """Refuse a folder that holds something else than sequences of this length from these sources."""
    if not folder.exists(MANIFEST):
        if not (folder.is_empty() or folder.exists(UNITS)):
            raise UserError(f"{folder.url} is not empty and is no packed data set: choose another --out")
        return
    found = read_manifest(folder)
    theirs = {"kind": found["kind"], "length": found["length"], "vocabulary": found["fingerprint"]}
    mine = {"kind": "sequences", "length": length, "vocabulary": examples["fingerprint"]}
    differences = [f"its {name} is {theirs[name]}, not {mine[name]}" for name in mine if theirs[name] != mine[name]]
    gone = set(found["about"]) - set(examples["about"])
    differences += [f"its source {name} is not in the examples" for name in sorted(gone)]
    if differences:
        raise UserError(f"{folder.url} holds another data set ({'; '.join(differences)}): choose another --out")


def duplicates_key(examples: dict[str, Any]) -> str:
    """Return the key that the list of duplicates of these examples must have, "" where none are to be dropped."""
    mode = examples["duplicates"]
    return "" if mode == "none" else digest(examples["root"], mode)


def check(job: TokenizeJob) -> None:
    """Refuse a recipe whose models, files or columns are not there, before any worker starts."""
    for part in job.parts():
        next(job.units(part), None)


def claim(folder: Folder, recipe: Recipe, fingerprint: str) -> None:
    """Make the output folder this recipe's.

    Raises:
      UserError: if it cannot be written, or holds the build of a recipe with other models, seed or sources.
    """
    data = _header(fingerprint) + recipe.to_yaml().encode()
    try:
        stored = folder.read(RECIPE)
        if stored is not None:
            _check_same(folder, stored, recipe, fingerprint)
        elif not folder.is_empty():
            raise UserError(f"{folder.url} is not empty and holds no {RECIPE}: choose another --out")
        folder.make()
        if stored != data:
            folder.overwrite(RECIPE, data)
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(folder: Folder, error: OSError) -> UserError:
    """Say that an output folder cannot be written, and why."""
    return UserError(f"{folder.url} cannot be written ({error.strerror or error}): choose another --out")


def _check_same(folder: Folder, stored: bytes, recipe: Recipe, fingerprint: str) -> None:
    try:
        old = yaml.safe_load(stored)
        seed, sources = old["seed"], {s["name"]: s["kind"] for s in old["sources"]}
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{folder.path(RECIPE)} is not what a build writes: choose another --out") from error
    mine = {source.name: source.kind for source in recipe.sources}
    differences = [] if stored.startswith(_header(fingerprint)) else ["it has another vocabulary"]
    differences += [f"seed {seed} is now {recipe.seed}"] if seed != recipe.seed else []
    differences += [f"source {name} is gone" for name, kind in sources.items() if mine.get(name) != kind]
    if differences:
        raise UserError(
            f"{folder.url} holds the build of another recipe ({'; '.join(differences)}): "
            "choose another --out, or delete it"
        )


def _header(fingerprint: str) -> bytes:
    """Return the recipe file's first line, which tells models apart wherever they lie."""
    return f"# vocabulary {fingerprint}\n".encode()


def run(
    job: Job, title: str, described: dict[str, Any], limit: float, flags: list[str], workers: int
) -> dict[str, Any]:
    """Do what is left of a job on Beam, and finish its data set. Returns the manifest."""
    total, waiting = count(job)
    try:
        prepare(job)
    except OSError as error:
        raise unwritable(job.folder, error) from error
    if waiting:
        from .beam_jobs import run_job

        reopen(job)
        with ReportBar(title, job.folder, total, total - waiting):
            run_job(job, for_step(flags, title), min(workers, waiting))
    made = finish(job, described, limit)
    clear(job.folder)
    return made


def count(job: Job) -> tuple[int, int]:
    """Count a job's units, and those still to be done."""
    done = [is_done(job, unit) for part in job.parts() for unit in job.units(part)]
    return len(done), done.count(False)


def find_duplicates(job: TokenizeJob, examples: dict[str, Any], flags: list[str]) -> None:
    """Make the list of duplicates of finished examples, if it is not there."""
    key = duplicates_key(examples)
    if key and duplicates.read_key(job.folder) != key:
        from .beam_jobs import run_duplicates

        run_duplicates(job, for_step(flags, "duplicates"), key, examples["rows"])


def with_eval_ngrams(job: PackJob, flags: list[str]) -> PackJob:
    """Have a job remove what the eval side has too, if its section says so, and list that first if it is not listed."""
    if not job.section.remove_eval_ngrams:
        return job
    search = eval_ngrams.Search(job.examples, job.root, job.section.remove_eval_ngrams, job.seed, job.eval)
    said = eval_ngrams.read_said(search.folder, search.n)
    if said is None or said.key != search.key:
        from .beam_jobs import run_eval_ngrams

        said = run_eval_ngrams(search, for_step(flags, "eval-ngrams"), int(job.dataset.manifest["tokens"] * job.eval))
    return replace(job, ngrams=said.content)


def describe_examples(job: TokenizeJob) -> dict[str, Any]:
    """Say in a manifest what a set of examples is."""
    recipe = job.recipe
    sources = [recipe.source(name) for name in job.parts()]
    return {
        "kind": "examples",
        "length": 0,
        "weights": "example",
        "vocabulary": asdict(job.vocabulary),
        "fingerprint": job.vocabulary.fingerprint,
        "description": recipe.description,
        "seed": recipe.seed,
        "eval": recipe.eval,
        "duplicates": recipe.duplicates,
        "versions": {**surroundings(), **{k: v for s in sources for k, v in versions(recipe, s).items()}},
        "about": {s.name: describe_source(s) for s in sources},
    }


def describe_source(source: Source) -> dict[str, Any]:
    """Say in a manifest where examples come from, and which were kept."""
    told = {
        "kind": source.kind,
        "licence": source.licence,
        "deny": source.deny,
        "sample": source.sample,
        "filters": json.loads(source.filters.model_dump_json(exclude_defaults=True)),
    }
    if isinstance(source, BookQuestionsSource):
        told["questions"] = source.questions.model_dump(include={"by", "model", "dollars_in", "dollars_out"})
    return told


def describe_packed(job: PackJob) -> dict[str, Any]:
    """Say in a manifest what a set of sequences is."""
    examples = job.dataset.manifest
    keep = ("vocabulary", "fingerprint", "description", "seed", "eval", "duplicates", "versions", "about")
    return {
        "kind": "sequences",
        "length": job.section.length,
        "weights": str(job.section.weights),
        "split": job.section.split,
        "frames": job.section.frames,
        "remove_eval_ngrams": job.section.remove_eval_ngrams,
        "examples": {"root": examples["root"], "rows": examples["rows"], "tokens": examples["tokens"]},
        **{name: examples[name] for name in keep},
    }
