"""Object stores: what was put by others, sent twice, refused, half uploaded or not listed yet."""

import errno
import multiprocessing
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import aiohttp
import botocore.exceptions
import fsspec
import google.auth.exceptions
import numpy as np
import pytest
from gcsfs.retry import HttpError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.packing import object_store, storage
from worldloom.packing.manifest import sweep
from worldloom.packing.object_store import AmazonStore, may_pass, patiently, plain_error
from worldloom.packing.report import read_report, report_name
from worldloom.packing.storage import Folder, check_reachable
from worldloom.tests.engines.servers import BUCKET, Faults, both, environment

STORES = ["gs", "s3"]
NAMES = ["a", "b"]
SECONDS = 60  # within which another process does its little


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Faults]]:
    with both() as started:
        yield started


@pytest.fixture(params=STORES)
def scheme(request) -> str:
    return request.param


@pytest.fixture
def folder(servers, scheme) -> Folder:
    return Folder(f"{scheme}://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def server(servers, scheme) -> Faults:
    return servers[scheme]


def test_a_busy_store_is_asked_again(folder, server):
    server.before = [503]
    assert folder.create("x", b"1") and folder.read("x") == b"1" and server.before == []
    server.before = [503]
    assert folder.replace("x", b"1", b"2") and folder.read("x") == b"2" and server.before == []


def test_a_put_whose_reply_was_lost_is_not_taken_for_a_lost_race(folder, server):
    server.after = [503]
    assert folder.create("x", b"1") and server.after == []
    assert folder.read("x") == b"1" and not folder.create("x", b"1")
    server.after = [503]
    assert folder.replace("x", b"1", b"2") and server.after == []
    assert folder.read("x") == b"2" and not folder.replace("x", b"1", b"2")


def test_a_race_that_was_lost_is_lost_also_where_the_store_was_busy(folder, server):
    """The other's bytes may even be the same: it is the other that made it."""
    folder.create("x", b"1")
    server.before = [503]
    assert not folder.create("x", b"1") and server.before == []


def test_what_others_put_is_seen_after_a_listing_without_it(folder, scheme):
    folder.create("part/a", b"1")
    assert len(folder.fs.ls(folder.path("part"))) == 1
    other = fsspec.filesystem(scheme, skip_instance_cache=True)
    other.pipe_file(folder.path("part/b"), b"22")
    assert folder.size("part/b") == 2 and folder.exists("part/b") and folder.read("part/b") == b"22"
    with folder.fs.open(folder.path("part/b"), "rb") as file:
        assert file.read() == b"22"
    assert sorted(folder.names("part")) == ["a", "b"]
    other.pipe_file(folder.path("part/b"), b"333")
    with folder.fs.open(folder.path("part/b"), "rb") as file:
        assert file.read() == b"333" and folder.size("part/b") == 3


def test_a_listing_of_many_pages_is_whole(folder, server, monkeypatch):
    names = sorted(f"{i}.json" for i in range(5))
    for name in names:
        folder.create(f"units/{name}", b"")
        folder.create(f"units/deeper/{name}", b"")
    if folder.url.startswith("s3"):
        ask = AmazonStore._ask
        monkeypatch.setattr(AmazonStore, "_ask", lambda self, m, a: ask(self, m, {**a, "MaxKeys": 2}))
    assert sorted(folder.names("units")) == names and list(folder.names("unit")) == []
    assert not folder.is_empty() and not folder.sub("units").is_empty() and folder.sub("unit").is_empty()
    assert folder.exists("units/deeper") and not folder.exists("unit") and folder.size("units") is None


def test_a_console_s_mark_of_an_empty_folder_is_nothing_in_it(folder):
    folder.create("out/", b"")
    assert folder.sub("out").is_empty() and list(folder.names("out")) == []


def test_uploads_that_a_kill_left_are_ended_in_the_folder_alone(servers):
    folder = Folder(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    other = Folder(f"{folder.url}-of-another")
    for place in (folder, other):
        for name in ("shards/x", "y"):
            folder.fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key=place.path(name).partition("/")[2])
    assert folder.abort_uploads() == 2 and folder.abort_uploads() == 0 and other.abort_uploads() == 2


def test_the_sweep_ends_uploads_and_takes_what_no_report_names(servers, toy_dataset):
    """Not what a report names that was written after the index."""
    folder = Folder(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    toy_dataset(rows=6, url=folder.url)
    folder.fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key=folder.path("shards/x").partition("/")[2])
    lost, since = (f"shards/toy-000000-{digit * 32}.arrow" for digit in "01")
    for name in (lost, since, "shards/of-the-user.arrow"):
        folder.create(name, b"")
    report = read_report(folder, "toy-000000")
    assert report
    folder.overwrite(report_name(report.unit), replace(report, shard=report.shard._replace(path=since)).to_bytes())
    assert sweep(folder) == 2 and folder.abort_uploads() == 0
    assert not folder.exists(lost) and folder.exists(since) and folder.exists("shards/of-the-user.arrow")


def in_a_child(work: Callable[[Folder], bool], folder: Folder) -> bool:
    """Do something in a forked process, whose parent holds open connections."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: exit(0 if work(folder) else 1))
    child.start()
    child.join(SECONDS)
    child.kill()
    return child.exitcode == 0


def test_a_forked_process_opens_connections_of_its_own(folder):
    assert folder.create("x", b"1") and folder.read("x") == b"1"
    assert in_a_child(lambda f: f.read("x") == b"1" and f.replace("x", b"1", b"2") and f.create("y", b""), folder)
    assert folder.read("x") == b"2" and folder.size("y") == 0


def test_a_folder_that_can_be_used_is_left_as_it_was(folder):
    check_reachable(folder)
    check_reachable(Folder(folder.url.rpartition("/")[0]))
    assert folder.is_empty()


def test_a_bucket_that_does_not_exist_is_told_and_not_made(servers, scheme):
    folder = Folder(f"{scheme}://no-such-bucket/out")
    folder.make("units")
    with pytest.raises(UserError, match="no-such-bucket/out cannot be written: there is no bucket 'no-such-bucket'"):
        check_reachable(folder)


@pytest.mark.parametrize("status", [401, 403])
def test_one_who_may_not_write_is_told_to_log_in(folder, server, status):
    server.before = [status]
    with pytest.raises(UserError, match=r"may not be used \(.+\): (log in with 'gcloud|set AWS_ACCESS_KEY_ID)"):
        check_reachable(folder)


def test_one_without_credentials_is_told_to_set_them(servers, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "none", "AWS_CONFIG_FILE": "none"}
    with environment(**nowhere), pytest.raises(UserError, match=r"credentials.*: set AWS_ACCESS_KEY_ID"):
        check_reachable(Folder(f"s3://{BUCKET}/x"))


def test_a_store_that_does_not_answer_is_told(servers, monkeypatch):
    monkeypatch.setattr(object_store, "PATIENCE", 0.0)
    said = pytest.raises(UserError, match=r"cannot be reached \(Could not connect.*127.0.0.1:9")
    with environment(AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_MAX_ATTEMPTS="1"), said:
        check_reachable(Folder(f"s3://{BUCKET}/x"))


def test_a_store_that_heeds_no_condition_is_refused(folder, server):
    server.heedless = True
    try:
        with pytest.raises(UserError, match="lets a second put win"):
            check_reachable(folder)
    finally:
        server.heedless = False


def client_error(status: int, code: str) -> Exception:
    reply = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(reply, "PutObject")


REFUSED = aiohttp.ClientConnectorError(SimpleNamespace(host="h", port=1, ssl=None, is_ssl=False), OSError(111, "no"))


@pytest.mark.parametrize(
    ("error", "kind", "passes"),
    [
        (HttpError({"code": 503, "message": "busy"}), OSError, True),
        (HttpError({"code": "429", "message": "slow"}), OSError, True),
        (HttpError({"code": 401, "message": "who"}), PermissionError, False),
        (OSError("Forbidden: b/x\nno"), PermissionError, False),
        (ValueError("Bad Request: b/x\ninvalid"), OSError, False),
        (google.auth.exceptions.RefreshError("who"), PermissionError, False),
        (google.auth.exceptions.TransportError("down"), ConnectionError, True),
        (aiohttp.ServerDisconnectedError(), ConnectionError, True),
        (REFUSED, ConnectionError, True),
        (TimeoutError("late"), TimeoutError, True),
        (ConnectionResetError("gone"), ConnectionError, True),
        (client_error(503, "SlowDown"), OSError, True),
        (client_error(409, "ConditionalRequestConflict"), OSError, True),
        (client_error(412, "PreconditionFailed"), FileExistsError, False),
        (client_error(501, "NotImplemented"), OSError, False),
        (client_error(404, "NoSuchKey"), FileNotFoundError, False),
        (botocore.exceptions.NoCredentialsError(), PermissionError, False),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="u"), ConnectionError, True),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="u"), ConnectionError, True),
        (botocore.exceptions.ParamValidationError(report="bucket"), OSError, False),
        (OSError(errno.ENOSPC, "full"), OSError, False),
        (FileNotFoundError("x"), FileNotFoundError, False),
    ],
)
def test_an_error_of_a_client_is_said_as_a_disk_would(error, kind, passes):
    plain = plain_error(error)
    assert isinstance(plain, kind) and may_pass(plain) == passes and str(plain)


def test_an_error_of_ours_stays_what_it_is():
    for error in (UserError("no"), KeyError("x"), ValueError("x"), RuntimeError("x")):
        assert plain_error(error) is error and not may_pass(error)


@pytest.mark.parametrize("failures", [0, 1, 4, 1000])
def test_patience_has_an_end(monkeypatch, failures):
    """Waits double up to a bound, and end within a minute."""
    clock, waits, left = [0.0], [], [failures]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    def ask() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError("gone")
        return "answer"

    monkeypatch.setattr(object_store, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    if failures < 1000:
        assert patiently(ask) == "answer"
    else:
        with pytest.raises(ConnectionResetError, match="gone"):
            patiently(ask)
        assert 50 < clock[0] <= object_store.PATIENCE
    assert waits[:6] == [0.5, 1, 2, 4, 8, 8][:failures]


Act = tuple[str, str, bytes, bytes]
contents = st.sampled_from([b"", b"1", b"22", b"\r\n--x\n\n"])
kinds = st.sampled_from(["create", "replace", "overwrite", "remove"])
acts = st.tuples(kinds, st.sampled_from(NAMES), contents, contents)


@pytest.fixture(params=["local", "memory", "gs", "s3"])
def place(request, tmp_path) -> str:
    """Where to make folders."""
    if request.param in STORES:
        request.getfixturevalue("servers")
        return f"{request.param}://{BUCKET}"
    return str(tmp_path) if request.param == "local" else "memory://"


def do(folder: Folder, model: dict[str, bytes], act: Act) -> None:
    """Do one thing to a folder and to a dictionary, and compare what both say."""
    kind, name, old, new = act
    present = model.get(name)
    if kind == "create":
        assert folder.create(name, new) == (present is None)
        model.setdefault(name, new)
    elif kind == "replace":
        assert folder.replace(name, old, new) == (present == old)
        model |= {name: new} if present == old else {}
    elif kind == "overwrite":
        folder.overwrite(name, new)
        model[name] = new
    else:
        folder.remove(name)
        model.pop(name, None)


def same(folder: Folder, model: dict[str, bytes]) -> bool:
    listed = {name: folder.read(name) for name in folder.names()}
    return listed == model and all(folder.size(n) == (len(model[n]) if n in model else None) for n in NAMES)


def test_a_folder_is_a_dictionary(place):
    @settings(max_examples=8 if place.startswith("s3") else 25, deadline=None, database=None)
    @given(st.lists(acts, max_size=8))
    def check(done: list[Act]) -> None:
        folder, model = Folder(f"{place}/{uuid.uuid4().hex}"), {}
        folder.make()
        for act in done:
            do(folder, model, act)
        assert same(folder, model)

    check()


@pytest.mark.parametrize("scheme", STORES)
def test_what_happens_between_a_look_and_a_put_is_never_lost(servers, scheme, monkeypatch):
    """Another process acts after `replace` has compared, or `create` has begun, and before its put arrives."""
    kind = {"gs": object_store.GoogleStore, "s3": AmazonStore}[scheme]
    put, intruders = kind.put, []

    def put_late(self, path: str, data: bytes, over: str) -> bool:
        for act in intruders:
            act()
        return put(self, path, data, over)

    @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(contents, contents, acts, st.booleans())
    def check(old: bytes, new: bytes, act: Act, creating: bool) -> None:
        folder = Folder(f"{scheme}://{BUCKET}/{uuid.uuid4().hex}")
        model = {} if creating else {"a": old}
        if not creating:
            folder.create("a", old)

        def intrude() -> None:
            intruders.clear()
            do(folder, model, (act[0], "a", act[2], act[3]))

        intruders[:] = [intrude]
        won = folder.create("a", new) if creating else folder.replace("a", old, new)
        before = model.get("a")
        undisturbed = before is None if creating else before == old
        assert not won or undisturbed
        assert folder.read("a") == (new if won else before)

    monkeypatch.setattr(kind, "put", put_late)
    check()


def test_random_bytes_come_back(folder):
    for size in (0, 1, 70_000):
        data = np.random.default_rng(size).bytes(size)
        assert folder.create(f"{size}", data) and folder.read(f"{size}") == data
        folder.overwrite(f"{size}", data[::-1])
        assert folder.read(f"{size}") == data[::-1]


def test_drafts_for_a_store_that_kills_left_are_removed_when_they_are_old(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.tempfile, "gettempdir", lambda: str(tmp_path))
    gone = multiprocessing.get_context("fork").Process(target=int)
    gone.start()
    gone.join(SECONDS)
    kept = [tmp_path / f"worldloom-.tmp-{os.getppid()}-a", tmp_path / f"worldloom-.tmp-{gone.pid}-new"]
    old = tmp_path / f"worldloom-.tmp-{gone.pid}-old"
    for path in (*kept, old):
        path.write_bytes(b"rows")
    for path in (kept[0], old):
        os.utime(path, (0, 0))
    draft = Folder("memory://x").scratch("shards/x")
    assert draft.parent == tmp_path and not old.exists() and all(path.exists() for path in kept)
