"""The reader of pickles: arrays as NumPy's own reader gives them, and nothing that a stranger asks for."""

import collections
import io
import os
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.tokenizers.pickled_arrays import read_arrays

GOOD = {
    "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.float32([1, -2])},
    "b": collections.OrderedDict(c=np.asfortranarray(np.arange(12.0).reshape(3, 4)), d=np.ones((2, 0), np.float16)),
    "e": {"f": np.arange(3, dtype=">f4"), "g": np.float64([[7]])[::-1]},
}
FLAT = {f"{top}/{name}": array for top, part in GOOD.items() for name, array in part.items()}


def read(content: bytes) -> dict[str, np.ndarray]:
    return read_arrays(io.BytesIO(content), "weights")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_are_what_was_written(protocol: int) -> None:
    found = read(pickle.dumps(GOOD, protocol))
    assert found.keys() == FLAT.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, FLAT[name], strict=False)
        assert array.dtype == FLAT[name].dtype and array.shape == FLAT[name].shape


class Asks:
    """An object whose pickle calls what it is given."""

    def __init__(self, call: Any, *arguments: Any, state: Any = None):
        self.reduced = (call, arguments, state) if state is not None else (call, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize(
    ("asks", "named"),
    [
        (Asks(os.system, "touch {path}"), "posix.system"),
        (Asks(eval, "1"), "builtins.eval"),
        (Asks(getattr, 1, "real"), "builtins.getattr"),
        (Asks(np.load, "x"), "numpy.load"),
        (Asks(np.lib.format.open_memmap, "x"), "numpy.*open_memmap"),
        (np.float32(3), "multiarray.scalar"),
        (Asks(io.BytesIO, b""), "io.BytesIO"),
        (collections.Counter(), "collections.Counter"),
        (np.ma.masked_array([1.0]), "numpy.ma"),
        (object(), "copyreg|builtins.object"),
    ],
)
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_anything_else_is_refused_by_name(asks: Any, named: str, protocol: int, tmp_path: Any) -> None:
    if isinstance(asks, Asks) and asks.reduced[0] is os.system:
        asks = Asks(os.system, f"touch {tmp_path}/called")
    for tree in (asks, {"a": asks}, {"a": np.ones(2), "b": {"c": asks}}):
        with pytest.raises(UserError, match=f"cannot be read safely: it asks for .*({named})"):
            read(pickle.dumps(tree, protocol))
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    "array", [np.array(["a", None], object), np.zeros(2, np.int32), np.zeros(2, "f4,f4"), np.zeros(2, "U9")]
)
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_of_other_types_are_refused(array: np.ndarray, protocol: int) -> None:
    with pytest.raises(UserError, match="array of type"):
        read(pickle.dumps({"a": array}, protocol))


def lists_in_itself() -> dict[str, Any]:
    tree: dict[str, Any] = {"a": np.ones(2)}
    tree["b"] = tree
    return tree


def doubling(depth: int, fan: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"a": np.ones(2)}
    for _ in range(depth):
        tree = {str(n): tree for n in range(fan)}
    return tree


@pytest.mark.parametrize(
    "tree", [lists_in_itself(), doubling(7, 100), doubling(20, 1), doubling(1, 20_000), doubling(6, 3000)]
)
def test_endless_trees_are_refused(tree: Any) -> None:
    with pytest.raises(UserError, match="deeper than"):
        read(pickle.dumps(tree))


def reconstruct(rest: bytes) -> bytes:
    """Begin a pickle that has made an array without a state, and go on."""
    return b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R" + rest


FLOAT = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"PK\x03\x04", "damaged"),
        (pickle.dumps(GOOD)[:-20], "damaged"),
        (pickle.dumps([np.ones(3)]), "holds a list"),
        (pickle.dumps(b"text"), "holds a bytes"),
        (b"\x80\x04N" + b"r" + struct.pack("<I", 0x7FFFFFFF) + b".", "holds a NoneType"),  # a slot, not as many
        (b"\x80\x04" + b"N0" * 600_000 + b"N.", "more than 1,000,000"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".", "damaged"),  # a string of an exabyte
        (b"\x80\x04Pany\n.", "damaged"),  # a persistent id
        (b"\x80\x04\x82\x01.", "damaged"),  # a registered extension
        (b"\x80\x03cnumpy\nndarray\n)\x81.", "damaged"),  # ndarray.__new__
        (b"\x80\x03cnumpy\nndarray\n)R.", "calls numpy.ndarray"),
        (b"\x80\x03cnumpy\ndtype\n}X\x05\x00\x00\x00_makeNsb.", "changes what it may only call"),
        (b"\x80\x03cnumpy\nndarray.fill\n.", "numpy.ndarray.fill"),
        (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", "numpy.ndarray.__init__"),
        (b"\x80\x03(cos\nsystem\nX\x01\x00\x00\x00ao.", "os.system"),
        (b"\x80\x03(X\x01\x00\x00\x00aios\nsystem\n.", "os.system"),
        (reconstruct(b"."), "instead of an array"),
        (reconstruct(b"(K\x01J\xff\xff\xff\x7f\x85" + FLOAT + b"\x89C\x04aaaatb."), r"shape that is none in 4 bytes"),
        (reconstruct(b"(K\x01J\xff\xff\xff\xff\x85" + FLOAT + b"\x89C\x04aaaatb."), r"shape that is none in 4 bytes"),
        (reconstruct(b"(K\x01K\x02\x85" + FLOAT + b"\x89C\x04aaaatb."), r"shape \[2\] in 4 bytes"),
        (reconstruct(b"(K\x01(" + b"K\x01" * 9 + b"t" + FLOAT + b"\x89C\x04aaaatb."), r"that is none in 4 bytes"),
        (reconstruct(b"(K\x01K\x01\x85" + FLOAT + b"\x89]tb."), "without type, shape or bytes"),
        (reconstruct(b"(K\x01K\x01\x85cnumpy\ndtype\n\x89C\x04aaaatb."), "without type, shape or bytes"),
        (reconstruct(b"}X\x05\x00\x00\x00valueNsb."), "damaged"),
    ],
)  # fmt: skip
def test_what_is_no_tree_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(content)


PAIRS = b"\x80\x04)" + b"2\x86" * 99  # a tuple of twice a tuple of twice …: as text or hashed 2^99 steps
NAMED = b"X\x01\x00\x00\x00a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"}" + PAIRS + b"}s.", "a key of type tuple"),
        (b"}(" + PAIRS + b"}u.", "a key of type tuple"),
        (b"(" + PAIRS + b"}d.", "damaged"),
        (b"\x8f(" + PAIRS + b"\x90.", "damaged"),
        (b"(" + PAIRS + b"\x91.", "damaged"),
        (b"ccollections\nOrderedDict\n](" + PAIRS + b"N\x86e\x85R.", "a key of type tuple"),
        (b"ccollections\nOrderedDict\n)R" + PAIRS + b"Ns.", "a key of type tuple"),
        (b"cflax.core.frozen_dict\nFrozenDict\n}" + NAMED + PAIRS + b"s\x85R.", "holds a tuple at 'a'"),
        (b"}" + NAMED + PAIRS + b"s.", "holds a tuple at 'a'"),
        (b"cnumpy\ndtype\n" + PAIRS + b"\x89\x88\x87R.", "array of type tuple"),
        (FLOAT + b"(K\x03" + PAIRS + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.", "no known order"),
        (reconstruct(b"(K\x01" + PAIRS + FLOAT + b"\x89C\x04aaaatb."), "shape that is none"),
        (reconstruct(b"(K\x01K\x01\x85" + PAIRS + b"\x89C\x04aaaatb."), "without type, shape or bytes"),
        (b"}K\x01}s.", "a key of type int"),
    ],
)
def test_keys_are_looked_at_before_they_are_hashed(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(b"\x80\x04" + content.replace(b"\x80\x04", b""))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_a_users_error_or_other_numbers(data: st.DataObject) -> None:
    """Bytes changed anywhere in a good file, or after its header, raise nothing else and call nothing."""
    content = bytearray(pickle.dumps(GOOD, data.draw(st.sampled_from([3, 4, 5]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(content))
    except UserError:
        return
    assert all(isinstance(array, np.ndarray) and array.dtype.kind == "f" for array in found.values())
