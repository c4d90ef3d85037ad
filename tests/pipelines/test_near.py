"""Near duplicates: MinHash against the exact Jaccard similarity of runs of tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.pipelines.near import BANDS, CHUNK, ROWS, SHINGLE, signature


def shingles(tokens: np.ndarray) -> set[tuple[int, ...]]:
    width = min(SHINGLE, len(tokens))
    return {tuple(tokens[i : i + width].tolist()) for i in range(len(tokens) - width + 1)}


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    one, other = shingles(a), shingles(b)
    return len(one & other) / len(one | other)


def meet(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((signature(a) == signature(b)).any())


def text(rng: np.random.Generator, length: int = 600) -> np.ndarray:
    return rng.integers(0, 32000, length).astype(np.uint16)


def edited(rng: np.random.Generator, tokens: np.ndarray, edits: int) -> np.ndarray:
    result = tokens.copy()
    result[rng.choice(len(tokens), edits, replace=False)] = rng.integers(0, 32000, edits)
    return result


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_a_signature_depends_on_the_ids_alone(dtype: type) -> None:
    tokens = np.arange(100)
    found = signature(tokens.astype(dtype))
    assert (found.shape, found.dtype) == ((BANDS,), np.uint64)
    np.testing.assert_array_equal(found, signature(tokens))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60000), max_size=40), st.lists(st.integers(0, 60000), max_size=40))
def test_texts_with_the_same_runs_and_no_others_have_one_signature(a: list[int], b: list[int]) -> None:
    one, other = np.array(a, np.uint16), np.array(b, np.uint16)
    assert (signature(one) == signature(other)).all() == (shingles(one) == shingles(other))


def test_the_order_and_number_of_runs_do_not_count() -> None:
    rng = np.random.default_rng(0)
    a, b, joint = text(rng, 200), text(rng, 200), text(rng, SHINGLE)
    one, other = np.concatenate((joint, a, joint, b, joint)), np.concatenate((joint, b, joint, a, joint, b, joint))
    assert shingles(one) == shingles(other)
    np.testing.assert_array_equal(signature(one), signature(other))


def test_texts_meet_as_often_as_their_similarity_says() -> None:
    """The odds are 1 - (1 - s^ROWS)^BANDS (Mining of Massive Datasets, 3.4.2), for the exact similarity s."""
    rng = np.random.default_rng(1)
    for edits in (5, 12, 16, 25, 60):
        met, odds = [], []
        for _ in range(60):
            one = text(rng)
            other = edited(rng, one, edits)
            met.append(meet(one, other))
            odds.append(1 - (1 - similarity(one, other) ** ROWS) ** BANDS)
        spread = float(np.sqrt(np.sum(np.array(odds) * (1 - np.array(odds))))) / len(odds)
        assert abs(np.mean(met) - np.mean(odds)) < 4 * spread + 0.01, edits


def test_each_row_meets_as_often_as_texts_are_similar(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one row a band, the share of equal bands estimates the similarity."""
    monkeypatch.setattr("worldloom.pipelines.near.BANDS", BANDS * ROWS)
    monkeypatch.setattr("worldloom.pipelines.near.ROWS", 1)
    rng = np.random.default_rng(2)
    errors = []
    for edits in (2, 10, 30, 80):
        for _ in range(10):
            one = text(rng)
            other = edited(rng, one, edits)
            errors.append(float((signature(one) == signature(other)).mean()) - similarity(one, other))
    assert abs(np.mean(errors)) < 0.03 and np.max(np.abs(errors)) < 5 * np.sqrt(0.25 / (BANDS * ROWS))


def test_texts_that_share_nothing_never_meet() -> None:
    rng = np.random.default_rng(3)
    signatures = np.array([signature(text(rng, int(n))) for n in rng.integers(1, 400, 300)])
    for band in signatures.T:
        assert len(set(band.tolist())) == len(band)


def test_equal_values_in_two_bands_do_not_come_from_equal_rows() -> None:
    assert len(set(signature(np.array([5])).tolist())) == BANDS


def test_chunks_do_not_show() -> None:
    tokens = np.random.default_rng(4).integers(0, 32000, CHUNK + 500)
    whole = signature(tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worldloom.pipelines.near.CHUNK", 777)
        np.testing.assert_array_equal(signature(tokens), whole)


def test_no_token_and_one_are_texts_too() -> None:
    empty, one, two = (signature(np.arange(n)) for n in (0, 1, 2))
    assert not (empty == one).any() and not (one == two).any()
