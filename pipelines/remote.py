"""What a recipe asks of workers on other machines: paths that they can reach, and what must be installed there."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from ..errors import UserError
from ..recipe import Recipe
from ..sources import BookQuestionsSource
from .engine_checks import elsewhere, on_network_disk
from .engine_flags import is_in_process, option, runner
from .models import pictures_of

EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # file systems that are an extra of their own
HERE = {"", "file", "local", "memory"}  # file systems of one machine, or of one process
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def named_paths(recipe: Recipe) -> list[tuple[str, str]]:
    """List every path and URL that the workers of a recipe read, each with its key."""
    vocabulary = recipe.vocabulary
    found = [("vocabulary.text", vocabulary.text)]
    if vocabulary.vision:
        found.append(("vocabulary.vision.path", vocabulary.vision.path))
    for source in recipe.sources:
        paths = [source.path] if isinstance(source.path, str) else source.path
        found += [(f"sources.{source.name}.path", path) for path in paths]
        if root := getattr(source, "media_root", None):
            found.append((f"sources.{source.name}.media_root", root))
    return found


def unreachable_paths(recipe: Recipe) -> list[tuple[str, str]]:
    """List what workers on other machines could not reach, each with its key: paths of this machine, and servers on it.

    Deny lists are not among them: the submitter reads those.
    """
    found = [(key, path) for key, path in named_paths(recipe) if is_here(path)]
    for source in recipe.sources:
        if isinstance(source, BookQuestionsSource) and urlsplit(source.questions.url).hostname in LOOPBACK:
            found.append((f"sources.{source.name}.questions.url", source.questions.url))
    return found


def need_reachable(recipe: Recipe, flags: Sequence[str]) -> None:
    """Refuse a recipe of this machine's paths where the engine's workers are elsewhere.

    Models may be in an image that the user names, at the same path as here.

    Raises:
      UserError: one sentence with the remedy.
    """
    where = elsewhere(flags)
    found = [
        (key, path)
        for key, path in unreachable_paths(recipe)
        if where and not on_network_disk(path.removeprefix("file://"))
    ]
    if option(flags, "sdk_container_image"):
        found = [(key, path) for key, path in found if not key.startswith("vocabulary.")]
    if found:
        key, path = found[0]
        others = f", nor {len(found) - 1} more of its paths" if len(found) > 1 else ""
        raise UserError(
            f"{where} cannot reach the recipe's {key}, {path}{others}: put it where every worker can read it, "
            f"such as gs://… or s3://…, and name that in the recipe or by --set {key}=URL; nothing was submitted"
        )


def is_here(path: str) -> bool:
    """Does a path or URL lead to this machine alone?"""
    return scheme(path) in HERE


def scheme(path: str) -> str:
    """Return a URL's scheme, of chained ones the last, or "" of a path."""
    last = path.rpartition("::")[2]
    return last.partition("://")[0] if "://" in last else ""


def extras(recipe: Recipe) -> list[str]:
    """Name worldloom's extras that the workers of a recipe need besides `build`."""
    stores = {EXTRAS[scheme(path)] for _, path in named_paths(recipe) if scheme(path) in EXTRAS}
    return [*["vision"] * bool(recipe.vocabulary.vision), *sorted(stores)]


def with_device(recipe: Recipe, flags: Sequence[str]) -> Recipe:
    """Settle on what device a VQGAN's codes are made, once for all workers: codes, and so keys, depend on it.

    On Dataflow it is a GPU, on other engines with workers of their own what the submitter has.
    """
    vision = recipe.vocabulary.vision
    if vision is None or vision.kind != "vqgan" or vision.device or is_in_process(flags):
        return recipe
    device = "cuda" if runner(flags) == "dataflow" else pictures_of(recipe.vocabulary).device
    settled = recipe.vocabulary.model_copy(update={"vision": vision.model_copy(update={"device": device})})
    return recipe.model_copy(update={"vocabulary": settled})
