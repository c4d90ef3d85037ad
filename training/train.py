"""A training run, from top to bottom."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import RunFailed, UserError
from ..packing.batch import Batch
from ..packing.weights import Rule
from ..tokenizers.vocabulary import Vocabulary
from . import curve, metrics, model
from .attention import Attention, attention
from .checkpoint import Checkpoints, Identity
from .config import Config, Data, Mixture
from .loss import divisor
from .model import Params
from .step import State, begin, cut, make_evaluation, make_step

METRICS, CURVE = "metrics.jsonl", "curve.png"


class Dataset(Protocol):
    """What a run must know of its packed data set, or of the mixture of some."""

    @property
    def length(self) -> int: ...
    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def root(self) -> str: ...


class Loader(Protocol):
    """What a run must know of its loader.

    `batches` yields `(t, batch of step t)` from `start` up to `stop`; `sets` numbers the data set of each row of step
    `t`, int64 `[B]`, in the order of a mixture.
    """

    @property
    def dataset(self) -> Dataset: ...
    @property
    def rule(self) -> Rule: ...
    def batches(self, start: int, stop: int) -> Iterator[tuple[int, Batch]]: ...
    def sets(self, t: int) -> np.ndarray: ...


class Diverged(RunFailed):
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
      UserError: data, model, checkpoint or directory do not go together.
      Diverged: loss or gradient is not finite; the state before that step is saved.
    """
    loader = loader or open_loader(config, config.source)
    if config.evaluation and held_out is None:
        held_out = open_loader(config, Data(path=config.evaluation.path, weights=loader.rule).alone)
    check(config, loader, held_out)
    out = make_out(config)
    vocabulary, diary = loader.dataset.vocabulary, out / METRICS
    measure = make_measure(config, held_out, attend)

    def tell(line: metrics.Line) -> None:
        metrics.append(diary, line)
        report(line)

    with closing(Checkpoints(out / "checkpoints", config.checkpoint.keep, identify(config, loader))) as saved:
        first = saved.restore(jax.eval_shape(lambda: begin(config, vocabulary))) or begin(config, vocabulary)
        metrics.rewind(diary, int(first.step))
        for state, line in run(config, first, loader, attend):
            if not math.isfinite(line["loss"] + line["gradient_norm"]):
                saved.save(state)
                raise Diverged(diverged(config, line))
            tell(line)
            if config.evaluation and due(line, config.evaluation.every, config):
                tell({"step": line["step"], "held_out_loss": measure(state.params)})
            if due(line, config.checkpoint.every, config):
                saved.save(state)
    curve.draw(diary, out / CURVE)
    return summarise(config, vocabulary, out)


def run(config: Config, state: State, loader: Loader, attend: Attention) -> Iterator[tuple[State, metrics.Line]]:
    """Do the steps that are left, and yield the state and the metrics after each; the next one consumes the state."""
    step, start = make_step(config, loader.rule, attend), int(state.step)
    clock = time.perf_counter()
    for t, batch in loader.batches(start, config.steps):
        state, told = step(state, cut(batch, config.accumulation), np.int32(batch.examples))
        loss, norm, lr = map(float, told)  # waits for the device
        tokens, seconds = int(np.count_nonzero(batch.segments)), time.perf_counter() - clock
        line = {"step": t + 1, "loss": loss, "tokens": tokens, "tokens_per_second": tokens / seconds}
        yield state, line | {"lr": lr, "gradient_norm": norm} | by_set(config, loader.sets(t), batch)
        clock = time.perf_counter()


def by_set(config: Config, sets: np.ndarray, batch: Batch) -> metrics.Line:
    """Count a step's rows and tokens of each data set, in the config's order; of one alone there is nothing to tell."""
    if len(config.source.sets) == 1:
        return {}
    tokens = np.count_nonzero(batch.segments, axis=1)
    own = [sets == i for i in range(len(config.source.sets))]
    return {"rows_by_set": [int(o.sum()) for o in own], "tokens_by_set": [int(tokens[o].sum()) for o in own]}


def due(line: metrics.Line, every: int, config: Config) -> bool:
    """Is it time for what happens every so many steps, and after the last?"""
    return line["step"] % every == 0 or line["step"] == config.steps


def make_measure(config: Config, held_out: Loader | None, attend: Attention) -> Callable[[Params], float]:
    """Compile the held-out loss: of the first batches of `held_out`."""
    evaluate = make_evaluation(config.model, attend)

    def measure(params: Params) -> float:
        assert held_out and config.evaluation
        nll = weights = examples = 0.0
        for _, batch in held_out.batches(0, config.evaluation.batches):
            sums = evaluate(params, cut(batch, config.accumulation))
            nll, weights, examples = nll + float(sums[0]), weights + float(sums[1]), examples + batch.examples
        return nll / float(divisor(held_out.rule, jnp.float32(examples), jnp.float32(weights)))

    return measure


def open_loader(config: Config, source: Mixture) -> Loader:
    """Open packed data sets for training; the one place that knows where batches come from."""
    from .loader import Loader
    from .mixture import open_mixture

    return Loader(open_mixture(source.shares, source.by), rows=config.rows, seed=config.seed, weights=source.weights)


def check(config: Config, loader: Loader, held_out: Loader | None) -> None:
    """Refuse data that the model cannot be trained on.

    Raises:
      UserError: names the data set, what was found and what is allowed.
    """
    fingerprint, wanted = loader.dataset.vocabulary.fingerprint, config.source.vocabulary
    name, key = config.source.name, "mixture" if config.mixture else "data"
    if wanted not in (None, fingerprint):
        raise UserError(
            f"the vocabulary of {name} is {fingerprint}, but the config's {key}.vocabulary asks for "
            f"{wanted}: train on data built with that vocabulary, or correct the key"
        )
    if loader.dataset.length > model.MAX_POSITIONS:
        raise UserError(
            f"{name} is packed to {loader.dataset.length} tokens, and the model counts positions to "
            f"{model.MAX_POSITIONS}: pack to a shorter length"
        )
    if config.evaluation and held_out and held_out.dataset.vocabulary.fingerprint != fingerprint:
        raise UserError(
            f"the vocabulary of {config.evaluation.path} is {held_out.dataset.vocabulary.fingerprint}, but that of "
            f"{name} is {fingerprint}: build both with one vocabulary"
        )


def make_out(config: Config) -> Path:
    """Make the run's directory.

    Raises:
      UserError: it cannot be written.
    """
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / METRICS).touch()
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}: choose another `out`") from error
    return out


def identify(config: Config, loader: Loader) -> Identity:
    """Say what a checkpoint must agree on for a run to be the same run."""
    shape = config.model.model_dump(mode="json", exclude={"preset"})
    return {
        "data": loader.dataset.root,
        "vocabulary": loader.dataset.vocabulary.fingerprint,
        "data.weights": str(loader.rule),
        "rows": config.rows,
        "seed": config.seed,
    } | {f"model.{key}": value for key, value in shape.items()}


def diverged(config: Config, line: metrics.Line) -> str:
    """Name the step and the batch at which the loss ceased to be a number."""
    return (
        f"step {line['step']} gave loss {line['loss']} and gradient norm {line['gradient_norm']} on batch "
        f"{line['step'] - 1} of {config.source.name} (rows {config.rows}, seed {config.seed}); the state before it is "
        f"saved in {config.out}: lower optimizer.lr or optimizer.clip, or look at that batch"
    )


def summarise(config: Config, vocabulary: Vocabulary, out: Path) -> Summary:
    """Read a finished run's diary."""
    lines = metrics.read(out / METRICS)
    steps = [line for line in lines if "loss" in line]
    held_out = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    tenth = max(1, len(steps) // 10)
    return Summary(
        steps=config.steps,
        parameters=model.size(config.model, vocabulary),
        first_loss=fmean(line["loss"] for line in steps[:tenth]),
        last_loss=fmean(line["loss"] for line in steps[-tenth:]),
        held_out_loss=held_out[-1] if held_out else None,
        tokens_per_second=median(line["tokens_per_second"] for line in steps),
        metrics=out / METRICS,
        curve=out / CURVE,
    )
