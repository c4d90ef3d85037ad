"""LAION's own rows, through the job, from a local server that answers some, delays some and breaks the rest."""

import hashlib
import io
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from worldloom.packing.dataset import open_dataset
from worldloom.packing.report import read_rejects, read_report
from worldloom.pipelines import to_codes
from worldloom.pipelines.build import describe_examples
from worldloom.pipelines.fetching.fetch import Fetcher
from worldloom.pipelines.job import finish, run_in_memory
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.recipe import load_recipe
from worldloom.tokenizers.codebook import Codebook

Image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
PUBLIC = "93.184.216.34"
# What the server does with a path, by the first digit of its hash, and what must become of its row.
EXPECTED = {
    "0": "kept", "1": "kept", "2": "kept", "3": "kept",  # at once, or 50 ms late
    "4": "HTTP 404", "5": "HTTP 410", "6": "HTTP 503", "7": "empty body", "8": "unknown format", "9": "kept",
    "a": "private address", "b": "opted out", "c": "damaged", "d": "HTTP 403", "f": "kept",
    "e": "below min_side",
}  # fmt: skip


def picture(number: int, side: int = 256, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    small = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(small).resize((side, side)).save(out, form)
    return out.getvalue()


def digit(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[0]


ASKED: Counter[str] = Counter()


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """Say nothing of connections that the fetcher closes when it has seen enough."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        ASKED[digit(self.path)] += 1
        case, number = digit(self.path), int(hashlib.sha256(self.path.encode()).hexdigest()[1:9], 16)
        body, status, headers = picture(number), 200, {}
        if case == "3":
            time.sleep(0.05)
        if case in "456d":
            status, body = {"4": 404, "5": 410, "6": 503, "d": 403}[case], b"no"
        elif case == "7":
            body = b""
        elif case == "8":
            body = b"<html>this domain is for sale</html>"
        elif case == "a":
            status, headers = 302, {"Location": "http://169.254.169.254/latest/meta-data/"}
        elif case == "b":
            headers = {"X-Robots-Tag": "noai"}
        elif case == "c":
            body = picture(number, form="JPEG")[:-40]
        elif case == "e":
            body = picture(number, 255)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def rerouted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reach the local server through every name, by the fetcher's injected resolver and sockets."""
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()

    class Rerouted(socket.socket):
        def connect(self, address: Any) -> None:
            super().connect(server.server_address)

    async def look_up(name: str) -> list[str]:
        return [PUBLIC]

    def open_socket(info: Any) -> socket.socket:
        return Rerouted(socket.AF_INET, socket.SOCK_STREAM)

    monkeypatch.setattr(to_codes, "Fetcher", partial(Fetcher, look_up=look_up, open_socket=open_socket))
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_laion_s_rows_all_are_accounted_for(real_data, small_model, rerouted, tmp_path: Path) -> None:
    table = pq.read_table(real_data / "tables" / "laion-1000.parquet")
    links = [url.replace("https://", "http://") for url in table.column("URL").to_pylist()]
    table = table.set_column(table.schema.get_field_index("URL"), "URL", pa.array(links))
    pq.write_table(table, tmp_path / "laion.parquet", row_group_size=300)
    patches = np.unique(np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8), axis=0)
    Codebook(patches, 256).save(str(tmp_path / "codebook.npz"))
    recipe = {
        "vocabulary": {"text": str(small_model), "vision": {"kind": "codebook", "path": "codebook.npz"}},
        "sources": [
            {
                "name": "laion", "kind": "image-text", "path": "laion.parquet", "filters": {"min_side": 256},
                "fetch": {"retries": 0, "seconds": 20, "per_host": 32}, "unit_bytes": 2**24,
            }
        ],
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    job = TokenizeJob(load_recipe(tmp_path / "recipe.yaml"), str(tmp_path / "out"))
    run_in_memory(job)
    ledger = finish(job, describe_examples(job), 1.0)["ledger"]
    assert ledger["read"] == 1000 == ledger["kept"] + ledger["dropped"] + ledger["failed"]
    units = list(job.units("laion"))
    assert len(units) > 1
    reports = [report for unit in units if (report := read_report(job.folder, unit.name))]
    rejects = {r.record: r for report in reports for r in read_rejects(job.folder, report)}
    dataset = open_dataset(str(tmp_path / "out"))
    kept = {s.record: json.loads(s.spans[0].ref or s.spans[1].ref)["url"] for s in
            (dataset.row(i).segments[0] for i in range(dataset.rows))}  # fmt: skip
    assert rejects.keys().isdisjoint(kept) and len(rejects) + len(kept) == 1000
    served: Counter[str] = Counter()
    for case, times in ASKED.items():
        served[EXPECTED[case]] += times
    assert min(served.values()) > 10 and served.keys() == set(EXPECTED.values())
    found = Counter(r.reason for r in rejects.values()) + Counter(kept=len(kept))
    never_asked = 1000 - sum(served.values())
    assert found == served + Counter({"unusable link": never_asked})
    assert never_asked < 20 and all(links[int(name.partition("#")[2])] == url for name, url in kept.items())
