"""What a worker costs: CPU seconds of it and its engine a cluster and hour, with all readings of it, and its memory.

The clock of the worker goes by hours: a round, an hour later the next. The upstreams are a process of their own, which
is not counted and answers at once: how long they take costs places, not work.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from uuid import UUID

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from benchmarks.figures import Declared
from benchmarks.history import resident_mib
from metroculus.config import MetroculusConfig, WorkerConfig
from metroculus.dependencies import make_dependencies
from metroculus.metroculus_worker.server import make_worker
from metroculus.sources.outbound.addresses import AllowedAddresses
from metroculus.sources.registry.protocol import Credentials
from metroculus.storage.columns import EXTRACTIONS
from simulator.server import Habits, Simulator
from simulator.world import DAY, HOUR, World, make_world
from standalone.demo import serve_simulator
from tools.tornado_service.logs import set_up

END = 1795219200
DAYS = 4
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
    shutil.rmtree(FOLDER, ignore_errors=True)
    upstream = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert upstream.stdin is not None and upstream.stdout is not None
    try:
        return asyncio.run(_measure(json.loads(upstream.stdout.readline())["url"], clusters))
    finally:
        upstream.stdin.close()
        upstream.wait(30)
        shutil.rmtree(FOLDER, ignore_errors=True)


async def _measure(url: str, clusters: int) -> dict[str, float]:
    now = END - HOURS * HOUR + SETTLED
    config = MetroculusConfig(
        cluster_secret="a-secret-of-the-bench",
        data_dir=FOLDER,
        clickhouse_url=f"embedded:{FOLDER / 'store'}",
        upstream_allow=AllowedAddresses(["127.0.0.0/8"]),
        worker=WorkerConfig(listen=("127.0.0.1", 0)),
    )
    dependencies = make_dependencies(config, clock=lambda: now)
    service = make_worker(config, dependencies, clock=lambda: now)
    store: Any = dependencies.store
    try:
        for number in range(clusters):
            await dependencies.registry.put(str(UUID(int=number, version=4)), "kubecost", url, Credentials())
        _set_clock(url, now)
        await service.worker.extract_all()
        began = _cpu_seconds()
        for _ in range(HOURS):
            now += HOUR
            _set_clock(url, now)
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
    finally:
        await service.stop()
        dependencies.close()


def _set_clock(url: str, now: int) -> None:
    with urlopen(Request(f"{url}/clock/{now}", method="PUT"), timeout=30):
        pass


def _cpu_seconds() -> float:
    """Of this process and the engine in its child."""
    total = time.process_time()
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        if "embedded_process" in Path(f"/proc/{child}/cmdline").read_text():
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class _Upstream:
    """A simulated Kubecost that works an answer out once, for all clusters."""

    def __init__(self) -> None:
        self.now = END - DAYS * DAY
        self.kept: dict[str, tuple[int, bytes]] = {}
        world = _of_many_pods(make_world(seed=3, days=DAYS, end=END))
        simulator = Simulator(world, Habits(serves=frozenset({"kubecost"})), lambda: self.now)
        self._server, self.url = serve_simulator(simulator)

    async def answer(self, uri: str) -> tuple[int, bytes]:
        if uri not in self.kept:
            request = HTTPRequest(f"{self.url}{uri}", request_timeout=60)
            got = await AsyncHTTPClient().fetch(request, raise_error=False)
            self.kept[uri] = (got.code, got.body)
        return self.kept[uri]


def _of_many_pods(world: World) -> World:
    """The same cluster, each container in several smaller ones."""
    pods = [
        replace(
            one,
            pod=f"{one.pod}-{number}",
            cpu_request=one.cpu_request / COPIES,
            ram_request_gib=one.ram_request_gib / COPIES,
            cpu_usage=one.cpu_usage / COPIES,
            ram_usage_gib=one.ram_usage_gib / COPIES,
        )
        for one in world.containers
        for number in range(COPIES)
    ]
    return replace(world, containers=tuple(pods))


class _Answer(RequestHandler):
    upstream: _Upstream

    async def get(self) -> None:
        status, body = await self.upstream.answer(self.request.uri or "/")
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(body)


class _Clock(RequestHandler):
    upstream: _Upstream

    def put(self, now: str) -> None:
        self.upstream.now = int(now)
        self.upstream.kept.clear()


async def _serve() -> None:
    set_up("error", "text")
    _Answer.upstream = _Clock.upstream = _Upstream()
    sockets = bind_sockets(0, "127.0.0.1")
    HTTPServer(Application([(r"/clock/([0-9]+)", _Clock), (r".*", _Answer)])).add_sockets(sockets)
    print(json.dumps({"url": f"http://127.0.0.1:{sockets[0].getsockname()[1]}"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
