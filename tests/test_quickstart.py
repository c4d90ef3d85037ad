"""The quickstart as the README promises it, with fewer steps."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from worldloom.cli import main
from worldloom.errors import RunFailed
from worldloom.quickstart import CONFIG, check_loss, quickstart

ROOT = Path(__file__).resolve().parents[1]


def test_quickstart_goes_from_nothing_to_a_falling_loss(tmp_path, capsys):
    config = (ROOT / "recipes" / CONFIG).read_text()
    assert "steps: 240" in config and "every: 80" in config
    (tmp_path / CONFIG).write_text(config.replace("steps: 240", "steps: 70").replace("every: 80", "every: 70"))
    quickstart(str(tmp_path), Console(), main)
    said = capsys.readouterr().out
    for part in (
        "packed-4096:",
        "packed-clips-8k:",
        "frames drawn",
        "every shard, row, count and digest is right",
        "⟦",
        "held out",
        "next: change",
    ):
        assert part in said
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_that_does_not_fall_is_a_failed_run(tmp_path):
    diary = tmp_path / "metrics.jsonl"
    diary.write_text("".join(json.dumps({"step": i, "loss": 7.0 - i / 100}) + "\n" for i in range(50)))
    with pytest.raises(RunFailed, match=r"from 6\.980 to 6\.530"):
        check_loss(diary)
