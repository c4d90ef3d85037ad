"""The recipe: one typed YAML file that says what a data set is made of. Its schema is docs/recipe.schema.json."""

import re
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from .errors import UserError
from .packing.weights import Rule
from .schema import Section, read_yaml, set_values, validate

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=False)]
Scalar = str | int | float | bool


class VocabularySection(Section):
    """The models that decide what a token is."""

    text: str = Field(description="a SentencePiece model; relative paths start at the recipe's folder")


class BookColumns(Section):
    """Where JSONL, parquet and Hugging Face rows keep what is needed; dots lead into nested columns."""

    text: str = "text"
    id: str | None = Field(None, description="a column that names the record; by default file and place do")


class BookFilters(Section):
    """What is kept of a books source."""

    min_tokens: int | None = Field(None, ge=1, description="shortest text kept, in tokens without BOS and EOS")
    max_tokens: int | None = Field(None, ge=1, description="texts of so many tokens or more are dropped")
    equals: dict[str, Scalar] = Field({}, description="columns and the values that they must have")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_tokens and self.max_tokens and self.min_tokens >= self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} must be below max_tokens {self.max_tokens}")
        return self


class BooksSource(Section):
    """Plain text: .txt files, JSONL, parquet, tars of .txt, or Hugging Face datasets."""

    name: Name
    kind: Literal["books"]
    path: str | list[str] = Field([], description="files, globs, folders, or a dataset saved with save_to_disk")
    dataset: str | None = Field(None, description="a dataset that datasets.load_dataset finds, instead of path")
    split: str = Field("train", description="split of a Hugging Face dataset")
    columns: BookColumns = BookColumns()
    filters: BookFilters = BookFilters()
    strip_gutenberg: bool = Field(False, description="take off Project Gutenberg's header and footer")
    sample: Fraction = Field(1.0, description="fraction of the records kept, by a hash of seed and record id")
    deny: str | list[str] = Field([], description="ids, URLs or content hashes to leave out, or a file of them")
    licence: str = Field("", description="recorded in the manifest and the data card")
    record_bytes: int = Field(2**28, ge=1, le=2**31 - 4, description="a record with more bytes fails")
    unit_bytes: int = Field(2**25, ge=1, description="about how much input one work unit reads")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.path) == bool(self.dataset):
            raise ValueError("give either path or dataset")
        return self

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path


class PackSection(Section):
    """One packed data set to make of the examples."""

    length: int = Field(ge=2, le=2**24, description="tokens of a sequence")
    name: Name = Field("", validate_default=False, description="its folder is packed-NAME; default: the length")
    weights: Rule = Field(Rule.EXAMPLE, strict=False, description="default rule of loss weights")
    sources: list[str] = Field([], description="sources to take; default: all")
    split: Literal["all", "train", "eval"] = Field("all", description="which side of the recipe's eval split")

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("length"), int):
            suffix = f"-{data['split']}" if data.get("split") in ("train", "eval") else ""
            return {**data, "name": f"{data['length']}{suffix}"}
        return data


class Limits(Section):
    """Where a job stops."""

    failed: Fraction = Field(0.02, description="failed records, of those read, above which the job fails")


class Recipe(Section):
    """Say how a data set is made."""

    description: str = ""
    seed: int = Field(0, ge=0)
    vocabulary: VocabularySection
    sources: list[BooksSource] = Field(min_length=1)
    eval: Fraction = Field(0.0, description="fraction of the records on the eval side of the split")
    duplicates: Literal["none", "exact", "near"] = Field("exact", description="which duplicates packing drops")
    pack: list[PackSection] = Field([], description="one section or a list; left out: examples only")
    limits: Limits = Limits()

    @field_validator("pack", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        names = [s.name for s in self.sources]
        for what, found in (("sources", names), ("pack", [p.name for p in self.pack])):
            twice = sorted({n for n in found if found.count(n) > 1})
            if twice:
                raise ValueError(f"{what}: the name {twice[0]} is used twice; give each its own")
        for name, other in permutations(names, 2):
            if re.match(rf"{re.escape(name)}-\d", other):  # their units' names would mix: NAME-0000000
                raise ValueError(f"sources: the name {other} is {name} and a number; rename one of them")
        for section in self.pack:
            unknown = sorted(set(section.sources) - set(names))
            if unknown:
                raise ValueError(f"pack {section.name}: there is no source {unknown[0]}; sources: {', '.join(names)}")
            if section.split == "eval" and not self.eval:
                raise ValueError(f"pack {section.name}: split eval is empty while eval is 0; set eval, say to 0.01")
        return self

    def source(self, name: str) -> BooksSource:
        return next(s for s in self.sources if s.name == name)

    def to_yaml(self) -> str:
        """Write the effective recipe, every default spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, assignments: list[str] | None = None) -> Recipe:
    """Read a recipe and resolve its relative paths against its folder.

    Args:
      assignments: `KEY=VALUE` changes, as of `--set`.

    Raises:
      UserError: if the recipe is not as it must be.
    """
    base = Path(path).resolve().parent
    data = resolve_paths(read_yaml(path), base)
    data = set_values(data, assignments or [])
    return validate(Recipe, resolve_paths(data, Path.cwd()), str(path))


def resolve_paths(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the relative paths of a recipe absolute, before it is checked: wrong shapes pass as they are."""
    vocabulary = data.get("vocabulary")
    if isinstance(vocabulary, dict):
        vocabulary.update({k: _absolute(v, base) for k, v in vocabulary.items()})
    sources = data.get("sources")
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, dict) and "path" in source:
            found = source["path"]
            source["path"] = [_absolute(p, base) for p in found] if isinstance(found, list) else _absolute(found, base)
        if isinstance(source, dict) and isinstance(source.get("deny"), str):
            source["deny"] = _absolute(source["deny"], base)
    return data


def _absolute(path: Any, base: Path) -> Any:
    if not isinstance(path, str) or "://" in path or not path:
        return path
    try:
        return str(base / Path(path).expanduser())
    except RuntimeError:
        raise UserError(f"{path}: there is no such user here; write the path out") from None


if __name__ == "__main__":
    import json
    import sys

    json.dump(Recipe.model_json_schema(), sys.stdout, indent=1)
