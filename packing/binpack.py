"""Which examples share a sequence: bin packing near the optimum, planned on the histogram of lengths.

Items of one length are interchangeable, so a plan is a list of *patterns* (how many items of each class of length
one bin takes, and how many bins are filled that way), and a million items need no more patterns than they have lengths.
Two planners make patterns, each cheap where it works:

* `_first_fit` is exactly first-fit-decreasing; short items make it all but optimal.
* `_cutting_stock` is Gilmore and Gomory's column generation (Operations Research 9, 1961). It is what helps where a bin
  holds few items and nothing short fills the rest, as with captioned images in 1,024 tokens.

`_assemble` turns patterns into item indices. It is the only function that touches single items.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NEAR = 0.001  # a plan this close to the lower bound is not worth improving
FEW = 6  # items of which fewer than this fit in a bin are planned by column generation, shorter ones fill the rest
CLASSES = 128  # lengths told apart there; the rest are rounded up to the next
TABLE = 1 << 14  # rows of its table of patterns, which bounds its time


@dataclass(frozen=True)
class Plan:
    """Hold every item's place: bin `b` is `order[offsets[b]:offsets[b + 1]]`, indices into the lengths planned for."""

    order: Ints
    offsets: Ints

    @property
    def bins(self) -> int:
        return len(self.offsets) - 1


def plan(lengths: Ints, capacity: int) -> Plan:
    """Assign every item to one bin of at most `capacity`, in nearly as few bins as possible.

    `lengths` are integers of 1 to `capacity`, shape `(items,)`; anything else raises `UserError`. The plan depends on
    nothing but the arguments, on any machine, and never has more bins than first-fit-decreasing.
    """
    lengths = _checked(lengths, capacity)
    by_length = _stable_argsort(lengths)
    sizes, counts = _histogram(lengths[by_length])
    patterns = _first_fit(_Stock(sizes, counts), capacity)
    if _bins(patterns) > _bound(sizes, counts, capacity) * (1 + NEAR):
        other = _cutting_stock(sizes, counts, capacity)
    return _assemble(patterns, by_length)
