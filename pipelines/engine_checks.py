"""What would fail only after a job was sent, and is refused before: each in one sentence, with the remedy."""

import importlib.util
import json
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import UserError
from ..packing.storage import Folder
from .engine_flags import environment, flink_master, option, runner
from .job_servers import command, is_started

SECONDS = 3.0  # to reach an endpoint
NETWORK_DISKS = re.compile(r"nfs|cifs|smb|lustre|gpfs|beegfs|ceph|gluster|fuse|9p|afs|pvfs|virtiofs|panfs|weka")
LISTENERS = {
    "job_endpoint": "a Beam job server",
    "dask_client_address": "a Dask scheduler",
    "dask_scheduler_file": "a Dask scheduler",
    "flink_master": "a Flink cluster (its REST address)",
    "environment_config": "a worker pool (python -m apache_beam.runners.worker.worker_pool_main --service_port PORT)",
}


def refuse(flags: Sequence[str], out: str) -> None:
    """Refuse what would fail after it was sent.

    Raises:
      UserError: if a program, an endpoint or a package is missing, or workers could not write to `out`.
    """
    chosen = runner(flags)
    if chosen == "dask":
        _need_modules("dask", "dask", "distributed")
    if chosen == "portable" and not option(flags, "job_endpoint"):
        raise UserError("--runner=PortableRunner needs a job server: name it, as in --job_endpoint=localhost:8099")
    if is_started(flags):
        command(flags)
    for flag, address in endpoints(flags).items():
        _need_listener(flag, address)
    _refuse_loopback(flags)
    if environment(flags) == "EXTERNAL":
        _refuse_pool(flags, out)
    _refuse_local(flags, out)


def _need_modules(extra: str, *names: str) -> None:
    for name in names:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise UserError(f"this engine needs {name}: pip install 'worldloom[{extra}]'")


def endpoints(flags: Sequence[str]) -> dict[str, str]:
    """Return the addresses of an engine that must answer, each under the option that names it."""
    named = {name: option(flags, name) for name in ("job_endpoint", "dask_client_address")}
    if file := option(flags, "dask_scheduler_file"):
        named["dask_scheduler_file"] = scheduler_in(file)
    if runner(flags) == "flink" and not flink_master(flags).startswith("["):
        named["flink_master"] = flink_master(flags)
    return {name: address for name, address in named.items() if address and address != "embed"}


def scheduler_in(file: str) -> str:
    """Return the address that a Dask scheduler wrote into a file.

    Raises:
      UserError: if there is none.
    """
    try:
        return str(json.loads(Path(file).read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--dask_scheduler_file={file} names no scheduler ({error}): start one with dask scheduler "
            f"--scheduler-file {file}, or mend the path; nothing was submitted"
        ) from error


def worker_pool(flags: Sequence[str]) -> str:
    """Return the address of the worker pool of --environment_type=EXTERNAL.

    Raises:
      UserError: if there is none.
    """
    given = option(flags, "environment_config")
    address = str(json.loads(given).get("url", "")) if given.startswith("{") else given
    if not address:
        raise UserError("--environment_type=EXTERNAL needs its worker pool: --environment_config=localhost:50000")
    return address


def host_and_port(address: str) -> tuple[str, int]:
    """Take an address apart, as in `localhost:8081`, `tcp://scheduler:8786` or `http://[::1]:8081/`.

    Raises:
      UserError: if it is none.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        found = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        found = None, 0
    if not found[0] or not found[1]:
        raise UserError(f"{address} is no address: give a host and a port, as in localhost:8099")
    return found[0], found[1]


def _need_listener(flag: str, address: str) -> None:
    host, port = host_and_port(address)
    try:
        socket.create_connection((host, port), SECONDS).close()
    except OSError as error:
        what = LISTENERS[flag]
        raise UserError(
            f"nothing answers at --{flag}={address} ({error.strerror or error}): start {what} there, "
            "or mend the address; nothing was submitted"
        ) from error


def _refuse_loopback(flags: Sequence[str]) -> None:
    """Refuse workers in this process for an engine elsewhere: it would look for them on its own machine."""
    for address in endpoints(flags).values() if environment(flags) == "LOOPBACK" else ():
        if not is_here(host_and_port(address)[0]):
            raise UserError(
                f"--environment_type=LOOPBACK has the workers in this process, which {address} cannot reach: "
                "give EXTERNAL, PROCESS or DOCKER; nothing was submitted"
            )


def _refuse_pool(flags: Sequence[str], out: str) -> None:
    """Refuse a worker pool of this machine that does not answer, unless it may be the engine's own localhost."""
    address = worker_pool(flags)
    if is_here(host_and_port(address)[0]) and Folder(out).local and not elsewhere(flags):
        _need_listener("environment_config", address)


def _refuse_local(flags: Sequence[str], out: str) -> None:
    folder, where = Folder(out), elsewhere(flags)
    if where and folder.local and not on_network_disk(folder.path()):
        raise UserError(
            f"--out {out} is on a disk of this machine, and {where} cannot write there: "
            "name a folder that every worker sees, such as gs://… or s3://… or one of a network disk"
        )


def elsewhere(flags: Sequence[str]) -> str:
    """Say which workers are not on this machine; "" if all are, as far as the flags tell."""
    if runner(flags) == "dataflow":
        return "Dataflow's workers"
    if environment(flags) == "DOCKER":
        return "workers in containers (--environment_type=DOCKER, which is Beam's default)"
    addresses = list(endpoints(flags).values())
    addresses += [worker_pool(flags)] if environment(flags) == "EXTERNAL" else []
    far = [address for address in addresses if not is_here(host_and_port(address)[0])]
    return f"workers of {far[0]}" if far else ""


def is_here(host: str) -> bool:
    """Is a host this machine?"""
    if host == "localhost" or host in (socket.gethostname(), socket.getfqdn()):
        return True
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
        own = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        return False
    return all(address.startswith("127.") or address == "::1" or address in own for address in found)


def on_network_disk(path: str, mounts: str = "/proc/self/mounts") -> bool:
    """Is a local path on a file system that other machines may have as well?"""
    try:
        lines = [line.split() for line in Path(mounts).read_text().splitlines()]
    except OSError:
        return False
    real = Path(path).resolve()
    found = [(len(at), kind) for _, at, kind, *_ in lines if real.is_relative_to(at)]
    return bool(found) and bool(NETWORK_DISKS.match(max(found)[1]))
