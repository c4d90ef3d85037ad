"""The patch codebook: codes equal brute force in 64-bit integers, files round-trip, a hostile one is refused."""

import io
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.tokenizers import codebook as subject
from worldloom.tokenizers.codebook import CODES, Codebook, fit, load, sample
from worldloom.tokenizers.vision import VisionTokenizer


def noise(seed: int, *shape: int, levels: int = 256) -> np.ndarray:
    """Draw uint8 values of which few are different where `levels` is small, always with both extremes."""
    values = np.linspace(0, 255, levels).astype(np.uint8)
    return np.random.default_rng(seed).choice(values, shape)


def tiles(pictures: np.ndarray, patch: int) -> list[np.ndarray]:
    """Cut pictures into patches by slicing, row by row."""
    starts = range(0, pictures.shape[1], patch)
    return [one[y : y + patch, x : x + patch] for one in pictures for y in starts for x in starts]


def brute_force(book: Codebook, pictures: np.ndarray) -> list[int]:
    """Return the smallest code at the least squared distance of every patch, in Python's and int64's integers."""
    table = book.patches.astype(np.int64)
    codes = []
    for tile in tiles(pictures, book.patch):
        distances = ((table - tile.astype(np.int64)) ** 2).sum(axis=(1, 2, 3)).tolist()
        codes.append(min(range(len(distances)), key=lambda code, d=distances: (d[code], code)))
    return codes


def same(a: Codebook, b: Codebook) -> bool:
    return a.size == b.size and np.array_equal(a.patches, b.patches)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from([1, 2, 3, 16, 18, 19, 32]), st.integers(1, 40), st.sampled_from([2, 3, 256])
)
def test_codes_equal_brute_force(seed: int, patch: int, codes: int, levels: int) -> None:
    book = Codebook(noise(seed, codes, patch, patch, 3, levels=levels), 2 * patch)
    pictures = noise(seed + 1, 3, book.size, book.size, 3, levels=levels)
    assert book.encode(pictures).ravel().tolist() == brute_force(book, pictures)


@pytest.mark.parametrize("patch", [16, 18, 19, 32])
def test_one_step_of_one_value_decides_at_the_extremes(patch: int) -> None:
    """Distances as large as they can be, one apart: a sum that rounds would tie them, and take the smaller code."""
    table = np.zeros((3, patch, patch, 3), np.uint8)
    table[1, -1, -1, -1] = table[2, -1, -1, -1] = 1
    white = np.full((1, patch, patch, 3), 255, np.uint8)
    assert Codebook(table, patch).encode(white).tolist() == [[1]]
    assert Codebook(255 - table, patch).encode(255 - white).tolist() == [[1]]


def test_equal_patches_take_the_smallest_code() -> None:
    table = np.concatenate([noise(1, 5, 4, 4, 3)] * 2)
    book = Codebook(table, 4)
    assert book.encode(table).ravel().tolist() == [0, 1, 2, 3, 4] * 2


def test_codes_do_not_depend_on_the_batch() -> None:
    book = Codebook(noise(2, 300, 4, 4, 3), 64)
    pictures = noise(3, 9, 64, 64, 3)  # 2,304 patches: several rounds of the comparison
    whole = book.encode(pictures)
    assert whole.dtype == np.uint16 and whole.shape == (9, 256)
    for batch in (1, 2, 4):
        parts = [book.encode(pictures[at : at + batch]) for at in range(0, 9, batch)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert book.encode(pictures[:0]).shape == (0, 256)
    assert book.decode(whole[:0]).shape == (0, 64, 64, 3)
    assert np.array_equal(book.encode(pictures[:, ::-1, ::-1]), book.encode(pictures[:, ::-1, ::-1].copy()))


def test_decoding_lays_the_patches_row_by_row() -> None:
    book = Codebook(noise(4, 50, 8, 8, 3), 24)
    codes = np.random.default_rng(5).integers(0, 50, (4, 9))
    pictures = book.decode(codes)
    assert pictures.shape == (4, 24, 24, 3) and pictures.dtype == np.uint8
    for tile, code in zip(tiles(pictures, 8), codes.ravel(), strict=True):
        assert np.array_equal(tile, book.patches[code])
    assert np.array_equal(book.encode(pictures), codes)


def test_it_is_a_vision_tokenizer() -> None:
    book: VisionTokenizer = Codebook(noise(6, 10, 16, 16, 3))
    assert (book.size, book.grid, book.codes, len(book.digest)) == (256, 16, 10, 32)
    assert Codebook(noise(6, 10, 16, 16, 3), 128).grid == 8


def test_the_digest_changes_with_whatever_decides_a_code() -> None:
    table = noise(7, 10, 4, 4, 3)
    other = table.copy()
    other[-1, -1, -1, -1] ^= 1
    books = [
        Codebook(table, 16),
        Codebook(table, 32),
        Codebook(other, 16),
        Codebook(table[::-1], 16),
        Codebook(table[:9], 16),
    ]
    assert len({book.digest for book in books}) == len(books)
    assert Codebook(table.copy(), 16).digest == books[0].digest


def test_the_table_cannot_be_changed_under_the_codebook() -> None:
    table = noise(8, 4, 2, 2, 3)
    book = Codebook(table, 4)
    table[0] ^= 255
    assert not np.array_equal(book.patches[0], table[0])
    with pytest.raises(ValueError, match="read-only"):
        book.patches[0] = 0


@pytest.mark.parametrize(
    "pictures",
    [np.zeros((1, 8, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8), np.zeros((1, 16, 16, 3), np.float32)],
)
def test_other_pictures_are_refused(pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be uint8\[n, 16, 16, 3\]"):
        Codebook(noise(9, 4, 8, 8, 3), 16).encode(pictures)


@pytest.mark.parametrize("codes", [[[0, 1, 2, 4]], [[-1, 0, 0, 0]], [[0, 1, 2]], [0, 1, 2, 3], [[0.0, 1.0, 2.0, 3.0]]])
def test_other_codes_are_refused(codes: list) -> None:
    with pytest.raises(ValueError, match="must be"):
        Codebook(noise(9, 4, 8, 8, 3), 16).decode(np.array(codes))


@pytest.mark.parametrize(
    ("table", "size", "message"),
    [
        (np.zeros((CODES + 1, 1, 1, 3), np.uint8), 1, "table is"),
        (np.zeros((0, 4, 4, 3), np.uint8), 16, "table is"),
        (np.zeros((2, 4, 5, 3), np.uint8), 20, "table is"),
        (np.zeros((2, 33, 33, 3), np.uint8), 33, "table is"),
        (np.zeros((2, 4, 4, 3), np.int8), 16, "table is"),
        (np.zeros((2, 4, 4, 3), np.uint8), 18, "multiple of 4"),
        (np.zeros((2, 4, 4, 3), np.uint8), 0, "multiple of 4"),
        (np.zeros((2, 4, 4, 3), np.uint8), 1028, "multiple of 4"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: np.ndarray, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Codebook(table, size)


# --- Files


def test_a_file_holds_the_codebook_and_equal_ones_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Codebook(noise(10, 20, 16, 16, 3), 128)
    book.save(str(tmp_path / "a" / "book.npz"))
    found = load(str(tmp_path / "a" / "book.npz"))
    assert same(found, book) and found.digest == book.digest
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e8)
    found.save("memory://codebook/b.npz")
    assert same(load("memory://codebook/b.npz"), book)
    import fsspec

    with fsspec.open("memory://codebook/b.npz") as file:
        assert file.read() == (tmp_path / "a" / "book.npz").read_bytes()


def test_a_deflated_file_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "book.npz")
    write(path, deflated=True)
    assert load(path).codes == 3


def write(path: str, deflated: bool = False, **arrays: np.ndarray) -> None:
    """Write a file as a codebook's, but for the arrays given here; None leaves one out."""
    usual = {
        "format": np.array(subject.MARK),
        "size": np.int64(16),
        "patches": noise(11, 3, 8, 8, 3),
    }
    kept = {name: value for name, value in (usual | arrays).items() if value is not None}
    (np.savez_compressed if deflated else np.savez)(path, **kept)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"format": np.array("worldloom codebook 9")}, "its format is 'worldloom codebook 9'"),
        ({"format": np.array("something else")}, "format is <U14"),
        ({"format": None}, "no item named"),
        ({"size": np.float64(16)}, "size is float64"),
        ({"size": np.array([16, 16])}, "size is int64"),
        ({"size": np.int64(20)}, "cannot be cut"),
        ({"size": np.int64(2**62)}, "cannot be cut"),
        ({"size": np.int64(-8)}, "cannot be cut"),
        ({"patches": np.zeros((3, 8, 8, 3), np.int64)}, "patches is int64"),
        ({"patches": np.zeros((3, 8, 8, 4), np.uint8)}, "patches is uint8"),
        ({"patches": np.zeros((3, 8, 8, 3), np.uint8, order="F")}, "order"),
        ({"patches": np.array([{"a": 1}], object)}, "patches is object"),
        ({"patches": None}, "no item named"),
    ],
)
def test_a_file_that_is_no_codebook_is_refused(arrays: dict, message: str, tmp_path: Path) -> None:
    path = str(tmp_path / "book.npz")
    write(path, **arrays)
    with pytest.raises(UserError, match=message):
        load(path)


def bomb(length: int, claimed: tuple[int, ...]) -> bytes:
    """Make a file whose table claims a shape, and has as many bytes of zeros, deflated."""
    header, content = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": claimed})
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in (("format", np.array(subject.MARK)), ("size", np.int64(16))):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, value)
        with archive.open("patches.npy", "w") as file:
            file.write(header.getvalue())
            for _ in range(length // 2**20):
                file.write(bytes(2**20))
    return content.getvalue()


@pytest.mark.parametrize("claimed", [(3, 8, 8, 3), (10**9, 8, 8, 3), (-3, 8, 8, 3), (CODES, 32, 32, 3)])
def test_a_bomb_is_refused(claimed: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    path.write_bytes(bomb(2**26, claimed))
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match="not a codebook"):
        load(str(path))


def test_every_damage_is_a_plain_refusal_or_harmless(tmp_path: Path) -> None:
    path, hurt = tmp_path / "book.npz", tmp_path / "hurt.npz"
    write(str(path))
    book, content = load(str(path)), path.read_bytes()
    rng = np.random.default_rng(12)
    for case in range(300):
        changed = bytearray(content)
        changed[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        hurt.write_bytes(changed if case % 3 else content[: int(rng.integers(len(content)))])
        try:
            assert same(load(str(hurt)), book)  # the bit was one that says nothing, such as a date's
        except UserError as error:
            assert str(hurt) in str(error) and "make" in str(error)


def test_a_missing_or_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load(str(tmp_path / "none.npz"))
    with pytest.raises(UserError, match="cannot be written"):
        Codebook(noise(13, 3, 8, 8, 3), 16).save("nowhere://book.npz")
    monkeypatch.setattr(subject, "LARGEST_FILE", 100)
    write(str(tmp_path / "book.npz"))
    with pytest.raises(UserError, match="more than 100 bytes"):
        load(str(tmp_path / "book.npz"))


# --- Fitting


def test_few_patches_are_all_in_the_table() -> None:
    table = noise(14, 40, 4, 4, 3)
    pictures = Codebook(table, 16).decode(np.random.default_rng(15).integers(0, 40, (30, 16)))
    book = fit(pictures, codes=64, size=16, patch=4)
    assert {tile.tobytes() for tile in book.patches} == {tile.tobytes() for tile in table}
    assert np.array_equal(book.decode(book.encode(pictures)), pictures)


def groups(spread: int) -> tuple[np.ndarray, np.ndarray]:
    """Make pictures of one patch in 12 groups about known centres, and the centres."""
    centres = noise(16, 12, 4, 4, 3, levels=9)
    rng = np.random.default_rng(17)
    near = centres[rng.integers(0, 12, 2000)].astype(int) + rng.integers(-spread, spread + 1, (2000, 4, 4, 3))
    return near.clip(0, 255).astype(np.uint8), centres


def test_the_fit_finds_the_groups() -> None:
    pictures, _ = groups(4)
    book = fit(pictures, codes=24, size=4, patch=4)
    error = (book.decode(book.encode(pictures)).astype(int) - pictures) ** 2
    assert error.mean() < 8  # the groups' own variance is (9^2 - 1) / 12 = 6.7


def test_each_code_is_the_rounded_mean_of_what_is_nearest_to_it() -> None:
    pictures, _ = groups(40)
    flat, weights = sample([np.concatenate([pictures, pictures[:500]]).reshape(2500, 48)], 10**6, 0)
    before = flat[:10]
    codes, _ = subject.Table(before).nearest(flat)
    after = subject.means(flat, weights, codes, before)
    everything = np.repeat(flat, weights, axis=0)
    owners = np.repeat(codes, weights)
    for code in range(10):
        assert np.array_equal(after[code], np.floor(everything[owners == code].mean(axis=0) + 0.5))


def test_what_is_picked_is_never_picked_again() -> None:
    """The one draw that is left is 0, where the sums of distances are 0 and 1, or 1 and 1."""
    for seed in range(10):
        picked = subject.spread(np.array([[0], [1]], np.uint8), np.array([1, 1]), 2, np.random.default_rng(seed))
        assert sorted(picked[:, 0]) == [0, 1]


def test_a_code_without_patches_stays() -> None:
    table = np.array([[10, 10], [200, 200]], np.uint8)
    after = subject.means(np.array([[0, 4]], np.uint8), np.array([3]), np.array([0]), table)
    assert after.tolist() == [[0, 4], [200, 200]]


FITTED = """
import numpy as np
from worldloom.tokenizers.codebook import fit
rng = np.random.default_rng(18)
print(fit(rng.integers(0, 256, (40, 64, 64, 3), np.uint8), codes=50, size=64, patch=16, seed=3).digest)
"""


def test_the_same_pictures_and_seed_make_the_same_table_on_any_number_of_threads() -> None:
    digests = set()
    for threads in ("1", "2"):
        environment = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", FITTED], capture_output=True, text=True, check=True, env=environment
        )
        digests.add(done.stdout.strip())
    pictures = np.random.default_rng(18).integers(0, 256, (40, 64, 64, 3), np.uint8)
    assert digests == {fit(iter(pictures), 50, 64, 16, seed=3).digest}
    assert fit(pictures, 50, 64, 16, seed=4).digest not in digests


def numbered(low: int, high: int) -> np.ndarray:
    """Make different rows out of numbers, uint8[n, 3]."""
    return np.arange(low, high, dtype=">u4").view(np.uint8).reshape(-1, 4)[:, 1:]


def test_a_sample_counts_each_row_whatever_the_batches() -> None:
    rng = np.random.default_rng(7)
    rows = numbered(0, 2000)[rng.integers(0, 2000, 5000)]
    expected = Counter(map(bytes, rows))
    everything, weights = sample([rows], 10**6, 7)
    assert dict(zip(map(bytes, everything), weights, strict=True)) == expected
    for batches in (np.array_split(rows, 90), np.split(rng.permutation(rows), [1, 1, 40, 3000])):
        kept, counts = sample(batches, 100, 7)
        assert np.array_equal(kept, everything[:100])
        assert counts.tolist() == [expected[bytes(row)] for row in kept]


def test_a_sample_is_fair() -> None:
    """Of 5,000 rows, of which half come first and are there ten times, half of what is drawn is theirs."""
    batches = [numbered(0, 2500)] * 10 + [numbered(2500, 5000)]
    drawn = np.concatenate([sample(batches, 100, seed)[0] for seed in range(50)])
    assert len(drawn) == 5000
    early = (drawn @ [2**16, 2**8, 1] < 2500).mean()
    assert 0.46 < early < 0.54  # five standard deviations of 5,000 fair draws
