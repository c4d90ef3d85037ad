"""Source files: found through fsspec, named relative to their root, opened with their compression undone."""

import io
import posixpath
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

import fsspec
import pyarrow as pa

from ..errors import UserError

CODECS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
FORMS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".tar": "tar", ".tgz": "tar"}
SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves in a folder


class File(NamedTuple):
    """A source file.

    Attributes:
      id: path relative to the source's root; record ids begin with it.
      url: where it is.
      size: bytes.
      version: what the file system gives to tell one content from another.
    """

    id: str
    url: str
    size: int
    version: str


def form_of(path: str) -> str:
    """Name a file's form by its suffix, or "" where it is unknown."""
    return FORMS.get(_suffixes(path)[0], "")


def codec_of(path: str) -> str:
    """Name a file's compression as Arrow does, or "" where there is none."""
    return CODECS.get(_suffixes(path)[1], "")


def _suffixes(path: str) -> tuple[str, str]:
    last = PurePosixPath(path.lower())
    if last.suffix == ".tgz":
        return ".tgz", ".tgz"
    if last.suffix in CODECS:
        return last.with_suffix("").suffix, last.suffix
    return last.suffix, ""


def list_files(patterns: Iterable[str]) -> list[File]:
    """Find the files that paths, folders and globs name, sorted by id, each once.

    Raises:
      UserError: if a pattern matches nothing, or a named file has no known form.
    """
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    roots = []
    for pattern in patterns:
        fs, path = fsspec.core.url_to_fs(pattern)
        matched = _match(fs, path)
        if not matched:
            raise UserError(f"{pattern} matches no file of a known form ({', '.join(FORMS)}): mend the path")
        roots.append(_fixed_folder(fs, path))
        found.update({name: (fs, info) for name, info in matched.items()})
    root = posixpath.commonpath(roots)
    return sorted(_file(fs, info, root) for fs, info in found.values())


def _match(fs: Any, path: str) -> dict[str, dict[str, Any]]:
    if _is_glob(path):
        infos = fs.glob(path, detail=True)
    elif fs.isdir(path):
        infos = fs.find(path, detail=True)
    else:
        infos = {path: fs.info(path)} if fs.exists(path) else {}
    files = {name: i for name, i in infos.items() if i["type"] == "file" and not _hidden(name)}
    return {name: info for name, info in files.items() if form_of(name)}


def _is_glob(path: str) -> bool:
    return any(c in path for c in "*?[")


def _hidden(name: str) -> bool:
    return posixpath.basename(name).startswith((".", "_"))


def _fixed_folder(fs: Any, path: str) -> str:
    """Take the folder of a path, in front of its first wildcard."""
    if not _is_glob(path):
        return path if fs.isdir(path) else posixpath.dirname(path)
    fixed = path[: min(path.index(c) for c in "*?[" if c in path)]
    return fixed.rsplit("/", 1)[0] or "/"


def _file(fs: Any, info: dict[str, Any], root: str) -> File:
    name = info["name"]
    marks = (info.get(key) for key in ("etag", "ETag", "generation", "mtime", "LastModified", "created"))
    version = next((str(mark) for mark in marks if mark is not None), "")
    return File(posixpath.relpath(name, root or "/"), fs.unstrip_protocol(name), int(info["size"]), version)


def open_raw(url: str) -> BinaryIO:
    """Open a file as it is."""
    return cast(BinaryIO, fsspec.open(url, "rb").open())


def open_plain(url: str) -> BinaryIO:
    """Open a file with its compression undone; a truncated or damaged stream raises OSError when read."""
    codec = codec_of(url)
    if not codec:
        return open_raw(url)
    stream: Any = pa.CompressedInputStream(pa.PythonFile(open_raw(url), mode="r"), codec)
    return cast(BinaryIO, io.BufferedReader(stream))
