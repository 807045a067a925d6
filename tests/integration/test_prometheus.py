"""Costs by metrics alone, on a real Prometheus: the integrals, namespaces, tenants, coverage."""

from __future__ import annotations

import asyncio
from math import fsum
from uuid import uuid4

import pytest

from metroculus.cost_model.reconcile import reconcile
from metroculus.cost_model.statement import Question
from metroculus.sources.outbound.addresses import AllowedAddresses
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.thanos import promql
from metroculus.sources.thanos.assets import assets_by_metrics
from metroculus.sources.thanos.client import Querier
from metroculus.sources.thanos.costs import allocation_by_metrics, management_by_metrics
from metroculus.sources.thanos.usage import container_usages, metadata
from simulator.costs import truth
from simulator.world import make_world
from tests.support import DAY, END, HOUR
from tools.deadline import Deadline
from tools.window import Window

WEEK = Window.past(END - 7 * DAY, END)
GIB = 2**30
MANAGEMENT = "kubecost_cluster_management_cost"


def account(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def samples(value_at, interval=60, start=WEEK.start, end=WEEK.end):
    return [(stamp, value_at(stamp)) for stamp in range(start, end, interval)]


def gauge(points, tenant, instance="a", name=MANAGEMENT):
    return [f'{name}{{instance="{instance}",tenant_id="{tenant}"}} {value!r} {stamp}\n' for stamp, value in points]


STEP_AT = WEEK.start + int(72.5 * HOUR)
GAP = (WEEK.start + 50 * HOUR, WEEK.start + 53 * HOUR)
RESTART = WEEK.start + 80 * HOUR
RESET = WEEK.start + 84 * HOUR


def steady(stamp):
    return 0.10


CASES = {
    "constant": (16.80, lambda t: gauge(samples(steady), t)),
    "a step": (26.35, lambda t: gauge(samples(lambda s: 0.10 if s < STEP_AT else 0.20), t)),
    "a gap of three hours": (16.50, lambda t: gauge([p for p in samples(steady) if not GAP[0] <= p[0] < GAP[1]], t)),
    "exporter restarted": (
        16.80,
        lambda t: gauge(samples(steady, end=RESTART + 300), t, "a") + gauge(samples(steady, start=RESTART), t, "b"),
    ),
    "one sample an hour": (16.80, lambda t: gauge(samples(steady, HOUR), t)),
    "every 15 seconds": (16.80, lambda t: gauge(samples(steady, 15), t)),
    "every 7 minutes": (16.80, lambda t: gauge(samples(steady, 420), t)),
}
COUNTER = account(90)
WORLD_TENANT, OTHER_TENANT = account(91), account(92)
WORLD = make_world(seed=5, days=3, end=END)
OTHER = make_world(seed=6, days=3, end=END, cluster_id="cluster-two")
UNPRICED_TENANT, NO_BALANCER_TENANT, ABSENT_TENANT = account(93), account(94), account(95)
HALF_TOLD_TENANT, OLDER_TENANT = account(96), account(97)


def simple_node(tenant, price_until):
    """One node, one container of a core at 0.05 an hour for two days; its price is known until ``price_until``."""
    two_days = {"start": END - 2 * DAY}
    lines = []
    for name, labels, value, end in (
        ("container_cpu_allocation", 'container="c",namespace="shop",node="n",pod="p"', 1.0, END),
        ("container_memory_allocation_bytes", 'container="c",namespace="shop",node="n",pod="p"', float(GIB), END),
        ("node_cpu_hourly_cost", 'node="n"', 0.05, price_until),
        ("node_ram_hourly_cost", 'node="n"', 0.01, END),
        ("node_total_hourly_cost", 'node="n"', 0.20, END),
    ):
        for stamp, point in samples(lambda s, v=value: v, end=end, **two_days):
            lines.append(f'{name}{{{labels},tenant_id="{tenant}"}} {point!r} {stamp}\n')
    return lines


def volume(tenant, price_label):
    """Ten GiB for two days, at 0.001 a GiB and hour where it is priced at all."""
    start = END - 2 * DAY
    size = f'kube_persistentvolume_capacity_bytes{{persistentvolume="v",tenant_id="{tenant}"}} {float(10 * GIB)!r}'
    lines = [f"{size} {stamp}\n" for stamp in range(start, END, 60)]
    if price_label:
        price = f'pv_hourly_cost{{tenant_id="{tenant}",{price_label}="v"}} 0.001'
        lines += [f"{price} {stamp}\n" for stamp in range(start, END, 60)]
    return lines


@pytest.fixture(scope="module")
def server(prometheus_factory):
    one = prometheus_factory()
    names = sorted(CASES)
    for number, name in enumerate(names):
        one.load([*CASES[name][1](account(number)), "# EOF\n"], f"case{number}")
    counted = samples(lambda s: GIB * (s - (RESET if s >= RESET else WEEK.start)) / HOUR)
    labels = 'internet="true",namespace="shop",pod_name="p",same_region="false",same_zone="false"'
    name = "kubecost_pod_network_egress_bytes_total"
    one.load([f'{name}{{{labels},tenant_id="{COUNTER}"}} {v!r} {s}\n' for s, v in counted] + ["# EOF\n"], "counter")
    one.load_world(WORLD, WORLD_TENANT)
    one.load_world(OTHER, OTHER_TENANT)
    one.load([*simple_node(UNPRICED_TENANT, END - DAY), "# EOF\n"], "unpriced")
    one.load([*simple_node(NO_BALANCER_TENANT, END), "# EOF\n"], "no-balancer")
    half = [line for line in simple_node(HALF_TOLD_TENANT, END) if not line.startswith("container_memory")]
    one.load([*half, *volume(HALF_TOLD_TENANT, None), "# EOF\n"], "half")
    one.load([*simple_node(OLDER_TENANT, END), *volume(OLDER_TENANT, "volumename"), "# EOF\n"], "older")
    one.start()
    return one


def with_thanos(server, work, label="tenant_id"):
    """Run ``work(thanos)`` on a loop of its own."""

    async def run():
        http = SourceHttp(AllowedAddresses())
        try:
            return await work(Querier(http, Upstream("metrics", server.url, trusted=True), label, lambda: END))
        finally:
            http.close()

    return asyncio.run(run())


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_integral_of_a_rate_is_exact_whatever_its_samples(server, name):
    expected = CASES[name][0]
    tenant = account(sorted(CASES).index(name))
    found = with_thanos(server, lambda t: management_by_metrics(t, tenant, WEEK, Deadline(60)))
    assert found.usd == pytest.approx(expected, rel=1e-3)
    assert found.source.status == ("partial" if "gap" in name else "ok")
    if "gap" in name:
        assert found.source.coverage == pytest.approx(165 / 168, abs=1e-3)


def test_a_counter_is_its_growth_over_a_reset(server):
    async def work(thanos):
        tenant, total = thanos.tenant(COUNTER), 0.0
        for start, end in WEEK.days():
            query = promql.increase("kubecost_pod_network_egress_bytes_total", tenant, ("namespace",), end - start)
            found, _ = await thanos.query(tenant, query, end - 0.001, Deadline(30))
            total += fsum(value for _, value in found)
        return total / GIB

    assert with_thanos(server, work) == pytest.approx(168, rel=1e-3)


def statement_of(server, tenant, window, world_aggregate=()):
    async def work(thanos):
        reading = await allocation_by_metrics(
            thanos, tenant, window, Deadline(120), [f"label_{n[6:]}" for n in world_aggregate]
        )
        return reading, await management_by_metrics(thanos, tenant, window, Deadline(60))

    reading, management = with_thanos(server, work)
    question = Question(cloud_account_id=tenant, window=window, detail="pod", aggregate=tuple(world_aggregate))
    return reconcile(question, None, reading, [management])


@pytest.mark.parametrize(("tenant", "world"), [(WORLD_TENANT, WORLD), (OTHER_TENANT, OTHER)])
def test_namespaces_cost_what_they_cost_by_metrics_alone(server, tenant, world):
    found = statement_of(server, tenant, Window.past(world.start, world.end), ("label:team",))
    true = truth(world)
    assert found.sources[0].status == "ok" and found.complete, found.sources
    assert found.total_cost == pytest.approx(true["total_cost"], rel=5e-3)
    assert found.summary.management_cost == pytest.approx(true["management_cost"], rel=1e-3)
    for name, value in true["summary"].items():
        assert getattr(found.summary, name) == pytest.approx(value, rel=5e-3), name
    assert found.idle_cost == pytest.approx(true["idle_cost"], rel=5e-3)
    assert found.unallocated_cost == pytest.approx(true["unmounted_cost"], rel=5e-3)
    rows = {row.namespace: row for row in found.breakdown_by_namespace}
    for name, value in true["namespaces"].items():
        # Short jobs are billed for up to a minute more each, which shows in their own namespace.
        assert rows[name].total_cost == pytest.approx(value, rel=1e-2 if name == "batch" else 2e-3), name
        assert rows[name].pod_count == true["pod_counts"][name]
    for name, value in true["efficiency"].items():
        assert getattr(found.efficiency, name) == pytest.approx(value, rel=1e-2), name
    workloads = {f"{r.namespace}/{r.controller_kind}/{r.controller}": r for r in found.breakdown_by_workload}
    for name, value in true["workloads"].items():
        if "/job/" not in name and name != "shop/deployment/web":
            assert workloads[name].total_cost == pytest.approx(value, rel=2e-3), name
    teams = {row.name: row.total_cost for row in found.breakdown_by_aggregate}
    assert {"alpha", "beta", "gamma", "__unallocated__"} == set(teams)
    parts = fsum(r.total_cost for r in found.breakdown_by_namespace)
    parts += found.idle_cost + found.unallocated_cost + found.summary.management_cost
    assert parts == pytest.approx(found.total_cost, rel=1e-6)


def test_a_price_that_is_missing_for_a_day_makes_its_component_partial(server):
    found = statement_of(server, UNPRICED_TENANT, Window.past(END - 2 * DAY, END))
    assert found.sources[0].status == "partial" and not found.complete
    assert any(text.startswith("cpu") for text in found.sources[0].warnings)
    shop = found.breakdown_by_namespace[0]
    assert shop.cpu_cost == pytest.approx(24 * 0.05, rel=2e-3)


def test_what_nobody_wrote_is_told_and_never_passed_off_as_nothing(server):
    found = statement_of(server, HALF_TOLD_TENANT, Window.past(END - 2 * DAY, END))
    assert found.sources[0].status == "partial" and not found.complete
    notes = " ".join(found.sources[0].warnings)
    assert "ram: nobody wrote" in notes and "pv: volumes are there, and their price is not known" in notes


def test_volumes_of_older_exporters_are_priced_by_their_other_label(server):
    found = statement_of(server, OLDER_TENANT, Window.past(END - 2 * DAY, END))
    assert found.summary.pv_cost == pytest.approx(10 * 0.001 * 48, rel=1e-3)
    assert found.special["__unmounted__"] == pytest.approx(0.48, rel=1e-3)


def test_no_balancer_is_nothing_to_pay_and_no_exporter_is_no_data(server):
    found = statement_of(server, NO_BALANCER_TENANT, Window.past(END - 2 * DAY, END))
    assert found.summary.load_balancer_cost == 0.0 and found.summary.pv_cost == 0.0
    assert found.summary.cpu_cost is None, "nobody says how what nodes cost is divided"
    assert found.idle_cost == pytest.approx(48 * (0.20 - 0.05 - 0.01), rel=1e-3)
    assert found.summary.known_cost == pytest.approx(48 * 0.20, rel=1e-3)
    assert "network" in found.not_covered and found.summary.network_cost is None
    with_an_empty_day = statement_of(server, NO_BALANCER_TENANT, Window.past(END - 3 * DAY, END))
    assert with_an_empty_day.summary.network_cost is None and "network" in with_an_empty_day.not_covered
    assert with_an_empty_day.sources[0].status == "partial" and not with_an_empty_day.complete
    absent = statement_of(server, ABSENT_TENANT, Window.past(END - 2 * DAY, END))
    assert [source.status for source in absent.sources] == ["no_data", "no_data"]
    assert absent.total_cost is None and absent.summary.known_cost is None and not absent.complete


def test_a_tenant_sees_no_series_but_its_own(server):
    async def work(thanos):
        tenant = thanos.tenant(WORLD_TENANT)
        window = Window.past(WORLD.start, WORLD.end)
        query = promql.selector("node_total_hourly_cost", tenant)
        series, _ = await thanos.query_range(tenant, query, window.start, window.end - 1, HOUR, Deadline(30))
        return series

    series = with_thanos(server, work)
    assert series and {one.labels["tenant_id"] for one in series} == {WORLD_TENANT}
    assert {one.labels["cluster_id"] for one in series} == {"cluster-one"}


def test_series_of_another_are_refused_even_where_a_query_lets_them_through(server):
    from metroculus.sources.errors import BadAnswer

    async def work(thanos):
        return await thanos.query(thanos.tenant(WORLD_TENANT), "node_total_hourly_cost", END - 1, Deadline(30))

    with pytest.raises(BadAnswer):
        with_thanos(server, work)


def test_metadata_tells_quotas_limits_and_nodes(server):
    found = with_thanos(server, lambda t: metadata(t, WORLD_TENANT, END - 30, Deadline(30)))
    hard = {(q.namespace, q.resource): q.hard for q in found.quotas}
    assert hard[("shop", "requests.cpu")] == 8.0 and hard[("api", "requests.memory")] == 8 * GIB
    workloads = {(w.namespace, w.controller): w for w in found.workloads}
    web = workloads[("shop", "web")]
    assert web.controller_kind == "deployment" and web.pods == 3
    assert web.cpu_limit == pytest.approx(2 * web.cpu_request)
    nodes = {n.name: n for n in found.nodes}
    assert nodes["node-2"].spot is True and nodes["node-0"].spot is False
    assert nodes["node-1"].cpu_cores == 8 and nodes["node-1"].instance_type == "m5.2xlarge"


def test_usage_is_the_95th_percentile_of_cpu_and_the_maximum_of_memory(server):
    window = Window.past(WORLD.start, WORLD.end)
    found = with_thanos(server, lambda t: container_usages(t, WORLD_TENANT, window, Deadline(60)))
    trainer = next(one for one in found if one.controller == "trainer")
    container = next(c for c in WORLD.containers if c.controller == "trainer")
    by_hour = sorted(container.cpu_usage_at(h * HOUR) for h in range(24))
    assert by_hour[21] <= trainer.cpu_p95 <= by_hour[23] * 1.01
    assert trainer.ram_max == pytest.approx(
        max(container.ram_usage_gib_at(h * HOUR) for h in range(24)) * GIB, rel=1e-6
    )
    assert trainer.container_hours == pytest.approx(72, rel=0.02)
    assert trainer.usd_per_core_hour == pytest.approx(container.node.usd_per_core_hour, rel=1e-6)


def test_one_clusters_own_prometheus_needs_no_tenant_label(prometheus_factory):
    one = prometheus_factory()
    one.load_world(WORLD, None)
    one.start()

    async def work(thanos):
        window = Window.past(WORLD.start, WORLD.end)
        return await management_by_metrics(thanos, str(uuid4()), window, Deadline(60))

    found = with_thanos(one, work, label="")
    assert found.usd == pytest.approx(truth(WORLD)["management_cost"], rel=1e-3)


def test_assets_cost_what_they_cost_by_metrics_alone(server):
    window = Window.past(WORLD.start, WORLD.end)
    assets, status = with_thanos(server, lambda t: assets_by_metrics(t, WORLD_TENANT, window, Deadline(60)))
    true = truth(WORLD)
    assert status.status == "ok"
    by_type = {(a.type, a.name): a for a in assets}
    for name, usd in true["nodes"].items():
        assert by_type[("node", name)].total_cost == pytest.approx(usd, rel=2e-3)
    for name, usd in true["volumes"].items():
        assert by_type[("disk", name)].total_cost == pytest.approx(usd, rel=2e-3)
    assert by_type[("disk", "pvc-db")].claim_name == "data-db-0" and not by_type[("disk", "pvc-old")].claim_name
    assert by_type[("node", "node-2")].hours == pytest.approx(36, rel=2e-3) and by_type[("node", "node-2")].spot
    assert by_type[("load_balancer", "shop/web")].total_cost == pytest.approx(
        true["summary"]["load_balancer_cost"], rel=2e-3
    )
    assert by_type[("cluster_management", "cluster-management")].total_cost == pytest.approx(
        true["management_cost"], rel=2e-3
    )
    nothing, status = with_thanos(server, lambda t: assets_by_metrics(t, ABSENT_TENANT, window, Deadline(60)))
    assert nothing == () and status.status == "no_data"
