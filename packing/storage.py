"""Files of a data set on any file system that fsspec knows, and the only three ways in which they appear."""

import fcntl
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from ..errors import UserError

TEMPORARY = ".tmp-"  # drafts: the id of the process that writes it follows
EXTRAS = (("gs://", "gcs"), ("s3://", "s3"))


@dataclass(frozen=True)
class Folder:
    """Name a folder by URL or path. Cheap to make, to send to a worker and to compare."""

    url: str

    @property
    def fs(self) -> Any:
        try:
            return fsspec.core.url_to_fs(self.url)[0]
        except (ImportError, ValueError) as error:
            hint = next((f": pip install 'worldloom[{extra}]'" for scheme, extra in EXTRAS if scheme in self.url), "")
            raise UserError(f"{self.url} cannot be opened: {error}{hint}") from error

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

    def size(self, name: str) -> int | None:
        """Return a file's bytes, or None where there is none."""
        try:
            return int(self.fs.info(self.path(name))["size"])
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

    def is_empty(self) -> bool:
        """Is there nothing in the folder, or no folder?"""
        try:
            return not self.fs.ls(self.path(), detail=False)
        except FileNotFoundError:
            return True

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

        Local files are compared and swapped under a lock that the kernel takes back from a killed process.
        """
        if not self.local:
            if self.read(name) != old:
                return False
            self.fs.pipe_file(self.path(name), data)
            return True
        try:
            with Path(self.path(name)).open("r+b") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                if self.read(name) != old:
                    return False
                self.overwrite(name, data)
        except FileNotFoundError:
            return False
        return True

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
        return target.with_name(f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}")


def abandoned(draft: str) -> bool:
    """Is a draft's writer gone from this machine? A live one, of a build beside this one, is not to be disturbed."""
    writer = draft.removeprefix(TEMPORARY).partition("-")[0]
    if not writer.isdecimal() or int(writer) == os.getpid():
        return True
    try:
        os.kill(int(writer), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(writer)


def _is_zombie(process: str) -> bool:
    """Has a process ended whom nobody has asked for its exit code yet? A container's first process may never ask."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):  # no Linux
        return False


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
