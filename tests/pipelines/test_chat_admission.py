"""What chats that are kept out leave behind: nothing."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from worldloom.packing.report import Reject
from worldloom.pipelines.chat_admission import judge_all
from worldloom.pipelines.conversations import read_part
from worldloom.pipelines.reading.listing import list_parts
from worldloom.pipelines.records import Chat
from worldloom.sources import ChatSource

LINK = "https://a.example/1.jpg"
REFUSAL = "I'm sorry, but I can't help with that."


def clip(data: bytes) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + base64.b64encode(data).decode()}}


def row(name: str, answer: str = "Yes.", *more: dict[str, Any]) -> dict[str, Any]:
    """Make a chat of two clips in its row, whose bytes name it."""
    parts = [clip(f"{name} {n}".encode()) for n in range(2)]
    turns = [{"role": "user", "content": [*parts, *more]}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": turns}


@pytest.mark.parametrize(
    ("more", "gone"),
    [
        ({}, {"denied", "linked", "refusal"}),
        ({"sample": 0.0}, {"good", "denied", "linked", "refusal", "better"}),
        ({"filters": {"refusals": "keep", "max_turns": 1}}, {"denied", "linked"}),
        ({"filters": {"min_turns": 2}}, {"good", "denied", "linked", "refusal", "better"}),
    ],
)
def test_clips_of_chats_that_are_kept_out_are_removed(tmp_path: Path, more: dict[str, Any], gone: set[str]) -> None:
    """Each before the next chat is handed out; those of chats that are kept stay."""
    (tmp_path / "held").mkdir()
    link = {"type": "image_url", "image_url": {"url": LINK}}
    rows = [row("good"), row("denied"), row("linked", "Yes.", link), row("refusal", REFUSAL), row("better")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    given = {"name": "s", "kind": "chat", "path": str(tmp_path / "a.json"), "columns": {"id": "id"}}
    source = ChatSource.model_validate(given | {"filters": {"refusals": "drop"}} | more)
    ((part, _),) = list_parts(source)
    left, kept = set(), set()
    for outcome in judge_all(read_part(source, part, tmp_path / "held"), source, 0, frozenset({"denied", LINK})):
        if isinstance(outcome, Chat):
            kept |= {f"{outcome.record} {n}" for n in range(2)}
            assert all(Path(m.media.path).parent == tmp_path / "held" for m in outcome.media if m.kind == "video")
        else:
            assert isinstance(outcome, Reject) and outcome.status == "dropped"
            left.add(outcome.record)
        assert {path.read_bytes().decode() for path in (tmp_path / "held").iterdir()} == kept
    assert left == gone and len(kept) == 2 * (5 - len(gone))
