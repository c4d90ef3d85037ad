"""What is kept of the ring for the backward pass, told by tracing alone: how often scores are raised to shares."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training.config import Memory, Model
from worldloom.training.model import apply, init
from worldloom.training.ring.ring import make_ring
from worldloom.training.ring.xla import Xla

MODEL = Model(preset="debug", width=8, layers=1, heads=2, kv_heads=1, ffn=8)
VOCABULARY = Vocabulary(13, 1, 2, "text")


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Walk through all that a program does, in loops and branches too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
            if isinstance(inner, Jaxpr | ClosedJaxpr):
                yield from equations(getattr(inner, "jaxpr", inner))


def exponentials(memory: Memory) -> int:
    """Count those in the gradient of a model of one layer; the feed-forward's gate is no `exp`."""
    params = jax.eval_shape(lambda: init(jax.random.key(0), MODEL, VOCABULARY))
    line = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    attend = make_ring(None, Xla(8))

    def total(params, tokens, positions, segments):
        return apply(params, tokens, positions, segments, MODEL, attend, memory).sum()

    traced = jax.make_jaxpr(jax.grad(total))(params, line, line, line)
    return sum(equation.primitive.name == "exp" for equation in equations(traced.jaxpr))


def test_keeping_what_attention_gave_spares_going_round_again():
    none, attention, layer = (exponentials(Memory(remat=what)) for what in ("none", "attention", "layer"))
    assert none == attention < layer
