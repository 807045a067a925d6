"""One contract for every cost source: what it declares it can tell, it tells, in the shapes and errors of the protocol.

Simulated upstreams whose exact cost is known, metrics of one of them in a real Prometheus, and the toy of the docs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import fsum
from typing import Any

import pytest

from metroculus.cost_model.components import COMPONENTS
from metroculus.cost_model.statement import Question
from metroculus.sources import accounts
from metroculus.sources.choose import AccountSources
from metroculus.sources.errors import NoMetricsSource, NoSource, SourceError
from metroculus.sources.kubecost.client import KubecostSource
from metroculus.sources.outbound.addresses import AllowedAddresses
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.source import Capability, CostSource
from metroculus.sources.thanos.client import Querier
from metroculus.sources.thanos.source import MetricsSource
from simulator.costs import truth
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, Metroculus, Stack, exact_world
from tests.toy_upstream import ToySource, toy_application
from tools.deadline import Deadline
from tools.window import MINUTE, Window

LAST_DAY = Window.past(END - DAY, END)
NOWHERE = "http://127.0.0.1:9"
WORLD = exact_world()
TOY_DAY = 24 * 2.0
COLUMNS = {f"{name}_cost" for name in COMPONENTS}

Make = Callable[[str], CostSource]


@dataclass
class Subject:
    """A source over an upstream that is there, and what a day of it truly costs without management."""

    stack: Stack
    make: Callable[[SourceHttp, str], CostSource]
    url: str
    total: float
    tolerance: float

    def ask(self, work: Callable[[CostSource], Any], url: str | None = None) -> Any:
        """What ``work`` makes of the source, on the loop."""

        async def run() -> Any:
            http = SourceHttp(AllowedAddresses(["127.0.0.0/8"]))
            try:
                return await work(self.make(http, url or self.url))
            finally:
                http.close()

        return self.stack.thread.run(run())


def day_total(adjusted: bool = False) -> float:
    """What the day cost without management, which no allocation holds."""
    summary: Any = truth(WORLD, END - DAY, END, adjusted=adjusted)["summary"]
    return fsum(usd for name, usd in summary.items() if name in COLUMNS)


@pytest.fixture(params=["kubecost", "opencost", "metrics", "toy"])
def subject(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Subject]:
    kind = request.param
    if kind == "toy":
        url = stack.serve(toy_application())
        yield Subject(stack, lambda http, at: ToySource(http, upstream(at), lambda: NOW), url, TOY_DAY, 1e-9)
    elif kind == "metrics":
        prometheus = request.getfixturevalue("prometheus_factory")()
        prometheus.load_world(WORLD, ACCOUNT)
        prometheus.start()

        def make(http: SourceHttp, at: str) -> CostSource:
            return MetricsSource(Querier(http, upstream(at), "tenant_id", lambda: NOW), ACCOUNT)

        yield Subject(stack, make, prometheus.url, day_total(), 5e-3)
    else:
        _, url = stack.simulate(WORLD)

        def make_http(http: SourceHttp, at: str) -> CostSource:
            return KubecostSource(http, upstream(at), kind, lambda: NOW)

        yield Subject(stack, make_http, url, day_total(adjusted=kind == "kubecost"), 1e-4)


def upstream(url: str) -> Upstream:
    return Upstream("the source", url, trusted=True)


def question(window: Window) -> Question:
    return Question(cloud_account_id=ACCOUNT, window=window, detail="pod")


def test_it_declares_what_it_can_tell(subject: Subject) -> None:
    async def declared(source: CostSource) -> tuple[frozenset[Capability], frozenset[Capability]]:
        return source.known_capabilities, await source.capabilities(Deadline(20))

    known, told = subject.ask(declared)
    assert Capability.ALLOCATIONS in told and told <= known


def test_a_day_is_the_sum_of_its_hours_its_owners_and_the_truth(subject: Subject) -> None:
    async def read(source: CostSource) -> tuple[Any, Any, Any]:
        return await asyncio.gather(
            source.allocations(question(LAST_DAY), LAST_DAY, Deadline(60)),
            source.hour_sets(LAST_DAY.start, LAST_DAY.end, 60),
            source.day_set(LAST_DAY.start, Deadline(60)),
        )

    reading, hours, owners = subject.ask(read)
    assert reading.source.status == "ok" and reading.source.coverage == pytest.approx(1.0)
    assert reading.has_idle()
    assert reading.allocations().total() == pytest.approx(subject.total, rel=subject.tolerance)
    assert set(hours.hours) == set(range(LAST_DAY.start, LAST_DAY.end, HOUR)) and not hours.missing
    assert all(one.seconds == HOUR for one in hours.hours.values())
    by_hour = fsum(one.set.columns.total() for one in hours.hours.values())
    assert by_hour == pytest.approx(subject.total, rel=2e-2)
    assert fsum(costs.total for costs in owners.values()) == pytest.approx(subject.total, rel=subject.tolerance)
    assert "__idle__" in owners


def test_time_that_it_knows_nothing_of_is_told_and_never_zero(subject: Subject) -> None:
    if subject.total == TOY_DAY:
        pytest.skip("the toy's pods were always there")
    before = Window.past(WORLD.start - 3 * DAY, WORLD.start - 2 * DAY)

    async def read(source: CostSource) -> tuple[Any, Any, Any]:
        return await asyncio.gather(
            source.allocations(question(before), before, Deadline(20)),
            source.hour_sets(before.start, before.start + 2 * HOUR, 20),
            source.day_set(before.start, Deadline(20)),
        )

    reading, hours, day = subject.ask(read)
    assert reading.source.status == "no_data" and not reading.sets and not reading.usable
    assert not hours.hours and day is None


def test_assets_add_up_and_management_is_theirs_or_told_apart(subject: Subject) -> None:
    async def read(source: CostSource) -> tuple[Any, Any, Any]:
        told = await source.capabilities(Deadline(20))
        assets = await source.assets(LAST_DAY, Deadline(60)) if Capability.ASSETS in told else None
        management = await source.management(LAST_DAY, Deadline(60)) if Capability.ASSETS in told else None
        return told, assets, management

    told, assets, management = subject.ask(read)
    if Capability.ASSETS not in told:
        return
    assert assets.source.status == "ok" and {asset.type for asset in assets.assets} >= {"node"}
    assert all(asset.total_cost > 0 for asset in assets.assets if asset.type == "node")
    if Capability.MANAGEMENT in told:
        assert management.covers and management.usd is not None
    else:
        assert not management.covers and management.usd is None


def test_savings_metadata_and_series_come_where_they_are_declared(subject: Subject) -> None:
    async def read(source: CostSource) -> frozenset[Capability]:
        told = await source.capabilities(Deadline(20))
        if Capability.SAVINGS in told:
            savings = await source.savings(Window.past(END - 3 * DAY, END), None, Deadline(60))
            assert savings is not None and savings.source.status == "ok" and savings.recommendations
        if Capability.METADATA in told:
            found = await source.metadata(END - 1, Deadline(20))
            assert found.nodes and found.workloads
        if Capability.SERIES in told:
            series, warnings = await source.series("node_total_hourly_cost", LAST_DAY, HOUR, Deadline(20))
            assert series and not warnings
        if Capability.LIVE in told:
            minutes = await source.live(END - 30 * MINUTE, END - MINUTE, Deadline(20))
            points = [point for (point,) in minutes]
            assert [point.at for point in points] == list(range(END - 30 * MINUTE, END, MINUTE))
            assert all(point.complete and point.total and point.namespaces for point in points)
        return told

    assert subject.ask(read)


def test_an_upstream_that_is_away_is_a_source_error_or_a_reason_for_each_hour(subject: Subject) -> None:
    async def read(source: CostSource) -> None:
        with pytest.raises(SourceError):
            await source.allocations(question(LAST_DAY), LAST_DAY, Deadline(5))
        if Capability.ASSETS in source.known_capabilities:
            with pytest.raises(SourceError):
                await source.assets(LAST_DAY, Deadline(5))
        sources = AccountSources([source])
        hours = await sources.hours(END - 2 * HOUR, END, 5)
        assert not hours.hours and set(hours.missing) == {END - 2 * HOUR, END - HOUR} and hours.failure
        live = await sources.cost(question(LAST_DAY), LAST_DAY, Deadline(5))
        assert live.allocation is not None and live.allocation.source.status == "unavailable"
        with pytest.raises(SourceError):
            live.raise_if_nobody_answered()

    subject.ask(read, NOWHERE)


def test_an_account_without_sources_has_none_of_anything() -> None:
    async def read() -> None:
        nobody = AccountSources([])
        assert not nobody.any
        with pytest.raises(NoSource):
            await nobody.cost(question(LAST_DAY), LAST_DAY, Deadline(5))
        with pytest.raises(NoSource):
            await nobody.hours(END - HOUR, END, 5)
        with pytest.raises(NoMetricsSource):
            nobody.require_metrics()
        assert (await nobody.savings(LAST_DAY, None, Deadline(5))).source.status == "not_configured"

    asyncio.run(read())


def test_the_second_source_stands_in_for_the_first_and_the_failure_is_told(stack: Stack) -> None:
    url = stack.serve(toy_application())

    async def read() -> Any:
        http = SourceHttp(AllowedAddresses([]))
        clock = lambda: NOW  # noqa: E731
        down, up = ToySource(http, upstream(NOWHERE), clock), ToySource(http, upstream(url), clock)
        try:
            return await AccountSources([down, up]).cost(question(LAST_DAY), LAST_DAY, Deadline(5))
        finally:
            http.close()

    live = stack.thread.run(read())
    assert live.allocation.source.status == "unavailable" and live.metrics.source.status == "ok"
    assert live.metrics.allocations().total() == TOY_DAY and live.answered


def test_a_new_upstream_is_one_package_and_one_registration(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``docs/extending.md`` does: extraction, statement, assets, savings and history, all of the toy."""
    monkeypatch.setitem(accounts.FLAVOURS, "toy", ToySource)
    url = stack.serve(toy_application())
    running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}")
    registry = running.metroculus.dependencies.registry
    stack.thread.run(registry.put(ACCOUNT, "toy", url, accounts.Credentials()))
    asked = Metroculus(running)
    dates = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": END}
    statement = asked.get("kubecost_cluster_costs", **dates, detail_level="namespace").json()
    assert statement["complete"], statement["sources"]
    assert statement["summary"]["cpu_cost"] == TOY_DAY
    rows = {row["name"]: row["total_cost"] for row in statement["breakdown_by_namespace"]}
    assert rows == {"shop": 6.0, "api": 12.0} and statement["idle_cost"] == 30.0
    assert asked.get("kubecost_assets", **dates).json()["totals"] == {"node": 48.0}
    assert asked.get("kubecost_savings", **dates).json()["potential_savings"] == 7.0
    filled = running.worker.worker.fill(ACCOUNT, (END - DAY, END), 1, lambda progress: None)
    assert stack.thread.run(filled).complete
    expenses = asked.get("k8s_expenses", **dates, group_by="namespace").json()
    assert expenses["complete"] and expenses["total_cost"] == TOY_DAY
