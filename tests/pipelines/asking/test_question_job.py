"""The whole question job against a local server: what is asked and paid for, what fails, and what is asked again."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from worldloom.cli import main
from worldloom.packing.dataset import open_dataset
from worldloom.packing.report import Reject, finished_units, read_rejects, read_report
from worldloom.packing.storage import TEMPORARY, Folder
from worldloom.packing.verify import verify
from worldloom.tokenizers.text import load

CHUNK = 50  # tokens
DOLLARS = {"dollars_in": 2000.0, "dollars_out": 9000.0}  # a million tokens
Reply = tuple[int, str]  # status, and what the model writes


def pair(text: str) -> str:
    """Ask about a passage so that no other of its book is asked the same; the last may have a single word."""
    words = text.split()
    return json.dumps(
        {"question": f"What goes with {' '.join(words[1:3])}?", "answer": " ".join(words[3:6] or words[:1])}
    )


def good(text: str) -> Reply:
    return 200, pair(text)


class Stub(ThreadingHTTPServer):
    """An OpenAI-compatible server on 127.0.0.1. `behave` is called with the passage of each request.

    Attributes:
      asked: all requests, each as text.
      usage: requests that got a completion, and tokens of prompts and of completions, all counted here.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave: Callable[[str], Reply] = good
        self.asked: list[str] = []
        self.usage: Counter[str] = Counter()
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are gone."""

    def of(self, passage: str) -> int:
        """Count the requests about a passage."""
        return sum(passage in json.loads(one)["messages"][0]["content"] for one in self.asked)


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(json.dumps(body, sort_keys=True))
        status, content = self.server.behave(body["messages"][0]["content"].removeprefix("Ask: "))
        told = {"error": {"message": content}} if status != 200 else self.completion(body, content)
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def completion(self, body: dict[str, Any], content: str) -> dict[str, Any]:
        prompt = sum(len(message["content"].split()) for message in body["messages"])
        cost = {"requests": 1, "prompt_tokens": prompt, "completion_tokens": len(content)}
        with self.server.lock:
            self.server.usage.update(cost)
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}], "usage": cost}

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def write_recipe(folder: Path, model: Path, stub: Stub, books: int, words: int) -> Path:
    """Write books of words that occur once, and the recipe that asks about them."""
    (folder / "books").mkdir()
    rng = random.Random(5)
    for number in range(books):
        text = " ".join("".join(rng.choices("abdefgiklmnoprstu", k=6)) for _ in range(words))
        (folder / "books" / f"{number}.txt").write_text(text)
    questions = {"by": "server", "url": f"http://127.0.0.1:{stub.server_port}/v1", "model": "m", "prompt": "Ask: {}"}
    questions |= {"at_once": 1, "retries": 0, "seconds": 20.0, **DOLLARS}
    source = {"name": "qa", "kind": "book-questions", "path": "books", "chunk": CHUNK, "length": 400, "trained": 0.5}
    recipe = {
        "vocabulary": {"text": str(model)},
        "sources": [source | {"unit_bytes": 1, "filters": {"min_tokens": 20}, "questions": questions}],
        "pack": {"length": 400, "weights": "lwm"},
        "limits": {"failed": 0.5},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def passages(folder: Path, model: Path) -> dict[str, str]:
    """Cut the books into chunks, by id."""
    tokenizer, found = load(str(model)), {}
    for path in sorted((folder / "books").iterdir()):
        ids = tokenizer.encode(path.read_text())
        for n, low in enumerate(range(0, len(ids), CHUNK)):
            found[f"{path.name}#{n}"] = tokenizer.decode(ids[low : low + CHUNK])
    return found


def rejects(folder: Path) -> dict[str, Reject]:
    place = Folder(str(folder))
    reports = [read_report(place, name) for name in finished_units(place)]
    found = [reject for report in reports if report for reject in read_rejects(place, report)]
    assert len({reject.record for reject in found}) == len(found)
    return {reject.record: reject for reject in found}


def drafts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(TEMPORARY)]


def test_what_fails_what_it_costs_and_what_is_asked_again(
    stub: Stub, tmp_path: Path, small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = str(write_recipe(tmp_path, small_model, stub, 2, 90)), tmp_path / "out"
    chunks = passages(tmp_path, small_model)
    broken, garbled, twin = chunks["0.txt#1"], chunks["1.txt#2"], chunks["0.txt#3"]
    assert len(chunks) > 12 and len(set(chunks.values())) == len(chunks)

    def behave(text: str) -> Reply:
        if text == broken:
            return 500, "oops"
        if text == garbled:
            return 200, "Sure! Here it is."
        question = json.loads(pair(chunks["0.txt#2"]))["question"]
        return 200, json.dumps({**json.loads(pair(text)), "question": question}) if text == twin else pair(text)

    def run(command: str) -> str:
        assert main([command, recipe, "--out", str(out)]) == 0
        return capsys.readouterr().out

    def check(gone: dict[str, tuple[str, str, str]]) -> None:
        made = open_dataset(str(out / "questions"))
        ledger = made.manifest["ledger"]
        assert ledger["read"] == len(chunks) == ledger["kept"] + ledger["dropped"] + ledger["failed"]
        assert ledger["kept"] == len(chunks) - len(gone) == len(made)
        assert ledger["reasons"] == Counter(f"{status}: {reason}" for status, reason, _ in gone.values())
        assert ledger["usage"] == stub.usage
        assert {name: (r.status, r.reason, r.stage) for name, r in rejects(out / "questions").items()} == gone
        assert {row.segments[0].record for row in made} == set(chunks) - set(gone)

    stub.behave = behave
    said = run("questions")
    kept_out = {"1.txt#2": ("failed", "no valid reply", "ask"), "0.txt#3": ("dropped", "duplicate question", "filter")}
    check({"0.txt#1": ("failed", "no reply", "ask"), **kept_out})
    assert stub.of(broken) == 1 and stub.of(garbled) == 2 and len(stub.asked) == len(chunks) + 1
    prompts, replies = stub.usage["prompt_tokens"], stub.usage["completion_tokens"]
    dollars = prompts * DOLLARS["dollars_in"] / 1e6 + replies * DOLLARS["dollars_out"] / 1e6
    assert f"qa: {len(chunks)} replies, {prompts:,} + {replies:,} tokens, ${dollars:,.2f}" in said and dollars > 1

    stub.behave, before = good, len(stub.asked)
    run("questions")
    assert len(stub.asked) == before + 1 and stub.of(broken) == 2  # neither the invalid reply nor the twin
    check(kept_out)
    run("build")
    run("questions")
    assert len(stub.asked) == before + 1 and verify(str(out)) == []
    assert drafts(out) == []


def test_no_reply_that_is_stored_is_asked_for_again_after_a_kill(stub: Stub, tmp_path: Path, small_model: Path) -> None:
    recipe, out = str(write_recipe(tmp_path, small_model, stub, 4, 120)), tmp_path / "out"
    chunks, reached = passages(tmp_path, small_model), threading.Event()

    def behave(text: str) -> Reply:
        if len(stub.asked) > len(chunks) // 3:
            reached.set()
        time.sleep(0.02)
        return good(text)

    stub.behave = behave
    command = [sys.executable, "-m", "worldloom.cli", "questions", recipe, "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert reached.wait(90)
        process.kill()
        process.wait(10)
        assert wait_until(lambda: not alive(process.pid), 20)  # its workers end with it
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    sent, kept = len(stub.asked), len(list((out / "replies").rglob("*.json")))
    assert len(set(stub.asked)) == sent < len(chunks)
    assert sent - 2 <= kept <= sent  # a worker has one in flight
    assert main(["questions", recipe, "--out", str(out)]) == 0
    assert set(Counter(stub.asked).values()) <= {1, 2}
    assert len(stub.asked) == len(chunks) + sent - kept and len(set(stub.asked)) == len(chunks)
    assert len(list((out / "replies").rglob("*.json"))) == len(chunks) and drafts(out) == []
    assert open_dataset(str(out / "questions")).manifest["ledger"]["usage"]["requests"] == len(chunks)


def alive(group: int) -> bool:
    """Is a process of the group left that has not ended? One that nobody has asked for its code has."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(of) == group and state not in "ZX":
            return True
    return False


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (ended := done()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return ended
