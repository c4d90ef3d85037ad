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


def test_a_stage_that_waits_is_interrupted_until_it_ends() -> None:
    """Each of its waits ends only by an interruption of its own, and it begins three."""
    interrupted, waits = threading.Semaphore(0), []

    def waiting() -> Iterator[int]:
        try:
            yield 0
            waits.append(interrupted.acquire(timeout=60))
            yield 1
        finally:
            waits.extend(interrupted.acquire(timeout=60) for _ in range(2))

    with ahead(waiting(), 2, interrupted.release) as results:
        assert next(results) == 0
    assert waits == [True] * 3


@pytest.mark.parametrize("fails", [False, True])
def test_a_stage_that_has_ended_is_not_interrupted(fails: bool) -> None:
    calls: list[bool] = []

    def ending() -> Iterator[int]:
        yield 1
        if fails:
            raise OSError("disk")

    for _ in range(50):
        with ahead(ending(), 2, lambda: calls.append(True)) as results:
            if fails:
                with pytest.raises(OSError, match="disk"):
                    list(results)
            else:
                assert list(results) == [1]
    assert not calls
