"""Decoder processes: answers in order, and a decoder that dies, hangs or lies costs one record."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worldloom.pipelines.decoding import decoders as decoders_module
from worldloom.pipelines.decoding.decoders import Decoders, close_kept, kept_decoders
from worldloom.pipelines.decoding.messages import CRASHED, Frames, Lost, Request, checked
from worldloom.pipelines.media import Unfit

# A decoder that does what its file says: the first byte is how many frames it gives before the rest happens.
MISBEHAVING = """
import json, os, signal, sys, time
import numpy as np
from worldloom.pipelines.decoding import decoder
from worldloom.pipelines.decoding.messages import Frames, write_message
from worldloom.pipelines.media import Unfit

decoder.PULSE, decoder.STUCK, decoder.MEMORY = 0.05, 1.0, 2**29
said = os.fdopen(os.dup(1), "wb")
facts = {"width": 9, "height": 9, "start": 0, "rate": 4, "total": 9}

def decode(limits, path, data, alive):
    name = data[1:].decode()
    for number in range(data[0]):
        yield Frames(np.full((1, 2, 2, 3), number, np.uint8), facts | {"chosen": data[0]})
    if name == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "ctrl-c":
        os.kill(os.getpid(), signal.SIGINT)
    if name == "exit":
        os._exit(3)
    if name == "hang":
        time.sleep(60)
    if name == "close":
        said.close(); os.closerange(1, 100); time.sleep(60)
    if name == "loop":
        while True: pass
    if name == "grip":
        sum(range(10**15))  # in C, and lets no other thread run
    if name == "slow":
        for _ in range(60): time.sleep(0.05); alive()
    if name == "endless":
        while True: time.sleep(0.01); alive()
    if name == "raise":
        raise ZeroDivisionError("of my own")
    if name == "greed":
        np.ones(2**30, np.uint8)
    if name == "hidden greed":
        try: np.ones(2**30, np.uint8)
        except MemoryError as error: raise Unfit("failed", "damaged", "it says") from error
    if name == "unfit":
        raise Unfit("dropped", "too dull", "quite")
    if name == "surrogate":
        raise Unfit("failed", "no such file", "caf\\udce9.mp4")
    if name == "print":
        print("I am a library", flush=True)
    if name == "babble":
        said.write(b"\\xff" * 100); said.flush()
    if name == "more":
        yield Frames(np.zeros((1, 2, 2, 3), np.uint8), {})
    if name.startswith("["):
        header, length = json.loads(name)
        write_message(said, header, bytes(length))
        time.sleep(0.5)

decoder.main({"clip": decode})
"""
NO_MESSAGE = ("failed", CRASHED, "it sent no message")
NO_MEMORY = ("failed", "out of memory", "its decoder takes more than 512 MiB")
OUTCOMES = {
    "die": ("failed", CRASHED, "killed by signal 11"),
    "exit": ("failed", CRASHED, "ended with 3"),
    "hang": ("failed", "decoder hung", "no word for 1.5 s"),
    "close": ("failed", CRASHED, "it stopped answering"),
    "raise": ("failed", "decoder error", "ZeroDivisionError: of my own"),
    "greed": NO_MEMORY,
    "hidden greed": NO_MEMORY,
    "unfit": ("dropped", "too dull", "quite"),
    "surrogate": ("failed", "no such file", "caf\\udce9.mp4"),
    "babble": NO_MESSAGE,
}


def asked(data: bytes) -> Request:
    return Request("clip", {"size": 2, "budget": 200}, data)


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


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders_module, "ENDING", 0.5)


@pytest.mark.parametrize("number", [1, 2])
def test_each_record_is_answered_in_order_whatever_its_neighbours_do(script, number) -> None:
    names = ["ok", "die", "ok", "unfit", "exit", "exit", "ctrl-c", "raise", "hang", "ok", "babble", "ok", "greed", "ok"]
    names += ["slow", "hidden greed", "ok", "surrogate", "close", "print", "ok"]
    items = [(f"{i}", asked(bytes([1 + i % 3]) + name.encode())) for i, name in enumerate(names)]
    with Decoders(number, script, seconds=1.5) as decoders:
        found = [(item, outcome(frames)) for item, frames in decoders.decode(items, lambda item: item[1])]
    assert [item for item, _ in found] == items
    assert [o for _, o in found] == [(1 + i % 3, OUTCOMES.get(name)) for i, name in enumerate(names)]


def test_items_without_a_request_pass_in_their_place(script) -> None:
    items = [None, b"\2ok", None, None, b"\1die", b"\3ok", None]
    with Decoders(1, script) as decoders:
        answered = decoders.decode(items, lambda data: asked(data) if data else None)
        found = [(item, outcome(frames)[0]) for item, frames in answered]
    assert found == [(None, 0), (b"\2ok", 2), (None, 0), (None, 0), (b"\1die", 1), (b"\3ok", 3), (None, 0)]


def test_large_requests_and_answers_do_not_wait_for_each_other(script) -> None:
    items = [bytes([200]) + b"x" * 2_000_000] * 6
    with Decoders(1, script) as decoders:
        answered = decoders.decode(items, asked)
        assert [outcome(frames)[0] for _, frames in answered] == [200] * 6


def test_processes_are_gone_when_the_block_is_left(script) -> None:
    with Decoders(2, script) as decoders:
        answered = decoders.decode([b"\1ok"] * 8, asked)
        next(answered)
        processes = [d._process for d in decoders._decoders]
        assert all(p is not None and p.poll() is None for p in processes)
    assert all(p is not None and p.poll() is not None for p in processes)


# ---- a decoder that lies

GRAY, FACTS = [1, 2, 2, 3], {"width": 9, "height": 9, "start": 0, "rate": 4, "total": 9, "chosen": 1}


def nonsense() -> Iterator[tuple[Any, int]]:
    """Yield headers and lengths of bodies that no decoder may ever send."""
    for header in ([], {}, [1], 1, None, "done", {"done": False}, {"done": 1}, {"alive": 0}):
        yield header, 0
    for unfit in (["kept", "a", "b"], ["failed"], ["failed", "a"], ["failed", "a", 1], [1, 2, 3], "failed", None, []):
        yield {"unfit": unfit}, 0
    yield {"shape": GRAY}, 12


def lies() -> Iterator[tuple[Any, int]]:
    """Yield headers and lengths of bodies that no decoder may send to begin a clip of at most 200 frames of 2 x 2."""
    yield from nonsense()
    for shape in ([1, 2, 2], [1, 2, 2, 4], [1, 4, 1, 3], [0, 2, 2, 3], [-1, 2, 2, 3], [2, 2, 2, 3], [1.0, 2, 2, 3], 12):
        yield {"shape": shape, "info": FACTS}, 12
    yield {"shape": [1, 9, 9, 3], "info": FACTS}, 243
    yield {"shape": [1, 2, 2, 3], "info": FACTS}, 11
    for info in (None, [], {}, {"width": 1}, FACTS | {"rate": "4"}, FACTS | {"rate": None}, FACTS | {"rate": 1e999}):
        yield {"shape": GRAY, "info": info}, 12
    for chosen in (0, -1, 201, 10**40, float("nan")):
        yield {"shape": GRAY, "info": FACTS | {"chosen": chosen}}, 12
    yield {"done": True}, 0  # before all frames


@pytest.mark.parametrize(("number", "told"), [(0, [*lies()]), (1, [*nonsense(), ({"shape": GRAY, "info": {}}, 12)])])
def test_what_is_no_message_costs_one_record(script, number: int, told: list[tuple[Any, int]]) -> None:
    """As the first message, and after the one promised frame."""
    items = [bytes([number]) + json.dumps(lie).encode() for lie in told]
    with Decoders(1, script, seconds=5) as decoders:
        found = [outcome(frames) for _, frames in decoders.decode(items, asked)]
    assert [(given, end and end[:2]) for given, end in found] == [(number, ("failed", CRASHED))] * len(items)


def test_text_that_is_no_json_is_no_message() -> None:
    for text in (b"", b"xxxx", b"\xff", b"[" * 60_000, b'{"a": ' * 10_000, b"9" * 5000, b'{"shape": [NaN, 2, 2, 3]}'):
        with pytest.raises(Lost, match="no message"):
            checked(text, b"", 2)


def test_a_file_that_takes_for_ever_ends_though_its_decoder_lives(script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders_module, "MOST_SECONDS", 1.0)
    with Decoders(1, script) as decoders:
        found = [outcome(frames) for _, frames in decoders.decode([b"\1endless", b"\1ok"], asked)]
    assert found == [(1, ("failed", "decoder too slow", "not done after 1 s")), (1, None)]


def test_the_readers_own_time_is_not_the_decoders(script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders_module, "MOST_SECONDS", 1.5)
    with Decoders(1, script) as decoders:
        for _, frames in decoders.decode([b"\4ok"], asked):
            assert len([time.sleep(0.5) for _ in frames]) == 4


def test_descriptors_above_a_thousand_are_waited_for(script) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("SKIPPED: this system allows a process fewer than 2048 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with Decoders(1, script) as decoders:
            assert [outcome(frames) for _, frames in decoders.decode([b"\1ok"], asked)] == [(1, None)]
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- several units in one process


@pytest.fixture
def kept(script, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    close_kept()
    monkeypatch.setattr(Decoders.__init__, "__defaults__", (1, script, 5.0))
    yield
    close_kept()


def test_units_of_two_threads_get_their_own_frames(kept) -> None:
    found: dict[int, list[tuple[int, Any]]] = {}
    start = threading.Barrier(2)

    def unit(number: int) -> None:
        with kept_decoders(1) as decoders:
            start.wait()
            items = [bytes([number]) + b"ok"] * 200
            found[number] = [outcome(frames) for _, frames in decoders.decode(items, asked)]

    with kept_decoders(1):
        pass  # one is kept, and both ask for it
    threads = [threading.Thread(target=unit, args=(number,)) for number in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: [(number, None)] * 200 for number in (1, 3)}


def processes(decoders: Decoders) -> list[int]:
    return [d._process.pid for d in decoders._decoders if d._process]


def test_decoders_live_on_for_the_next_unit_unless_one_fails(kept) -> None:
    seen = []
    for fails in (False, True, False):
        try:
            with kept_decoders(1) as decoders:
                assert [outcome(frames) for _, frames in decoders.decode([b"\2ok"], asked)] == [(2, None)]
                seen.append(processes(decoders))
                assert not fails
        except AssertionError:
            assert fails
    assert seen[0] == seen[1] != seen[2]
    close_kept()
    assert not processes(decoders)


def test_a_decoder_that_was_ended_while_idle_costs_nothing(kept) -> None:
    for _ in range(2):
        with kept_decoders(1) as decoders:
            assert [outcome(frames) for _, frames in decoders.decode([b"\2ok"], asked)] == [(2, None)]
            (process,) = [d._process for d in decoders._decoders]
            assert process is not None
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_frames_that_nobody_read_answer_no_later_request(kept) -> None:
    with kept_decoders(1) as decoders:
        for _, frames in decoders.decode([b"\5ok"] * 9, asked):
            next(frames)
            break
        del frames
    with kept_decoders(1) as decoders:
        assert [outcome(frames) for _, frames in decoders.decode([b"\2ok", b"\3ok"], asked)] == [(2, None), (3, None)]
    with kept_decoders(1) as decoders:
        for place, (_, frames) in enumerate(decoders.decode([b"\2ok", b"\3ok", b"\4ok"], asked)):
            if place == 2:
                assert outcome(frames) == (4, None)
            else:
                next(frames)  # and leave the rest


# ---- a decoder whose worker is gone

WORKER = """
import sys
from worldloom.pipelines.decoding.decoders import Decoders
from worldloom.pipelines.decoding.messages import Request
name, *command = sys.argv[1:]
decoders = Decoders(1, tuple(command))
request = Request("clip", {"size": 2, "budget": 200}, b"\1" + name.encode())
for _, frames in decoders.decode([request] * 9, lambda request: request):
    next(frames)
    print(decoders._decoders[0]._process.pid, flush=True)
    next(frames)
"""


@pytest.mark.parametrize("busy", ["loop", "grip", "hang", "slow"])
def test_a_decoder_ends_when_its_worker_is_killed(script, busy: str) -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER, busy, *script], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        decoder = int(worker.stdout.readline())
        worker.kill()
    for _ in range(300):
        if not runs(decoder):
            return
        time.sleep(0.1)
    os.kill(decoder, signal.SIGKILL)
    pytest.fail("it still runs after half a minute")


def runs(process: int) -> bool:
    """Is it there, and no dead one that nobody waited for?"""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


# ---- the real decoder


def test_the_real_decoder_answers(real_data: Path) -> None:
    pytest.importorskip("PIL")
    image = (real_data / "images" / "coffee.png").read_bytes()
    items = [Request("picture", {"size": 64}, data) for data in (image, b"no picture", b"")]
    with Decoders() as decoders:
        found = []
        for _, frames in decoders.decode(items, lambda request: request):
            try:
                found.append([(f.frames.shape, f.info) for f in frames])
            except Unfit as unfit:
                found.append(unfit.status)
    assert found == [[((1, 64, 64, 3), {"width": 600, "height": 400})], "failed", "failed"]


def write_clip(path: Path, codec: str, side: int, frames: int, pix_fmt: str = "yuv420p", **options: str) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=4, options=options)
        stream.width = stream.height = side
        stream.pix_fmt = pix_fmt
        for k in range(frames):
            pixels = np.full((side, side, 3), k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())


def test_large_files_of_usual_kind_fit(tmp_path: Path) -> None:
    """A PNG of 100 megapixels with alpha, and a clip of 4096 x 4096."""
    image = pytest.importorskip("PIL.Image")
    image.new("RGBA", (10_000, 10_000), (200, 100, 50, 128)).save(tmp_path / "large.png", compress_level=1)
    write_clip(tmp_path / "large.mp4", "libx264", 4096, 4, preset="ultrafast")
    items = [
        Request("picture", {"size": 64}, (tmp_path / "large.png").read_bytes()),
        Request("clip", {"size": 64, "budget": 4}, path=str(tmp_path / "large.mp4")),
    ]
    with Decoders() as decoders:
        assert [sum(len(f.frames) for f in frames) for _, frames in decoders.decode(items, lambda r: r)] == [1, 4]


def test_a_clip_that_takes_too_much_memory_is_one_record(tmp_path: Path) -> None:
    """Sixteen reference frames of 2048 x 2048 take 430 MB: more than this decoder may have."""
    if not Path("/proc/self/status").exists():
        pytest.skip("SKIPPED: only Linux bounds what a process may write to")
    memory = "from worldloom.pipelines.decoding import decoder\ndecoder.MEMORY = 320 * 2**20\n"
    (tmp_path / "small.py").write_text(memory + 'decoder.main({"clip": decoder.clip})\n')
    references = "ref=16:bframes=0:keyint=250:scenecut=0:me=dia:subme=0"
    for name, side in (("large", 2048), ("sound", 64)):
        encoding = {"preset": "ultrafast", "x264-params": references}
        write_clip(tmp_path / f"{name}.mkv", "libx264", side, 20, "yuv444p", **encoding)
    names = ["sound", "large", "absent", "sound"]
    items = [Request("clip", {"size": 64, "budget": 20}, path=str(tmp_path / f"{name}.mkv")) for name in names]
    found: list[Any] = []
    with Decoders(1, (sys.executable, str(tmp_path / "small.py"))) as decoders:
        for _, frames in decoders.decode(items, lambda request: request):
            try:
                found.append(sum(len(f.frames) for f in frames))
            except Unfit as unfit:
                found.append((unfit.reason, unfit.detail.split(":")[0]))
    failures = [("out of memory", "its decoder takes more than 320 MiB"), ("decoder error", "FileNotFoundError")]
    assert found == [20, *failures, 20]


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.mp4", "libx264")])
def test_each_packet_of_a_clip_is_a_sign_of_life(tmp_path: Path, name: str, codec: str) -> None:
    """In the pass that lists the frames, and in the one that decodes them."""
    pytest.importorskip("av")
    from worldloom.pipelines.decoding.clips import ClipLimits, read_clip

    write_clip(tmp_path / name, codec, 64, 80)
    calls: list[None] = []
    limits = ClipLimits(size=16, budget=2, sampling="uniform")
    _, batches = read_clip(str(tmp_path / name), limits, lambda: calls.append(None))
    assert 80 <= len(calls) < 150  # x264 holds the first frame back for some 40
    assert sum(map(len, batches)) == 2 and len(calls) >= 160
