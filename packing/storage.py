"""Files of a data set on any file system that fsspec knows, and the only three ways in which they appear."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Folder:
    """Name a folder by URL or path. Cheap to make, to send to a worker and to compare."""

    url: str

    @property
    def fs(self) -> Any:
        return fsspec.core.url_to_fs(self.url)[0]

    def path(self, name: str = "") -> str:
        """Return the path of a file in the folder, as its file system spells it."""
        root = fsspec.core.url_to_fs(self.url)[1].rstrip("/")
        return f"{root}/{name}" if name else root

    @property
    def local(self) -> bool:
        return "file" in _protocols(self.fs)

    def sub(self, name: str) -> "Folder":
        return Folder(f"{self.url.rstrip('/')}/{name}")

    def make(self, *names: str) -> None:
        """Create the folder and those in it, where the file system has folders at all."""
        for name in ("", *names):
            self.fs.makedirs(self.path(name), exist_ok=True)

    def exists(self, name: str = "") -> bool:
        return bool(self.fs.exists(self.path(name)))

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None where there is none."""
        try:
            return bytes(self.fs.cat_file(self.path(name)))
        except FileNotFoundError:
            return None

    def names(self, folder: str = "") -> Iterator[str]:
        """Yield the names of the files directly in a folder, in no order; nothing where it is missing."""
        if self.local:
            try:
                with os.scandir(self.path(folder)) as entries:
                    yield from (e.name for e in entries if not e.is_dir())
            except FileNotFoundError:
                return
            return
        try:
            listed = self.fs.ls(self.path(folder), detail=True, refresh=True)
        except FileNotFoundError:
            return
        yield from (entry["name"].rsplit("/", 1)[-1] for entry in listed if entry["type"] != "directory")

    def create(self, name: str, data: bytes) -> bool:
        """Make a file appear whole, only where there is none. Returns whether this call made it."""
        if not self.local:
            try:
                self.fs.pipe_file(self.path(name), data, mode="create")
            except FileExistsError:
                return False
            return True
        draft = self._draft(name)
        draft.write_bytes(data)
        try:
            os.link(draft, self.path(name))
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    def replace(self, name: str, old: bytes, data: bytes) -> bool:
        """Put `data` in the place of a file that still holds `old`. Returns whether it did.

        A kill between the two steps leaves no file, which every reader takes for a unit not done.
        """
        if not self.local:
            if self.read(name) != old:
                return False
            self.fs.pipe_file(self.path(name), data)
            return True
        aside = self._draft(name)
        try:
            Path(self.path(name)).rename(aside)
        except FileNotFoundError:
            return False
        try:
            if aside.read_bytes() == old:
                return self.create(name, data)
            self.create(name, aside.read_bytes())
            return False
        finally:
            aside.unlink(missing_ok=True)

    def overwrite(self, name: str, data: bytes) -> None:
        """Make a file hold `data`, at once, whatever it held before."""
        if not self.local:
            self.fs.pipe_file(self.path(name), data)
            return
        draft = self._draft(name)
        draft.write_bytes(data)
        draft.replace(self.path(name))

    def adopt(self, draft: Path, name: str) -> None:
        """Move a finished local file into the folder under a name that its content decides."""
        if self.local:
            draft.replace(self.path(name))
            return
        self.fs.put_file(str(draft), self.path(name))
        draft.unlink()

    def remove(self, name: str) -> None:
        """Remove a file; none there is as good."""
        try:
            self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def scratch(self, name: str) -> Path:
        """Name a new temporary file for `adopt`: beside the target where that is local."""
        if self.local:
            return self._draft(name)
        import tempfile

        return Path(tempfile.gettempdir()) / f"worldloom-{uuid.uuid4().hex}"

    def _draft(self, name: str) -> Path:
        target = Path(self.path(name))
        return target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
