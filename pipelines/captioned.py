"""Pictures and clips with captions: what tars, tables, folders and datasets hold, the bad ones named."""

import hashlib
import re
import reprlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from ..packing.ledger import DROPPED, FAILED
from ..sources import MediaSource
from .media import Unfit
from .reading.columns import Roles, column, roles
from .reading.damage import damage_passed_over, guarded
from .reading.files import FORM_OF_KIND, TABLES, form_of, open_plain, open_raw, read_capped
from .reading.listing import names_files
from .reading.naming import at, existing, filled, folder_of, held
from .reading.places import Root
from .reading.samples import CAPTION, SIDECAR, TEXT_BYTES, Sample, discard, read_samples
from .reading.tables import Row, name_in, parse_json, read_rows
from .reading.texts import checked
from .records import BadRecord, ImageText, Media, VideoText
from .units import Part

Found = ImageText | VideoText | BadRecord
LATEST = 1e9  # seconds
# HH:MM:SS.mmm, MM:SS or seconds
CLOCK = re.compile(r"(?:(?:(\d{1,9}):)?(\d{1,9}):)?(\d{1,9}(?:\.\d{0,99})?)", re.ASCII)


def read_part(source: MediaSource, part: Part, folder: Path | None = None) -> Iterator[Found]:
    """Yield every record of a part, in order; one that cannot be read comes as a `BadRecord`.

    Pictures in tars and tables come as bytes, clips there as temporary files, which whoever takes the record removes.
    They are made in `folder`, by default the system's.
    What lies on a file system of the user's comes as its URL, and what does not as an untrusted link.

    Raises:
      OSError: if the storage is in trouble: then the unit fails and is done again, and nothing is committed.
    """
    readers = {"tar": _tar, "picture": _file, "clip": _file}
    read = _table if source.dataset else readers.get(form_of(part.url), _table)
    return guarded(part, read(source, part, folder))


def named_versions(source: MediaSource, part: Part) -> str:
    """Digest the sizes and versions of the files that a table's rows name: a file that is replaced makes a new unit.

    "" where the rows hold media or links, and for a dataset, whose own fingerprint says what it holds.
    """
    if source.dataset or form_of(part.url) not in TABLES or not names_files(source, part):
        return ""
    marks = hashlib.blake2b(digest_size=16)
    for version in file_versions(source, part):
        marks.update(f"{version}\n".encode())
    return marks.hexdigest()


def file_versions(source: MediaSource, part: Part) -> Iterator[str]:
    """Yield what tells one content of the file that a row names from another, one for each row of a table."""
    root = Root(source.media_root or folder_of(part))
    with damage_passed_over():
        for row in read_rows(source, part):
            yield _version(source, row, root) if isinstance(row, Row) else ""


def _version(source: MediaSource, row: Row, root: Root) -> str:
    try:
        return root.version(_media(source, roles(source, row.values), row.values, root, None).path)
    except Unfit as flaw:
        return flaw.reason


def _tar(source: MediaSource, part: Part, folder: Path | None) -> Generator[Found]:
    empty = True
    with open_plain(part.url) as stream:
        for sample in read_samples(stream, FORM_OF_KIND[source.kind], source.record_bytes, folder):
            empty = False
            yield _of_sample(source, f"{part.id}/{sample.name}", f"{part.url} key {sample.name}", sample)
    if empty:
        yield BadRecord(part.id, part.url, "empty", "an archive of nothing", DROPPED)


def _file(source: MediaSource, part: Part, _: Path | None) -> Generator[Found]:
    """Read a picture or clip with the caption and the sidecar that lie beside it under its name."""
    sample = Sample(part.id, part.id, Media(path=part.url))
    if part.size > source.record_bytes:
        sample.spoil(FAILED, "too large", f"{part.size} bytes, over record_bytes = {source.record_bytes}")
    stem = part.url.rpartition(".")[0]
    for name, suffix in ((CAPTION, ".txt"), (SIDECAR, ".json")):
        try:
            with open_raw(stem + suffix) as file:
                sample.texts[name] = read_capped(file, TEXT_BYTES)
        except FileNotFoundError:
            continue
        if len(sample.texts[name]) > TEXT_BYTES:
            sample.spoil(FAILED, "too large", f"{stem + suffix} has over {TEXT_BYTES} bytes")
    yield _of_sample(source, part.id, part.url, sample)


def _of_sample(source: MediaSource, record: str, where: str, sample: Sample) -> Found:
    """Make a record of a sample, or say what is wrong with it and remove its temporary file."""
    try:
        return _paired(source, record, where, sample)
    except Unfit as flaw:
        discard(sample.media)
        return BadRecord(record, where, flaw.reason, flaw.detail, flaw.status)


def _paired(source: MediaSource, record: str, where: str, sample: Sample) -> Found:
    if sample.flaw:
        raise sample.flaw
    values = _values(sample.texts.get(SIDECAR, b"{}"))
    if not sample.media:
        raise _without_media(FORM_OF_KIND[source.kind], sample, values)
    caption = source.columns.caption or roles(source, values).caption
    if CAPTION in sample.texts and not source.columns.caption:
        text = _decoded(sample.texts[CAPTION])
    elif caption:
        text = _caption(column(values, caption))
    else:
        raise Unfit(FAILED, "no caption", "no .txt beside it, and no .json with a column that is known to hold one")
    record = name_in(values, source.columns.id) if source.columns.id else record
    times = (source.columns.start, source.columns.end) if source.kind == "video-text" else (None, None)
    return _record(Row(record, where, values), text, sample.media, source, times)


def _without_media(form: str, sample: Sample, values: dict[str, Any]) -> Unfit:
    """Say why a sample has no picture or clip: a download that failed, a dot in the key, or another kind of sample."""
    if lost := [suffix for suffix in sample.others if form_of(f"x.{suffix.rpartition('.')[2]}") == form]:
        return Unfit(FAILED, f"no {form}", f"but members {', '.join(lost)}: a key ends at its first dot")
    if not sample.texts:
        return Unfit(DROPPED, "no sample", f"neither media nor a caption, but {', '.join(sample.others) or 'nothing'}")
    said = [str(values[name])[:200] for name in ("status", "error_message") if values.get(name)]
    return Unfit(FAILED, f"no {form}", ": ".join(said))


def _values(sidecar: bytes) -> dict[str, Any]:
    values = parse_json(sidecar)
    if isinstance(values, tuple):
        raise Unfit(FAILED, *values)
    return values


def _decoded(data: bytes) -> str:
    try:
        return _caption(data.decode("utf-8-sig").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise Unfit(FAILED, "not UTF-8", f"the caption: {error.reason} at byte {error.start}") from None


def _caption(text: object) -> str:
    """Check a caption.

    Raises:
      Unfit: if it is no text, or text that no tokenizer takes.
    """
    if not isinstance(text, str):
        raise Unfit(FAILED, "no caption", f"found {type(text).__name__} where a string is needed")
    return checked(text, "the caption")


def _table(source: MediaSource, part: Part, folder: Path | None) -> Generator[Found]:
    root = Root(source.media_root or folder_of(part))
    for row in read_rows(source, part):
        yield _of_row(source, row, root, folder) if isinstance(row, Row) else row


def _of_row(source: MediaSource, row: Row, root: Root, folder: Path | None) -> Found:
    """Make a record of a row, or say what is wrong with it and remove its temporary file."""
    found, media = roles(source, row.values), None
    try:
        text = _caption(column(row.values, found.caption) if found.caption else None)
        media = _media(source, found, row.values, root, folder)
        if found.media:  # its bytes
            row = row._replace(values=_without(row.values, found.media))
        return _record(row, text, media, source, (found.start, found.end))
    except Unfit as flaw:
        discard(media)
        return BadRecord(row.record, row.where, flaw.reason, flaw.detail, flaw.status)


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Take a column out of a row; dots lead into nested ones."""
    top, _, rest = name.partition(".")
    if name in values or not rest:
        return {column: value for column, value in values.items() if column != name}
    inner = values.get(top)
    return {**values, top: _without(inner, rest)} if isinstance(inner, dict) else values


def _media(source: MediaSource, found: Roles, values: dict[str, Any], root: Root, folder: Path | None) -> Media:
    """Say where the picture or clip of a row is."""
    form = FORM_OF_KIND[source.kind]
    if found.paths:
        return at(existing([filled(template, values) for template in found.paths], root), form, root)
    if found.media:
        return held(column(values, found.media), form, source.record_bytes, root, folder)
    link = column(values, found.url) if found.url else None
    if not isinstance(link, str) or not link:
        raise Unfit(FAILED, "no URL", f"found {type(link).__name__} where a URL is needed")
    return Media(link=link)


def _record(
    row: Row, text: str, media: Media, source: MediaSource, times: tuple[str | None, str | None]
) -> ImageText | VideoText:
    """Make a record; `times` are the columns of a clip's start and end."""
    if source.kind == "image-text":
        return ImageText(row.record, row.where, text, media, row.values)
    start, end = (seconds(column(row.values, name)) if name else None for name in times)
    if start is not None and end is not None and start >= end:
        raise Unfit(FAILED, "bad times", f"the clip begins at {start} and ends at {end} seconds")
    return VideoText(row.record, row.where, text, media, row.values, start, end)


def seconds(value: object) -> float:
    """Read a time in a video: seconds, or HH:MM:SS.mmm.

    Raises:
      Unfit: if it is neither, or negative.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LATEST:
        return float(value)
    if isinstance(value, str) and (clock := CLOCK.fullmatch(value.strip())):
        hours, minutes, rest = clock.groups()
        return 3600 * int(hours or 0) + 60 * int(minutes or 0) + float(rest)
    raise Unfit(FAILED, "bad times", f"found {reprlib.repr(value)} where seconds or HH:MM:SS.mmm are needed")
