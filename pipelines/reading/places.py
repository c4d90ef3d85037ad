"""Paths that a table's rows name: untrusted, so they lead to nothing but files below the table's root."""

import os
import posixpath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from ...packing.ledger import FAILED
from ..media import Unfit
from .files import filesystem, version_of


class Root:
    """A folder below which the files of a table lie.

    Raises:
      UserError: if there is no such file system.
    """

    def __init__(self, url: str):
        self._fs: Any
        self._fs, path = filesystem(url)
        self._path = path.rstrip("/") or "/"
        self._local = isinstance(self._fs, LocalFileSystem)
        self._real = os.path.realpath(self._path) if self._local else ""

    def url_of(self, path: str) -> str:
        """Return the URL of a file below the root.

        Raises:
          Unfit: if the path leads outside, by `..`, from the top, as a URL, or through a link.
        """
        try:
            outside = self._is_outside(path)
        except ValueError as error:  # a NUL byte, or half a surrogate pair
            raise Unfit(FAILED, "path outside", f"no file can have the name {path!r}: {error}") from None
        if outside:
            raise Unfit(FAILED, "path outside", f"{path!r} does not lead to a file below {self._path}")
        return str(self._fs.unstrip_protocol(posixpath.join(self._path, path)))

    def _is_outside(self, path: str) -> bool:
        path.encode()
        if "\0" in path or "://" in path or ".." in path.split("/"):
            return True
        if not self._local:
            return path.startswith("/")
        real = os.path.realpath(posixpath.join(self._path, path))
        return os.path.commonpath([self._real, real]) != self._real

    def version(self, url: str) -> str:
        """Return what tells one content of a file below the root from another, "" where there is none."""
        path = self._fs._strip_protocol(url)
        try:
            if not self._local:
                self._fs.ls(posixpath.dirname(path))  # one request for a folder, which the file system remembers
            info = self._fs.info(path)
        except OSError:
            return ""
        return f"{info['size']}-{version_of(info)}"

    def holds(self, path: str) -> bool:
        """Is there such a file?

        Raises:
          Unfit: if the path leads outside.
        """
        self.url_of(path)
        return bool(self._fs.isfile(posixpath.join(self._path, path)))
