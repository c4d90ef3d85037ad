"""Checkpoints of a run: the whole state and what it belongs to, written by orbax, atomically and in the background."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ..errors import UserError
from .step import State

Identity = dict[str, Any]


class Checkpoints:
    """Save and restore the states of one run.

    Args:
      directory: where they lie, one folder a step; made where it is missing.
      keep: number of the latest that stay.
      identity: flat and JSON; what a checkpoint must agree on to be gone on from (data set, model shape, …).

    Raises:
      UserError: the directory holds checkpoints of something else.
    """

    def __init__(self, directory: Path, keep: int, identity: Identity):
        self._identity = identity
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        step = self._manager.latest_step()
        if step is None:
            return
        found = self._manager.restore(step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())).identity
        for key in self._identity | found:
            if found.get(key) != self._identity.get(key):
                raise UserError(
                    f"{self._manager.directory} holds a checkpoint whose {key} is {found.get(key)}, but this run's is "
                    f"{self._identity.get(key)}: choose another `out`, or put {key} back"
                )

    def restore(self, like: State) -> State | None:
        """Read the latest state, or None where there is none.

        Args:
          like: a state of the same shapes (`jax.eval_shape` will do), whose shardings are followed where given.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        args = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(_placed, like)))
        return self._manager.restore(step, args=args).state

    def save(self, state: State) -> None:
        """Save a state under its step, unless that is saved already; returns once the state may be overwritten."""
        step = int(state.step)
        if step != self._manager.latest_step():
            parts = ocp.args.Composite(state=ocp.args.StandardSave(state), identity=ocp.args.JsonSave(self._identity))
            self._manager.save(step, args=parts, force=True)

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
