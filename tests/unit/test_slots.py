"""Slots of tasks: no more run than there are, whoever waits long for a source makes room, and none is ever lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metroculus.metroculus_worker import slots
from metroculus.metroculus_worker.slots import WITHOUT_SLOT, Slots
from tools.waiting import while_asking

SIZE = 2


@pytest.fixture(autouse=True, scope="module")
def impatient() -> object:
    patch = pytest.MonkeyPatch()
    patch.setattr(slots, "PATIENCE_SECONDS", 0.01)
    yield
    patch.undo()


async def started(pool: Slots, tasks: int, asking: bool) -> tuple[asyncio.Queue[int], list[asyncio.Task[None]]]:
    """Tasks that never end by themselves, and which of them have begun."""
    begun = asyncio.Queue[int]()

    async def work(number: int) -> None:
        async with pool.slot():
            begun.put_nowait(number)
            if asking:
                with while_asking.get()():
                    await asyncio.Event().wait()
            await asyncio.Event().wait()

    return begun, [asyncio.create_task(work(number)) for number in range(tasks)]


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def only(begun: asyncio.Queue[int], expected: int) -> None:
    """So many tasks begin, and no other does within many times their patience."""
    async with asyncio.timeout(10):
        for _ in range(expected):
            await begun.get()
    await asyncio.sleep(0.05)
    assert begun.empty()


def test_tasks_that_work_are_no_more_than_there_are_slots() -> None:
    async def check() -> None:
        begun, tasks = await started(Slots(SIZE), 5, asking=False)
        await only(begun, SIZE)
        await ended(tasks)

    asyncio.run(check())


def test_tasks_that_wait_for_a_source_make_room_up_to_a_bound() -> None:
    async def check() -> None:
        pool = Slots(SIZE)
        begun, tasks = await started(pool, 50, asking=True)
        await only(begun, SIZE + WITHOUT_SLOT * SIZE)
        await ended(tasks)
        again, others = await started(pool, 5, asking=False)
        await only(again, SIZE)
        await ended(others)

    asyncio.run(check())


def test_a_call_that_outlives_its_task_gives_nothing_up() -> None:
    async def check() -> None:
        pool = Slots(SIZE)

        async def hangs() -> None:
            with while_asking.get()():
                await asyncio.sleep(0.05)

        calls = []
        for _ in range(5):
            async with pool.slot():
                calls.append(asyncio.create_task(hangs()))
                await asyncio.sleep(0)  # it begins, and is not waited for
        await asyncio.gather(*calls)
        begun, tasks = await started(pool, SIZE + 3, asking=False)
        await only(begun, SIZE)
        await ended(tasks)

    asyncio.run(check())


def test_a_task_that_could_not_give_up_its_slot_does_so_when_another_has_ended() -> None:
    async def check() -> None:
        pool = Slots(1, without=1)
        begun, tasks = await started(pool, 3, asking=True)
        await only(begun, 2)
        tasks[0].cancel()
        await only(begun, 1)
        await ended(tasks)

    asyncio.run(check())


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_every_slot_is_there_again_whatever_the_tasks_did(tasks: list[tuple[int, bool, bool]]) -> None:
    async def check() -> None:
        pool = Slots(SIZE)

        async def work(calls: int, long: bool, fails: bool) -> None:
            async with pool.slot():

                async def call() -> None:
                    with while_asking.get()():
                        await asyncio.sleep(0.015 if long else 0)

                await asyncio.gather(*(call() for _ in range(calls)))
                if fails:
                    raise ValueError("fails")

        await asyncio.gather(*(work(*one) for one in tasks), return_exceptions=True)
        begun, waiting = await started(pool, SIZE + 3, asking=False)
        await only(begun, SIZE)
        await ended(waiting)

    asyncio.run(check())
