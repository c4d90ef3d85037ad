"""docs/dataflow.md, the Dockerfile and the template's metadata keep in step with the code and with each other."""

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
from worldloom.cli import make_parser
from worldloom.pipelines import dataflow, launched
from worldloom.pipelines.engine_flags import STAGING, option
from worldloom.tokenizers import model_files

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "dataflow.md").read_text()
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    ")]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def commands(start: str) -> list[list[str]]:
    found = [shlex.split(line.partition("#")[0]) for line in COMMANDS if line.startswith(start)]
    assert found
    return found


@pytest.mark.parametrize("words", commands("worldloom"), ids=" ".join)
def test_the_commands_are_such_as_the_command_line_takes(words: list[str]) -> None:
    own, _, flags = " ".join(words[1:]).partition(" -- ")
    make_parser().parse_args(shlex.split(own))
    if flags:
        assert option(shlex.split(flags), "project") and option(shlex.split(flags), "region")


def test_its_flags_are_beams() -> None:
    from apache_beam.options.pipeline_options import PipelineOptions

    known = set(PipelineOptions([]).get_all_options())
    kept_as = {"resource_hint": "resource_hints", "extra_package": "extra_packages"}
    written = set(re.findall(r"--([a-z]+(?:_[a-z]+)+)", PAGE))
    assert {kept_as.get(name, name.removeprefix("no_")) for name in written} <= known
    assert {"sdk_container_image", "max_num_workers", "flexrs_goal", "staging_location"} <= written


def test_what_it_says_of_the_code_is_so() -> None:
    assert f"`OUT/{STAGING}`" in PAGE and f"`{dataflow.ACCELERATOR}`" in PAGE
    assert model_files.MOST == 8 * 2**30 and "8 GiB are kept" in PAGE and "within the hour" in PAGE
    assert model_files.IN_USE == 3600


def test_every_extra_that_is_named_is_one() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = re.findall(r"worldloom\[([a-z,]+)\]|EXTRAS=([a-z,]+)", PAGE + DOCKERFILE)
    found = {extra for pair in named for extra in "".join(pair).split(",")}
    assert {"build", "vision", "gcs"} <= found <= set(config["options.extras_require"])


def test_the_template_asks_for_what_the_launched_program_takes() -> None:
    metadata = json.loads((ROOT / "docs" / "flex-template.json").read_text())
    parameters = {parameter["name"]: parameter for parameter in metadata["parameters"]}
    assert tuple(parameters) == launched.PARAMETERS
    assert [name for name, parameter in parameters.items() if parameter.get("isOptional")] == ["set"]
    [run] = commands("gcloud dataflow flex-template run")
    given = dict(pair.split("=", 1) for pair in option(run, "parameters").split(","))
    for name in ("recipe", "out"):
        [pattern] = parameters[name]["regexes"]
        assert re.fullmatch(pattern, given[name]) and not re.fullmatch(pattern, "/local/recipe.yaml")
    [build] = commands("gcloud dataflow flex-template build")
    assert (ROOT / option(build, "metadata-file")).exists()


def test_the_image_holds_the_package_and_the_tested_versions() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    rooms = {name.split(".")[1] for name in config["options"]["packages"].split() if "." in name}
    files = {"*.py", "py.typed", "setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert rooms | files == sources
    assert all(list(ROOT.glob(source)) for source in sources)
    [beam] = re.findall(r"^ARG BEAM=(.+)$", DOCKERFILE, re.MULTILINE)
    assert f"\napache-beam=={beam}\n" in (ROOT / "constraints.txt").read_text()
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"docker build --target (\w+)", PAGE) == ["worker", "launcher"]
    assert {"worker", "launcher"} <= set(stages)


def test_the_launcher_starts_what_there_is() -> None:
    [program, path] = re.findall(r"^RUN echo '(.+)' >(\S+)$", DOCKERFILE, re.MULTILINE)[0]
    assert f"FLEX_TEMPLATE_PYTHON_PY_FILE={path}" in DOCKERFILE
    assert program == f"from {launched.__name__} import {launched.main.__name__}; main()"
