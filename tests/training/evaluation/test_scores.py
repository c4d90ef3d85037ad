"""What was right, as numbers and as a picture."""

import hashlib
import io
import json

import numpy as np
from PIL import Image
from worldloom.training.evaluation.chart import Axis, draw
from worldloom.training.evaluation.scores import Outcome, cells, digest, grouped, write

LENGTH, DEPTH = Axis("length"), Axis("depth", "%")


def outcome(column, row, number, *right):
    return Outcome(column, row, number, digest("?"), ("1",) * len(right), "1", right)


def test_cells_are_means_over_their_trials():
    found = cells([outcome(8, 0, 0, True, False), outcome(8, 0, 1, True, True), outcome(4, 50, 0, False)])
    assert found == [
        {"column": 4, "row": 50, "trials": 1, "right": 0.0, "all": 0.0},
        {"column": 8, "row": 0, "trials": 2, "right": 0.75, "all": 0.5},
    ]


def test_a_stream_is_cut_and_not_run_ahead_of():
    taken = []
    groups = grouped((taken.append(n) or n for n in range(5)), 2)
    assert next(groups) == [0, 1] and taken == [0, 1]
    assert list(groups) == [[2, 3], [4]]


def test_a_digest_is_of_ids_or_of_text():
    by_hand = hashlib.blake2b(b"\1\0\0\0\0\1\0\0", digest_size=16).hexdigest()
    assert digest(np.array([1, 256], np.int64)) == digest(np.array([1, 256], np.uint16)) == by_hand
    assert digest("a\ud800") == hashlib.blake2b(b"a?", digest_size=16).hexdigest()


def test_numbers_and_picture_are_written(tmp_path):
    outcomes = [outcome(8, 0, 0, True, False), outcome(4, 50, 0, False)]
    right = write(tmp_path / "new", "needle", "Needles", LENGTH, DEPTH, outcomes, {"seed": 3})
    told = json.loads((tmp_path / "new" / "needle.json").read_text())
    assert right == told["right"] == 0.25 and told["seed"] == 3 and told["row"] == "depth"
    assert told["trials"][0]["right"] == [True, False] and len(told["trials"]) == 2
    assert told["cells"] == cells(outcomes)
    assert (tmp_path / "new" / "needle.png").stat().st_size > 5000


def picture(shares, tmp_path) -> np.ndarray:
    draw(tmp_path / "chart.png", "Chart", LENGTH, DEPTH, shares)
    return np.asarray(Image.open(io.BytesIO((tmp_path / "chart.png").read_bytes())).convert("RGB")).astype(int)


def middle(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return x and y of the middle of a colour, without the colour bar at the right."""
    rows, columns = np.nonzero((abs(pixels[:, :-150] - colour) < 3).all(axis=-1))
    assert len(rows) > 1000
    return np.array([columns.mean(), rows.mean()])


RED, GREEN, GREY = (240, 73, 110), (12, 215, 159), (204, 204, 204)


def test_a_wrong_cell_is_red_and_where_it_should_be(tmp_path):
    shares = {(column, row): 1.0 for column in (1024, 2048, 3000) for row in (0, 50, 100)}
    pixels = picture(shares | {(3000, 0): 0.0}, tmp_path)
    right, down = middle(pixels, RED) - middle(pixels, GREEN)
    assert right > 50 and down < -50  # the last length, the smallest depth
    pixels = picture({cell: share for cell, share in shares.items() if cell != (1024, 100)}, tmp_path)
    right, down = middle(pixels, GREY) - middle(pixels, GREEN)
    assert right < -50 and down > 50


def test_the_same_numbers_make_the_same_bytes(tmp_path):
    shares = {(column, row): column * row % 7 / 7 for column in range(1, 9) for row in range(0, 101, 10)}
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, "Chart", LENGTH, DEPTH, shares)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_lengths_are_written_short():
    assert [LENGTH.label(n) for n in (0, 1000, 1024, 32768, 2**20, 3 * 2**20)] == ["0", "1000", "1K", "32K", "1M", "3M"]
    assert DEPTH.label(25) == "25%"
