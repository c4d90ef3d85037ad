"""What flags name, what is derived of them, and every refusal before anything is submitted."""

import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from worldloom.cli import main
from worldloom.errors import RunFailed, UserError
from worldloom.pipelines import engine_checks as checks
from worldloom.pipelines import job_servers
from worldloom.pipelines.engine_checks import host_and_port, on_network_disk, refuse
from worldloom.pipelines.engine_flags import STAGING, environment, for_step, option, runner, shares
from worldloom.pipelines.engines import DASK, complete, engine
from worldloom.pipelines.job_servers import served

PORTABLE = "--runner=PortableRunner"
LOOPBACK = "--environment_type=LOOPBACK"
EXTERNAL = "--environment_type=EXTERNAL"


@pytest.fixture
def listening() -> Iterator[str]:
    """An address at which something listens."""
    with socket.create_server(("localhost", 0)) as there:
        yield f"localhost:{there.getsockname()[1]}"


@pytest.fixture
def silent() -> str:
    """An address at which nothing listens."""
    with socket.create_server(("localhost", 0)) as there:
        return f"localhost:{there.getsockname()[1]}"


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], ""),
        (["--runner=PrismRunner"], "prism"),
        (["--runner", "prism"], "prism"),
        (["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"], "dask"),
        (["--runner=FlinkRunner", "--runner=DataflowRunner"], "dataflow"),
        (["--direct_num_workers=2"], ""),
    ],
)
def test_the_engine_of_flags(flags: list[str], name: str) -> None:
    assert runner(flags) == name


def test_an_option_is_the_last_of_its_name() -> None:
    assert option(["--a=1", "--ab=2", "--a", "3", "--b"], "a") == "3"
    assert option(["--a=1", "--b"], "b") == option([], "a") == ""


def test_what_is_in_process_is_given_nothing(tmp_path: Path) -> None:
    for flags in ([], ["--runner=FnApiRunner"], ["--runner=DirectRunner"], ["--direct_num_workers=2"]):
        assert complete(flags, str(tmp_path), "n", tmp_path) == flags == for_step(flags, "pack")


def test_the_job_is_named_after_the_recipe_and_the_step(tmp_path: Path) -> None:
    flags = complete(["--runner=PrismRunner"], str(tmp_path), "Text_32k (new).", tmp_path)
    assert option(flags, "job_name") == "worldloom-text-32k-new"
    assert option(for_step(flags, "packed-A.b"), "job_name") == "worldloom-text-32k-new-packed-a-b"
    own = complete(["--runner=PrismRunner", "--job_name=mine"], str(tmp_path), "x", tmp_path)
    assert option(own, "job_name") == "mine"
    assert len(option(for_step(flags, "x" * 99), "job_name")) <= 60


def test_dask_is_found_by_its_short_name_and_gets_partitions(tmp_path: Path) -> None:
    flags = complete(["--runner=DaskRunner"], str(tmp_path), "n", tmp_path)
    assert option(flags, "runner") == DASK
    assert int(option(flags, "dask_npartitions")) == shares(flags) > 1
    assert shares(["--runner=dask", "--dask_npartitions=7"]) == 7
    assert shares(["--runner=prism"]) == shares([]) == 1


def test_flink_stages_below_the_output(tmp_path: Path) -> None:
    flags = complete(["--runner=FlinkRunner"], "gs://bucket/out", "n", tmp_path)
    assert option(flags, "artifacts_dir") == "gs://bucket/out/.staging"


@pytest.mark.parametrize("own", ["", "--setup_file=mine", "--extra_package=mine", "--sdk_container_image=mine"])
@pytest.mark.parametrize(
    ("way", "wanted"), [("PROCESS", True), ("DOCKER", True), ("LOOPBACK", False), ("EXTERNAL", False)]
)
def test_workers_that_start_from_nothing_get_the_package(tmp_path: Path, way: str, wanted: bool, own: str) -> None:
    given = [PORTABLE, "--job_endpoint=localhost:1", f"--environment_type={way}", *([own] if own else [])]
    flags = complete(given, str(tmp_path), "n", tmp_path)
    staged = [flag for flag in flags if flag.startswith("--extra_package=") and flag != own]
    assert len(staged) == int(wanted and not own)
    if staged:
        with tarfile.open(staged[0].partition("=")[2]) as package:
            assert any(name.endswith("worldloom/pipelines/engines.py") for name in package.getnames())


def test_beams_default_of_a_remote_job_server_is_containers() -> None:
    assert environment([PORTABLE, "--job_endpoint=x:1"]) == "DOCKER"
    assert environment(["--runner=FlinkRunner", "--flink_master=x:1"]) == "DOCKER"
    assert environment(["--runner=FlinkRunner"]) == environment(["--runner=prism"]) == "LOOPBACK"
    assert environment(["--runner=DaskRunner"]) == environment([]) == ""


def test_what_was_staged_is_taken_away_whatever_happens(tmp_path: Path) -> None:
    (tmp_path / "out" / STAGING / "of-a-killed-call").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), engine([], str(tmp_path / "out"), "n") as flags:
        assert flags == []
        raise KeyboardInterrupt
    assert list((tmp_path / "out").iterdir()) == []


# Refusals: each one sentence, with what was found and the remedy.


def refused(flags: list[str], out: str) -> str:
    with pytest.raises(UserError) as caught:
        refuse(flags, out)
    assert not isinstance(caught.value, RunFailed)
    return str(caught.value)


def test_a_silent_endpoint_is_refused(silent: str, tmp_path: Path) -> None:
    out = str(tmp_path)
    said = refused([PORTABLE, LOOPBACK, f"--job_endpoint={silent}"], out)
    assert said.startswith(f"nothing answers at --job_endpoint={silent}") and "start a Beam job server" in said
    assert "Flink cluster" in refused(["--runner=FlinkRunner", f"--flink_master={silent}", "--job_endpoint=embed"], out)
    pytest.importorskip("distributed")
    assert "Dask scheduler" in refused(["--runner=DaskRunner", f"--dask_client_address=tcp://{silent}"], out)


def test_a_silent_worker_pool_is_refused(silent: str, listening: str, tmp_path: Path) -> None:
    flags = [PORTABLE, EXTERNAL, f"--job_endpoint={listening}"]
    assert "needs its worker pool" in refused(flags, str(tmp_path))
    assert "worker_pool_main" in refused([*flags, f"--environment_config={silent}"], str(tmp_path))
    refuse([*flags, f"--environment_config={listening}"], str(tmp_path))  # a cluster on this machine shares its disk


def test_a_worker_pool_may_be_on_the_engines_own_machines(silent: str, listening: str, tmp_path: Path) -> None:
    """As beside each TaskManager in a pod: its localhost is not ours, and the output is where all can write."""
    flags = [PORTABLE, EXTERNAL, f"--job_endpoint={listening}"]
    refuse([*flags, f"--environment_config={silent}"], "memory://out")
    refuse([*flags, f'--environment_config={{"url": "{silent}"}}'], "memory://out")
    assert "nothing answers" in refused([*flags, f'--environment_config={{"url": "{silent}"}}'], str(tmp_path))


def test_workers_in_this_process_for_an_engine_elsewhere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_need_listener", lambda flag, address: None)
    said = refused([PORTABLE, LOOPBACK, "--job_endpoint=far.example:8099"], "memory://out")
    assert "which far.example:8099 cannot reach: give EXTERNAL, PROCESS or DOCKER" in said


def test_a_scheduler_is_found_by_its_file(silent: str, listening: str, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    flags = ["--runner=DaskRunner", f"--dask_scheduler_file={file}"]
    assert "names no scheduler" in refused(flags, str(tmp_path))
    file.write_text(f'{{"address": "tcp://{silent}"}}')
    assert f"--dask_scheduler_file=tcp://{silent}" in refused(flags, str(tmp_path))
    file.write_text(f'{{"address": "tcp://{listening}"}}')
    refuse(flags, str(tmp_path))


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    for address in ("localhost", "localhost:port", ":8099", "http://"):
        said = refused([PORTABLE, LOOPBACK, f"--job_endpoint={address}"], str(tmp_path))
        assert "as in localhost:8099" in said


def test_a_portable_runner_without_a_job_server_is_refused(tmp_path: Path) -> None:
    assert "--job_endpoint=localhost:8099" in refused([PORTABLE], str(tmp_path))


def test_a_missing_extra_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'worldloom[dask]'" in refused(["--runner=DaskRunner"], str(tmp_path))


def test_a_missing_prism_is_not_fetched_but_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    install = f"go install {job_servers.PRISM}@v{version('apache-beam')}"
    assert install in refused(["--runner=PrismRunner"], str(tmp_path))
    assert f"no Prism at {tmp_path}/p" in refused(["--runner=prism", f"--prism_location={tmp_path}/p"], str(tmp_path))
    program(tmp_path / "prism", "")
    refuse(["--runner=PrismRunner"], str(tmp_path))


def test_a_missing_job_server_of_flink_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no java on PATH" in refused(["--runner=FlinkRunner"], str(tmp_path))
    program(tmp_path / "java", "")
    assert "--flink_job_server_jar" in refused(["--runner=FlinkRunner"], str(tmp_path))
    (tmp_path / "a.jar").touch()
    refuse(["--runner=FlinkRunner", f"--flink_job_server_jar={tmp_path}/a.jar"], str(tmp_path))


def test_a_local_output_of_workers_elsewhere_is_refused(
    listening: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = "far.example:8099"
    monkeypatch.setattr(checks, "_need_listener", lambda flag, address: None)
    monkeypatch.setattr(checks, "_need_modules", lambda *names: None)
    for flags, words in (
        ([PORTABLE, EXTERNAL, f"--job_endpoint={far}", "--environment_config=localhost:5"], f"workers of {far}"),
        ([PORTABLE, EXTERNAL, f"--job_endpoint={listening}", f"--environment_config={far}"], f"workers of {far}"),
        (["--runner=DaskRunner", f"--dask_client_address=tcp://{far}"], f"workers of tcp://{far}"),
        ([PORTABLE, f"--job_endpoint={listening}"], "workers in containers"),
        (["--runner=DataflowRunner"], "Dataflow's workers"),
    ):
        said = refused(flags, str(tmp_path))
        assert said.startswith(f"--out {tmp_path} is on a disk of this machine, and {words}") and "gs://" in said
        refuse(flags, "memory://out")
        with monkeypatch.context() as patch:
            patch.setattr(checks, "on_network_disk", lambda path: True)
            refuse(flags, str(tmp_path))


def test_network_disks_are_told_by_their_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/a / ext4 rw 0 0\nhost:/x {tmp_path}/shared nfs4 rw 0 0\n/dev/b {tmp_path}/shared/own xfs rw 0 0\n"
    )
    assert on_network_disk(f"{tmp_path}/shared/out", str(mounts))
    assert not on_network_disk(f"{tmp_path}/shared/own/out", str(mounts))
    assert not on_network_disk(f"{tmp_path}/shared2", str(mounts))
    assert not on_network_disk(str(tmp_path), str(tmp_path / "nowhere"))


def test_a_refusal_is_one_line_and_exit_code_2_with_nothing_made(
    silent: str, tmp_path: Path, small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("One book.")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"vocabulary: {{text: {small_model}}}\nsources: [{{name: a, kind: books, path: a.txt}}]\n")
    call = ["build", str(recipe), "--out", str(tmp_path / "out"), "--", PORTABLE, LOOPBACK, f"--job_endpoint={silent}"]
    assert main(call) == 2
    said = capsys.readouterr().err
    assert said.startswith("worldloom: nothing answers at --job_endpoint=") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


# The job server that a call starts.

LISTEN = """
import socket, sys, time
with socket.create_server(("localhost", int(sys.argv[-1]))):
    time.sleep(60)
"""


def test_a_started_job_server_is_used_and_ends_with_the_block(tmp_path: Path) -> None:
    prism = program(tmp_path / "prism", LISTEN)
    with served(["--runner=PrismRunner", f"--prism_location={prism}"]) as flags:
        assert runner(flags) == "portable" and option(flags, "environment_type") == "LOOPBACK"
        host, port = host_and_port(option(flags, "job_endpoint"))
        socket.create_connection((host, port), 5).close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, port), 5)


def test_a_job_server_that_ends_at_once_is_told(tmp_path: Path) -> None:
    prism = program(tmp_path / "prism", "raise SystemExit('no such flag')")
    words = r"ended at once, and said last: no such flag; its command was .*prism"
    with pytest.raises(RunFailed, match=words), served(["--runner=prism", f"--prism_location={prism}"]):
        raise AssertionError("it does not listen")


KILLED = """
import os, signal, sys
from worldloom.pipelines.job_servers import served
with served(["--runner=prism", f"--prism_location={sys.argv[1]}"]) as flags:
    print(flags[-2].rpartition(":")[2], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_job_server_ends_with_a_submitter_that_is_killed(tmp_path: Path) -> None:
    call = [sys.executable, "-c", KILLED, str(program(tmp_path / "prism", LISTEN))]
    port = int(subprocess.run(call, stdout=subprocess.PIPE, timeout=60).stdout)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            socket.create_connection(("localhost", port), 1).close()
            time.sleep(0.05)
        except OSError:
            return
    pytest.fail("it still listens")
