"""The worker's rounds over many clusters: what one costs, and that none holds up another."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from tornado.web import Application, RequestHandler

from metroculus.config import WorkerConfig
from metroculus.metroculus_worker import slots
from metroculus.metroculus_worker import worker as rounds
from metroculus.plan import Stretch
from metroculus.sources.errors import RegistryError
from metroculus.sources.outbound import http as outbound
from metroculus.sources.registry.protocol import Credentials
from simulator.server import Habits
from tests.integration.test_history import Clock
from tests.support import DAY, END, HOUR, NOW, Stack, exact_world, until

WORLD = exact_world(days=2)
BEGIN = NOW - 12 * HOUR
STORED = 36
"""Hours that are over then."""
SECONDS = 1.5
"""What a call to an upstream may take here."""


def account(number: int) -> str:
    return str(UUID(int=number, version=4))


class Many:
    """Clusters behind one simulator, and one each behind others that do not answer."""

    def __init__(self, stack: Stack, healthy: int, silent: int = 0, parallel: int = 4, **plan: Any) -> None:
        self.stack, self.clock = stack, Clock(BEGIN)
        self.running = stack.start(
            clickhouse_url=f"embedded:{stack.folder / 'store'}",
            clock=self.clock,
            worker=WorkerConfig(listen=("127.0.0.1", 0), parallel=parallel),
            **{"kubecost_timeout": SECONDS} | plan,
        )
        self.worker: Any = self.running.worker.worker
        self.store: Any = self.running.metroculus.dependencies.store
        self.simulator, self.url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"})), self.clock)
        self.healthy = [account(100 + number) for number in range(healthy)]
        self.hanging = [account(number) for number in range(silent)]
        self.silent = Habits(serves=frozenset({"kubecost"}), silent=True)
        registry = self.running.metroculus.dependencies.registry
        for one in self.healthy:
            stack.thread.run(registry.put(one, "kubecost", self.url, Credentials()))
        for one in self.hanging:
            _, url = stack.simulate(WORLD, self.silent, self.clock)
            stack.thread.run(registry.put(one, "kubecost", url, Credentials()))

    def again(self) -> Many:
        """The same cluster in a store of its own."""
        self.stack.folder = self.stack.folder / "again"
        self.stack.folder.mkdir()
        return Many(self.stack, healthy=1)

    def round(self) -> int:
        answer: int = self.stack.thread.run(self.worker.extract_all())
        return answer

    def hours(self, one: str) -> int:
        return len(self.store.ledger.committed(one, WORLD.start, self.clock.now).hours)

    def questions(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        """What is asked of the store and the registry from now on."""
        counted: Counter[str] = Counter()
        engine, entries = self.store.engine, self.running.metroculus.dependencies.registry.entries
        for place, name in (
            (engine, "rows"),
            (engine, "insert"),
            (engine, "insert_blocks"),
            (entries, "entry_versions"),
        ):
            if not hasattr(place, name):
                continue

            monkeypatch.setattr(place, name, _counting(counted, name, getattr(place, name)))
        return counted


def _counting(counted: Counter[str], name: str, of: Callable[..., Any]) -> Callable[..., Any]:
    def asked(*args: Any, **more: Any) -> Any:
        counted[name] += 1
        return of(*args, **more)

    return asked


def test_a_round_in_which_nothing_is_due_asks_nobody(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    many = Many(stack, healthy=12)
    next_at = many.round()
    assert [many.hours(one) for one in many.healthy] == [STORED] * 12
    assert BEGIN < next_at <= BEGIN + HOUR
    asked = many.questions(monkeypatch)
    upstream = many.simulator.asked.total()
    for _ in range(3):
        assert many.round() == next_at
    assert asked == Counter(entry_versions=3) and many.simulator.asked.total() == upstream


def test_what_is_late_of_one_cluster_is_no_round_over_all(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    many = Many(stack, healthy=8)
    many.round()
    registry = many.running.metroculus.dependencies.registry
    broken, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"}), fail_with=(500, "no")), many.clock)
    stack.thread.run(registry.put(account(1), "kubecost", url, Credentials()))
    many.round()
    upstream = many.simulator.asked.total()
    for _ in range(4):
        many.clock.now += 60
        many.round()
    assert many.simulator.asked.total() == upstream, "the others are left alone"
    broken.habits.fail_with = None

    def healed() -> bool:  # the breaker lets one through every few seconds
        many.clock.now += 60
        many.round()
        return many.hours(account(1)) >= STORED

    assert until(healed, 60)


def test_upstreams_that_do_not_answer_hold_up_nobody(stack: Stack) -> None:
    many = Many(stack, healthy=6, silent=4, parallel=4)
    began = time.monotonic()
    stack.thread.run(many.worker.extract_all())
    first = time.monotonic() - began
    assert [many.hours(one) for one in many.healthy] == [STORED] * 6
    assert many.worker.silent == set(many.hanging)
    assert first < 4 * SECONDS + 20, "one deadline each, and not one for each day and half of a day"
    many.clock.now = BEGIN + HOUR
    done: dict[str, float] = {}
    began = time.monotonic()
    running = stack.thread.loop.call_soon_threadsafe(lambda: stack.thread.loop.create_task(many.worker.extract_all()))
    assert running is not None
    stored = lambda: all(many.worker.states[one].stored_until == END - 11 * HOUR for one in many.healthy)  # noqa: E731
    assert until(stored)
    done["healthy"] = time.monotonic() - began
    assert until(lambda: not any(many.worker.runner._lock(one).locked() for one in many.hanging), 60)
    done["silent"] = time.monotonic() - began
    assert done["healthy"] < done["silent"], done
    assert many.running.worker is not None
    ready = many.running.worker.service.ready()
    assert {ready[one] for one in many.hanging} == {"not answering"} and ready[many.healthy[0]] == "ok"
    many.silent.silent = False

    def healed() -> bool:
        many.clock.now += rounds.LAST_PAUSE_SECONDS
        many.round()
        return all(many.hours(one) >= STORED for one in many.hanging)

    assert until(healed, 120), {one: many.hours(one) for one in many.hanging}
    assert not many.worker.silent


def test_many_upstreams_that_fall_silent_at_once_cost_the_others_no_deadline(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "PATIENCE_SECONDS", 0.1)
    many = Many(stack, healthy=3, silent=8, parallel=2, kubecost_timeout=60.0)
    running = asyncio.run_coroutine_threadsafe(many.worker.extract_all(), stack.thread.loop)
    assert until(lambda: all(many.hours(one) == STORED for one in many.healthy), 50)
    assert not many.worker.silent, "a deadline has passed"
    running.cancel()


def test_a_round_that_hangs_is_not_waited_for_by_the_next(stack: Stack) -> None:
    many = Many(stack, healthy=2, silent=6, parallel=4)
    hanging = asyncio.run_coroutine_threadsafe(many.worker.extract_all(), stack.thread.loop)
    assert until(lambda: all(many.hours(one) == STORED for one in many.healthy), 60)
    assert not hanging.done(), "the silent ones wait for each other"
    many.clock.now = BEGIN + HOUR
    assert many.worker.has_work()
    rounds_of = [hanging]

    def newest_is_stored() -> bool:  # looked at again and again, as the service does
        rounds_of.append(asyncio.run_coroutine_threadsafe(many.worker.extract_all(), stack.thread.loop))
        return all(many.hours(one) == STORED + 1 for one in many.healthy)

    assert until(newest_is_stored, 60)
    for one in rounds_of:
        one.result(60)


def test_a_cluster_that_is_linked_is_seen_within_a_minute_or_so(stack: Stack) -> None:
    many = Many(stack, healthy=1)
    many.round()
    assert not many.worker.has_work()
    registry = many.running.metroculus.dependencies.registry
    stack.thread.run(registry.put(account(7), "kubecost", many.url, Credentials()))
    many.clock.now += rounds.LIST_SECONDS
    assert many.worker.has_work()
    many.round()
    assert many.hours(account(7)) == STORED and not many.worker.has_work()


def test_an_upstream_that_is_slow_is_found_the_size_that_it_can_answer(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "PROBE_SECONDS", 0.3)  # rounds are minutes apart, and here they are not
    monkeypatch.setattr(outbound, "CONNECT_SECONDS", 0.5)  # so that its silence counts, and opens the breaker
    many = Many(stack, healthy=1)
    many.simulator.habits.seconds_an_hour = SECONDS / 4
    kept = []
    for _ in range(24):
        many.round()
        time.sleep(0.4)  # for the breaker to let one through
        kept.append(many.hours(many.healthy[0]))
        many.clock.now += rounds.LAST_PAUSE_SECONDS
        if kept[-1] >= STORED:
            break
    assert kept[-1] >= STORED, kept


def test_metrics_that_do_not_answer_are_asked_for_no_further_hours(stack: Stack) -> None:
    asked: list[str] = []

    class Silent(RequestHandler):
        async def post(self) -> None:
            asked.append(self.request.path)
            self.hung_up = asyncio.Event()
            await self.hung_up.wait()

        get = post

        def on_connection_close(self) -> None:
            self.hung_up.set()

    many = Many(stack, healthy=0, thanos_query_url=stack.serve(Application([(".*", Silent)])))
    stack.thread.run(many.running.metroculus.dependencies.registry.put(account(1), "push", "", Credentials()))
    many.worker.runner.extractor._hours_a_call[account(1)] = 1
    began = time.monotonic()
    many.round()
    assert many.worker.silent == {account(1)} and asked
    assert time.monotonic() - began < 6 * SECONDS, "and not a deadline for each of the day's hours"


def test_the_newest_hour_goes_before_a_back_fill(stack: Stack) -> None:
    many = Many(stack, healthy=1)
    one = many.healthy[0]
    many.round()
    many.clock.now = BEGIN + HOUR
    seen: list[Stretch] = []
    extract = many.worker.runner.extractor.extract

    async def extracted(name: str, owned: Any, stretch: Stretch, *more: Any) -> Any:
        seen.append(stretch)
        return await extract(name, owned, stretch, *more)

    many.worker.runner.extractor.extract = extracted
    many.store.jobs.ask(one, WORLD.start - 3 * DAY, WORLD.start, 1)
    stack.thread.run(many.worker.work_off())
    assert many.hours(one) == STORED + 1 and many.worker.states[one].stored_until == END - 11 * HOUR
    assert seen[0].end == END - 11 * HOUR, "the first thing that is read is the hour that has just ended"
    assert sum(stretch.end <= WORLD.start for stretch in seen) == 3


def test_a_back_fill_of_a_source_that_does_not_answer_ends_and_holds_up_nobody(stack: Stack) -> None:
    many = Many(stack, healthy=2, silent=3, parallel=2)
    for one in many.hanging:
        many.store.jobs.ask(one, WORLD.start - 30 * DAY, WORLD.start, 2)
    began = time.monotonic()
    filling = asyncio.run_coroutine_threadsafe(many.worker.work_off(), stack.thread.loop)
    assert until(lambda: any(many.worker.runner._lock(one).locked() for one in many.hanging))
    many.round()
    assert [many.hours(one) for one in many.healthy] == [STORED] * 2
    filling.result(60)
    assert time.monotonic() - began < 60
    states = {job.state for job in many.store.jobs._read("")}
    assert states == {"incomplete"}


def test_a_registry_that_cannot_be_read_is_asked_again_within_seconds(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = Many(stack, healthy=1)
    entries = many.running.metroculus.dependencies.registry.entries
    entry_versions = entries.entry_versions

    def away() -> dict[str, int]:
        raise RegistryError("away")

    monkeypatch.setattr(entries, "entry_versions", away)
    assert many.round() == BEGIN + rounds.STORE_RETRY_SECONDS
    monkeypatch.setattr(entries, "entry_versions", entry_versions)
    many.round()
    assert many.hours(many.healthy[0]) == STORED


def test_summaries_are_made_again_only_of_what_has_changed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    many = Many(stack, healthy=4)
    many.round()
    stack.thread.run(many.worker.aggregate_all())
    made: list[str] = []
    rebuild = many.store.summaries.rebuild
    monkeypatch.setattr(many.store.summaries, "rebuild", lambda one, *a: (made.append(one), rebuild(one, *a))[1])
    stack.thread.run(many.worker.aggregate_all())
    assert made == []
    many.clock.now += HOUR
    many.round()
    stack.thread.run(many.worker.aggregate_all())
    assert sorted(made) == sorted(many.healthy)
    stack.thread.run(many.worker.aggregate_all(everything=True))
    assert len(made) == 8


def test_a_clock_that_is_set_back_stops_no_cluster(stack: Stack) -> None:
    many = Many(stack, healthy=1)
    many.clock.now = BEGIN + 3 * HOUR
    many.round()
    many.clock.now = BEGIN
    upstream = many.simulator.asked.total()
    many.round()
    assert many.simulator.asked.total() >= upstream and many.worker._is_due(many.healthy[0]) is False
    asked = many.simulator.asked.total()
    many.round()
    assert many.simulator.asked.total() == asked, "once, and not again and again"
    for _ in range(4):
        many.clock.now += HOUR
        many.round()
        assert many.worker.states[many.healthy[0]].stored_until == many.clock.now - many.clock.now % HOUR


@pytest.mark.parametrize("hours_kept", [8, 20])
def test_days_that_are_read_in_pieces_are_days_all_the_same(stack: Stack, hours_kept: int) -> None:
    """A source that was late once is asked for fewer hours at once; what it tells only by the day is told so still."""
    many, told = Many(stack, healthy=1), {}
    for pieces in (None, 6):
        if pieces is not None:
            many = many.again()
            many.worker.runner.extractor._hours_a_call[many.healthy[0]] = pieces
        many.simulator.habits.hours_kept = hours_kept
        many.round()
        committed = many.store.ledger.committed(many.healthy[0], WORLD.start, many.clock.now).hours
        told[pieces] = {(hour - END) // HOUR: (m.source, m.total) for hour, m in committed.items()}
    assert told[None] == told[6]
    if hours_kept == 8:
        assert {told[6][hour][0] for hour in range(-48, -24)} == {"allocation by the day"}


def test_a_source_that_was_corrected_is_asked_at_once_for_what_it_lacked(stack: Stack) -> None:
    many = Many(stack, healthy=0)
    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"}), fail_with=(401, "no")), many.clock)
    registry = many.running.metroculus.dependencies.registry
    stack.thread.run(registry.put(account(1), "kubecost", url, Credentials()))
    for _ in range(5):
        many.round()
        many.clock.now += HOUR
    stack.thread.run(registry.put(account(1), "kubecost", many.url, Credentials()))
    many.clock.now += rounds.LIST_SECONDS
    many.round()
    assert many.hours(account(1)) == STORED + 5
