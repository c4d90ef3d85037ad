"""Builds: recipe checked, examples tokenized, duplicates found, sequences packed; each step resumes where it was."""

import json
from dataclasses import asdict
from typing import Any

import yaml

from ..errors import UserError
from ..packing.dataset import Dataset
from ..packing.manifest import MANIFEST, read_manifest
from ..packing.storage import Folder
from ..recipe import PackSection, Recipe
from . import duplicates
from .books import denied
from .job import Job, finish, pending, prepare, reopen
from .pack import PackJob
from .progress import ReportBar
from .tokenize import TokenizeJob, text_tokenizer, versions
from .units import digest

EXAMPLES, RECIPE = "examples", "recipe.yaml"


def build(recipe: Recipe, out: str, flags: list[str], workers: int) -> dict[str, Any]:
    """Build all that a recipe describes under `out`. Returns the manifests by folder name.

    Finished units are kept: the same call after a kill, or with more packing sections, does the rest.

    Raises:
      UserError: if the recipe, the input or the output is not as it must be, or too many records failed.
    """
    folder = Folder(out)
    check(recipe)
    claim(folder, recipe)
    job = TokenizeJob(recipe, folder.sub(EXAMPLES).url)
    made = {EXAMPLES: run(job, "tokenize", describe_examples(job), recipe.limits.failed, flags, workers)}
    listed = find_duplicates(job, made[EXAMPLES]["root"], flags)
    for section in recipe.pack:
        name = f"packed-{section.name}"
        packing = pack_job(job.url, folder.sub(name).url, section, listed, recipe.seed, recipe.eval)
        made[name] = run(packing, name, describe_packed(packing), 1.0, flags, workers)
    return made


def pack(examples: str, out: str, section: PackSection, flags: list[str], workers: int) -> dict[str, Any]:
    """Pack finished examples into sequences under `out`, without their recipe. Returns the manifest.

    Raises:
      UserError: if the examples are not complete, or `out` cannot be written.
    """
    dataset = Dataset(examples)
    if dataset.manifest["kind"] != EXAMPLES:
        raise UserError(
            f"{examples} holds packed {dataset.manifest['kind']}: name the folder of examples they came from"
        )
    made = dataset.manifest
    job = pack_job(examples, out, section, duplicates.read_key(Folder(examples)), made["seed"], made["eval"])
    return run(job, "pack", describe_packed(job), 1.0, flags, workers)


def pack_job(examples: str, out: str, section: PackSection, listed: str, seed: int, share: float) -> PackJob:
    """Say what to pack, and refuse a folder that holds another length."""
    folder = Folder(out)
    if folder.exists(MANIFEST) and (found := read_manifest(folder))["length"] != section.length:
        raise UserError(
            f"{out} holds sequences of {found['length']} tokens, not {section.length}: choose another --out"
        )
    return PackJob(examples, Dataset(examples).root, out, section, listed, seed, share)


def check(recipe: Recipe) -> None:
    """Refuse a recipe whose models, files or columns are not there, before any worker starts."""
    job = TokenizeJob(recipe, "")
    text_tokenizer(recipe.vocabulary.text)
    for source in recipe.sources:
        denied(source)
        next(job.units(source.name), None)


def claim(folder: Folder, recipe: Recipe) -> None:
    """Make the output folder this recipe's.

    Raises:
      UserError: if it cannot be written, or holds the build of a recipe with other models, seed or sources.
    """
    try:
        folder.make()
        stored = folder.read(RECIPE)
        if stored is not None:
            _check_same(folder, stored, recipe)
        elif next(folder.names(), None) is not None:
            raise UserError(f"{folder.url} is not empty and holds no {RECIPE}: choose another --out")
        data = _header(TokenizeJob(recipe, "").vocabulary.fingerprint) + recipe.to_yaml().encode()
        if stored != data:
            folder.overwrite(RECIPE, data)
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(folder: Folder, error: OSError) -> UserError:
    """Say that an output folder cannot be written, and why."""
    return UserError(f"{folder.url} cannot be written ({error.strerror or error}): choose another --out")


def _check_same(folder: Folder, stored: bytes, recipe: Recipe) -> None:
    old = yaml.safe_load(stored)
    mine = {source.name: source.kind for source in recipe.sources}
    fingerprint = TokenizeJob(recipe, "").vocabulary.fingerprint
    differences = [] if stored.startswith(_header(fingerprint)) else ["it has another vocabulary"]
    differences += [f"seed {old['seed']} is now {recipe.seed}"] if old["seed"] != recipe.seed else []
    differences += [f"source {s['name']} is gone" for s in old["sources"] if mine.get(s["name"]) != s["kind"]]
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
        raise UserError(
            f"{job.folder.url} cannot be written ({error.strerror or error}): choose another --out"
        ) from error
    if waiting:
        from .beam_jobs import run_job

        reopen(job)
        with ReportBar(title, job.folder, total, total - waiting):
            run_job(job, flags, min(workers, waiting))
    return finish(job, described, limit)


def count(job: Job) -> tuple[int, int]:
    """Count a job's units, and those still to be done."""
    total = sum(1 for part in job.parts() for _ in job.units(part))
    return total, sum(1 for part in job.parts() for _ in pending(job, part))


def find_duplicates(job: TokenizeJob, root: str, flags: list[str]) -> str:
    """Make the list of duplicates of finished examples, if it is not there. Returns its key, "" for none."""
    if job.recipe.duplicates == "none":
        return ""
    key = digest(root, job.recipe.duplicates)
    if duplicates.read_key(job.folder) != key:
        from .beam_jobs import run_duplicates

        run_duplicates(job, flags, key)
    return key


def describe_examples(job: TokenizeJob) -> dict[str, Any]:
    """Say in a manifest what a set of examples is."""
    recipe = job.recipe
    return {
        "kind": "examples",
        "length": 0,
        "weights": "example",
        "vocabulary": asdict(job.vocabulary),
        "fingerprint": job.vocabulary.fingerprint,
        "description": recipe.description,
        "seed": recipe.seed,
        "eval": recipe.eval,
        "versions": versions(),
        "about": {
            s.name: {
                "kind": s.kind,
                "licence": s.licence,
                "deny": sorted(denied(s)),
                "sample": s.sample,
                "filters": json.loads(s.filters.model_dump_json(exclude_defaults=True)),
            }
            for s in recipe.sources
        },
    }


def describe_packed(job: PackJob) -> dict[str, Any]:
    """Say in a manifest what a set of sequences is."""
    examples = job.dataset.manifest
    keep = ("vocabulary", "fingerprint", "description", "seed", "eval", "versions", "about")
    return {
        "kind": "sequences",
        "length": job.section.length,
        "weights": str(job.section.weights),
        "split": job.section.split,
        "examples": {"root": examples["root"], "rows": examples["rows"], "tokens": examples["tokens"]},
        **{name: examples[name] for name in keep},
    }
