"""Google's Dataflow service as far as Beam's runner talks to it: jobs are taken, kept, and run on a portable engine.

What stands for Google's machines does what they do: it reads the staged pipeline and the staged packages out of the
bucket, and has an engine run that very pipeline, whose workers get nothing but those packages. In the place of a
container there is a command that starts Beam's own worker program.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc, beam_runner_api_pb2
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from worldloom.packing.storage import Folder

JOBS = re.compile(r"/v1b3/projects/([^/]+)/locations/([^/]+)/jobs(?:/([^/]+)(/messages|/metrics)?)?")
SECONDS = 60.0  # within which a job server answers
# Of the options that Beam sends to Dataflow's workers, those that decide how they read what was sent.
READING = ("pickle_library", "experiments")
STATES = {"STOPPED": "STOPPED", "RUNNING": "RUNNING", "DONE": "DONE", "FAILED": "FAILED", "CANCELLED": "CANCELLED",
          "CANCELLING": "CANCELLING", "STARTING": "PENDING", "UNSPECIFIED": "PENDING"}  # fmt: skip
ENDED = ("DONE", "FAILED", "CANCELLED")


@dataclass
class Submitted:
    """A job that was submitted.

    Attributes:
      project, region: where it was submitted.
      request: the job, as JSON.
      options: Beam's options in it, for the workers.
      pipeline: the staged pipeline that it names.
      staged: the staged packages by name.
      engine: what runs it, or None where it is only kept.
    """

    project: str
    region: str
    request: dict[str, Any]
    options: dict[str, Any]
    pipeline: beam_runner_api_pb2.Pipeline
    staged: dict[str, bytes]
    engine: "Engine | None" = None
    state: str = "DONE"
    messages: list[str] = field(default_factory=list)

    @property
    def current(self) -> str:
        return self.engine.state() if self.engine else self.state

    def steps(self) -> dict[str, beam_runner_api_pb2.Environment | None]:
        """Return the environment of every step that has one, under the step's name."""
        components = self.pipeline.components
        leaves = [t for t in components.transforms.values() if not t.subtransforms and t.environment_id]
        return {t.unique_name: components.environments[t.environment_id] for t in leaves}


class Dataflow:
    """The service, a WSGI application.

    Attributes:
      jobs: what was submitted, by id.
    """

    def __init__(self, run: Callable[[Submitted], "Engine"] | None = None):
        """Take what runs a job; without it every job is kept, and done at once."""
        self.jobs: dict[str, Submitted] = {}
        self._run = run

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        found = JOBS.fullmatch(environ["PATH_INFO"])
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        said = self._answer(environ["REQUEST_METHOD"], found, json.loads(body or b"{}")) if found else None
        data = json.dumps({} if said is None else said).encode()
        kind = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
        start("404 Not Found" if said is None else "200 OK", kind)
        return [data]

    def _answer(self, method: str, found: "re.Match[str]", body: dict[str, Any]) -> dict[str, Any] | None:
        project, region, name, what = found.groups()
        if method == "POST" and not name:
            return self._create(project, region, body)
        job = self.jobs.get(name)
        if job is None or (job.project, job.region) != (project, region):
            return None
        if what == "/messages":
            return {"jobMessages": self._messages(job)}
        if what == "/metrics":
            return {"metrics": []}
        if method == "PUT" and body["requestedState"] in ("JOB_STATE_CANCELLED", 5) and job.engine:
            job.engine.cancel()
        return {"id": name, "name": job.request["name"], "currentState": f"JOB_STATE_{job.current}"}

    def _create(self, project: str, region: str, request: dict[str, Any]) -> dict[str, Any]:
        options = request["environment"]["sdkPipelineOptions"]["options"]
        staged = read(options["pipelineUrl"])
        assert hashlib.sha256(staged).hexdigest() == options["pipelineProtoHash"]
        packages = request["environment"]["workerPools"][0]["packages"]
        content = {p["name"]: read(p["location"].replace("storage.googleapis.com/", "gs://")) for p in packages}
        pipeline = beam_runner_api_pb2.Pipeline.FromString(staged)
        job = Submitted(project, region, request, options, pipeline, content)
        name = f"2026-01-01_{len(self.jobs):02d}"
        self.jobs[name] = job
        if self._run:
            job.engine = self._run(job)
        return {"id": name, "name": request["name"], "currentState": "JOB_STATE_PENDING"}

    def _messages(self, job: Submitted) -> list[dict[str, Any]]:
        said = [(i, text) for i, text in enumerate(job.engine.messages if job.engine else [])]
        return [
            {"id": str(i), "time": f"2026-01-01T00:00:{i % 60:02d}Z", "messageText": text,
             "messageImportance": "JOB_MESSAGE_ERROR"}
            for i, text in said
        ]  # fmt: skip


def read(url: str) -> bytes:
    """Read a file of a bucket."""
    folder, _, name = url.rpartition("/")
    found = Folder(folder).read(name)
    assert found is not None, f"{url} was not staged"
    return found


class Engine:
    """A portable engine's job, which runs a pipeline that was submitted to Dataflow."""

    def __init__(self, job: Submitted, endpoint: str, command: Path, folder: Path):
        """Send the job.

        Args:
          endpoint: of the engine's job server.
          command: starts a worker, in the place of a container.
          folder: a local one, for the staged packages.
        """
        self.messages: list[str] = []
        channel = grpc.insecure_channel(endpoint)
        self._service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        options = {name: value for name, value in job.options.items() if name in READING}
        handle = JobServiceHandle(self._service, PipelineOptions.from_dictionary(options | {"parallelism": 2}))
        self._name, messages, _ = handle.submit(workable(job.pipeline, command, folder))
        threading.Thread(target=self._listen, args=(messages,), daemon=True).start()

    def _listen(self, messages: Iterable[Any]) -> None:
        try:
            for message in messages:
                if message.HasField("message_response") and message.message_response.importance >= 5:
                    self.messages.append(message.message_response.message_text)
        except grpc.RpcError:
            return

    def state(self) -> str:
        request = beam_job_api_pb2.GetJobStateRequest(job_id=self._name)
        number = self._service.GetState(request, timeout=SECONDS).state
        return STATES.get(beam_job_api_pb2.JobState.Enum.Name(number), "RUNNING")

    def cancel(self) -> None:
        self._service.Cancel(beam_job_api_pb2.CancelJobRequest(job_id=self._name), timeout=SECONDS)


def workable(pipeline: beam_runner_api_pb2.Pipeline, command: Path, folder: Path) -> beam_runner_api_pb2.Pipeline:
    """Put a worker's command in the place of each container, and local copies in that of what is staged in a bucket."""
    made = beam_runner_api_pb2.Pipeline()
    made.CopyFrom(pipeline)
    for environment in made.components.environments.values():
        assert environment.urn == common_urns.environments.DOCKER.urn
        environment.urn = common_urns.environments.PROCESS.urn
        environment.payload = beam_runner_api_pb2.ProcessPayload(command=str(command)).SerializeToString()
        for dependency in environment.dependencies:
            copy, told = fetched(dependency, folder)
            dependency.type_urn = common_urns.artifact_types.FILE.urn
            dependency.type_payload = beam_runner_api_pb2.ArtifactFilePayload(
                path=str(copy), sha256=told
            ).SerializeToString()
    return made


def fetched(dependency: beam_runner_api_pb2.ArtifactInformation, folder: Path) -> tuple[Path, str]:
    """Bring a staged file here, whose bytes must be those that were promised. Returns its path and their digest."""
    assert dependency.type_urn == common_urns.artifact_types.URL.urn
    told = beam_runner_api_pb2.ArtifactUrlPayload.FromString(dependency.type_payload)
    content = read(told.url)
    assert hashlib.sha256(content).hexdigest() == told.sha256
    copy = folder / told.url.rpartition("/")[2]
    copy.write_bytes(content)
    return copy, told.sha256
