"""Decoder processes: answers in order, and a decoder that dies, hangs or lies costs one record."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from worldloom.pipelines.decoding.decoders import Decoders, Frames, Request
from worldloom.pipelines.media import Unfit

# A decoder that does what its file says: the first byte is how many frames it gives before the rest happens.
MISBEHAVING = """
import os, signal, sys, time
import numpy as np
from worldloom.pipelines.decoding.decoder import serve
from worldloom.pipelines.decoding.decoders import Frames
from worldloom.pipelines.media import Unfit

def decode(limits, path, data):
    for number in range(data[0]):
        yield Frames(np.full((1, 2, 2, 3), number, np.uint8), {"name": data[1:9].decode()})
    if data[1:] == b"die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data[1:] == b"exit":
        os._exit(3)
    if data[1:] == b"hang":
        time.sleep(60)
    if data[1:] == b"raise":
        raise MemoryError("of my own")
    if data[1:] == b"unfit":
        raise Unfit("dropped", "too dull", "quite")
    if data[1:] == b"babble":
        os.write(1, b"\\xff" * 100)

serve(sys.stdin.buffer, sys.stdout.buffer, {"picture": decode})
"""
REASONS = {
    "die": ("failed", "decoder crashed", "killed by signal 11"),
    "exit": ("failed", "decoder crashed", "ended with 3"),
    "hang": ("failed", "decoder hung", "no word for 1.5 s"),
    "raise": ("failed", "decoder error", "MemoryError: of my own"),
    "unfit": ("dropped", "too dull", "quite"),
    "babble": ("failed", "decoder crashed", "it sent no message"),
}


@pytest.fixture
def script(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "misbehaving.py"
    path.write_text(MISBEHAVING)
    return sys.executable, str(path)


def outcome(frames: Iterator[Frames]) -> tuple[int, tuple[str, str, str] | None]:
    number = 0
    try:
        for part in frames:
            assert part.frames.shape == (1, 2, 2, 3) and (part.frames == number).all()
            number += 1
    except Unfit as unfit:
        return number, (unfit.status, unfit.reason, unfit.detail)
    return number, None


@pytest.mark.parametrize("number", [1, 2])
def test_each_record_is_answered_in_order_whatever_its_neighbours_do(script, number) -> None:
    names = ["ok", "die", "ok", "unfit", "exit", "exit", "ok", "raise", "hang", "ok", "babble", "ok", "ok"]
    asked = [(f"{i}", Request("picture", {}, bytes([i % 4]) + name.encode())) for i, name in enumerate(names)]
    with Decoders(number, script, seconds=1.5) as decoders:
        found = [(item, outcome(frames)) for item, frames in decoders.decode(asked, lambda item: item[1])]
    assert [item for item, _ in found] == asked
    assert [o for _, o in found] == [(i % 4, REASONS.get(name)) for i, name in enumerate(names)]


def test_items_without_a_request_pass_in_their_place(script) -> None:
    items = [None, b"\2ok", None, None, b"\1die", b"\0ok", None]
    with Decoders(1, script) as decoders:
        answered = decoders.decode(items, lambda data: Request("picture", {}, data) if data else None)
        found = [(item, outcome(frames)[0]) for item, frames in answered]
    assert found == [(None, 0), (b"\2ok", 2), (None, 0), (None, 0), (b"\1die", 1), (b"\0ok", 0), (None, 0)]


def test_large_requests_and_answers_do_not_wait_for_each_other(script) -> None:
    asked = [bytes([200]) + b"x" * 2_000_000] * 6
    with Decoders(1, script) as decoders:
        answered = decoders.decode(asked, lambda data: Request("picture", {}, data))
        assert [outcome(frames)[0] for _, frames in answered] == [200] * 6


def test_processes_are_gone_when_the_block_is_left(script) -> None:
    with Decoders(2, script) as decoders:
        answered = decoders.decode([b"\1ok"] * 8, lambda data: Request("picture", {}, data))
        next(answered)
        processes = [d._process for d in decoders._decoders]
        assert all(p is not None and p.poll() is None for p in processes)
    assert all(p is not None and p.poll() is not None for p in processes)


def test_the_real_decoder_answers(real_data: Path) -> None:
    pytest.importorskip("PIL")
    image = (real_data / "images" / "coffee.png").read_bytes()
    asked = [Request("picture", {"size": 64}, data) for data in (image, b"no picture", b"")]
    with Decoders() as decoders:
        found = []
        for _, frames in decoders.decode(asked, lambda request: request):
            try:
                found.append([(f.frames.shape, f.info) for f in frames])
            except Unfit as unfit:
                found.append(unfit.status)
    assert found == [[((1, 64, 64, 3), {"width": 600, "height": 400})], "failed", "failed"]
