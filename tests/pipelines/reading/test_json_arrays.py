"""Elements of JSON arrays: every one once, in any cut, as Python's json sees them; and what is broken costs itself."""

import bz2
import gzip
import io
import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worldloom.pipelines.reading import json_arrays as subject
from worldloom.pipelines.reading.json_arrays import read_elements
from worldloom.pipelines.reading.lines import Line
from worldloom.pipelines.reading.listing import list_parts
from worldloom.pipelines.reading.tables import Row, read_rows, rows_at_once
from worldloom.pipelines.records import BadRecord
from worldloom.pipelines.units import Part
from worldloom.sources import ChatSource

MOST = 2**20
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 10**30)
    | st.floats()
    | st.text('a{}[]",:\\/\n\u00e9\u2028 ', max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('id"{\\', max_size=3), inner, max_size=4),
    max_leaves=20,
)
STYLES = [
    {},
    {"indent": 2},
    {"indent": "\t", "ensure_ascii": False},
    {"separators": (",", ":"), "ensure_ascii": False},
    {"separators": (" \r\n, ", "\n:\r\t")},
]


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda size: monkeypatch.setattr(subject, "BLOCK", size)


def elements(data: bytes, start: int = 0, end: int = -1, most: int = MOST) -> list[Line]:
    return list(read_elements(io.BytesIO(data), start, end, most))


def same(values: object) -> str:
    """Write values so that equal ones, and no others, are written alike: NaN too, and True is not 1."""
    return json.dumps(values, sort_keys=True)


def borders(data: bytes, lines: list[Line]) -> list[int]:
    """List where a file may be cut: where an object begins that came whole, and is one."""
    return [line.offset for line in lines if line.data.startswith(b"{") and line.whole]


def check_cuts(data: bytes, draw: st.DrawFn | Any, most: int = MOST) -> list[Line]:
    """Check that any cut yields each element once."""
    lines = elements(data, most=most)
    cuts = sorted(draw(st.sets(st.sampled_from(borders(data, lines) or [0])))) if lines else []
    edges = [0, *(cut for cut in cuts if cut), -1]
    found = [line for low, high in itertools.pairwise(edges) for line in elements(data, low, high, most)]
    assert found == lines
    return lines


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.lists(VALUES, max_size=6), st.sampled_from(STYLES), st.integers(1, 40))
def test_elements_are_those_that_python_reads(
    block: Callable[[int], None], data: Any, values: list[Any], style: dict[str, Any], size: int
) -> None:
    values = [value for value in values if not (isinstance(value, list) and value and isinstance(value[0], dict))]
    around = [data.draw(st.sampled_from([b"", b" ", b"\r\n\t "])) for _ in range(2)]
    bom = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    written = bom + around[0] + json.dumps(values, **style).encode() + around[1]
    block(size)
    lines = check_cuts(written, data.draw)
    assert same([json.loads(line.data) for line in lines]) == same(values)
    assert all(written[line.offset :].startswith(line.data) and line.whole for line in lines)


SOUP = st.lists(st.sampled_from([*b'{ } [ ] " , : \\ \n a 1 {"a": },{"a": \xff'.split(b" "), b" "]))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), SOUP, st.sampled_from([b"", b"[", b'[{"a":1},']), st.integers(1, 9), st.sampled_from([3, 20, MOST]))
def test_what_is_no_json_is_cut_alike_by_any_range_and_block(
    block: Callable[[int], None], data: Any, soup: list[bytes], begin: bytes, size: int, most: int
) -> None:
    written = begin + b"".join(soup)
    block(2**20)
    whole = elements(written, most=most)
    block(size)
    assert check_cuts(written, data.draw, most) == whole
    offsets = [line.offset for line in whole]
    assert offsets == sorted(set(offsets))
    assert all(written[line.offset :].startswith(line.data) and len(line.data) <= most for line in whole)
    try:
        right = json.loads(written)
    except ValueError:
        return
    if isinstance(right, list) and all(line.whole and line.data not in b"[]" for line in whole):
        assert same([json.loads(line.data) for line in whole]) == same(right)


def rows(count: int) -> list[dict[str, Any]]:
    turns = [{"from": "human", "value": '<image>\nWhat is "that"?'}, {"from": "gpt", "value": "A {cat}, [so].\\"}]
    return [{"id": str(i), "image": f"{i}.jpg", "conversations": turns, "n": [i, 1.5, None]} for i in range(count)]


def good(data: bytes) -> Iterator[Any]:
    """Yield what Python can read of the elements."""
    for line in elements(data):
        try:
            yield json.loads(line.data)
        except ValueError:
            continue


@pytest.mark.parametrize("style", STYLES[:2])
def test_a_byte_that_is_lost_costs_its_element(style: dict[str, Any]) -> None:
    written, wanted = json.dumps(rows(4), **style).encode(), rows(4)
    second, third = (written.find(b'"id": "%d"' % i) for i in (1, 2))
    begin, end = written.rindex(b"{", 0, second), written.rindex(b"{", 0, third)
    for place in range(begin, end):
        found = list(good(written[:place] + written[place + 1 :]))
        assert [row for row in found if row in wanted and row != wanted[1]] == [wanted[0], *wanted[2:]]


@pytest.mark.parametrize("more", [b'"', b"{", b"}", b"[", b"]", b"\n", b"\\", b","])
def test_a_byte_too_many_costs_its_element_and_rarely_the_next(more: bytes) -> None:
    written, wanted = json.dumps(rows(5)).encode(), rows(5)
    begin, end = (written.rindex(b"{", 0, written.find(b'"id": "%d"' % i)) for i in (1, 2))
    lost = 0
    for place in range(begin + 1, end):
        found = list(good(written[:place] + more + written[place:]))
        kept = [row for row in found if row in wanted and row != wanted[1]]
        assert kept in ([wanted[0], *wanted[2:]], [wanted[0], *wanted[3:]])
        lost += wanted[2] not in kept
    assert lost <= 3


@pytest.mark.parametrize("place", range(1, 120, 7))
def test_a_file_that_is_cut_is_read_up_to_there(place: int) -> None:
    written = json.dumps([{"a": "b]}"}, {"a": [1, {"c": 2}]}, {"a": "d\\"}] * 4).encode()[:place]
    found = elements(written)
    right, decoder, at = [], json.JSONDecoder(), 1
    while at < len(written):
        try:
            value, at = decoder.raw_decode(written.decode(), at)
        except ValueError:
            break
        right.append(value)
        at += 2
    *whole, last = found
    assert [json.loads(line.data) for line in whole] == right
    with pytest.raises(ValueError):
        json.loads(last.data)


def test_a_bracket_that_does_not_match_ends_what_is_broken() -> None:
    assert elements(b'[{"a":[1}]') == [Line(1, b'{"a":[1')]
    assert elements(b'[{"a":1}{"a":2]') == [Line(1, b'{"a":1}'), Line(8, b'{"a":2')]


def test_the_next_element_is_found_across_blocks(block: Callable[[int], None]) -> None:
    block(16)
    for width in range(40):
        assert elements(b'[{"a": "x"y' + b" " * width + b'}, { "bcdefgh" : 1}]')[-1].data == b'{ "bcdefgh" : 1}'


def test_what_stands_in_a_broken_element_is_not_read_for_another() -> None:
    written = json.dumps(rows(3)).encode()
    place = written.index(b"A {cat}", written.index(b'"id": "1"'))
    found = elements(written[:place] + b'"' + written[place:])
    assert [json.loads(line.data) for line in (found[0], found[2])] == [rows(3)[0], rows(3)[2]] and len(found) == 3
    later = elements(b'[{"id": "1", "c": [{"from": "x"y}, {"from": 1}]}' + b" " * 2**17 + b', {"from": 2}]')
    assert later[-1].data == b'{"from": 2}' and len(later) == 2


def test_an_empty_file_has_no_elements() -> None:
    assert [elements(data) for data in (b"", b" \n", b"\xef\xbb\xbf", b"[]", b" [ ] ")] == [[]] * 5
    assert elements(b"[") == [Line(1, b"")]


def test_objects_one_a_line_are_read_too() -> None:
    assert [line.data for line in elements(b'{"a": 1}\n{"a": 2}\n')] == [b'{"a": 1}', b'{"a": 2}']
    assert [line.data for line in elements(b'{"a":\n1}')] == [b'{"a":\n1}']


def test_an_element_that_is_too_long_is_one_line(block: Callable[[int], None]) -> None:
    block(16)
    written = json.dumps([{"a": 1}, {"a": "x" * 100}, {"a": 2}, "y" * 100, {"a": 3}]).encode()
    short, long, *rest = elements(written, most=40)
    assert (short.data, long.whole, len(long.data) <= 40) == (b'{"a": 1}', False, True)
    assert [(line.data, line.whole) for line in rest] == [
        (b'{"a": 2}', True),
        (b'"' + b"y" * 39, False),
        (b'{"a": 3}', True),
    ]
    assert [line.whole for line in elements(b'[{"a":""}]', most=8)] == [True]
    assert [line.whole for line in elements(b'[{"a":""}]', most=7)] == [False]


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 3 * 10**5,
        b'{"a":' * 3 * 10**4,
        b'[{"a":"},{"a":"},' * 3 * 10**4,
        b'["' + b"x" * 3 * 10**5,
        b'[{"a":"' * 3 * 10**4,
        b"]" * 3 * 10**4,
        b"}" * 3 * 10**5,
        b'"' * 3 * 10**4,
        b'[{"a":[{"a":[{"a":1,{' * 3 * 10**4,
        b'[{"a":"' + b"\\" * 3 * 10**5,
        b'[{"a":1,' + b" " * 10**6 + b'{"a":1}]',
        b'[{"' + b"k" * 10**6 + b'":1,{"a":1}]',
        b"[," * 3 * 10**4,
    ],
    ids=range(13),
)
def test_no_byte_is_looked_at_again_and_again(bomb: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0

    class Counting:
        def __init__(self, pattern: Any):
            self.pattern = pattern

        def __getattr__(self, name: str) -> Any:
            def call(data: bytes, place: int, *limit: int) -> Any:
                nonlocal looked
                found = getattr(self.pattern, name)(data, place, *limit)
                looked += (found.end() if found else len(data) if name == "search" else place) - place
                return found

            return call

    for name in ("RUN", "SCALAR", "GAP", "HEAD", "BEGUN"):
        monkeypatch.setattr(subject, name, Counting(getattr(subject, name)))
    likeness = subject._likeness
    monkeypatch.setattr(subject, "_likeness", lambda data: Counting(likeness(data)))
    monkeypatch.setattr(subject, "BLOCK", 2**12)
    for _ in read_elements(io.BytesIO(bomb), 0, -1, 2**14):
        pass
    assert looked <= 8 * len(bomb) + 2**16


def test_a_long_element_is_not_begun_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    end_of = subject._end_of
    monkeypatch.setattr(subject, "_end_of", lambda data, *more: tries.append(len(data)) or end_of(data, *more))
    monkeypatch.setattr(subject, "BLOCK", 2**10)
    assert len(elements(b'[{"a":"' + b"x" * 2**19 + b'"}]')) == 1
    assert sum(tries) < 2**22


def test_memory_is_bounded_by_the_longest_element() -> None:
    class Endless(io.RawIOBase):
        """Ten thousand elements of a kilobyte, one of ten megabytes, ten thousand more."""

        def __init__(self) -> None:
            parts = [b'{"a":"' + b"x" * 1000 + b'"},'] * 10**4
            self.blocks = iter([b"[", *parts, b'{"a":"', *[b"y" * 10**4] * 1000, b'"},', *parts, b"{}]"])

        def readable(self) -> bool:
            return True

        def readinto(self, into: Any) -> int:
            block = next(self.blocks, b"")
            self.blocks = itertools.chain([block[len(into) :]] if block[len(into) :] else [], self.blocks)
            into[: len(block)] = block[: len(into)]
            return min(len(block), len(into))

    tracemalloc.start()
    found = sum(line.whole for line in read_elements(io.BufferedReader(Endless(), 2**17), 0, -1, 2**16))
    assert found == 20001
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


# --- files


def source(path: Path, **more: Any) -> ChatSource:
    return ChatSource.model_validate({"name": "s", "kind": "chat", "path": str(path), **more})


def read(path: Path, **more: Any) -> list[Row | BadRecord]:
    made = source(path, **more)
    return [row for part, _ in list_parts(made) for row in read_rows(made, part)]


def told(found: list[Row | BadRecord]) -> list[Any]:
    return [row.values if isinstance(row, Row) else row.reason for row in found]


CHATS = [{"id": i, "data": ["q" * i, "a {"]} for i in range(50)]


@pytest.mark.parametrize("unit", [1, 100, 999, 10**6])
def test_a_large_array_makes_many_parts(tmp_path: Path, unit: int) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CHATS, indent=1))
    made = source(path, unit_bytes=unit)
    parts = list(list_parts(made))
    found = [row for part, _ in parts for row in read_rows(made, part)]
    assert told(found) == CHATS
    assert [row.record for row in found] == [row.record for row in read(path)]
    data = path.read_bytes()
    for row in found:
        assert json.JSONDecoder().raw_decode(data.decode()[int(row.record.split("@")[1]) :])[0]["id"] is not None
    assert sum(size for _, size in parts) == path.stat().st_size
    assert [part.start for part, _ in parts] == [0, *(part.end for part, _ in parts[:-1])]
    assert all(size <= unit + 200 for _, size in parts) and len(parts) >= min(50, path.stat().st_size // (unit + 200))


def test_an_array_is_looked_through_once_for_each_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, looks = tmp_path / "a.json", []
    path.write_text(json.dumps(CHATS))
    real = read_elements
    monkeypatch.setattr("worldloom.pipelines.reading.listing.read_elements", lambda *a: looks.append(a[2]) or real(*a))
    parts = [list(list_parts(source(path, unit_bytes=100))) for _ in range(3)]
    assert parts[0] == parts[1] == parts[2] and looks.count(-1) == 1
    path.write_text(json.dumps(CHATS[:20]))
    assert len(list(list_parts(source(path, unit_bytes=100)))) < len(parts[0]) and looks.count(-1) == 2


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_a_compressed_array_is_one_part(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    data = pack(json.dumps(CHATS).encode())
    path = tmp_path / f"a.json{suffix}"
    path.write_bytes(data)
    assert [(part.start, part.end, size) for part, size in list_parts(source(path, unit_bytes=10))] == [
        (0, -1, len(data))
    ]
    assert told(read(path)) == CHATS


def test_what_is_wrong_with_an_array_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(data: bytes) -> list[Any]:
        (tmp_path / "a.json").write_bytes(data)
        return told(read(tmp_path / "a.json"))

    one, two = {"data": ["q", "a"]}, b'{"data":["q","a"]}'
    assert found(b"[%b,%b]" % (two, two)) == [one, one]
    assert found(b"[%b,%b" % (two, two)) == [one, one, "not JSON"]
    assert found(b"[%b,%b" % (two, two[:-1])) == [one, "not JSON"]
    assert found(b"") == found(b"\n") == found(b"[]") == ["empty"]
    assert found(b"[%b, 5, [], null, x, %b]" % (two, two)) == [one, *["no row"] * 3, "not JSON", one]
    assert found(b'[%b, {"data": ["\xff"]}]' % two) == [one, "not UTF-8"]
    assert found(b'[%b, {"data": %b%b}]' % (two, b"[" * 99_999, b"]" * 99_999)) == [one, "not JSON"]
    assert found(b'[{"data": 1, "data": ["q", "a"], "n": 1e999}]') == [{**one, "n": float("inf")}]
    assert found(two) == [one]
    assert found(b"[%b]\n[%b]" % (two, two)) == [one, "not JSON", "not JSON", one]
    monkeypatch.setattr("worldloom.pipelines.reading.tables.CHAT_BYTES", 60)
    assert found(b'[%b, {"data": ["%b"]}, %b]' % (two, b"x" * 99, two)) == [one, "too large", one]
    (tmp_path / "a.json").write_bytes(b"[%b," % two)
    (_, end) = read(tmp_path / "a.json")
    assert isinstance(end, BadRecord) and end.error == "the file ends before its array does"


@pytest.mark.parametrize("unit", [1, 50, 300])
def test_a_damaged_array_is_cut_where_its_rows_can_be_read(tmp_path: Path, unit: int) -> None:
    parts = json.dumps(CHATS).split("}, {")
    parts[7], parts[20], parts[31] = parts[7][:-3], f"}}, 5, x, [{{ {parts[20]}", parts[31] + "}], ["
    (tmp_path / "a.json").write_text("}, {".join(parts))
    whole = read(tmp_path / "a.json")
    assert read(tmp_path / "a.json", unit_bytes=unit) == whole
    assert sum(isinstance(row, Row) for row in whole) > 45 and sum(isinstance(row, BadRecord) for row in whole) > 4


def test_rows_with_media_are_decoded_one_at_once(tmp_path: Path) -> None:
    made, inner = source(tmp_path), pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    assert [rows_at_once(made, [pa.string(), kind]) for kind in (turns, inner, pa.list_(inner))] == [64, 1, 1]


def test_a_part_of_bytes_that_were_gone_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[]")
    part = Part("a.json", f"file://{tmp_path}/a.json", 50, 99, 99, "")
    assert told(list(read_rows(source(tmp_path / "a.json"), part))) in ([], ["not JSON"])
