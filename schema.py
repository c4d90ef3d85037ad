"""Typed YAML files: load one, change values by key, and say in one sentence what is wrong with it."""

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import fsspec
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import UserError


class Section(BaseModel):
    """A part of a typed file: unknown keys and wrong types are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping, from a path or a URL that fsspec knows.

    Raises:
      UserError: if it is missing, no YAML, or holds something else.
    """
    try:
        data = parse(_text(str(path)))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a YAML file, for example one of recipes/") from None
    except (OSError, ValueError, ImportError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds {type(data).__name__} where a mapping of keys is needed")
    return data


def _text(path: str) -> str:
    if "://" not in path:
        return Path(path).read_text("utf-8-sig")
    with fsspec.open(path, "r", encoding="utf-8-sig") as file:
        return str(file.read())


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key given twice, of which YAML readers silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.MarkedYAMLError(problem=f"the key {twice[0]} is given twice", problem_mark=node.start_mark)
        return mapping


def parse(text: str) -> Any:
    """Read YAML text as plain data.

    Raises:
      yaml.YAMLError: if it is none, or gives a key twice.
    """
    return yaml.load(text, _Loader)  # a SafeLoader


def set_values(data: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply `key.path=value` assignments, values in YAML; a part may name a list's entry by number or `name`.

    Raises:
      UserError: if an assignment has no `=`, or leads through something that has no keys.
    """
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"--set {assignment}: write KEY=VALUE, for example --set limits.failed=0.1")
        *parents, last = key.split(".")
        place: Any = data
        for part in parents:
            place = _step(place, part, key)
        place[_position(place, last, key) if isinstance(place, list) else last] = _value(assignment, value)
    return data


def _value(assignment: str, value: str) -> Any:
    try:
        return parse(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {assignment}: {value} is no YAML: {' '.join(str(error).split())}") from None


def _step(place: Any, part: str, key: str) -> Any:
    child = place[_position(place, part, key)] if isinstance(place, list) else place.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise UserError(f"--set {key}: {part} is {child!r} and has no keys inside")
    return child


def _position(entries: list[Any], part: str, key: str) -> int:
    names = [e.get("name") if isinstance(e, dict) else None for e in entries]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(entries):
        return int(part)
    known = [n for n in names if n] or list(range(len(entries)))
    raise UserError(f"--set {key}: there is no {part}; choose one of {', '.join(map(str, known))}")


def validate(model: type[Model], data: dict[str, Any], where: str) -> Model:
    """Check plain data against a model.

    Args:
      where: the file's name, for the message.

    Raises:
      UserError: names the first wrong key, what was found and what is allowed.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_sentence(model, data, error.errors())}") from None


def _sentence(model: type[BaseModel], data: Any, errors: list[Any]) -> str:
    error, path = _first(data, errors)
    key = ".".join(path)
    if error["type"].startswith("union_tag_"):
        tag = error["ctx"]["discriminator"].strip("'")
        return f"{key}.{tag}: found {_short(error['input'].get(tag))}; choose one of {error['ctx']['expected_tags']}"
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(model, error["loc"][:-1])
        near = difflib.get_close_matches(path[-1], allowed, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"unknown key {key}; allowed here: {', '.join(sorted(allowed))}{hint}"
    if error["type"] == "missing":
        return f"the key {key} is missing: add it"
    problem = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {problem}" if key else problem
    if error["type"] == "model_type":
        problem = "a mapping of keys is needed"
    return f"{key}: found {_short(error['input'])}; {problem[0].lower()}{problem[1:]}"


def _first(data: Any, errors: list[Any]) -> tuple[Any, list[str]]:
    """Take the first error and its key; of the errors of a union, one for each branch, the one that goes deepest."""
    found = [(error, _path(data, error)) for error in errors]
    first = found[0][1]
    return max((f for f in found if f[1][: len(first)] == first), key=lambda f: len(f[1]))


def _path(data: Any, error: Any) -> list[str]:
    """Return where in the data an error is: pydantic names a union's branches and validators, too."""
    path, place = [], data
    for part in error["loc"]:
        if (isinstance(place, dict) and part in place) or (isinstance(place, list) and part in range(len(place))):
            path.append(str(part))
            place = place[part]
    return [*path, str(error["loc"][-1])] if error["type"] == "missing" else path


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "…"


def _fields_at(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """Find the keys allowed at an error's place by walking the model's annotations; `kind` names a union's branch."""
    found = [model]
    for part in loc:
        nested = [f.annotation for m in found if (f := m.model_fields.get(part)) is not None]
        if nested:
            found = [leaf for annotation in nested for leaf in _models(annotation)]
        else:
            found = [m for m in found if part in _kinds(m)] or found
    return [name for m in found for name in m.model_fields]


def _kinds(model: Any) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _models(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
