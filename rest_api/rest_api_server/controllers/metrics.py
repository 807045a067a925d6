"""Utilisation series of a cluster, out of the series that Metroculus gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from math import fsum
from typing import Literal

from optscale_client.metroculus_client.structs import Metrics, MetricSeries, WithSources
from rest_api.rest_api_server import answers
from rest_api.rest_api_server.controllers.costs import asked_of, fields_of
from rest_api.rest_api_server.controllers.metroculus import MetroculusPool
from rest_api.rest_api_server.directory.model import Cluster
from tools.window import Window

Metric = Literal["cpu", "memory", "network", "storage"]
Points = dict[float, float]

SERIES: dict[str, dict[str, tuple[str, bool]]] = {
    "cpu": {
        "usage": ("container_cpu_usage_seconds_total", True),
        "allocated": ("container_cpu_allocation", False),
        "capacity": ("kube_node_status_capacity_cpu_cores", False),
    },
    "memory": {
        "usage": ("container_memory_working_set_bytes", False),
        "allocated": ("container_memory_allocation_bytes", False),
        "capacity": ("kube_node_status_capacity_memory_bytes", False),
    },
    "network": {"usage": ("kubecost_pod_network_egress_bytes_total", True)},
    "storage": {
        "usage": ("kube_persistentvolumeclaim_resource_requests_storage_bytes", False),
        "capacity": ("kube_persistentvolume_capacity_bytes", False),
    },
}
"""What each view is made of: the metric, and whether it is a counter."""

UNITS = {"cpu": "cores", "memory": "bytes", "network": "bytes per second", "storage": "bytes"}


class MetricsController:
    def __init__(self, metroculus: MetroculusPool) -> None:
        self._metroculus = metroculus

    async def series(
        self, cluster: Cluster, metric: Metric, window: Window, step: str | None, request_id: str
    ) -> answers.ClusterMetrics:
        """Usage, allocation, capacity and utilisation over time.

        Raises:
            MetroculusError
        """
        parts = SERIES[metric]
        found = await self._metroculus.call(
            cluster,
            self._metroculus.client.get_kubecost_metrics,
            cluster.id,
            metrics=[name for name, _ in parts.values()],
            **asked_of(window),
            step=step,
            request_id=request_id,
            shape=Metrics,
        )
        sums = {role: summed(found.metrics.get(name, ()), counter) for role, (name, counter) in parts.items()}
        series = {role: tuple(sorted(points.items())) for role, points in sums.items()}
        if "capacity" in sums:
            shares = {at: used / sums["capacity"][at] for at, used in sums["usage"].items() if sums["capacity"].get(at)}
            series["utilization"] = tuple(sorted(shares.items()))
        return answers.ClusterMetrics(
            **fields_of(found, WithSources),
            cluster_id=cluster.id,
            cluster_name=cluster.name,
            metric=metric,
            unit=UNITS[metric],
            step=found.step,
            series=series,
        )


def summed(series: Iterable[MetricSeries], counter: bool) -> Points:
    """Series added up at each time; a counter as its growth a second, a reset counting from zero."""
    at_time: dict[float, list[float]] = defaultdict(list)
    for one in series:
        values = one.values
        if not counter:
            for at, value in values:
                at_time[at].append(value)
            continue
        for (before, was), (at, value) in pairwise(values):
            grown = value - was if value >= was else value
            at_time[at].append(grown / (at - before))
    return {at: fsum(values) for at, values in at_time.items()}
