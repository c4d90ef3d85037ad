"""Read a Flax parameter tree from a pickle that may come from anyone.

A pickle is a program that calls what it names. Here every name that it may use stands for a small class or
function of this file, which checks what it is given; any other name is refused before anything is done with
it, so neither NumPy nor JAX takes part until bytes become an array.
"""

import pickle
import pickletools
from collections.abc import Callable, Iterator
from math import prod
from typing import IO, Any, ClassVar, cast

import numpy as np

from ..errors import UserError

LARGEST = 1 << 30  # bytes; LWM's file has 585 MB
MOST = 1_000_000  # opcodes; LWM's file needs some ten thousand
DEEPEST, MOST_ARRAYS = 8, 10_000  # of a tree; LWM's has five levels and 277 arrays
MOST_SIDES = 8  # of an array; LWM's have four
FLOATS = ("f2", "f4", "f8")
DAMAGED = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)


def read_arrays(file: IO[bytes], name: str) -> dict[str, np.ndarray]:
    """Read nested dicts of floating-point arrays as `{"a/b/c": array}`, calling nothing that the pickle names.

    Raises UserError, in which the file is called `name`, where it names anything but arrays and containers, is
    damaged, or larger or deeper than a tree of parameters.
    """
    try:
        _weigh(file)
        file.seek(0)
        return dict(_leaves(_Reader(file).load()))
    except UserError as error:
        raise UserError(f"{name} cannot be read safely: {error}") from None
    except (*DAMAGED, MemoryError) as error:
        raise UserError(f"{name} is no pickle of parameters, or a damaged one ({error}): fetch it again.") from error


def _weigh(file: IO[bytes]) -> None:
    """Refuse what would fill the memory."""
    if file.seek(0, 2) > LARGEST:
        raise UserError(f"it is larger than {LARGEST:,} bytes, which no VQGAN of LWM's is.")
    file.seek(0)
    for count, _ in enumerate(pickletools.genops(file)):
        if count > MOST:
            raise UserError(f"it holds more than {MOST:,} steps, which no VQGAN of LWM's does.")


class _Tree(dict[str, Any]):
    """A dict that looks at a key before it hashes it: a tuple of tuples of the same tuples takes for ever."""

    __slots__ = ()

    def __init__(self, items: Any = ()):
        super().__init__()
        for key, part in items.items() if isinstance(items, dict) else items:
            self[key] = part

    def __setitem__(self, key: Any, part: Any) -> None:
        if not isinstance(key, str):
            raise UserError(f"it holds a key of type {type(key).__name__}; parameters are named by strings.")
        super().__setitem__(key, part)


class _Reader(pickle._Unpickler):
    """Python's own reader, the one that is written in Python: it can be told to make trees for dicts, and no sets."""

    dispatch: ClassVar[dict[int, Any]] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.DICT)
    }
    dispatch[pickle.EMPTY_DICT[0]] = lambda reader: reader.append(_Tree())

    def find_class(self, module: str, name: str) -> "_Admitted":
        if (module, name) not in ADMITTED:
            raise UserError(
                f"it asks for {module}.{name}, which is no array and no container; do not load it by other means."
            )
        return _Admitted(ADMITTED[module, name])


class _Admitted:
    """A name that the pickle may call and may do nothing else with."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]):
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UserError("it changes what it may only call.")


class _Type:
    """A NumPy dtype, of which only floating-point ones are admitted."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any):
        if code not in FLOATS:
            found = repr(code[:9]) if isinstance(code, str) else type(code).__name__
            raise UserError(f"it holds an array of type {found}; weights are one of {', '.join(FLOATS)}.")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if (order := state[1]) not in ("<", ">"):
            raise ValueError("an array's bytes are in no known order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """A NumPy array: nothing until its state comes, then a view of the pickle's bytes."""

    __slots__ = ("value",)

    def __init__(self, *_: Any):
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        self.value = _array(content, kind, shape, "F" if fortran else "C")


def _array(content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    if not (isinstance(kind, _Type) and isinstance(content, bytes | bytearray) and isinstance(shape, tuple)):
        raise UserError("it holds an array without type, shape or bytes.")
    sides = [side for side in shape[:MOST_SIDES] if type(side) is int and 0 <= side <= LARGEST]
    if len(sides) != len(shape) or prod(sides) * kind.dtype.itemsize != len(content) or order not in ("C", "F"):
        found = sides if len(sides) == len(shape) else "that is none"
        raise UserError(f"it holds an array of shape {found} in {len(content):,} bytes.")
    return np.frombuffer(content, kind.dtype).reshape(shape, order=order)


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """Stand in for what NumPy calls in pickles of protocol 5."""
    made = _Array()
    made.value = _array(content, kind, shape, order)
    return made


def _from_jax(make: Any, arguments: Any, state: Any, *_: Any) -> _Array:
    """Stand in for what JAX calls: a NumPy array and where it was."""
    made = make(*arguments)
    made.__setstate__(state)
    return cast(_Array, made)


def _not_called(*_: Any) -> None:
    raise UserError("it calls numpy.ndarray, which it may only name.")


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Tree,
    ("flax.core.frozen_dict", "FrozenDict"): _Tree,
    ("numpy", "ndarray"): _not_called,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("jax._src.array", "_reconstruct_array"): _from_jax,
}


def _leaves(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a tree and their paths; a tree may refer to one of its parts over and over."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    count = 0
    while waiting:
        path, node = waiting.pop()
        count += 1
        if len(path) > DEEPEST or max(count, len(waiting)) > MOST_ARRAYS:
            raise UserError(f"it is deeper than {DEEPEST} levels or has more than {MOST_ARRAYS:,} parts.")
        if isinstance(node, _Tree):
            waiting += [((*path, key), part) for key, part in node.items()]
        elif isinstance(node, _Array) and node.value is not None:
            yield "/".join(path), node.value
        else:
            raise UserError(f"it holds a {type(node).__name__.strip('_')} at {'/'.join(path)!r} instead of an array.")
