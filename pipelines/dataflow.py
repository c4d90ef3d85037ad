"""What a Dataflow job needs and its flags leave out, and what is refused before anything is submitted.

Accelerators: only the step that runs a VQGAN gets any. It asks for one by a resource hint, from which Dataflow makes a
pool of workers of its own ("right fitting"). `--resource_hint=accelerator=…`, which by itself would be for every step,
names another kind for that one.
"""

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from ..errors import UserError
from ..packing.storage import Folder
from .engine_flags import STAGING, absent, option, runner
from .job import Job
from .tokenize import TokenizeJob

# The smallest that Dataflow offers with its default machines, as its own documentation names it.
ACCELERATOR = "type:nvidia-tesla-t4;count:1;install-nvidia-driver"
HINT = "accelerator"
WORKERS_OF_ALL = "worker_accelerator"  # Dataflow's service option that gives every worker one
# Beside an accelerator one process a machine, so that there is one model on it, and two units at once in that process:
# one reads or commits while the other's pictures are encoded.
BESIDE = (("experiments", "no_use_multiple_sdk_containers"), ("number_of_worker_harness_threads", "2"))


def complete(flags: list[str], out: str, name: str) -> list[str]:
    """Add what can be derived to the flags of a Dataflow job.

    Args:
      out: the build's output folder; what is staged goes below it.
      name: of the job: letters, digits and dashes.

    Raises:
      UserError: if the job could not run: something is not said, not installed, or not there.
    """
    refuse(flags, out)
    staging = Folder(out).sub(STAGING).url
    complete = [
        *flags,
        *absent(flags, "staging_location", staging),
        *absent(flags, "temp_location", f"{staging}/temp"),
        *absent(flags, "job_name", name),
    ]
    if "--no_auth" not in flags:
        _need_credentials()
    for place in {option(complete, "staging_location"), option(complete, "temp_location")}:
        need_bucket(place)
    return complete


def refuse(flags: Sequence[str], out: str) -> None:
    """Refuse flags that say too little, or what does not go together.

    Raises:
      UserError: one sentence with the remedy.
    """
    for name, example in (("project", "my-project"), ("region", "europe-west4")):
        if not option(flags, name):
            raise UserError(f"Dataflow needs a {name}, and the flags name none: add --{name}={example}")
    if not out.startswith("gs://") and not (option(flags, "staging_location") and option(flags, "temp_location")):
        raise UserError(
            f"Dataflow stages its files in a bucket, and --out {out} is in none: give --out gs://BUCKET/FOLDER, "
            "or both --staging_location and --temp_location in gs://"
        )
    if _missing("google.cloud.dataflow"):
        raise UserError("Dataflow needs Beam's Google Cloud part: pip install 'worldloom[gcp]'")


def _missing(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:
        return True


def _need_credentials() -> None:
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return
    try:
        google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    except GoogleAuthError as error:
        said = str(error).partition(". ")[0].rstrip(".")
        raise UserError(
            f"there are no Google Cloud credentials here ({said}): call `gcloud auth application-default login`, "
            "or name a key file in GOOGLE_APPLICATION_CREDENTIALS; nothing was submitted"
        ) from error


def need_bucket(url: str) -> None:
    """Refuse a gs:// URL in whose bucket this account cannot list anything.

    Raises:
      UserError: if the bucket does not exist or is not to be listed.
    """
    bucket = url.removeprefix("gs://").partition("/")[0]
    try:
        Folder(url).fs.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except FileNotFoundError:
        raise UserError(
            f"the bucket gs://{bucket} does not exist: mend {url}, or make the bucket, "
            f"as in `gcloud storage buckets create gs://{bucket}`; nothing was submitted"
        ) from None
    except Exception as error:  # whatever a store or its credentials may raise: it is asked only to be told in time
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"gs://{bucket} cannot be listed ({said}): give the account roles/storage.objectAdmin there, "
            "or use another bucket; nothing was submitted"
        ) from error


def hints(job: Job, flags: Sequence[str]) -> dict[str, str]:
    """Return the resource hints of the step that does a job's units: an accelerator where a VQGAN runs on one.

    Raises:
      UserError: if the flags choose machines that have none.
    """
    if runner(flags) != "dataflow" or not encodes(job):
        return {}
    if option(flags, "flexrs_goal"):
        raise UserError(
            "FlexRS has no accelerators, on which this recipe's pictures are encoded: leave --flexrs_goal out, "
            "or have them encoded on processors by --set vocabulary.vision.device=cpu"
        )
    if any(found.startswith(WORKERS_OF_ALL) for found in _values(flags, "dataflow_service_options")):
        return {}
    named = [found for found in _values(flags, "resource_hint", "resource_hints") if found.startswith(f"{HINT}=")]
    return {HINT: named[-1].partition("=")[2] if named else ACCELERATOR}


def encodes(job: Job) -> bool:
    """Does a job run a VQGAN on an accelerator? Question jobs read texts alone."""
    if not isinstance(job, TokenizeJob) or job.replies or not job.recipe.vocabulary.vision:
        return False
    return job.recipe.vocabulary.vision.device == "cuda"


def for_hints(flags: list[str], given: dict[str, str]) -> list[str]:
    """Return the flags of one job: no accelerator for every step, and what goes with one for a single step."""
    kept = [word for words in split_flags(flags) if not _is_accelerator(words) for word in words]
    for name, value in BESIDE if given else ():
        said = _values(flags, name)
        kept += [] if said and name != "experiments" else [f"--{name}={value}"]
    return kept


def _is_accelerator(words: list[str]) -> bool:
    return any(found.startswith(f"{HINT}=") for found in _values(words, "resource_hint", "resource_hints"))


def _values(flags: Sequence[str], *names: str) -> list[str]:
    """Return all values of an option that may be given more than once."""
    return [found for words in split_flags(flags) for name in names if (found := option(words, name))]


def split_flags(flags: Sequence[str]) -> Iterator[list[str]]:
    """Yield each flag with the words that follow it."""
    words: list[str] = []
    for word in flags:
        if word.startswith("--") and words:
            yield words
            words = []
        words.append(word)
    if words:
        yield words
