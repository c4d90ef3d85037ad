"""Which device gets which tokens of a step: decided on the host, from the lengths of its segments alone.

Rows share one permutation of their columns. Contiguous shards keep short documents on one device, and the ring stops
after a hop or two; tiles dealt in snake order give every device an equal part of a long document's work. Which of the
two is sooner done depends on the documents, so it is predicted, from the very pairs of tiles that the block will visit.
"""

from dataclasses import dataclass

import numpy as np

from ...errors import UserError
from ...packing.batch import Table

# A hop lasts as long as some pairs of tiles for each tile that travels. On an H200 (600 TFLOP/s, 450 GB/s), bf16 keys
# and fp32 gradients, both passes: 16 bytes a value against 14·tile floating-point operations a pair, times the query
# heads to a key head; with tiles of 128 and 4 query heads, that is 3.
TRAVEL = 3


@dataclass(frozen=True, eq=False)
class Layout:
    """Say where the tiles of every row lie.

    Attributes:
      name: contiguous or snake.
      permutation: column i of the arranged rows is column `permutation[i]`; int64 `[L]`, devices one after another.
      tiles: pairs of tiles that each device works on, int64 `[B, N (hop), N (device)]`.
    """

    name: str
    permutation: np.ndarray
    tiles: np.ndarray

    @property
    def inverse(self) -> np.ndarray:
        """Where each column went: the permutation that undoes this one."""
        return np.argsort(self.permutation)


def plan_layout(table: Table, length: int, ring: int, tile: int, parts: int = 1) -> Layout:
    """Choose the layout whose longest chain of work is predicted to be the shortest; contiguous where they are equal.

    Args:
      table: segments of the step's rows.
      length: of a row, a multiple of `ring * tile`.
      ring: devices that share a row.
      tile: of the block.
      parts: equal runs of consecutive rows that go round apart: data-parallel groups times accumulation.

    Raises:
      UserError: if the rows do not divide into tiles for every device.
    """
    if length % (ring * tile):
        raise UserError(
            f"rows of {length} tokens do not divide among {ring} devices in tiles of {tile}: "
            f"choose a length that is a multiple of {ring * tile}, or fewer devices on sp"
        )
    orders = {"contiguous": np.arange(length // tile), "snake": snake(length // tile, ring)}
    layouts = [
        Layout(name, (order[:, None] * tile + np.arange(tile)).ravel(), count_tiles(table, length, tile, order, ring))
        for name, order in (orders if ring > 1 else {"contiguous": orders["contiguous"]}).items()
    ]
    return min(layouts, key=lambda layout: critical_path(layout.tiles, length // tile // ring, parts))


def snake(tiles: int, ring: int) -> np.ndarray:
    """Deal tiles to devices to and fro; return them device after device, each one's in ascending order."""
    turn, place = np.divmod(np.arange(tiles), ring)
    return np.argsort(np.where(turn % 2, ring - 1 - place, place), kind="stable")


def count_tiles(table: Table, length: int, tile: int, order: np.ndarray, ring: int) -> np.ndarray:
    """Count the pairs of tiles that the block visits, int64 `[B, N (hop), N (device)]`.

    A tile sees itself and those before it, back to where its first token's segment begins.
    """
    tiles = np.arange(len(order))
    first = _first_seen(table, length, tile)
    device = np.empty_like(order)
    device[order] = np.repeat(np.arange(ring), len(order) // ring)
    held = np.zeros((len(order) + 1, ring), np.int64)  # of the tiles before, how many each device holds
    np.cumsum(device[:, None] == np.arange(ring), axis=0, out=held[1:])
    pairs = held[tiles + 1] - held[first]  # [B, tiles of queries, devices of keys]
    pairs = pairs[:, order].reshape(len(first), ring, -1, ring).sum(2)
    me = np.arange(ring)
    return pairs[:, me, (me - me[:, None]) % ring]


def critical_path(tiles: np.ndarray, held: int, parts: int) -> int:
    """Add up what each hop takes: its busiest device's pairs of tiles, or the travel of the next keys if that is more.

    Args:
      tiles: see `count_tiles`.
      held: tiles of a row on one device.
      parts: see `plan_layout`.
    """
    busiest = tiles.reshape(parts, -1, *tiles.shape[1:]).sum(1).max(-1)
    hops = np.arange(busiest.shape[1])
    last = np.max(np.where(busiest > 0, hops, 0), axis=-1, keepdims=True)
    travel = TRAVEL * held * (len(tiles) // parts)
    return int(np.where(hops < last, np.maximum(busiest, travel), busiest).sum())


def _first_seen(table: Table, length: int, tile: int) -> np.ndarray:
    """Of each tile of each row, the first tile that it sees, int64 `[B, tiles]`; the next one where it is padding."""
    ends = np.cumsum(table.lengths, dtype=np.int64)
    counted = np.concatenate([[0], ends])
    last = np.cumsum(table.counts)
    before = counted[last - table.counts][:, None]  # tokens of the rows before
    columns = np.arange(0, length, tile)
    real = columns < counted[last][:, None] - before
    segment = np.searchsorted(ends, np.where(real, before + columns, 0), side="right")
    begins = counted[np.minimum(segment, len(ends) - 1)] - before
    return np.where(real, begins // tile, columns // tile + 1)
