"""A Kubecost that keeps hours for two days and days for three months: every hour is stored, and its days add up.

The same cluster is asked directly and by an agent; what is true is the simulator's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from metroculus.metroculus_agent.agent import _RoundEnded
from metroculus.sources.errors import BadAnswer
from simulator.costs import truth
from simulator.server import Habits
from simulator.world import World
from tests.push.test_hours import STEP_HOURS, everything, failing, statement
from tests.pushing import Clock, Door
from tests.support import DAY, END, HOUR, NOW, Stack, exact_world
from tools.window import iso

pytestmark = pytest.mark.push

WORLD: World = exact_world(prime=7, days=14)
MINUTE = 60
MODES = ("push", "direct")


def short(**more: Any) -> Habits:
    return Habits(serves=frozenset({"kubecost"}), hours_kept=49, days_kept=91, **more)


class Side:
    """One account over a Kubecost with short memory, and how its history comes in."""

    def __init__(self, stack: Stack, mode: str, now: float, world: World = WORLD) -> None:
        self.world = world
        self.clock = Clock(now)
        self.door = Door(stack, self.clock)
        self.pusher = self.door.pusher(world, habits=short()) if mode == "push" else None
        if self.pusher is not None:
            self.account, self.simulator = self.pusher.account, self.pusher.simulator
            return
        self.simulator, url = stack.simulate(world, short(), self.clock)
        self.account = str(uuid4())
        asked = self.door.metroculus(
            "PUT", f"kubecost_sources/{self.account}", json={"flavour": "kubecost", "url": url}
        )
        assert asked.ok, asked.text

    def round(self) -> None:
        if self.pusher is not None:
            everything(self.door, self.pusher)
        else:
            self.door.worked()

    def until(self, end: float, step: int) -> None:
        while self.clock.now < end:
            self.round()
            self.clock.now += step

    def lacking(self, start: int, end: int) -> list[int]:
        there = self.door.hours(self.account)
        return [hour for hour in range(start, end, HOUR) if hour not in there]

    def stored(self, start: int, end: int) -> float:
        return self.door.total(self.account, start, end)

    def true(self, start: int, end: int) -> float:
        total: float = truth(self.world, start, end, now=int(self.clock.now), adjusted=True)["total_cost"]
        return total


@pytest.fixture
def side(stack: Stack) -> Iterator[Callable[..., Side]]:
    made: list[Side] = []

    def make(mode: str, now: float, world: World = WORLD) -> Side:
        made.append(Side(stack, mode, now, world))
        return made[-1]

    yield make
    for one in made:
        one.door.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_cluster_that_is_linked_in_the_afternoon_lacks_no_hour(side: Callable[..., Side], mode: str) -> None:
    """At 15:20 the hours of the day before yesterday are half gone, and its day is there."""
    one = side(mode, END - 5 * DAY + 15 * HOUR + 20 * MINUTE)
    one.until(END - HOUR, 6 * HOUR)
    assert one.lacking(END - 11 * DAY, END - 6 * HOUR) == []
    for start in range(END - 9 * DAY, END - 3 * DAY, DAY):
        assert one.stored(start, start + DAY) == pytest.approx(one.true(start, start + DAY), rel=1e-6), iso(start)


@pytest.mark.parametrize("mode", MODES)
def test_an_outage_of_days_is_made_up_for_out_of_days(side: Callable[..., Side], mode: str) -> None:
    one = side(mode, END - 7 * DAY + 2 * HOUR)
    one.until(END - 7 * DAY + 10 * HOUR + 20 * MINUTE, 2 * HOUR)
    one.clock.now = END - 2 * DAY + 15 * HOUR + 20 * MINUTE
    one.until(END, 6 * HOUR)
    assert one.lacking(END - 8 * DAY, END - 12 * HOUR) == []
    for start in range(END - 8 * DAY, END - 3 * DAY, DAY):
        assert one.stored(start, start + DAY) == pytest.approx(one.true(start, start + DAY), rel=1e-6), iso(start)


@pytest.mark.parametrize("mode", MODES)
def test_a_bill_that_comes_when_hours_are_gone_is_taken_by_the_day(side: Callable[..., Side], mode: str) -> None:
    """The provider's bill halves what the hours said at list prices, two days later."""
    one = side(mode, END - 4 * DAY + 10 * MINUTE)
    one.until(END + 10 * MINUTE, STEP_HOURS * HOUR)
    start = END - 4 * DAY
    assert one.stored(start, start + DAY) == pytest.approx(one.true(start, start + DAY), rel=1e-6), iso(start)
    assert statement(one.door, one.account, start, start + DAY)["complete"]
    one.until(END + 2 * DAY, 2 * STEP_HOURS * HOUR)
    for start in (END - 4 * DAY, END - 3 * DAY, END - 2 * DAY):
        assert one.stored(start, start + DAY) == pytest.approx(one.true(start, start + DAY), rel=1e-6), iso(start)


@pytest.mark.parametrize("mode", MODES)
def test_an_hour_of_which_less_is_known_now_stays(side: Callable[..., Side], mode: str) -> None:
    """A Kubecost that reads its metrics again says twenty minutes of an hour that it had told whole."""
    one = side(mode, NOW)
    one.round()
    hour = END - 5 * HOUR
    before = one.stored(hour, hour + HOUR)
    assert before > 0

    def rewrite(path: str, answer: Any) -> Any:
        if "allocation" in path and isinstance(answer, dict):
            for rows in answer["data"]:
                for row in (rows or {}).values():
                    if (row["window"]["start"], row["window"]["end"]) == (iso(hour), iso(hour + HOUR)):
                        row["end"], row["minutes"] = iso(hour + 20 * MINUTE), 20
                        row |= {
                            name: usd / 4 for name, usd in row.items()
                            if name.endswith(("Cost", "Adjustment")) and isinstance(usd, int | float)
                        }  # fmt: skip
        return answer

    one.simulator.habits.rewrite = rewrite
    one.clock.now = NOW + 25 * HOUR
    one.round()
    assert one.stored(hour, hour + HOUR) == before
    assert one.door.hours(one.account)[hour].seconds == HOUR


def test_nothing_is_pushed_before_it_is_known_what_its_money_is_in(stack: Stack) -> None:
    door = Door(stack, Clock(NOW))
    one = door.pusher(WORLD, habits=short(currency="EUR"))
    source = one.agent._upstream._source  # type: ignore[attr-defined]
    said = source._configured_currency

    async def fails(deadline: Any) -> str:
        raise BadAnswer("status 503", 503)

    source._configured_currency = fails
    with pytest.raises(_RoundEnded):
        door.pushed(one)
    door.worked()
    assert not door.hours(one.account)
    source._configured_currency = said
    for hours in (1, 3):
        door.clock.now = NOW + hours * HOUR
        everything(door, one)
    assert {marker.currency for marker in door.hours(one.account).values()} == {"EUR"}
    door.close()


def test_dollars_that_were_euros_are_put_right_while_their_answers_are_kept(stack: Stack) -> None:
    """An older agent said no currency; the answers that come again say one."""
    door = Door(stack, Clock(NOW))
    one = door.pusher(WORLD, habits=short(currency="EUR"))
    upstream = one.agent._upstream
    said = upstream.currency

    async def nothing() -> None:
        return None

    upstream.currency = nothing  # type: ignore[method-assign]
    everything(door, one)
    assert {marker.currency for marker in door.hours(one.account).values()} == {"USD"}
    upstream.currency = said  # type: ignore[method-assign]
    for hours in (2, 7, 25):
        door.clock.now = NOW + hours * HOUR
        everything(door, one)
    newest = [door.hours(one.account)[hour].currency for hour in range(END - DAY, END, HOUR)]
    assert set(newest) == {"EUR"}
    door.close()


def test_hours_that_are_answered_with_an_error_are_told_by_the_day_and_seldom_asked(stack: Stack) -> None:
    door = Door(stack, Clock(NOW))
    one = door.pusher(WORLD, habits=short())
    failing(one, lambda wanted: wanted.step == "hour" and wanted.start < door.clock.now - 49 * HOUR)
    asked: Counter[tuple[str, str, int]] = Counter()
    ask = one.agent._upstream.ask

    async def noted(wanted: Any) -> bytes:
        asked[wanted.kind, wanted.step, wanted.start - wanted.start % DAY] += 1
        return await ask(wanted)

    one.agent._upstream.ask = noted  # type: ignore[method-assign]
    for minute in range(60):
        try:
            door.pushed(one)
        except _RoundEnded:
            pass
        if minute % 10 == 9:
            door.worked()
        door.clock.now += MINUTE
    door.worked()
    start = END - 5 * DAY
    assert door.total(one.account, start, start + DAY) == pytest.approx(
        one.true(start, start + DAY)["total_cost"], abs=2e-3
    )
    of_days = [count for (_, step, day), count in asked.items() if step == "day" and day < END - 3 * DAY]
    assert of_days and max(of_days) <= 12
    door.close()
