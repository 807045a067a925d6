"""A day of many containers by metrics: no single query is over a tenth of what a Prometheus allows by default.

The real size, 10,000 containers sampled each minute against ``--query.max-samples=5000000``, takes ``CONTAINERS=10000``
(``make test-long``); the default is a part of it against the same part of the limit.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from metroculus.sources.thanos import chunk
from tests.parts.remote_write import write
from tests.support import ACCOUNT, DAY, END, Metroculus, Stack

CONTAINERS = int(os.environ.get("CONTAINERS", "400"))
FULL = 10_000
NODES = max(4, CONTAINERS // 50)
MINUTE = 60
GIB = 2**30
CORES, GIBS = 0.5, 2.0
CORE_PRICE, GIB_PRICE = 0.032, 0.004


def series() -> Any:
    for number in range(NODES):
        node = {"node": f"node-{number}", "tenant_id": ACCOUNT}
        yield node | {"__name__": "node_total_hourly_cost"}, 64 * CORE_PRICE + 256 * GIB_PRICE
        yield node | {"__name__": "node_cpu_hourly_cost"}, CORE_PRICE
        yield node | {"__name__": "node_ram_hourly_cost"}, GIB_PRICE
        yield node | {"__name__": "kube_node_status_capacity_cpu_cores"}, 64.0
        yield node | {"__name__": "kube_node_status_capacity_memory_bytes"}, 256.0 * GIB
    for number in range(CONTAINERS):
        where = {
            "node": f"node-{number % NODES}", "namespace": f"space-{number % 20}", "pod": f"pod-{number}",
            "container": "main", "tenant_id": ACCOUNT,
        }  # fmt: skip
        yield where | {"__name__": "container_cpu_allocation"}, CORES
        yield where | {"__name__": "container_memory_allocation_bytes"}, GIBS * GIB


def test_a_day_of_many_containers(stack: Stack, prometheus_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "MOST_POINTS", chunk.MOST_POINTS * CONTAINERS // FULL)
    prometheus = prometheus_factory()
    limit = 5_000_000 * CONTAINERS // FULL
    prometheus.start("--web.enable-remote-write-receiver", f"--query.max-samples={limit}")
    for first in range(END - DAY, END, 30 * MINUTE):
        write(prometheus.url, series(), range(first, first + 30 * MINUTE, MINUTE))
    running = stack.start(thanos_query_url=prometheus.url, kubecost_timeout=900.0)
    dates = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": END, "detail_level": "namespace"}
    body = Metroculus(running, seconds=900).get("kubecost_cluster_costs", **dates).json()
    assert body["summary"]["cpu_cost"] == pytest.approx(NODES * 64 * CORE_PRICE * 24, rel=1e-3), body["sources"]
    assert body["summary"]["ram_cost"] == pytest.approx(NODES * 256 * GIB_PRICE * 24, rel=1e-3)
    rows = {row["namespace"]: row["total_cost"] for row in body["breakdown_by_namespace"]}
    each = CONTAINERS / 20 * (CORES * CORE_PRICE + GIBS * GIB_PRICE) * 24
    assert rows == {f"space-{n}": pytest.approx(each, rel=1e-3) for n in range(20)}
