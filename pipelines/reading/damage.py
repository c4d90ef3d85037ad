"""What broken files raise, and how it is told: one record for the file, and never a name that cannot be stored."""

import tarfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TypeVar

import pyarrow as pa

from ..records import BadRecord, Chat, Fields, ImageText, TextDocument, storable
from ..units import Part
from .files import is_storage_trouble

DAMAGE = (OSError, EOFError, UnicodeError, pa.ArrowException, tarfile.TarError)  # what broken files and streams raise
Record = TypeVar("Record", bound=TextDocument | ImageText | Chat | Fields | BadRecord)


@contextmanager
def damage_passed_over() -> Iterator[None]:
    """Leave the block where a file turns out to be damaged; trouble of the storage is raised."""
    try:
        yield
    except DAMAGE as error:
        if is_storage_trouble(error):
            raise


def guarded(part: Part, records: Generator[Record | BadRecord]) -> Iterator[Record | BadRecord]:
    """Yield records, and one more where the file turns out to be damaged.

    Raises:
      OSError: if the storage is in trouble: then the unit fails and is done again, and nothing is committed.
    """
    try:
        with closing(records):
            for record in records:
                yield _storable(record)
    except DAMAGE as error:
        if is_storage_trouble(error):
            raise
        bad = BadRecord(f"{part.id}#damaged", part.url, "damaged file", f"{type(error).__name__}: {error}")
        yield _storable(bad)


def _storable(found: Record) -> Record:
    if isinstance(found, BadRecord):
        found = replace(found, error=storable(found.error))
    if found.record.isascii() and found.where.isascii():
        return found
    return replace(found, record=storable(found.record), where=storable(found.where))
