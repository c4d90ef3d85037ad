"""The recipe: one typed YAML file that says what a data set is made of. Its schema is docs/recipe.schema.json."""

import posixpath
import re
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from .errors import UserError
from .packing.weights import Rule
from .schema import Section, read_yaml, set_values, validate
from .sources import Above, Fraction, Name, Source


class VisionSection(Section):
    """The model that makes codes of pictures."""

    kind: Literal["codebook", "vqgan"] = Field(description="a codebook of train-codebook, or a VQModel's folder")
    path: str
    pixel_range: Literal["-1..1", "0..1"] | None = Field(
        None, description="what a VQGAN takes (LWM: -1..1, aMUSEd: 0..1), where its config.json does not name it"
    )
    device: Literal["cpu", "cuda"] | None = Field(
        None, description="what a VQGAN's codes are made on; default: what there is, on Dataflow a GPU"
    )


class VocabularySection(Section):
    """The models that decide what a token is."""

    text: str = Field(description="a SentencePiece model; relative paths start at the recipe's folder")
    vision: VisionSection | None = Field(None, description="left out where there is only text")


class PackSection(Section):
    """One packed data set to make of the examples."""

    length: int = Field(ge=2, le=2**24, description="tokens of a sequence")
    name: Name = Field("", validate_default=False, description="its folder is packed-NAME; default: the length")
    weights: Rule = Field(Rule.EXAMPLE, strict=False, description="default rule of loss weights")
    sources: list[str] = Field([], description="sources to take; default: all")
    split: Literal["all", "train", "eval"] = Field("all", description="which side of the recipe's eval split")
    frames: Literal["fit"] | Annotated[int, Field(ge=2)] | None = Field(
        None, description="thin videos uniformly: to so many frames at the most, or `fit`, to what the length holds"
    )
    share: Fraction | None = Field(None, description="of a training mixture that it is meant for; `plan` reports it")

    remove_eval_ngrams: int | None = Field(
        None,
        ge=5,
        description="of split train: cut out of texts, and drop what is no text, for so many tokens in a row"
        " that the eval side has too (GPT-3: 13 words)",
    )

    @field_validator("frames", mode="before")
    @classmethod
    def _frames(cls, value: Any) -> Any:
        if value not in (None, "fit") and (type(value) is not int or value < 2):
            raise ValueError(f"found {value!r}; give fit, or a whole number from 2 on")
        return value

    @model_validator(mode="after")
    def _removes_from_train(self) -> Self:
        if self.remove_eval_ngrams and self.split != "train":
            raise ValueError("remove_eval_ngrams is of the train side: set split to train, or take it out")
        return self

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


Dollars = Annotated[float, Field(strict=False, ge=0, allow_inf_nan=False)]


class RatesSection(Section):
    """What a build's work costs, in dollars; `plan --measure` alone reads it."""

    worker_hour: Dollars | None = Field(None, description="of one worker with one processor")
    accelerator_hour: Dollars | None = Field(None, description="of one accelerator that runs the VQGAN")
    gigabyte_month: Dollars | None = Field(None, description="of storing 1e9 bytes for a month")
    frames_per_second: Above | None = Field(
        None, description="that the accelerator meant encodes, where this machine has none or another one"
    )


class Recipe(Section):
    """Say how a data set is made."""

    description: str = ""
    seed: int = Field(0, ge=0)
    vocabulary: VocabularySection
    sources: list[Annotated[Source, Field(discriminator="kind")]] = Field(min_length=1)
    eval: Fraction = Field(0.0, description="fraction of the records on the eval side of the split")
    duplicates: Literal["none", "exact", "near"] = Field("exact", description="which duplicates packing drops")
    pack: list[PackSection] = Field([], description="one section or a list; left out: examples only")
    limits: Limits = Limits()
    rates: RatesSection = RatesSection()

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
            if section.remove_eval_ngrams and not self.eval:
                raise ValueError(f"pack {section.name}: remove_eval_ngrams finds nothing while eval is 0; set eval")
        return self

    @model_validator(mode="after")
    def _pictures_have_codes(self) -> Self:
        seen = [source.name for source in self.sources if source.kind in ("image-text", "video-text")]
        if seen and not self.vocabulary.vision:
            raise ValueError(f"source {seen[0]} has pictures: name a tokenizer for them in vocabulary.vision")
        return self

    def source(self, name: str) -> Source:
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
    data = resolve_paths(read_yaml(path), folder_of(path))
    data = set_values(data, assignments or [])
    return validate(Recipe, resolve_paths(data, str(Path.cwd())), str(path))


def folder_of(path: str | Path) -> str:
    """Return the path or URL of the folder that a file lies in."""
    if "://" in str(path):
        return str(path).rpartition("/")[0]
    return str(Path(path).resolve().parent)


def resolve_paths(data: dict[str, Any], base: str) -> dict[str, Any]:
    """Make the relative paths of a recipe absolute, before it is checked: wrong shapes pass as they are.

    Args:
      base: path or URL of the folder in which they begin.
    """
    vocabulary = data.get("vocabulary")
    for models in (vocabulary, vocabulary.get("vision")) if isinstance(vocabulary, dict) else ():
        if isinstance(models, dict):
            models.update({k: _absolute(v, base) for k, v in models.items() if k in ("text", "path")})
    sources = data.get("sources")
    for source in sources if isinstance(sources, list) else ():
        for key in ("path", "deny", "media_root") if isinstance(source, dict) else ():
            found = source.get(key)
            if isinstance(found, str):
                source[key] = _absolute(found, base)
            elif isinstance(found, list) and key == "path":
                source[key] = [_absolute(p, base) for p in found]
    return data


def _absolute(path: Any, base: str) -> Any:
    if not isinstance(path, str) or "://" in path or not path:
        return path
    try:
        expanded = Path(path).expanduser()
        if "://" in base and not expanded.is_absolute():
            scheme, _, root = base.partition("://")
            return f"{scheme}://{posixpath.normpath(f'{root}/{path}')}"
        return str(base / expanded)
    except RuntimeError:
        raise UserError(f"{path}: there is no such user here; write the path out") from None


if __name__ == "__main__":
    import json
    import sys

    json.dump(Recipe.model_json_schema(), sys.stdout, indent=1)
