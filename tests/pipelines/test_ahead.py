"""A stage on a thread of its own: order, errors, bounds, and no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest
from worldloom.pipelines.ahead import ahead


def numbers(most: int, seen: list[int], closed: list[bool]) -> Iterator[int]:
    try:
        for i in range(most):
            seen.append(i)
            yield i
    finally:
        closed.append(True)


def test_results_come_in_order_and_bounded() -> None:
    seen: list[int] = []
    with ahead(numbers(500, seen, []), 4) as results:
        for i, result in enumerate(results):
            assert result == i and len(seen) <= i + 1 + 4 + 1


def test_what_the_stage_raises_is_raised_to_the_consumer() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    with ahead(failing(), 2) as results:
        assert next(results) == 1
        with pytest.raises(OSError, match="disk"):
            next(results)


def test_leaving_early_closes_the_stage() -> None:
    closed: list[bool] = []
    before = threading.active_count()
    with ahead(numbers(10**9, [], closed), 2) as results:
        assert next(results) == 0
        time.sleep(0.02)
    assert closed == [True] and threading.active_count() == before
