"""Tensors as tux streams them, one after the other: in msgpack `[path, bytes]`, the bytes flax's, in msgpack again.

A file is mapped and read in place, since one value is gigabytes long (a stacked layer of LWM's: 2.9 GB), so no value is
ever copied but the tensor that is asked for. Only what such a file can hold is understood, and nothing in it is run:
whatever else a byte says is refused, and so is a length that goes beyond the file.

Formats: tux/checkpoint.py (StreamingCheckpointer), flax/serialization.py, msgpack's spec.md.
"""

import mmap
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ...errors import UserError
from .leaves import DTYPES, Key, Shape

NDARRAY = 1  # flax's extension type of an array; 2 and 3 are complex numbers and scalars, which no weight is
CHUNKED = "__msgpack_chunked_array__"
CHUNK = 2**30  # bytes above which flax cuts an array (serialization.MAX_CHUNK_SIZE)
LONGEST = 2**32 - 1  # bytes of a value of msgpack
DEPTH, ENTRIES, NAME = 3, 64, 1024  # of nested containers, of one container, and bytes of a string
TENSORS = 2**17  # in a file; LWM's largest has 80 layers of nine, three times over with an optimizer's state


class Extension(NamedTuple):
    """A value of a type of its own."""

    code: int
    data: memoryview


class Malformed(Exception):
    """Says what is wrong with a stream, and at which byte."""


class Cursor:
    """Reads msgpack's values one after the other, long ones as views."""

    def __init__(self, data: memoryview, place: int = 0):
        self.data, self.place = data, place

    def take(self, size: int) -> memoryview:
        """Take the next bytes."""
        if size > len(self.data) - self.place:
            raise Malformed(f"at byte {self.place} it says that {size} bytes follow, and it ends before them")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, size: int) -> int:
        """Take an unsigned number of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def value(self, depth: int = DEPTH) -> Any:
        """Take a value: int, str, bool, list, dict, Extension, or a view of bytes."""
        start = self.place
        code = self.number(1)
        if code < 0x80:
            return code
        if code < 0xC0:
            kind = "map" if code < 0x90 else "array" if code < 0xA0 else "str"
            return self._of_size(kind, code & (31 if kind == "str" else 15), depth, start)
        if code in (0xC2, 0xC3):
            return code == 0xC3
        if code in FIXED:
            return Extension(self.number(1), self.take(FIXED[code]))
        if code not in SIZED:
            raise Malformed(f"byte {start} is {code:#04x}, which begins nothing that a stream of weights holds")
        kind, wide = SIZED[code]
        return self._of_size(kind, self.number(wide), depth, start)

    def _of_size(self, kind: str, size: int, depth: int, start: int) -> Any:
        """Take the rest of a value whose size, or for `int` whose number, is known."""
        if kind == "int":
            return size
        if kind == "bin":
            return self.take(size)
        if kind == "ext":
            return Extension(self.number(1), self.take(size))
        if size > (NAME if kind == "str" else ENTRIES) or (kind != "str" and not depth):
            raise Malformed(f"at byte {start} it holds a {kind} of {size}, longer or deeper than any of weights")
        if kind == "str":
            return _text(self.take(size), start)
        if kind == "array":
            return [self.value(depth - 1) for _ in range(size)]
        return {_text(self.value(depth - 1), start): self.value(depth - 1) for _ in range(size)}


SIZED = {
    **{0xC4 + i: ("bin", 2**i) for i in range(3)},
    **{0xC7 + i: ("ext", 2**i) for i in range(3)},
    **{0xCC + i: ("int", 2**i) for i in range(4)},
    **{0xD9 + i: ("str", 2**i) for i in range(3)},
    **{0xDC + i: ("array", 2 ** (i + 1)) for i in range(2)},
    **{0xDE + i: ("map", 2 ** (i + 1)) for i in range(2)},
}
FIXED = {0xD4 + i: 2**i for i in range(5)}  # extensions of 1 to 16 bytes


def _text(data: Any, start: int) -> str:
    if isinstance(data, str):
        return data
    try:
        return bytes(data).decode() if isinstance(data, memoryview) and len(data) <= NAME else _no_text(start)
    except UnicodeDecodeError:
        return _no_text(start)


def _no_text(start: int) -> str:
    raise Malformed(f"at byte {start} it holds no name where one is needed")


class Stream:
    """The tensors of a file by their paths, none of which is read before it is asked for.

    Args:
      path: a file as tux writes it.

    Raises:
      UserError: it cannot be read, or is no such file.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            with path.open("rb") as file:
                whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self._values = dict(_index(whole))
        except (OSError, ValueError) as error:  # mmap refuses an empty file with the latter
            raise UserError(f"{path} cannot be read: {error}") from error
        except Malformed as error:
            raise UserError(f"{path} is no stream of weights as LWM writes them: {error}") from error

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    def tensor(self, key: Key) -> np.ndarray:
        """Read one tensor, in place where it is in one piece.

        Raises:
          UserError: it is none, or not there.
        """
        if key not in self._values:
            raise UserError(f"{self._path} lacks {'/'.join(key)}: give model the numbers of these weights")
        try:
            return _tensor(Cursor(self._values[key]).value())
        except Malformed as error:
            raise UserError(f"{self._path}: {'/'.join(key)} is no tensor: {error}") from error


def _index(whole: memoryview) -> Iterator[tuple[Key, memoryview]]:
    cursor, found = Cursor(whole), 0
    while cursor.place < len(whole):
        start, found = cursor.place, found + 1
        if found > TENSORS:
            raise Malformed(f"it holds more than {TENSORS} tensors")
        entry = cursor.value()
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], list)):
            raise Malformed(f"at byte {start} it holds no pair of a path and a tensor")
        path, value = entry
        if not isinstance(value, memoryview) or not all(isinstance(name, str) for name in path):
            raise Malformed(f"at byte {start} it holds no pair of a path and a tensor")
        yield tuple(path), value


def _tensor(value: Any) -> np.ndarray:
    if isinstance(value, Extension):
        return _array(value)
    if not isinstance(value, dict) or value.get(CHUNKED) is not True:
        raise Malformed("it is neither an array nor an array in chunks")
    shape, chunks = _in_order(value.get("shape")), _in_order(value.get("chunks"))
    arrays = [_array(chunk) for chunk in chunks]
    if not arrays or len({array.dtype for array in arrays}) > 1:
        raise Malformed("its chunks are of several types, or none")
    return _shaped(np.concatenate([array.reshape(-1) for array in arrays]), shape)


def _in_order(numbered: Any) -> list[Any]:
    """List the values of {"0": …, "1": …}, as flax writes a tuple."""
    if not isinstance(numbered, dict) or set(numbered) != {str(i) for i in range(len(numbered))}:
        raise Malformed("its shape or its chunks are not numbered from 0 on")
    return [numbered[str(i)] for i in range(len(numbered))]


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, Extension) or value.code != NDARRAY:
        raise Malformed(f"it holds {type(value).__name__} {getattr(value, 'code', '')} where an array is needed")
    told = Cursor(value.data).value()
    if not isinstance(told, list) or len(told) != 3:
        raise Malformed("an array is a shape, a type and bytes")
    shape, name, data = told
    if not isinstance(name, str) or name not in DTYPES or not isinstance(data, memoryview):
        raise Malformed(f"its type is {name!r}; {', '.join(DTYPES)} can be read")
    if len(data) % DTYPES[name].itemsize:
        raise Malformed(f"{len(data)} bytes are no whole number of {name}")
    return _shaped(np.frombuffer(data, DTYPES[name]), shape)


def _shaped(array: np.ndarray, shape: Any) -> np.ndarray:
    plain = isinstance(shape, list) and all(type(size) is int for size in shape)
    count = 1
    for size in shape if plain else ():
        count *= size
    if not plain or count != array.size:
        raise Malformed(f"its shape is {shape}, but it has {array.size} numbers")
    return array.reshape(shape)


def write_stream(path: Path, tensors: Iterable[tuple[Key, np.ndarray]]) -> None:
    """Write tensors one after the other, byte for byte as tux does; the file appears when it is whole.

    Raises:
      UserError: a tensor is longer than the form allows.
    """
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        for key, tensor in tensors:
            _write(file, path, key, np.ascontiguousarray(tensor))
    partial.replace(path)


def _write(file: BinaryIO, path: Path, key: Key, tensor: np.ndarray) -> None:
    parts = list(_chunked(tensor) if tensor.nbytes > CHUNK else _extension(tensor))
    size = sum(len(part) for part in parts)
    if size > LONGEST:
        raise UserError(
            f"{path}: {'/'.join(key)} takes {size} bytes, and a value of this form {LONGEST} at the most: "
            "write a smaller type, or Hugging Face's files"
        )
    file.write(b"\x92" + _many(0x90, 0xDC, len(key)) + b"".join(map(_string, key)) + _sized(0xC4, size))
    for part in parts:
        file.write(part)


def _chunked(tensor: np.ndarray) -> Iterator[bytes | memoryview]:
    step = CHUNK // tensor.itemsize
    flat = tensor.reshape(-1)
    chunks = [flat[low : low + step] for low in range(0, flat.size, step)]
    yield b"\x83" + _string(CHUNKED) + b"\xc3" + _string("shape") + _many(0x80, 0xDE, tensor.ndim)
    yield b"".join(_string(str(i)) + _integer(size) for i, size in enumerate(tensor.shape))
    yield _string("chunks") + _many(0x80, 0xDE, len(chunks))
    for number, chunk in enumerate(chunks):
        yield _string(str(number))
        yield from _extension(chunk)


def _extension(tensor: np.ndarray) -> Iterator[bytes | memoryview]:
    """Write an array as flax's extension: its shape, its type and its bytes."""
    shape: Shape = tensor.shape
    data = tensor.reshape(-1).view(np.uint8).data
    head = b"\x93" + _many(0x90, 0xDC, len(shape)) + b"".join(map(_integer, shape))
    head += _string(tensor.dtype.name) + _sized(0xC4, len(data))
    size = len(head) + len(data)
    fixed = {size: code for code, size in FIXED.items()}.get(size)
    yield (bytes([fixed]) if fixed else _sized(0xC7, size)) + bytes([NDARRAY]) + head
    yield data


def _string(text: str) -> bytes:
    data = text.encode()
    return (bytes([0xA0 | len(data)]) if len(data) < 32 else _sized(0xD9, len(data))) + data


def _integer(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else _sized(0xCC, number)


def _many(short: int, long: int, count: int) -> bytes:
    """Begin an array or a map: in one byte, or in three."""
    return bytes([short | count]) if count < 16 else struct.pack(">BH", long, count)


def _sized(code: int, size: int) -> bytes:
    """Write a size, or a number, in the fewest of 1, 2, 4 and 8 bytes behind its code."""
    wide = next(i for i in range(4) if size < 256 ** (2**i))
    return bytes([code + wide]) + size.to_bytes(2**wide, "big")
