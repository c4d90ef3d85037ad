"""What a training run is told, as one YAML file: every key typed, every default written here."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, field_validator, model_validator

from .. import schema
from ..packing.weights import Rule
from ..schema import read_yaml, set_values, validate
from .mixture import By, normalise, read_share


def _extent(size: int) -> int:
    if size == 0 or size < -1:
        raise ValueError("must be 1 or more, or -1 for what is left")
    return size


Count = Annotated[int, Field(ge=1)]
Extent = Annotated[int, AfterValidator(_extent)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[Fraction, PlainValidator(read_share)]


class Section(schema.Section):
    """Refuse unknown keys and changes; `1e-4`, which YAML takes for text, is a number here."""

    model_config = ConfigDict(strict=False, allow_inf_nan=False)


class Member(Section):
    """Name a packed data set of a mixture, and its share as 0.7, 7 or 7/10."""

    data: str
    share: Share


class Mixture(Section):
    """Say which packed data sets to learn from, and how much of each: the list of sets alone will do.

    Attributes:
      sets: with their shares: fractions that add up to 1, or numbers of which each is taken as its part of their sum.
      by: what the shares count: `sequences`, which holds after every batch, or `tokens`, padding left out.
      weights: rule of the loss weights (design §4); left out, the data sets' own, which must then be one.
      vocabulary: fingerprint that the data sets' vocabulary must have; left out, any will do.
    """

    sets: Annotated[list[Member], Field(min_length=1)]
    by: By = By.SEQUENCES
    weights: Rule | None = None
    vocabulary: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_a_list(cls, given: Any) -> Any:
        return {"sets": given} if isinstance(given, list) else given

    @model_validator(mode="after")
    def _check_sets(self) -> Self:
        paths = [member.data for member in self.sets]
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise ValueError(f"{twice[0]} is named twice: name it once, with the sum of its shares")
        normalise([member.share for member in self.sets])
        return self

    @property
    def name(self) -> str:
        """How messages call it."""
        return " and ".join(member.data for member in self.sets)

    @property
    def shares(self) -> dict[str, Fraction]:
        """Each data set's share, by its path."""
        return {member.data: member.share for member in self.sets}


class Data(Section):
    """Say which packed data set to learn from.

    Attributes:
      path: directory or URL of a packed data set, relative to the config's folder.
      weights: rule of the loss weights (design §4); left out, the data set's own.
      vocabulary: fingerprint that the data set's vocabulary must have; left out, any will do.
    """

    path: str
    weights: Rule | None = None
    vocabulary: str | None = None

    @property
    def alone(self) -> Mixture:
        """The data set as a mixture of one."""
        return Mixture(
            sets=[Member(data=self.path, share=Fraction(1))], weights=self.weights, vocabulary=self.vocabulary
        )


class Evaluation(Section):
    """Say on what and how often the held-out loss is measured.

    Attributes:
      path: of a packed data set.
      every: steps from one time to the next.
      batches: that are measured, the first ones; fewer where the data set holds fewer whole ones.
    """

    path: str
    every: Count = 100
    batches: Count = 8


# Sizes for a laptop and for tests, then LWM's (lwm/llama.py: CONFIGS; its own "debug" is another).
PRESETS = {
    "debug": {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 192},
    "tiny": {"width": 192, "layers": 4, "heads": 6, "kv_heads": 6, "ffn": 512},
    "small": {"width": 512, "layers": 8, "heads": 8, "kv_heads": 8, "ffn": 1408},
    "200m": {"width": 1024, "layers": 14, "heads": 8, "kv_heads": 8, "ffn": 2048},
    "1b": {"width": 2048, "layers": 22, "heads": 16, "kv_heads": 16, "ffn": 5504},
    "3b": {"width": 3200, "layers": 26, "heads": 32, "kv_heads": 32, "ffn": 8640},
    "7b": {"width": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "ffn": 11008},
    "13b": {"width": 5120, "layers": 40, "heads": 40, "kv_heads": 40, "ffn": 13824},
    "30b": {"width": 6656, "layers": 60, "heads": 52, "kv_heads": 52, "ffn": 17920},
    "65b": {"width": 8192, "layers": 80, "heads": 64, "kv_heads": 64, "ffn": 22016},
}


class Model(Section):
    """Say how large the model is: a preset's name alone, or a preset with any of its numbers replaced.

    Attributes:
      preset: where the numbers that are left out come from.
      width: of the hidden states, `heads` times an even number.
      layers, heads, ffn: numbers of layers and query heads, width of the feed-forward layer.
      kv_heads: number of key heads, a divisor of `heads`.
      theta: base of RoPE's frequencies; LWM raises it from 1e6 at 32K tokens to 5e7 at 1M.
      eps: of RMSNorm (LWM: 1e-6).
      dtype: of the activations; parameters and optimizer stay fp32.
    """

    preset: Literal["debug", "tiny", "small", "200m", "1b", "3b", "7b", "13b", "30b", "65b"] = "tiny"
    width: Count
    layers: Count
    heads: Count
    kv_heads: Count
    ffn: Count
    theta: Annotated[float, Field(gt=1)] = 1e4
    eps: Annotated[float, Field(gt=0)] = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"preset": given}
        if isinstance(given, dict):
            given = {**PRESETS.get(str(given.get("preset", "tiny")), PRESETS["tiny"]), **given}
        return given

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads or self.head_width % 2:
            raise ValueError(f"width {self.width} must be heads ({self.heads}) times an even number")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide heads, which is {self.heads}")
        return self

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Memory(Section):
    """Say what is computed again in the backward pass rather than kept; no choice changes the result.

    Attributes:
      remat: `none` keeps everything, `attention` each layer's input and what attention gave, `layer` the input alone.
      ffn_chunk: tokens of a device's part of a row that the feed-forward works on at once; left out, all.
      loss_chunk: tokens of a device whose logits exist at once: 131 MB of fp32 for 1,024 and 32,000 ids.
    """

    remat: Literal["none", "attention", "layer"] = "none"
    ffn_chunk: Count | None = None
    loss_chunk: Count = 1024


class Mesh(Section):
    """Say how many devices share the work along each axis; of one -1 is made whatever is left, by default of fsdp.

    Attributes:
      dp: each has whole parameters and its own rows.
      fsdp: each has its own rows, and a part of every parameter, fetched layer by layer.
      tp: each computes its own heads and its own part of the feed-forward.
      sp: each has its own tokens of every row, and keys and values go round the ring.
    """

    dp: Extent = 1
    fsdp: Extent = -1
    tp: Extent = 1
    sp: Extent = 1

    @model_validator(mode="before")
    @classmethod
    def _infer_one(cls, given: Any) -> Any:
        others = isinstance(given, dict) and any(str(given.get(name)) == "-1" for name in ("dp", "tp", "sp"))
        return {"fsdp": 1, **given} if others else given

    @model_validator(mode="after")
    def _check_inferred(self) -> Self:
        if (inferred := [name for name, size in self if size == -1])[1:]:
            raise ValueError(f"{' and '.join(inferred)} are both -1, and one alone can be: give all but one a size")
        return self


class Optimizer(Section):
    """Say how AdamW steps; the defaults are LWM's where it has one (tux optimizers.py, run_train_*.sh).

    Attributes:
      lr: peak learning rate, reached linearly from 0 after `warmup` steps.
      schedule: `cosine` falls to `min_lr` at the last step, `constant` stays at `lr`.
      weight_decay: of every array, norms and embeddings too, as in LWM.
      clip: largest norm of the whole gradient.
    """

    lr: Annotated[float, Field(gt=0)] = 1e-3
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    warmup: Annotated[int, Field(ge=0)] = 20
    schedule: Literal["cosine", "constant"] = "cosine"
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _check_rates(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} must not be above lr, which is {self.lr}")
        return self


class Checkpoint(Section):
    """Say how often the run is saved, and how many of the latest checkpoints stay."""

    every: Count = 100
    keep: Count = 2


class Config(Section):
    """Describe one run.

    Attributes:
      data, mixture: what to learn from: one of the two.
      out: directory of checkpoints, metrics and curve, relative to the config's folder; a run begun there goes on.
      steps: optimizer steps in all.
      rows: packed sequences in one step.
      accumulation: equal parts in which a step's rows are computed one after the other; changes memory, not the result.
      seed: of the initial parameters and of the order of the data.
      init: where the parameters come from at the first step: the folder of a run, a folder of Hugging Face's, a file
        of LWM's; a model of pictures may begin as one of text. Left out, they are drawn.
    """

    data: Data | None = None
    mixture: Mixture | None = None
    out: str
    steps: Count
    rows: Count
    accumulation: Count = 1
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    init: str | None = None
    model: Model = Field(default_factory=lambda: Model.model_validate("tiny"))
    mesh: Mesh = Mesh()
    memory: Memory = Memory()
    optimizer: Optimizer = Optimizer()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_source(cls, given: Any) -> Any:
        found = [key for key in ("data", "mixture") if given.get(key) is not None]
        if len(found) == 2:
            raise ValueError("both data and mixture are given: leave one out")
        if not found:
            raise ValueError("data is missing: add data: {path: …}, or mixture: [{data: …, share: …}, …] for several")
        return given

    @field_validator("out")
    @classmethod
    def _check_out(cls, out: str) -> str:
        if "://" in out:
            raise ValueError("must be a local directory")
        return out

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.rows % self.accumulation:
            raise ValueError(f"accumulation {self.accumulation} must divide rows, which is {self.rows}")
        if self.optimizer.warmup >= self.steps:
            raise ValueError(f"optimizer.warmup {self.optimizer.warmup} must be below steps, which is {self.steps}")
        return self

    @property
    def source(self) -> Mixture:
        """What to learn from: one data set is a mixture of one."""
        if self.mixture:
            return self.mixture
        assert self.data
        return self.data.alone


def load(path: str | Path, assignments: Sequence[str] = ()) -> Config:
    """Read a run's config, with relative paths taken from the file's folder.

    Args:
      assignments: `KEY=VALUE` changes, as of `--set`; their relative paths are taken from the working folder.

    Raises:
      UserError: the file is missing, no YAML or no config; names the key, what was found and what is allowed.
    """
    given = rooted(read_yaml(path), Path(path).resolve().parent)
    return parse(rooted(set_values(given, list(assignments)), Path.cwd()), str(path))


def parse(given: dict[str, Any], name: str = "the config") -> Config:
    """Check a mapping and fill in the defaults.

    Raises:
      UserError: names the key that is wrong, what was found and what is allowed.
    """
    return validate(Config, given, name)


def rooted(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Take the relative paths of a config, not yet checked, from `folder`; they are changed in place."""
    mixture = given.get("mixture")
    members = mixture.get("sets") if isinstance(mixture, dict) else mixture
    places = [(given, "out"), (given, "init"), (given.get("data"), "path"), (given.get("evaluation"), "path")]
    places += [(member, "data") for member in members] if isinstance(members, list) else []
    for section, key in places:
        if isinstance(section, dict) and isinstance(section.get(key), str) and "://" not in section[key]:
            section[key] = str(folder / section[key])
    return given
