"""Metrics as the field writes them, by hand: what a cluster costs an hour now, and what an hour of it cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

import pytest

from metroculus.sources.thanos.source import MetricsSource
from tests.integration.test_live import HALF_PAST, Watched
from tests.support import HOUR, Metroculus, Stack
from tools.window import MINUTE

pytestmark = pytest.mark.watch

START, END = HALF_PAST - 3 * HOUR, HALF_PAST + 2 * HOUR
PAST = (HALF_PAST - 90 * MINUTE, HALF_PAST - 30 * MINUTE)
"""A whole hour, for what is integrated."""
GIB = 2**30


class Cluster:
    """A node of 4 cores at 1 and 8 GiB at 0.5 with one container of half of it: with management 8.1 an hour."""

    def __init__(self, tenant: str, name: str = "", dearer: float = 1.0, start: int = START, end: int = END) -> None:
        self.common = {"tenant_id": tenant} | ({"cluster_id": name} if name else {})
        self.name, self.dearer, self.start, self.end = name or "one", dearer, start, end
        self.samples: list[tuple[str, dict[str, str], float, int]] = []

    def add(
        self, metric: str, value: Any, labels: dict[str, str], start: int = 0, end: int = 0, step: int = 60, at: int = 0
    ) -> None:
        for stamp in range((start or self.start) + at, end or self.end, step):
            self.samples.append((metric, self.common | labels, value(stamp) if callable(value) else value, stamp))

    def node(self, node: str = "n", total: bool = True, free: bool = False, cores: float = 1.0, **span: int) -> None:
        price = 0.0 if free else self.dearer
        self.add("node_cpu_hourly_cost", cores * price, {"node": node}, **span)
        self.add("node_ram_hourly_cost", 0.5 * price, {"node": node}, **span)
        if total:
            self.add("node_total_hourly_cost", 8.0 * price, {"node": node}, **span)
        self.add("kube_node_status_capacity_cpu_cores", 4.0, {"node": node}, **span)
        self.add("kube_node_status_capacity_memory_bytes", 8.0 * GIB, {"node": node}, **span)

    def pod(self, node: str = "n", pod: str = "p", ram_end: int = 0, **span: int) -> None:
        labels = {"namespace": f"ns-{self.name}", "pod": pod, "container": "app", "node": node}
        self.add("container_cpu_allocation", 2.0, labels, **span)
        self.add(
            "container_memory_allocation_bytes", 4.0 * GIB, labels, **(span | ({"end": ram_end} if ram_end else {}))
        )

    def rest(self, **span: int) -> None:
        self.add("kubecost_cluster_management_cost", 0.1 * self.dearer, {}, **span)
        for reach in ("internet", "region", "zone"):
            self.add(f"kubecost_network_{reach}_egress_cost", 0.1, {}, **span)

    def whole(self, **more: Any) -> Cluster:
        self.node(**more)
        self.pod()
        self.rest()
        return self

    def volume(self, name: str, *claims: str, step: int = 60, at: int = 0, end: int = 0) -> None:
        """One of 10 GiB, 1 an hour."""
        self.add("pv_hourly_cost", 0.1, {"persistentvolume": name, "volumename": name}, step=60)
        self.add(
            "kube_persistentvolume_capacity_bytes", 10.0 * GIB, {"persistentvolume": name}, step=step, at=at, end=end
        )
        for claim in claims:
            labels = {"volumename": name, "namespace": claim, "persistentvolumeclaim": name}
            self.add("kube_persistentvolumeclaim_info", 1.0, labels, step=step, at=at, end=end)


def account_of(name: str) -> str:
    return str(uuid5(NAMESPACE_DNS, name))


LATE = HALF_PAST + 10 * MINUTE
DEAD = HALF_PAST - 20 * MINUTE


def clusters() -> Iterator[Cluster]:
    """Every case under an account of its own."""
    for case in ("named", "several", "unnamed"):
        yield Cluster(account_of(case), "mine", end=DEAD if case == "named" else END).whole()
    yield Cluster(account_of("named"), "foreign", dearer=10.0).whole()
    yield Cluster(account_of("several"), "other", end=DEAD).whole()
    yield Cluster(account_of("unnamed"), "other", start=HALF_PAST + 2 * MINUTE).whole()
    yield Cluster(account_of("unpriced"), "a").whole()
    yield Cluster(account_of("unpriced"), "b").whole(free=True)
    plain = {name: Cluster(account_of(name)) for name in (
        "sizes away", "memory away", "outage", "no total", "two claims", "two paces", "two jobs", "below zero")}  # fmt: skip
    for name in ("sizes away", "two claims", "two paces", "two jobs", "memory away"):
        if name == "memory away":
            plain[name].node()
            plain[name].rest()
            plain[name].pod(ram_end=HALF_PAST - 5 * MINUTE)
        else:
            plain[name].whole()
    plain["sizes away"].volume("v", "web", end=HALF_PAST - 5 * MINUTE)
    plain["two claims"].volume("v", "web", "lost")
    plain["two paces"].volume("quick", "web", step=15)
    plain["two paces"].volume("slow", "web", step=60, at=20)
    for job in ("annotation", "monitor"):
        labels = {"namespace": "ns-one", "pod_name": "p", "internet": "true", "instance": "d1", "job": job}
        plain["two jobs"].add("kubecost_pod_network_egress_bytes_total", lambda at: (at - START) / 36 * GIB, labels)
    outage = plain["outage"]
    for node, span in (("old", {"end": HALF_PAST - 22 * MINUTE}), ("new", {"start": HALF_PAST})):
        outage.node(node, **span)
        outage.pod(node, node, **span)
        outage.rest(**span)
    lacking = plain["no total"].whole()
    lacking.node("m", total=False)
    lacking.pod("m", "q")
    below = plain["below zero"].whole()
    below.node("m", cores=-1.0)
    below.pod("m", "q")
    yield from plain.values()


@pytest.fixture(scope="module")
def url(prometheus_factory: Any) -> str:
    prometheus = prometheus_factory()
    by_metric: dict[str, list[str]] = {}
    for cluster in clusters():
        for metric, labels, value, stamp in cluster.samples:
            named = ",".join(f'{name}="{text}"' for name, text in sorted(labels.items()))
            by_metric.setdefault(metric, []).append(f"{metric}{{{named}}} {value!r} {stamp}\n")
    lines = [line for metric, of in by_metric.items() for line in (f"# TYPE {metric} unknown\n", *of)]
    prometheus.load([*lines, "# EOF\n"], "shapes")
    prometheus.start()
    return str(prometheus.url)


class Cases(Watched):
    def case(self, name: str, minutes: int = 60, **more: Any) -> dict[str, Any]:
        self.link(account_of(name), **more)
        self.minute()
        return self.get(account_of(name), minutes=minutes)

    def hour(self, name: str) -> dict[str, Any]:
        """What the sources say that a whole hour cost."""
        asked = {"cloud_account_id": account_of(name), "start_date": PAST[0], "end_date": PAST[1]}
        answer = Metroculus(self.running).get("kubecost_cluster_costs", **asked)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body


@pytest.fixture
def cases(stack: Stack, url: str) -> Cases:
    return Cases(stack, url)


def test_another_cluster_does_not_take_the_place_of_one_that_is_named(cases: Cases) -> None:
    body = cases.case("named", cluster="mine")
    assert body["latest"]["total_per_hour"] == pytest.approx(8.1) and body["source"]["status"] == "stale"
    cases.clock.now += 25 * MINUTE
    cases.minute()
    body = cases.get(account_of("named"))
    assert all(point["total_per_hour"] == pytest.approx(8.1) for point in body["points"]) and not body["complete"]
    begins = HALF_PAST + 30 * MINUTE
    dead = {"cloud_account_id": account_of("named"), "start_date": begins, "end_date": begins + HOUR}
    cases.clock.now = HALF_PAST + 2 * HOUR
    answer = Metroculus(cases.running).get("kubecost_cluster_costs", **dead)
    assert answer.status_code == 200 and answer.json()["total_cost"] is None, answer.text


def test_one_of_several_that_falls_silent_is_named_for_a_day_and_after_a_restart(cases: Cases) -> None:
    cases.clock.now = DEAD - MINUTE
    body = cases.case("several", cluster="*")
    assert body["latest"]["total_per_hour"] == pytest.approx(16.2) and body["complete"], body["source"]
    for wait in (5, 20):
        cases.clock.now = DEAD + wait * MINUTE
        cases.minute()
        body = cases.get(account_of("several"), minutes=10)
        assert body["latest"]["total_per_hour"] == pytest.approx(8.1) and body["age_seconds"] == 0
        assert body["source"]["status"] == "partial" and "nothing is heard of other," in str(body["source"]["warnings"])
    cases.stack.thread.run(cases.running.stop())
    again = Cases(cases.stack, cases.plan["thanos_query_url"], now=DEAD + 40 * MINUTE)
    again.minute()
    body = again.get(account_of("several"), minutes=10)
    assert not body["complete"] and "nothing is heard of other," in str(body["source"]["warnings"])


def test_another_cluster_that_appears_is_not_added_to_one_that_was_not_named(cases: Cases) -> None:
    assert cases.case("unnamed")["complete"]
    for _ in range(8):
        cases.clock.now += MINUTE
        cases.minute()
    body = cases.get(account_of("unnamed"))
    assert all(point["total_per_hour"] == pytest.approx(8.1) for point in body["points"])
    assert cases.worker.worker._live_failing == {account_of("unnamed")}, "it must be said which of the two it is"


def test_each_cluster_has_a_price_or_is_not_known(cases: Cases) -> None:
    body = cases.case("unpriced", cluster="*")
    assert not body["complete"] and "unpriced" in str(body["source"]["warnings"])
    cases.clock.now += MINUTE
    body = cases.case("unpriced", cluster="*", custom_prices={"core_hour": 2.0, "ram_gib_hour": 1.0})
    assert body["complete"] and body["latest"]["total_per_hour"] == pytest.approx(8.1 + 16.1)


@pytest.mark.parametrize(("name", "component"), [("sizes away", "pv"), ("memory away", "ram")])
def test_what_is_not_told_now_is_no_zero(cases: Cases, name: str, component: str) -> None:
    body = cases.case(name)
    assert body["latest"]["per_hour"][component] is None and not body["complete"], body["latest"]
    assert component in str(body["source"]["warnings"])
    asked = [point["per_hour"][component] for point in body["points"][:50]]
    assert None not in asked, "before it was told"


def test_what_comes_late_in_part_is_made_up(stack: Stack, prometheus_factory: Any, url: str) -> None:
    first = Cases(stack, url)
    assert not first.case("sizes away")["complete"]
    stack.thread.run(first.running.stop())
    late = prometheus_factory()
    cluster = Cluster(account_of("sizes away")).whole()
    cluster.volume("v", "web")
    lines = []
    for metric in dict.fromkeys(sample[0] for sample in cluster.samples):
        lines.append(f"# TYPE {metric} unknown\n")
        for _, labels, value, stamp in (one for one in cluster.samples if one[0] == metric):
            named = ",".join(f'{name}="{text}"' for name, text in sorted(labels.items()))
            lines.append(f"{metric}{{{named}}} {value!r} {stamp}\n")
    late.load([*lines, "# EOF\n"], "late")
    late.start()
    again = Cases(stack, late.url, now=HALF_PAST + MINUTE)
    again.minute()
    body = again.get(account_of("sizes away"), minutes=4)
    assert body["complete"] and all(point["total_per_hour"] == pytest.approx(9.1) for point in body["points"])


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "among workers of a queue"])
def test_only_what_lacks_something_is_asked_for_again(cases: Cases, alone: bool) -> None:
    """Whoever asked before, and whether it is this worker that remembers it; what is the same is not written again."""
    runner = cases.worker.worker.runner
    runner._keep_ownership = alone
    store = cases.running.metroculus.dependencies.store
    assert store is not None
    cases.link(account_of("two claims"))
    cases.case("sizes away")
    asked: dict[str, list[int]] = {}
    live = MetricsSource.live

    async def noted(self: Any, start: int, end: int, deadline: Any) -> Any:
        asked.setdefault(self._account, []).append(start)
        return await live(self, start, end, deadline)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MetricsSource, "live", noted)
        cases.clock.now += MINUTE
        cases.minute()
    assert asked[account_of("two claims")] == [HALF_PAST + MINUTE]
    (first,) = asked[account_of("sizes away")]
    assert HALF_PAST - 5 * MINUTE <= first <= HALF_PAST, "the first minute that lacks something"
    rows = store.engine.rows(
        "SELECT count() AS rows, uniqExact(account, at) AS moments FROM k8s_live WHERE point != ''"
    )
    (counted,) = rows
    assert int(counted["rows"]) == int(counted["moments"])


def test_minutes_of_an_outage_are_not_made_up_and_old_nodes_not_added(cases: Cases) -> None:
    cases.clock.now = HALF_PAST + 3 * MINUTE
    body = cases.case("outage", minutes=30)
    assert all(point["total_per_hour"] == pytest.approx(8.1) for point in body["points"])
    assert body["missing_minutes"] >= 18


@pytest.mark.parametrize(
    ("name", "total", "complete"),
    [("two claims", 9.1, True), ("two paces", 10.1, True), ("two jobs", 18.1, True), ("no total", None, False),
     ("below zero", None, False)],
)  # fmt: skip
def test_now_and_over_an_hour(cases: Cases, name: str, total: float | None, complete: bool) -> None:
    body = cases.case(name)
    assert body["complete"] == complete, body["source"]
    hour = cases.hour(name)
    assert hour["complete"] == complete, hour["sources"]
    if total is not None:
        assert body["latest"]["total_per_hour"] == pytest.approx(total, rel=1e-3)
        assert hour["total_cost"] == pytest.approx(total, rel=0.03)
