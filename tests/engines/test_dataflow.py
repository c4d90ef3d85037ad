"""Dataflow without Google: what is submitted, to the letter, and that it runs from what was staged and nothing else."""

import base64
import bz2
import configparser
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from worldloom import __version__
from worldloom.cli import main
from worldloom.packing.dataset import open_dataset
from worldloom.packing.verify import verify
from worldloom.pipelines.dataflow import ACCELERATOR
from worldloom.pipelines.staged import package
from worldloom.tests.engines.conftest import PROSE, eventually, installed
from worldloom.tests.engines.dataflow_emulator import Dataflow, Engine, Submitted, read
from worldloom.tests.engines.servers import BUCKET, FakeGcs, fake_gcs, google, serving

pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("ignore")]
OUT = f"gs://{BUCKET}/out"
SECONDS = 1200  # for one call, which waits for five jobs at the most
HINT = common_urns.resource_hints.ACCELERATOR.urn
PARDO = common_urns.primitives.PAR_DO.urn


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """Let gs:// mean a server on this machine, with a bucket there."""
    with fake_gcs(tmp_path_factory.mktemp("gcs")) as server, google(server.url):
        yield server


@pytest.fixture(scope="module")
def uploaded(bucket: FakeGcs, recipes: dict[str, Path]) -> dict[str, str]:
    """Put the recipes, their corpora and their models into the bucket. Returns the recipes' URLs."""
    fs, found = fsspec.filesystem("gs"), {}
    for name, recipe in recipes.items():
        upload(recipe.parent / name, f"{BUCKET}/corpora/{name}")
        model = Path(yaml.safe_load(recipe.read_text())["vocabulary"]["text"])
        fs.pipe_file(f"{BUCKET}/corpora/small.model", model.read_bytes())
        text = recipe.read_text().replace(f"{recipe.parent}/", "").replace(str(model), "small.model")
        fs.pipe_file(f"{BUCKET}/corpora/{name}.yaml", text.encode())  # its paths begin at its own folder
        found[name] = f"gs://{BUCKET}/corpora/{name}.yaml"
    return found


def upload(folder: Path, to: str) -> None:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        fsspec.filesystem("gs").pipe_file(f"{to}/{path.relative_to(folder)}", path.read_bytes())


Service = tuple[Dataflow, str]


@pytest.fixture
def service() -> Iterator[Service]:
    """A service that keeps what is submitted, and says at once that it is done."""
    kept = Dataflow()
    with serving(kept) as url:
        yield kept, url.replace("127.0.0.1", "localhost")  # Beam speaks REST to a `localhost` alone


def flags(endpoint: str, *more: str) -> list[str]:
    own = ["--runner=DataflowRunner", "--project=weaver", "--region=europe-west4"]
    return ["--", *own, f"--dataflow_endpoint={endpoint}", "--no_auth", *more]


def call(*words: str) -> subprocess.CompletedProcess[str]:
    """Call worldloom where Beam's Google Cloud part is installed, in a process of its own."""
    path = os.pathsep.join([str(installed("gcp")), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    command = [sys.executable, "-c", "from worldloom.cli import entry; entry()", *words]
    own = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture
def submitted(service: Service, uploaded: dict[str, str]) -> Submitted:
    """The first job of a build of books, which the service does not do."""
    kept, endpoint = service
    said = call("build", uploaded["text"], "--out", OUT, *flags(endpoint))
    assert said.returncode == 1 and "is not done" in said.stderr, said.stderr
    [job] = kept.jobs.values()
    return job


def test_a_job_is_submitted_to_the_letter(submitted: Submitted) -> None:
    request, environment = submitted.request, submitted.request["environment"]
    [pool] = environment["workerPools"]
    assert (submitted.project, submitted.region) == ("weaver", "europe-west4")
    assert re.fullmatch("worldloom-[a-z0-9-]*tokenize", request["name"]) and request["type"] in (1, "JOB_TYPE_BATCH")
    staging = f"storage.googleapis.com/{BUCKET}/out/.staging"
    run = re.compile(rf"{re.escape(staging)}/{request['name']}\.[\d.]+/")
    assert environment["tempStoragePrefix"].startswith(f"{staging}/temp/{request['name']}.")
    assert all(run.fullmatch(package["location"].removesuffix(package["name"])) for package in pool["packages"])
    assert submitted.options["pipelineUrl"].startswith(f"gs://{BUCKET}/out/.staging/{request['name']}.")
    image = f"gcr.io/cloud-dataflow/v1beta3/beam_python{sys.version_info[0]}.{sys.version_info[1]}_sdk"
    assert [i["containerImage"] for i in pool["sdkHarnessContainerImages"]] == [f"{image}:{version('apache-beam')}"]
    assert submitted.options["project"] == "weaver" and not submitted.options["save_main_session"]


def test_the_staged_package_is_worldloom_with_what_the_recipe_needs(submitted: Submitted) -> None:
    own = f"worldloom-{__version__}.tar.gz"
    assert set(submitted.staged) == {own, "extra_packages.txt", "submission_environment_dependencies.txt"}
    assert submitted.staged["extra_packages.txt"].decode().split() == [own]
    with tarfile.open(fileobj=BytesIO(submitted.staged[own])) as archive:
        member = archive.extractfile(f"worldloom-{__version__}/setup.cfg")
        config = configparser.ConfigParser()
        config.read_string(member.read().decode() if member else "")
    required = dict(line.split("==") for line in config["options"]["install_requires"].split())
    assert required["apache-beam"] == version("apache-beam") and required["gcsfs"] == version("gcsfs")
    assert not {"torch", "jax", "pytest", "s3fs"} & set(required)


def test_the_pipeline_carries_no_data_and_asks_for_no_accelerator(submitted: Submitted) -> None:
    opened = b"".join(functions(submitted.pipeline)) + submitted.pipeline.SerializeToString()
    assert b"TokenizeJob" in opened and b"small.model" in opened  # it is searched where such things would be
    assert not [line for line in PROSE if line[:20].encode() in opened]
    assert len(opened) < 100_000
    assert {name for name, step in submitted.steps().items() if step.resource_hints} == set()


def functions(pipeline: beam_runner_api_pb2.Pipeline) -> list[bytes]:
    """Return the steps' functions as they are sent, unpacked."""
    specs = [t.spec for t in pipeline.components.transforms.values() if t.spec.urn == PARDO]
    payloads = [beam_runner_api_pb2.ParDoPayload.FromString(spec.payload).do_fn.payload for spec in specs]
    return [bz2.decompress(base64.b64decode(payload)) for payload in payloads]


def test_nothing_staged_is_left(submitted: Submitted) -> None:
    assert fsspec.filesystem("gs").find(f"{BUCKET}/out/.staging") == []


@pytest.fixture(scope="module")
def vqgan(uploaded: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recipe of pictures with a small VQGAN."""
    pytest.importorskip("diffusers", reason="SKIPPED FOR LACK OF DIFFUSERS: pip install 'worldloom[vision]'")
    from worldloom.tests.tokenizers.test_vqgan import random_model, write

    folder = tmp_path_factory.mktemp("vqgan") / "vqvae"
    write(random_model(), folder, "-1..1")
    upload(folder, f"{BUCKET}/corpora/vqvae")
    fs = fsspec.filesystem("gs")
    recipe = yaml.safe_load(fs.cat_file(f"{BUCKET}/corpora/vision.yaml"))
    recipe["vocabulary"]["vision"] = {"kind": "vqgan", "path": "vqvae"}
    fs.pipe_file(f"{BUCKET}/corpora/vqgan.yaml", yaml.safe_dump(recipe).encode())
    return f"gs://{BUCKET}/corpora/vqgan.yaml"


L4 = "type:nvidia-l4;count:1;install-nvidia-driver:5xx"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], ACCELERATOR),
        ([f"--resource_hint=accelerator={L4}"], L4),
        (["--dataflow_service_options", f"worker_accelerator={L4}"], None),
    ],
)
def test_the_step_that_runs_the_vqgan_and_no_other_asks_for_an_accelerator(
    more: list[str], expected: str | None, service: Service, vqgan: str
) -> None:
    kept, endpoint = service
    said = call("build", vqgan, "--out", f"{OUT}-vqgan", *flags(endpoint, *more))
    assert "is not done" in said.stderr, said.stderr
    [job] = kept.jobs.values()
    hinted = {name: dict(step.resource_hints) for name, step in job.steps().items() if step.resource_hints}
    assert hinted == ({"RunUnits": {HINT: expected.encode()}} if expected else {})
    assert ("no_use_multiple_sdk_containers" in job.options["experiments"]) == bool(expected)
    stored = yaml.safe_load(fsspec.filesystem("gs").cat_file(f"{BUCKET}/out-vqgan/recipe.yaml"))
    assert stored["vocabulary"]["vision"]["device"] == "cuda"


def test_codes_made_on_a_cpu_need_no_accelerator(service: Service, vqgan: str) -> None:
    kept, endpoint = service
    chosen = ["--set", "vocabulary.vision.device=cpu"]
    assert "is not done" in call("build", vqgan, "--out", f"{OUT}-cpu", *chosen, *flags(endpoint)).stderr
    [job] = kept.jobs.values()
    assert not [name for name, step in job.steps().items() if step.resource_hints]


@pytest.mark.parametrize(
    ("out", "left_out", "said"),
    [
        (OUT, "--project", "Dataflow needs a project"),
        (OUT, "--region", "Dataflow needs a region"),
        (f"gs://{BUCKET}-none/out", "", f"the bucket gs://{BUCKET}-none does not exist"),
        ("here", "", "cannot write there"),
    ],
)
def test_a_bad_call_is_one_sentence_and_nothing_is_submitted_or_made(
    out: str, left_out: str, said: str, service: Service, uploaded: dict[str, str], tmp_path: Path
) -> None:
    kept, endpoint = service
    words = [word for word in flags(endpoint) if not left_out or not word.startswith(left_out)]
    refused = call("build", uploaded["text"], "--out", out if "://" in out else str(tmp_path / out), *words)
    lines = [line for line in refused.stderr.splitlines() if not line.startswith("WARNING")]
    assert refused.returncode == 2 and len(lines) == 1 and said in lines[0], refused.stderr
    assert kept.jobs == {} and list(tmp_path.iterdir()) == []
    assert not fsspec.filesystem("gs").exists(f"{BUCKET}-none")


@pytest.fixture(scope="module")
def worker(bucket: FakeGcs, logs: Path) -> Path:
    """Return what stands for Beam's image: its worker program and a Python with all packages but worldloom."""
    prefix = python(logs / "worker")
    tried = [prefix / "bin/python", "-c", "import pip, apache_beam, worldloom"]
    missing = subprocess.run(tried, capture_output=True, text=True, cwd="/", timeout=120)
    assert "No module named 'worldloom'" in missing.stderr
    return command(prefix, bucket)


@pytest.fixture(scope="module")
def image(bucket: FakeGcs, logs: Path) -> Path:
    """Return what stands for our image: a Python with worldloom and Beam's Google Cloud part in it, too."""
    prefix = python(logs / "image", str(installed("gcp")))
    pip = [prefix / "bin/python", "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, package(logs, [])], check=True, cwd="/", timeout=120)
    return command(prefix, bucket)


def python(prefix: Path, *libraries: str) -> Path:
    """Make an environment that has this one's libraries, but not what is installed there for editing."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True, timeout=60)
    [own] = prefix.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (own / "libraries.pth").write_text("\n".join([*libraries, *shared]))  # .pth files there are not read
    return prefix


def command(prefix: Path, bucket: FakeGcs) -> Path:
    """Write what starts Beam's own worker program in an environment, as its container does."""
    path = prefix / "worker.sh"
    path.write_text(
        "#!/bin/sh\n"
        f'unset PYTHONPATH; export PATH="{prefix}/bin:$PATH" RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1\n'
        f"export PIP_NO_INDEX=1 STORAGE_EMULATOR_HOST={bucket.url} NO_GCE_CHECK=true\ncd /\n"
        f'exec "{installed("bin/boot")}" --semi_persist_dir="{prefix}/persist" "$@" >>"{prefix}/worker.log" 2>&1\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def running(worker: Path, job_server: str, tmp_path: Path) -> Iterator[Service]:
    """A service that has a job server run what is submitted."""
    staged = tmp_path / "staged"
    staged.mkdir()
    kept = Dataflow(lambda job: Engine(job, job_server, worker, staged))
    with serving(kept) as url:
        yield kept, url.replace("127.0.0.1", "localhost")


@pytest.mark.parametrize("name", ["text", "vision", "questions"])
def test_what_was_staged_runs_and_gives_the_roots_of_a_build_here(
    name: str, running: Service, uploaded: dict[str, str], recipes: dict[str, Path], worker: Path, tmp_path: Path
) -> None:
    service, endpoint = running
    out, here = f"{OUT}-{name}", tmp_path / "here"
    said = call("build", uploaded[name], "--out", out, *flags(endpoint))
    assert said.returncode == 0, said.stderr
    assert main(["build", str(recipes[name]), "--out", str(here)]) == 0
    folders = sorted(path.parent.name for path in here.glob("*/manifest.json"))
    assert {f: open_dataset(f"{out}/{f}").root for f in folders} == {
        f: open_dataset(str(here / f)).root for f in folders
    }
    assert len(folders) > 1 and verify(out) == []
    assert all(job.current == "DONE" for job in service.jobs.values()) and len(service.jobs) > 2
    assert list(worker.parent.glob("lib/python*/site-packages/worldloom/recipe.py"))  # the staged one was installed


def test_what_a_template_launches_builds_from_the_image(
    image: Path, job_server: str, uploaded: dict[str, str], recipes: dict[str, Path], tmp_path: Path
) -> None:
    service, out, changes = Dataflow(lambda job: Engine(job, job_server, image, tmp_path)), f"{OUT}-template", PACKED
    with serving(service) as url:
        endpoint, graph = url.replace("127.0.0.1", "localhost"), f"gs://{BUCKET}/launched/graph.json"
        given = [f"--recipe={uploaded['text']}", f"--out={out}", f"--set={shlex.join(changes)}"]
        own = [f"--template_location={graph}", "--job_name=launched", f"--temp_location=gs://{BUCKET}/launched"]
        launch(*given, *own, *flags(endpoint, "--sdk_container_image=an/image")[1:])
        assert service.jobs == {}  # the launcher writes the job, and the service runs it
        job = asked(f"{endpoint}/v1b3/projects/weaver/locations/europe-west4/jobs", "POST", read(graph))["id"]
        eventually(lambda: service.jobs[job].current in ("DONE", "FAILED"), SECONDS)
        assert service.jobs[job].current == "DONE", service.jobs[job].engine.messages  # type: ignore[union-attr]
    names = [kept.request["name"] for kept in service.jobs.values()]
    assert names == ["launched", "worldloom-text-tokenize", "worldloom-text-packed-64"]
    images = {i["containerImage"] for kept in service.jobs.values() for i in pool(kept)["sdkHarnessContainerImages"]}
    assert images == {"an/image"} and not any(
        "worldloom" in name for kept in service.jobs.values() for name in kept.staged
    )
    here = tmp_path / "here"
    assert main(["build", str(recipes["text"]), "--out", str(here), *(f"--set={change}" for change in changes)]) == 0
    for name in ("examples", "packed-64"):
        assert open_dataset(f"{out}/{name}").root == open_dataset(str(here / name)).root


PACKED = ["duplicates=none", "pack={length: 64}"]


def pool(job: Submitted) -> dict[str, Any]:
    [found] = job.request["environment"]["workerPools"]
    return dict(found)


def launch(*words: str) -> None:
    """Do what the template's launcher does in its image."""
    program = [sys.executable, "-c", "from worldloom.pipelines.launched import main; main()", *words]
    own = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed("gcp")), os.environ.get("PYTHONPATH", "")])}
    said = subprocess.run(program, env=own, capture_output=True, text=True, timeout=SECONDS)
    assert said.returncode == 0, said.stderr


def asked(url: str, method: str, body: bytes) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())
