"""The loss on data that was never trained on, task by task, and of text and pictures apart."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from ...packing.batch import Batch, make_batch, read_table
from ...packing.dataset import Dataset
from ...packing.row import Segment
from ...packing.weights import Rule
from ..attention import Attention, attention
from ..config import Model
from ..loss import weighted_nll
from ..mesh import COLUMNS, ROWS, make_spread, specs
from ..model import ALONE, Params, apply, heads
from ..step import Parts

ALL, MODALITIES = "all", ("text", "vision")
ARRAYS = ("tokens", "targets", "positions", "segments", "weights")

Nll = Callable[[Batch], np.ndarray]


def measure(dataset: Dataset, nll: Nll, rule: Rule, rows: int = 1, limit: int | None = None) -> list[dict[str, Any]]:
    """Measure the loss of each task of a packed data set, and of all together.

    Args:
      nll: of every target of a batch that has a weight, in nats, `[B, L]`.
      rule: of the weights, for `loss`.
      rows: in a batch.
      limit: rows that are measured, the first ones; left out, all.

    Returns:
      of each task, and last of `all`: its examples; `loss` as training counts it; of its trained tokens, and of those
      of each modality, their number, mean nll and perplexity.
    """
    examples: dict[str, int] = {}
    sums: dict[str, np.ndarray] = {}
    for batch, segments in batches(dataset, rule, rows, limit):
        parts = tally(np.asarray(nll(batch), np.float64), batch, dataset.vocabulary.is_vision(batch.targets))
        for of_row, row in zip(segments, parts, strict=False):
            ends = np.cumsum([s.length for s in of_row])
            for segment, end in zip(of_row, ends, strict=True):
                examples[segment.task] = examples.get(segment.task, 0) + 1
                before = sums.get(segment.task, np.zeros((2, 4)))
                sums[segment.task] = before + row[:, :, end - segment.length : end].sum(axis=-1)
    told = [describe(task, examples[task], sums[task], rule) for task in sorted(examples)]
    return [*told, describe(ALL, sum(examples.values()), sum(sums.values(), np.zeros((2, 4))), rule)]


def batches(
    dataset: Dataset, rule: Rule, rows: int, limit: int | None = None
) -> Iterator[tuple[Batch, list[tuple[Segment, ...]]]]:
    """Yield the rows of a data set in order, `rows` at a time, and the segments of each.

    The last batch is filled up with a row that was there before and is not among the segments, so that all are alike.
    """
    count = min(dataset.rows, limit or dataset.rows)
    for low in range(0, count, rows):
        places = dataset.places(np.minimum(np.arange(low, low + rows), count - 1))
        table = read_table(places)
        batch = make_batch(places, dataset.length, dataset.vocabulary, rule, len(table.lengths), table)
        yield batch, [place.rows.row(place.number).segments for place in places[: count - low]]


def tally(nll: np.ndarray, batch: Batch, vision: np.ndarray) -> np.ndarray:
    """Lay out what is summed: 1, nll, w and w·nll of each trained target by its modality, `[B, 2, 4, L]`."""
    weights = batch.weights.astype(np.float64)
    nll = np.where(weights != 0, nll, 0)
    counted = np.stack([(weights != 0).astype(np.float64), nll, weights, weights * nll], axis=1)
    return np.stack([counted * ~vision[:, None], counted * vision[:, None]], axis=1)


def describe(task: str, examples: int, sums: np.ndarray, rule: Rule) -> dict[str, Any]:
    """Turn sums `[2, 4]`, see `tally`, into what is told of a task."""
    _, _, weights, weighted = sums.sum(axis=0).tolist()
    divisor = examples if rule.by_examples else weights
    each = {name: _means(own) for name, own in zip(MODALITIES, sums, strict=True) if own[0]}
    loss = weighted / divisor if divisor else 0.0
    return {"task": task, "examples": examples, "loss": loss, **_means(sums.sum(axis=0)), **each}


def _means(sums: np.ndarray) -> dict[str, Any]:
    count, nll = int(sums[0]), float(sums[1])
    mean = nll / count if count else None
    return {"tokens": count, "nll": mean, "perplexity": math.exp(min(mean, 700)) if mean is not None else None}


def make_nll(params: Params, model: Model, attend: Attention = attention, mesh: Mesh | None = None) -> Nll:
    """Compile the nll of every target of a batch that has a weight, in nats, fp32 `[B, L]`.

    Args:
      attend: a form of attention that works inside a `shard_map` over the mesh, where there is one.
      mesh: over which the parameters are spread; its dp x fsdp must divide the rows, its sp the length.
    """

    def compute(params: Params, part: Parts) -> Array:
        spread = make_spread(model.dtype) if mesh else ALONE
        hidden = apply(params, part["tokens"], part["positions"], part["segments"], model, attend, spread=spread)

        def summed(weights: Array) -> Array:
            return weighted_nll(hidden, heads(params, spread), part["targets"], weights)[0]

        return jax.grad(summed)(part["weights"])  # the sum is linear in the weights: its slopes are the nll

    if mesh:
        own = PartitionSpec(ROWS, COLUMNS)
        compute = jax.shard_map(compute, mesh=mesh, in_specs=(specs(params), own), out_specs=own, check_vma=False)
    compiled = jax.jit(compute)

    def nll(batch: Batch) -> np.ndarray:
        return np.asarray(compiled(params, {name: getattr(batch, name) for name in ARRAYS}))

    return nll
