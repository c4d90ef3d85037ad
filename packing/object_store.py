"""Object stores: objects appear whole, and a put may depend on what is there. Google's and Amazon's, and any other."""

import errno
import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import fsspec

# Else gcsfs asks over gRPC for the type of each bucket, for up to a minute where nothing answers, and its put into a
# zonal bucket heeds no condition. It looks at this once, when it is imported.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

PATIENCE = 60.0  # seconds after which a request that failed is not tried again; the clients' own trials are within
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds between trials, doubling
ABSENT = "0"  # the version of an object that is not there, as Google counts generations
WRITER = "worldloom-writer"  # metadata that tells the writer of a conditional put from any other
UNREACHED = {
    "aiohttp.ClientError",
    "requests.RequestException",
    "botocore.ConnectionError",
    "botocore.HTTPClientError",
    "gcsfs.ChecksumError",
    "google.TransportError",
}
UNKNOWN_USER = {
    "botocore.NoCredentialsError",
    "botocore.PartialCredentialsError",
    "botocore.CredentialRetrievalError",
    "botocore.TokenRetrievalError",
    "gcsfs.NonRetryableError",
    "google.GoogleAuthError",
}
BUSY = {408, 409, 425, 429}  # statuses of requests that may do better later, as those from 500 on may
NOT_IMPLEMENTED = 501  # but this

Result = TypeVar("Result")
_lock = threading.Lock()


class Store(Protocol):
    """What a data set needs of an object store. Paths are `BUCKET/KEY`; errors are those that a disk would raise."""

    def get(self, path: str) -> tuple[bytes, str]:
        """Return an object's content and version. Raises FileNotFoundError where there is none."""
        ...

    def size(self, path: str) -> int:
        """Return an object's bytes. Raises FileNotFoundError where there is none."""
        ...

    def put(self, path: str, data: bytes, over: str) -> bool:
        """Put an object where the present one has a version, or is `ABSENT`. Returns whether this call did."""
        ...

    def names(self, path: str, deep: bool = False) -> Iterator[str]:
        """Yield the names of the objects directly in a folder, or in the folders in it too, relative to it."""
        ...

    def abort_uploads(self, path: str) -> int:
        """End the uploads into a folder that were begun and not finished, where the store lists them."""
        ...


def store_of(fs: Any) -> Store:
    """Return the store that a file system of fsspec's stands for."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if "gs" in protocols:
        return GoogleStore(fs)
    return AmazonStore(fs) if "s3" in protocols else OtherStore(fs)


def patiently(ask: Callable[[], Result]) -> Result:
    """Ask a store for something, again after a failure that may pass, and raise what a disk would have raised."""
    wait, end = FIRST_WAIT, time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except Exception as error:
            plain = plain_error(error)
            if not may_pass(plain) or time.monotonic() + wait > end:
                raise plain from (None if plain is error else error)
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)


def may_pass(error: Exception) -> bool:
    """Is an error one that the same request need not meet again?"""
    return isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) == errno.EBUSY


def plain_error(error: Exception) -> Exception:
    """Say an error of a store's client as the OSError that a disk would have raised; any other stays as it is."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return error
    if (status := _status(error)) is not None:
        return _of_status(status, text)
    if kinds & UNREACHED:
        return ConnectionError(text)
    if kinds & UNKNOWN_USER:
        return PermissionError(errno.EACCES, text)
    if isinstance(error, OSError):
        return error
    return OSError(errno.EINVAL, text) if "botocore.BotoCoreError" in kinds else error


def _status(error: Exception) -> int | None:
    """Return the HTTP status that an error was made of, or None where it tells of none."""
    for cause in (error, error.__cause__):
        response = getattr(cause, "response", None)  # botocore's
        if isinstance(response, dict) and "ResponseMetadata" in response:
            return int(response["ResponseMetadata"].get("HTTPStatusCode", 0)) or None
    if type(error).__module__ == "gcsfs.retry" and getattr(error, "code", None):
        return int(error.code)  # type: ignore[attr-defined]
    for words, status in (("Forbidden: ", 403), ("Bad Request: ", 400)):  # gcsfs says these with plain errors
        if type(error) in (OSError, ValueError) and str(error).startswith(words):
            return status
    return None


def _of_status(status: int, text: str) -> OSError:
    if status in (401, 403):
        return PermissionError(errno.EACCES, text)
    if status == 404:
        return FileNotFoundError(errno.ENOENT, text)
    if status == 412:
        return FileExistsError(errno.EEXIST, text)
    passing = status in BUSY or (status >= 500 and status != NOT_IMPLEMENTED)
    return OSError(errno.EBUSY if passing else errno.EINVAL, text)


class GoogleStore:
    """Google Cloud Storage: an object's version is its generation."""

    def __init__(self, fs: Any):
        self._fs = fs
        logger = logging.getLogger("gcsfs")
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)  # it would print the traceback of what it raises anyway

    def get(self, path: str) -> tuple[bytes, str]:
        headers, data = patiently(lambda: self._fs.call("GET", self._fs.url(path)))
        return bytes(data), str(headers["X-Goog-Generation"])

    def size(self, path: str) -> int:
        return int(self._about(path)["size"])

    def put(self, path: str, data: bytes, over: str) -> bool:
        writer = uuid.uuid4().hex
        try:
            patiently(lambda: self._upload(path, data, over, writer))
        except FileExistsError:  # so it answers a put that is sent again after a lost reply, too
            return self._writer(path) == writer
        return True

    def _upload(self, path: str, data: bytes, over: str, writer: str) -> None:
        """Send an object and its metadata in one request (multipart upload of the JSON API)."""
        bucket, _, key = path.partition("/")
        about = json.dumps({"name": key, "metadata": {WRITER: writer}})
        kinds = ("application/json; charset=UTF-8", "application/octet-stream")
        heads = [f"--{writer}\r\nContent-Type: {kind}\r\n\r\n".encode() for kind in kinds]
        self._fs.call(
            "POST",
            f"{self._fs.base.replace('/storage/v1/', '/upload/storage/v1/')}b/{bucket}/o",
            uploadType="multipart",
            ifGenerationMatch=over,
            headers={"Content-Type": f'multipart/related; boundary="{writer}"'},
            data=b"".join([heads[0], about.encode(), b"\r\n", heads[1], data, f"\r\n--{writer}--\r\n".encode()]),
        )

    def _writer(self, path: str) -> str | None:
        try:
            return str(self._about(path).get("metadata", {}).get(WRITER))
        except FileNotFoundError:
            return None

    def _about(self, path: str) -> dict[str, Any]:
        bucket, _, key = path.partition("/")
        found: dict[str, Any] = patiently(lambda: self._fs.call("GET", "b/{}/o/{}", bucket, key, json_out=True))
        return found

    def names(self, path: str, deep: bool = False) -> Iterator[str]:
        bucket, _, key = path.partition("/")
        asked = {"prefix": f"{key}/" if key else "", "fields": "items/name,nextPageToken"}
        asked |= {} if deep else {"delimiter": "/"}
        while True:
            page = self._page(bucket, asked)
            yield from _relative(asked["prefix"], (item["name"] for item in page.get("items", [])))
            if "nextPageToken" not in page:
                return
            asked = {**asked, "pageToken": page["nextPageToken"]}

    def _page(self, bucket: str, asked: dict[str, str]) -> dict[str, Any]:
        found: dict[str, Any] = patiently(lambda: self._fs.call("GET", "b/{}/o", bucket, json_out=True, **asked))
        return found

    def abort_uploads(self, path: str) -> int:
        return 0  # Google lists none, and forgets them after a week


class AmazonStore:
    """Amazon S3, and the stores that speak its protocol and heed `If-Match`: an object's version is its ETag."""

    def __init__(self, fs: Any):
        self._fs = fs

    def get(self, path: str) -> tuple[bytes, str]:
        return patiently(lambda: self._get(path))

    def _get(self, path: str) -> tuple[bytes, str]:
        reply = self._fs.call_s3("get_object", **_address(path))
        return bytes(fsspec.asyn.sync(self._fs.loop, reply["Body"].read)), str(reply["ETag"])

    def size(self, path: str) -> int:
        return int(self._about(path)["ContentLength"])

    def put(self, path: str, data: bytes, over: str) -> bool:
        writer = uuid.uuid4().hex
        condition = {"IfNoneMatch": "*"} if over == ABSENT else {"IfMatch": over}
        asked = {**_address(path), "Body": data, "Metadata": {WRITER: writer}, **condition}
        try:
            self._ask("put_object", asked)
        except FileExistsError:  # so it answers a put that is sent again after a lost reply, too
            return self._writer(path) == writer
        except FileNotFoundError:
            if over == ABSENT:  # there is no bucket
                raise
            return False
        return True

    def _writer(self, path: str) -> str | None:
        try:
            return str(self._about(path).get("Metadata", {}).get(WRITER))
        except FileNotFoundError:
            return None

    def _about(self, path: str) -> dict[str, Any]:
        return self._ask("head_object", _address(path))

    def names(self, path: str, deep: bool = False) -> Iterator[str]:
        for page in self._pages("list_objects_v2", path, {} if deep else {"Delimiter": "/"}):
            yield from _relative(page["Prefix"], (item["Key"] for item in page.get("Contents", [])))

    def abort_uploads(self, path: str) -> int:
        uploads = [u for page in self._pages("list_multipart_uploads", path, {}) for u in page.get("Uploads", [])]
        bucket = path.partition("/")[0]
        for upload in uploads:
            asked = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            with suppress(FileNotFoundError):  # it ended meanwhile
                self._ask("abort_multipart_upload", asked)
        return len(uploads)

    def _ask(self, method: str, asked: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = patiently(lambda: self._fs.call_s3(method, **asked))
        return found

    def _pages(self, method: str, path: str, asked: dict[str, str]) -> Iterator[dict[str, Any]]:
        bucket, _, key = path.partition("/")
        asked = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", **asked}
        following = {"NextContinuationToken": "ContinuationToken"}
        following |= {"NextKeyMarker": "KeyMarker", "NextUploadIdMarker": "UploadIdMarker"}
        more = True
        while more:
            page = self._ask(method, asked)
            yield {**page, "Prefix": asked["Prefix"]}
            more = page.get("IsTruncated", False)
            asked = {**asked, **{name: page[said] for said, name in following.items() if page.get(said)}}


class OtherStore:
    """Any file system that fsspec knows. Puts depend on what is there among the threads of one process alone."""

    def __init__(self, fs: Any):
        self._fs = fs

    def get(self, path: str) -> tuple[bytes, str]:
        data = bytes(patiently(lambda: self._fs.cat_file(path)))
        return data, hashlib.blake2b(data, digest_size=16).hexdigest()

    def size(self, path: str) -> int:
        return int(patiently(lambda: self._fs.info(path))["size"])

    def put(self, path: str, data: bytes, over: str) -> bool:
        with _lock:
            try:
                if over == ABSENT:
                    patiently(lambda: self._fs.pipe_file(path, data, mode="create"))
                    return True
                if self.get(path)[1] != over:
                    return False
            except (FileExistsError, FileNotFoundError):
                return False
            patiently(lambda: self._fs.pipe_file(path, data))
            return True

    def names(self, path: str, deep: bool = False) -> Iterator[str]:
        if deep:
            yield from _relative(f"{path}/", patiently(lambda: self._fs.find(path)))
            return
        for entry in patiently(lambda: self._fs.ls(path, detail=True)):
            if entry["type"] != "directory":
                yield entry["name"].rsplit("/", 1)[-1]

    def abort_uploads(self, path: str) -> int:
        return 0


def _address(path: str) -> dict[str, str]:
    bucket, _, key = path.partition("/")
    return {"Bucket": bucket, "Key": key}


def _relative(prefix: str, keys: Iterable[str]) -> Iterator[str]:
    """Take a folder's prefix off its objects' keys; an object of that very key marks the folder and is none in it."""
    return (key[len(prefix) :] for key in keys if len(key) > len(prefix))
