"""Pictures to codes and back without a neural network: a table of patches, compared in exact integers.

A picture is cut into square patches, and each becomes the code of the patch in the table that is nearest by
squared distance. It is a plain vector quantizer, for builds without a trained VQGAN, and for tests.

The comparison is exact whatever the processor, the number of threads and the batch: values less 128 are
integers in [-128, 127], so the products and every partial sum of a dot product stay integers of magnitude
2^24 at most where a patch has at most 1,024 values, and float32 adds such integers exactly in any order.
Larger patches are multiplied in float64. Fitting the table uses the same comparison and means in integers,
so it is exact as well.
"""

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import fsspec
import numpy as np

from ..errors import UserError
from .model_files import local_file

CODES = 8192  # as many as LWM's VQGAN has (paper §4.1)
SIZE, PATCH = 256, 16  # LWM's pictures and grid: 256 x 256 pixels become 16 x 16 codes
LARGEST_SIZE, LARGEST_PATCH = 1024, 32  # pixels: they bound the memory that a file can ask for
LARGEST_FILE = CODES * LARGEST_PATCH**2 * 3 + 4096  # bytes: the largest table and its headers
MARK = "worldloom codebook 1"
DAMAGED = (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError)  # what a broken archive raises
EXACT = 2**24  # float32 holds every integer of at most this magnitude
ROWS = 1024  # patches compared at once: with 8,192 codes 64 MiB of products and scores
SAMPLE = 32_768  # different patches that the fit looks at: 24 MiB where they have 16 x 16 pixels
ROUNDS = 5  # of k-means at most: on photographs and clips later ones gain less than 0.05 dB in all

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Codebook:
    """Encode and decode square pictures with a table of patches.

    Attributes:
      patches: uint8[codes, patch, patch, 3], RGB; made read-only.
      size: side of a picture in pixels, a multiple of the patch's side.
    """

    patches: np.ndarray
    size: int = SIZE
    device: ClassVar[str] = "cpu"

    def __post_init__(self) -> None:
        """Copy the table, so that nobody changes it; raises UserError where it does not fit the pictures."""
        if self.patches.dtype != np.uint8 or not is_table(self.patches.shape):
            found = f"{self.patches.dtype}{list(self.patches.shape)}"
            raise UserError(f"A codebook's table is uint8[codes, patch, patch, 3], and this is {found}: make it anew.")
        check(len(self.patches), self.patches.shape[1], self.size)
        patches = np.array(self.patches, order="C")
        patches.flags.writeable = False
        object.__setattr__(self, "patches", patches)

    @property
    def codes(self) -> int:
        """Number of different codes."""
        return len(self.patches)

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.patches.shape[1]

    @property
    def grid(self) -> int:
        """Number of codes along a picture's side."""
        return self.size // self.patch

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decides a code, 32 hexadecimal characters."""
        head = f"{MARK} {self.size} {self.patch}\n".encode()
        return hashlib.blake2b(head + self.patches.tobytes(), digest_size=16).hexdigest()

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Return the codes of pictures uint8[n, size, size, 3] as uint16[n, grid * grid], row by row.

        A patch becomes the nearest one's code by squared distance, the smallest where several are as near.
        Raises ValueError for another shape or type.
        """
        expect(frames, np.uint8, (self.size, self.size, 3))
        codes, _ = self._table.nearest(cut(frames, self.patch))
        return codes.astype(np.uint16).reshape(len(frames), self.grid**2)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the pictures uint8[n, size, size, 3] of codes [n, grid * grid] of any integer type.

        Raises ValueError for another shape or type, and for codes that are not in the table.
        """
        expect(codes, np.integer, (self.grid**2,))
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codes:
            found = f"{codes.min()} to {codes.max()}"
            raise ValueError(f"the codes are {found} and must be 0 to {self.codes - 1}: give codes that it made")
        tiles = self.patches[codes].reshape(-1, self.grid, self.grid, self.patch, self.patch, 3)
        return tiles.swapaxes(2, 3).reshape(-1, self.size, self.size, 3)

    def save(self, path: str) -> None:
        """Write the table to a path or URL as .npz, the same bytes for the same table.

        Raises UserError where the path cannot be written.
        """
        buffer = io.BytesIO()  # nothing is compressed, because compressors differ between machines
        np.savez(buffer, format=np.array(MARK), size=np.int64(self.size), patches=self.patches)
        try:
            with fsspec.open(str(path), "wb", auto_mkdir=True) as file:
                file.write(buffer.getvalue())
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"The codebook cannot be written to {path} ({error}): give another path.") from error

    @cached_property
    def _table(self) -> "Table":
        return Table(self.patches.reshape(self.codes, -1))


class Table:
    """Flat patches uint8[codes, values], made ready to be compared with others."""

    def __init__(self, patches: np.ndarray) -> None:
        exact = patches.shape[1] * 128 * 128 <= EXACT
        self.real: type = np.float32 if exact else np.float64
        self.whole: type = np.int32 if exact else np.int64
        self.centred = centre(patches, self.real)
        self.norms = squares(self.centred).astype(self.whole)

    def nearest(self, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each patch's nearest code and its squared distance, int64[n] both, of patches uint8[n, values].

        Where several are as near it is the smallest.
        """
        codes = np.empty(len(patches), np.int64)
        distances = np.empty(len(patches), np.int64)
        for start in range(0, len(patches), ROWS):
            part = slice(start, start + ROWS)
            centred = centre(patches[part], self.real)
            # |c|^2 - 2pc: below 2^26 where the values are int32
            scores = (centred @ self.centred.T).astype(self.whole)
            np.subtract(self.norms, 2 * scores, out=scores)
            codes[part] = scores.argmin(axis=1)
            distances[part] = scores[np.arange(len(scores)), codes[part]] + squares(centred)
        return codes, distances


def load(path: str) -> Codebook:
    """Read a codebook from a path or URL that fsspec knows; raises UserError for anything else.

    Nothing in a file is executed, and no array is read before its type and shape are found fit.
    """
    remedy = "give a codebook, or make one with `worldloom train-codebook`"
    try:
        with local_file(str(path)).open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The codebook {path} cannot be read ({error}): {remedy}.") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path} has more than {LARGEST_FILE:,} bytes, which no codebook has: {remedy}.")
    try:
        return parse(content)
    except UserError as error:
        raise UserError(f"{path} is not a codebook that can be used. {error}") from error
    except (*DAMAGED, ValueError) as error:
        raise UserError(f"{path} ({len(content):,} bytes) is not a codebook ({error}): {remedy}.") from error


def parse(content: bytes) -> Codebook:
    """Return the codebook in the bytes of a file; raises ValueError or one of `DAMAGED` where there is none."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        mark = str(read_array(archive, "format", np.array(MARK).dtype, lambda shape: shape == ()))
        if mark != MARK:
            raise ValueError(f"its format is {mark!r} and must be {MARK!r}")
        size = int(read_array(archive, "size", np.dtype(np.int64), lambda shape: shape == ()))
        return Codebook(read_array(archive, "patches", np.dtype(np.uint8), is_table), size)


def read_array(archive: zipfile.ZipFile, name: str, dtype: np.dtype, fits: Callable[[Shape], bool]) -> np.ndarray:
    """Read one array of an .npz, if it is of this type and its shape `fits`; raises as `parse` does."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed, and not with deflate")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is not in version 1.0 of NumPy's format")
        shape, by_column, found = np.lib.format.read_array_header_1_0(file)
        if found != dtype or by_column or not fits(shape):
            raise ValueError(f"{name} is {found}{list(shape)}, another type, shape or order than a codebook has")
        length = math.prod(shape) * dtype.itemsize
        data = file.read(length + 1)  # one more, so that the end is reached and the checksum compared
    if len(data) != length:
        raise ValueError(f"{name} is longer or shorter than the {length:,} bytes that its shape needs")
    return np.frombuffer(data, dtype).reshape(shape)


def is_table(shape: Shape) -> bool:
    """Say whether a shape is [codes, patch, patch, 3] with as many and as large patches as are allowed."""
    return (
        len(shape) == 4
        and 1 <= shape[0] <= CODES
        and 1 <= shape[1] <= LARGEST_PATCH
        and shape[1:] == (shape[1], shape[1], 3)
    )


def check(codes: int, patch: int, size: int) -> None:
    """Raise UserError where no codebook can have so many codes, or patches or pictures of such sides in pixels."""
    if not 1 <= codes <= CODES:
        raise UserError(f"A codebook cannot have {codes:,} codes: give 1 to {CODES:,}.")
    if not 1 <= patch <= LARGEST_PATCH:
        raise UserError(f"A codebook's patches cannot be {patch} pixels wide: give 1 to {LARGEST_PATCH}.")
    if not patch <= size <= LARGEST_SIZE or size % patch:
        allowed = f"a multiple of {patch} up to {LARGEST_SIZE}"
        raise UserError(f"Pictures of {size} pixels cannot be cut into patches of {patch}: give {allowed}.")


def expect(array: np.ndarray, dtype: type, shape: Shape) -> None:
    """Raise ValueError where an array is not of this type, or its items not of this shape."""
    if not np.issubdtype(array.dtype, dtype) or array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        wanted = ", ".join(["n", *map(str, shape)])
        raise ValueError(f"the array is {array.dtype}{list(array.shape)} and must be {dtype.__name__}[{wanted}]")


def cut(frames: np.ndarray, patch: int) -> np.ndarray:
    """Cut pictures [n, size, size, 3] into flat patches [n * grid * grid, patch * patch * 3], row by row."""
    grid = frames.shape[1] // patch
    tiles = frames.reshape(len(frames), grid, patch, grid, patch, 3)
    return tiles.swapaxes(2, 3).reshape(-1, patch * patch * 3)


def centre(patches: np.ndarray, dtype: type) -> np.ndarray:
    """Return uint8 values less 128 as a floating type."""
    return patches.astype(dtype) - dtype(128)


def squares(centred: np.ndarray) -> np.ndarray:
    """Return each row's sum of squares, int64[n]; exact, as dot products are."""
    return np.einsum("nv,nv->n", centred, centred).astype(np.int64)


def fit(
    pictures: Iterable[np.ndarray], codes: int = CODES, size: int = SIZE, patch: int = PATCH, seed: int = 0
) -> Codebook:
    """Make a codebook from pictures uint8[size, size, 3] by k-means on a sample of their patches.

    The same pictures, in any order, and the same seed make the same table, on any machine. It has fewer codes
    than asked where the sample has fewer different patches, which are then all in it, or where two means became
    equal. Raises UserError where there is no picture or a number is not allowed, ValueError for
    pictures of another shape or type.
    """
    check(codes, patch, size)
    patches, weights = sample(pieces(pictures, size, patch), SAMPLE, seed)
    if not len(patches):
        raise UserError("A codebook cannot be made without a picture: give at least one.")
    table = spread(patches, weights, codes, np.random.default_rng([seed, 1]))
    table = refine(patches, weights, table)
    return Codebook(np.unique(table, axis=0).reshape(-1, patch, patch, 3), size)


def pieces(pictures: Iterable[np.ndarray], size: int, patch: int) -> Iterator[np.ndarray]:
    """Yield each picture's flat patches uint8[grid * grid, values]; raises ValueError as `fit` does."""
    for picture in pictures:
        expect(picture[None], np.uint8, (size, size, 3))
        yield cut(picture[None], patch)


def sample(batches: Iterable[np.ndarray], most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `most` different rows of a stream of uint8[n, values], and how often each is there, int64.

    Every row has a key, made of its values and the seed, and those with the smallest keys are kept. So each
    different row is as likely to be kept, however often it is there, and neither batches nor order matter.
    Twice as many rows at most are held at a time.
    """
    rng = np.random.default_rng([seed, 0])
    factors = np.empty(0, np.uint64)
    rows, counts, keys = [np.empty((0, 0), np.uint8)], [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    limit = np.uint64(2**64 - 1)
    for batch in batches:
        if not len(factors):
            factors = rng.integers(0, 2**64, batch.shape[1], np.uint64)
            rows = [batch[:0]]
        drawn = batch.astype(np.uint64) @ factors
        rows.append(batch[drawn <= limit])
        keys.append(drawn[drawn <= limit])
        counts.append(np.ones(len(keys[-1]), np.int64))
        if sum(map(len, keys)) > 2 * most:
            rows, counts, keys = smallest(rows, counts, keys, most)
            limit = keys[0][-1] if len(keys[0]) == most else limit
    (kept,), (weights,), _ = smallest(rows, counts, keys, most)
    return kept, weights


def smallest(
    rows: list[np.ndarray], counts: list[np.ndarray], keys: list[np.ndarray], most: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Join parts of a sample, equal rows into one, and keep those with the smallest keys, in the keys' order."""
    order, first, same = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    total = np.zeros(len(order), np.int64)
    np.add.at(total, same, np.concatenate(counts))
    return [np.concatenate(rows)[first[:most]]], [total[:most]], [order[:most]]


def spread(patches: np.ndarray, weights: np.ndarray, codes: int, rng: np.random.Generator) -> np.ndarray:
    """Pick at most `codes` different patches to begin k-means with, far apart where the pictures are rich.

    As k-means++, each is drawn by its weight times its squared distance to the nearest one picked before, but
    many at once, for a round makes the table four times as large. Each pair is compared only once.
    """
    picked = rng.choice(len(patches), 1, p=weights / weights.sum())
    distances = Table(patches[picked]).nearest(patches)[1]
    while len(picked) < codes and distances.any():
        ends = np.cumsum(distances * weights)
        drawn = rng.integers(0, ends[-1], min(3 * len(picked), codes - len(picked)))
        fresh = np.unique(np.searchsorted(ends, drawn, side="right"))
        distances = np.minimum(distances, Table(patches[fresh]).nearest(patches)[1])
        picked = np.concatenate([picked, fresh])
    return patches[picked]


def refine(patches: np.ndarray, weights: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Improve a table by rounds of k-means, until one lowers the error by less than a thousandth."""
    before = math.inf
    for _ in range(ROUNDS):
        nearest, distances = Table(table).nearest(patches)
        error = int(distances @ weights)
        if error >= 0.999 * before or not error:
            break
        table, before = means(patches, weights, nearest, table), error
    return table


def means(patches: np.ndarray, weights: np.ndarray, nearest: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the rounded mean of the patches that are nearest to each code, the old one where there are none."""
    order = np.argsort(nearest, kind="stable")
    table = table.copy()
    for rows in np.split(order, np.flatnonzero(np.diff(nearest[order])) + 1):
        total = weights[rows].sum()
        sums = weights[rows] @ patches[rows].astype(np.int64)
        table[nearest[rows[0]]] = (2 * sums + total) // (2 * total)
    return table
