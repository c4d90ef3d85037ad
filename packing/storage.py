"""Files of a data set on any file system that fsspec knows, and the only three ways in which they appear."""

import errno
import fcntl
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fsspec

from ..errors import RunFailed, UserError
from .object_store import ABSENT, Store, patiently, store_of

TEMPORARY = ".tmp-"  # drafts: the id of the process that writes it follows
ELSEWHERE = "worldloom-"  # drafts of what goes to an object store, among this machine's temporary files
DAY = 86400  # seconds for which such a draft stays untouched before it is taken for one that a kill left
EXTRAS = (("gs://", "gcs"), ("s3://", "s3"))
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LOG_IN = {
    "gs": "log in with 'gcloud auth application-default login', or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
}


@dataclass(frozen=True)
class Folder:
    """Name a folder by URL or path. Cheap to make, to send to a worker and to compare."""

    url: str

    @property
    def fs(self) -> Any:
        return self._opened[0]

    def path(self, name: str = "") -> str:
        """Return the path of a file in the folder, as its file system spells it."""
        root = self._opened[1].rstrip("/")
        return f"{root}/{name}" if name else root

    @property
    def _opened(self) -> tuple[Any, str]:
        """Open the file system, one that keeps no listing: what others wrote meanwhile would not be in it."""
        try:
            fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **_anonymous(self.url))
            return fs, root
        except (ImportError, ValueError) as error:
            hint = next((f": pip install 'worldloom[{extra}]'" for scheme, extra in EXTRAS if scheme in self.url), "")
            raise UserError(f"{self.url} cannot be opened: {error}{hint}") from error

    @property
    def local(self) -> bool:
        return "file" in _protocols(self.fs)

    @property
    def _store(self) -> Store | None:
        """The object store that the folder is in, or None where it is on a disk."""
        fs = self.fs
        return None if "file" in _protocols(fs) else store_of(fs)

    def sub(self, name: str) -> "Folder":
        return Folder(f"{self.url.rstrip('/')}/{name}")

    def make(self, *names: str) -> None:
        """Create the folder and those in it, where the file system has folders at all."""
        if _has_buckets(self.fs):
            return  # an object brings its folder along, and a bucket whose name is mistyped is not to be made
        for name in ("", *names):
            self.fs.makedirs(self.path(name), exist_ok=True)

    def exists(self, name: str = "") -> bool:
        """Is there a file, or a folder with a file in it? An empty one is there on a disk alone."""
        if not _has_buckets(self.fs):
            return bool(self.fs.exists(self.path(name)))
        return (bool(name) and self.size(name) is not None) or not self.sub(name).is_empty()

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None where there is none."""
        try:
            if (store := self._store) is None:
                return Path(self.path(name)).read_bytes()
            return store.get(self.path(name))[0]
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """Return a file's bytes, or None where there is none."""
        try:
            if (store := self._store) is None:
                return Path(self.path(name)).stat().st_size
            return store.size(self.path(name))
        except FileNotFoundError:
            return None

    def names(self, folder: str = "") -> Iterator[str]:
        """Yield the names of the files directly in a folder, in no order; nothing where it is missing.

        An object store's listing may lack a file that was just put, or show one that was removed: let nothing rest on
        it that asking for the file itself can answer.
        """
        try:
            if (store := self._store) is not None:
                yield from store.names(self.path(folder))
                return
            with os.scandir(self.path(folder)) as entries:
                yield from (e.name for e in entries if not e.is_dir())
        except FileNotFoundError:
            return

    def is_empty(self) -> bool:
        """Is there nothing in the folder, or no folder?"""
        try:
            if (store := self._store) is not None:
                return next(store.names(self.path(), deep=True), None) is None
            return next(Path(self.path()).iterdir(), None) is None
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            return False

    def create(self, name: str, data: bytes) -> bool:
        """Make a file appear whole, only where there is none. Returns whether this call made it."""
        if (store := self._store) is not None:
            return store.put(self.path(name), data, ABSENT)
        with self._drafted(name, data) as draft:
            try:
                os.link(draft, self.path(name))
            except FileExistsError:
                return False
        return True

    def replace(self, name: str, old: bytes, data: bytes) -> bool:
        """Put `data` in the place of a file that still holds `old`. Returns whether it did.

        Local files are compared and swapped under a lock that the kernel takes back from a killed process; an object
        store puts only over the version that was compared.
        """
        try:
            if (store := self._store) is not None:
                found, version = store.get(self.path(name))
                return found == old and store.put(self.path(name), data, version)
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
        if self._store is not None:
            patiently(lambda: self.fs.pipe_file(self.path(name), data))
            return
        with self._drafted(name, data) as draft:
            draft.replace(self.path(name))

    def adopt(self, draft: Path, name: str) -> None:
        """Move a finished local file into the folder under a name that its content decides."""
        if self._store is None:
            draft.replace(self.path(name))
            return
        patiently(lambda: self.fs.put_file(str(draft), self.path(name)))
        draft.unlink()

    @contextmanager
    def adopted(self, name: str) -> Iterator[Path]:
        """Lend a temporary file that is adopted where the block ends without an error; else nothing is left of it.

        Raises:
          RunFailed: if there was no room for it.
        """
        draft = self.scratch(name)
        try:
            with room(self):
                yield draft
                self.adopt(draft, name)
        finally:
            draft.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file; none there is as good."""
        with suppress(FileNotFoundError):
            patiently(lambda: self.fs.rm_file(self.path(name)))

    def abort_uploads(self) -> int:
        """End the uploads into the folder that kills left half done, which cost money and show in no listing."""
        return 0 if (store := self._store) is None else store.abort_uploads(self.path())

    def scratch(self, name: str) -> Path:
        """Name a new temporary file for `adopt`: beside the target where that is local."""
        if self.local:
            return self._draft(name)
        place = Path(tempfile.gettempdir())
        _sweep_elsewhere(place)
        return place / f"{ELSEWHERE}{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"

    def _draft(self, name: str) -> Path:
        target = Path(self.path(name))
        return target.with_name(f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}")

    @contextmanager
    def _drafted(self, name: str, data: bytes) -> Iterator[Path]:
        """Lend a draft beside a local file; nothing is left of it, also where the disk is full."""
        draft = self._draft(name)
        try:
            with room(self):
                draft.write_bytes(data)
            yield draft
        finally:
            draft.unlink(missing_ok=True)


def check_reachable(folder: Folder) -> None:
    """Refuse a folder in an object store that cannot be written as a data set must be. Local ones are not looked at.

    It puts an empty object, puts it again, which must fail, and removes it.

    Raises:
      UserError: if there is no such bucket, no credentials, no permission or no answer, or puts heed no condition.
    """
    if folder.local:
        return
    probe = f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
    try:
        seen = folder.read(probe)
        made, again = folder.create(probe, b""), folder.create(probe, b"")
        folder.remove(probe)
    except OSError as error:
        raise UserError(f"{folder.url} {_why(folder, error)}") from error
    if seen is not None or not made or again:
        raise UserError(
            f"{folder.url} is in a store that lets a second put win where the first must stay (it heeds no "
            "If-None-Match), so that two workers could spoil each other's rows: choose another --out"
        )


def _why(folder: Folder, error: OSError) -> str:
    """Say why a folder in an object store cannot be used, and the remedy."""
    scheme = folder.url.partition("://")[0]
    said = error.strerror or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        bucket = folder.path().partition("/")[0]
        return f"cannot be written: there is no bucket {bucket!r}: make it, or choose another --out"
    if isinstance(error, PermissionError):
        log_in = LOG_IN.get({"gcs": "gs", "s3a": "s3"}.get(scheme, scheme), "log in")
        return (
            f"may not be used ({said}): {log_in}, as one who may get, list, create and delete objects there, "
            "or choose another --out"
        )
    return f"cannot be reached ({said}): look at its name, the endpoint and the network, or choose another --out"


@contextmanager
def room(folder: Folder) -> Iterator[None]:
    """Say in one sentence that a disk is full. Around whatever writes a folder's files, or temporary ones for them.

    Raises:
      RunFailed: if it is, or a quota or the limit of a file's size is reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise full(folder) from error


def full(folder: Folder) -> RunFailed:
    """Say that there was no room for a folder's files or for temporary ones."""
    places = [folder.url] if folder.local else []
    places.append(f"temporary files in {tempfile.gettempdir()}")
    return RunFailed(
        f"no space is left for {' or for '.join(places)}: free some, or choose another --out or TMPDIR, and call the "
        "same command again; finished units are kept"
    )


@cache
def _sweep_elsewhere(place: Path) -> None:
    """Remove the drafts that killed processes left in a folder of temporary files, once a process.

    Containers may share the folder and not the numbers of processes, so a draft must be old as well.
    """
    for draft in place.glob(f"{ELSEWHERE}{TEMPORARY}*"):
        with suppress(OSError):  # another user's, or gone
            if abandoned(draft.name.removeprefix(ELSEWHERE)) and draft.stat().st_mtime < time.time() - DAY:
                draft.unlink()


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


def _anonymous(url: str) -> dict[str, str]:
    """Return what keeps gcsfs from looking for credentials, for seconds, where an emulator asks for none."""
    emulated = os.environ.get("STORAGE_EMULATOR_HOST") and url.startswith(("gs://", "gcs://"))
    return {"token": "anon"} if emulated else {}


def _has_buckets(fs: Any) -> bool:
    return not LOG_IN.keys().isdisjoint(_protocols(fs))


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
