"""Layouts of the ring, and what they are predicted to cost, against counting pair by pair."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.packing.batch import Table
from worldloom.training.ring.layout import count_tiles, critical_path, plan_layout, snake
from worldloom.training.ring.tiles import Bounds, Where, bounds, by_key, by_query

TILE = 4


def table(rows):
    lengths = np.array([n for row in rows for n in row], np.int32)
    return Table(np.array([len(row) for row in rows]), lengths, lengths, lengths)


def where(rows, length):
    positions, segments = np.zeros((2, len(rows), length), np.int32)
    for row, documents in enumerate(rows):
        at = 0
        for number, n in enumerate(documents, 1):
            positions[row, at : at + n], segments[row, at : at + n] = np.arange(n), number
            at += n
    return Where(positions, segments)


def visited(rows, length, permutation, ring):
    """Count what the block is told to visit, hop by hop and device by device, forward and backward."""
    whole = where(rows, length)
    return np.asarray(_visited(whole.positions[:, permutation], whole.segments[:, permutation], ring))


@partial(jax.jit, static_argnums=2)
def _visited(positions, segments, ring):
    shards = (jnp.stack(jnp.split(x, ring, 1)) for x in (positions, segments))
    edges = jax.vmap(partial(bounds, tile=TILE))(Where(*shards))

    def pairs(ranges, device, hop):
        lo, hi = ranges(*(Bounds(*(x[i] for x in edges)) for i in (device, (device - hop) % ring)))
        return (hi - lo).sum(-1)

    ways = [jax.vmap(jax.vmap(partial(pairs, ranges), (0, None)), (None, 0)) for ranges in (by_query, by_key)]
    return jnp.stack([jnp.moveaxis(way(jnp.arange(ring), jnp.arange(ring)), 2, 0) for way in ways])


def visible_tiles(rows, length, permutation, ring):
    """Look at every pair of tokens, and count pairs of tiles that have a visible one."""
    positions, segments = (x[:, permutation] for x in where(rows, length))
    seen = (segments[:, :, None] == segments[:, None]) & (segments[:, :, None] > 0)
    seen &= positions[:, :, None] >= positions[:, None]
    tiles = length // TILE
    seen = seen.reshape(len(rows), tiles, TILE, tiles, TILE).any((2, 4))
    counts, held = np.zeros((len(rows), ring, ring), int), tiles // ring
    for row, query, key in np.argwhere(seen):
        counts[row, (query // held - key // held) % ring, query // held] += 1
    return counts


ROW = st.lists(st.integers(1, 30), max_size=8).filter(lambda row: sum(row) <= 48)


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=2, max_size=2), st.sampled_from([1, 3, 4]), st.booleans())
def test_prediction_equals_what_is_visited_and_what_is_visible(rows, ring, dealt):
    tiles = 48 // TILE
    order = snake(tiles, ring) if dealt else np.arange(tiles)
    permutation = (order[:, None] * TILE + np.arange(TILE)).ravel()
    predicted = count_tiles(table(rows), 48, TILE, order, ring)
    np.testing.assert_array_equal(predicted, visible_tiles(rows, 48, permutation, ring))
    for counted in visited(rows, 48, permutation, ring):
        np.testing.assert_array_equal(predicted, counted)


def test_snake_deals_to_and_fro():
    assert snake(8, 4).tolist() == [0, 7, 1, 6, 2, 5, 3, 4]
    assert snake(9, 3).tolist() == [0, 5, 6, 1, 4, 7, 2, 3, 8]


def test_long_documents_are_dealt_and_short_ones_stay_where_they_are():
    length = 1 << 16
    long, short = table([[length]]), table([[512] * 128])
    assert plan_layout(long, length, 8, 128).name == "snake"
    assert plan_layout(short, length, 8, 128).name == "contiguous"
    assert plan_layout(short, length, 8, 128).tiles[0, 1:].sum() == 0
    assert plan_layout(long, length, 1, 128).name == "contiguous"


def test_every_device_has_an_equal_part_of_a_million_tokens():
    """Lock-step utilisation with 16 devices; contiguous shards keep them busy for half of the time."""
    plan = plan_layout(table([[1 << 20]]), 1 << 20, 16, 512)
    assert plan.tiles.sum() / (16 * plan.tiles[0].max(-1).sum()) > 0.99
    contiguous = count_tiles(table([[1 << 20]]), 1 << 20, 512, np.arange(2048), 16)
    assert round(contiguous.sum() / (16 * contiguous[0].max(-1).sum()), 2) == 0.52


def test_permutation_and_its_inverse():
    plan = plan_layout(table([[64]]), 64, 2, TILE)
    np.testing.assert_array_equal(plan.permutation[plan.inverse], np.arange(64))
    assert sorted(plan.permutation.tolist()) == list(range(64))


def test_critical_path_waits_for_the_busiest_device_or_for_the_keys():
    tiles = np.array([[[5, 1], [0, 2]], [[1, 9], [0, 0]]])
    assert critical_path(tiles, 1, 1) == max(5 + 1, 1 + 9, 3 * 1 * 2) + 2
    assert critical_path(tiles, 1, 2) == (5 + 2) + 9
    assert critical_path(tiles, 4, 2) == (3 * 4 + 2) + 9, "nothing travels in the second part, which needs one hop"


def test_rows_that_do_not_divide_are_refused_with_the_remedy():
    with pytest.raises(
        UserError, match=r"rows of 100 tokens do not divide among 2 devices in tiles of 4.*multiple of 8"
    ):
        plan_layout(table([[100]]), 100, 2, TILE)
