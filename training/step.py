"""One optimizer step: from a batch to new parameters, exact for weighted losses however the batch is cut."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from ..packing.batch import Batch
from ..packing.weights import Rule
from ..tokenizers.vocabulary import Vocabulary
from .attention import Attention, attention
from .config import Config, Memory, Model
from .loss import divisor, weighted_nll
from .mesh import NAMES, PARTS, make_spread, own_share, specs, state_shardings, sum_alike
from .model import ALONE, WHOLE, Params, Spread, apply, heads, init

Parts = dict[str, Any]
Total = Callable[[Params, Parts, Spread], tuple[tuple[Array, Array], Params | None]]


class State(NamedTuple):
    """Everything that a step changes; `step` counts the optimizer steps done, and names the next batch."""

    params: Params
    optimizer: Any
    step: Array


class Metrics(NamedTuple):
    """What a step tells: fp32 scalars; `norm` is the whole gradient's, unclipped, NaN if the update is no number."""

    loss: Array
    norm: Array
    lr: Array


def begin(config: Config, vocabulary: Vocabulary, mesh: Mesh | None = None, params: Params | None = None) -> State:
    """Return the state before the first step: of given parameters, or of some drawn alike on any mesh.

    On a mesh, parameters that are given are consumed.
    """

    def draw(params: Params | None) -> State:
        params = params or init(jax.random.key(config.seed), config.model, vocabulary)
        return State(params, make_optimizer(config).init(params), jnp.int32(0))

    if mesh is None:
        return jax.jit(draw)(params)
    where = state_shardings(jax.eval_shape(draw, params), mesh)
    return jax.jit(draw, out_shardings=where, donate_argnums=0)(params)


def cut(batch: Batch, accumulation: int) -> Parts:
    """Cut a step's rows into equal parts: each of the five arrays as [accumulation, B / accumulation, L]."""
    names = ("tokens", "targets", "positions", "segments", "weights")
    return {name: _cut(getattr(batch, name), accumulation) for name in names}


def _cut(rows: np.ndarray, accumulation: int) -> np.ndarray:
    return rows.reshape(accumulation, -1, rows.shape[1])


def summed_nll(
    params: Params,
    part: Parts,
    model: Model,
    attend: Attention = attention,
    memory: Memory = WHOLE,
    spread: Spread = ALONE,
) -> tuple[Array, Array]:
    """Return Σ w·nll and Σ w of one part, whose arrays are [rows, L]."""
    hidden = apply(params, part["tokens"], part["positions"], part["segments"], model, attend, memory, spread)
    return weighted_nll(hidden, heads(params, spread), part["targets"], part["weights"], memory.loss_chunk)


def loss_and_gradients(
    params: Params,
    parts: Parts,
    examples: Array,
    model: Model,
    rule: Rule,
    attend: Attention = attention,
    memory: Memory = WHOLE,
    mesh: Mesh | None = None,
) -> tuple[Array, Params]:
    """Sum loss and gradients over the parts of a step, and over the devices of a mesh, and divide once.

    Args:
      parts: see `cut`.
      examples: segments of the whole step.
    """

    def total(params: Params, parts: Parts, spread: Spread) -> tuple[tuple[Array, Array], Params]:
        of_part = jax.value_and_grad(summed_nll, has_aux=True)

        def add(total: Any, part: Parts) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, of_part(params, part, model, attend, memory, spread)), None

        zeros = (jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params)
        return lax.scan(add, zeros, parts)[0]

    (loss, weights), gradients = over(mesh, total, params, parts, model, memory, graded=True)
    share = 1 / divisor(rule, examples, weights)
    return loss * share, jax.tree.map(lambda gradient: gradient * share, gradients)


def over(
    mesh: Mesh | None, total: Total, params: Params, parts: Parts, model: Model, memory: Memory, graded: bool
) -> Any:
    """Run `total` on every device of a mesh and sum what the devices found, or run it alone.

    Gradients are taken on each device, of its own tokens' loss. The transposes of the collectives make each of them
    the gradient of the sum over devices, so that no device divides anything.
    """
    if mesh is None:
        return total(params, parts, ALONE)
    where = specs(params)

    def own(params: Params, parts: Parts) -> Any:
        parts = parts | {"weights": own_share(parts["weights"], memory.loss_chunk)}
        sums, gradients = total(params, parts, make_spread(model.dtype))
        return lax.psum(sums, NAMES), None if gradients is None else sum_alike(gradients, where)

    out = PartitionSpec(), where if graded else None
    return jax.shard_map(own, mesh=mesh, in_specs=(where, PARTS), out_specs=out, check_vma=False)(params, parts)


def schedule(config: Config) -> optax.Schedule:
    """Rise linearly from 0 to `lr`, then stay, or fall along a cosine to `min_lr` at the last step."""
    rates = config.optimizer
    if rates.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, rates.lr, rates.warmup, config.steps, rates.min_lr)
    return optax.schedules.warmup_constant_schedule(0.0, rates.lr, rates.warmup)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW."""
    given = config.optimizer
    adamw = optax.adamw(schedule(config), *given.betas, weight_decay=given.weight_decay)
    return optax.chain(optax.clip_by_global_norm(given.clip), adamw)


def make_step(
    config: Config, rule: Rule, attend: Attention = attention, mesh: Mesh | None = None
) -> Callable[[State, Parts, Any], tuple[State, Metrics]]:
    """Compile a step `(state, parts, examples) -> (state, metrics)`, which consumes the state that it is given.

    A step whose loss, gradient or update is not finite leaves parameters, optimizer and count as they were, so that the
    last good state can still be saved.
    """
    optimizer, rate = make_optimizer(config), schedule(config)

    def step(state: State, parts: Parts, examples: Array) -> tuple[State, Metrics]:
        loss, gradients = loss_and_gradients(
            state.params, parts, examples, config.model, rule, attend, config.memory, mesh
        )
        norm = optax.global_norm(gradients)
        updates, moments = optimizer.update(gradients, state.optimizer, state.params)
        after = State(optax.apply_updates(state.params, updates), moments, state.step + 1)
        norm = jnp.where(jnp.isfinite(optax.global_norm(updates)), norm, jnp.nan)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
        if mesh is not None:  # what XLA would choose may differ from where the next step wants it
            kept = lax.with_sharding_constraint(kept, state_shardings(state, mesh))
        return kept, Metrics(loss, norm, jnp.asarray(rate(state.step)))

    return jax.jit(step, donate_argnums=0)


def make_evaluation(
    model: Model, attend: Attention = attention, memory: Memory = WHOLE, mesh: Mesh | None = None
) -> Callable[[Params, Parts], tuple[Array, Array]]:
    """Compile `(params, parts) -> (Σ w·nll, Σ w)` over all parts."""

    def total(params: Params, parts: Parts, spread: Spread) -> tuple[tuple[Array, Array], None]:
        nll, weights = lax.map(lambda part: summed_nll(params, part, model, attend, memory, spread), parts)
        return (nll.sum(), weights.sum()), None

    def evaluate(params: Params, parts: Parts) -> tuple[Array, Array]:
        return over(mesh, total, params, parts, model, memory, graded=False)[0]

    return jax.jit(evaluate)
