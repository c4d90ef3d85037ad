"""`worldloom inspect`: joins what a data set holds with the models that decode it, on the terminal or in files."""

import argparse
import json
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import yaml
from rich.console import Console, Group

from .errors import UserError
from .packing.dataset import Dataset, open_dataset
from .packing.inspect import Clip, Frame, blocks, find_record, row_detail, sample_rows, summarise
from .packing.render import clock, render_row, render_summary, visible
from .packing.storage import Folder
from .packing.thin import uniform
from .packing.verify import data_sets
from .packing.weights import Rule
from .page import page
from .page_content import Place
from .recipe import VisionSection, VocabularySection
from .tokenizers.text import load
from .tokenizers.vision import VisionTokenizer
from .tokenizers.vision import load as load_vision
from .tokenizers.vocabulary import Vocabulary

Decode = Callable[[list[int]], str]
RECIPE = "recipe.yaml"  # what a build writes into its folder
FRAMES, PICTURES = 32, 256  # frames of a clip and in all that are drawn unless all are asked for: some 20 MB of PNG
SIDE = 128  # pixels of a video's frame on a page; an image that stands alone keeps its size


def inspect(options: argparse.Namespace, console: Console) -> int:
    """Show what the command line asks for. Returns the exit code: 1 where a record is nowhere."""
    if options.record is not None:
        return show_record(options, console)
    if options.row is None and options.sample is None:
        if options.html or options.sheet:
            raise UserError("--html and --sheet show rows: say which by --row N, or how many by --sample N")
        show_summaries(options, console)
    else:
        show_rows(options, console)
    return 0


def show_summaries(options: argparse.Namespace, console: Console) -> None:
    """Print a summary of a data set, or of each one of a build."""
    urls = [str(Folder(options.data).sub(name).url) if name else options.data for name in data_sets(options.data)]
    summaries = {url: summarise(url, options.task, options.source) for url in urls}
    if options.json:
        _print_json(console, {url: s.to_json() for url, s in summaries.items()})
        return
    for url, summary in summaries.items():
        console.rule(visible(url))
        console.print(render_summary(summary))


def show_rows(options: argparse.Namespace, console: Console) -> None:
    """Print one row, or some that chance chooses, always the same.

    Raises:
      UserError: if the folder is no single data set, or has no such row.
    """
    dataset = open_dataset(options.data)
    rows = [options.row] if options.row is not None else []
    if options.sample is not None:
        rows += sample_rows(dataset, options.sample, task=options.task, source=options.source)
    if not all(0 <= row < dataset.rows for row in rows):
        raise UserError(f"{options.data} has no row {options.row}: its {dataset.rows:,} rows begin at 0")
    rule = Rule(options.weights) if options.weights else None
    decode = decoder(dataset, options.tokenizer)
    details = [row_detail(dataset, row, rule, decode) for row in rows]
    written = write_files(dataset, list({d["row"]: d for d in details}.values()), options)
    if options.json:
        _print_json(console, details)
    elif written:
        console.print("\n".join(written), markup=False, soft_wrap=True)
    else:
        console.print(Group(*(render_row(detail, options.full) for detail in details)))


def show_record(options: argparse.Namespace, console: Console) -> int:
    """Print where a record went: its rows, or why it has none."""
    found = find_record(options.data, options.record)
    if options.json:
        _print_json(console, found)
    elif not found:
        console.print(f"no row and no reject is called {visible(options.record)}", markup=False, soft_wrap=True)
    else:
        for hit in found:
            facts = ", ".join(f"{name} {visible(str(value))}" for name, value in hit.items() if value not in ("", None))
            console.print(facts, markup=False, soft_wrap=True)
    return int(not found)


def decoder(dataset: Dataset, path: str | None) -> Decode | None:
    """Load the text model that a data set was made with: the one named, else the one that its build's recipe names.

    Returns:
      None where no recipe lies beside the data set, or its model is gone or not local: ids are shown instead.

    Raises:
      UserError: if the model named is another one.
    """
    named = path or _recipe_model(dataset.folder)
    if named is None:
        return None
    try:
        tokenizer = load(named)
    except UserError:
        if path:
            raise
        return None
    if tokenizer.digest != dataset.vocabulary.text_digest:
        raise UserError(
            f"{named} is not the text model that {dataset.folder.url} was made with: name it by --tokenizer"
        )
    return lambda ids: tokenizer.decode(ids)


def _recipe_model(folder: Folder) -> str | None:
    section = _vocabulary(folder)
    return section.text if section and is_local(section.text) else None


def is_local(path: str) -> bool:
    """May a path of a recipe be read unasked? A data set may be a stranger's, and so are the URLs in it."""
    return "://" not in path and "::" not in path


class Loader(yaml.SafeLoader):
    """A loader without merges, of which each line may double the last."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave a mapping as it is."""


def _vocabulary(folder: Folder) -> VocabularySection | None:
    """Read the vocabulary section of the build's recipe, where there is one, and it is well-formed."""
    for place in (folder, Folder(folder.url.rstrip("/").rpartition("/")[0] or ".")):
        if data := place.read(RECIPE):
            try:
                return VocabularySection.model_validate(yaml.load(data, Loader)["vocabulary"])  # a SafeLoader
            except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
                return None
    return None


def vision_model(dataset: Dataset, path: str | None) -> VisionTokenizer | str:
    """Load the vision tokenizer that a data set was made with: the one named, else the one of its build's recipe.

    Returns:
      Why there is none, where no recipe names one, or it is gone or not local.

    Raises:
      UserError: if the model named cannot be loaded, or is another one.
    """
    recipe = _vocabulary(dataset.folder)
    section = recipe.vision if recipe else None
    if path:
        section = section or VisionSection(kind="vqgan" if Path(path).is_dir() else "codebook", path=path)
        section = section.model_copy(update={"path": path})
    if not section:
        return "no recipe beside the data set names a vision tokenizer: name it by --vision"
    if not path and not is_local(section.path):
        return f"{visible(section.path)} is not read only because a recipe names it: name it by --vision"
    try:
        model = load_vision(section.kind, section.path, section.pixel_range)
    except UserError as error:
        if path:
            raise
        return str(error)
    if model.digest != dataset.vocabulary.vision_digest:
        raise UserError(
            f"{section.path} is not the vision tokenizer that {dataset.folder.url} was made with: name it by --vision"
        )
    return model


class Scene(NamedTuple):
    """A frame where it stands, and its picture as PNG, or why there is none."""

    row: int
    segment: int
    clip: Clip
    frame: Frame
    picture: bytes | str = ""

    @property
    def place(self) -> Place:
        return self.row, self.frame.start


def write_files(dataset: Dataset, rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    """Write the page and the contact sheet that are asked for. Returns a line about each.

    Raises:
      UserError: if a file cannot be there, the contact sheet would be empty, or the vision tokenizer is the wrong one.
    """
    if not (options.html or options.sheet):
        return []
    _check_targets([path for path in (options.html, options.sheet) if path])
    films = scenes_of(rows, dataset.vocabulary)
    total = sum(map(len, films))
    model = vision_model(dataset, options.vision) if total else "the rows have no frames"
    scenes = draw(chosen(films, options.full), model)
    lines = []
    if options.html:
        lines.append(_write_page(dataset, rows, scenes, total, model, options))
    if options.sheet:
        lines.append(_write_sheet(rows, scenes, total, model, options.sheet))
    return lines


def _check_targets(paths: list[str]) -> None:
    """Refuse names under which no file can be written, before frames are drawn."""
    for path in paths:
        if not Path(path).parent.is_dir() or Path(path).is_dir():
            raise UserError(f"{path} cannot be written: name a file in a folder that is there")
    if len(set(map(os.path.realpath, paths))) < len(paths):
        raise UserError(f"--html and --sheet both name {paths[0]}: give each a file of its own")


def scenes_of(rows: list[dict[str, Any]], vocabulary: Vocabulary) -> list[list[Scene]]:
    """Find all frames of rows, a list for each clip."""
    return [
        [Scene(row["row"], segment["segment"], block, frame) for frame in block.frames]
        for row in rows
        for segment in row["segments"]
        for block in blocks(segment, vocabulary)
        if isinstance(block, Clip)
    ]


def chosen(films: list[list[Scene]], full: bool) -> list[Scene]:
    """Choose the frames to draw: all, or a bounded number of each clip and altogether."""
    if full:
        return list(chain.from_iterable(films))
    return spread([scene for film in films for scene in spread(film, FRAMES)], PICTURES)


def spread(scenes: list[Scene], limit: int) -> list[Scene]:
    """Choose at most `limit`, the first, the last and as evenly as can be between."""
    if len(scenes) <= limit:
        return scenes
    return [scenes[i] for i in uniform(limit, len(scenes))]


def draw(scenes: list[Scene], model: VisionTokenizer | str) -> list[Scene]:
    """Give each frame its picture, or say why it has none; `model` may be why there is no tokenizer."""
    if isinstance(model, str):
        return [scene._replace(picture="no vision tokenizer, see the top") for scene in scenes]
    from .drawing import decoded, png  # Pillow is of the extra `vision`

    flaws = [flaw(scene.frame.codes, model) for scene in scenes]
    sound = [scene.frame.codes for scene, wrong in zip(scenes, flaws, strict=True) if not wrong]
    pictures = decoded(sound, model.decode)
    sides = [SIDE if len(scene.clip.frames) > 1 else model.size for scene in scenes]
    return [
        scene._replace(picture=wrong or png(next(pictures), side))
        for scene, wrong, side in zip(scenes, flaws, sides, strict=True)
    ]


def flaw(codes: np.ndarray, model: VisionTokenizer) -> str:
    """Say why codes are no frame of a tokenizer; empty if they are one."""
    if len(codes) != model.grid**2:
        return f"{len(codes):,} codes, and a frame has {model.grid**2:,}"
    if codes.max() >= model.codes:
        return f"code {codes.max():,}, and the tokenizer has {model.codes:,}"
    return ""


def _write_page(
    dataset: Dataset,
    rows: list[dict[str, Any]],
    scenes: list[Scene],
    total: int,
    model: VisionTokenizer | str,
    options: argparse.Namespace,
) -> str:
    name, shown = dataset.folder.url.rstrip("/").rpartition("/")[2], _row_names(rows)
    drawn = f"{sum(isinstance(s.picture, bytes) for s in scenes):,} of {total:,} frames drawn"
    facts = {
        "data set": dataset.folder.url,
        "kind": dataset.manifest["kind"] + (f" of {dataset.length:,} tokens" if dataset.length else ""),
        "rows": f"{len(rows):,} of {dataset.rows:,}",
        "frames": f"{drawn}, as PNG; those of a video scaled down to {SIDE} pixels" if total else "",
        "vision tokenizer": (model if isinstance(model, str) else model.digest) if total else "",
        "root": dataset.root,
    }
    pictures = {scene.place: scene.picture for scene in scenes}
    text = page(f"{shown.capitalize()} of {name}", facts, rows, dataset.vocabulary, pictures, options.full)
    Path(options.html).write_text(text, "utf-8")
    return f"{visible(options.html)}: a page of {shown}, {drawn}"


def _write_sheet(
    rows: list[dict[str, Any]], scenes: list[Scene], total: int, model: VisionTokenizer | str, path: str
) -> str:
    from .drawing import Tile, contact_sheet

    drawn = spread([scene for scene in scenes if isinstance(scene.picture, bytes)], PICTURES)
    if not drawn:
        why = model if isinstance(model, str) else "no frame of the rows is whole"
        raise UserError(f"{path} would be an empty contact sheet: {why}")
    tiles = [Tile(cast(bytes, s.picture), _label(s), s.frame.trained > 0) for s in drawn]
    words = f"{len(drawn):,} of {total:,} frames"
    Path(path).write_bytes(contact_sheet(tiles, f"{words}; green border: trained"))
    return f"{visible(path)}: a contact sheet of {_row_names(rows)}, {words}"


def _label(scene: Scene) -> tuple[str, str]:
    frame = scene.frame
    time = f" {clock(frame.seconds)}" if frame.seconds is not None else ""
    trained = "" if frame.trained else ", not trained"
    return f"row {scene.row}, segment {scene.segment}", f"#{frame.number}{time}{trained}"


def _row_names(rows: list[dict[str, Any]]) -> str:
    return f"row{'s' * (len(rows) > 1)} {', '.join(str(row['row']) for row in rows)}"


def _print_json(console: Console, data: Any) -> None:
    console.print(json.dumps(data, indent=1), markup=False, highlight=False, soft_wrap=True)
