"""What could be saved, worked out by hand."""

from __future__ import annotations

import pytest

from metroculus.cost_model.assets import Asset
from metroculus.cost_model.savings import (
    ContainerUsage,
    abandoned_workloads,
    by_kind,
    idle_nodes,
    right_sizing,
    unclaimed_volumes,
)

WEEK_HOURS = 168
GIB = 2**30


def usage(**more):
    values = {
        "namespace": "shop", "controller": "web", "controller_kind": "deployment", "container": "web",
        "cpu_request": 2.0, "cpu_p95": 0.4, "ram_request": 4.0 * GIB, "ram_max": 0.85 * GIB,
        "container_hours": WEEK_HOURS, "egress_bytes": 1e9, "usd_per_core_hour": 0.03, "usd_per_gib_hour": 0.004,
    }  # fmt: skip
    return ContainerUsage(**(values | more))


def test_a_request_shrinks_to_what_was_used_over_the_target():
    cpu, ram = right_sizing([usage()], WEEK_HOURS * 3600)
    assert (cpu.resource, cpu.recommended) == ("cpu", pytest.approx(0.5))
    assert cpu.monthly_saving == pytest.approx(1.5 * 0.03 * 730)
    assert (ram.resource, ram.recommended) == ("memory", pytest.approx(1.0 * GIB))
    assert ram.monthly_saving == pytest.approx(3.0 * 0.004 * 730)
    assert cpu.evidence["statistic"] == "p95" and ram.evidence["statistic"] == "max"


def test_a_job_is_not_priced_as_if_it_ran_all_month():
    cpu, _ = right_sizing([usage(container_hours=WEEK_HOURS / 10)], WEEK_HOURS * 3600)
    assert cpu.monthly_saving == pytest.approx(0.15 * 0.03 * 730)


def test_what_asked_for_too_little_is_told_and_not_netted_off():
    found = right_sizing([usage(), usage(controller="db", cpu_p95=4.0)], WEEK_HOURS * 3600)
    starved = [one for one in found if one.kind == "under_provisioned"]
    assert [one.controller for one in starved] == ["db"] and starved[0].monthly_saving < 0
    saved = sum(one.monthly_saving for one in found if one.monthly_saving > 0)
    assert by_kind(found) == {"right_sizing": pytest.approx(saved)}


def test_floors_and_a_target_of_ones_own():
    cpu, ram = right_sizing([usage(cpu_p95=0.0, ram_max=0.0)], WEEK_HOURS * 3600)
    assert cpu.recommended == 0.01 and ram.recommended == 32 * 2**20
    cpu, _ = right_sizing([usage()], WEEK_HOURS * 3600, 0.4)
    assert cpu.recommended == pytest.approx(1.0)


def test_a_workload_that_did_nothing_for_a_week_is_abandoned_and_counted_once():
    idle = usage(controller="bot", cpu_p95=0.001, egress_bytes=0.0, ram_max=float(2**20))
    week = WEEK_HOURS * 3600
    (found,) = abandoned_workloads([idle, usage(), usage(controller="talks", cpu_p95=0.001)], week)
    assert found.controller == "bot" and found.monthly_saving == pytest.approx((2 * 0.03 + 4 * 0.004) * 730)
    assert abandoned_workloads([idle], week - 1) == []
    assert abandoned_workloads([usage(controller_kind="daemonset", cpu_p95=0.0, egress_bytes=0.0)], week) == []
    kinds = by_kind([found, *right_sizing([idle], week)])
    assert kinds == {"abandoned_workload": pytest.approx(found.monthly_saving)}


def test_volumes_that_nobody_claims_are_priced_for_a_month():
    disks = [
        Asset(type="disk", name="claimed", total_cost=5, hours=168, claim_name="c"),
        Asset(type="disk", name="orphan", total_cost=16.8, hours=168, storage_bytes=50.0 * GIB),
    ]
    (found,) = unclaimed_volumes(disks)
    assert found.name == "orphan" and found.monthly_saving == pytest.approx(73.0) and found.risk == "high"


def test_a_node_is_idle_where_what_it_holds_fits_on_the_others():
    def node(name, cost):
        return Asset(type="node", name=name, cpu_cores=4.0, ram_bytes=16.0 * GIB, hours=168, total_cost=cost)

    nodes = [node("a", 30.0), node("b", 20.0), node("c", 10.0)]
    requested = {name: (cores * 168, GIB * 168.0) for name, cores in (("a", 1.0), ("b", 3.0), ("c", 3.0))}
    found = idle_nodes(nodes, requested)
    assert [one.name for one in found] == ["a"]
    assert found[0].monthly_saving == pytest.approx(30.0 / 168 * 730)
    assert idle_nodes(nodes[:1], {}) == []


def test_a_node_that_is_gone_frees_nothing_and_what_lived_minutes_says_nothing_of_a_month():
    def node(name, last_seen, hours=2.0):
        return Asset(
            type="node", name=name, cpu_cores=4.0, ram_bytes=16.0 * GIB, hours=hours, total_cost=1.0,
            last_seen=last_seen,
        )  # fmt: skip

    now = 100 * 3600
    assert idle_nodes([node("gone", now - 3600), node("there", now)], {}) == []
    assert idle_nodes([node("new", now, hours=0.2), node("there", now)], {}) == []
    assert [one.name for one in idle_nodes([node("idle", now - 300), node("there", now)], {})] == ["idle"]
    brief = Asset(type="disk", name="brief", hours=1e-9, total_cost=1000.0)
    assert unclaimed_volumes([brief]) == []


def test_requests_are_those_of_the_hours_in_which_a_node_was_there():
    node = Asset(type="node", name="spot", cpu_cores=4.0, ram_bytes=16.0 * GIB, hours=1.0, total_cost=1.0)
    large = Asset(type="node", name="large", cpu_cores=16.0, ram_bytes=64.0 * GIB, hours=24.0, total_cost=0.5)
    requested = {"spot": (4.0, GIB), "large": (14 * 24.0, GIB)}
    assert [one.name for one in idle_nodes([node, large], requested)] == []


def test_a_nodes_own_disk_is_no_unclaimed_volume():
    node = Asset(type="node", name="ip-10-0-4-95", hours=24.0, total_cost=1.0)
    own = Asset(type="disk", name="ip-10-0-4-95", hours=24.0, total_cost=1.0)
    local = Asset(type="disk", name="other", storage_class="__local__", hours=24.0, total_cost=1.0)
    assert unclaimed_volumes([node, own, local]) == []
