"""What a source consists of: its files and datasets, cut into parts that a worker reads each."""

import itertools
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import UserError
from ...sources import ChatSource, LwmSource, MediaSource, Source, TextSource
from ..units import Part
from .columns import lacking, roles
from .damage import damage_passed_over
from .files import (
    BOOKS,
    CHATS,
    FORM_OF_KIND,
    ROWS,
    TABLES,
    File,
    codec_of,
    filesystem,
    form_of,
    list_files,
    open_plain,
    open_raw,
    version_of,
)
from .json_arrays import read_elements
from .tables import (
    is_bytes,
    is_saved_dataset,
    load_hugging_face,
    parse_json,
    read_header,
    row_bytes,
    table_lines,
    text_schema,
)

# What a row costs that names a file or URL, in bytes: about a photograph of the web, and about a clip of 10 seconds.
ROW_COST = {"image-text": 2**16, "video-text": 2**22}
SAMPLE = 2**16  # bytes of a table from whose lines their length is estimated
WHOLE = -1


def list_parts(source: Source) -> Iterator[tuple[Part, int]]:
    """Yield the parts of a source in order, each with the bytes that it makes a worker read.

    Raises:
      UserError: if a path matches nothing, or a dataset or the first table is not as the recipe says.
    """
    if source.dataset or (len(source.paths) == 1 and is_saved_dataset(source.paths[0])):
        yield from _dataset_parts(source)
        return
    files = list_files(source.paths, _forms(source))
    if not isinstance(source, TextSource):
        _check_media_root(source)
    if not isinstance(source, TextSource | ChatSource):
        files = _captioned(_unnamed(_unindexed(files)))
    for form in ("parquet", "csv", "tsv", "jsonl", "json"):
        _check_columns(source, next((f for f in files if form_of(f.url) == form), None))
    for file in files:
        yield from _file_parts(file, source)


def _forms(source: Source) -> frozenset[str]:
    if isinstance(source, LwmSource):
        return ROWS
    if isinstance(source, TextSource):
        return BOOKS
    if isinstance(source, ChatSource):
        return CHATS
    return TABLES | {"tar", FORM_OF_KIND[source.kind]}


def _unindexed(files: list[File]) -> list[File]:
    """Leave out the tables that img2dataset and video2dataset put beside each tar, or each folder, of the same name."""
    stems = {_stem(file.id) for file in files if form_of(file.id) == "tar"}
    beside = [file for file in files if form_of(file.id) == "parquet" and _stem(file.id) in _folders(files)]
    if beside and _is_index(beside[0].url):  # written by the same program, one is as the other
        stems |= {_stem(file.id) for file in beside}
    return [file for file in files if form_of(file.id) != "parquet" or _stem(file.id) not in stems]


def _is_index(url: str) -> bool:
    """Is a parquet file one of those that list what img2dataset or video2dataset did?"""
    schema = _schema(url, 0)
    return schema is not None and {"key", "status"} <= set(schema.names)


def _stem(name: str) -> str:
    """Take a file's compression and form off its name."""
    path = PurePosixPath(name)
    return str(
        path.with_suffix("").with_suffix("") if codec_of(name) and path.suffix != ".tgz" else path.with_suffix("")
    )


def _folders(files: Iterable[File]) -> set[str]:
    return {str(folder) for file in files for folder in PurePosixPath(file.id).parents}


def _unnamed(files: list[File]) -> list[File]:
    """Leave out pictures and clips below a folder with a table: it names those that are read."""
    tabled = {str(PurePosixPath(file.id).parent) for file in files if form_of(file.id) in TABLES}
    if not tabled:
        return files
    return [f for f in files if not _is_media(f) or not tabled & set(map(str, PurePosixPath(f.id).parents))]


def _is_media(file: File) -> bool:
    return form_of(file.id) in ("picture", "clip")


def _captioned(files: list[File]) -> list[File]:
    """Add the versions of captions to those of the files that they lie beside: a new caption makes a new unit."""
    sidecars: dict[str, str] = {}
    for folder in sorted({file.url.rpartition("/")[0] for file in files if _is_media(file)}):
        fs, path = filesystem(folder)
        for info in fs.ls(path, detail=True):
            if info["name"].endswith((".txt", ".json")):
                mark = f"+{info['size']}-{version_of(info)}"
                stem = fs.unstrip_protocol(info["name"]).rpartition(".")[0]
                sidecars[stem] = sidecars.get(stem, "") + mark
    return [f._replace(version=f.version + sidecars.get(f.url.rpartition(".")[0], "")) for f in files]


def _check_media_root(source: MediaSource | ChatSource) -> None:
    if source.media_root is None:
        return
    fs, path = filesystem(source.media_root)
    if not fs.isdir(path):
        raise UserError(f"source {source.name}: media_root {source.media_root} is no folder: mend the path")


def _check_columns(source: Source, file: File | None) -> None:
    """Refuse before the start what the first file of a form already shows; later ones that differ are rejects."""
    if file is None:
        return
    schema, where = _schema(file.url, row_bytes(source)), file.url
    if form_of(file.url) in ("json", "jsonl"):  # a row need not have what filters ask for
        where = f"the beginning of {file.url}"
        source = source.model_copy(update={"filters": type(source.filters)()})
    if schema is not None and (lack := lacking(source, schema)):
        raise UserError(f"source {source.name}: {where} has {lack}: set columns or filters")


def _schema(url: str, most: int) -> pa.Schema | None:
    """Read the columns of a table, None from an empty file and a damaged one: that is a reject of the job, no fault."""
    with damage_passed_over():
        if form_of(url) in ("json", "jsonl"):
            return _json_schema(url, most)
        if form_of(url) != "parquet":
            header = read_header(url, most)
            return None if header is None else text_schema(header)
        with open_raw(url) as raw:
            return pq.read_schema(pa.PythonFile(raw, mode="r"))
    return None


def _json_schema(url: str, most: int) -> pa.Schema | None:
    """Return all columns of the rows at the beginning of a JSON or JSONL file, None where there are no such rows."""
    with open_plain(url) as file:
        if form_of(url) == "json":
            rows = [parse_json(line.data) for line in read_elements(file, 0, SAMPLE, most)]
        else:
            rows = [parse_json(line) for line in file.read(SAMPLE).splitlines()]
    columns: dict[str, pa.DataType] = {}
    for row in rows:
        if isinstance(row, dict):
            columns |= {name: _json_type(value) for name, value in row.items() if name not in columns or value}
    return pa.schema(list(columns.items())) if columns else None


def _json_type(value: object, depth: int = 8) -> pa.DataType:
    """Tell nested columns from others, as deep as a recipe may lead."""
    if not isinstance(value, dict) or not depth:
        return pa.null()
    return pa.struct([(name, _json_type(inner, depth - 1)) for name, inner in value.items()])


def _file_parts(file: File, source: Source) -> Iterator[tuple[Part, int]]:
    form, whole = form_of(file.url), Part(file.id, file.url, 0, WHOLE, file.size, file.version)
    if form == "parquet" and (file.size > source.unit_bytes or not isinstance(source, TextSource)):
        yield from _row_groups(whole, source)
    elif form == "json" and not codec_of(file.url):
        yield from _array_parts(whole, source)
    elif form not in TABLES or codec_of(file.url):
        yield whole, file.size
    elif isinstance(source, TextSource | ChatSource) or form != "csv":
        yield from _line_parts(whole, source)
    else:
        yield from _csv_parts(whole, source)


def _array_parts(whole: Part, source: Source) -> Iterator[tuple[Part, int]]:
    """Yield ranges of bytes of an array that begin where an element does, after a look at every byte."""
    if whole.size <= source.unit_bytes:
        yield whole, whole.size
        return
    borders = [0, *_borders(whole, row_bytes(source), source.unit_bytes)]
    for low, high in itertools.pairwise(borders):
        yield whole._replace(start=low, end=high), high - low
    yield whole._replace(start=borders[-1]), whole.size - borders[-1]


@lru_cache(maxsize=64)
def _borders(whole: Part, most: int, step: int) -> tuple[int, ...]:
    """Find where to cut an array, once for every version of it in a process. A damaged one is cut up to the damage."""
    found = [0]
    with damage_passed_over(), open_plain(whole.url) as file:
        for number, line in enumerate(read_elements(file, 0, WHOLE, most)):
            if number and line.offset - found[-1] >= step and line.whole and line.data.startswith(b"{"):
                found.append(line.offset)
    return tuple(found[1:])


def _line_parts(whole: Part, source: Source) -> Iterator[tuple[Part, int]]:
    """Yield ranges of bytes of a file of lines that make a worker read about `unit_bytes`."""
    plain = isinstance(source, TextSource | ChatSource)
    cost = 1.0 if plain else max(1.0, ROW_COST[source.kind] / _mean_line(whole.url))
    step = max(1, int(source.unit_bytes / cost))
    if whole.size <= step:
        yield whole, int(whole.size * cost)
        return
    for low in range(0, whole.size, step):
        high = min(low + step, whole.size)
        yield whole._replace(start=low, end=high), int((high - low) * cost)


def _mean_line(url: str) -> float:
    with open_plain(url) as file:
        sample = file.read(SAMPLE)
    return max(1, len(sample)) / max(1, sample.count(b"\n"))


def _csv_parts(whole: Part, source: MediaSource) -> Iterator[tuple[Part, int]]:
    """Yield runs of whole records of a CSV file, after a look at every line: where one begins, all before it decide."""
    cost, low, rows = ROW_COST[source.kind], 0, 0
    step = max(1, source.unit_bytes // cost)
    most = row_bytes(source)
    with open_plain(whole.url) as file:
        for line in table_lines(file, whole, most):
            if rows == step:
                yield whole._replace(start=low, end=line.offset), rows * cost
                low, rows = line.offset, 0
            rows += 1
    yield whole._replace(start=low), rows * cost


def _row_groups(whole: Part, source: Source) -> Iterator[tuple[Part, int]]:
    """Yield runs of row groups, or of rows, of about `unit_bytes`: each part reads the footer again."""
    footer = None
    with damage_passed_over(), open_raw(whole.url) as raw:
        file = pq.ParquetFile(pa.PythonFile(raw, mode="r"))
        footer, schema = file.metadata, file.schema_arrow
    if footer is None:
        yield whole, whole.size
        return
    groups = [(footer.row_group(g).num_rows, footer.row_group(g).total_byte_size) for g in range(footer.num_row_groups)]
    if isinstance(source, TextSource):
        runs = _runs([size for _, size in groups], source.unit_bytes)
    else:
        cost = _row_cost(source, schema)
        runs = _row_runs([(rows, size + rows * cost) for rows, size in groups], source.unit_bytes)
    for low, high, size in runs:
        yield whole._replace(start=low, end=high), size


def _row_cost(source: MediaSource | ChatSource, schema: pa.Schema) -> int:
    """Return the bytes that a row makes a worker read besides its own."""
    return 0 if isinstance(source, ChatSource) or _holds_bytes(source, schema) else ROW_COST[source.kind]


def names_files(source: MediaSource, part: Part) -> bool:
    """Do the rows of a table say in which files their pictures or clips are?"""
    schema = _known_schema(part.url, row_bytes(source), part.version)
    if schema is None:
        return False
    found = roles(source, schema.names)
    return bool(found.paths or (found.media and not _holds_bytes(source, schema)))


def begins_with(source: ChatSource, part: Part) -> list[str]:
    """Name the columns of the rows that a file of chats begins with; none where no row can be read there."""
    schema = _known_schema(part.url, row_bytes(source), part.version)
    return [] if schema is None else schema.names


@lru_cache(maxsize=4)
def _known_schema(url: str, most: int, _version: str) -> pa.Schema | None:
    """Read a schema once for all parts of a file."""
    return _schema(url, most)


def _holds_bytes(source: MediaSource, schema: pa.Schema) -> bool:
    """Does a table hold its pictures or clips, or where they are?"""
    media = roles(source, schema.names).media
    kind = schema.field(media).type if media in schema.names else pa.null()
    return is_bytes(kind) or pa.types.is_struct(kind)


def _runs(sizes: list[int], most: int) -> Iterator[tuple[int, int, int]]:
    """Gather row groups of some sizes into runs of `most` bytes or a little more."""
    low = size = 0
    for number, more in enumerate(sizes):
        size += more
        if size >= most or number == len(sizes) - 1:
            yield low, number + 1, size
            low, size = number + 1, 0


def _row_runs(groups: Iterable[tuple[int, int]], most: int) -> Iterator[tuple[int, int, int]]:
    """Cut rows into runs of about `most` bytes, given each group's rows and bytes: whole groups, or parts of one."""
    low = row = size = 0
    for rows, more in groups:
        if size and size + more > most:
            yield low, row, size
            low, size = row, 0
        row, size = row + rows, size + more
        if size > most:  # this group alone
            step = max(1, rows * most // more)
            for start in range(low, row, step):
                yield start, min(start + step, row), more * (min(start + step, row) - start) // rows
            low, size = row, 0
    if row > low:
        yield low, row, size


def _dataset_parts(source: Source) -> Iterator[tuple[Part, int]]:
    dataset = load_hugging_face(source)
    schema = dataset.features.arrow_schema
    if lack := lacking(source, schema):
        raise UserError(f"source {source.name}: the dataset has {lack}: set columns or filters")
    name = source.dataset or source.paths[0].rstrip("/").rsplit("/", 1)[-1]
    row_bytes = max(1, dataset.data.nbytes // max(1, len(dataset)))
    if not isinstance(source, TextSource):
        row_bytes += _row_cost(source, schema)
    step = max(1, source.unit_bytes // row_bytes)
    for low in range(0, len(dataset), step):
        high = min(low + step, len(dataset))
        part = Part(f"{name}.{source.split}", source.dataset or source.paths[0], low, high, len(dataset), "")
        yield part._replace(version=dataset._fingerprint), (high - low) * row_bytes
