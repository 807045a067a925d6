"""Filters by any property where what is stored cannot tell it, changes within the window, or is of several clusters."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.columns import Allocations
from metroculus.cost_model.components import Costs
from tests.integration.test_metrics_alone import PRIME, pushing, recorded
from tests.organizations import Organization
from tests.support import ACCOUNT, DAY, END, HOUR, Metroculus, Stack, exact_world

HOURS = range(END - DAY, END, HOUR)


class Changing(Organization):
    """Pods whose services change at noon."""

    october = range(0)


def row(*services: str, usd: float = 1.0) -> Allocation:
    return Allocation(
        name="shop/web-1", namespace="shop", controller="web", controller_kind="deployment", pod="web-1", container="k",
        node="n1", services=services, costs=Costs(cpu=usd),
    )  # fmt: skip


IDLE = Allocation(name="__idle__", costs=Costs(cpu=3.0))


@pytest.mark.parametrize(
    ("asked", "true"),
    [
        ({"k8s_service": "web"}, 12.0),
        ({"filter": "service=web"}, 12.0),
        ({"filter": "service=canary"}, 6.0),
        ({"filter": "service="}, 12.0),
        ({"filter": "service=__unallocated__"}, 12.0),
        ({"filter": ["service=canary", "controller=web"]}, 6.0),
        ({"filter": ["service=canary", "service="]}, 18.0),
    ],
)
def test_a_pod_whose_services_change_counts_for_each_while_it_has_it(stack: Stack, asked: Any, true: float) -> None:
    """Of a day: no service until noon, then one, from six on two. The same in statements, steps and expenses."""
    made = Changing(stack)
    services = [() if n < 12 else ("web",) if n < 18 else ("canary", "web") for n in range(24)]
    made.store_hours(
        made.ids[0], {hour: Allocations.of([row(*of), IDLE]) for hour, of in zip(HOURS, services, strict=True)}
    )
    metroculus = Metroculus(made.running)
    about = {"cloud_account_id": made.ids[0], "start_date": END - DAY, "end_date": END}
    for more in ({}, {"aggregate": "namespace"}, {"aggregate": "service"}, {"detail_level": "pod"}):
        body = metroculus.get("kubecost_cluster_costs", **about, **asked, **more).json()
        assert body["summary"]["known_cost"] == true, more
    steps = metroculus.get("kubecost_cluster_costs", **about, **asked, step="hour").json()["data_points"]
    assert sum(point["known_cost"] for point in steps) == true
    assert metroculus.get("k8s_expenses", **about, **asked, group_by="namespace").json()["total_cost"] == true


def test_a_filter_by_node_or_service_leaves_out_what_no_namespace_owns(stack: Stack) -> None:
    """Also where a source tells on which node that is, and behind which service."""
    made = Changing(stack)
    special = [
        replace(IDLE, name="c/n1/__idle__", node="n1"),
        replace(IDLE, name="__unmounted__", namespace="__unmounted__", node="n1", costs=Costs(pv=2.0)),
        replace(IDLE, name="__unallocated__", namespace="__unallocated__", node="n1", services=("web",)),
    ]
    made.store_hours(made.ids[0], {hour: Allocations.of([row("web"), *special]) for hour in HOURS})
    metroculus = Metroculus(made.running)
    about = {"cloud_account_id": made.ids[0], "start_date": END - DAY, "end_date": END}
    for asked in ({"k8s_node": "n1"}, {"filter": "node=n1"}, {"k8s_service": "web"}, {"filter": "service=web"}):
        by = {"aggregate": "namespace", "groups": 5, "step": "day"}
        told = metroculus.get("kubecost_cluster_costs", **about, **asked, **by).json()
        assert told["summary"]["known_cost"] == 24.0
        for point in told["data_points"]:
            assert (point["known_cost"], point["idle_cost"], point["groups"]) == (24.0, 0.0, {"shop": 24.0})
        assert metroculus.get("k8s_expenses", **about, **asked, group_by="namespace").json()["total_cost"] == 24.0


def test_what_stored_hours_do_not_carry_is_asked_live_and_never_zero(stack: Stack, prometheus_factory: Any) -> None:
    """Hours that metrics told have only some labels: a filter by another is no cost of 0 in steps, and no whole list."""
    url = recorded(prometheus_factory, exact_world(PRIME))
    live = pushing(stack, url)
    kept = pushing(stack, url, plan={"clickhouse_url": f"embedded:{stack.folder / 's'}"})
    assert stack.fill(kept, END - 2 * DAY, END).complete
    about = {"cloud_account_id": ACCOUNT, "start_date": END - 2 * DAY, "end_date": END}
    for asked in (
        {"filter": "label:track=stable"},
        {"filter": "label:track="},
        {"aggregate": "label:track", "groups": 5},
        {"aggregate": "namespace", "groups": 5, "filter": "label:track=stable"},
    ):
        told = [
            Metroculus(one).get("kubecost_cluster_costs", **about, **asked, step="day").json() for one in (live, kept)
        ]
        points = [[point["known_cost"] for point in body["data_points"]] for body in told]
        assert points[0] == pytest.approx(points[1], rel=2e-2) and all(points[1]), asked
        groups = [[point.get("groups") for point in body["data_points"]] for body in told]
        for mine, theirs in zip(*groups, strict=True):
            assert mine == (pytest.approx(theirs, rel=2e-2) if theirs is not None else None), asked
    refused = Metroculus(kept).get("k8s_expenses", **about, filter="label:track=stable", group_by="namespace")
    assert refused.status_code == 400 and refused.json()["error"]["params"] == ["filter"]


def test_steps_of_rows_and_shared_idle_are_refused(stack: Stack) -> None:
    made = Changing(stack)
    made.store_hours(made.ids[0], {hour: Allocations.of([row(), IDLE]) for hour in HOURS})
    about = {"cloud_account_id": made.ids[0], "start_date": END - DAY, "end_date": END, "step": "day", "idle": "share"}
    metroculus = Metroculus(made.running)
    refused = metroculus.get("kubecost_cluster_costs", **about, aggregate="namespace", groups=3)
    assert refused.status_code == 400 and refused.json()["error"]["params"] == ["idle", "step"]
    (point,) = metroculus.get("kubecost_cluster_costs", **about).json()["data_points"]
    assert (point["total_cost"], point["idle_cost"]) == (24 * 4.0 + 24 * 0.0625, 72.0)
