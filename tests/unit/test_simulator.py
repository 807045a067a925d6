"""The simulator keeps to what OpenCost reads, to its own truth, and to its seed."""

from __future__ import annotations

from itertools import combinations
from math import fsum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import openmetrics
from simulator.costs import truth
from simulator.field import HARDSHIPS, make_field_world
from simulator.world import DAY, HOUR, make_world

END = 1795219200
WORLD = make_world(days=2, end=END)

READ_BY_OPENCOST = {
    "kube_pod_container_status_running": "namespace pod container uid",
    "container_cpu_allocation": "namespace pod container node",
    "container_memory_allocation_bytes": "namespace pod container node",
    "kube_pod_container_resource_requests": "namespace pod container node resource unit",
    "container_memory_working_set_bytes": "namespace pod container instance",
    "container_cpu_usage_seconds_total": "namespace pod container instance",
    "node_cpu_hourly_cost": "node instance instance_type provider_id",
    "node_ram_hourly_cost": "node instance instance_type provider_id",
    "node_gpu_hourly_cost": "node instance instance_type provider_id",
    "node_total_hourly_cost": "node instance instance_type provider_id",
    "node_gpu_count": "node instance instance_type provider_id",
    "kubecost_node_is_spot": "node instance instance_type provider_id",
    "kube_node_status_capacity_cpu_cores": "node",
    "kube_node_status_allocatable_cpu_cores": "node",
    "kube_node_status_capacity_memory_bytes": "node",
    "kube_node_status_allocatable_memory_bytes": "node",
    "kube_node_labels": "node label_node_kubernetes_io_instance_type",
    "kube_pod_labels": "namespace pod uid label_app",
    "kube_namespace_labels": "namespace label_env",
    "kube_pod_owner": "namespace pod owner_kind owner_name",
    "kube_replicaset_owner": "namespace replicaset owner_kind owner_name",
    "deployment_match_labels": "namespace deployment label_app",
    "statefulSet_match_labels": "namespace statefulSet label_app",
    "service_selector_labels": "namespace service label_app",
    "kube_persistentvolume_capacity_bytes": "persistentvolume",
    "pv_hourly_cost": "volumename persistentvolume provider_id",
    "kubecost_pv_info": "persistentvolume storageclass",
    "kube_persistentvolumeclaim_info": "persistentvolumeclaim storageclass volumename namespace",
    "kube_persistentvolumeclaim_resource_requests_storage_bytes": "persistentvolumeclaim namespace",
    "pod_pvc_allocation": "persistentvolume persistentvolumeclaim pod namespace",
    "kubecost_pod_network_egress_bytes_total": "namespace pod_name internet same_zone same_region",
    "kubecost_network_zone_egress_cost": "",
    "kubecost_network_region_egress_cost": "",
    "kubecost_network_internet_egress_cost": "",
    "kubecost_load_balancer_cost": "namespace service_name ingress_ip",
    "kubecost_cluster_management_cost": "",
}
"""Names and labels as in OpenCost's own queries (``pkg/costmodel``)."""

SHOWN_BY_US = {
    "kube_pod_container_resource_limits": "namespace pod container resource",
    "kube_resourcequota": "namespace resourcequota resource type",
}


@pytest.mark.parametrize("name", sorted(READ_BY_OPENCOST | SHOWN_BY_US))
def test_every_series_that_opencost_reads_is_written_with_its_labels(name):
    labels = set((READ_BY_OPENCOST | SHOWN_BY_US)[name].split()) | {"cluster_id", "tenant_id"}
    found = [one for one in openmetrics.series(WORLD, {"tenant_id": "t"}) if one.name == name]
    assert found and all(labels <= set(one.labels) for one in found)


def test_a_seed_is_a_world_and_another_seed_another():
    assert make_world(seed=4, days=2, end=END) == make_world(seed=4, days=2, end=END)
    assert truth(make_world(seed=4, days=2, end=END)) != truth(make_world(seed=5, days=2, end=END))


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(sorted(HARDSHIPS))), st.integers(0, 99), st.sampled_from((0, 7)))
def test_whatever_hardships_a_world_has_all_that_runs_runs_on_a_node_of_its_time(hardships, seed, prime):
    world = make_field_world(hardships, seed=seed, days=2, end=END, prime=prime)
    for one in world.containers:
        assert one.node in world.nodes and one.node.start <= one.start and one.end <= one.node.end, one
    for first, second in combinations(world.nodes, 2):
        together = first.start < second.end and second.start < first.end
        assert first.name != second.name or not together, (first, second)


@pytest.mark.parametrize("adjusted", [False, True])
def test_the_truth_adds_up_over_namespaces_and_over_hours(adjusted):
    whole = truth(WORLD, adjusted=adjusted)
    parts = [*whole["namespaces"].values(), whole["idle_cost"], whole["unmounted_cost"], whole["management_cost"]]
    assert fsum(parts) == pytest.approx(whole["total_cost"], rel=1e-12)
    hours = [
        truth(WORLD, start, start + HOUR, now=END, adjusted=adjusted)["total_cost"]
        for start in range(WORLD.start, WORLD.end, HOUR)
    ]
    assert fsum(hours) == pytest.approx(whole["total_cost"], rel=1e-12)


def test_adjustments_arrive_two_days_late():
    world = make_world(days=5, end=END)
    listed, adjusted = (truth(world, now=END, adjusted=flag) for flag in (False, True))
    assert adjusted["total_cost"] < listed["total_cost"]
    young = [truth(world, END - 2 * DAY, END, now=END, adjusted=flag)["total_cost"] for flag in (False, True)]
    assert young[0] == young[1]


def test_openmetrics_are_sorted_ended_and_tell_each_label_set_once():
    lines = list(openmetrics.lines(make_world(days=1, end=END), {"tenant_id": "t"}, interval=600))
    assert lines[-1] == "# EOF\n"
    identities = [line.rsplit(" ", 2)[0] for line in lines[:-1]]
    assert identities == sorted(identities)
    stamps = [(line.rsplit(" ", 2)[0], int(line.rsplit(" ", 1)[1])) for line in lines[:-1]]
    assert len(set(stamps)) == len(stamps) and stamps == sorted(stamps)
