"""Text documents: what each form of file holds, one record after the other, the bad ones named."""

from collections.abc import Generator, Iterator

from ...packing.ledger import DROPPED
from ...sources import BookSource
from ..records import BadRecord, TextDocument
from ..units import Part
from .archive import is_outside, members
from .columns import column
from .damage import guarded
from .files import form_of, hidden, open_plain, read_capped
from .tables import Row, read_rows

Found = TextDocument | BadRecord


def read_part(source: BookSource, part: Part) -> Iterator[Found]:
    """Yield every record of a part, in order; one that cannot be read comes as a `BadRecord`.

    Raises:
      OSError: if the storage is in trouble: then the unit fails and is done again, and nothing is committed.
    """
    readers = {"txt": _text_file, "tar": _tar}
    read = _rows if source.dataset else readers.get(form_of(part.url), _rows)
    return guarded(part, read(source, part))


def _text_file(source: BookSource, part: Part) -> Generator[Found]:
    with open_plain(part.url) as file:
        yield decoded(part.id, part.url, read_capped(file, source.record_bytes), source.record_bytes)


def decoded(record: str, where: str, data: bytes, most: int) -> Found:
    """Read a text of at most `most` bytes of UTF-8."""
    if len(data) > most:
        return BadRecord(record, where, "too large", f"more than {most} bytes")
    try:
        return TextDocument(record, where, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRecord(record, where, "not UTF-8", f"{error.reason} at byte {error.start}: convert it to UTF-8")


def _rows(source: BookSource, part: Part) -> Generator[Found]:
    for row in read_rows(source, part):
        yield _document(row, source) if isinstance(row, Row) else row


def _document(row: Row, source: BookSource) -> Found:
    """Make a document of a row's columns."""
    name, text = source.columns.text, column(row.values, source.columns.text)
    if not isinstance(text, str):
        found = f"column {name} holds {type(text).__name__}, not a string"
        return BadRecord(row.record, row.where, "no text", found)
    if _is_longer(text, source.record_bytes):
        return BadRecord(row.record, row.where, "too large", f"over record_bytes = {source.record_bytes}")
    return TextDocument(row.record, row.where, text, row.values)


def _is_longer(text: str, most: int) -> bool:
    """Has a text more bytes than `most` as UTF-8? A character has one to four."""
    return len(text) > most or (4 * len(text) > most and len(text.encode("utf-8", "surrogatepass")) > most)


def _tar(source: BookSource, part: Part) -> Generator[Found]:
    member = None
    with open_plain(part.url) as stream:
        for member, content in members(stream):
            record, where = f"{part.id}/{member.name}", f"{part.url} member {member.name}"
            if content is None or is_outside(member.name):
                yield BadRecord(record, where, "no plain member", "a link, a device, or a path outside the archive")
            elif not member.name.lower().endswith(".txt") or hidden(member.name.removeprefix("./"), "txt"):
                yield BadRecord(record, where, "no text member", "no .txt, or hidden", DROPPED)
            else:
                yield decoded(record, where, read_capped(content, source.record_bytes), source.record_bytes)
    if member is None:
        yield BadRecord(part.id, part.url, "empty", "an archive of nothing", DROPPED)
