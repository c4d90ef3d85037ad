"""Chats to rows: what comes through stages and batches equals each chat laid out alone and by hand."""

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worldloom.packing.report import Reject
from worldloom.packing.row import Row, row_examples
from worldloom.pipelines import recent, to_codes
from worldloom.pipelines.chats import rows
from worldloom.pipelines.models import vocabulary_of
from worldloom.pipelines.records import BadRecord, Chat, Found, Media, Medium, Turn
from worldloom.pipelines.scratch import scratch
from worldloom.pipelines.tokenize import _names
from worldloom.recipe import Recipe
from worldloom.tokenizers.codebook import Codebook
from worldloom.tokenizers.text import load

Image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
SIZE, CODES = 32, 20


@pytest.fixture(scope="module")
def codebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codebook") / "small.npz"
    patches = np.unique(np.random.default_rng(0).integers(0, 256, (CODES, 16, 16, 3), np.uint8), axis=0)
    Codebook(patches, SIZE).save(str(path))
    return path


def recipe_of(small_model: Path, codebook: Path | None, duplicates: str = "exact", **more: Any) -> Recipe:
    vocabulary: dict[str, Any] = {"text": str(small_model)}
    if codebook:
        vocabulary["vision"] = {"kind": "codebook", "path": str(codebook)}
    source = {"name": "s", "kind": "chat", "path": "p", "filters": {"min_side": SIZE}} | more
    return Recipe.model_validate({"vocabulary": vocabulary, "sources": [source], "duplicates": duplicates})


def done(recipe: Recipe, records: Iterable[Found], denied: frozenset[str] = frozenset()) -> list[Row | Reject]:
    with scratch() as folder:
        return list(rows(recipe, recipe.sources[0], iter(records), denied, folder))  # type: ignore[arg-type]


def pixels(number: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)


def shown(number: int, size: int = SIZE) -> Medium:
    out = io.BytesIO()
    Image.fromarray(pixels(number, size)).save(out, "PNG")
    return Medium("image", Media(data=out.getvalue()))


def chat(number: int, *said: Any, **more: Any) -> Chat:
    """Each of `said` is a turn's parts, the user's first."""
    turns = tuple(
        Turn(("user", "assistant")[i % 2], parts if isinstance(parts, tuple) else (parts,))
        for i, parts in enumerate(said)
    )
    return Chat(f"r{number}", f"row {number}", turns, **more)


def codes_of(number: int, codebook: Path) -> list[int]:
    from worldloom.tokenizers import codebook as codebooks

    table = codebooks.load(str(codebook)).patches.reshape(CODES, -1).astype(np.int64)
    patches = pixels(number).reshape(2, 16, 2, 16, 3).transpose(0, 2, 1, 3, 4).reshape(4, -1).astype(np.int64)
    return [int(((table - patch) ** 2).sum(1).argmin()) for patch in patches]


def test_chats_of_words_and_pictures_keep_their_order(small_model: Path, codebook: Path) -> None:
    """A hundred, with none to three pictures each, so that batches of frames reach across chats."""
    recipe = recipe_of(small_model, codebook)
    text, vocabulary = load(str(small_model)), vocabulary_of(recipe.vocabulary)
    records = [chat(n, (f"Fox {n}?", *(shown(100 * n + i) for i in range(n % 4))), "A fox.") for n in range(100)]
    for number, row in enumerate(done(recipe, records)):
        assert isinstance(row, Row)
        (example,) = row_examples(row)
        prompt = f"You are a helpful assistant. USER: Fox {number}?"
        if number % 4 == 0:
            expected = [1, *text.encode(f"{prompt} ASSISTANT:")]
        else:
            expected = [1, *text.encode(prompt + "\n")]
            for i in range(number % 4):
                frame = [c + text.text_size for c in codes_of(100 * number + i, codebook)]
                expected += [*text.encode("<vision>"), *frame, vocabulary.eov, *text.encode("</vision>")]
            expected += text.encode("ASSISTANT:").tolist()
        answer = [*text.encode("A fox."), 2]
        assert example.tokens.tolist() == [*map(int, expected), *map(int, answer)]
        assert example.trained.tolist() == [False] * len(expected) + [True] * len(answer)
        assert (example.record, example.task) == (f"r{number}", "image-chat" if number % 4 else "chat")
        contents = [json.loads(s.ref)["content"] for s in example.spans if s.kind == "image"]
        assert contents == [
            hashlib.blake2b(pixels(100 * number + i).tobytes(), digest_size=16).hexdigest() for i in range(number % 4)
        ]


def outcome(found: Row | Reject) -> str:
    return f"{found.stage} {found.status} {found.reason}" if isinstance(found, Reject) else "kept"


HI, ANSWER = "Good morning, said the fox.", "Nobody answers a fox at such an hour."
CASES: list[tuple[Found, dict[str, Any], str]] = [
    (chat(0, HI, ANSWER), {}, "kept"),
    (BadRecord("r0", "w", "unknown shape", "x"), {}, "read failed unknown shape"),
    (chat(0, (HI, Medium("image", Media(data=b"no picture"))), ANSWER), {}, "decode failed"),
    (chat(0, (HI, shown(1), Medium("image", Media(path="/nowhere.png"))), ANSWER), {}, "read failed"),
    (chat(0, (HI, shown(1, 31)), ANSWER), {}, "filter dropped"),
    (chat(0, HI, ANSWER), {"min_turns": 2}, "filter dropped below min_turns"),
    (chat(0, HI, ANSWER, HI, ANSWER), {"max_turns": 1}, "filter dropped above max_turns"),
    (chat(0, HI, ANSWER), {"min_answer_tokens": 100}, "filter dropped below min_answer_tokens"),
    (chat(0, HI, ANSWER), {"max_answer_tokens": 2}, "filter dropped above max_answer_tokens"),
    (chat(0, HI, ANSWER), {"min_tokens": 1000}, "filter dropped below min_tokens"),
    (chat(0, HI, ANSWER), {"max_tokens": 5}, "filter dropped above max_tokens"),
    (chat(0, HI, "I\u2019m sorry, but I can\u2019t help."), {"refusals": "drop"}, "filter dropped refusal"),
    (chat(0, HI, "I am sorry, but I can't help."), {}, "kept"),
    (chat(0, HI, "She said: I'm sorry."), {"refusals": "drop"}, "kept"),
    (chat(0, HI, "I cannot recommend this book enough."), {"refusals": "drop"}, "kept"),
    (chat(0, HI, "Sorry to hear that! Here are five steps."), {"refusals": "drop"}, "kept"),
    (chat(0, HI, "I can't wait to show you."), {"refusals": "drop"}, "kept"),
    (chat(0, HI, "I won't lie, it is good."), {"refusals": "drop"}, "kept"),
    (chat(0, HI, "My training data was split 80/20."), {"refusals": "drop"}, "kept"),
    (chat(0, HI, "Sorry, but I can't do that."), {"refusals": "drop"}, "filter dropped refusal"),
    (chat(0, HI, "I cannot provide that."), {"refusals": "drop"}, "filter dropped refusal"),
    (chat(0, HI, "I apologize, but I am unable to say."), {"refusals": "drop"}, "filter dropped refusal"),
    (chat(0, HI, "Unfortunately, I don't have access to it."), {"refusals": "drop"}, "filter dropped refusal"),
    (chat(0, HI, "Well, as an AI language model I doubt it."), {"refusals": "drop"}, "filter dropped boilerplate"),
    (chat(0, "As an AI, what do you say?", ANSWER), {"refusals": "drop"}, "kept"),
    (chat(0, HI, "See https://x.example"), {"patterns": [r"https?://\S+"]}, r"filter dropped matches https?://\S+"),
    (chat(0, HI, ANSWER), {"languages": ["de", "fr"]}, "filter dropped other language"),
    (chat(0, HI, ANSWER), {"languages": ["en"]}, "kept"),
    (chat(0, "Wie heißt die Hauptstadt?", "Die Hauptstadt heißt Rom."), {"languages": ["de"]}, "kept"),
    (chat(0, HI, ANSWER, columns={"lang": "en"}), {"equals": {"lang": "de"}}, "filter dropped lang differs"),
]


@pytest.mark.parametrize(("record", "filters", "expected"), CASES, ids=range(len(CASES)))
def test_what_keeps_a_chat_out(
    small_model: Path, codebook: Path, record: Found, filters: dict[str, Any], expected: str
) -> None:
    recipe = recipe_of(small_model, codebook, filters={"min_side": SIZE} | filters)
    neighbours = [chat(1, (HI, shown(7)), ANSWER), record, chat(2, HI, ANSWER)]
    before, found, after = done(recipe, neighbours)
    if not filters:
        assert (outcome(before), outcome(after)) == ("kept", "kept")
    assert outcome(found).startswith(expected)
    if isinstance(found, Reject):
        assert found.record == "r0"


def test_the_picture_that_keeps_a_chat_out_is_named(small_model: Path, codebook: Path) -> None:
    (found,) = done(recipe_of(small_model, codebook), [chat(0, (HI, shown(1), shown(2, 31)), ANSWER)])
    assert isinstance(found, Reject) and found.error.startswith("image 2 of 2: ")


def test_pictures_without_a_tokenizer_are_rejects(small_model: Path) -> None:
    recipe = recipe_of(small_model, None)
    found = done(recipe, [chat(0, (HI, shown(1)), ANSWER), chat(1, HI, ANSWER)])
    assert [outcome(f) for f in found] == ["read failed pictures without a tokenizer", "kept"]


def test_what_is_denied_is_out(small_model: Path, codebook: Path) -> None:
    """By its id, its content's hash, a picture's content, or a picture's link."""
    recipe = recipe_of(small_model, codebook)
    linked = chat(3, (HI, Medium("image", Media(link="http://a.example/x.png"))), ANSWER)
    records = [chat(0, HI, ANSWER), chat(1, (HI, shown(1)), ANSWER), chat(2, HI, "Other."), linked]
    kept = done(recipe, records[:3])
    assert all(isinstance(row, Row) for row in kept)
    content = hashlib.blake2b(pixels(1).tobytes(), digest_size=16).hexdigest()
    denied = frozenset({"r0", content, kept[2].exact.hex(), "http://a.example/x.png"})  # type: ignore[union-attr]
    found = done(recipe, records, denied)
    assert [outcome(f) for f in found] == ["filter dropped denied"] * 4
    assert [f.url for f in found] == ["", "", "", "http://a.example/x.png"]  # type: ignore[union-attr]


def test_a_row_s_url_is_told(small_model: Path) -> None:
    """So that a deny list that names it later takes the chat out, as it would have before."""
    recipe = recipe_of(small_model, None)
    (found,) = done(recipe, [chat(0, HI, ANSWER, columns={"url": "http://a.example/0"})])
    assert isinstance(found, Row) and "http://a.example/0" in _names(found)
    (found,) = done(
        recipe, [chat(0, HI, ANSWER, columns={"url": "http://a.example/0"})], frozenset({"http://a.example/0"})
    )
    assert outcome(found) == "filter dropped denied"


def test_exact_duplicates_say_and_show_the_same(small_model: Path, codebook: Path) -> None:
    recipe = recipe_of(small_model, codebook)
    records = [
        chat(0, (HI, shown(1)), ANSWER),
        chat(1, (HI + "  ", shown(1)), ANSWER),  # what is stripped tells nothing apart
        chat(2, (HI, shown(2)), ANSWER),
        chat(3, (HI,), ANSWER),
        chat(4, (HI, shown(1)), ANSWER, HI, ANSWER),
    ]
    hashes = [row.exact for row in done(recipe, records)]  # type: ignore[union-attr]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4


def test_near_duplicates_show_the_same(small_model: Path, codebook: Path) -> None:
    long = " ".join(f"{HI} {n}" for n in range(40))
    recipe = recipe_of(small_model, codebook, "near")
    records = [
        chat(0, (long, shown(1)), ANSWER),
        chat(1, (long + " Yes.", shown(1)), ANSWER),
        chat(2, (long, shown(2)), ANSWER),
        chat(3, (long,), ANSWER),
    ]
    bands = [set(enumerate(row.near.tolist())) for row in done(recipe, records)]  # type: ignore[union-attr]
    assert bands[0] & bands[1]
    assert not bands[0] & bands[2] and not bands[0] & bands[3] and not bands[2] & bands[3]


def test_a_file_that_many_chats_show_is_decoded_once(
    small_model: Path, codebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, with fewer held than there are: the rows are those of each chat alone."""
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(shown(number).media.data)
    (tmp_path / "4.png").write_bytes(b"damaged")
    order = np.random.default_rng(0).integers(0, 5, 60).tolist()

    def asked(n: int, *numbers: int) -> Chat:
        return chat(
            n, (f"Fox {n}?", *(Medium("image", Media(path=str(tmp_path / f"{i}.png"))) for i in numbers)), ANSWER
        )

    records = [asked(n, *order[n : n + 2]) for n in range(50)]
    recipe = recipe_of(small_model, codebook)
    opened: list[str] = []
    read_file = to_codes.read_file
    monkeypatch.setattr(to_codes, "read_file", lambda path, most: [opened.append(path), read_file(path, most)][1])
    together = done(recipe, records)
    assert len(opened) == 5
    monkeypatch.setattr(recent, "TOKENS", 2 * 256 * 100)  # two pictures
    fewer = done(recipe, records)
    assert 5 < len(opened) - 5 < 100
    for found, again, record in zip(together, fewer, records, strict=True):
        (alone,) = done(recipe, [record])
        assert outcome(found) == outcome(again) == outcome(alone)
        if isinstance(alone, Row):
            assert isinstance(found, Row) and isinstance(again, Row)
            assert found.tokens.tolist() == again.tokens.tolist() == alone.tokens.tolist()
            assert found.segments == again.segments == alone.segments
        else:
            assert found == again == alone


def test_a_clip_is_one_content_whichever_of_its_frames_are_chosen(
    small_model: Path, codebook: Path, tmp_path: Path
) -> None:
    """The split goes by it: chats that draw windows of their own, and others, must be on one side."""
    av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"threads": "1"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for i in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), 6 * i, np.uint8))))
        container.mux(stream.encode())
    told = []  # two that draw windows of one clip must not share the first one's
    for more in ({"sampling": "window", "frames": 4}, {"sampling": "uniform", "frames": 9}):
        recipe = recipe_of(small_model, codebook, **more)
        found = done(recipe, [chat(n, (HI, Medium("video", Media(path=str(path)))), ANSWER) for n in range(6)])
        told += [json.loads(s.ref) for row in found for s in row.segments[0].spans if s.kind == "video"]  # type: ignore[union-attr]
    assert len({t["start"] for t in told}) > 3
    assert {t["content"] for t in told} == {hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}
