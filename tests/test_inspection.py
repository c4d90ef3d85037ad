"""Pages and contact sheets show the frames that the data set's own vision tokenizer decodes, and never too many."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from worldloom import inspection
from worldloom.cli import main
from worldloom.errors import UserError
from worldloom.inspection import FRAMES, PICTURES, SIDE, spread
from worldloom.packing.dataset import Dataset
from worldloom.packing.example import Draft, Example
from worldloom.packing.manifest import write_index, write_manifest
from worldloom.packing.report import REJECTS, SHARDS, UNITS, UnitWriter, read_report
from worldloom.packing.row import sequence_row
from worldloom.packing.shard import Kind
from worldloom.packing.storage import Folder
from worldloom.tokenizers.vocabulary import Vocabulary

VISION = Vocabulary(text_size=300, bos=1, eos=2, text_digest="t", codes=64, vision_digest="the right one")
RNG = np.random.default_rng(0)


def decode(codes: np.ndarray) -> np.ndarray:
    """Draw four codes as four squares: 256 x 256, so that scaling shows."""
    assert codes.dtype == np.uint16 and codes.shape[1:] == (4,)
    colours = np.stack([codes * 4, 255 - codes * 3, codes + 7], -1).astype(np.uint8)
    return colours.reshape(-1, 2, 2, 3).repeat(128, 1).repeat(128, 2)


MODEL = SimpleNamespace(size=256, grid=2, codes=64, digest="the right one", decode=decode)


@pytest.fixture(autouse=True)
def models(monkeypatch) -> dict[str, Any]:
    """Offer models by path in the place of `tokenizers.vision.load`, and note what was asked for."""
    known: dict[str, Any] = {
        "right": MODEL,
        "wrong": SimpleNamespace(**{**vars(MODEL), "digest": "another"}),
        "asked": [],
    }

    def load(kind: str, path: str, pixel_range: str | None) -> Any:
        known["asked"].append((kind, path, pixel_range))
        name = Path(path).name
        if name not in ("right", "wrong"):
            raise UserError(f"{path} is gone: give another")
        return known[name]

    monkeypatch.setattr(inspection, "load_vision", load)
    return known


def clip(record: str, codes: np.ndarray, trained: bool = True, ref: str = "") -> Example:
    """Make an example of a video, codes `[frames, 4]`, or of an image."""
    draft = Draft(VISION)
    draft.add([1], trained=False)
    ids = np.full((len(codes), 5), VISION.eof)
    ids[:, :4], ids[-1, 4] = codes + VISION.text_size, VISION.eov
    told = {**json.loads(ref or "{}"), "frames": len(codes)}
    draft.add(ids.ravel(), trained, "video" if len(codes) > 1 else "image", json.dumps(told))
    draft.add([2], trained=True)
    return draft.example("video", "toy", record)


def codes(frames: int) -> np.ndarray:
    return RNG.integers(0, 64, (frames, 4))


@pytest.fixture
def made(tmp_path) -> Callable[..., str]:
    """Make a build of one packed data set, a row for each list of examples, with a recipe that names a model."""

    def make(*rows: list[Example], model: str = "right") -> str:
        folder = Folder(str(tmp_path / "build" / "packed"))
        folder.make(UNITS, SHARDS, REJECTS)
        length = max(sum(len(e.tokens) for e in row) for row in rows) + 3
        with UnitWriter(folder, "u", VISION, Kind("sequences", length)) as writer:
            for row in rows:
                writer.add(sequence_row(row, length, VISION))
            writer.ledger.tokens_read = sum(len(e.tokens) for row in rows for e in row)
            writer.ledger.read = sum(map(len, rows))
            for _ in range(writer.ledger.read):
                writer.ledger.count("kept")
            writer.commit("toy", key="k")
        report = read_report(folder, "u")
        assert report
        described = {"kind": "sequences", "length": length, "weights": "lwm", "fingerprint": VISION.fingerprint}
        write_manifest(folder, write_index(folder, [report]), {**described, "vocabulary": vars(VISION)})
        vision = {"kind": "vqgan", "path": str(tmp_path / model), "pixel_range": "0..1"}
        if model:
            recipe = {"vocabulary": {"text": str(tmp_path / "no.model"), "vision": vision}}
            (tmp_path / "build" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return folder.url

    return make


def pictures(path: Path) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', path.read_text())
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def words(path: Path) -> str:
    return re.sub("<[^>]+>", "", path.read_text().partition("<body>")[2])


def halved(pixels: np.ndarray) -> np.ndarray:
    return pixels[::2, ::2]  # squares of 128 equal pixels stay squares


def test_frames_on_the_page_are_what_the_tokenizer_decodes(made, tmp_path, capsys, models):
    video, image, other = codes(5), codes(1), codes(7)
    data = made([clip("a", video), clip("b", image, trained=False)], [clip("c", other)])
    html = tmp_path / "page.html"
    assert main(["inspect", data, "--row", "0", "--html", str(html)]) == 0
    assert capsys.readouterr().out == f"{html}: a page of row 0, 6 of 6 frames drawn\n"
    expected = [halved(p) for p in decode(video.astype(np.uint16))] + [decode(image.astype(np.uint16))[0]]
    found = pictures(html)
    assert [p.shape for p in found] == [(SIDE, SIDE, 3)] * 5 + [(256, 256, 3)]
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))
    assert models["asked"] == [("vqgan", str(tmp_path / "right"), "0..1")]
    assert "the right one" in words(html) and Dataset(data).root in words(html)
    assert main(["inspect", data, "--sample", "9", "--row", "1", "--html", str(html)]) == 0
    assert len(pictures(html)) == 13 and words(html).count("Row 1 of ") == 1
    assert "a page of rows 1, 0, 13 of 13" in capsys.readouterr().out


def test_names_under_which_no_file_can_be_are_refused(made, tmp_path, capsys):
    data, place, one = made([clip("a", codes(1))]), tmp_path / "out", str(tmp_path / "out" / "one")
    place.mkdir()
    for flags in (["--html", str(place / "no/x.html")], ["--sheet", str(place)], ["--html", one, "--sheet", one]):
        assert main(["inspect", data, "--row", "0", *flags]) == 2
        assert "name a file in a folder" in (said := capsys.readouterr().err) or "a file of its own" in said
    assert not list(place.iterdir())


def test_a_contact_sheet_is_written(made, tmp_path, capsys):
    some = codes(9)
    data, path = made([clip("a", some, ref='{"start": 1, "rate": 4}')]), tmp_path / "sheet.png"
    assert main(["inspect", data, "--row", "0", "--sheet", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: a contact sheet of row 0, 9 of 9 frames\n"
    sheet = np.asarray(Image.open(path))
    for i, frame in enumerate(decode(some.astype(np.uint16))):
        left, top = 8 + i % 3 * 136, 22 + i // 3 * 172
        assert (sheet[top : top + 128, left : left + 128] == halved(frame)).all()


def test_thousands_of_frames_are_not_all_drawn(made, tmp_path, capsys):
    many = codes(2000)
    lone = [clip(f"i{n}", codes(1)) for n in range(PICTURES + 50)]
    data = made([clip("long", many), clip("short", codes(3))], lone)
    html, sheet = tmp_path / "page.html", tmp_path / "sheet.png"
    assert main(["inspect", data, "--row", "0", "--html", str(html), "--sheet", str(sheet)]) == 0
    found = pictures(html)
    assert len(found) == FRAMES + 3 and html.stat().st_size < 2**20
    first, last = decode(many[[0, -1]].astype(np.uint16))
    assert (found[0] == halved(first)).all() and (found[FRAMES - 1] == halved(last)).all()
    assert "Video of 2,000 frames: 32 shown, 1,968 not shown; --full shows all." in words(html)
    assert "Frame 2,000 of 2,000" in words(html)
    assert main(["inspect", data, "--row", "1", "--html", str(html)]) == 0
    assert len(pictures(html)) == PICTURES and words(html).count("Image: not shown; --full shows all.") == 50
    assert main(["inspect", data, "--row", "0", "--html", str(html), "--sheet", str(sheet), "--full"]) == 0
    assert len(pictures(html)) == 2003 and "not shown" not in words(html)
    assert f"{PICTURES} of 2,003 frames" in capsys.readouterr().out
    assert np.prod(Image.open(sheet).size) < 2**23


def test_frames_that_cannot_be_drawn_say_why(made, tmp_path, models, monkeypatch):
    monkeypatch.setattr("worldloom.packing.report.broken_rules", lambda *_: [])  # what no writer lets through
    draft = Draft(VISION)
    draft.add([1], trained=False)
    draft.add([301, 302, VISION.eof, 301, 302, 303, 304, VISION.eof, 301, 302, 303, 363, VISION.eov], trained=True)
    models["right"] = SimpleNamespace(**{**vars(MODEL), "codes": 60})
    data, html = made([draft.example("video", "toy", "odd")]), tmp_path / "page.html"
    assert main(["inspect", data, "--row", "0", "--html", str(html)]) == 0
    assert len(pictures(html)) == 1
    for reason in ("No picture: 2 codes, and a frame has 4", "No picture: code 63, and the tokenizer has 60"):
        assert reason in words(html)


@pytest.mark.parametrize("model", ["gone", ""])
def test_without_a_tokenizer_the_page_says_so(made, tmp_path, capsys, model):
    data, html = made([clip("a", codes(3))], model=model), tmp_path / "page.html"
    assert main(["inspect", data, "--row", "0", "--html", str(html)]) == 0
    assert words(html).count("No picture: no vision tokenizer, see the top") == 3 and pictures(html) == []
    assert ("is gone: give another" if model else "name it by --vision") in words(html)
    assert "0 of 3 frames drawn" in capsys.readouterr().out
    sheet = str(tmp_path / "sheet.png")
    assert main(["inspect", data, "--row", "0", "--sheet", sheet]) == 2 and not Path(sheet).exists()
    assert "empty contact sheet" in capsys.readouterr().err
    named = str(tmp_path / "right")
    assert main(["inspect", data, "--row", "0", "--sheet", sheet, "--vision", named]) == 0 and Path(sheet).exists()


def test_another_tokenizer_is_refused(made, tmp_path, capsys, models):
    data, html = made([clip("a", codes(3))], model="wrong"), str(tmp_path / "page.html")
    assert main(["inspect", data, "--row", "0", "--html", html]) == 2
    assert "is not the vision tokenizer that" in capsys.readouterr().err
    assert main(["inspect", data, "--row", "0", "--html", html, "--vision", "nowhere"]) == 2
    assert "nowhere is gone" in capsys.readouterr().err and not Path(html).exists()
    assert main(["inspect", data, "--row", "0", "--html", html, "--vision", "elsewhere/right"]) == 0
    assert models["asked"][-1] == ("vqgan", "elsewhere/right", "0..1")
    assert len(pictures(Path(html))) == 3


MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 99))


@pytest.mark.parametrize(
    "recipe",
    [
        "[",
        "\x07",
        "- 1",
        "7",
        "vocabulary: 7",
        "vocabulary: {vision: {kind: vqgan, path: right}}",
        "vocabulary: {text: [a], vision: {kind: vqgan, path: right}}",
        "vocabulary: {text: a, vision: right}",
        "vocabulary: {text: a, vision: {kind: [vqgan], path: right}}",
        "vocabulary: {text: a, vision: {kind: vqgan}}",
        "vocabulary: {text: a, vision: {kind: vqgan, path: right, more: 1}}",
        "vocabulary: !!python/object/apply:os.getcwd []",
        "2: " + "9" * 5000,
        "[" * 5000,
        MERGES + "vocabulary: *a98",
    ],
)
def test_a_malformed_recipe_is_as_none(recipe, made, tmp_path, models):
    data, html = made([clip("a", codes(1))]), tmp_path / "page.html"
    (tmp_path / "build" / "recipe.yaml").write_text(recipe)
    assert main(["inspect", data, "--row", "0", "--html", str(html)]) == 0
    assert "no recipe beside the data set names a vision tokenizer" in words(html) and models["asked"] == []


@pytest.mark.parametrize("url", ["http://a.example/right", "s3://a/right", "memory://right", "zip::file:///right"])
def test_what_a_recipe_names_elsewhere_is_read_only_if_asked(url, made, tmp_path, models, monkeypatch):
    """A data set may be a stranger's, and so are the URLs in its recipe."""
    data, html = made([clip("a", codes(1))]), str(tmp_path / "page.html")
    section = {"text": url, "vision": {"kind": "vqgan", "path": url, "pixel_range": "0..1"}}
    (tmp_path / "build" / "recipe.yaml").write_text(yaml.safe_dump({"vocabulary": section}))
    asked: list[str] = []
    monkeypatch.setattr(inspection, "load", asked.append)
    assert main(["inspect", data, "--row", "0", "--html", html]) == 0
    assert asked == models["asked"] == [] and f"{url} is not read only because" in words(Path(html))
    assert main(["inspect", data, "--row", "0", "--html", html, "--vision", url]) == 0
    assert models["asked"] == [("vqgan", url, "0..1")] and len(pictures(Path(html))) == 1


def test_the_kind_of_a_tokenizer_named_without_a_recipe_is_seen_from_its_path(made, tmp_path, models):
    data, html = made([clip("a", codes(1))], model=""), str(tmp_path / "page.html")
    (tmp_path / "folder" / "right").mkdir(parents=True)
    for place, kind in ((tmp_path / "right", "codebook"), (tmp_path / "folder" / "right", "vqgan")):
        assert main(["inspect", data, "--row", "0", "--html", html, "--vision", str(place)]) == 0
        assert models["asked"][-1] == (kind, str(place), None)


def test_text_needs_no_tokenizer_and_rows_must_be_chosen(made, tmp_path, capsys, models):
    draft = Draft(VISION)
    draft.add([1, 5, 6], trained=True)
    data, html = made([draft.example("text", "toy", "t")]), tmp_path / "page.html"
    assert main(["inspect", data, "--row", "0", "--html", str(html)]) == 0
    assert models["asked"] == [] and "frames" not in words(html).partition("How to read")[0]
    assert main(["inspect", data, "--row", "0", "--sheet", str(tmp_path / "s.png")]) == 2
    assert "the rows have no frames" in capsys.readouterr().err
    assert main(["inspect", data, "--html", str(html)]) == 2
    assert "--row N" in capsys.readouterr().err


def test_a_chat_shows_its_pictures_in_their_turns(made, tmp_path, capsys):
    """Two prompts with a picture each, behind a text, so that places in the row are not those in the chat."""
    shown, draft, before = codes(2), Draft(VISION), Draft(VISION)
    before.add([1, 5], trained=False)
    before.add([2], trained=True)
    start = 0
    for i, frame in enumerate(shown):
        draft.add([1] if not i else [5], trained=False)
        told = json.dumps({"frames": 1})
        draft.add([*(frame + VISION.text_size).tolist(), VISION.eov], trained=False, kind="image", ref=told)
        draft.span(start, "user")
        start = draft.length
        draft.add([7, 2], trained=True)
        draft.span(start, "assistant")
        start = draft.length
    data = made([before.example("text", "toy", "t"), draft.example("image-chat", "toy", "c")])
    html = tmp_path / "page.html"
    assert main(["inspect", data, "--row", "0", "--html", str(html)]) == 0
    found = pictures(html)
    assert all((a == b).all() for a, b in zip(found, decode(shown.astype(np.uint16)), strict=True))
    turns = re.findall(r"<h4[^>]*>(user|assistant) .*?</section>", html.read_text(), re.S)
    drawn = [part.count("<img") for part in html.read_text().split("<h4")[1:]]
    assert (turns, drawn) == (["user", "assistant"] * 2, [1, 0, 1, 0])
    capsys.readouterr()
    assert main(["inspect", data, "--row", "0", "--json"]) == 0
    text, chat = json.loads(capsys.readouterr().out)[0]["segments"]
    assert text["turns"] == text["chunks"] == text["contexts"] == []
    places = [[3, 9], [9, 11], [11, 17], [17, 19]]
    assert [(t["turn"], t["role"], t["place"], t["trained"]) for t in chat["turns"]] == [
        (i + 1, ("user", "assistant")[i % 2], place, i % 2 * 2) for i, place in enumerate(places)
    ]


def test_json_is_as_it_was(made, tmp_path, capsys):
    data, html = made([clip("a", codes(2))]), tmp_path / "page.html"
    assert main(["inspect", data, "--row", "0", "--json"]) == 0
    plain = capsys.readouterr().out
    assert main(["inspect", data, "--row", "0", "--json", "--html", str(html)]) == 0
    assert capsys.readouterr().out == plain and json.loads(plain)[0]["row"] == 0 and html.exists()


@given(st.integers(0, 500), st.integers(2, 60))
def test_a_spread_has_the_first_the_last_and_even_steps(n, limit):
    found = spread(list(range(n)), limit)
    if n <= limit:
        assert found == list(range(n))
    else:
        steps = np.diff(found)
        assert len(found) == limit and (found[0], found[-1]) == (0, n - 1)
        assert steps.min() >= 1 and steps.max() - steps.min() <= 1
