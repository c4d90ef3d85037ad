"""Work units: grouping, digests and draws."""

from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.pipelines.units import Part, digest, fraction, group


def part(number: int) -> Part:
    return Part(f"f{number}", f"/f{number}", 0, -1, 1, "")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50)), st.integers(1, 60), st.integers(1, 7))
def test_groups_keep_the_order_and_close_only_when_full(sizes: list[int], unit_bytes: int, most: int) -> None:
    parts = [(part(i), size) for i, size in enumerate(sizes)]
    runs = list(group(parts, unit_bytes, most))
    assert [p for run in runs for p in run] == [p for p, _ in parts]
    size_of = dict(parts)
    for i, run in enumerate(runs):
        held = sum(size_of[p] for p in run)
        assert 1 <= len(run) <= most and (held <= unit_bytes or len(run) == 1)
        assert run is runs[-1] or len(run) == most or held + size_of[runs[i + 1][0]] > unit_bytes


def test_a_digest_depends_on_contents_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert digest("ab", "c") != digest("a", "bc") != digest(["a", "bc"])
    assert len(digest()) == 32


def test_the_digest_of_version_one_stays() -> None:
    """Keys of finished units are such digests: another one would do every build again."""
    assert digest("a", 1, {"b": [None, "é"]}) == "ee310817def66455464433f2ecf04f0f"


def test_draws_are_even_and_differ_with_every_fact() -> None:
    draws = [fraction(seed, "sample", "s", f"r{i}") for seed in (0, 1) for i in range(2000)]
    assert all(0 <= x < 1 for x in draws) and len(set(draws)) == len(draws)
    for low in (0.0, 0.25, 0.5, 0.75):
        assert abs(sum(low <= x < low + 0.25 for x in draws) / len(draws) - 0.25) < 0.03
    assert fraction(0, "sample", "s", "r") == fraction(0, "sample", "s", "r") != fraction(0, "eval", "s", "r")


def test_names_of_any_bytes_can_be_drawn_for() -> None:
    assert 0 <= fraction(0, "\udce9", "\ud800") < 1
