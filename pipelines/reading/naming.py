"""Pictures and clips that a row holds or names: bytes, a path, or a path made of columns. Rows are not trusted."""

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...packing.ledger import DROPPED, FAILED
from ...sources import PLACE, template_columns
from ..media import Unfit
from ..records import Media
from ..units import Part
from .columns import column
from .files import form_of
from .places import Root
from .samples import hold_bytes
from .tables import is_saved_dataset


def folder_of(part: Part) -> str:
    """Return where the files of a table lie: beside it; those of a dataset in it, or where it was fetched to."""
    if form_of(part.url):
        return posixpath.dirname(part.url)
    if is_saved_dataset(part.url) or Path(part.url).is_dir():
        return part.url
    import datasets

    return str(datasets.config.HF_CACHE_HOME)


def filled(template: str, values: dict[str, Any]) -> str:
    """Fill columns into a path.

    Raises:
      Unfit: if a column holds no name.
    """
    found = {name: column(values, name) for name in template_columns(template)}
    for name, value in found.items():
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise Unfit(FAILED, "no path", f"column {name} holds {type(value).__name__} where a name is needed")
    return PLACE.sub(lambda place: str(found[place[1]]), template)


def existing(paths: Sequence[str], root: Root) -> str:
    """Take the first path that leads to a file; one alone is left to whoever opens it.

    Raises:
      Unfit: if none does, or one leads outside.
    """
    if len(paths) == 1:
        return paths[0]
    if path := next((path for path in paths if root.holds(path)), ""):
        return path
    raise Unfit(FAILED, "no such file", " nor ".join(paths))


def held(value: object, form: str, most: int, root: Root, folder: Path | None) -> Media:
    """Take a picture or clip out of a column: bytes, a path, or both, as Hugging Face stores them.

    Raises:
      Unfit: if there are neither, more than `most` bytes, or a path to something else.
    """
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
    if isinstance(data, bytes) and data:
        if len(data) > most:
            raise Unfit(FAILED, "too large", f"{len(data)} bytes, over record_bytes = {most}")
        return hold_bytes(data, form, folder)
    if isinstance(path, str) and path:
        return at(path, form, root)
    raise Unfit(FAILED, f"no {form}", f"found {type(value).__name__} where bytes or a path are needed")


def at(path: str, form: str, root: Root) -> Media:
    """Take the file at a path below the root.

    Raises:
      Unfit: if the path leads outside, or to another form of file.
    """
    if (other := form_of(path)) and other != form:
        raise Unfit(DROPPED, f"not a {form}", path)
    return Media(path=root.url_of(path))
