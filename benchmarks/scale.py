"""What a worker costs: CPU seconds of it and its engine a cluster and hour, with all readings of it, and its memory.

The clock of the worker goes by hours: a round, an hour later the next. The upstreams are a process of their own, which
is not counted and answers at once: how long they take costs places, not work.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.figures import Declared
from benchmarks.history import resident_mib
from benchmarks.stacks import worker_in
from benchmarks.upstream_server import END, UpstreamServer, upstreams
from metroculus.sources.registry.protocol import Credentials
from metroculus.storage.columns import EXTRACTIONS
from simulator.world import HOUR

HOURS = 24
"""That are counted; the ones before them are stored first."""
CLUSTERS = int(os.environ.get("SCALE_CLUSTERS", "12"))
COPIES = 7
FOLDER = Path("build/bench-scale")
SETTLED = 20 * 60

FIGURES = (
    Declared("cpu_seconds_a_cluster_hour", "s", "CPU of worker and engine, all readings of an hour", at_most=0.9),
    Declared("rows_an_hour", "", "rows of a cluster's hour"),
    Declared("worker_mib", "MiB", "resident memory of the worker beside its engine", at_most=400),
)  # fmt: skip


def measure(clusters: int = CLUSTERS) -> dict[str, float]:
    with upstreams(COPIES) as server:
        return asyncio.run(_measure(server, clusters))


async def _measure(server: UpstreamServer, clusters: int) -> dict[str, float]:
    now = END - HOURS * HOUR + SETTLED
    async with worker_in(FOLDER, lambda: now) as (service, dependencies):
        store: Any = dependencies.store
        for number in range(clusters):
            account = str(UUID(int=number, version=4))
            await dependencies.registry.put(account, "kubecost", server.url_of(account), Credentials())
        server.set_clock(now)
        await service.worker.extract_all()
        began = _cpu_seconds()
        for _ in range(HOURS):
            now += HOUR
            server.set_clock(now)
            await service.worker.extract_all()
            await service.worker.aggregate_all()
        spent = _cpu_seconds() - began
        query = f"SELECT count() AS hours, avg(rows) AS an_hour FROM {EXTRACTIONS.name} WHERE rows > 0 AND verified = 1"
        told = next(iter(list(store.engine.rows(query))))
        stored = f"SELECT uniqExact(account, hour) AS hours FROM {EXTRACTIONS.name} WHERE hour >= {END - HOURS * HOUR}"
        hours = int(next(iter(list(store.engine.rows(stored))))["hours"])
        if hours != clusters * HOURS:
            raise RuntimeError(f"{hours} hours were stored of {clusters * HOURS}")
        return {
            "cpu_seconds_a_cluster_hour": spent / (clusters * HOURS),
            "rows_an_hour": float(told["an_hour"]),
            "worker_mib": resident_mib(os.getpid()),
        }


def _cpu_seconds() -> float:
    """Of this process and the engine in its child."""
    total = time.process_time()
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        if "embedded_process" in Path(f"/proc/{child}/cmdline").read_text():
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
