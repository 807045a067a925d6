"""What a cluster that hangs costs the others: the 99th percentile of theirs beside it, to theirs without it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from pathlib import Path
from statistics import median, quantiles

from tornado.httpclient import AsyncHTTPClient

from benchmarks.figures import Declared
from metroculus.sources.outbound.addresses import AllowedAddresses
from rest_api.rest_api_server.directory.model import Role
from simulator.server import Habits, Simulator
from simulator.world import DAY, HOUR, make_world
from standalone.demo import serve_simulator
from standalone.running import Running, single_machine, start

END = 1795219200
ROUNDS, REQUESTS, AT_ONCE, HANGING = 3, 400, 4, 16
WINDOWS = 24
FOLDER = Path("build/bench-walls")

FIGURES = (
    Declared(
        "p99_beside_a_hanging_cluster", "ratio",
        "99th percentile of an organization's costs while 16 requests hang on another's, to the same without them",
        at_most=1.5,
    ),
)  # fmt: skip


def link(running: Running, name: str, url: str) -> tuple[str, str]:
    """An organization with one cluster: where its costs are asked, and a token for that."""
    directory = running.rest_api.directory
    organization = directory.create_organization(name)
    directory.create_user(name)
    directory.set_role(name, organization.id, Role.VIEWER)
    cluster = directory.create_cluster(organization.id, name, "kubecost", url)
    running.rest_api.metroculus.client.put_kubecost_source(cluster.id, "kubecost", url)
    path = f"/restapi/v2/kubecost/clusters/{cluster.id}/costs?end_date={END}&start_date="
    return running.rest_api_listener.url + path, directory.create_token(name, None)[1]


def question(url: str, number: int) -> str:
    """One of some windows: what is asked twice at once would be one question."""
    return f"{url}{END - DAY - number % WINDOWS * HOUR}"


async def p99(client: AsyncHTTPClient, url: str, token: str) -> float:
    """Milliseconds."""
    left, taken = iter(range(REQUESTS)), list[float]()

    async def worker() -> None:
        for number in left:
            began = time.perf_counter()
            await client.fetch(question(url, number), headers={"Authorization": f"Bearer {token}"})
            taken.append(1000 * (time.perf_counter() - began))

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return quantiles(taken, n=100)[-1]


async def hang(client: AsyncHTTPClient, url: str, token: str, number: int) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    await client.fetch(question(url, number), headers=headers, raise_error=False, request_timeout=30)


def measure() -> dict[str, float]:
    return asyncio.run(_measure())


async def _measure() -> dict[str, float]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    simulator = Simulator(make_world(seed=1, days=2, end=END), Habits(serves=frozenset({"kubecost"})), lambda: END)
    server, url = serve_simulator(simulator)
    silent = socket.create_server(("127.0.0.1", 0), backlog=100)
    allowed = AllowedAddresses(["127.0.0.0/8"])
    running = start(
        single_machine(
            FOLDER, "a-secret-of-the-bench", upstream_allow=allowed, kubecost_timeout=10.0, cache_ttl=0.0, rounds=False
        )
    )
    client = AsyncHTTPClient(force_instance=True, max_clients=100)
    ratios = []
    try:
        well, hangs = await asyncio.gather(
            asyncio.to_thread(link, running, "well", url),
            asyncio.to_thread(link, running, "hangs", f"http://127.0.0.1:{silent.getsockname()[1]}"),
        )
        await p99(client, *well)
        for _ in range(ROUNDS):
            alone = await p99(client, *well)
            stuck = [asyncio.create_task(hang(client, *hangs, number)) for number in range(HANGING)]
            await asyncio.sleep(0.5)
            ratios.append(await p99(client, *well) / alone)
            for one in stuck:
                one.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
    finally:
        client.close()
        silent.close()
        server.stop()
        await running.stop()
    return {"p99_beside_a_hanging_cluster": median(ratios)}
