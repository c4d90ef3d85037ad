"""Source files: found through fsspec, named relative to their root, opened with their compression undone."""

import errno
import io
import os
import posixpath
import re
import stat
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Protocol

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from ...errors import UserError

CODECS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
FORMS = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".tar": "tar",
    ".tgz": "tar",
    ".csv": "csv",
    ".tsv": "tsv",
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif"), "picture"),
    **dict.fromkeys((".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ogv", ".flv", ".wmv"), "clip"),
}
FORM_OF_KIND = {"image-text": "picture", "video-text": "clip"}  # of a source
BOOKS = frozenset({"txt", "jsonl", "parquet", "tar"})
ROWS = frozenset({"jsonl"})  # of LWM's
CHATS = frozenset({"json", "jsonl", "parquet"})
TABLES = frozenset({"jsonl", "parquet", "csv", "tsv"})
MEDIA = frozenset({"picture", "clip"})  # compressed as they are
SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves in a folder
WILD = re.compile(r"[*?\[]")
BUFFER = 2**17  # bytes
BLOCK = 2**20


class Content(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """Read `size` bytes, or what is left."""


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
    suffix, codec = _suffixes(path)
    form = FORMS.get(suffix, "")
    return "" if codec and form in MEDIA else form


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


def list_files(patterns: Iterable[str], forms: Collection[str] = BOOKS) -> list[File]:
    """Find the files of some forms that paths, folders and globs name, sorted by id, each once.

    Folders and globs pass over what is hidden; links to files are followed, links to folders are not.

    Raises:
      UserError: if a pattern matches nothing, or a named file has no known form.
    """
    found: dict[str, dict[str, Any]] = {}
    roots: list[str] = []
    system: Any = None
    for pattern in patterns:
        fs, path = filesystem(pattern)
        system = system or fs
        if type(fs) is not type(system):
            raise UserError(f"{pattern} lies on another file system than the paths before it: make it another source")
        try:
            root, matched = _match(fs, path, forms)
        except OSError as error:
            raise UserError(f"{pattern} cannot be listed: {error}") from error
        if not matched:
            known = ", ".join(suffix for suffix, form in FORMS.items() if form in forms)
            raise UserError(f"{pattern} matches no file of a known form ({known}): mend the path")
        roots.append(root)
        found.update(matched)
    root = posixpath.commonpath(roots)
    return sorted(_file(system, info, root) for info in found.values())


def filesystem(url: str) -> tuple[Any, str]:
    """Return a URL's file system, and the path on it.

    Raises:
      UserError: if there is no such file system.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be opened: {error}") from error
    return fs, path


def _match(fs: Any, path: str, forms: Collection[str]) -> tuple[str, dict[str, dict[str, Any]]]:
    """Find the files that a path names, and the folder that their ids start from."""
    if fs.isfile(path):
        return posixpath.dirname(path), {path: fs.info(path)} if form_of(path) in forms else {}
    if fs.isdir(path):
        _check_readable(fs, path)
        root, infos = path, fs.find(path, detail=True)
    else:
        root, infos = _fixed_folder(path), fs.glob(path, detail=True) if WILD.search(path) else {}
    shown = {n: info for n, info in infos.items() if form_of(n) in forms and not hidden(_below(n, root), form_of(n))}
    linked = {name: _followed(fs, info) for name, info in shown.items()}
    return root, {name: info for name, info in linked.items() if info["type"] == "file"}


def _check_readable(fs: Any, path: str) -> None:
    """Raise OSError for a folder that may not be listed: fsspec would leave its files out without a word."""
    if isinstance(fs, LocalFileSystem):

        def refuse(error: OSError) -> None:
            raise error

        for _ in os.walk(path, onerror=refuse):
            pass


def _followed(fs: Any, info: dict[str, Any]) -> dict[str, Any]:
    """Look through a link. One that leads nowhere counts as a file, so that it is missed when it is read."""
    if not info.get("islink"):
        return info
    try:
        return {**fs.info(info["name"])}
    except OSError:
        return {**info, "type": "file"}


def hidden(path: str, form: str) -> bool:
    """Is a relative path, or a folder in it, one that shells hide, or Hive where it is no picture or clip?

    Cameras begin names with `_`, and so do identifiers of videos.
    """
    return any(part.startswith("." if form in MEDIA else (".", "_")) for part in path.split("/"))


def _fixed_folder(path: str) -> str:
    """Take the folder of a glob in front of its first wildcard."""
    return WILD.split(path, maxsplit=1)[0].rpartition("/")[0] or "/"


def _below(name: str, root: str) -> str:
    return name.removeprefix(root).lstrip("/")


def _file(fs: Any, info: dict[str, Any], root: str) -> File:
    name = info["name"]
    return File(_below(name, root), fs.unstrip_protocol(name), int(info["size"] or 0), version_of(info))


def version_of(info: dict[str, Any]) -> str:
    """Return what a file system's entry gives to tell one content from another, or ""."""
    marks = (info.get(key) for key in ("etag", "ETag", "generation", "mtime", "LastModified", "created"))
    return next((str(mark) for mark in marks if mark is not None), "")


def is_storage_trouble(error: BaseException) -> bool:
    """Is it the storage that fails, not the file? System calls give a number; decoders and missing files do not."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EISDIR)


def open_raw(url: str) -> io.BufferedReader:
    """Open a file as it is. Lines can be read up to a length, which not every file of fsspec's can."""
    local = url.startswith("file://")  # "::" may stand in a file's name, and means a chain elsewhere
    fs = LocalFileSystem() if local else fsspec.core.url_to_fs(url)[0]
    if isinstance(fs, LocalFileSystem) and stat.S_ISFIFO(fs.info(url)["mode"]):
        raise FileNotFoundError(errno.ENOENT, "a pipe, which nobody need ever write to", url)
    return io.BufferedReader(fs.open(url, "rb"), BUFFER)


def open_plain(url: str) -> BinaryIO:
    """Open a file with its compression undone; a truncated or damaged stream raises OSError when read."""
    raw, codec = open_raw(url), codec_of(url)
    if not codec:
        return raw
    if not raw.peek(1):
        raise OSError(f"no {codec} stream: the file is empty")
    stream: Any = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
    return io.BufferedReader(stream, BUFFER)


def read_capped(file: Content, most: int) -> bytes:
    """Read a stream, and no more than one byte over the cap."""
    blocks: list[bytes] = []
    left = most + 1
    while left > 0 and (block := file.read(min(BLOCK, left))):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)
