"""A ladder of stages, as one YAML file: what each trains, with whose weights it begins, and on what data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from ..errors import UserError
from ..schema import Section, read_yaml, set_values, validate
from .config import Config, parse, rooted

CHECKPOINTS = "checkpoints"  # checkpoint.py says so too, but a list of stages needs no JAX

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Paths = Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]


class Stage(Section):
    """Say what one stage trains, on what, and with whose weights it begins; relative paths start at the file's folder.

    Attributes:
      name: of the stage, and of its run's folder in the ladder's.
      config: a training config; relative paths in it start at the ladder's folder, not at its own.
      recipe: the recipe of its data, or several; each is built into data/RECIPE of the ladder's folder.
      parent: the stage whose weights it begins with.
      init: weights that are no stage's, see `Config.init`; with neither, they are drawn.
    """

    name: Name
    config: str
    recipe: Paths = Field([])
    parent: str | None = None
    init: str | None = None


class Stages(Section):
    """List the stages of a ladder, parents first."""

    stages: Annotated[list[Stage], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        names = [stage.name for stage in self.stages]
        for place, stage in enumerate(self.stages):
            _check_place(stage, names, names[:place])
        return self


def _check_place(stage: Stage, names: list[str], before: list[str]) -> None:
    if stage.name in before:
        raise ValueError(f"the name {stage.name} is used twice: give each stage its own")
    if stage.name in Config.model_fields:  # and NAME.KEY=VALUE would mean two things
        raise ValueError(f"{stage.name} is a key of training configs, so no stage can have that name: choose another")
    if stage.parent is None:
        return
    if stage.init is not None:
        raise ValueError(f"{stage.name} has both parent and init: leave one out")
    if stage.parent not in names:
        raise ValueError(f"{stage.name} has the parent {stage.parent}, which is no stage; stages: {', '.join(names)}")
    if stage.parent not in before:
        raise ValueError(
            f"{stage.name} has the parent {stage.parent}, which does not come before it: list each stage after its "
            "parent, and let none descend from itself"
        )


@dataclass(frozen=True)
class Rung:
    """A stage of a ladder in some folder, with its config filled in."""

    stage: Stage
    config: Config

    @property
    def done(self) -> int:
        """Steps of its latest checkpoint, 0 where there is none."""
        names = [path.name for path in Path(self.config.out, CHECKPOINTS).glob("*")]
        return max((int(name) for name in names if name.isdecimal()), default=0)

    @property
    def finished(self) -> bool:
        return self.done >= self.config.steps


def open_ladder(
    path: str | Path, folder: str | Path, assignments: Sequence[str] = (), init: str | None = None
) -> list[Rung]:
    """Read a file of stages and fill in where each reads, writes, and begins.

    Args:
      folder: of the ladder, where stage NAME has its run in NAME; relative paths of the configs start there.
      assignments: `KEY=VALUE` changes of every stage's config, and `NAME.KEY=VALUE` changes of one.
      init: weights with which the stages begin that have no parent; left out, those that the file names.

    Raises:
      UserError: the file or a config is not as it must be; names the file, the key and what is allowed.
    """
    stages = validate(Stages, read_yaml(path), str(path)).stages
    if "://" in str(folder):
        raise UserError(f"{folder} is a URL: name a local directory for what the stages write")
    base, names = Path(path).resolve().parent, {stage.name for stage in stages}
    rooted = [_from_folder(stage, base) for stage in stages]
    return [
        Rung(stage, configure(stage, Path(folder).resolve(), own_changes(assignments, stage.name, names), init))
        for stage in rooted
    ]


def _from_folder(stage: Stage, base: Path) -> Stage:
    """Take a stage's relative paths from a folder."""
    recipes, init = [str(base / path) for path in stage.recipe], stage.init and str(base / stage.init)
    return stage.model_copy(update={"config": str(base / stage.config), "recipe": recipes, "init": init})


def own_changes(assignments: Sequence[str], name: str, names: set[str]) -> list[str]:
    """Return the changes that concern a stage: those of all, and its own less its name."""
    parts = [(given, *given.split(".", 1)) for given in assignments]
    return [rest[0] if head == name else given for given, head, *rest in parts if head == name or head not in names]


def configure(stage: Stage, folder: Path, assignments: Sequence[str] = (), init: str | None = None) -> Config:
    """Read a stage's config as though it lay in the ladder's folder; `out` and `init` are filled in, then changed."""
    given = rooted(read_yaml(stage.config), folder)
    given["out"] = str(folder / stage.name)
    if begins := str(folder / stage.parent) if stage.parent else init or stage.init:
        given["init"] = begins
    return parse(rooted(set_values(given, list(assignments)), Path.cwd()), stage.config)


def choose(ladder: Sequence[Rung], only: Sequence[str] = (), first: str | None = None) -> list[Rung]:
    """Keep the stages that are named, or one and all that descend from it; with neither, all.

    Raises:
      UserError: there is no such stage.
    """
    names = [rung.stage.name for rung in ladder]
    if lost := [name for name in (*only, first) if name is not None and name not in names]:
        raise UserError(f"there is no stage {lost[0]}; stages: {', '.join(names)}")
    if not (only or first):
        return list(ladder)
    wanted = {*only, first}
    if first:
        for rung in ladder:
            wanted |= {rung.stage.name} if rung.stage.parent in wanted else set()
    return [rung for rung in ladder if rung.stage.name in wanted]


def check_beginnings(chosen: Sequence[Rung], ladder: Sequence[Rung]) -> None:
    """Refuse stages whose first weights are not there and will not come to be.

    Raises:
      UserError: names the stage, its parent or the path, and the remedy.
    """
    runs, coming = {rung.config.out: rung for rung in ladder}, set()
    for rung in chosen:
        coming.add(rung.config.out)
        name, init = rung.stage.name, rung.config.init
        if rung.done or init is None or init in coming:
            continue
        if (parent := runs.get(init)) and not parent.finished:
            raise UserError(
                f"{name} begins with the weights of {parent.stage.name}, which has done {parent.done} of "
                f"{parent.config.steps} steps: train that first, or name other weights with --set {name}.init=PATH"
            )
        if not Path(init.rpartition("::")[2]).exists():
            raise UserError(
                f"{name} begins with the weights at {init}, where nothing is: name them with --init PATH or "
                f"--set {name}.init=PATH"
            )
