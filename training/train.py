"""A training run, from top to bottom."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

import jax
import numpy as np

from ..errors import UserError
from ..packing.batch import Batch
from ..packing.weights import Rule
from ..tokenizers.vocabulary import Vocabulary
from . import curve, metrics, model
from .attention import Attention, attention
from .checkpoint import Checkpoints, Identity
from .config import Config
from .loss import divisor
from .step import begin, cut, make_evaluation, make_step


class Dataset(Protocol):
    """What a run must know of its packed data set."""

    length: int
    vocabulary: Vocabulary
    root: str
    weights: Rule


class Loader(Protocol):
    """What a run must know of its loader; `batches` yields `(t, batch of step t)` from `start` on, without end."""

    dataset: Dataset

    def batches(self, start: int) -> Iterator[tuple[int, Batch]]: ...


class Diverged(UserError):
    """Say at which step the loss ceased to be a number."""


@dataclass(frozen=True)
class Summary:
    """Tell how a run went.

    Attributes:
      steps, parameters: done and trained.
      first_loss, last_loss: means over the first and last tenth of the steps, in nats.
      held_out_loss: the last one measured, or None.
      tokens_per_second: median over the steps, padding left out.
      metrics, curve: files.
    """

    steps: int
    parameters: int
    first_loss: float
    last_loss: float
    held_out_loss: float | None
    tokens_per_second: float
    metrics: Path
    curve: Path


def train(
    config: Config,
    loader: Loader | None = None,
    held_out: Loader | None = None,
    report: Callable[[metrics.Line], None] = lambda line: None,
    attend: Attention = attention,
) -> Summary:
    """Train until `config.steps` are done, going on from the latest checkpoint in `config.out`.

    Args:
      loader, held_out: what to learn from and to measure on; left out, opened from the config.
      report: is called with each new line of the metrics.
      attend: the form of attention.

    Raises:
      UserError: data, model and checkpoint do not belong together.
      Diverged: the loss or gradient is not finite; the state before that step is saved.
    """
    loader = loader or open_loader(config, config.data.path)
    if config.evaluation and held_out is None:
        held_out = open_loader(config, config.evaluation.path)
    check(config, loader, held_out)
    rule = config.data.weights or loader.dataset.weights
    out = make_out(config)
    diary = out / "metrics.jsonl"
    step = make_step(config, rule, attend)
    measure = make_held_out(config, held_out, rule, attend)

    def tell(line: metrics.Line) -> None:
        metrics.append(diary, line)
        report(line)

    with closing(Checkpoints(out / "checkpoints", config.checkpoint.keep, identify(config, loader))) as saved:
        state = saved.restore(jax.eval_shape(lambda: begin(config, loader.dataset.vocabulary)))
        state = state or begin(config, loader.dataset.vocabulary)
        metrics.rewind(diary, int(state.step))
        clock = time.perf_counter()
        with closing(loader.batches(int(state.step))) as batches:
            for t, batch in islice(batches, config.steps - int(state.step)):
                state, told = step(state, cut(batch, config.accumulation), np.int32(batch.examples))
                loss, norm, lr = map(float, told)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    saved.save(state)
                    raise Diverged(diverged(config, t, loss, norm))
                clock, elapsed = time.perf_counter(), time.perf_counter() - clock
                tokens = int(np.count_nonzero(batch.segments))
                tell(
                    dict(
                        step=t + 1,
                        loss=loss,
                        tokens=tokens,
                        tokens_per_second=tokens / elapsed,
                        lr=lr,
                        gradient_norm=norm,
                    )
                )
                last = t + 1 == config.steps
                if config.evaluation and (last or (t + 1) % config.evaluation.every == 0):
                    tell({"step": t + 1, "held_out_loss": measure(state.params)})
                if last or (t + 1) % config.checkpoint.every == 0:
                    saved.save(state)
    curve.draw(diary, out / "curve.png")
    return summarise(config, loader, out)
