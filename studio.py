"""A model with the tokenizers that belong to it: opened by its path, and asked for texts, pictures and videos."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from .errors import UserError
from .inspection import RECIPE, Loader, is_local
from .packing.storage import Folder
from .pipelines import chat_layout
from .pipelines.chat_layout import ASSISTANT, USER, Frames, Line
from .pipelines.models import pictures_of, text_tokenizer, vocabulary_of
from .pipelines.pairs import Layout, Marks, render
from .pipelines.pictured import PROMPTS
from .recipe import VisionSection, VocabularySection
from .schema import validate
from .sources import RenderSection, TemplateSection
from .tokenizers.text import TextTokenizer
from .tokenizers.vision import VisionTokenizer
from .tokenizers.vocabulary import Vocabulary
from .training import config, mesh
from .training.checkpoint import RUN, open_run
from .training.config import Model
from .training.generation.generate import Generator, place, place_leaf
from .training.generation.sample import IMAGE, LATER, Sampling
from .training.weights import huggingface
from .training.weights.start import existing, load_weights

FRAMES = 8  # of a video: scripts/run_sample_video.sh
MEDIA = {"image": "image-text", "video": "video-text"}  # the kinds of sources that they come from


class Manner(NamedTuple):
    """How the training data was written out: a picture's and a video's caption, and chats."""

    image: RenderSection = RenderSection()
    video: RenderSection = RenderSection()
    template: TemplateSection = TemplateSection()


@dataclass(frozen=True)
class Studio:
    """A model with its tokenizers, and with the manner that it was trained in."""

    generator: Generator
    section: VocabularySection
    manner: Manner

    @cached_property
    def text(self) -> TextTokenizer:
        return text_tokenizer(self.section.text)

    @cached_property
    def vision(self) -> VisionTokenizer:
        if self.section.vision is None or not self.generator.vocabulary.codes:
            raise UserError("the model knows no pictures, or no tokenizer for them is named: name it by --vision")
        return pictures_of(self.section)

    def write(self, prompts: Sequence[str], new_tokens: int, sampling: Sampling, seed: int = 0) -> list[str]:
        """Continue texts."""
        ids = [[self.text.bos, *self.text.encode(prompt).tolist()] for prompt in prompts]
        return [self.text.decode(reply) for reply in self.generator.reply(ids, new_tokens, sampling, seed)]

    def images(self, captions: Sequence[str], sampling: Sampling = IMAGE, seed: int = 0) -> np.ndarray:
        """Draw a picture for each caption: uint8 [n, size, size, 3]."""
        return self._draw(captions, "image", 1, sampling, LATER, seed)[:, 0]

    def videos(
        self,
        captions: Sequence[str],
        frames: int = FRAMES,
        first: Sampling = IMAGE,
        later: Sampling = LATER,
        seed: int = 0,
    ) -> np.ndarray:
        """Draw a video for each caption: uint8 [n, frames, size, size, 3]."""
        return self._draw(captions, "video", frames, first, later, seed)

    def _draw(
        self, captions: Sequence[str], medium: str, frames: int, first: Sampling, later: Sampling, seed: int
    ) -> np.ndarray:
        vision, cells = self.vision, self.vision.grid**2
        prompts = [self.picture_prompt(caption, medium) for caption in captions]
        blank = [self.text.bos, *Marks.of(self.text).begin.tolist()]
        drawn = self.generator.draw(prompts, blank, frames, cells, first, later, seed)
        codes = np.concatenate([np.empty((0, cells), np.uint16), *drawn]).astype(np.uint16)
        return vision.decode(codes).reshape(len(captions), frames, vision.size, vision.size, 3)

    def picture_prompt(self, caption: str, medium: str) -> list[int]:
        """Write a caption out as training did, up to the first code of an `image` or a `video`."""
        codes, names = np.zeros((1, 1), np.uint16), (f"text-to-{medium}", "", "")
        vocabulary, section = self.generator.vocabulary, getattr(self.manner, medium)
        if section.form == "chat":
            asked = (section.prompt or PROMPTS[medium]).replace("{}", caption.strip())
            lines = [Line(USER, [asked]), Line(ASSISTANT, [Frames(medium, codes, {})])]
            example = chat_layout.render(lines, section.template, self.text, vocabulary, *names)
        else:
            order, marks = Layout(False, True, True), Marks.of(self.text)
            example = render(self.text.encode(caption), codes, medium, {}, order, marks, vocabulary, *names[1:])
        return example.tokens[: next(s.start for s in example.spans if s.kind == medium)].tolist()


def open_studio(
    path: str,
    tokenizer: str | None = None,
    vision: str | None = None,
    form: str | None = None,
    devices: str = "",
    rows: int = 16,
    preset: str | None = None,
    theta: float | None = None,
) -> Studio:
    """Open the folder of a run, one of Hugging Face's, or a stream of LWM's, with the tokenizers that belong to it.

    Args:
      tokenizer, vision: of text and pictures; left out, those that the recipe of a run's data names.
      form: `pair` or `chat`, which captions are written out in; left out, the recipe's.
      devices: sizes of the mesh, as `sp=4,tp=2`; left out, one device.
      rows: prompts that are worked on at once.
      preset, theta: the shape of LWM's model, which its stream does not tell.

    Raises:
      UserError: something is missing, or does not belong together.
    """
    existing(path)
    recipe = recipe_of_run(path)
    section = vocabulary_section(recipe, tokenizer, vision)
    where = mesh.make_mesh(mesh_sizes(devices))
    params, model, vocabulary = load_model(path, section, where, preset, theta)
    check_tokenizers(path, section, vocabulary)
    manner = manner_of(recipe)
    if form:
        manner = manner._replace(image=_formed(manner.image, form), video=_formed(manner.video, form))
    return Studio(Generator(params, model, vocabulary, where, rows), section, manner)


def load_model(
    path: str, section: VocabularySection, where: Any, preset: str | None = None, theta: float | None = None
) -> tuple[Any, Model, Vocabulary]:
    """Read parameters onto a mesh, and find out what they are parameters of.

    Raises:
      UserError: the shape is not told, told twice or wrong, or nothing of theirs lies there.
    """
    given = preset is not None or theta is not None
    if given and any((Path(path) / name).exists() for name in (RUN, huggingface.CONFIG)):
        raise UserError(f"{path} tells the shape of its model itself: leave out --preset and --theta")
    if (Path(path) / RUN).exists():
        params, model, vocabulary = open_run(path, where)
        return place(params, model, where), model, vocabulary
    vocabulary = vocabulary_of(section)
    if (Path(path) / huggingface.CONFIG).exists():
        model = huggingface.describe(Path(path)).model
        vocabulary = replace(vocabulary, codes=0, vision_digest="")
    else:
        if preset is None:
            raise UserError(f"{path} does not tell the shape of its model: name it by --preset, as 7b, and --theta")
        shape = {"preset": preset, "theta": 1e4 if theta is None else theta}
        model = validate(Model, shape, "--preset and --theta")
    params = load_weights(path, model, vocabulary, place=lambda key, leaf: place_leaf(key, leaf, model, where))
    return params, model, vocabulary


def mesh_sizes(devices: str) -> config.Mesh:
    """Read the sizes of a mesh, as `sp=4,tp=2`.

    Raises:
      UserError: it names an axis that there is not, or twice, or no size that it can have.
    """
    parts = [part.partition("=") for part in devices.split(",") if part]
    names = [name for name, _, _ in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--mesh {devices} names {twice[0]} twice: give one size for each axis")
    try:
        sizes = {name: int(size) for name, _, size in parts}
    except ValueError:
        raise UserError(f"--mesh {devices} is none: give sizes along {', '.join(mesh.NAMES)}, as sp=4,tp=2") from None
    return validate(config.Mesh, {"fsdp": 1, **sizes}, f"--mesh {devices}")


def recipe_of_run(path: str) -> dict[str, Any]:
    """Read the recipe beside the first of a run's data sets that has one, or nothing."""
    try:
        told = json.loads((Path(path) / RUN).read_text()).get("data", [])
    except (OSError, ValueError, AttributeError):
        return {}
    for url in [told] if isinstance(told, str) else told:
        for folder in (url, url.rstrip("/").rpartition("/")[0] or "."):
            try:
                found = yaml.load(Folder(folder).read(RECIPE) or b"", Loader)  # a SafeLoader
            except (OSError, ValueError, yaml.YAMLError, RecursionError):
                continue
            if isinstance(found, dict):
                return found
    return {}


def vocabulary_section(recipe: dict[str, Any], tokenizer: str | None, vision: str | None) -> VocabularySection:
    """Name the tokenizers: those given, else a recipe's, of which no stranger's address is read unasked."""
    try:
        section = VocabularySection.model_validate(recipe.get("vocabulary"))
    except ValueError:
        section = None
    found = section.vision if section else None
    text = tokenizer or (section.text if section and is_local(section.text) else None)
    if text is None:
        raise UserError("no recipe beside the run's data names a text model that can be read: name it by --tokenizer")
    if vision:
        kind = "vqgan" if Path(vision).is_dir() else "codebook"
        pixels = found.pixel_range if found and found.kind == kind else None
        found = VisionSection.model_validate({"kind": kind, "path": vision, "pixel_range": pixels})
    return VocabularySection(text=text, vision=found if vision or (found and is_local(found.path)) else None)


def check_tokenizers(path: str, section: VocabularySection, vocabulary: Vocabulary) -> None:
    """Refuse tokenizers that are not the model's."""
    if text_tokenizer(section.text).digest != vocabulary.text_digest:
        raise UserError(f"{section.text} is not the text model that {path} was trained with: name that by --tokenizer")
    if section.vision and vocabulary.codes and pictures_of(section).digest != vocabulary.vision_digest:
        raise UserError(
            f"{section.vision.path} is not the vision tokenizer that {path} was trained with: name that by --vision"
        )


def manner_of(recipe: dict[str, Any]) -> Manner:
    """Find in a recipe how captions and chats were written out; where it does not say, as by default."""
    sources = [source for source in recipe.get("sources") or [] if isinstance(source, dict)]
    try:
        renders = {
            medium: RenderSection.model_validate(source["render"])
            for medium, kind in MEDIA.items()
            for source in reversed(sources)
            if source.get("kind") == kind and source.get("render")
        }
        template: Any = next((source["template"] for source in sources if source.get("template")), {})
        return Manner(**renders, template=TemplateSection.model_validate(template))
    except ValueError:
        return Manner()


def _formed(render: RenderSection, form: str) -> RenderSection:
    return render if render.form == form else RenderSection.model_validate({"form": form, "template": render.template})
