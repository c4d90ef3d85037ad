"""The command line: every command helps, with an example, and wrong calls get one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from worldloom.cli import frames, main, make_parser, missing_extra, split_beam_flags

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["build", "pack", "plan", "inspect", "verify", "train", "stages", "generate", "train-tokenizer"]
COMMANDS += ["quickstart", "toy-world", "needles"]


def test_every_command_is_known_documented_and_has_an_example(capsys):
    readme = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert f"example:\n  worldloom {command} " in text
        assert f"worldloom {command}" in readme
    assert make_parser().parse_args(["verify", "x"]).command == "verify"


@pytest.mark.parametrize(
    "call", [[], ["weave"], ["build", "r.yaml"], ["build", "r.yaml", "--out", "o", "--workers", "0"]]
)
def test_a_wrong_call_exits_with_2(call):
    with pytest.raises(SystemExit, match="2"):
        main(call)


def test_a_command_without_an_engine_takes_no_beam_flags(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "x", "--", "--runner=DataflowRunner"])
    assert "verify takes no Beam flags" in capsys.readouterr().err


def test_what_follows_two_dashes_is_beams():
    own, beam = split_beam_flags(["build", "r", "--", "--runner=X", "--", "y"])
    assert own == ["build", "r"] and beam == ["--runner=X", "--", "y"]


@pytest.mark.parametrize("found", ["1", "0", "-3", "2.5", "all", ""])
def test_frames_are_two_or_more_or_fit(found, tmp_path, capsys):
    """A clip keeps its first and its last frame; the recipe says the same."""
    with pytest.raises(SystemExit, match="2"):
        main(["pack", "x", "--out", str(tmp_path / "out"), "--length", "9", "--frames", found])
    assert "is neither fit nor a whole number from 2 on" in capsys.readouterr().err
    assert main(["plan", str(ROOT / "recipes" / "quickstart.yaml"), "--set", f"pack.0.frames='{found}'"]) == 2
    assert "give fit, or a whole number from 2 on" in capsys.readouterr().err
    assert frames("fit") == "fit" and frames("2") == 2


def test_a_recipe_with_one_frame_is_told_what_is_allowed(capsys):
    assert main(["plan", str(ROOT / "recipes" / "quickstart.yaml"), "--set", "pack.0.frames=1"]) == 2
    assert "pack.0.frames: found 1; give fit, or a whole number from 2 on" in capsys.readouterr().err


def test_a_missing_extra_is_named():
    assert "pip install 'worldloom[train]'" in missing_extra(ModuleNotFoundError(name="jax.numpy"))
    with pytest.raises(ModuleNotFoundError):
        missing_extra(ModuleNotFoundError(name="worldloom.nothing"))


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_folder_without_data_is_refused(command, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("worldloom: ") and message.count("\n") == 1


def test_a_closed_pipe_is_no_error(tmp_path):
    code = f"{sys.executable} -m worldloom.cli build --help | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
