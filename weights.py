"""`worldloom weights`: make other people's weights a run of ours, and a run of ours weights that others read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import UserError
from .pipelines.models import vocabulary_of
from .schema import set_values, validate
from .studio import vocabulary_section
from .training import model as models
from .training.checkpoint import open_run
from .training.config import Model
from .training.weights import huggingface, lwm
from .training.weights.leaves import put
from .training.weights.start import existing, leaves, missing_tables, save_run

Form = Literal["huggingface", "lwm"]


@dataclass(frozen=True)
class Imported:
    """Tell what was read: its parameters, whether tables of pictures were drawn, and whether the head was untied."""

    parameters: int
    drawn: bool
    untied: bool

    def __str__(self) -> str:
        told = [f"{self.parameters:,} parameters"]
        told += ["the tables of pictures are new, drawn from the seed"] * self.drawn
        told += ["the head, which these weights share with the embedding, is a copy of it"] * self.untied
        return "; ".join(told)


def run_import(
    path: str,
    out: str,
    text: str,
    vision: str | None = None,
    preset: str | None = None,
    assignments: Sequence[str] = (),
    seed: int = 0,
) -> Imported:
    """Make weights the folder of a run.

    Args:
      path: a folder of Hugging Face's LLaMA, or a stream of LWM's.
      out: a new folder.
      text: the SentencePiece model that the weights were trained with.
      vision: the tokenizer of pictures, a codebook's file or a VQGAN's folder, where the model is to know them.
      preset, assignments: sizes that LWM's file does not tell, and `KEY=VALUE` changes, as `theta=5e7`.
      seed: of tables of pictures that the weights have not.

    Raises:
      UserError: anything of these is missing, or does not go together.
    """
    place, vocabulary = existing(path), vocabulary_of(vocabulary_section({}, text, vision))
    told = huggingface.describe(place) if (place / huggingface.CONFIG).exists() else None
    model = chosen_model(told.model if told else None, preset, assignments)
    params: models.Params = {}
    for key, leaf in leaves(path, model, vocabulary):
        put(params, key, leaf)
    drawn = list(missing_tables(params, model, vocabulary, seed))
    for key, leaf in drawn:
        put(params, key, leaf)
    save_run(Path(out), params, model, vocabulary, str(place))
    return Imported(models.size(model, vocabulary), bool(drawn), bool(told and told.tied))


def chosen_model(told: Model | None, preset: str | None, assignments: Sequence[str]) -> Model:
    """Return the sizes of a model: as its own file tells them, or a preset's, with some replaced.

    Raises:
      UserError: neither tells them, or they do not go together.
    """
    if not (told or preset):
        raise UserError("LWM's file does not tell the sizes of its model: give --model, say 7b")
    given: dict[str, Any] = {"preset": preset} if preset else told.model_dump() if told else {}
    return validate(Model, set_values(given, list(assignments)), "the model")


def run_export(run: str, out: str, to: Form = "huggingface", dtype: str = "bfloat16") -> int:
    """Write the latest parameters of a run as others read them. Returns their number.

    Args:
      run: its folder.
      out: a new folder of Hugging Face's LLaMA, or a new file of LWM's.
      dtype: `bfloat16`, `float16` or `float32`.

    Raises:
      UserError: the run has no checkpoint, something is at `out`, or their form has no such model.
    """
    params, model, vocabulary = open_run(run)
    write = huggingface.write if to == "huggingface" else lwm.write
    write(params, model, vocabulary, Path(out), dtype)
    return models.size(model, vocabulary)
