"""Pictures and clips to rows: what comes through stages and batches equals each record done alone and slowly."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worldloom.packing.report import Reject
from worldloom.packing.row import Row, row_examples
from worldloom.pipelines import to_codes
from worldloom.pipelines.fetching import exchange
from worldloom.pipelines.fetching.fetch import Fetcher
from worldloom.pipelines.models import vocabulary_of
from worldloom.pipelines.pictured import rows
from worldloom.pipelines.records import BadRecord, Found, ImageText, Media, VideoText
from worldloom.pipelines.scratch import scratch
from worldloom.recipe import Recipe
from worldloom.tokenizers.codebook import Codebook
from worldloom.tokenizers.text import load

Image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
SIZE, CODES = 64, 40


@pytest.fixture(scope="module")
def codebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codebook") / "small.npz"
    patches = np.unique(np.random.default_rng(0).integers(0, 256, (CODES, 16, 16, 3), np.uint8), axis=0)
    Codebook(patches, SIZE).save(str(path))
    return path


def recipe_of(small_model: Path, codebook: Path, kind: str = "image-text", **more: Any) -> Recipe:
    vocabulary = {"text": str(small_model), "vision": {"kind": "codebook", "path": str(codebook)}}
    return Recipe.model_validate(
        {"vocabulary": vocabulary, "sources": [{"name": "s", "kind": kind, "path": "p"} | more]}
    )


def done(recipe: Recipe, records: Iterable[Found], denied: frozenset[str] = frozenset()) -> list[Row | Reject]:
    with scratch() as folder:
        return list(rows(recipe, recipe.sources[0], iter(records), denied, folder))  # type: ignore[arg-type]


def png(number: int, size: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    import io

    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def image(number: int, data: bytes | None = None, **more: Any) -> ImageText:
    caption = more.pop("text", f"Good morning, fox {number}.")
    return ImageText(f"r{number}", f"file {number}", caption, Media(data=png(number) if data is None else data), **more)


def slowly(recipe: Recipe, number: int, codebook: Path, small_model: Path) -> tuple[set[tuple[int, ...]], bytes]:
    """Lay record `number` out by hand, in both orders, from pixels that NumPy drew."""
    from worldloom.tokenizers import codebook as codebooks

    pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    table = codebooks.load(str(codebook)).patches.reshape(CODES, -1).astype(np.int64)
    patches = pixels.reshape(4, 16, 4, 16, 3).transpose(0, 2, 1, 3, 4).reshape(16, -1).astype(np.int64)
    codes = [int(((table - patch) ** 2).sum(1).argmin()) for patch in patches]
    text = load(str(small_model))
    vocabulary = vocabulary_of(recipe.vocabulary)
    picture = [
        *text.encode("<vision>"),
        *(c + text.text_size for c in codes),
        vocabulary.eov,
        *text.encode("</vision>"),
    ]
    caption = [*text.encode(f"Good morning, fox {number}.")]
    layouts = {(1, *picture, *caption, 2), (1, *caption, *picture, 2)}
    return {tuple(map(int, layout)) for layout in layouts}, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def test_rows_equal_records_done_alone_by_hand(small_model: Path, codebook: Path) -> None:
    recipe = recipe_of(small_model, codebook)
    found = done(recipe, [image(i) for i in range(150)])  # more than two batches of frames
    tasks = set()
    for number, row in enumerate(found):
        assert isinstance(row, Row)
        layouts, exact = slowly(recipe, number, codebook, small_model)
        (example,) = row_examples(row)
        assert tuple(example.tokens.tolist()) in layouts and row.exact == exact
        assert example.record == f"r{number}" and not example.trained[0] and example.trained[1:].all()
        tasks.add(example.task)
    assert tasks == {"image-to-text", "text-to-image"}


def test_rows_do_not_depend_on_their_neighbours(small_model: Path, codebook: Path) -> None:
    recipe = recipe_of(small_model, codebook)
    together = done(recipe, [image(i) for i in range(7)])
    apart = [row for i in reversed(range(7)) for row in done(recipe, [image(i)])][::-1]
    for a, b in zip(together, apart, strict=True):
        assert isinstance(a, Row) and isinstance(b, Row)
        np.testing.assert_array_equal(a.tokens, b.tokens)
        assert a.segments == b.segments


CASES: list[tuple[Found, dict[str, Any], str]] = [
    (image(0, b"no picture"), {}, "decode failed"),
    (image(0, b""), {}, "decode failed empty file"),
    (BadRecord("r0", "w", "no caption", "x"), {}, "read failed no caption"),
    (image(0, text="  "), {}, "filter dropped empty caption"),
    (image(0, text="a" * 100_000), {}, "read failed caption too long"),
    (image(0, text="a\0b"), {}, "read failed NUL byte"),
    (image(0, text="short"), {"filters": {"min_caption": 6}}, "filter dropped below min_caption"),
    (image(0, text="longer"), {"filters": {"max_caption": 5}}, "filter dropped above max_caption"),
    (image(0, png(1, (40, 90))), {"filters": {"min_side": 41}}, "filter dropped"),
    (image(0, png(1, (40, 90))), {"filters": {"max_aspect": 2}}, "filter dropped"),
    (image(0, columns={"NSFW": "NSFW"}), {"filters": {"equals": {"NSFW": "UNLIKELY"}}}, "filter dropped NSFW differs"),
    (image(0, columns={"p": 0.3}), {"filters": {"at_most": {"p": 0.2}}}, "filter dropped p above 0.2"),
    (image(0, columns={"p": 4}), {"filters": {"at_least": {"p": 5}}}, "filter dropped p below 5"),
    (image(0, columns={"p": float("nan")}), {"filters": {"at_least": {"p": 5}}}, "filter dropped p below 5"),
    (image(0, columns={"p": "4.5"}), {"filters": {"at_least": {"p": 5}}}, "filter dropped p below 5"),
    (image(0, columns={"p": "high"}), {"filters": {"at_least": {"p": 5}}}, "filter dropped no p"),
    (image(0), {"filters": {"at_most": {"p": 5}}}, "filter dropped no p"),
    (ImageText("r0", "w", "Good morning", Media(path="/no/such/file.png")), {}, "read failed no such file"),
    (ImageText("r0", "w", "Good morning", Media(link="http://127.0.0.1/x.png")), {}, "fetch failed private address"),
    (ImageText("r0", "w", "Good morning", Media(link="file:///etc/passwd")), {}, "fetch failed not http or https"),
    (image(0), {"sample": 0.0}, "filter dropped not in the sample"),
]


@pytest.mark.parametrize(("found", "more", "why"), CASES, ids=[why for _, _, why in CASES])
def test_each_unfit_record_is_a_reject_with_its_reason(found, more, why, small_model: Path, codebook: Path) -> None:
    sound = image(1, columns={"NSFW": "UNLIKELY", "p": 0.1 if "at_most" in str(more) else 9}, text="sound")
    outcomes = done(recipe_of(small_model, codebook, **more), [sound, found, sound])
    reject = outcomes[1]
    assert isinstance(reject, Reject)
    assert f"{reject.stage} {reject.status} {reject.reason}".startswith(why)
    assert (reject.record, reject.source) == ("r0", "s")
    if "sample" not in more and "min_side" not in str(more):
        assert len(outcomes) == 3


def test_a_deny_list_names_records_urls_and_pixels(small_model: Path, codebook: Path) -> None:
    recipe = recipe_of(small_model, codebook)
    (row,) = done(recipe, [image(3)])
    assert isinstance(row, Row)
    for entry, denied in {
        "r3": image(3),
        "http://u": image(3, columns={"URL": "http://u"}),
        row.exact.hex(): image(3),
    }.items():
        (reject,) = done(recipe, [denied], frozenset([entry]))
        assert isinstance(reject, Reject) and (reject.reason, reject.error) == ("denied", entry)


def test_caption_dropout_and_trained_target(small_model: Path, codebook: Path) -> None:
    dropped = done(recipe_of(small_model, codebook, render={"caption_dropout": 1}), [image(i) for i in range(4)])
    assert {r.segments[0].task for r in dropped if isinstance(r, Row)} == {"image"}
    for row in done(recipe_of(small_model, codebook, render={"trained": "target"}), [image(i) for i in range(8)]):
        assert isinstance(row, Row)
        (example,) = row_examples(row)
        (picture,) = [s for s in example.spans if s.kind == "image"]
        (caption,) = [s for s in example.spans if s.kind == "caption"]
        first, second = sorted((picture, caption))
        assert not example.trained[: first.end].any() and example.trained[second.start :].all()


def clip(path: Path, frames: int) -> Path:
    av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"bf": "2"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            pixels = np.full((SIZE, SIZE, 3), 20 * i % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return path


def test_clips_keep_the_frames_of_the_rule_and_say_which(tmp_path: Path, small_model: Path, codebook: Path) -> None:
    for number, frames in enumerate((1, 9, 24, 60)):
        clip(tmp_path / f"{number}.mp4", frames)
    records = [VideoText(f"{i}", "w", "a fox", Media(path=str(tmp_path / f"{i}.mp4"))) for i in range(4)]
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "3.mp4").read_bytes()[:-200])
    records.insert(2, VideoText("bad", "w", "a fox", Media(path=str(tmp_path / "bad.mp4"))))
    for sampling, budget in (("window", 5), ("uniform", 5), ("window", 1000)):
        found = done(recipe_of(small_model, codebook, "video-text", frames=budget, sampling=sampling), records)
        assert isinstance(found.pop(2), Reject)
        spans = [s for r in found if isinstance(r, Row) for s in r.segments[0].spans if s.kind == "video"]
        kept = [json.loads(s.ref) for s in spans]
        totals = [1, 5, 12, 30]  # at 8 frames a second, every second one: floor(4 * (n - 1) / 8) + 1
        assert [(k["of"], k["frames"], k["sampling"]) for k in kept] == [(n, min(n, budget), sampling) for n in totals]
        assert [s.end - s.start for s in spans] == [17 * min(n, budget) for n in totals]


@pytest.mark.parametrize(("caption", "outcome"), [("a fox", Row), (" ", Reject)])
def test_temporary_clips_are_removed(tmp_path: Path, small_model: Path, codebook: Path, caption, outcome) -> None:
    path = clip(tmp_path / "t.mp4", 4)
    record = VideoText("r", "w", caption, Media(path=str(path), temporary=True))
    assert isinstance(done(recipe_of(small_model, codebook, "video-text"), [record])[0], outcome)
    assert not path.exists()


def test_a_job_is_left_while_a_link_hangs(
    small_model: Path, codebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes the connection and never says a word, for as long as the recipe would wait."""
    server = socket.create_server(("127.0.0.1", 0))

    class Redirected(socket.socket):
        def connect(self, _: Any) -> None:
            super().connect(server.getsockname())

    async def look_up(_: str) -> list[str]:
        return ["93.184.216.34"]

    fetcher = partial(Fetcher, look_up=look_up, open_socket=lambda _: Redirected(socket.AF_INET, socket.SOCK_STREAM))
    monkeypatch.setattr(to_codes, "Fetcher", fetcher)
    monkeypatch.setattr(exchange, "SILENCE", 3600)
    recipe = recipe_of(small_model, codebook, fetch={"seconds": 3600})
    found = [image(i) for i in range(70)] + [image(70, data=b"")]
    found[-1] = replace(found[-1], media=Media(link="http://a.example/x.png"))
    outcomes = rows(recipe, recipe.sources[0], iter(found), frozenset(), tmp_path)  # type: ignore[arg-type]
    next(outcomes)
    with server, server.accept()[0]:
        leaving = threading.Thread(target=outcomes.close)
        leaving.start()
        leaving.join(60)
        assert not leaving.is_alive()
