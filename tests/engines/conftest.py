"""Engines for the tests: found in .engines (see install.sh), started on free ports, bounded, and stopped."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from worldloom.tokenizers.train import train

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / ".engines"
DRIVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"
LISTENING = 90.0  # seconds for a server to listen, on a busy machine
PROSE = [
    "The miller's daughter went down to the river before the sun was up, and found the ferry gone.",
    "No one in the village had heard it leave; the rope hung over the water and moved a little.",
    "She called twice. On the far bank a lantern was lit, carried a few steps, and put out again.",
    "Good morning, said the fox, who had been reading 1984 on page 273 and did not look up.",
]


def installed(name: str) -> Path:
    """Find a program or a folder of jars, or skip with a word that says what was missed."""
    path = PROGRAMS / name
    if not path.exists():
        pytest.skip(f"SKIPPED FOR LACK OF {name}: make engines installs it where Go, Java and Maven are")
    return path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


@contextmanager
def server(command: list[str], log: Path, port: int = 0, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program, in a session of its own, until the block ends; with a port, wait until it listens there.

    It ends with the tests as well, however those end.
    """
    called = [sys.executable, "-m", "worldloom.pipelines.guarded", *command]
    with log.open("ab") as said:
        process = subprocess.Popen(
            called, stdin=subprocess.PIPE, stdout=said, stderr=said, start_new_session=True, **options
        )
        try:
            if port:
                await_port(process, port, log)
            yield process
        finally:
            end(process)


def await_port(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    until = time.monotonic() + LISTENING
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("localhost", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"{process.args!r} does not listen:\n{log.read_text(errors='replace')[-2000:]}")


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a program, and all that it started."""
    assert process.stdin is not None
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def asked(url: str, method: str = "GET") -> Any:
    """Ask a server for JSON."""
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as reply:
        return json.loads(reply.read() or b"null")


def eventually(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until something is true, and return it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.1)
    pytest.fail(f"{what} did not come true in {seconds} seconds")


@pytest.fixture(scope="session")
def prism() -> Path:
    return installed("bin/prism")


@pytest.fixture(scope="session")
def java() -> str:
    path = shutil.which("java")
    if path is None:
        pytest.skip("SKIPPED FOR LACK OF JAVA: Flink needs it")
    return path


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@contextmanager
def flink_job_server(java: str, master: str, folder: Path) -> Iterator[str]:
    """Start Beam's job server for a Flink master. Yields its endpoint."""
    jars, port = installed("flink/lib"), free_port()
    command = [java, "-Xmx1g", "-cp", f"{jars}/*", DRIVER,
               f"--job-port={port}", "--artifact-port=0", "--expansion-port=0", f"--flink-master={master}",
               f"--artifacts-dir={folder}"]  # fmt: skip
    with server(command, folder.parent / f"job-server-{port}.log", port):
        yield f"localhost:{port}"


@pytest.fixture(scope="session")
def job_server(java: str, logs: Path) -> Iterator[str]:
    """A job server with Flink in its own process."""
    with flink_job_server(java, "[local]", logs / "artifacts") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def job_server_jar(logs: Path) -> Path:
    """One jar that names all those of the job server: what --flink_job_server_jar takes."""
    path = logs / "job-server.jar"
    urls = " ".join(jar.as_uri() for jar in sorted(installed("flink/lib").glob("*.jar")))
    lines = [f"Main-Class: {DRIVER}", f"Class-Path: {urls}"]
    short = [("" if i == 0 else " ") + line[i : i + 70] for line in lines for i in range(0, len(line), 70)]  # its rule
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n" + "\n".join(short) + "\n")
    return path


# Everything that Flink's missing scripts would compute.
TASK_MANAGER = {
    "taskmanager.cpu.cores": "1",
    "taskmanager.memory.task.heap.size": "300mb",
    "taskmanager.memory.task.off-heap.size": "0b",
    "taskmanager.memory.framework.heap.size": "128mb",
    "taskmanager.memory.framework.off-heap.size": "128mb",
    "taskmanager.memory.network.min": "64mb",
    "taskmanager.memory.network.max": "64mb",
    "taskmanager.memory.managed.size": "200mb",
    "taskmanager.memory.jvm-metaspace.size": "256mb",
    "taskmanager.memory.jvm-overhead.min": "128mb",
    "taskmanager.memory.jvm-overhead.max": "128mb",
}
RUNTIME = "org.apache.flink.runtime"


@contextmanager
def flink_cluster(java: str, folder: Path, managers: int = 2) -> Iterator[str]:
    """Start a JobManager and TaskManagers of one slot each. Yields the REST address."""
    jars, rest, conf = installed("flink-cluster"), free_port(), folder / "conf"
    conf.mkdir(parents=True)
    config = {"jobmanager.rpc.address": "localhost", "jobmanager.rpc.port": free_port(), "rest.port": rest,
              "jobmanager.memory.process.size": "1200m", "taskmanager.numberOfTaskSlots": 1,
              "parallelism.default": managers, "io.tmp.dirs": str(folder)}  # fmt: skip
    (conf / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in config.items()))
    path = os.pathsep.join(str(p) for p in jars.rglob("*.jar") if p.name.startswith(("flink-dist", "log4j")))
    small = [java, "-Xmx600m", "-XX:MaxDirectMemorySize=300m", "-cp", path]
    master = [*small, f"{RUNTIME}.entrypoint.StandaloneSessionClusterEntrypoint", "--configDir", str(conf)]
    worker = [*small, f"{RUNTIME}.taskexecutor.TaskManagerRunner", "--configDir", str(conf)]
    for key, value in TASK_MANAGER.items():
        worker += ["-D", f"{key}={value}"]
    with ExitStack() as stack:
        stack.enter_context(server(master, folder / "master.log", rest))
        for number in range(managers):
            stack.enter_context(server(worker, folder / f"manager-{number}.log"))
        eventually(lambda: registered(f"http://localhost:{rest}") == managers, LISTENING)
        yield f"localhost:{rest}"


def registered(rest: str) -> int:
    """Count a cluster's TaskManagers; none while it is not ready to say."""
    try:
        return int(asked(f"{rest}/overview")["taskmanagers"])
    except OSError:
        return 0


@pytest.fixture(scope="session")
def cluster(java: str, logs: Path) -> Iterator[str]:
    with flink_cluster(java, logs / "cluster") as rest:
        yield rest


@pytest.fixture(scope="session")
def cluster_job_server(java: str, cluster: str, logs: Path) -> Iterator[str]:
    """A job server that hands jobs to the cluster."""
    with flink_job_server(java, cluster, logs / "cluster-artifacts") as endpoint:
        yield endpoint


def environment() -> dict[str, str]:
    """Return an environment in which plain `python` is this one: what starts workers looks for it on PATH."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def worker_pool(logs: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    with server(command, logs / "pool.log", port, env=environment()):
        yield f"localhost:{port}"


@pytest.fixture(scope="session")
def dask_scheduler(logs: Path) -> Iterator[str]:
    """A Dask scheduler with two workers."""
    pytest.importorskip("distributed", reason="SKIPPED FOR LACK OF DASK: pip install 'worldloom[dask]'")
    port = free_port()
    with ExitStack() as stack:
        scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", str(port), "--no-dashboard"]
        stack.enter_context(server(scheduler, logs / "scheduler.log", port))
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://localhost:{port}", "--no-dashboard",
                  "--nworkers", "2", "--nthreads", "1", "--local-directory", str(logs)]  # fmt: skip
        stack.enter_context(server(worker, logs / "workers.log"))
        yield f"tcp://localhost:{port}"


@pytest.fixture(scope="session")
def bare_python(logs: Path) -> Path:
    """A Python with all packages but worldloom, which may be installed into it: what stands for a container."""
    prefix, libraries = logs / "bare", [path for path in sys.path if path.endswith("site-packages")]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True, timeout=60)
    [own] = prefix.glob("lib/python*/site-packages")
    (own / "libraries.pth").write_text("\n".join(libraries))  # whose own .pth files, an editable one's, are not read
    python = prefix / "bin" / "python"
    tried = [python, "-c", "import pip, apache_beam, worldloom"]
    said = subprocess.run(tried, capture_output=True, text=True, cwd="/", timeout=120, env={"PATH": os.environ["PATH"]})
    assert "No module named 'worldloom'" in said.stderr
    return python


@pytest.fixture(scope="session")
def boot(logs: Path, bare_python: Path) -> Path:
    """A command that starts Beam's own worker program, for --environment_type=PROCESS.

    It installs what is staged, so never let it find the environment of the tests.
    """
    script = logs / "boot.sh"
    script.write_text(
        f'#!/bin/sh\nunset PYTHONPATH\nexport PATH="{bare_python.parent}:$PATH" PIP_NO_INDEX=1\n'
        "export RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1\ncd /\n"
        f'exec "{installed("bin/boot")}" --semi_persist_dir="{logs}/persist" "$@" >>"{logs}/boot.log" 2>&1\n'
    )
    script.chmod(0o755)
    return script


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.model"
    train(PROSE * 5, str(path), 300)
    return path


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> dict[str, Path]:
    """Three small recipes, `text`, `vision` and `questions`, and their corpora; some records are damaged."""
    folder = tmp_path_factory.mktemp("corpora")
    write = {"text": text_recipe, "vision": vision_recipe, "questions": questions_recipe}
    found = {}
    for name, make in write.items():
        found[name] = folder / f"{name}.yaml"
        found[name].write_text(yaml.safe_dump(make(folder / name, str(small_model))))
    return found


def text_recipe(folder: Path, model: str) -> dict[str, Any]:
    """Books with copies among them, one of them damaged, and sides of a split that share runs of words."""
    folder.mkdir()
    words = " ".join(PROSE).split()
    for i in range(20):
        book = i % 16
        drawn = random.Random(book).choices(words, k=20 + 8 * (book % 5))
        (folder / f"{i:02d}.txt").write_text(" ".join([PROSE[book % 4], *drawn]))
    (folder / "20.txt").write_bytes(b"\xff")
    source = {"name": "books", "kind": "books", "path": f"{folder}/*.txt", "unit_bytes": 600}
    pack = [{"length": 64}, {"length": 128, "split": "train", "remove_eval_ngrams": 20}]
    limits = {"failed": 0.2}
    return {"vocabulary": {"text": model}, "sources": [source], "pack": pack, "eval": 0.3, "limits": limits}


def vision_recipe(folder: Path, model: str) -> dict[str, Any]:
    """Tars of toy pictures and a folder of toy clips, with a codebook."""
    pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
    pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
    from worldloom.pipelines.toy.files import write_clips, write_tar
    from worldloom.tokenizers.codebook import Codebook

    for number in range(4):
        write_tar(folder / "tars" / f"{number:05d}.tar", 6, seed=number, size=64)
    write_clips(folder / "clips", 4, size=64, seconds=1.25)
    (folder / "clips" / "webvid.csv").unlink()  # it would have them fetched from their URLs
    patches = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), np.uint8)
    Codebook(np.unique(patches, axis=0), 64).save(str(folder / "codebook.npz"))
    images = {"name": "images", "kind": "image-text", "path": f"{folder}/tars/*.tar", "unit_bytes": 1}
    clips = {"name": "clips", "kind": "video-text", "path": f"{folder}/clips", "unit_bytes": 1}
    return {
        "vocabulary": {"text": model, "vision": {"kind": "codebook", "path": f"{folder}/codebook.npz"}},
        "sources": [images, clips],
        "pack": {"length": 256, "weights": "lwm"},
    }


def questions_recipe(folder: Path, model: str) -> dict[str, Any]:
    """Books with questions of the cloze kind about them."""
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text(" ".join(PROSE[(i + j) % 4] for j in range(12)))
    source = {"name": "qa", "kind": "book-questions", "path": str(folder), "chunk": 50, "length": 400, "trained": 0.1}
    pack = {"length": 400, "weights": "lwm"}
    return {"vocabulary": {"text": model}, "sources": [source | {"unit_bytes": 1}], "pack": pack}
