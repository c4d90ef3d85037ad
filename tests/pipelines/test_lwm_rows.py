"""LWM's JSONL against rows worked out by hand, and what is wrong with some."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.packing.report import Reject
from worldloom.packing.row import Row, row_examples
from worldloom.pipelines.build import build
from worldloom.pipelines.deny import with_deny_lists
from worldloom.pipelines.models import text_tokenizer, vocabulary_of
from worldloom.pipelines.tokenize import TokenizeJob, read_unit, tokenize
from worldloom.recipe import Recipe
from worldloom.tokenizers.codebook import Codebook

A, B, C = ([(first + i) % 9 for i in range(256)] for first in (0, 3, 5))  # three frames


@pytest.fixture(scope="module")
def codebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine colours; a picture of 16 x 16 pixels has a code each, 256 in all."""
    path = tmp_path_factory.mktemp("codebook") / "nine.npz"
    Codebook(np.arange(27, dtype=np.uint8).reshape(9, 1, 1, 3), 16).save(str(path))
    return path


class Made:
    """What becomes of some rows, and what is needed to say by hand what should."""

    def __init__(self, tmp_path: Path, model: Path, vision: Path | None, rows: list[Any], **source: Any):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(text)
        section = {"name": "s", "kind": "lwm-jsonl", "path": str(tmp_path / "rows.jsonl"), **source}
        vocabulary: dict[str, Any] = {"text": str(model)}
        if vision:
            vocabulary["vision"] = {"kind": "codebook", "path": str(vision)}
        recipe = with_deny_lists(Recipe.model_validate({"vocabulary": vocabulary, "sources": [section]}))
        self.text, self.vocabulary = text_tokenizer(str(model)), vocabulary_of(recipe.vocabulary)
        (own,), (unit,) = recipe.sources, TokenizeJob(recipe, "memory://unused").units("s")
        denied = frozenset(own.deny)
        self.outcomes = list(tokenize(recipe, own, read_unit(own, unit), denied, tmp_path))

    @property
    def pairs(self) -> list[list[tuple[int, bool]]]:
        """Tokens with their flags of each row."""
        return [list(zip(e.tokens.tolist(), e.trained.tolist(), strict=True)) for e in self.examples]

    @property
    def examples(self) -> list[Any]:
        return [row_examples(row)[0] for row in self.outcomes if isinstance(row, Row)]

    @property
    def reasons(self) -> list[str]:
        return [f"{o.status} {o.reason}" if isinstance(o, Reject) else "kept" for o in self.outcomes]

    def says(self, text: str, trained: bool) -> list[tuple[int, bool]]:
        return [(int(i), trained) for i in self.text.encode(text)]

    def shows(self, trained: bool, *frames: list[int]) -> list[tuple[int, bool]]:
        """Markers as strings of their own around the codes, eof after each frame but the last, which eov ends."""
        begin, end = self.says("<vision>", trained), self.says("</vision>", trained)
        inner: list[tuple[int, bool]] = []
        for number, frame in enumerate(frames):
            ending = self.vocabulary.eov if number == len(frames) - 1 else self.vocabulary.eof
            inner += [(self.vocabulary.text_size + code, trained) for code in frame] + [(ending, trained)]
        return [*begin, *inner, *end]

    @property
    def bos(self) -> tuple[int, bool]:
        return self.vocabulary.bos, False

    def eos(self, trained: bool = True) -> tuple[int, bool]:
        return self.vocabulary.eos, trained


def test_rows_worked_out_by_hand(tmp_path: Path, small_model: Path, codebook: Path) -> None:
    rows = [
        {"fields": "[question],answer", "question": "Who read?", "answer": "The fox."},
        {"fields": "caption,vision", "caption": "a fox", "vision": A},
        {"fields": "[vision],[q+r],answer", "vision": A + B, "q": "Who", "r": "reads?", "answer": "A fox"},
        {"fields": "[a],<|eos|>,<|bos|>,[<|eos|>],b", "a": "one", "b": "two"},
        {"fields": "my_vision_codes", "my_vision_codes": A + B + C},
        {"fields": "text", "text": "The miller's daughter"},
        {"fields": "[one_vision],two_vision,text", "one_vision": A, "two_vision": B, "text": "and"},
    ]
    made = Made(tmp_path, small_model, codebook, rows)
    assert made.reasons == ["kept"] * 7
    one = made.says("one", False)
    assert made.pairs == [
        [made.bos, *made.says("Who read?", False), *made.says("The fox.", True), made.eos()],
        [made.bos, *made.says("a fox", True), *made.shows(True, A), made.eos()],
        [made.bos, *made.shows(False, A, B), *made.says("Who reads?", False), *made.says("A fox", True), made.eos()],
        [made.bos, *one, made.eos(), made.bos, made.eos(False), *made.says("two", True), made.eos()],
        [made.bos, *made.shows(True, A, B, C), made.eos()],
        [made.bos, *made.says("The miller's daughter", True), made.eos()],
        [made.bos, *made.shows(False, A), *made.shows(True, B), *made.says("and", True), made.eos()],
    ]
    tasks = ["text-to-text", "text-to-image", "video-to-text", "text-to-text", "video", "text", "image-to-text"]
    assert [example.task for example in made.examples] == tasks
    (span,) = made.examples[2].spans
    markers = len(made.text.encode("<vision>"))
    assert (span.kind, span.start, span.end) == ("video", 1 + markers, 1 + markers + 2 * 257)
    assert json.loads(span.ref)["frames"] == 2


def test_a_clip_keeps_frames_all_over_its_length(tmp_path: Path, small_model: Path, codebook: Path) -> None:
    frames = [[n] * 256 for n in range(9)]
    row = {"fields": "vision", "vision": [code for frame in frames for code in frame]}
    made = Made(tmp_path, small_model, codebook, [row], frames=4)
    chosen = [frames[int(place)] for place in np.linspace(0, 8, 4).astype(int)]  # as lwm/data.py:197
    assert made.pairs == [[made.bos, *made.shows(True, *chosen), made.eos()]]
    told = json.loads(made.examples[0].spans[0].ref)
    assert (told["frames"], told["of"], told["rate"]) == (4, 9, 1.5)
    whole = Made(tmp_path, small_model, codebook, [row], frames=20)
    assert whole.pairs == [[whole.bos, *whole.shows(True, *frames), whole.eos()]]


def test_one_of_several_specs_is_taken_by_its_number_or_drawn(tmp_path: Path, small_model: Path) -> None:
    rows = [{"fields": ["[a],b", "[b],a"], "a": f"one {n}", "b": "two"} for n in range(60)]
    for index in (0, 1):
        made = Made(tmp_path, small_model, None, rows, index=index)
        first, second = ("one 7", "two") if index == 0 else ("two", "one 7")
        assert made.pairs[7] == [made.bos, *made.says(first, False), *made.says(second, True), made.eos()]
    drawn = Made(tmp_path, small_model, None, rows)
    fixed = [Made(tmp_path, small_model, None, rows, index=index).pairs for index in (0, 1)]
    choices = [fixed[0][n] == pair for n, pair in enumerate(drawn.pairs)]
    assert all(pair in (fixed[0][n], fixed[1][n]) for n, pair in enumerate(drawn.pairs))
    assert 15 < sum(choices) < 45
    assert Made(tmp_path, small_model, None, rows).pairs == drawn.pairs


def test_what_is_wrong_with_a_row_is_told(tmp_path: Path, small_model: Path, codebook: Path) -> None:
    rows = [
        {"fields": "vision", "vision": A[:200]},
        {"fields": "vision", "vision": A + A[:44]},
        {"fields": "vision", "vision": []},
        {"fields": "vision", "vision": [*A[:255], 9]},
        {"fields": "vision", "vision": [*A[:255], True]},
        {"fields": "vision", "vision": [*A[:255], 1.0]},
        {"fields": "vision", "vision": "0,1"},
        {"fields": "[vision+question],answer", "vision": A, "question": "q", "answer": "a"},
        {"fields": "missing", "text": "x"},
        {"fields": "text", "text": 5},
        {"fields": "text", "text": "a\0b"},
        {"fields": "text", "text": "\ud800"},
        {"fields": ["text"] * 3, "text": "x"},
        {"fields": 7, "text": "x"},
        {"fields": [], "text": "x"},
        {"fields": [5] * 9, "text": "x"},
        {"fields": ",".join(["text"] * 1025), "text": "x"},
        {"fields": "text,text", "text": "y" * 200},
        {"fields": "", "text": "x"},
        {"text": "x"},
    ]
    made = Made(tmp_path, small_model, codebook, rows, index=5, record_bytes=20_000)
    assert made.reasons == [
        *["failed no whole frames"] * 3,
        *["failed no codes"] * 4,
        *["failed no such field"] * 2,
        "failed no text",
        "failed NUL byte",
        "failed not Unicode",
        *["failed no fields"] * 5,
        "kept",
        "failed no such field",
        "failed no fields",
    ]


def test_codes_need_a_tokenizer_of_such_frames(tmp_path: Path, small_model: Path) -> None:
    rows = [{"fields": "vision", "vision": [0] * 256}]
    assert Made(tmp_path, small_model, None, rows).reasons == ["failed pictures without a tokenizer"]
    Codebook(np.zeros((9, 1, 1, 3), np.uint8), 8).save(str(tmp_path / "small.npz"))
    assert Made(tmp_path, small_model, tmp_path / "small.npz", rows).reasons == ["failed other frames"]


def test_filters_and_deny_lists_hold(tmp_path: Path, small_model: Path, codebook: Path) -> None:
    rows = [{"fields": "text", "text": f"a fox {n}", "set": n % 2, "key": f"k{n}"} for n in range(4)]
    rows.append({"fields": "vision", "vision": A, "set": 1, "key": "v"})
    source: dict[str, Any] = {"filters": {"equals": {"set": 1}}, "columns": {"id": "key"}, "deny": ["k3"]}
    made = Made(tmp_path, small_model, codebook, rows, **source)
    assert made.reasons == ["dropped set differs", "kept", "dropped set differs", "dropped denied", "kept"]
    picture = json.loads(made.examples[1].spans[0].ref)["content"]
    again = Made(tmp_path, small_model, codebook, rows, **{**source, "deny": [picture]})
    assert again.reasons[-1] == "dropped denied"


def test_a_build_reads_packs_and_verifies_them(tmp_path: Path, small_model: Path, codebook: Path) -> None:
    from worldloom.packing.verify import verify

    rows: list[Any] = [{"spec": "[vision],text", "vision": A, "text": f"fox {n}"} for n in range(6)]
    rows += [{"spec": "[q],text", "q": "who?", "text": "the fox"}, {"spec": "vision", "vision": A[:9]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "s", "kind": "lwm-jsonl", "path": str(tmp_path / "rows.jsonl"), "columns": {"fields": "spec"}}
    recipe = Recipe.model_validate(
        {
            "vocabulary": {"text": str(small_model), "vision": {"kind": "codebook", "path": str(codebook)}},
            "sources": [source],
            "pack": {"length": 1024},
            "limits": {"failed": 0.5},
        }
    )
    made = build(recipe, str(tmp_path / "out"), [], 1)
    assert made["examples"]["ledger"]["kept"] == 7
    assert made["examples"]["ledger"]["reasons"] == {"failed: no whole frames": 1}
    assert made["packed-1024"]["rows"] == 2
    assert not verify(str(tmp_path / "out"))


def test_the_recipe_says_what_it_wants(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"spec": "text", "text": "x"}) + "\n")
    data: dict[str, Any] = {"vocabulary": {"text": "none.model"}, "sources": [{"name": "s", "kind": "lwm-jsonl"}]}
    data["sources"][0]["dataset"] = "lwm"
    with pytest.raises(ValueError, match="give path instead of dataset"):
        Recipe.model_validate(data)
    data["sources"][0] = {"name": "s", "kind": "lwm-jsonl", "path": str(tmp_path)}
    with pytest.raises(UserError, match="no column fields; it has spec, text"):
        list(TokenizeJob(Recipe.model_validate(data), "memory://unused").names("s"))
