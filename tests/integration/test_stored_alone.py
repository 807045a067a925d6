"""A window that is stored is answered by the store: no upstream is asked for anything, whatever the view."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from metroculus.cost_model.reading import SourceReport
from metroculus.cost_model.savings import FoundSavings, by_kind
from metroculus.sources.choose import AccountSources
from metroculus.storage.columns import SAVINGS
from metroculus.storage.ledger import FencedWriter
from simulator.server import Habits
from simulator.world import make_world
from tests.integration.test_history import Clock
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, Metroculus, Stack, exact_world

WORLD = exact_world(days=4)
WINDOW = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": END}
VIEWS: dict[str, dict[str, Any]] = {
    "summary": {},
    "namespaces": {"detail_level": "namespace"},
    "workloads": {"detail_level": "workload"},
    "pods": {"detail_level": "pod"},
    "by node": {"aggregate": "node"},
    "by label, idle shared": {"aggregate": "label:team", "idle": "share"},
    "hour by hour": {"detail_level": "namespace", "step": "hour"},
    "one namespace": {"detail_level": "pod", "k8s_namespace": "web"},
}


class Stored:
    """Four days of a cluster, stored; how often its upstream was asked."""

    def __init__(self, stack: Stack, flavour: str = "kubecost", **plan: Any) -> None:
        self.stack, self.clock = stack, Clock(NOW)
        self.simulator, url = stack.simulate(WORLD, Habits(serves=frozenset({flavour})), self.clock)
        self.running = stack.start(
            kubecost_api_url=url,
            kubecost_account_id=ACCOUNT,
            clickhouse_url=f"embedded:{stack.folder / 'store'}",
            clock=self.clock,
            **{"cache_ttl": 0.0} | plan,
        )
        self.metroculus = Metroculus(self.running)
        self.worker: Any = self.running.worker
        self.store: Any = self.running.metroculus.dependencies.store
        stack.thread.run(self.worker.worker.fill(ACCOUNT, (WORLD.start, END), 2, lambda progress: None))

    def statement(self, **asked: Any) -> dict[str, Any]:
        answer = self.metroculus.get("kubecost_cluster_costs", **WINDOW | asked)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def keep_savings(self) -> None:
        self.stack.thread.run(self.worker.worker.savings_all())


def savings_of(statement: dict[str, Any]) -> dict[str, Any]:
    (source,) = [one for one in statement["sources"] if one["name"] == "savings"]
    return dict(source)


@pytest.fixture
def stored(stack: Stack) -> Stored:
    return Stored(stack)


@pytest.fixture(scope="module")
def stored_with_savings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    stack = Stack(tmp_path_factory.mktemp("stored"))
    stored = Stored(stack)
    stored.keep_savings()
    yield stored
    stack.close()


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_no_view_of_a_stored_window_asks_an_upstream(stored_with_savings: Stored, view: dict[str, Any]) -> None:
    stored = stored_with_savings
    stored.simulator.habits.silent = False
    before = stored.simulator.asked.total()
    statement = stored.statement(**view)
    assert stored.simulator.asked.total() == before
    assert statement["complete"] is True and statement["sources"][0]["name"] == "store"
    stored.simulator.habits.silent = True
    began = time.monotonic()
    assert stored.statement(**view)["total_cost"] == statement["total_cost"]
    assert time.monotonic() - began < 5


def test_stored_savings_are_what_the_source_said_and_tell_their_age(stored: Stored) -> None:
    live = stored.statement(detail_level="namespace", end_date=END + HOUR)  # the running hour is not stored
    nothing = stored.statement(detail_level="namespace")
    assert nothing["potential_savings"] is None and savings_of(nothing)["status"] == "no_data"
    assert nothing["complete"] is True, "savings are not cost"
    stored.keep_savings()
    stored.clock.now += 2 * HOUR
    kept = stored.statement(detail_level="namespace")
    assert kept["potential_savings"] == pytest.approx(live["potential_savings"])
    assert kept["savings_recommendations"] == pytest.approx(live["savings_recommendations"])
    source = savings_of(kept)
    assert (source["status"], source["fetched_at"]) == ("ok", NOW) and "2026-11-21" in source["warnings"][0]
    asked = stored.simulator.asked.total()
    stored.keep_savings()
    assert stored.simulator.asked.total() == asked, "what is stored of a day is not asked for again"


def test_what_is_not_to_be_had_whole_is_not_stored_as_whole(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    away = SourceReport(name="assets", status="unavailable", error="away")

    async def unused(self: AccountSources, window: Any, deadline: Any) -> Any:
        return [], away

    with monkeypatch.context() as patched:
        patched.setattr(AccountSources, "unused", unused)
        stored.keep_savings()
        assert stored.store.savings.newest(ACCOUNT, 0, END) is None
    stored.keep_savings()
    assert stored.store.savings.newest(ACCOUNT, 0, END) is not None, "the next round has it"


def test_a_stored_window_without_savings_is_kept_all_the_same(stack: Stack) -> None:
    stored = Stored(stack, cache_ttl=300.0)
    states = [
        stored.metroculus.get("kubecost_cluster_costs", **WINDOW, detail_level="namespace").headers["X-Cache"]
        for _ in range(2)
    ]
    assert states == ["miss", "hit"]


def test_savings_that_cannot_be_read_are_no_reason_to_fail(stored: Stored) -> None:
    stored.keep_savings()
    whole = stored.statement(detail_level="namespace")
    row = (ACCOUNT, END - DAY, 2**62, NOW, '{"window_seconds": 1, "unused": [{"kind": "of a newer program"}]}')
    stored.store.engine.insert(SAVINGS.name, SAVINGS.names, [row])
    statement = stored.statement(detail_level="namespace")
    assert statement["total_cost"] == whole["total_cost"] and statement["potential_savings"] is None
    assert savings_of(statement)["status"] == "unavailable" and "cannot be read" in savings_of(statement)["error"]


def test_savings_in_another_currency_than_the_statement_are_not_shown(stored: Stored) -> None:
    stored.keep_savings()
    day = stored.store.savings.newest(ACCOUNT, 0, END)
    assert day.found.currency == "USD"
    stored.store.savings.commit(ACCOUNT, END - DAY, replace(day.found, currency="EUR"), NOW, FencedWriter(2**31))
    statement = stored.statement(detail_level="namespace")
    assert statement["currency"] == "USD" and statement["potential_savings"] is None
    assert "EUR" in savings_of(statement)["error"]


def test_where_nobody_tells_savings_nobody_is_asked_for_them(stack: Stack) -> None:
    stored = Stored(stack, "opencost", kubecost_flavour="opencost")
    stored.keep_savings()
    before = stored.simulator.asked.total()
    statement = stored.statement(detail_level="namespace")
    assert savings_of(statement)["status"] in ("not_configured", "no_data") and statement["potential_savings"] is None
    assert stored.simulator.asked.total() == before


def test_what_is_kept_of_metrics_is_sized_as_the_reader_asks(
    stack: Stack, prometheus_factory: Callable[[], Any]
) -> None:
    world = make_world(seed=5, days=4, end=END)
    prometheus = prometheus_factory()
    prometheus.load_world(world, ACCOUNT)
    prometheus.start()
    running = stack.start(
        thanos_query_url=prometheus.url,
        kubecost_account_id=ACCOUNT,
        clickhouse_url=f"embedded:{stack.folder / 'store'}",
        cache_ttl=0.0,
        upstream_allow=stack.plan.get("upstream_allow"),
    )
    registry = running.metroculus.dependencies.registry
    from metroculus.sources.registry.protocol import Credentials

    stack.thread.run(registry.put(ACCOUNT, "push", "", Credentials()))
    worker: Any = running.worker
    stack.thread.run(worker.worker.savings_all())
    store: Any = running.metroculus.dependencies.store
    kept = store.savings.newest(ACCOUNT, END - 7 * DAY, END)
    assert kept is not None and kept.day == END - DAY and kept.found.usages
    tight, loose = kept.found.sized(0.9), kept.found.sized(0.3)
    assert {one.name for one in tight} == {one.name for one in loose}
    for one, other in zip(sorted(tight, key=_named), sorted(loose, key=_named), strict=True):
        assert one.requested == other.requested and (one.recommended or 0) <= (other.recommended or 0)
    metroculus = Metroculus(running)
    asked = {"cloud_account_id": ACCOUNT, "start_date": END - 7 * DAY, "end_date": END, "target_utilization": 0.5}
    live = metroculus.get("kubecost_savings", **asked).json()
    listed = {(one["name"], one["resource"]): one["recommended"] for one in live["cpu_savings"]}
    sized = {(r.name, r.resource): r.recommended for r in kept.found.sized(0.5) if r.kind == "right_sizing"}
    assert listed and all(sized[key] == pytest.approx(value, rel=1e-6) for key, value in listed.items())


def _named(one: Any) -> tuple[str, str]:
    return one.name, one.resource


def test_categories_are_the_sources_own_where_it_has_them() -> None:
    assert FoundSavings(window_seconds=DAY, by_category={"a": 2.0}).categories() == {"a": 2.0}
    assert FoundSavings(window_seconds=DAY).categories() == by_kind([]) == {}
