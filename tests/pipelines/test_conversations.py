"""Chats: every published shape, every piece that may be missing, every path that leads astray."""

import base64
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worldloom.errors import UserError
from worldloom.pipelines.conversations import conversation, named_versions, read_part
from worldloom.pipelines.reading.listing import list_parts
from worldloom.pipelines.records import BadRecord, Chat, Medium
from worldloom.pipelines.sampling import sample
from worldloom.sources import ChatSource


def source(path: Path | str, **more: Any) -> ChatSource:
    return ChatSource.model_validate({"name": "s", "kind": "chat", "path": str(path), **more})


def read(path: Path | str, **more: Any) -> list[Chat | BadRecord]:
    made = source(path, **more)
    return [found for part, _ in list_parts(made) for found in read_part(made, part)]


def write(path: Path, rows: list[Any]) -> Path:
    """Write rows in the form that the suffix tells."""
    if path.suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spelled(found: Chat | BadRecord, root: Path | None = None) -> str:
    """Write a chat down in a line: roles by a letter, media as <kind:where>; of a reject its reason."""
    if isinstance(found, BadRecord):
        return f"({found.reason})"

    def part(part: str | Medium) -> str:
        if isinstance(part, str):
            return part
        where = part.media.data.decode() or part.media.path.removeprefix(f"file://{root}/") or part.media.link
        return f"<{part.kind}:{where}>"

    return " / ".join(f"{turn.role[0].upper()}: {'|'.join(map(part, turn.parts))}" for turn in found.turns)


def told(rows: list[Any], folder: Path, **more: Any) -> list[str]:
    return [spelled(found, folder) for found in read(write(folder / "a.json", rows), **more)]


def asked(*texts: str, **more: Any) -> dict[str, Any]:
    """Make a row as LLaVA's."""
    return {**more, "conversations": [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(texts)]}


def messages(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    """Make a row as OpenAI's."""
    return {**more, "messages": [{"role": role, "content": content} for role, content in turns]}


# --- the published shapes


ULTRACHAT = [{"id": "0", "data": ["How?", "So.", "Why?", "Thus."]}, {"id": "1", "data": ["Who?", "Me."]}]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_ultrachat(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"train_0{suffix}", ULTRACHAT)
    found = read(path)
    assert [spelled(chat) for chat in found] == ["U: How? / A: So. / U: Why? / A: Thus.", "U: Who? / A: Me."]
    first, second = found
    assert isinstance(first, Chat) and isinstance(second, Chat)
    data, places = path.read_bytes(), {".json": "@", ".jsonl": "@", ".parquet": "#"}
    name, mark, place = second.record.partition(places[suffix])
    assert (name, mark) == (path.name, places[suffix])
    assert place == ("1" if suffix == ".parquet" else str(data.rindex(b"{")))
    assert first.columns == ({} if suffix == ".parquet" else {"id": "0"})
    assert [chat.record for chat in read(path, columns={"id": "id"})] == ["0", "1"]


def test_ultrachat_200k(tmp_path: Path) -> None:
    row = messages(("user", "How?"), ("assistant", "So."), prompt="How?", prompt_id="f0e37e9f")
    for suffix in (".parquet", ".jsonl"):
        (found,) = read(write(tmp_path / f"a{suffix}", [row]), columns={"id": "prompt_id"})
        assert (found.record, spelled(found)) == ("f0e37e9f", "U: How? / A: So.")


def test_sharegpt4v(tmp_path: Path) -> None:
    caption = asked("Describe it.\n<image>", "A cat.", id="000000000009", image="coco/train2017/000000000009.jpg")
    share = asked("<image>\nWhat is it?", "A dog.", id="sa_1", image="sam/images/sa_1.jpg")
    mixed = asked("Write a poem.", "Roses.", "Longer.", "Roses, red.", id="wgByO4Y_0")
    path = write(tmp_path / "sharegpt4v_mix665k.json", [caption, share, mixed])
    found = read(path)
    assert [spelled(chat, tmp_path) for chat in found] == [
        "U: Describe it.|<image:coco/train2017/000000000009.jpg> / A: A cat.",
        "U: <image:sam/images/sa_1.jpg>|What is it? / A: A dog.",
        "U: Write a poem. / A: Roses. / U: Longer. / A: Roses, red.",
    ]
    assert isinstance(found[0], Chat) and found[0].columns == {"id": "000000000009", "image": caption["image"]}
    (tmp_path / "media").mkdir()
    elsewhere = read(path, media_root=str(tmp_path / "media"))
    assert spelled(elsewhere[1], tmp_path / "media") == spelled(found[1], tmp_path)


def test_valley(tmp_path: Path) -> None:
    """Names come with and without .mp4, in folders by source or not."""
    rows = [
        asked("<video>\nWhat?", "Rain.", id="1", video="1.mp4", source="jukin"),
        asked("What?\n<video>", "Snow.", "When?", "Now.", id="2", video="2_10_20", source="VATEX"),
        asked("What?\n<video>", "Sun.", id="3", video="3.mp4"),
        asked("What?\n<video>", "Fog.", id="4", video="4", source="VATEX"),
    ]
    for name in ("jukin/1.mp4", "1.mp4", "VATEX/2_10_20.mp4", "VATEX/2_10_20.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert told(rows, tmp_path) == [
        "U: <video:jukin/1.mp4>|What? / A: Rain.",
        "U: What?|<video:VATEX/2_10_20.mp4> / A: Snow. / U: When? / A: Now.",
        "U: What?|<video:3.mp4> / A: Sun.",
        "(no such file)",
    ]
    assert told(rows, tmp_path, media="{source}-{video}")[0] == "U: <video:jukin-1.mp4>|What? / A: Rain."


def test_video_chatgpt(tmp_path: Path) -> None:
    """The published file, and what its own script makes of it: there is a file of features, named like the clip."""
    published = {"q": "What is it? ", "a": "A game.", "video_id": "v_k_Z.x"}
    converted = asked("<video>\nWhat is it?", "A game.", id="v_k_Z.x", video="v_k_Z.x.pkl")
    assert told([published, converted], tmp_path) == ["(no such file)"] * 2
    (tmp_path / "v_k_Z.x.mkv").touch()
    assert told([published, converted], tmp_path) == [
        "U: What is it? |<video:v_k_Z.x.mkv> / A: A game.",
        "U: <video:v_k_Z.x.mkv>|What is it? / A: A game.",
    ]
    assert told([published], tmp_path, media="clips/{video_id}.mp4") == [
        "U: What is it? |<video:clips/v_k_Z.x.mp4> / A: A game."
    ]


PNG = base64.b64encode(b"pixels").decode()


def test_openai_messages(tmp_path: Path) -> None:
    parts = [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://a.example/b"}},
        {"type": "text", "text": "and"},
        {"type": "text", "text": "say"},
        {"type": "video_url", "video_url": {"url": "clips/c.mp4"}},
    ]
    responses = [{"type": "input_text", "text": "See"}, {"type": "input_image", "image_url": "d.jpg"}]
    qwen = [{"type": "image", "image": "e.jpg"}, {"type": "text", "text": "See"}]
    answer = [{"type": "output_text", "text": "Yes."}]
    assert told(
        [
            messages(("system", "Be brief."), ("user", parts), ("assistant", "Ok.")),
            messages(
                ("developer", [{"type": "text", "text": "Be brief."}]), ("user", responses), ("assistant", answer)
            ),
            messages(("system", ""), ("user", qwen), ("assistant", "Ok.")),
        ],
        tmp_path,
    ) == [
        "S: Be brief. / U: Compare|<image:pixels>|<image:https://a.example/b>|and\nsay|<video:clips/c.mp4> / A: Ok.",
        "S: Be brief. / U: See|<image:d.jpg> / A: Yes.",
        "U: <image:e.jpg>|See / A: Ok.",
    ]


def test_hugging_face(tmp_path: Path) -> None:
    """The shape of HuggingFaceH4/llava-instruct-mix-vsft: parts that name nothing take the columns' pictures."""
    datasets = pytest.importorskip("datasets")
    parts = [
        {"type": t, "text": x, "index": i}
        for t, x, i in (("image", None, 0), ("text", "Eh?", None), ("image", None, 1))
    ]
    answer = [{"type": "text", "text": "No.", "index": None}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    (tmp_path / "b.png").write_bytes(b"two")
    row = {"messages": turns, "images": [{"bytes": b"one", "path": None}, {"bytes": None, "path": "b.png"}], "more": 1}
    datasets.Dataset.from_list([row]).save_to_disk(str(tmp_path / "set"))
    write(tmp_path / "a.parquet", [row])
    for path, root in ((tmp_path / "set", tmp_path / "set"), (tmp_path / "a.parquet", tmp_path)):
        (found,) = read(path)
        assert spelled(found, root) == "U: <image:one>|Eh?|<image:b.png> / A: No."
        assert isinstance(found, Chat) and found.columns == {}
    (found,) = read(tmp_path / "a.parquet", filters={"equals": {"more": 1}})
    assert isinstance(found, Chat) and found.columns == {"more": 1}
    write(tmp_path / "b.parquet", [asked("x", "y", image=b"one"), asked("x", "y", image=None)])
    assert [spelled(chat) for chat in read(tmp_path / "b.parquet")] == ["U: x|<image:one> / A: y", "U: x / A: y"]


def test_paths_that_hugging_face_stores_are_names_too(tmp_path: Path) -> None:
    (tmp_path / "b.png").touch()
    paths = ("b", "https://a.example/1")
    rows = [asked("x", "y", image={"bytes": None, "path": path}) for path in paths]
    expected = ["U: x|<image:b.png> / A: y", "U: x|<image:https://a.example/1> / A: y"]
    assert [spelled(chat, tmp_path) for chat in read(write(tmp_path / "a.parquet", rows))] == expected
    many = asked("x", "y", images=["1.jpg", "2.jpg"], of="c")
    assert told([many], tmp_path, media="{of}/{images}") == ["U: x|<image:c/1.jpg>|<image:c/2.jpg> / A: y"]


def test_shapes_may_stand_side_by_side(tmp_path: Path) -> None:
    rows = [ULTRACHAT[1], asked("x", "y"), messages(("user", "v"), ("assistant", "w"))]
    expected = ["U: Who? / A: Me.", "U: x / A: y", "U: v / A: w"]
    for suffix in (".json", ".jsonl", ".parquet"):
        assert [spelled(chat) for chat in read(write(tmp_path / f"a{suffix}", rows))] == expected


# --- places


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["<image>\n<image>\nA", "B"], "U: <1>|<2>|A / A: B"),
        (["A\n<image>\nB <image>", "C"], "U: A|<1>|B |<2> / A: C"),
        (["A\r\n<image>\r\n<im>", "B"], "U: A|<1>|<2> / A: B"),
        (["<ImageHere><image>\n\nA", "B"], "U: <1>|<2>|\nA / A: B"),
        (["<image>A", "B", "C\n<image>", "D"], "U: <1>|A / A: B / U: C|<2> / A: D"),
        (["A", "B", "<image>", "C", "<image>", "D"], "U: A / A: B / U: <1> / A: C / U: <2> / A: D"),
        (["A", "<image>", "C", "D"], "U: A|<1>|<2> / A: <image> / U: C / A: D"),
        (["", "A"], "U: <1>|<2> / A: A"),
        (["<image>\nA", "B"], "(medium without a place)"),
        (["<image> <image> <image>", "B"], "(no medium for a place)"),
        (["<video>\n<image>\nA", "B"], "U: <1>|<2>|A / A: B"),
    ],
)
def test_pictures_stand_in_their_places_in_order(tmp_path: Path, texts: list[str], expected: str) -> None:
    for image in (["1.jpg", "2.png"], ["1.jpg", "2.png"][::-1]):
        wanted = expected.replace("<1>", f"<image:{image[0]}>").replace("<2>", f"<image:{image[1]}>")
        assert told([asked(*texts, image=image), asked(*texts, images=image)], tmp_path) == [wanted] * 2


def test_pictures_and_clips_take_their_own_places(tmp_path: Path) -> None:
    row = {"image": ["1.jpg", "2.jpg"], "video": "3.mp4"}
    mixed = asked("<video>\n<image>\nA", "B", "<image>", "C", **row)
    bare, wrong = asked("A", "B", **row), asked("<video><video><image>", "B", **row)
    assert told([mixed, bare, wrong], tmp_path) == [
        "U: <video:3.mp4>|<image:1.jpg>|A / A: B / U: <image:2.jpg> / A: C",
        "U: A|<image:1.jpg>|<image:2.jpg>|<video:3.mp4> / A: B",
        "(no medium for a place)",
    ]


def test_a_place_without_media_is_missed_where_it_is_not_just_spoken_of(tmp_path: Path) -> None:
    texts = [
        "<image>\nWhat?",
        "What?\n<video>",
        " <image>",
        "How does <video> work?",
        "Explain <video>",
        "a <image>\nb",
    ]
    rows = [asked(text, "So.") for text in texts] + [messages(("user", texts[0]), ("assistant", "So."))]
    missed = "(no medium for a place)"
    assert told(rows, tmp_path) == [missed] * 3 + [f"U: {text} / A: So." for text in texts[3:]] + [missed]
    assert told([{"data": [texts[0], "So."]}], tmp_path) == [f"U: {texts[0]} / A: So."]
    assert told([asked("What?\n<video>", "So.", id="7")], tmp_path, media="{id}.mp4") == [
        "U: What?|<video:7.mp4> / A: So."
    ]
    assert told([asked("What?", "So.", id="7")], tmp_path, media="{id}.mp4") == ["U: What? / A: So."]


def test_answers_of_weight_0_are_read_and_not_trained(tmp_path: Path) -> None:
    """What follows the last answer that is trained is left out: nothing learns from it."""
    weights = [0, 1, None, 0]
    turns = [
        turn
        for n, weight in enumerate(weights)
        for turn in (
            {"role": "user", "content": f"q{n}"},
            {"role": "assistant", "content": f"a{n}"} | ({} if weight is None else {"weight": weight}),
        )
    ]
    (chat,) = read(write(tmp_path / "a.jsonl", [{"messages": turns}]))
    assert [(t.text, t.trained) for t in chat.turns if t.role == "assistant"] == [
        ("a0", False),
        ("a1", True),
        ("a2", True),
    ]
    assert len(chat.turns) == 6


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_text_may_stand_in_a_column(tmp_path: Path, name: str) -> None:
    for row in ({"data": ["x", "y"]}, asked("x", "y"), messages(("user", "x"), ("assistant", "y"))):
        (chat,) = read(write(tmp_path / "a.jsonl", [{name: "Be brief.", **row}]))
        assert [(t.role, t.text) for t in chat.turns] == [("system", "Be brief."), ("user", "x"), ("assistant", "y")]
    (chat,) = read(write(tmp_path / "a.jsonl", [messages(("system", "  "), ("user", "x"), ("assistant", "y"))]))
    assert [t.role for t in chat.turns] == ["user", "assistant"]


# --- what is wrong


def answering(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", **more}]}


GOOD = asked("x", "y")
FLAWS: list[tuple[Any, str]] = [
    ({"id": 1}, "unknown shape"),
    ({"conversations": None}, "unknown shape"),
    ({"q": "x", "a": "y"}, "unknown shape"),
    ([1], "no row"),
    ({"conversations": []}, "no turns"),
    ({"conversations": "x"}, "no turns"),
    ({"data": {"x": "y"}}, "no turns"),
    ({"conversations": ["x", "y"]}, "unknown shape"),
    (messages(("system", "x")), "no turns"),
    ({"conversations": [{"from": "robot", "value": "x"}]}, "unknown role"),
    ({"conversations": [{"value": "x"}]}, "unknown role"),
    (messages(("user", "x"), ("tool", "y")), "unknown role"),
    (messages(("assistant", "x"), ("user", "y"), ("assistant", "z")), "roles out of order"),
    (messages(("user", "x"), ("user", "y"), ("assistant", "z")), "roles out of order"),
    (messages(("user", "x"), ("assistant", "y"), ("assistant", "z")), "roles out of order"),
    (messages(("user", "x"), ("system", "y"), ("assistant", "z")), "roles out of order"),
    (messages(("system", "x"), ("assistant", "y")), "roles out of order"),
    (messages(("system", "x"), ("system", "y"), ("user", "z"), ("assistant", "z")), "roles out of order"),
    (asked("x"), "no last answer"),
    ({"data": ["x", "y", "z"]}, "no last answer"),
    (asked("x", ""), "empty answer"),
    (asked("x", " \n"), "empty answer"),
    (asked("x", "y", "z", ""), "empty answer"),
    (messages(("user", "x"), ("assistant", None)), "empty answer"),
    (messages(("user", "x"), ("assistant", [])), "empty answer"),
    (asked(" ", "y"), "empty question"),
    (asked("x", "y", " ", "z"), "empty question"),
    (messages(("user", 7), ("assistant", "y")), "no text"),
    ({"data": ["x", None]}, "empty answer"),
    ({"data": ["x", {"y": 1}]}, "no text"),
    ({"data": [["x", "y"], ["z"]]}, "no text"),
    (
        {"system": "a", "messages": messages(("system", "b"), ("user", "x"), ("assistant", "y"))["messages"]},
        "two system texts",
    ),
    ({"system": "a", "system_prompt": "b", "data": ["x", "y"]}, "two system texts"),
    (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": [{}]}]},
        "tool calls",
    ),
    (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]},
        "nothing to train",
    ),
    (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 2}]},
        "unknown weight",
    ),
    (asked("x\0", "y"), "NUL byte"),
    (asked("x", "\ud800"), "not Unicode"),
    (messages(("user", [{"type": "input_audio"}]), ("assistant", "y")), "unknown part"),
    (messages(("user", [7]), ("assistant", "y")), "unknown part"),
    (messages(("user", [{"type": "text", "text": None}]), ("assistant", "y")), "unknown part"),
    (messages(("user", [{"type": "image"}]), ("assistant", "y")), "no medium for a place"),
    (messages(("user", "x"), ("assistant", [{"type": "image", "image": "a.jpg"}])), "medium in an answer"),
    (
        messages(("system", [{"type": "image", "image": "a.jpg"}]), ("user", "x"), ("assistant", "y")),
        "medium in an answer",
    ),
    (
        messages(("user", [{"type": "image", "image": "a.jpg"}]), ("assistant", "y"), image="b.jpg"),
        "medium without a place",
    ),
    (asked("x", "y", image="../a.jpg"), "path outside"),
    (asked("x", "y", image="/etc/passwd.jpg"), "path outside"),
    (asked("x", "y", image="/etc/passwd"), "path outside"),
    (asked("x", "y", image="file:///etc/passwd.jpg"), "path outside"),
    (asked("x", "y", image="a\0.jpg"), "path outside"),
    (asked("x", "y", video="v", source=".."), "path outside"),
    (asked("x", "y", image="a.mp4"), "not a picture"),
    (asked("x", "y", video="a.jpg"), "not a clip"),
    (asked("x", "y", image="nowhere"), "no such file"),
    (asked("x", "y", image=7), "no picture"),
    (asked("x", "y", image={"bytes": None, "path": None}), "no picture"),
    (asked("x", "y", image="data:image/png;base64,AAA"), "bad data URL"),
    (asked("x", "y", image="data:image/png;base64,"), "bad data URL"),
    (asked("x", "y", image="data:image/png;base64,\u00e9"), "bad data URL"),
    ({**asked("x", "y"), "image": "data:image/png;base64," + "A" * 4000}, "too large"),
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_chat_with_a_flaw_fails_alone(tmp_path: Path, suffix: str) -> None:
    rows = [GOOD, *itertools.chain.from_iterable((flaw, GOOD) for flaw, _ in FLAWS)]
    found = read(write(tmp_path / f"a{suffix}", rows), record_bytes=2**10)
    assert [spelled(chat) for chat in found[::2]] == ["U: x / A: y"] * (len(FLAWS) + 1)
    assert [spelled(chat) for chat in found[1::2]] == [f"({reason})" for _, reason in FLAWS]


def test_what_a_user_need_not_mend_is_dropped(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.json", [row for row, _ in FLAWS]))
    dropped = {chat.reason for chat in found if isinstance(chat, BadRecord) and chat.status == "dropped"}
    media = {"not a picture", "not a clip"}
    assert dropped == {"no last answer", "empty answer", "empty question", "tool calls", "nothing to train"} | media


def test_media_in_rows_are_capped(tmp_path: Path) -> None:
    data = "data:image/png;base64," + base64.b64encode(b"x" * 99).decode()
    pair = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": data}}]
    rows = [asked("x", "y", image=data), messages(("user", pair), ("assistant", "y"))]
    write(tmp_path / "b.parquet", [asked("x", "y", image=b"x" * 99)])
    write(tmp_path / "a.jsonl", rows)
    for most in (10, 98, 99):
        cap = {"record_bytes": most}
        for found in read(tmp_path / "a.jsonl", **cap) + read(tmp_path / "b.parquet", **cap):
            assert spelled(found) == ("(too large)" if most < 99 else f"U: x|<image:{'x' * 99}> / A: y")


def test_clips_in_rows_are_handed_out_or_removed(tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    clip = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + base64.b64encode(b"clip").decode()}}
    outside = {"type": "image", "image": "../a.jpg"}
    good, bad = (messages(("user", parts), ("assistant", "y")) for parts in ([clip, clip], [clip, outside]))
    made = source(write(tmp_path / "a.json", [good, bad]))
    ((part, _),) = list_parts(made)
    first, second = read_part(made, part, held)
    assert isinstance(first, Chat) and isinstance(second, BadRecord)
    paths = [Path(medium.media.path) for medium in first.media]
    assert all(medium.media.temporary for medium in first.media) and sorted(paths) == sorted(held.iterdir())
    assert [path.read_bytes() for path in paths] == [b"clip", b"clip"]


def test_links_are_passed_on_as_they_are(tmp_path: Path) -> None:
    rows = [asked("x", "y", image="https://a.example/1.jpg"), asked("x", "y", video="HTTP://169.254.0.1/x")]
    assert told(rows, tmp_path) == [
        "U: x|<image:https://a.example/1.jpg> / A: y",
        "U: x|<video:HTTP://169.254.0.1/x> / A: y",
    ]


def test_rows_are_not_changed_by_being_read() -> None:
    row = asked("<image>\nx", "y", image=["1.jpg"])
    before = json.dumps(row)
    assert conversation(row) == conversation(row) and json.dumps(row) == before


# --- before the start


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_files_of_another_shape_are_refused_before_the_start(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", [{"id": 1, "instruction": "x", "output": "y"}])
    with pytest.raises(
        UserError, match=rf"a{suffix} has no columns of a known shape of chats \(messages; .*instruction"
    ):
        read(path)
    with pytest.raises(UserError, match="no column nr"):
        read(write(path, ULTRACHAT), columns={"id": "nr"})
    with pytest.raises(UserError, match="no column clip"):
        read(write(path, ULTRACHAT), media="{clip}.mp4")
    write(path, [{"id": "1", "output": "y"}, ULTRACHAT[0]])
    assert [spelled(chat) for chat in read(path)] == ["(unknown shape)", "U: How? / A: So. / U: Why? / A: Thus."]


def test_a_dataset_of_another_shape_is_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"text": "x"}]).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UserError, match="the dataset has no columns of a known shape"):
        read(tmp_path / "set")


def test_other_files_and_missing_roots_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("messages\n")
    with pytest.raises(UserError, match=r"no file of a known form \(.jsonl, .ndjson, .json, .parquet\)"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"media_root .* is no folder"):
        read(write(tmp_path / "a.json", ULTRACHAT), media_root=str(tmp_path / "none"))


# --- versions of what is named


def test_a_picture_that_is_replaced_changes_the_version_of_its_part(tmp_path: Path) -> None:
    rows = [asked("x", "y", image=name) for name in ("1.jpg", "2", "https://a.example/3.jpg", "../4.jpg")]
    rows += [messages(("user", [{"type": "image_url", "image_url": {"url": "5.jpg"}}]), ("assistant", "y"))]
    path = write(tmp_path / "a.jsonl", rows)
    made = source(path, unit_bytes=1)
    parts = [part for part, _ in list_parts(made)]

    def versions() -> list[str]:
        return [named_versions(made, part) for part in parts]

    before = versions()
    for name, changed in (("1.jpg", 0), ("2.png", 1), ("4.jpg", None), ("5.jpg", 4)):
        (tmp_path / name).write_bytes(b"x")
        after = versions()
        starts = [json.dumps(row) for row in rows]
        begin = sum(len(start) + 1 for start in starts[:changed]) if changed is not None else None
        assert [p.start for p, a, b in zip(parts, before, after, strict=True) if a != b] == (
            [] if begin is None else [begin]
        )
        before = after
    assert len(set(before)) > 4


def test_chats_without_files_have_no_versions(tmp_path: Path) -> None:
    links = [asked("x", "y", image="https://a.example/1.jpg"), asked("x", "y", image=f"data:image/png;base64,{PNG}")]
    bytes_in = [asked("x", "y", image=b"x")]
    for name, rows in (("a.json", ULTRACHAT), ("b.jsonl", [GOOD, *links]), ("c.parquet", bytes_in)):
        made = source(write(tmp_path / name, rows))
        assert [named_versions(made, part) for part, _ in list_parts(made)] == [""]


def packed(path: Path, codec: str) -> Path:
    """Compress a file of JSON; the packed one takes its place."""
    if not codec:
        return path
    target = path.with_name(path.name + codec)
    target.write_bytes(pa.compress(path.read_bytes(), "gzip", asbytes=True))
    path.unlink()
    return target


FORMS = [("a.json", ""), ("a.jsonl", ""), ("a.json", ".gz"), ("a.jsonl", ".gz"), ("a.parquet", "")]
NAMED = [
    asked("x", "y", image="1.jpg"),
    asked("x", "y", images=["1.jpg"]),
    messages(("user", [{"type": "input_image", "path": "1.jpg"}]), ("assistant", [{"type": "text", "text": "y"}])),
    {"q": "x", "a": "y", "video_id": "1"},
    {"data": ["x", "y"], "image": "1.jpg"},
    {"data": ["x", "y"], "videos": ["1"]},
]


@pytest.mark.parametrize(("name", "codec"), FORMS)
@pytest.mark.parametrize("row", NAMED, ids=lambda row: "-".join(row))
def test_a_picture_behind_chats_of_another_shape_counts(tmp_path: Path, name: str, codec: str, row: Any) -> None:
    """A row far behind UltraChat's, in every unit that it may fall into."""
    path = packed(write(tmp_path / name, [{"id": str(i), "data": ["x" * 999, "y"]} for i in range(20)] + [row]), codec)
    for unit in (2**8, 2**10, 2**25):
        made = source(path, unit_bytes=unit)
        parts = [part for part, _ in list_parts(made)]
        before = [named_versions(made, part) for part in parts]
        for media in ("1.jpg", "1.mp4"):
            (tmp_path / media).write_bytes(b"x")
        after = [named_versions(made, part) for part in parts]
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        for media in ("1.jpg", "1.mp4"):
            (tmp_path / media).unlink()


@pytest.mark.parametrize("at", range(2**20 - 16, 2**20 + 2))
def test_a_key_may_lie_across_blocks(tmp_path: Path, at: int) -> None:
    """Where the longest begins, in a row that has no other."""
    turns = [{"from": "user", "value": [{"type": "input_image", "path": "1.jpg"}]}, {"from": "gpt", "value": "y"}]
    head, key = '{"id": "', '"conversations"'
    text = head + "x" * (at - len(head) - len('", ')) + f'", {key}: {json.dumps(turns)}}}\n'
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "1.jpg").touch()
    made = source(tmp_path / "a.jsonl")
    ((part, _),) = list_parts(made)
    assert text.index(key) == at and named_versions(made, part)


@pytest.mark.parametrize(
    "row", ['{"data": ["x", "y"], "im\\u0061ge": "1.jpg"}', '{"data": ["x\\n<image>", "y"], "id": "1"}']
)
def test_what_hides_a_name_is_no_way_out(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ULTRACHAT[0]) + "\n" + row + "\n")
    made = source(tmp_path / "a.jsonl", **({"media": "{id}.jpg"} if "<image>" in row else {}))
    ((part, _),) = list_parts(made)
    before = named_versions(made, part)
    (tmp_path / "1.jpg").touch()
    assert named_versions(made, part) != before


def test_what_a_damaged_file_names_counts_as_far_as_it_is_read(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [asked(rng.randbytes(500).hex(), "y", image="1.jpg") for _ in range(2000)]
    path = packed(write(tmp_path / "a.jsonl", rows), ".gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    made = source(path)
    ((part, _),) = list_parts(made)
    before = named_versions(made, part)
    (tmp_path / "1.jpg").touch()
    assert named_versions(made, part) != before


@pytest.mark.parametrize(("name", "codec"), FORMS)
def test_ultrachat_is_not_parsed_for_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str
) -> None:
    rows = [*ULTRACHAT, {"data": ["An \u00e9tude, of images?", 'A "video": an "image", or a video_id']}]
    made = source(packed(write(tmp_path / name, rows), codec))
    ((part, _),) = list_parts(made)
    monkeypatch.delattr("worldloom.pipelines.conversations.read_rows")
    assert named_versions(made, part) == ""


# --- plans


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("unit", [2**11, 2**25])
def test_a_sample_knows_how_far_it_leads(tmp_path: Path, name: str, unit: int) -> None:
    rows = [{"id": str(i), "data": ["\u00e9\n" * (i % 50 + 1), "x" * 100]} for i in range(200)]
    path = write(tmp_path / name, rows)
    made = source(path, unit_bytes=unit)
    parts = list(list_parts(made))
    reached = [share for _, share in sample(made, parts, tmp_path)]
    assert len(reached) == 200 and reached == sorted(reached)
    assert reached[-1] == sum(size for _, size in parts)
    if name != "a.parquet":
        assert abs(sum(size for _, size in parts) - path.stat().st_size) < 2
    assert abs(reached[99] / reached[-1] - 0.5) < 0.05
