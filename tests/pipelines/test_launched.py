"""What a flex template launches: one job, which calls the build with the template's parameters and Beam's flags."""

from typing import Any

import pytest
from worldloom.errors import UserError
from worldloom.pipelines import launched

FLAGS = ["--project=p", "--region", "r", "--max_num_workers=50", "--resource_hint=accelerator=type:x;count:1"]
OWN = ["--template_location=gs://b/t.json", "--job_name=launched", "--staging_location", "gs://b/s"]
OWN += ["--temp_location=gs://b/t", "--num_workers=3"]


def test_the_build_gets_the_flags_less_those_of_the_launched_job() -> None:
    mixed = [FLAGS[0], *OWN[:2], *FLAGS[1:3], *OWN[2:], *FLAGS[3:]]
    assert launched.flags_of_build(mixed) == FLAGS


def test_launching_calls_the_build_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(launched, "load_recipe", lambda path, changes: (path, changes))
    monkeypatch.setattr(launched, "build", lambda *given, **named: calls.append((given, named)))
    changes = "--set=limits.failed=0.1 'pack={length: 64, name: a b}'"
    launched.main(["--recipe=gs://b/books.yaml", "--out=gs://b/out", changes, *FLAGS])
    recipe = ("gs://b/books.yaml", ["limits.failed=0.1", "pack={length: 64, name: a b}"])
    assert calls == [((recipe, "gs://b/out", FLAGS), {"workers": 1, "name": "books"})]


def test_a_build_that_fails_fails_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise UserError("no such recipe")

    monkeypatch.setattr(launched, "load_recipe", refuse)
    with pytest.raises(Exception, match="no such recipe"):
        launched.main(["--recipe=gs://b/books.yaml", "--out=gs://b/out"])
