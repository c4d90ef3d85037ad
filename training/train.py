"""A training run, from top to bottom."""

import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ..errors import RunFailed, UserError
from ..tokenizers.vocabulary import Vocabulary
from . import curve, mesh, metrics, model
from .attention import Attention
from .checkpoint import CHECKPOINTS, Checkpoints, Identity, describe_run
from .config import Config, Data, Mixture
from .loader import Loader, Plan, ahead
from .loss import divisor
from .mixture import open_mixture
from .model import Params
from .ring.layout import plan_layout
from .ring.ring import choose_block, make_ring
from .step import Parts, State, begin, cut, make_evaluation, make_step
from .weights.leaves import Key, pick
from .weights.start import load_weights

METRICS, CURVE, BOARD = "metrics.jsonl", "curve.png", "tensorboard"


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
    attend: Attention | None = None,
) -> Summary:
    """Train until `config.steps` are done, going on from the latest checkpoint in `config.out`.

    Every process of a run over several hosts calls it with the same config; the first one tells how it goes.

    Args:
      loader, held_out: what to learn from and to measure on; left out, opened from the config.
      report: is called with each new line of the metrics.
      attend: the form of attention; left out, the ring.

    Raises:
      UserError: data, model, mesh, checkpoint or directory do not go together.
      Diverged: loss or gradient is not finite; the state before that step is saved.
    """
    mesh.start()
    devices = mesh.make_mesh(config.mesh)
    loader = loader or open_loader(config, config.source)
    if config.evaluation and held_out is None:
        held_out = open_loader(config, Data(path=config.evaluation.path, weights=loader.rule).alone)
    check(config, loader, held_out, devices)
    out, vocabulary = make_out(config), loader.dataset.vocabulary
    attend = attend or make_ring()
    measure = make_measure(config, held_out, attend, devices)
    kept = config.checkpoint.keep
    with alone_in(out), closing(Checkpoints(out / CHECKPOINTS, kept, identify(config, loader))) as saved:
        if jax.process_index() == 0:
            describe_run(out, config.model, vocabulary, list(config.source.shares))
        fresh = jax.eval_shape(lambda: begin(config, vocabulary))
        placed = jax.tree.map(mesh.with_sharding, fresh, mesh.state_shardings(fresh, devices))
        first = saved.restore(placed) or first_state(config, vocabulary, devices, placed.params)
        with telling(out, int(first.step), report) as tell:
            for state, line in run(config, first, loader, attend, devices):
                if not math.isfinite(line["loss"] + line["gradient_norm"]):
                    saved.save(state)
                    raise Diverged(diverged(config, line))
                tell(line)
                if due(line, config.checkpoint.every, config):
                    saved.save(state)
                if config.evaluation and due(line, config.evaluation.every, config):
                    tell({"step": line["step"], "held_out_loss": measure(state.params)})
    if jax.process_index() == 0:
        curve.draw(out / METRICS, out / CURVE)
    return summarise(config, vocabulary, out)


def first_state(config: Config, vocabulary: Vocabulary, devices: Mesh, placed: Params) -> State:
    """Draw the parameters of a new run, or read them from where its config says that they come from.

    Args:
      placed: where each of them is to lie, without the arrays.
    """
    if config.init is None:
        return begin(config, vocabulary, devices)

    def place(key: Key, leaf: np.ndarray) -> jax.Array:
        return jax.device_put(leaf, pick(placed, key).sharding)

    return begin(config, vocabulary, devices, load_weights(config.init, config.model, vocabulary, config.seed, place))


@contextmanager
def telling(out: Path, step: int, report: Callable[[metrics.Line], None]) -> Iterator[Callable[[metrics.Line], None]]:
    """Give what tells a line to the diary, to TensorBoard and to the caller, from `step` on; silent but on host 0."""
    if jax.process_index():
        yield lambda line: None
        return
    metrics.rewind(out / METRICS, step)
    with metrics.Board(out / BOARD, step) as board:

        def tell(line: metrics.Line) -> None:
            metrics.append(out / METRICS, line)
            board.add(line)
            report(line)

        yield tell


def run(
    config: Config, state: State, loader: Loader, attend: Attention, devices: Mesh
) -> Iterator[tuple[State, metrics.Line]]:
    """Do the steps that are left, and yield the state and the metrics after each; the next one consumes the state."""
    step, start = make_step(config, loader.rule, attend, devices), int(state.step)
    clock = time.perf_counter()
    for t, (plan, parts) in enumerate(feed(config, loader, devices, range(start, config.steps)), start):
        state, told = step(state, parts, np.int32(plan.examples))
        loss, norm, lr = map(float, told)  # waits for the device
        tokens, seconds = int(plan.table.lengths.sum()), time.perf_counter() - clock
        line = {"step": t + 1, "loss": loss, "tokens": tokens, "tokens_per_second": tokens / seconds}
        yield state, line | {"lr": lr, "gradient_norm": norm} | by_set(config, plan)
        clock = time.perf_counter()


def feed(config: Config, loader: Loader, devices: Mesh, steps: range) -> Iterator[tuple[Plan, Parts]]:
    """Plan steps, choose each one's layout, and read this host's part of it, a few ahead."""
    length, ring = loader.dataset.length, devices.shape[mesh.COLUMNS]
    own, apart = mesh.own_slices(devices, config.rows, length), config.accumulation * mesh.groups(devices)
    tile = choose_block(length // ring, config.model.head_width).tile

    def make(t: int) -> tuple[Plan, Parts]:
        plan = loader.plan(t)
        permutation = plan_layout(plan.table, length, ring, tile, apart).permutation if ring > 1 else None
        batch = loader.load(plan, *own, permutation)
        return plan, mesh.place(cut(batch, config.accumulation), devices, config.rows, length)

    return ahead(make, steps)


def by_set(config: Config, plan: Plan) -> metrics.Line:
    """Count a step's rows and tokens of each data set, in the config's order; of one alone there is nothing to tell."""
    count = len(config.source.sets)
    if count == 1:
        return {}
    of_segments = np.repeat(plan.sets, plan.table.counts)
    tokens = np.bincount(of_segments, plan.table.lengths, count).astype(int)
    return {"rows_by_set": np.bincount(plan.sets, minlength=count).tolist(), "tokens_by_set": tokens.tolist()}


def due(line: metrics.Line, every: int, config: Config) -> bool:
    """Is it time for what happens every so many steps, and after the last?"""
    return line["step"] % every == 0 or line["step"] == config.steps


def make_measure(
    config: Config, held_out: Loader | None, attend: Attention, devices: Mesh
) -> Callable[[Params], float]:
    """Compile the held-out loss: of the first batches of `held_out`."""
    evaluate = make_evaluation(config.model, attend, config.memory, devices)

    def measure(params: Params) -> float:
        assert held_out and config.evaluation
        whole = min(config.evaluation.batches, held_out.dataset.rows // config.rows)  # no row counts twice
        nll = weights = examples = 0.0
        for plan, parts in feed(config, held_out, devices, range(whole)):
            sums = evaluate(params, parts)
            nll, weights, examples = nll + float(sums[0]), weights + float(sums[1]), examples + plan.examples
        return nll / float(divisor(held_out.rule, jnp.float32(examples), jnp.float32(weights)))

    return measure


def open_loader(config: Config, source: Mixture) -> Loader:
    """Open packed data sets for training."""
    dataset = open_mixture(source.shares, source.by)
    return Loader(dataset, rows=config.rows, seed=config.seed, weights=source.weights)


def check(config: Config, loader: Loader, held_out: Loader | None, devices: Mesh) -> None:
    """Refuse data that the model cannot be trained on, on these devices.

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
    for which, length in [(name, loader.dataset.length), *_of_held_out(config, held_out)]:
        if length > model.MAX_POSITIONS:
            raise UserError(
                f"{which} is packed to {length} tokens, and the model counts positions to {model.MAX_POSITIONS}: "
                "pack to a shorter length"
            )
        mesh.check(devices, config, length, which)
    if config.evaluation and held_out and held_out.dataset.rows < config.rows:
        raise UserError(
            f"{config.evaluation.path} holds {held_out.dataset.rows} sequences, fewer than the {config.rows} rows of a "
            f"batch: lower rows, or hold more out"
        )
    if config.evaluation and held_out and held_out.dataset.vocabulary.fingerprint != fingerprint:
        raise UserError(
            f"the vocabulary of {config.evaluation.path} is {held_out.dataset.vocabulary.fingerprint}, but that of "
            f"{name} is {fingerprint}: build both with one vocabulary"
        )


def _of_held_out(config: Config, held_out: Loader | None) -> list[tuple[str, int]]:
    return [(config.evaluation.path, held_out.dataset.length)] if config.evaluation and held_out else []


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


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold a run's directory, so that no second run writes there; the kernel takes the lock back from a killed one.

    Raises:
      UserError: another run holds it.
    """
    if jax.process_index():
        yield
        return
    held = os.open(out, os.O_RDONLY)
    try:
        _lock(held, out)
        yield
    finally:
        os.close(held)


def _lock(held: int, out: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another run is training into {out} now: wait for its end, or choose another `out`") from None


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
    if not steps:
        raise UserError(
            f"{out} holds a finished run, but its {METRICS} tells of no step: the model is whole, and to see its "
            "losses put the file back"
        )
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
