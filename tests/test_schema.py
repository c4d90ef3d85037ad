"""Typed YAML: reading, changing by key, and the sentence that says what is wrong."""

from pathlib import Path

import pytest
from pydantic import Field
from worldloom.errors import UserError
from worldloom.schema import Section, read_yaml, set_values, validate


class Inner(Section):
    size: int = 3
    names: str | list[str] = ""
    ratio: float | int | str = 0


class Outer(Section):
    inner: Inner = Inner()
    many: list[Inner] = Field([])


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "some.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_yaml_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "a: {b: [1, x]}")) == {"a": {"b": [1, "x"]}}
    assert read_yaml(write(tmp_path, b"\xef\xbb\xbfa: 1")) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds NoneType"),
        ("[1, 2]", "holds list"),
        ("a: [", "no readable YAML"),
        (b"a: \xff\xfe", "no readable YAML"),
        ("a: 1\nb: 2\na: 3", "the key a is given twice"),
        ("a: {b: 1, b: 2}", "the key b is given twice"),
        ("a: !!python/object/apply:os.getcwd []", "no readable YAML"),
        ("a: !!python/tuple [1]", "no readable YAML"),
        ("? [1, 2]\n: x", "no readable YAML"),
    ],
)
def test_what_is_no_mapping_is_refused_in_one_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=words) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="no readable YAML"):
        read_yaml(tmp_path)


def test_values_are_set_by_key_number_and_name() -> None:
    data = {"a": {"b": 1}, "list": [{"name": "x", "v": 1}, {"name": "y"}, 5]}
    changes = ["a.b=2", "a.c.d=[1, two]", "list.y.v=null", "list.0.v=true", "list.2=9", "new=1e-3", "a.e=x=y"]
    assert set_values(data, changes) == {
        "a": {"b": 2, "c": {"d": [1, "two"]}, "e": "x=y"},
        "list": [{"name": "x", "v": True}, {"name": "y", "v": None}, 9],
        "new": "1e-3",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("a", "write KEY=VALUE"),
        ("=1", "write KEY=VALUE"),
        ("a=[", "is no YAML"),
        ("a={b: 1, b: 2}", "given twice"),
        ("n.b=1", "n is 3 and has no keys inside"),
        ("list.z.v=1", "there is no z; choose one of x"),
        ("list.7=1", "there is no 7"),
        ("list.-1=1", "there is no -1"),
        ("list.1.v=1", "1 is 5 and has no keys inside"),
    ],
)
def test_assignments_that_lead_nowhere_are_refused(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        set_values({"n": 3, "a": 1, "list": [{"name": "x"}, 5]}, [change])
    assert "\n" not in str(caught.value)


def test_good_data_makes_a_frozen_model() -> None:
    made = validate(Outer, {"inner": {"names": ["a"]}, "many": [{"size": 1}]}, "f")
    assert (made.inner.names, made.many[0].size, made.inner.size) == (["a"], 1, 3)
    with pytest.raises(ValueError, match="frozen"):
        made.inner.size = 4


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"iner": {}}, "f: unknown key iner; allowed here: inner, many; did you mean inner?"),
        ({"inner": {"sise": 1}}, "f: unknown key inner.sise; allowed here: names, ratio, size; did you mean size?"),
        ({"many": [{}, {"x": 1}]}, "f: unknown key many.1.x; allowed here: names, ratio, size"),
        ({"inner": {"size": "3"}}, "f: inner.size: found '3'; input should be a valid integer"),
        ({"inner": {"size": True}}, "f: inner.size: found True; input should be a valid integer"),
        ({"inner": {"names": 3}}, "f: inner.names: found 3; input should be a valid string"),
        ({"inner": {"names": ["a", 3]}}, "f: inner.names.1: found 3; input should be a valid string"),
        ({"inner": {"size": "x" * 500}}, f"f: inner.size: found '{'x' * 76}…; input should be a valid integer"),
        ({"inner": None}, "f: inner: found None; a mapping of keys is needed"),
        ({"many": [7]}, "f: many.0: found 7; a mapping of keys is needed"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(data: dict, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(Outer, data, "f")
    assert str(caught.value) == sentence
