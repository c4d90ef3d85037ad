"""The gate's limits, under random requests and against deadlock."""

import asyncio
import random
from collections.abc import Callable

import pytest
from worldloom.pipelines.fetching.gate import ALL, Gate


def drive(gate: Gate, rows: int, hosts: int, size: Callable[[int], int], cap: int) -> list[int]:
    """Send rows through the gate, each for up to three requests, and give them out in order; count what is held."""
    held: dict[object, int] = {}
    flying: list[str] = []
    most = [0, 0, 0]
    order = random.Random(rows)
    done = [asyncio.Event() for _ in range(rows)]

    async def row(number: int) -> None:
        for _ in range(order.randint(1, 3)):
            host = f"h{order.randrange(hosts)}"
            async with gate.passage(number, host):
                flying.append(host)
                held["flying", number] = cap
                most[:] = [
                    max(most[0], len(flying)),
                    max(most[1], flying.count(host)),
                    max(most[2], sum(held.values())),
                ]
                for _ in range(order.randint(0, 4)):
                    await asyncio.sleep(0)
                del held["flying", number]
                flying.remove(host)
        held[number] = size(number)
        gate.keep(size(number))
        done[number].set()

    async def everything() -> None:
        tasks = [asyncio.create_task(row(n)) for n in range(rows)]
        for number in range(rows):
            await asyncio.wait_for(done[number].wait(), 5)
            del held[number]
            gate.give(number, size(number))
        await asyncio.gather(*tasks)

    asyncio.run(everything())
    assert not gate._waiting and not gate._held and not +gate._flying
    return most


@pytest.mark.parametrize("size", [lambda n: 0, lambda n: 100, lambda n: n % 101], ids=["failures", "full", "mixed"])
@pytest.mark.parametrize(("at_once", "per_host", "hosts"), [(8, 2, 3), (8, 2, 40), (1, 1, 2), (5, 3, 1), (3, 9, 2)])
def test_limits_hold_and_nothing_waits_for_ever(size, at_once, per_host, hosts):
    flying, host, held = drive(Gate(at_once, per_host, 100), 150, hosts, size, 100)
    assert flying == min(at_once, hosts * per_host)  # reached, and never passed
    assert host == min(per_host, at_once)
    assert held <= (at_once + 1) * 100


def test_full_bodies_that_wait_leave_room_to_the_row_whose_turn_it_is_alone():
    async def case() -> None:
        gate = Gate(2, 2, 100)
        gate.keep(100)
        gate.keep(100)  # rows 1 and 2 wait, full
        order = []

        async def ask(row: int) -> None:
            async with gate.passage(row, f"h{row}"):
                order.append(row)

        later, head = asyncio.create_task(ask(3)), asyncio.create_task(ask(0))
        await head
        assert order == [0] and not later.done()
        gate.give(0, 0)
        await asyncio.sleep(0)
        assert not later.done()
        gate.give(1, 100)
        await later

    asyncio.run(asyncio.wait_for(case(), 5))


def test_a_busy_host_lets_other_hosts_pass_and_earlier_rows_go_first():
    async def case() -> None:
        gate, order = Gate(10, 1, 1), []

        async def ask(row: int, host: str) -> None:
            async with gate.passage(row, host):
                order.append(row)
                await asyncio.sleep(0)

        await asyncio.gather(*(ask(row, host) for row, host in [(0, "a"), (5, "a"), (3, "a"), (9, "b"), (1, "a")]))
        assert order == [0, 9, 1, 3, 5]

    asyncio.run(asyncio.wait_for(case(), 5))


def test_cancelled_rows_leave_no_trace():
    async def case() -> None:
        gate = Gate(1, 1, 10)

        async def ask(row: int) -> None:
            async with gate.passage(row, "a"):
                await asyncio.sleep(3600)

        tasks = [asyncio.create_task(ask(row)) for row in range(4)]
        await asyncio.sleep(0)
        tasks[2].cancel()  # waits
        tasks[0].cancel()  # flies: 1 is let through
        await asyncio.sleep(0)
        tasks[1].cancel()  # was let through and does not know yet
        await asyncio.gather(*tasks[:3], return_exceptions=True)
        await asyncio.sleep(0)
        assert gate._flying["a"] == 1 and not gate._waiting  # row 3
        tasks.append(asyncio.create_task(ask(4)))
        tasks.append(asyncio.create_task(ask(5)))
        await asyncio.sleep(0)
        tasks[4].cancel()  # waits, and the gate opens before it can leave the queue
        gate._leave("a")
        await asyncio.sleep(0)
        assert gate._flying["a"] == 1 and not gate._waiting  # row 5, beside the one that was thrown out
        gate._flying.update(("a", ALL))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not +gate._flying

    asyncio.run(asyncio.wait_for(case(), 5))
