"""The sources of a recipe: what is read, which of it is kept, and what it becomes."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from .schema import Section

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=False)]
Number = Annotated[float, Field(strict=False, allow_inf_nan=False)]
Above = Annotated[float, Field(strict=False, gt=0, allow_inf_nan=False)]
Scalar = str | int | float | bool
PLACE = re.compile(r"\{([^{}]+)\}")


def template_columns(path: str) -> list[str]:
    """Name the columns that a path holds in braces."""
    return PLACE.findall(path)


class _Source(Section):
    """What every source has. Its unit_bytes are about how much input one work unit reads."""

    name: Name
    path: str | list[str] = Field([], description="files, globs, folders, or a dataset saved with save_to_disk")
    dataset: str | None = Field(None, description="a dataset that datasets.load_dataset finds, instead of path")
    split: str = Field("train", description="split of a Hugging Face dataset")
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


class BooksSource(_Source):
    """Plain text: .txt files, JSONL, parquet, tars of .txt, or Hugging Face datasets."""

    kind: Literal["books"]
    columns: BookColumns = BookColumns()
    filters: BookFilters = BookFilters()
    strip_gutenberg: bool = Field(False, description="take off Project Gutenberg's header and footer")


class ImageColumns(Section):
    """Where tables and sidecars keep what is needed; left out: the names that LAION, COYO and others publish."""

    caption: str | None = None
    media: str | None = Field(None, description="a column that holds the picture or its path")
    url: str | None = None
    id: str | None = Field(None, description="a column that names the record; by default file and place do")


class VideoColumns(ImageColumns):
    """The same for clips; WebVid's and InternVid's names are known."""

    start: str | None = Field(None, description="where the clip begins in its video: seconds or HH:MM:SS.mmm")
    end: str | None = None


class ImageFilters(Section):
    """What is kept of a source of images. What is left out filters nothing."""

    min_side: int | None = Field(None, ge=1, description="shorter side in pixels, at the least")
    max_aspect: Above | None = Field(None, ge=1, description="longer side over the shorter, at the most")
    min_caption: int | None = Field(None, ge=1, description="characters of the caption, at the least")
    max_caption: int | None = Field(None, ge=1, description="characters of the caption, at the most")
    equals: dict[str, Scalar] = Field({}, description="columns and the values that they must have")
    at_least: dict[str, Number] = Field({}, description="columns of scores, and the lowest that is kept")
    at_most: dict[str, Number] = Field({}, description="columns of scores, and the highest that is kept")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self, "min_caption", "max_caption")
        return self


class VideoFilters(ImageFilters):
    """What is kept of a source of clips."""

    min_seconds: Above | None = Field(None, description="duration of the clip, at the least")
    max_seconds: Above | None = None
    min_frames: int | None = Field(None, ge=1, description="frames at 4 a second, before any is left out")

    @model_validator(mode="after")
    def _seconds_ordered(self) -> Self:
        _check_order(self, "min_seconds", "max_seconds")
        return self


def _check_order(section: Section, low: str, high: str) -> None:
    least, most = getattr(section, low), getattr(section, high)
    if least and most and least > most:
        raise ValueError(f"{low} {least} must not be above {high} {most}")


class RenderSection(Section):
    """How a pair becomes an example. The order of caption and media is drawn for each record at even odds."""

    caption_dropout: Fraction = Field(0.0, description="fraction of the pairs whose caption is left out")
    trained: Literal["all", "target"] = Field("all", description="all but BOS, or what comes second alone")


class FetchSection(Section):
    """How URLs are fetched. Addresses that are not public are never asked, whatever stands here."""

    at_once: int = Field(64, ge=1, le=1024, description="requests in flight in one worker")
    per_host: int = Field(8, ge=1, description="requests in flight to one host in one worker")
    seconds: Above = Field(60.0, description="time for one file, all in all")
    retries: int = Field(2, ge=0, le=10, description="tries more, where another may help")


class _MediaSource(_Source):
    """What images and clips have in common."""

    media_root: str | None = Field(None, description="folder of the paths in a table; default: the table's")
    media: str | None = Field(
        None, description="path of a row's file below media_root, with columns in braces: {page_dir}/{videoid}.mp4"
    )
    render: RenderSection = RenderSection()
    fetch: FetchSection = FetchSection()

    @field_validator("media")
    @classmethod
    def _names_columns(cls, media: str | None) -> str | None:
        if media is not None and (not template_columns(media) or re.search(r"[{}]", PLACE.sub("", media))):
            raise ValueError("name at least one column, each in braces, as in {page_dir}/{videoid}.mp4")
        return media

    @model_validator(mode="before")
    @classmethod
    def _media_or_column(cls, data: Any) -> Any:
        columns = data.get("columns") if isinstance(data, dict) else None
        if isinstance(columns, dict) and columns.get("media") and data.get("media"):
            raise ValueError("give either media or columns.media")
        return data


class ImageTextSource(_MediaSource):
    """Images with captions: WebDataset tars, tables of URLs or paths, folders, or Hugging Face datasets."""

    kind: Literal["image-text"]
    columns: ImageColumns = ImageColumns()
    filters: ImageFilters = ImageFilters()
    fast: bool = Field(False, description="decode JPEG at less than twice the size; docs/vision-data.md says the cost")
    record_bytes: int = Field(2**25, ge=1, le=2**31 - 4, description="a file with more bytes fails")
    unit_bytes: int = Field(2**28, ge=1, description="about how much input one work unit reads; of a table, its rows")


class VideoTextSource(_MediaSource):
    """Clips with captions: WebDataset tars, WebVid's and InternVid's tables, folders, or Hugging Face datasets."""

    kind: Literal["video-text"]
    columns: VideoColumns = VideoColumns()
    filters: VideoFilters = VideoFilters()
    frames: int = Field(30, ge=1, le=2**16, description="most frames kept, at 4 a second (LWM: 30, 100, 450, 4000)")
    sampling: Literal["window", "uniform"] = Field(
        "window", description="of longer clips: consecutive frames, or all over its length"
    )
    record_bytes: int = Field(2**31, ge=1, le=2**40, description="a file with more bytes fails")
    unit_bytes: int = Field(2**28, ge=1, description="about how much input one work unit reads; of a table, its rows")


MediaSource = ImageTextSource | VideoTextSource
Source = BooksSource | ImageTextSource | VideoTextSource
