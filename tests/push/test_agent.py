"""The agent against a gateway and an upstream that misbehave: it goes on, and what can be pushed is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from metroculus.metroculus_agent.agent import Agent
from metroculus.metroculus_agent.gateway import Gateway, GatewayError, Wanted
from metroculus.metroculus_agent.metrics import AgentMetrics
from metroculus.sources.errors import BadAnswer, SourceError, Unreachable
from tests.support import ACCOUNT, END, HOUR, Answer, FakeUpstream, Stack

pytestmark = pytest.mark.push


def hours(count: int) -> list[Wanted]:
    return [
        Wanted(kind="allocation", step="hour", start=END - (n + 1) * HOUR, end=END - n * HOUR) for n in range(count)
    ]


class Scene:
    """An agent whose upstream and gateway fail as they are told, and whose time the test moves."""

    one_by_one = False

    def __init__(self, wanted: list[Wanted]) -> None:
        self.now = 1000.0
        self.wants = wanted
        self.fails: dict[int, Exception] = {}
        """What asking for an hour, or delivering it, raises; by its first second."""
        self.refused: dict[int, GatewayError] = {}
        self.pushed: list[int] = []
        self.asked: list[int] = []
        self.paused: list[float] = []
        metrics = AgentMetrics(CollectorRegistry(), lambda: self.now)
        self.agent = Agent(self, self, metrics, lambda: self.now, 60.0, self.pause)

    async def pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def ask(self, wanted: Wanted) -> bytes:
        self.asked.append(wanted.start)
        if wanted.start in self.fails:
            raise self.fails[wanted.start]
        return b"{}"

    async def wanted(self) -> list[Wanted]:
        return [one for one in self.wants if one.start not in self.pushed]

    async def currency(self) -> str | None:
        return None

    async def deliver(self, wanted: Wanted, body: bytes, currency: str | None = None) -> int:
        if wanted.start in self.refused:
            raise self.refused[wanted.start]
        self.pushed.append(wanted.start)
        return len(body)

    def run(self, until: float) -> None:
        """Rounds until a moment."""

        async def rounds() -> None:
            running = asyncio.create_task(self.agent.run())
            while self.now < until and not running.done():  # noqa: ASYNC110  (its time is not the loop's)
                await asyncio.sleep(0)
            assert not running.done(), running.exception()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        asyncio.run(rounds())


@pytest.mark.parametrize(
    "failure", [Unreachable("reset"), BadAnswer("status 500", 500), SourceError("odd"), RuntimeError("a defect")]
)
def test_one_window_that_fails_stops_no_other(failure: Exception) -> None:
    scene = Scene(hours(6))
    poisoned = END - HOUR
    scene.fails = {poisoned: failure}
    scene.run(1000.0 + 3600)
    if isinstance(failure, RuntimeError):
        assert scene.paused, "a defect costs a pause, and the agent goes on"
        return
    assert sorted(scene.pushed) == sorted(END - n * HOUR for n in range(2, 7))
    assert 5 < scene.asked.count(poisoned) < 25, "less and less often"
    scene.fails = {}
    scene.run(scene.now + 2 * 3600)
    assert poisoned in scene.pushed


@pytest.mark.parametrize("status", [None, 431, 500, 503])
def test_one_answer_that_the_gateway_does_not_take_stops_no_other(status: int | None) -> None:
    scene = Scene(hours(6))
    scene.refused = {END - HOUR: GatewayError("no", status)}
    scene.run(1000.0 + 600)
    assert sorted(scene.pushed) == sorted(END - n * HOUR for n in range(2, 7))


def test_on_a_slow_line_fewer_hours_are_asked_for_at_once() -> None:
    """Bodies above some size are cut off; an hour alone goes through."""
    day = Wanted(kind="allocation", step="hour", start=END - 24 * HOUR, end=END)
    scene = Scene([day])
    told: set[int] = set()
    scene.ask = lambda wanted: _body((wanted.end - wanted.start) // HOUR)  # type: ignore[method-assign]

    async def deliver(wanted: Wanted, body: bytes, currency: str | None = None) -> int:
        if len(body) > 900_000:
            raise GatewayError("the gateway could not be reached")
        told.update(range(wanted.start, wanted.end, HOUR))
        return len(body)

    scene.deliver = deliver  # type: ignore[method-assign]
    scene.run(1000.0 + 3 * 3600)
    assert len(told) == 24


async def _body(hours: int) -> bytes:
    return bytes(600_000 * hours)


def test_what_lies_beside_a_question_that_fails_is_left_alone_with_it() -> None:
    day = [Wanted(kind=kind, step=step, start=END - 24 * HOUR, end=END)
           for kind in ("assets", "allocation") for step in ("hour", "day")]  # fmt: skip
    scene = Scene(day)
    asked: list[Wanted] = []

    async def ask(wanted: Wanted) -> bytes:
        asked.append(wanted)
        if wanted.kind == "allocation" and wanted.step == "hour":
            raise BadAnswer("status 500", 500)
        return b"{}"

    async def always() -> list[Wanted]:
        return day

    scene.ask, scene.wanted = ask, always  # type: ignore[method-assign]
    scene.run(1000.0 + 3600)
    assert sum(one.step == "day" for one in asked) < 2 * 12


@pytest.mark.parametrize("override", [None, "EUR"])
def test_nothing_is_asked_before_the_currency_is_known(override: str | None) -> None:
    scene = Scene(hours(3))

    async def unknown() -> str | None:
        if override is None:
            raise BadAnswer("status 503", 503)
        return override

    scene.currency = unknown  # type: ignore[method-assign]
    scene.run(1000.0 + 600)
    assert bool(scene.asked) is (override is not None)


def test_an_upstream_that_is_gone_is_asked_little() -> None:
    scene = Scene(hours(50))
    scene.fails = dict.fromkeys((one.start for one in scene.wants), Unreachable("gone"))
    scene.run(1000.0 + 3600)
    assert len(scene.asked) < 150 and max(scene.paused) > 200
    scene.fails = {}
    scene.run(scene.now + 2 * 3600)
    assert len(scene.pushed) == 50


def test_what_is_wanted_again_and_again_is_not_pushed_without_a_pause() -> None:
    scene = Scene(hours(3))

    async def forgetful() -> list[Wanted]:
        return scene.wants

    scene.wanted = forgetful  # type: ignore[method-assign]
    scene.run(1000.0 + 300)
    assert len(scene.pushed) < 40


def test_small_answers_of_one_kind_do_not_make_the_others_large() -> None:
    """Assets are a thousandth of allocations, and come first."""
    day = [Wanted(kind=kind, step="hour", start=END - 24 * HOUR, end=END) for kind in ("assets", "allocation")]
    scene = Scene(day)
    sizes: list[int] = []

    async def ask(wanted: Wanted) -> bytes:
        hours = (wanted.end - wanted.start) // HOUR
        size = hours * (10_000 if wanted.kind == "assets" else 6 << 20)
        sizes.append(size)
        return bytes(size)

    scene.ask = ask  # type: ignore[method-assign]
    asyncio.run(scene.agent.round())
    assert max(sizes) <= 13 << 20


def test_one_bad_hour_costs_no_other() -> None:
    scene = Scene([Wanted(kind="allocation", step="hour", start=END - 24 * HOUR, end=END)])
    bad = END - 10 * HOUR
    told: set[int] = set()

    async def ask(wanted: Wanted) -> bytes:
        if wanted.start <= bad < wanted.end:
            raise BadAnswer("status 500", 500)
        told.update(range(wanted.start, wanted.end, HOUR))
        return b"{}"

    scene.ask = ask  # type: ignore[method-assign]
    asyncio.run(scene.agent.round())
    assert told == set(range(END - 24 * HOUR, END, HOUR)) - {bad}


ODD: dict[str, tuple[Any, Any]] = {
    "no JSON": (200, b"<html>"),
    "brackets without end": (200, b"[" * 200_000),
    "an object": (200, b"{}"),
    "brackets in a refusal": (503, b"[" * 200_000),
    "far future": (200, b'[{"kind":"allocation","step":"hour","start":99999999999996000,"end":99999999999999600}]'),
    "far past": (200, b'[{"kind":"allocation","step":"hour","start":-99999999999996000,"end":3600}]'),
    "end before start": (200, b'[{"kind":"allocation","step":"hour","start":7200,"end":3600}]'),
    "a redirect": (302, b""),
    "nothing": (200, b""),
}


@pytest.mark.parametrize("case", ODD)
def test_a_gateway_that_answers_oddly(stack: Stack, tmp_path: Path, case: str) -> None:
    status, body = ODD[case]
    fake = FakeUpstream()
    fake.answer = lambda request: Answer(status=status, body=body)
    (tmp_path / "token").write_text("a-token")
    gateway = stack.thread.call(Gateway, stack.serve(fake.application), ACCOUNT, tmp_path / "token")
    with pytest.raises(GatewayError):
        stack.thread.run(gateway.wanted())


def test_a_header_without_end_is_a_failure_as_any(stack: Stack, tmp_path: Path) -> None:
    fake = FakeUpstream()
    fake.answer = lambda request: Answer(headers={"X-Long": "x" * 70_000})
    (tmp_path / "token").write_text("a-token")
    gateway = stack.thread.call(Gateway, stack.serve(fake.application), ACCOUNT, tmp_path / "token")
    with pytest.raises(GatewayError):
        stack.thread.run(gateway.wanted())


@pytest.mark.parametrize("text", ["", "two\nlines", "t\u00f6ken", "\x00"])
def test_a_token_that_is_none_is_said_and_never_shown(stack: Stack, tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    gateway = stack.thread.call(Gateway, "http://127.0.0.1:9", ACCOUNT, tmp_path / "token")
    with pytest.raises(GatewayError) as failure:
        stack.thread.run(gateway.wanted())
    assert "token" in str(failure.value) and "lines" not in str(failure.value)
