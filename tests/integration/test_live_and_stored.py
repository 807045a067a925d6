"""Live and stored views of the same hours are one figure, for every grouping and filter that there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.costs import truth
from tests.support import ACCOUNT, END, NOW, Metroculus, Stack, exact_world

WORLD = exact_world(days=2)
DATES = {"cloud_account_id": ACCOUNT, "start_date": WORLD.start, "end_date": END}
GROUPINGS = (
    "namespace", "controller", "controllerKind", "pod", "container", "node", "service", "cluster", "label:team",
    "label:app", "namespace,service", "node,namespace",
)  # fmt: skip


@pytest.fixture(scope="module", params=["kubecost", "opencost"])
def pair(request, tmp_path_factory):
    """The same upstream twice: asked live, and kept by a worker."""
    stack = Stack(tmp_path_factory.mktemp("pair"))
    try:
        yield _pair(request.param, stack)
    finally:
        stack.close()


def _pair(flavour, stack):
    _, url = stack.simulate(WORLD)
    plan = {"kubecost_api_url": url, "kubecost_account_id": ACCOUNT, "kubecost_flavour": flavour}
    live = stack.start(**plan)
    kept = stack.start(**plan, clickhouse_url=f"embedded:{stack.folder / 'store'}")
    fill = kept.worker.worker.fill(ACCOUNT, (WORLD.start, END), 2, lambda progress: None)
    assert stack.thread.run(fill).complete
    return Metroculus(live), Metroculus(kept)


def rows(asked, **query):
    body = asked.get("kubecost_cluster_costs", **DATES, **query).json()
    listed = body.get("breakdown_by_aggregate", body.get("breakdown_by_namespace", []))
    return body["known_cost"] if "known_cost" in body else body["summary"]["known_cost"], {
        row["name"]: row["total_cost"] for row in listed
    }


@pytest.mark.parametrize("aggregate", GROUPINGS)
def test_groupings(pair, aggregate):
    live, kept = (rows(asked, aggregate=aggregate) for asked in pair)
    assert live[0] == pytest.approx(kept[0], rel=2e-2)
    assert live[1].keys() == kept[1].keys()
    for name, usd in kept[1].items():
        assert live[1][name] == pytest.approx(usd, rel=2e-2, abs=1e-3), name
    if aggregate != "cluster" and "service" not in aggregate and "label" not in aggregate:
        assert "__unallocated__" not in live[1]


@pytest.mark.parametrize(
    "filters",
    [
        {"k8s_service": WORLD.containers[0].services[0]},
        {"k8s_node": WORLD.nodes[0].name},
        {"k8s_namespace": "shop"},
        {"k8s_namespace": "shop", "k8s_node": WORLD.nodes[0].name},
        {"k8s_service": "absent"},
        {"filter": "controller=web"},
        {"filter": ["controller=web", "controller=db"]},
        {"filter": ["namespace=shop", "container=db"]},
        {"filter": ["label:team=alpha", "namespace=shop"]},
        {"filter": "label:team="},
        {"filter": "label:team=__unallocated__"},
        {"filter": "pod=absent"},
    ],
)
def test_filters(pair, filters):
    live, kept = (rows(asked, detail_level="namespace", **filters) for asked in pair)
    assert live[0] == pytest.approx(kept[0], rel=2e-2, abs=1e-9)
    assert live[1].keys() == kept[1].keys()
    if not any("absent" in value for value in filters.values()):
        assert live[0] > 0


@pytest.mark.parametrize("aggregate", ["controller", "container", "label:team", "label:app", "node", "service", "pod"])
def test_a_row_is_what_a_filter_by_its_name_comes_to(pair, aggregate):
    """Whatever a row is called, a filter by that name has its cost, and nothing that no namespace owns."""
    for asked in pair:
        _, named = rows(asked, aggregate=aggregate)
        for name, usd in named.items():
            body = asked.get("kubecost_cluster_costs", **DATES, filter=f"{aggregate}={name}").json()
            if aggregate != "service" or name == "__unallocated__":  # a row counts for the first, a filter for each
                assert body["summary"]["known_cost"] == pytest.approx(usd, rel=1e-9), name
            assert body["idle_cost"] == 0.0 and body["special"] == {}


@pytest.mark.parametrize("aggregate", ["namespace", "controller", "label:team", "node"])
@pytest.mark.parametrize("step", ["hour", "day"])
def test_the_dearest_rows_by_the_step(pair, aggregate, step):
    """Live and stored alike, the steps of a row add up to the row; no more rows than were asked for."""
    for asked in pair:
        window = {**DATES, "start_date": END - 40 * 3600} if step == "hour" else DATES
        body = asked.get("kubecost_cluster_costs", **window, aggregate=aggregate, step=step, groups=2).json()
        dearest = {row["name"]: row["total_cost"] for row in body["breakdown_by_aggregate"][:2]}
        told = [point["groups"] for point in body["data_points"]]
        assert {name for point in told for name in point} == dearest.keys()
        for name, usd in dearest.items():
            assert sum(point.get(name, 0.0) for point in told) == pytest.approx(usd, rel=2e-2)
    refused = pair[0].get("kubecost_cluster_costs", **DATES, aggregate="pod,node", step="day", groups=2)
    assert refused.status_code == 400 and refused.json()["error"]["params"] == ["groups"]


def test_a_label_that_says_idle_is_its_owners(stack):
    """A tenant writes a special name in a label: the row stays in its namespace, live and stored."""
    like = WORLD.containers[0]
    forged = tuple(
        replace(one, labels=one.labels | {"team": "__idle__"}) if one.controller == like.controller else one
        for one in WORLD.containers
    )
    world = replace(WORLD, containers=forged)
    _, url = stack.simulate(world)
    plan = {"kubecost_api_url": url, "kubecost_account_id": ACCOUNT, "kubecost_flavour": "kubecost"}
    live = stack.start(**plan)
    kept = stack.start(**plan, clickhouse_url=f"embedded:{stack.folder / 'store'}")
    stack.thread.run(kept.worker.worker.fill(ACCOUNT, (world.start, END), 2, lambda progress: None))
    bodies = [
        Metroculus(one).get("kubecost_cluster_costs", **DATES, aggregate="label:team").json() for one in (live, kept)
    ]
    true = truth(world, world.start, END, now=NOW, adjusted=True)
    for body in bodies:
        assert body["idle_cost"] == pytest.approx(true["idle_cost"], abs=1e-3)
        rows = {row["name"]: row["total_cost"] for row in body["breakdown_by_aggregate"]}
        assert rows["__idle__"] > 0 and sum(rows.values()) == pytest.approx(sum(true["namespaces"].values()), abs=1e-2)
