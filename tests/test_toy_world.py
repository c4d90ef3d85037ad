"""The toy world that `worldloom toy-world` writes, against what the world itself says."""

import json
from pathlib import Path

from worldloom.cli import main
from worldloom.pipelines.toy.world import caption, questions, scene


def test_it_writes_pictures_clips_questions_and_every_word(tmp_path, capsys):
    out = tmp_path / "world"
    assert main(["toy-world", str(out), "--images", "3", "--clips", "2", "--size", "16", "--seed", "5"]) == 0
    assert "3 images, 2 clips" in capsys.readouterr().out
    assert [path.name for path in sorted((out / "images").glob("*.png"))] == [f"00000{n}.png" for n in range(3)]
    told = [path.read_text().strip() for path in sorted((out / "images").glob("*.txt"))]
    assert told == [caption(scene(5, n)) for n in range(3)]
    assert len(list((out / "clips").rglob("*.mp4"))) == 2
    words = (out / "words.txt").read_text().split()
    for name, moving, count in [("images", False, 3), ("clips", True, 2)]:
        chats = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        assert len(chats) == count
        for n, chat in enumerate(chats):
            medium = chat["messages"][0]["content"][0]
            assert (out / Path(medium[medium["type"]])).is_file()
            one = scene(5, n, moving)
            said = [caption(one), *(text for pair in questions(one) for text in pair)]
            assert {word for text in said for word in text.split()} <= set(words)


def test_an_odd_size_is_refused_in_words(tmp_path, capsys):
    assert main(["toy-world", str(tmp_path / "world"), "--images", "1", "--clips", "1", "--size", "17"]) == 2
    assert "even size" in capsys.readouterr().err
