"""Object stores on this machine: Google's protocol by fake-gcs-server or in a few lines, Amazon's by moto."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest

BINARY = Path(__file__).resolve().parents[2] / ".engines" / "bin" / "fake-gcs-server"
BUCKET = "worldloom-test"
SECONDS = 20  # within which a server answers
AMAZON = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}
App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Faults:
    """Serve one request after the other, and fail those that a test chooses.

    moto looks at what is there and puts in two steps, which threads could come between.

    Attributes:
      before, after: statuses to answer the next puts with: instead of doing them, or although they were done.
      heedless: put whatever the condition says, as stores do that do not know conditions.
    """

    def __init__(self, app: App):
        self._app, self._lock = app, threading.Lock()
        self.before: list[int] = []
        self.after: list[int] = []
        self.heedless = False

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            put = environ["REQUEST_METHOD"] in ("PUT", "POST")
            if self.heedless:
                environ = {k: v for k, v in environ.items() if not k.startswith("HTTP_IF_")}
                environ["QUERY_STRING"] = environ["QUERY_STRING"].replace("ifGenerationMatch", "heedless")
            if put and self.before:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                return refuse(self.before.pop(0), start)
            if put and self.after:
                b"".join(self._app(environ, lambda *said: None))
                return refuse(self.after.pop(0), start)
            return [b"".join(self._app(environ, start))]


def refuse(status: int, start: Callable[..., Any]) -> list[bytes]:
    start(f"{status} Chosen", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return []


@contextmanager
def serving(app: App) -> Iterator[str]:
    """Serve an app on a free port of this machine, in threads. Yields its URL."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(SECONDS)


def moto_app() -> App:
    from moto.server import DomainDispatcherApplication, create_backend_app

    app: App = DomainDispatcherApplication(create_backend_app)
    return app


class Google:
    """As much of Google Cloud Storage as a data set's files need, in memory: what the API's reference says, no more."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self._generation = 0
        self.page = 2  # names in one page of a listing

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        asked = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
        method = environ["REQUEST_METHOD"]
        path = environ.get("REQUEST_URI", environ["PATH_INFO"]).partition("?")[0]
        head, _, bucket = path.partition("/b/")
        bucket, _, key = bucket.partition("/o")
        if bucket != BUCKET:
            return refuse(404, start)
        if head.startswith("/upload"):
            length = int(environ.get("CONTENT_LENGTH") or 0)
            return self._upload(asked, environ["CONTENT_TYPE"], environ["wsgi.input"].read(length), start)
        if not key:
            return self._answer(start, self._list(asked))
        found = self.objects.get(unquote(key[1:]))
        if found is None:
            return refuse(404, start)
        if method == "DELETE":
            del self.objects[found["name"]]
            return self._answer(start, None)
        if asked.get("alt") == "media":
            start("200 OK", [("X-Goog-Generation", found["generation"]), ("Content-Length", str(len(found["data"])))])
            return [found["data"]]
        return self._answer(start, {k: v for k, v in found.items() if k != "data"})

    def _upload(self, asked: dict[str, str], kind: str, body: bytes, start: Callable[..., Any]) -> Iterable[bytes]:
        boundary = kind.partition('boundary="')[2].partition('"')[0].encode()
        about, data = (part.split(b"\n\n", 1)[1] for part in _parts(body, boundary))
        said = json.loads(about)
        present = self.objects.get(said["name"], {"generation": "0"})
        if asked.get("ifGenerationMatch", present["generation"]) != present["generation"]:
            return refuse(412, start)
        self._generation += 1
        made = {**said, "generation": str(self._generation), "size": str(len(data)), "data": data}
        self.objects[said["name"]] = made
        return self._answer(start, {k: v for k, v in made.items() if k != "data"})

    def _list(self, asked: dict[str, str]) -> dict[str, Any]:
        prefix = asked.get("prefix", "")
        names = sorted(name for name in self.objects if name.startswith(prefix))
        if asked.get("delimiter"):
            names = [name for name in names if "/" not in name[len(prefix) :]]
        names = [name for name in names if name > asked.get("pageToken", "")]
        page = {"items": [{"name": name} for name in names[: self.page]]}
        return {**page, "nextPageToken": names[self.page - 1]} if len(names) > self.page else page

    def _answer(self, start: Callable[..., Any], said: Any) -> list[bytes]:
        body = b"" if said is None else json.dumps(said).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def _parts(body: bytes, boundary: bytes) -> list[bytes]:
    """Take a multipart body apart; gcsfs ends its lines with \\n, the standard with \\r\\n."""
    first, second = body.split(b"--" + boundary)[1:3]
    ending = b"\r\n" if first.startswith(b"\r\n") else b"\n"
    return [part.removesuffix(ending).replace(ending * 2, b"\n\n", 1) for part in (first, second)]


class FakeGcs:
    """fake-gcs-server with its objects on a disk, so that it can be killed and started again."""

    def __init__(self, root: Path):
        if not BINARY.exists():
            pytest.skip(f"SKIPPED FOR LACK OF fake-gcs-server: {BINARY} is missing; call 'make engines'")
        self.root, self.port = root, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        flags = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port), "-log-level", "error"]
        flags += ["-public-host", f"127.0.0.1:{self.port}", "-external-url", self.url]
        flags += ["-backend", "filesystem", "-filesystem-root", str(self.root)]
        self._process = subprocess.Popen([str(BINARY), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await_answer(f"{self.url}/storage/v1/b?project=test")

    def make_bucket(self) -> None:
        data, kind = json.dumps({"name": BUCKET}).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/storage/v1/b?project=test", data, kind)
        urllib.request.urlopen(request, timeout=SECONDS).close()

    def kill(self) -> None:
        """End the server as a power cut would."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(SECONDS)
            self._process = None


@contextmanager
def fake_gcs(root: Path) -> Iterator[FakeGcs]:
    """Run fake-gcs-server with a bucket, or skip without it."""
    server = FakeGcs(root)
    try:
        server.start()
        server.make_bucket()
        yield server
    finally:
        server.kill()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def await_answer(url: str) -> None:
    end = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=SECONDS).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@contextmanager
def both() -> Iterator[dict[str, Faults]]:
    """Let gs:// and s3:// mean servers of this process, which can be told to fail."""
    servers = {"gs": Faults(Google()), "s3": Faults(moto_app())}
    with serving(servers["gs"]) as gs, serving(servers["s3"]) as s3, google(gs), amazon(s3):
        yield servers


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables of this process, and of those that it starts, for a while, and for file systems opened anew."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    forget_file_systems()
    try:
        yield
    finally:
        forget_file_systems()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def forget_file_systems() -> None:
    import gcsfs
    import s3fs

    for kind in (gcsfs.GCSFileSystem, s3fs.S3FileSystem):
        kind.clear_instance_cache()


@contextmanager
def google(url: str) -> Iterator[None]:
    """Let gs:// mean a server on this machine."""
    with environment(STORAGE_EMULATOR_HOST=url, NO_GCE_CHECK="true"):
        yield


@contextmanager
def amazon(url: str) -> Iterator[None]:
    """Let s3:// mean a server on this machine, with a bucket there."""
    import fsspec

    with environment(AWS_ENDPOINT_URL=url, **AMAZON):
        fsspec.filesystem("s3").call_s3("create_bucket", Bucket=BUCKET)
        yield
