"""Every view asked as a user would, held against the simulator's exact truth."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import fsum, isclose
from typing import Any

import requests

from metroculus.cost_model.anomalies import FIRST_DAY_BEGINS, FIRST_DAY_ENDS
from metroculus.cost_model.savings import LOCAL
from simulator import savings
from simulator.burst import NODE as BURST_NODE
from simulator.costs import truth
from simulator.world import DAY, GIB, HOUR, World
from tools.window import SETTLING_SECONDS, parse_rfc3339

DAYS = 7
RULES: dict[str, Any] = {
    "valid_from": "2020-01",
    "cost_centers": [
        {"name": "storefront", "match": [{"namespace": "shop"}, {"namespace": "api"}]},
        {"name": "analytics", "match": [{"namespace": "ml*"}, {"label": "team", "values": ["batch"]}]},
    ],
    "shared": [{"name": "platform", "match": [{"namespace": "kube-system"}]}],
    "overhead": [{"name": "support contract", "amount_month": 300.0, "split": "even"}],
    "idle": "weighted",
}
"""How the demo's organization shares its costs out."""
BUDGET: dict[str, Any] = {"name": "cluster-one, this year", "period": "year", "amount": 100.0}
"""What the demo's organization means to spend: it is crossed, on whatever day the demo runs after the year's second."""
WATCHED_WITHIN = 90.0
"""Seconds: the worker looks each minute."""
RELATIVE = 1e-6
ROUNDED_USD = 1e-5

Json = dict[str, Any]


@dataclass(frozen=True)
class DemoCluster:
    id: str
    world: World
    flavour: str
    """What it is known by: of one that pushes, its upstream's."""
    url: str
    pushed: bool = False


@dataclass(frozen=True)
class Check:
    """One figure: what a view said, what is true, how far they may be apart."""

    view: str
    answer: float
    truth: float
    tolerance: float = 0.0

    @property
    def ok(self) -> bool:
        return isclose(self.answer, self.truth, rel_tol=RELATIVE, abs_tol=self.tolerance)


class Asker:
    """The REST API with a token."""

    def __init__(self, base: str, token: str) -> None:
        self._base = base
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {token}"

    def get(self, path: str, **params: Any) -> Json:
        answer = self._session.get(self._base + path, params=params, timeout=40)
        if answer.status_code != 200:
            raise AssertionError(f"{path}: {answer.status_code} {answer.text[:300]}")
        body: Json = answer.json()
        return body

    def call(self, method: str, path: str, body: Json | None = None) -> tuple[int, bytes]:
        answer = self._session.request(method, self._base + path, json=body, timeout=40)
        return answer.status_code, answer.content


def check_everything(
    base: str, token: str, stranger: str, organization_id: str, clusters: Sequence[DemoCluster], with_metrics: bool
) -> list[Check]:
    """Whole days that have settled: their figures no longer change while they are asked for."""
    today = _settled_until(time.time())
    start, end = today - DAYS * DAY, today
    ask = Asker(base, token)
    window = {"window": f"{start},{end}"}
    truths = [truth(c.world, start, end, now=int(time.time()), adjusted=c.flavour == "kubecost") for c in clusters]
    listing = ask.get(f"/restapi/v2/organizations/{organization_id}/kubecost/clusters", **window)
    checks = []
    totals = []
    for cluster, true in zip(clusters, truths, strict=True):
        row = next(one for one in listing["clusters"] if one["cluster_id"] == cluster.id)
        totals.append(expected_total(cluster, true, with_metrics))
        checks.append(_usd(f"clusters: {row['name']} total", row["total_cost"], totals[-1], true))
        checks.append(_flag(f"clusters: {row['name']} complete", row["complete"]))
        checks += _views(ask, cluster, true, window, with_metrics)
    checks.append(_usd("clusters: total of all", listing["total_cost"], fsum(totals), truths[0], truths[1]))
    checks += _metrics(ask, clusters[0], window, with_metrics)
    checks += _links(ask, organization_id, clusters[0])
    checks += _watched(ask, organization_id, clusters[0], with_metrics)
    checks += _changed(ask, clusters[0], start, end, with_metrics)
    checks += _walls(Asker(base, stranger), organization_id, clusters[0])
    checks += _history(ask, organization_id, clusters, truths, window, with_metrics)
    return checks


def _settled_until(now: float) -> int:
    """The end of the last day of which all is known: a little after midnight that is not yet yesterday."""
    return int(now - SETTLING_SECONDS) // DAY * DAY


def check_store_alone(base: str, token: str, organization_id: str, clusters: Sequence[DemoCluster]) -> list[Check]:
    """The same questions once the clusters are gone: what is stored answers, whole and unchanged."""
    today = _settled_until(time.time())
    ask, with_metrics = Asker(base, token), True
    window = {"window": f"{today - DAYS * DAY},{today}"}
    checks = []
    for cluster in clusters:
        name = f"store alone: {cluster.world.cluster_id}"
        adjusted = cluster.flavour == "kubecost"
        true: Json = truth(cluster.world, today - DAYS * DAY, today, int(time.time()), adjusted)
        costs = ask.get(f"/restapi/v2/kubecost/clusters/{cluster.id}/costs", **window)
        management = costs["summary"]["management_cost"]
        total = expected_total(cluster, true, with_metrics and management is not None)
        checks.append(_usd(f"{name} total", costs["total_cost"], total, true))
        checks.append(_flag(f"{name} complete", costs["complete"]))
        checks += [
            _usd(f"{name} namespace {row['namespace']}", row["total_cost"], true["namespaces"][row["namespace"]], true)
            for row in costs["costs"]
        ]
    return checks


def _history(
    ask: Asker,
    organization_id: str,
    clusters: Sequence[DemoCluster],
    truths: Sequence[Json],
    window: Json,
    with_metrics: bool,
) -> list[Check]:
    """Expenses, steps and months: what is stored, against the truth of the same time."""
    path = f"/restapi/v2/organizations/{organization_id}"
    start, end = (int(stamp) for stamp in window["window"].split(","))
    totals = [expected_total(c, true, with_metrics) for c, true in zip(clusters, truths, strict=True)]
    found = ask.get(f"{path}/clean_expenses", limit=1000, **window)
    statements = found["k8s_costs"]
    checks = [
        _usd("expenses: total of what is stored", found["total_cost"], fsum(totals), *truths),
        _usd(
            "expenses: sum of the rows",
            fsum(row["cost"] for row in _all_rows(ask, path, window)),
            fsum(totals),
            *truths,
        ),
        _flag("expenses: complete", found["complete"]),
        _usd("expenses: the clusters' own statements", statements["k8s_total_cost"], fsum(totals), *truths),
    ]
    shop = ask.get("/restapi/v2/clean_expenses", organization_id=organization_id, k8s_namespace="shop", **window)
    owned = fsum(true["namespaces"]["shop"] for true in truths)
    checks.append(_usd("expenses: one namespace, stored", shop["total_cost"], owned, *truths))
    checks.append(_usd("expenses: one namespace, told", shop["k8s_costs"]["k8s_total_cost"], owned, *truths))
    for cluster, true in zip(clusters, truths, strict=True):
        adjusted = cluster.flavour == "kubecost"
        costs = ask.get(f"/restapi/v2/kubecost/clusters/{cluster.id}/costs", step="day", **window)
        days = [truth(cluster.world, day, day + DAY, int(time.time()), adjusted) for day in range(start, end, DAY)]
        for point, day in zip(costs["data_points"], days, strict=True):
            view = f"{cluster.world.cluster_id} step: {point['start'][:10]}"
            checks.append(_usd(view, point["total_cost"], expected_total(cluster, day, with_metrics), true))
    checks += _months(ask, path, clusters, with_metrics)
    return checks


def _all_rows(ask: Asker, path: str, window: Json) -> list[Json]:
    """Every page."""
    rows: list[Json] = []
    more: Json = {}
    while True:
        page = ask.get(f"{path}/clean_expenses", limit=1000, **window, **more)
        rows += page["clean_expenses"]
        if page["next_cursor"] is None:
            return rows
        more = {"cursor": page["next_cursor"]}


def _months(ask: Asker, path: str, clusters: Sequence[DemoCluster], with_metrics: bool) -> list[Check]:
    """The running month against the truth of its stored hours; the band holds the projection.

    In its first hour nothing of it is stored yet: then the month before.
    """
    found = ask.get(f"{path}/kubecost/monthly", months=2)
    stored = [one for one in found["months"] if all(part["total_cost"] is not None for part in one["clusters"])]
    month = stored[-1]
    start, end = parse_rfc3339(month["start"]), parse_rfc3339(month["end"])
    assert start is not None and end is not None
    checks = []
    by_id = {one["cloud_account_id"]: one for one in month["clusters"]}
    totals = {}
    for cluster in clusters:
        month_of_cluster = by_id[cluster.id]
        projection = month_of_cluster["projection"]
        stored_until = end - (projection["hours_left"] if projection else 0) * HOUR
        true: Json = truth(cluster.world, start, stored_until, int(time.time()), cluster.flavour == "kubecost")
        view = f"monthly: {cluster.world.cluster_id} to date"
        totals[cluster.id] = (expected_total(cluster, true, with_metrics), true)
        checks.append(_usd(view, month_of_cluster["total_cost"], *totals[cluster.id]))
    band = month["projection"]
    if band is not None and band["total_cost"] is not None:
        held = band["low"] <= band["total_cost"] <= band["high"]
        checks.append(_flag("monthly: the band holds the projection", held))
    months = ask.get("/api/v1/cost/monthly", cluster_id=clusters[0].id, months=2)["months"]
    older = next(one for one in months if one["month"] == month["month"])["total_cost"]
    checks.append(Check("monthly: /api/v1 says the same", older, by_id[clusters[0].id]["total_cost"]))
    return checks + _chargeback(ask, path, month["month"], totals)


def _chargeback(ask: Asker, path: str, month: str, totals: dict[str, tuple[float, Json]]) -> list[Check]:
    """The running month shared out: every view adds up to what the clusters cost and the overhead."""
    overhead = fsum(one["amount_month"] for one in RULES["overhead"])
    known = fsum(usd for usd, _ in totals.values())
    truths = [true for _, true in totals.values()]
    checks = []
    for by in ("cost_center", "namespace", "cluster", "label:team"):
        found = ask.get(f"{path}/kubecost/chargeback", month=month, by=by)
        rows = fsum(row["total_cost"] for row in found["rows"])
        checks.append(_usd(f"chargeback: sum by {by}", rows, known + overhead, *truths))
        if by == "cluster":
            checks += [
                _usd(f"chargeback: cluster {row['name'][:8]}", _without_overhead(row), *totals[row["name"]])
                for row in found["rows"]
            ]
    return checks


def _without_overhead(row: Json) -> float:
    return float(row["total_cost"]) - fsum(row["overhead"].values())


def expected_total(cluster: DemoCluster, true: Json, with_metrics: bool) -> float:
    """OpenCost without metrics cannot tell cluster management: the total is that of the rest."""
    with_management = with_metrics or cluster.flavour == "kubecost"
    total: float = true["total_cost"] if with_management else true["allocation_total"]
    return total


def _usd(view: str, answer: float | None, true: float, *truths: Json) -> Check:
    figures = sum(one["rounded_figures"] for one in truths) * DAYS
    return Check(view, float("nan") if answer is None else answer, true, ROUNDED_USD * figures)


def _flag(view: str, answer: bool, true: bool = True) -> Check:
    return Check(view, float(answer), float(true))


def _views(ask: Asker, cluster: DemoCluster, true: Json, window: Json, with_metrics: bool) -> list[Check]:
    name, path = cluster.world.cluster_id, f"/restapi/v2/kubecost/clusters/{cluster.id}"
    costs = ask.get(f"{path}/costs", **window)
    checks = [_usd(f"{name} costs: {key}", costs["summary"][key], usd, true) for key, usd in true["summary"].items()]
    checks.append(_usd(f"{name} costs: idle", costs["idle_cost"], true["idle_cost"], true))
    checks.append(_usd(f"{name} costs: no owner", costs["unallocated_cost"], true["unmounted_cost"], true))
    checks += [
        _usd(
            f"{name} costs: namespace {row['namespace']}", row["total_cost"], true["namespaces"][row["namespace"]], true
        )
        for row in costs["costs"]
    ]
    parts = [row["total_cost"] for row in costs["costs"]] + [costs["idle_cost"], costs["unallocated_cost"]]
    management = costs["summary"]["management_cost"]
    checks.append(Check(f"{name} costs: parts add up", fsum(parts) + (management or 0.0), costs["total_cost"], 1e-9))
    for key, value in true["efficiency"].items():
        checks.append(Check(f"{name} costs: {key}", costs["efficiency"][key], value, 1e-4))
    shared = ask.get(f"{path}/costs", idle="share", **window)
    checks.append(_usd(f"{name} costs: total with idle shared", shared["total_cost"], costs["total_cost"], true))
    by_node = ask.get(f"{path}/costs", aggregate="node", **window)
    owned = fsum(true["namespaces"].values())
    checks.append(_usd(f"{name} costs: sum by node", fsum(r["total_cost"] for r in by_node["costs"]), owned, true))
    by_team = ask.get(f"{path}/costs", aggregate="label:team", **window)
    checks.append(_usd(f"{name} costs: sum by label", fsum(r["total_cost"] for r in by_team["costs"]), owned, true))
    namespaces = ask.get(f"{path}/namespaces", **window)["namespaces"]
    for row in namespaces:
        pods = true["pod_counts"][row["namespace"]]
        checks.append(Check(f"{name} namespaces: pods of {row['namespace']}", row["pod_count"], pods))
        workloads = ask.get(f"{path}/namespaces/{row['namespace']}/workloads", **window)["workloads"]
        for one in workloads:
            key = f"{one['namespace']}/{one['controller_kind']}/{one['controller']}"
            if one["controller_kind"] != "job":
                checks.append(_usd(f"{name} workloads: {key}", one["total_cost"], true["workloads"][key], true))
    assets = ask.get(f"{path}/assets", **window)
    for kind, known in (("node", true["nodes"]), ("disk", true["volumes"])):
        machines = [one for one in assets["assets"] if one["type"] == kind and one["storage_class"] != LOCAL]
        for thing, usd in known.items():  # several machines may have had one name
            told = fsum(one["total_cost"] for one in machines if one["name"] == thing)
            checks.append(_usd(f"{name} assets: {kind} {thing}", told, usd, true))
    checks += _optimization(ask, cluster, path, true, window)
    checks += _older_paths(ask, cluster, true, window, with_metrics)
    return checks


def _optimization(ask: Asker, cluster: DemoCluster, path: str, true: Json, window: Json) -> list[Check]:
    name = cluster.world.cluster_id
    found = ask.get(f"{path}/optimization", **window)
    orphans = {v.name: v.gib * v.usd_per_gib_hour * savings.HOURS_A_MONTH for v in cluster.world.volumes if not v.claim}
    checks = [
        _usd(f"{name} optimization: volume {one['name']} a month", one["monthly_saving"], orphans[one["name"]], true)
        for one in found["unclaimed_volumes"]
    ]
    if cluster.flavour == "kubecost" and not cluster.pushed:  # an agent pushes no savings
        monthly = fsum(savings.categories(cluster.world).values())
        checks.append(_usd(f"{name} optimization: potential a month", found["potential_savings"], monthly, true))
    return checks


def _older_paths(ask: Asker, cluster: DemoCluster, true: Json, window: Json, with_metrics: bool) -> list[Check]:
    name = cluster.world.cluster_id
    owned = fsum(true["namespaces"].values())
    asked = {"cluster_id": cluster.id} | window
    namespaces = ask.get("/api/v1/cost/namespaces", **asked)
    pods = ask.get("/api/v1/cost/pods", **asked)
    by_name = ask.get(f"/api/v1/costs/kubernetes/{name}", **window)
    workloads = ask.get(f"/api/v1/costs/kubernetes/{name}/workloads", **window)
    listed = ask.get(f"/api/v1/costs/kubernetes/{name}/namespaces", **window)
    optimization = ask.get(f"/api/v1/costs/kubernetes/{name}/optimization", **window)
    dearest = ask.get("/api/v1/savings/recommendations", limit=1, **asked)
    checks = [
        _usd(f"{name} /api/v1: namespaces", namespaces["total"], owned, true),
        _usd(f"{name} /api/v1: pods", pods["total"], owned, true),
        _usd(
            f"{name} /api/v1: cluster by name", by_name["total_cost"], expected_total(cluster, true, with_metrics), true
        ),
        _usd(f"{name} /api/v1: workloads", fsum(r["total_cost"] for r in workloads["workloads"]), owned, true),
        _usd(f"{name} /api/v1: namespaces by name", fsum(r["total_cost"] for r in listed["namespaces"]), owned, true),
        Check(f"{name} /api/v1: volumes without a claim", len(optimization["unclaimed_volumes"]), 2),
        Check(f"{name} /api/v1: recommendations", dearest["item_count"], 1),
    ]
    return checks


def _metrics(ask: Asker, cluster: DemoCluster, window: Json, with_metrics: bool) -> list[Check]:
    """Capacity over time against the nodes that there were; without a Prometheus the view says so."""
    path = f"/restapi/v2/kubecost/clusters/{cluster.id}/metrics"
    if not with_metrics:
        status, _ = ask.call("GET", f"{path}?metric=cpu")
        return [Check("metrics: without a Prometheus, 409 and how to add one", status, 409)]
    checks = []
    for metric, unit, size in (("cpu", 1.0, "cores"), ("memory", GIB, "ram_gib")):
        found = ask.get(path, metric=metric, **window)
        at, capacity = found["series"]["capacity"][0]
        true = sum(getattr(n, size) for n in cluster.world.nodes if n.start <= at < n.end)
        checks.append(Check(f"metrics: {metric} capacity, {found['unit']}", capacity, true * unit))
    for metric in ("network", "storage"):
        found = ask.get(path, metric=metric, **window)
        checks.append(_flag(f"metrics: {metric} has points", len(found["series"]["usage"]) > 0))
    return checks


def _links(ask: Asker, organization_id: str, cluster: DemoCluster) -> list[Check]:
    path = f"/restapi/v2/organizations/{organization_id}/kubecost/clusters"
    read, _ = ask.call("GET", f"{path}/{cluster.id}")
    renamed, _ = ask.call("PATCH", f"{path}/{cluster.id}", {"name": "renamed"})
    back, _ = ask.call("PATCH", f"{path}/{cluster.id}", {"name": cluster.world.cluster_id})
    linked, made = ask.call("POST", path, {"name": "extra", "flavour": "opencost", "url": cluster.url})
    extra = json.loads(made)["cluster_id"]
    unlinked, _ = ask.call("DELETE", f"{path}/{extra}")
    gone, _ = ask.call("GET", f"{path}/{extra}")
    statuses = ((read, 200), (renamed, 200), (back, 200), (linked, 201), (unlinked, 200), (gone, 404))
    names = ("read", "rename", "rename back", "link another", "unlink it", "it is gone")
    return [Check(f"links: {name}", got, want) for name, (got, want) in zip(names, statuses, strict=True)]


def _watched(ask: Asker, organization_id: str, cluster: DemoCluster, with_metrics: bool) -> list[Check]:
    """The budget that is crossed and the hour that was dear: reckoned, and told with its cause."""
    path = f"/restapi/v2/organizations/{organization_id}/kubecost"
    (budget,) = ask.get(f"{path}/budgets", upstream="false")["budgets"]
    start, end = (parse_rfc3339(budget[key]) for key in ("start", "as_of"))
    assert start is not None and end is not None
    first = int(max(start, cluster.world.start))
    true: Json = truth(cluster.world, first, int(end), int(time.time()), adjusted=True)
    spent = expected_total(cluster, true, with_metrics)
    checks = [
        _usd("budgets: spent", budget["spent"], spent, true),
        _flag("budgets: exceeded", budget["state"] == "exceeded", spent > budget["amount"]),
    ]
    (node,) = [one for one in cluster.world.nodes if one.name == BURST_NODE]
    hour = f"{node.start},{node.end}"
    found = ask.get(f"/restapi/v2/kubecost/clusters/{cluster.id}/anomalies", window=hour)["anomalies"]
    dear: Json = truth(cluster.world, node.start, node.end, int(time.time()), adjusted=True)
    cost = expected_total(cluster, dear, with_metrics)
    if _on_a_first_day(node.start):
        checks.append(_flag("anomalies: a month's first day has no other one here", not found))
        wanted = {"budget"}
    else:
        checks.append(_usd("anomalies: what the dear hour cost", found[0]["total_cost"] if found else None, cost, dear))
        checks.append(_flag("anomalies: its cause", bool(found) and found[0]["causes"][0]["namespace"] == "batch"))
        wanted = {"budget", "cost_spike"}
    deadline, kinds = time.monotonic() + WATCHED_WITHIN, set[str]()
    while time.monotonic() < deadline and not wanted <= kinds:
        kinds = {one["kind"] for one in ask.get(f"{path}/alerts", state="firing")["alerts"]}
        time.sleep(0.5)
    return [*checks, *(_flag(f"alerts: {kind} fires", kind in kinds) for kind in sorted(wanted))]


def _on_a_first_day(hour: int) -> bool:
    """Whether it is a month's first day somewhere: that is held against other first days, and two weeks have none."""
    first = datetime.fromtimestamp(hour + FIRST_DAY_BEGINS, UTC).replace(day=1, hour=0, minute=0)
    return -FIRST_DAY_BEGINS <= hour - first.timestamp() < FIRST_DAY_ENDS


def _changed(ask: Asker, cluster: DemoCluster, start: int, end: int, with_metrics: bool) -> list[Check]:
    """From one day to the next: steps that add up to the difference of what both truly cost."""
    days = [(day, day + DAY) for day in (end - 2 * DAY, end - DAY)]
    trues: list[Json] = [truth(cluster.world, *day, int(time.time()), adjusted=True) for day in days]
    before, after = (f"{first},{last}" for first, last in days)
    found = ask.get(
        f"/restapi/v2/kubecost/clusters/{cluster.id}/changes", window=after, against=before, aggregate="namespace"
    )
    totals = [expected_total(cluster, true, with_metrics) for true in trues]
    return [
        _usd("changes: the day before", found["before_cost"], totals[0], *trues),
        _usd("changes: the day", found["total_cost"], totals[1], *trues),
        Check("changes: steps add up", fsum(one["amount"] for one in found["steps"]), found["difference"], 1e-9),
    ]


def _walls(stranger: Asker, organization_id: str, cluster: DemoCluster) -> list[Check]:
    """What is another's and what is not there: 404, the same bytes."""
    nobody = "00000000-0000-4000-8000-000000000000"
    foreign = stranger.call("GET", f"/restapi/v2/kubecost/clusters/{cluster.id}/costs")
    absent = stranger.call("GET", f"/restapi/v2/kubecost/clusters/{nobody}/costs")
    listing, _ = stranger.call("GET", f"/restapi/v2/organizations/{organization_id}/kubecost/clusters")
    return [
        Check("walls: another's cluster", foreign[0], 404),
        _flag("walls: the same bytes as what is not there", foreign == absent),
        Check("walls: another's organization", listing, 404),
    ]
