"""Which examples share a sequence: bin packing near the optimum, planned on the histogram of lengths.

Items of one length are interchangeable, so a plan is a list of *patterns*: how many items of each class of length one
bin takes, and how many bins are filled that way. A million captioned images need two hundred. Classes count up from the
shortest; class 0 is "no item". Three ways to make patterns are tried in turn until one comes near the lower bound:

* first-fit-decreasing, exactly: all but optimal where many short items fill the rest;
* the same, but the last items of a bin may be exchanged for one item more, of even sizes: where all lengths are alike,
  the largest waste nearly an item a bin (captioned images in 1,024 tokens: fill 0.90 instead of 0.93);
* Gilmore and Gomory's column generation (Operations Research 9, 1961) for items of which few fit in a bin: a linear
  program shares out the scarce ones that go together.

`_assemble` turns patterns into item indices, and is the only function that touches single items.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Pattern = dict[int, int]  # class -> items of it in one bin
Patterns = list[tuple[Pattern, int]]  # and the number of bins filled so

NEAR = 0.002  # above the lower bound by no more than this, a plan is not worth improving
EXCHANGED = (1, 2, 3, 5, 12)  # items exchanged for one more; the longer the bin in items, the more pay
SLACK = 0.001  # of a bin: leaving less than this, nothing is exchanged
FEW = 5  # items of which fewer than this fit in a bin enter the linear program; shorter ones fill the rest
CLASSES = 64  # of lengths in the linear program, each rounded up to its longest
TABLE = 1 << 13  # rows of its table of patterns: with more, classes are merged


@dataclass(frozen=True)
class Plan:
    """Hold every item's place: bin `b` takes the items `order[offsets[b]:offsets[b + 1]]`.

    `order` is int64 `(items,)`, a permutation of the indices into the lengths; `offsets` is int64 `(bins + 1,)`.
    """

    order: Ints
    offsets: Ints

    @property
    def bins(self) -> int:
        return len(self.offsets) - 1


def plan(lengths: Ints, capacity: int) -> Plan:
    """Assign every item to one bin of at most `capacity`, in nearly as few bins as possible.

    `lengths` are integers of 1 to `capacity`, shape `(items,)`; anything else raises `UserError`. The plan depends on
    nothing but the arguments, and never has more bins than first-fit-decreasing.
    """
    lengths = _checked(lengths, capacity)
    by_length = _stable_argsort(lengths)
    return _assemble(_best_patterns(*_histogram(lengths[by_length]), capacity), by_length)


def lower_bound(lengths: Ints, capacity: int) -> int:
    """Return a number of bins that no plan can go below.

    Takes what `plan` takes. It is the larger of two bounds, each the best over all lengths: the number of items of at
    least that length over how many of those fit in a bin; and Martello and Toth's L2 (Discrete Applied Mathematics 28,
    1990), which is never below the total over the capacity.
    """
    return _bound(*_histogram(np.sort(_checked(lengths, capacity))), capacity)


def _checked(lengths: Ints, capacity: int) -> Ints:
    lengths = np.asarray(lengths)
    if capacity < 1:
        raise UserError(f"The capacity of a bin is {capacity}; it must be at least 1.")
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
        raise UserError(
            f"Lengths to pack must be integers in one dimension, not {lengths.dtype} of shape {lengths.shape}."
        )
    wrong = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if wrong.size:
        raise UserError(
            f"Length {lengths[wrong[0]]} of item {wrong[0]} cannot be packed: lengths must be from 1 to the capacity "
            f"{capacity}; cut or drop the item, or raise the capacity."
        )
    return lengths.astype(np.int64)


def _stable_argsort(values: Ints) -> Ints:
    """Sort non-negative integers by 16 bits at a time, for which NumPy's stable sort is a radix sort."""
    order = np.argsort(values.astype(np.uint16), kind="stable")
    for shift in range(16, int(values.max(initial=0)).bit_length(), 16):
        order = order[np.argsort((values >> shift).astype(np.uint16)[order], kind="stable")]
    return order


def _histogram(ascending: Ints) -> tuple[Ints, Ints]:
    first = np.flatnonzero(np.diff(ascending, prepend=0))
    return ascending[first], np.diff(np.append(first, len(ascending)))


def _ranges(starts: Ints, counts: Ints) -> Ints:
    """Concatenate `start, start + 1, …`, `count` numbers for each start."""
    return np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)


def _bound(sizes: Ints, counts: Ints, capacity: int) -> int:
    if not len(sizes):
        return 0
    items, total = (np.append(0, np.cumsum(a)) for a in (counts, counts * sizes))
    # How many items from class i upwards fit in a bin: the shortest ones, the last class of them only in part.
    end = np.searchsorted(total, total[:-1] + capacity, side="right") - 1
    part = (total[:-1] + capacity - total[end]) // np.append(sizes, capacity + 1)[end]
    part[end == len(sizes)] = 0
    by_number = -((items[:-1] - items[-1]) // (items[end] - items[:-1] + part))
    # L2 for each shortest length up to half a bin that counts, and for none: what is too long to go with it is alone,
    # and it goes into the room beside the others above half a bin, or into new bins. This is never below the total.
    half = int(np.searchsorted(sizes, capacity // 2, side="right"))
    alone = np.append(np.searchsorted(sizes, capacity - sizes[:half], side="right"), half)
    spare = (items[alone] - items[half]) * capacity - (total[alone] - total[half])
    rest = -((total[: half + 1] - total[half] + spare) // capacity)
    l2 = items[-1] - items[half] + np.maximum(rest, 0)
    return int(max(by_number.max(), l2.max()))


def _best_patterns(sizes: Ints, counts: Ints, capacity: int) -> Patterns:
    bound = _bound(sizes, counts, capacity)
    best: Patterns | None = None
    for patterns in _candidates(sizes, counts, capacity, bound):
        if best is None or _bins(patterns) < _bins(best):
            best = patterns
        if _bins(best) <= bound * (1 + NEAR):
            break
    return best or []


def _candidates(sizes: Ints, counts: Ints, capacity: int, bound: int) -> Iterator[Patterns]:
    first_fit = _greedy(_Stock(sizes, counts), capacity)
    yield first_fit
    most = max((sum(pattern.values()) for pattern, _ in first_fit), default=0)
    for exchanged in EXCHANGED:
        if exchanged < most:
            yield _greedy(_Stock(sizes, counts), capacity, exchanged)
    yield _cutting_stock(sizes, counts, capacity, bound)


def _bins(patterns: Patterns) -> int:
    return sum(times for _, times in patterns)


class _Stock:
    """Count the items left of each class, and find the largest that fits."""

    def __init__(self, sizes: Ints, counts: Ints) -> None:
        self.sizes: list[int] = [0, *sizes.tolist()]
        self.left: list[int] = [1, *counts.tolist()]  # "no item" never runs out
        self.below = list(range(-1, len(sizes)))  # a class under each, such that all between have run out

    def largest(self, room: int, under: int) -> int:
        """Return the largest class that fits `room`, is below class `under` and has items left; 0 if there is none."""
        left, below = self.left, self.below
        found = min(bisect_right(self.sizes, room), under) - 1
        while not left[found]:
            if not left[below[found]]:
                below[found] = below[below[found]]
            found = below[found]
        return found

    def take(self, pattern: Pattern, most: int) -> int:
        """Take the items of `pattern` as often as they are there, at most `most` times, and return how often."""
        left, times = self.left, most
        for c, n in pattern.items():
            times = min(times, left[c] // n)
        for c, n in pattern.items():
            left[c] -= n * times
        return times


def _greedy(stock: _Stock, capacity: int, exchanged: int = 0) -> Patterns:
    """Fill bins by the largest item that fits; without `exchanged`, this is first-fit-decreasing bin by bin."""
    patterns: Patterns = []
    most = sum(stock.left)
    while True:
        pattern, room = _fill(stock, {}, capacity)
        if not pattern:
            return patterns
        if exchanged and room > SLACK * capacity:
            pattern = _exchange(stock, pattern, room, exchanged)
        patterns.append((pattern, stock.take(pattern, most)))


def _fill(stock: _Stock, pattern: Pattern, room: int) -> tuple[Pattern, int]:
    """Add the largest items that fit until none does; return the pattern and the room still left."""
    pattern = dict(pattern)
    c = len(stock.left)
    while c := stock.largest(room, c):
        n = min(stock.left[c] - pattern.get(c, 0), room // stock.sizes[c])
        if n > 0:
            pattern[c] = pattern.get(c, 0) + n
            room -= n * stock.sizes[c]
    return pattern, room


def _exchange(stock: _Stock, pattern: Pattern, room: int, exchanged: int) -> Pattern:
    """Put up to `exchanged + 1` items of even sizes for the last `exchanged`, if that fills more of the bin."""
    if sum(pattern.values()) <= exchanged:
        return pattern
    kept = Counter([c for c, n in pattern.items() for _ in range(n)][:-exchanged])
    space = room + sum(stock.sizes[c] * (n - kept[c]) for c, n in pattern.items())
    for share in range(exchanged + 1, 0, -1):
        c = stock.largest(space // share, len(stock.left))
        while c and kept[c] == stock.left[c]:
            c = stock.largest(space // share, c)
        if c:
            kept[c] += 1
            space -= stock.sizes[c]
    return dict(kept) if space < room else pattern


def _cutting_stock(sizes: Ints, counts: Ints, capacity: int, bound: int) -> Patterns:
    """Solve the linear program for the long items, round down, and fill up and finish greedily."""
    short = int(np.searchsorted(sizes, capacity // FEW, side="right"))
    if short == len(sizes):
        return _greedy(_Stock(sizes, counts), capacity)
    ends, table = _merged_classes(sizes, short, capacity)
    merged = np.append(sizes[:short], sizes[ends])
    demand = np.diff(np.append(0, np.cumsum(counts))[np.append(short, ends + 1)])
    stock = _Stock(merged, np.append(counts[:short], demand))
    amounts, columns = _solve(sizes[ends], demand, capacity, table, bound)
    whole = np.floor(amounts + 1e-6)
    patterns: Patterns = []
    # First every pattern's whole part, then one more bin of each while its items last, the largest fractions first.
    for i, times in chain(enumerate(whole), ((i, 1) for i in np.argsort(whole - amounts, kind="stable"))):
        pattern = {c + short: n for c, n in Counter(columns[i]).items()}
        patterns += _filled(stock, pattern, capacity, int(times))
    return patterns + _greedy(stock, capacity)


def _filled(stock: _Stock, pattern: Pattern, capacity: int, times: int) -> Iterator[tuple[Pattern, int]]:
    """Use `pattern` up to `times` times, each time with what else fits."""
    room = capacity - sum(stock.sizes[c] * n for c, n in pattern.items())
    while times:
        full, _ = _fill(stock, pattern, room)
        used = stock.take(full, times)
        if not used:
            return
        yield full, used
        times -= used


Table = tuple[Ints, Ints]  # rows of classes, none above the one before it, and the largest class that fits beside a row


def _merged_classes(sizes: Ints, short: int, capacity: int) -> tuple[Ints, Table]:
    """Merge neighbouring lengths from class `short` on until the table is small; return each class's last index."""
    lengths = len(sizes) - short
    classes = min(CLASSES, lengths)
    while True:
        ends = short + np.arange(1, classes + 1) * lengths // classes - 1
        table = _table(np.append(0, sizes[ends]), capacity)
        if table is not None:
            return ends, table
        classes = classes * 3 // 4


def _table(sizes: Ints, capacity: int) -> Table | None:
    """List the ways to fill a bin but for its last item, or return None if there are too many."""
    rows, room, top = np.zeros((1, 0), np.int64), np.array([capacity]), np.array([len(sizes) - 1])
    for _ in range(capacity // int(sizes[1]) - 1):
        choices = np.minimum(top, np.searchsorted(sizes, room, side="right") - 1) + 1
        if choices.sum() > TABLE:
            return None
        top = _ranges(np.zeros_like(choices), choices)
        rows = np.column_stack((np.repeat(rows, choices, axis=0), top))
        room = np.repeat(room, choices) - sizes[top]
    return rows, np.searchsorted(sizes, room, side="right") - 1


def _solve(sizes: Ints, demand: Ints, capacity: int, table: Table, bound: int) -> tuple[Floats, list[list[int]]]:
    """Minimise the number of bins by the revised simplex method; return how often each column is used, and the columns.

    A column lists the classes of its items. No product of matrices is used, as BLAS rounds differently by processor.
    """
    fits = capacity // sizes
    columns = [[c + 1] * int(n) for c, n in enumerate(fits)]
    inverse, amounts = np.diag(1 / fits), demand / fits
    for _ in range(20 * len(sizes)):
        column, worth = _price(np.append(0, inverse.sum(axis=0)), table)
        if worth <= 1 + 1e-9 or amounts.sum() <= bound * (1 + 1e-9):
            break
        change = sum((inverse[:, c - 1] for c in column), np.zeros(len(sizes)))
        grows = change > 1e-9
        ratio = np.divide(amounts, change, out=np.full(len(sizes), np.inf), where=grows)
        leaving = int(ratio.argmin())
        row = inverse[leaving] / change[leaving]
        inverse -= change[:, None] * row
        amounts = np.maximum(amounts - ratio[leaving] * change, 0)
        inverse[leaving], amounts[leaving], columns[leaving] = row, ratio[leaving], column
    return amounts, columns


def _price(values: Floats, table: Table) -> tuple[list[int], float]:
    """Find the most valuable way to fill a bin, with `values[c]` for an item of class `c`."""
    rows, last = table
    worth = np.maximum.accumulate(values)[last]
    for column in rows.T:
        worth = worth + values[column]
    best = int(worth.argmax())
    chosen = [*rows[best].tolist(), int(values[: last[best] + 1].argmax())]
    return [c for c in chosen if c], float(worth[best])


def _assemble(patterns: Patterns, by_length: Ints) -> Plan:
    """Hand out the items, sorted by length, to the bins that the patterns make.

    Patterns use up every class exactly, so walking through all their entries class by class walks through the sorted
    items from first to last: each entry takes the next `number` items for each of its bins.
    """
    times = np.array([t for _, t in patterns], np.int64)
    entries = np.array([len(pattern) for pattern, _ in patterns], np.int64)
    classes = np.fromiter(chain.from_iterable(pattern for pattern, _ in patterns), np.int64)
    number = np.fromiter(chain.from_iterable(pattern.values() for pattern, _ in patterns), np.int64)
    by_class = np.argsort(classes, kind="stable")
    first_bin, times = (np.repeat(a, entries)[by_class] for a in (np.cumsum(times) - times, times))
    bins = np.repeat(_ranges(first_bin, times), np.repeat(number[by_class], times))
    offsets = np.append(0, np.cumsum(np.bincount(bins)))
    return Plan(by_length[_stable_argsort(bins)], offsets)
