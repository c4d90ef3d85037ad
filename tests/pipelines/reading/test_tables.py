"""Rows of tables of captions: every row once, in any cut, as the plain readers of Python see them."""

import bz2
import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.pipelines.reading import lines as subject
from worldloom.pipelines.reading.lines import Line, csv_records, read_lines
from worldloom.pipelines.reading.listing import list_parts
from worldloom.pipelines.reading.tables import Row, read_rows
from worldloom.pipelines.records import BadRecord
from worldloom.sources import ImageTextSource

COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.ZstdCompressor().compress}
ROW = 2**16  # what a row of URLs costs


def source(path: Path, **more: Any) -> ImageTextSource:
    return ImageTextSource.model_validate({"name": "s", "kind": "image-text", "path": str(path), **more})


def read(path: Path, **more: Any) -> list[Row | BadRecord]:
    made = source(path, **more)
    return [row for part, _ in list_parts(made) for row in read_rows(made, part)]


def brief(rows: list[Row | BadRecord]) -> list[tuple[str, str]]:
    """Name each row with its caption, or its reason in brackets."""
    return [(r.record, r.values["caption"] if isinstance(r, Row) else f"({r.reason})") for r in rows]


# --- CSV


def records_by_hand(data: bytes) -> list[tuple[int, list[str]]]:
    """Read CSV with Python's own reader, and find each record's first byte by the lines it took."""
    lines = data.decode().splitlines(keepends=True) if b"\r" not in data.replace(b"\r\n", b"") else []
    reader, found, before = csv.reader(lines), [], 0
    for fields in reader:
        found.append((sum(len(line.encode()) for line in lines[:before]), fields))
        before = reader.line_num
    return found


FIELD = st.text('a,"\n\u00e9 ', max_size=6)
TEXTS = st.lists(st.lists(FIELD, min_size=1, max_size=3), max_size=8)


def written(rows: list[list[str]], end: str, quoting: int) -> bytes:
    sink = io.StringIO(newline="")
    csv.writer(sink, lineterminator=end, quoting=quoting).writerows(rows)
    return sink.getvalue().encode()


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.sampled_from(["\n", "\r\n"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_records_begin_where_python_s_reader_begins_them(rows: list[list[str]], end: str, quoting: int) -> None:
    data = written(rows, end, quoting)
    found = list(csv_records(read_lines(io.BytesIO(data), 0, -1, 2**20), 2**20))
    assert [(r.offset, next(csv.reader([r.data.decode()]), [])) for r in found] == records_by_hand(data)
    assert b"".join(r.data for r in found) == data


@settings(max_examples=300, deadline=None)
@given(st.text('a,"\n', max_size=30))
def test_stray_quotes_are_read_as_python_reads_them(text: str) -> None:
    """Until one does not close: there Python's reader swallows the rest, and ours gives up one line."""
    data = text.encode()
    found = list(csv_records(read_lines(io.BytesIO(data), 0, -1, 2**20), 2**20))
    expected = records_by_hand(data)
    closed = next((i for i, r in enumerate(found) if not r.whole), len(found))
    assert [(r.offset, next(csv.reader([r.data.decode()]), [])) for r in found[:closed]] == expected[:closed]
    assert (closed == len(found)) == (len(found) == len(expected) and all(r.whole for r in found))
    assert b"".join(r.data for r in found) == data


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text('a,"\n', max_size=60), st.integers(1, 8), st.booleans())
def test_any_cut_of_a_csv_file_reads_every_record_once(tmp_path: Path, text: str, rows: int, marked: bool) -> None:
    data = b"\xef\xbb\xbf" * marked + b"caption,url\n" + text.encode()
    (tmp_path / "a.csv").write_bytes(data)
    whole = brief(read(tmp_path))
    assert brief(read(tmp_path, unit_bytes=rows * ROW)) == whole
    made = source(tmp_path, unit_bytes=rows * ROW)
    bounds = [(part.start, part.end) for part, _ in list_parts(made)]
    assert bounds[0][0] == 0 and bounds[-1][1] == -1
    assert [low for low, _ in bounds[1:]] == [high for _, high in bounds[:-1]]


def test_csv_rows_are_told_apart(tmp_path: Path) -> None:
    good = b'"a ""good"",\n caption",http://x/1.jpg\r\n'
    rows = [good, b"one\n", b"a,b,c\n", b"\xff,u\n", b"\n", b"a\rb,u\n", good]
    (tmp_path / "a.csv").write_bytes(b"caption,url\n" + b"".join(rows))
    told = 'a "good",\n caption'
    expected = [told, "(ragged row)", "(ragged row)", "(not UTF-8)", "(not CSV)", told]
    assert [text for _, text in brief(read(tmp_path))] == expected


def test_a_mark_in_front_of_a_quoted_header_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf"cap\ntion",url\nc,u\n')
    (found,) = read(tmp_path, columns={"caption": "cap\ntion"})
    assert isinstance(found, Row) and found.values == {"cap\ntion": "c", "url": "u"}


def test_a_stray_quote_swallows_no_rows_up_to_the_next(tmp_path: Path) -> None:
    rows = ['"one, u1', "two,u2", '"three, and ""more""",u3', '"four\nlines, "",""",u4', "five,u5"]
    (tmp_path / "a.csv").write_text("caption,url\n" + "\n".join(rows) + "\n")
    told = [text for _, text in brief(read(tmp_path))]
    assert told == ["(unclosed quote)", "two", 'three, and "more"', 'four\nlines, ","', "five"]


def test_an_unclosed_quote_costs_one_row_and_little_memory(tmp_path: Path) -> None:
    rows = [f"caption {i},http://x/{i}{'y' * 1600}.jpg\n" for i in range(10_000)]
    rows[10] = '"' + rows[10]
    (tmp_path / "a.csv").write_text("caption,url\n" + "".join(rows))
    del rows
    made = source(tmp_path, unit_bytes=2**40)
    tracemalloc.start()
    try:
        found = [text for part, _ in list_parts(made) for row in read_rows(made, part) for _, text in brief([row])]
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [f"caption {i}" if i != 10 else "(unclosed quote)" for i in range(10_000)]
    assert held < 2**23


def records_one_by_one(lines: list[bytes], most: int) -> list[tuple[int, bytes, bool]]:
    """Try every number of lines for each record, with Python's own idea of whether its quotes are closed."""
    found, at = [], 0
    while at < len(lines):
        runs = [b"".join(lines[at : at + n]) for n in range(1, len(lines) - at + 1)]
        closed = next((run for run in runs if len(run) <= most and is_closed(run)), None)
        found.append((sum(map(len, lines[:at])), closed or lines[at], closed is not None))
        at += closed.count(b"\n") if closed else 1
    return found


def is_closed(run: bytes) -> bool:
    """Does Python's reader begin a new record behind these lines, and is each joined by a field in quotes?"""
    lines = run.decode().splitlines(keepends=True)
    return len(list(csv.reader([*lines, "end\n"]))) > 1 and all(map(joins_rightly, lines[1:]))


def joins_rightly(line: str) -> bool:
    """Is a line right that begins inside quotes? Only the first quote that is not doubled matters."""
    rest = line.replace('""', "  ")
    return '"' not in rest or rest[rest.index('"') + 1] in ",\n"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(['"', 'x",",y', 'a,"b', '"a"', "a", '"""', '",']), max_size=12), st.integers(8, 40))
def test_stray_quotes_cost_their_line_alone(texts: list[str], most: int) -> None:
    lines = [f"{text}\n".encode() for text in texts]
    found = csv_records(read_lines(io.BytesIO(b"".join(lines)), 0, -1, most), most)
    assert list(map(tuple, found)) == records_one_by_one(lines, most)


@pytest.mark.parametrize("stray", ['"x', 'x",",y'])
def test_quotes_that_are_never_closed_take_linear_time(stray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    search = subject._state
    monkeypatch.setattr(subject, "_state", lambda line, state: searched.append(line) or search(line, state))
    lines = [Line(i, b'"",""x\n') if i % 1000 else Line(i, f"{stray}\n".encode()) for i in range(20_001)]
    for made in (lines, [Line(i, f"{stray}\n".encode()) for i in range(20_001)]):
        searched.clear()
        found = list(csv_records(iter(made), 2**12))
        assert sum(r.data.count(b"\n") for r in found) == len(made)
        assert len(searched) <= 2 * len(made)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_caption_of_a_megabyte_is_a_reject_and_the_next_row_is_read(tmp_path: Path, name: str) -> None:
    for size in (140_000, 2**20, 2**22):
        long, tab = "x" * size, "\t" if name == "a.tsv" else ","
        rows = [f'"{long}"{tab}u\n', f"{long}{tab}u\n", f"good{tab}u\n"]
        text = f"caption{tab}url\n" + "".join(rows)
        if name == "a.jsonl":
            text = "".join(json.dumps({"caption": c, "url": "u"}) + "\n" for c in (long, "good"))
        (tmp_path / name).write_text(text)
        found = [text if len(text) < 40 else "long" for _, text in brief(read(tmp_path, unit_bytes=3 * ROW))]
        assert found[-1] == "good"
        assert set(found[:-1]) <= {"(too large)", "long"}
        assert set(found[:-1]) == {"(too large)"} or (size < 2**20 and name != "a.csv")


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_compressed_tables_are_read_and_cuts_told(tmp_path: Path, suffix: str, form: str) -> None:
    tab = {"csv": ",", "tsv": "\t"}.get(form, "")
    rows = [f"caption {i}{tab}http://x/{i}\n" for i in range(300)] if tab else []
    lines = [json.dumps({"caption": f"caption {i}", "url": "u"}) + "\n" for i in range(300)]
    data = (f"caption{tab}url\n" + "".join(rows) if tab else "".join(lines)).encode()
    path = tmp_path / f"a.{form}{suffix}"
    path.write_bytes(COMPRESS[suffix](data))
    assert [text for _, text in brief(read(tmp_path, unit_bytes=ROW))] == [f"caption {i}" for i in range(300)]
    path.write_bytes(COMPRESS[suffix](data)[:-3])
    with pytest.raises(OSError):
        read(tmp_path)


# --- TSV


def test_tsv_takes_quotes_as_they_are_unless_they_enclose_a_field(tmp_path: Path) -> None:
    cases = {
        'a "b" c': 'a "b" c',
        '"quoted ""x"""': 'quoted "x"',
        '"': '"',
        '"open': '"open',
        '""': "",
        '"a" b': '"a" b',
    }
    (tmp_path / "a.tsv").write_text("url\tcaption\r\n" + "".join(f"u\t{case}\r\n" for case in cases))
    for unit_bytes in (1, 3 * ROW, 2**30):
        assert [text for _, text in brief(read(tmp_path, unit_bytes=unit_bytes))] == list(cases.values())
    (tmp_path / "a.tsv").write_text("url\tcaption\nu\n\nu\tc\td\n")
    assert [text for _, text in brief(read(tmp_path))] == ["(ragged row)", "(ragged row)"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text('ab"\u00e9', max_size=9), max_size=20), st.integers(1, 9))
def test_any_cut_of_a_tsv_file_reads_every_row_once(tmp_path: Path, captions: list[str], rows: int) -> None:
    (tmp_path / "a.tsv").write_text("caption\turl\n" + "".join(f"x{c}\tu\n" for c in captions))
    assert [text for _, text in brief(read(tmp_path, unit_bytes=rows * ROW))] == [f"x{c}" for c in captions]


# --- headers


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "title,link\n", r"a\.csv has no column that is known to hold captions .*; it has title, link: set"),
        ("a.tsv", "caption\tlink\n", r"no column that is known to hold media, paths or URLs .*; it has caption, link"),
        ("a.csv", "caption,url,caption\n", "two columns caption"),
        ("a.csv", "\xff\xfe\n", "no column that is known"),
    ],
)
def test_a_header_that_lacks_a_column_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=words):
        read(tmp_path)


def test_a_later_header_that_lacks_a_column_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("caption,url\n")
    (tmp_path / "b.csv").write_text("caption,link\nx,y\n")
    (tmp_path / "c.csv").write_text("")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b""))
    rejects = [("b.csv#columns", "(no such column)"), ("c.csv", "(empty)"), ("d.csv.gz", "(empty)")]
    assert brief(read(tmp_path)) == rejects


# --- parquet


@pytest.mark.parametrize("group", [1, 7, 100, 1000])
@pytest.mark.parametrize("rows", [1, 3, 64, 99, 10**6])
def test_ranges_of_rows_read_every_row_once(tmp_path: Path, group: int, rows: int) -> None:
    table = pa.table({"caption": [f"c{i}" for i in range(300)], "url": ["u"] * 300})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=group)
    made = source(tmp_path, unit_bytes=rows * (ROW + 200))
    parts = list(list_parts(made))
    assert brief(read(tmp_path, unit_bytes=made.unit_bytes)) == [(f"a.parquet#{i}", f"c{i}") for i in range(300)]
    assert all(size <= made.unit_bytes for _, size in parts)
    assert sum(size for _, size in parts) >= 300 * ROW
    assert len(parts) <= 300 / rows + 300 / group + 1
    for part, _ in parts[1:]:  # whole row groups, or a part of one
        assert part.start % group == 0 or (part.start - 1) // group == (part.end - 1) // group


def test_an_empty_parquet_file_has_no_rows(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"caption": pa.array([], pa.string()), "url": pa.array([], pa.string())}), tmp_path / "a.parquet"
    )
    assert read(tmp_path) == []


def test_a_column_names_the_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("caption,url,key\nc,u,k1\nd,u,\n")
    assert brief(read(tmp_path, columns={"id": "key"})) == [("k1", "c"), ("a.csv@23", "(no id)")]
