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
    ],
)
def test_filters(pair, filters):
    live, kept = (rows(asked, detail_level="namespace", **filters) for asked in pair)
    assert live[0] == pytest.approx(kept[0], rel=2e-2, abs=1e-9)
    assert live[1].keys() == kept[1].keys()
    if "absent" not in filters.values():
        assert live[0] > 0


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
