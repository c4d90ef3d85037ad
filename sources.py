"""The sources of a recipe: what is read, which of it is kept, and what it becomes."""

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

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
    records: int | None = Field(
        None, ge=1, description="that the whole source holds, where path names a sample of it: plan alone scales to it"
    )

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


class _TextSource(_Source):
    """What sources of plain text have in common: .txt files, JSONL, parquet, tars of .txt, or Hugging Face datasets."""

    columns: BookColumns = BookColumns()
    filters: BookFilters = BookFilters()
    strip_gutenberg: bool = Field(False, description="take off Project Gutenberg's header and footer")


class BooksSource(_TextSource):
    """Plain text: .txt files, JSONL, parquet, tars of .txt, or Hugging Face datasets."""

    kind: Literal["books"]


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


class TemplateSection(Section):
    """How a chat is written out; `{}` is what was said. Every part is encoded as a string of its own.

    The defaults are LWM's (scripts/sample_pyt.py:12, lwm/vision_chat.py:117).
    """

    system: str = Field("You are a helpful assistant.", description="stands before the first turn; may be empty")
    user: str = Field("USER: {}", description="a question")
    before_media: str = Field("\n", description="stands between a question and the pictures and clips that follow it")
    assistant: str = Field("ASSISTANT:", description="stands before an answer")

    @field_validator("user")
    @classmethod
    def _has_a_place(cls, user: str) -> str:
        if user.count("{}") != 1:
            raise ValueError("write {} once, where the question stands")
        return user

    @field_validator("*")
    @classmethod
    def _ends_without_a_space(cls, part: str) -> str:
        if part.endswith(" "):
            raise ValueError("must not end with a space: the next part begins with one of its own")
        return part


class RenderSection(Section):
    """How a pair becomes an example. The order of caption and media is drawn for each record at even odds.

    A `chat` asks for the picture of a caption, and trains on the picture alone.
    """

    form: Literal["pair", "chat"] = "pair"
    prompt: str = Field("", description="of a chat, {} is the caption; default: LWM's 'Generate an image of {}'")
    template: TemplateSection = TemplateSection()
    caption_dropout: Fraction = Field(0.0, description="fraction of the pairs whose caption is left out")
    trained: Literal["all", "target"] = Field("all", description="all but BOS, or what comes second alone")

    @field_validator("prompt")
    @classmethod
    def _has_a_place(cls, prompt: str) -> str:
        if prompt and prompt.count("{}") != 1:
            raise ValueError("write {} once, where the caption stands")
        return prompt

    @model_validator(mode="after")
    def _fits_its_form(self) -> Self:
        if self.form == "pair" and self.prompt:
            raise ValueError("prompt is of a chat: set form to chat, or take prompt out")
        if self.form == "chat" and (self.caption_dropout or self.trained != "all"):
            raise ValueError("caption_dropout and trained are of form pair; a chat trains on its answers alone")
        return self


class FetchSection(Section):
    """How URLs are fetched. Addresses that are not public are never asked, whatever stands here."""

    at_once: int = Field(64, ge=1, le=1024, description="requests in flight in one worker")
    per_host: int = Field(8, ge=1, description="requests in flight to one host in one worker")
    seconds: Above = Field(60.0, description="time for one file, all in all")
    retries: int = Field(2, ge=0, le=10, description="tries more, where another may help")


class _FileSource(_Source):
    """What sources have in common whose records name files."""

    media_root: str | None = Field(None, description="folder of the paths in a table; default: the table's")
    media: str | None = Field(
        None, description="path of a row's file below media_root, with columns in braces: {page_dir}/{videoid}.mp4"
    )
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


class _MediaSource(_FileSource):
    """What images and clips with captions have in common."""

    render: RenderSection = RenderSection()


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


class ChatColumns(Section):
    """Where the rows of chats keep what their published shapes do not tell."""

    id: str | None = Field(None, description="a column that names the record; by default file and place do")


def compiled(pattern: str) -> Any:
    """Compile a regular expression for a search in linear time, whatever the pattern and the text.

    Raises:
      ImportError: if the extra `build` is not installed.
      re2.error: if RE2 does not know the pattern: it has no lookaround and no back references.
    """
    import re2

    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


class ChatFilters(Section):
    """What is kept of a source of chats. What is left out filters nothing; a turn is a question and its answer."""

    min_turns: int | None = Field(None, ge=1)
    max_turns: int | None = Field(None, ge=1)
    min_answer_tokens: int | None = Field(None, ge=1, description="of all answers together")
    max_answer_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=1, description="of the whole example, its frames included")
    max_tokens: int | None = Field(None, ge=1)
    languages: list[Annotated[str, Field(pattern="^[a-z]{2}$")]] = Field(
        [], description="languages of the text that are kept, as ISO 639-1 codes: [en, de]"
    )
    refusals: Literal["keep", "drop"] = Field("keep", description="answers that are a refusal, or an AI's boilerplate")
    patterns: list[str] = Field([], description="regular expressions (RE2's) that no answer may match")
    min_side: int = Field(256, ge=1, description="shorter side of every picture and clip in pixels, at the least")
    equals: dict[str, Scalar] = Field({}, description="columns and the values that they must have")

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                compiled(pattern)
            except ImportError as error:
                raise ValueError(f"patterns need google-re2: pip install 'worldloom[build]' ({error})") from None
            except Exception as error:  # re2.error, of a module that may be missing
                raise ValueError(f"{pattern!r} is no regular expression that RE2 knows: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for what in ("turns", "answer_tokens", "tokens"):
            _check_order(self, f"min_{what}", f"max_{what}")
        return self


class ChatSource(_FileSource):
    """Chats as they are published: UltraChat, ShareGPT4V, Valley, Video-ChatGPT, or plain messages as OpenAI's."""

    kind: Literal["chat"]
    columns: ChatColumns = ChatColumns()
    filters: ChatFilters = ChatFilters()
    template: TemplateSection = TemplateSection()
    frames: int = Field(100, ge=1, le=2**16, description="most frames kept of a clip (LWM: 100, 450, 4000)")
    sampling: Literal["window", "uniform"] = Field("uniform", description="of longer clips: see video-text")
    fast: bool = Field(False, description="decode JPEG at less than twice the size; docs/vision-data.md says the cost")
    record_bytes: int = Field(2**31 - 4, ge=1, le=2**40, description="a picture or clip with more bytes fails its chat")
    unit_bytes: int = Field(2**25, ge=1, description="about how much of the chats, without their media, one unit reads")


def _is_link(url: str) -> bool:
    """Is this a URL of the web, with a host, and a port that is one?"""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class QuestionsSection(Section):
    """What makes a question and its answer of a chunk: a language model, or without one a cloze.

    A cloze is a sentence of the chunk with a word left out: it needs no server and no money.
    """

    by: Literal["cloze", "server"] = "cloze"
    url: str = Field("", description="of an OpenAI-compatible server, up to /v1")
    model: str = Field("", description="the server's name of it")
    key: str = Field(
        "WORLDLOOM_API_KEY",
        pattern=r"^WORLDLOOM_([A-Z0-9_]+_)?API_KEY$",  # no recipe of a stranger's sends other secrets to its url
        description="environment variable that holds the server's key, if it wants one: its name begins with WORLDLOOM_"
        " and ends in API_KEY, and who exports it agrees that recipes send it to the url that they name",
    )
    prompt: str = Field("", description="what the model is asked, {} is the chunk; default: see docs/chat-data.md")
    temperature: Annotated[float, Field(strict=False, ge=0, le=2)] = 0.7
    max_tokens: int = Field(256, ge=16, description="of a reply")
    limited_by: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the server calls that; OpenAI's own newer models want the second"
    )
    structured: Literal["json_schema", "json_object", "none"] = Field(
        "json_schema", description="how the server is told that it must answer in JSON"
    )
    at_once: int = Field(8, ge=1, le=1024, description="requests in flight in one worker")
    per_minute: Above | None = Field(None, description="requests a minute of all workers of a machine together")
    seconds: Above = Field(60.0, description="time for one reply")
    retries: int = Field(5, ge=0, le=20, description="tries more, where another may help")
    dollars_in: Annotated[float, Field(strict=False, ge=0)] = Field(0.0, description="a million tokens of prompts")
    dollars_out: Annotated[float, Field(strict=False, ge=0)] = Field(0.0, description="a million tokens of replies")
    support: Fraction = Field(0.6, description="of an answer's words, how many must stand in the chunk")

    @model_validator(mode="after")
    def _server_is_named(self) -> Self:
        if self.by == "server" and not (_is_link(self.url) and self.model):
            raise ValueError("a server needs its url, http://… or https://…, and the name of its model")
        if self.prompt and self.prompt.count("{}") != 1:
            raise ValueError("prompt: write {} once, where the chunk stands")
        return self


class BookQuestionsSource(_TextSource):
    """Books with questions about them: chunks side by side, and questions about some of them at the end."""

    kind: Literal["book-questions"]
    template: TemplateSection = TemplateSection()
    questions: QuestionsSection = QuestionsSection()
    chunk: int = Field(1000, ge=16, description="tokens of a chunk, which one question is about (LWM: 1000)")
    length: int = Field(2**15, ge=256, le=2**24, description="tokens of an example at the most")
    trained: Fraction = Field(0.01, description="tokens of answers, of an example's, at the most (LWM: under 1 %)")

    @model_validator(mode="after")
    def _holds_a_chunk(self) -> Self:
        if self.length < 2 * self.chunk:
            raise ValueError(f"length {self.length} must be at least twice chunk, {self.chunk}")
        return self


class LwmColumns(Section):
    """Where the rows keep their specs; all else that a row has is what its spec names."""

    fields: str = Field("fields", description="a spec, or several (LWM's fields_from_example)")
    id: str | None = Field(None, description="a column that names the record; by default file and place do")

    @property
    def text(self) -> str:
        """The column that every row has."""
        return self.fields


class LwmFilters(Section):
    """What is kept of LWM's rows."""

    equals: dict[str, Scalar] = Field({}, description="columns and the values that they must have")


class LwmSource(_Source):
    """LWM's pre-tokenized JSONL: texts and picture codes, and in each row a spec that says how they follow."""

    kind: Literal["lwm-jsonl"]
    columns: LwmColumns = LwmColumns()
    filters: LwmFilters = LwmFilters()
    index: int = Field(-1, ge=-1, description="which of several specs is taken; -1 draws one for each record")
    frames: int | None = Field(None, ge=1, description="most frames kept, all over the clip (LWM's max_n_frames)")

    @model_validator(mode="after")
    def _is_files(self) -> Self:
        if self.dataset:
            raise ValueError("kind lwm-jsonl reads files of JSONL: give path instead of dataset")
        return self


BookSource = BooksSource | BookQuestionsSource
TextSource = BookSource | LwmSource  # whose records hold all that they are made of
MediaSource = ImageTextSource | VideoTextSource
Source = BooksSource | ImageTextSource | VideoTextSource | ChatSource | BookQuestionsSource | LwmSource
