"""Checkpoints of a run: the whole state and what it belongs to, written by orbax, atomically and in the background.

A run's folder holds `run.json`, {"model": {…}, "vocabulary": {…}, "data": […]}, and `checkpoints`, one folder a step.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ..errors import UserError
from ..schema import validate
from ..tokenizers.vocabulary import Vocabulary
from .config import Model
from .mesh import state_shardings, with_sharding
from .model import Params, init
from .step import State

Identity = dict[str, Any]
RUN, CHECKPOINTS = "run.json", "checkpoints"


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


def describe_run(out: Path, model: Model, vocabulary: Vocabulary, data: Sequence[str] = ()) -> None:
    """Write what opening a run takes beside its checkpoints, and the data sets whose recipes name its tokenizers."""
    about = {"model": model.model_dump(mode="json"), "vocabulary": asdict(vocabulary), "data": list(data)}
    text = json.dumps(about, indent=1)
    fresh = out / f"{RUN}.part"
    fresh.write_text(text + "\n")
    fresh.replace(out / RUN)


def open_run(path: str | Path, mesh: jax.sharding.Mesh | None = None) -> tuple[Params, Model, Vocabulary]:
    """Read the latest parameters of a run, without its optimizer.

    Args:
      path: the run's folder, its config's `out`.
      mesh: to lay the parameters over; left out, they lie on the first device.

    Raises:
      UserError: the folder is none of a run, or holds no checkpoint yet.
    """
    folder = Path(path).absolute()
    try:
        told = json.loads((folder / RUN).read_text())
        model, vocabulary = validate(Model, told["model"], "model"), Vocabulary(**told["vocabulary"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause = f"{RUN} lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UserError(
            f"{path} is not the folder of a training run ({cause}): give the `out` of a run's config, which holds {RUN}"
        ) from None
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(folder / CHECKPOINTS, options=options) as manager:
        if (step := manager.latest_step()) is None:
            raise UserError(f"{path} holds no checkpoint yet: let the run go on until it has saved one")
        params = jax.eval_shape(lambda: init(jax.random.key(0), model, vocabulary))
        if mesh is not None:
            params = jax.tree.map(with_sharding, params, state_shardings(params, mesh))
        like = {"params": jax.tree.map(_placed, params)}
        given = ocp.checkpoint_utils.construct_restore_args(like)
        args = ocp.args.PyTreeRestore(like, restore_args=given, partial_restore=True)
        return manager.restore(step, args=ocp.args.Composite(state=args)).state["params"], model, vocabulary
