"""Two workers of two machines: one registry and one set of locks in etcd, one ClickHouse, a folder each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from math import fsum
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from metroculus.config import MetroculusConfig
from metroculus.cost_model.allocation import Filters
from metroculus.dependencies import Dependencies, make_dependencies
from metroculus.metroculus_worker.etcd_owners import EtcdOwners
from metroculus.metroculus_worker.server import WorkerService, make_worker
from metroculus.sources.outbound.addresses import AllowedAddresses
from metroculus.sources.registry.protocol import Credentials
from metroculus.storage.columns import EXTRACTIONS
from metroculus.storage.server import ServerEngine
from optscale_client.config_client import EtcdConfig
from simulator.costs import truth
from tests.support import DAY, END, HOUR, NOW, SECRET, Stack, exact_world

WORLDS = [exact_world(prime=prime, days=1) for prime in (7, 11, 13, 17)]
KEY = "Zm9yIHR3byB3b3JrZXJzIG9mIHR3byBtYWNoaW5lcyE="


class Machine:
    """One worker with what it stands on; its rounds are made by the test."""

    def __init__(self, stack: Stack, folder: Path, registry_url: str, clickhouse_url: str) -> None:
        self.loop = stack.thread
        self.clickhouse_url = clickhouse_url
        config = MetroculusConfig(
            cluster_secret=SECRET,
            data_dir=folder,
            registry_url=registry_url,
            encryption_key=KEY,
            clickhouse_url=clickhouse_url,
            upstream_allow=AllowedAddresses(["127.0.0.0/8"]),
        )
        self.dependencies: Dependencies = self.loop.call(lambda: make_dependencies(config, clock=lambda: NOW))
        owners = EtcdOwners(EtcdConfig(registry_url).client(), lease_seconds=5)
        self.service: WorkerService = self.loop.call(
            lambda: make_worker(config, self.dependencies, owners, clock=lambda: NOW)
        )
        self.stopped = False

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.loop.run(self.service.stop())
            self.loop.call(self.dependencies.close)

    def total(self, account: str) -> float:
        """USD of the day as it is stored, without management."""
        store = self.dependencies.store
        assert store is not None
        sums = store.summaries.sums(account, END - DAY, END, ("hour",), Filters()).sums
        return fsum(usd for one in sums for usd in one.costs.by_component())


def times_written(url: str, account: str) -> dict[int, int]:
    """How often each hour was committed, by either."""
    engine = ServerEngine(url)
    try:
        rows = engine.rows(
            f"SELECT toUInt32(hour) AS stamp, count() AS times FROM {EXTRACTIONS.name}"
            f" WHERE account = '{account}' GROUP BY stamp"
        )
        return {int(str(row["stamp"])): int(str(row["times"])) for row in rows}
    finally:
        engine.close()


@pytest.fixture
def machines(stack: Stack, etcd: Any, clickhouse: Any, tmp_path: Path) -> Iterator[list[Machine]]:
    name = f"two_{uuid4().hex[:8]}"
    with clickhouse.database(name) as url:
        made = [Machine(stack, tmp_path / folder, etcd.url, url) for folder in ("one", "two")]
        yield made
        for one in made:
            one.stop()


async def rounds(*machines: Machine) -> None:
    """A round of each at the same time, until nobody has anything left to do."""
    for _ in range(3):
        await asyncio.gather(*(one.service.worker.extract_all() for one in machines))


def true_total(world: Any) -> Any:
    return truth(world, END - DAY, END, now=NOW, adjusted=True)["allocation_total"]


def test_they_keep_the_same_clusters_and_each_hour_is_written_once(stack: Stack, machines: list[Machine]) -> None:
    first, second = machines
    accounts = {}
    for world in WORLDS:
        _, url = stack.simulate(world)
        accounts[str(uuid4())] = (world, url)
    for number, (account, (_, url)) in enumerate(accounts.items()):
        machine = machines[number % 2]
        stack.thread.run(machine.dependencies.registry.put(account, "kubecost", url, Credentials()))
    stack.thread.run(rounds(first, second))
    day = range(END - DAY, END, HOUR)
    for account, (world, _) in accounts.items():
        written = times_written(first.clickhouse_url, account)
        assert set(day) <= set(written) and set(written.values()) == {1}, "an hour is missing, or was written by both"
        assert first.total(account) == second.total(account) == pytest.approx(true_total(world), abs=1e-9)

    gone, *left = accounts
    assert stack.thread.run(second.dependencies.registry.delete(gone))
    second.stop()
    joined, (_, url) = str(uuid4()), accounts[gone]
    stack.thread.run(first.dependencies.registry.put(joined, "kubecost", url, Credentials()))
    stack.thread.run(rounds(first))
    assert set(day) <= set(times_written(first.clickhouse_url, joined)), "who is left takes what joined"
    assert gone not in first.service.worker.states
    for account in left:
        assert set(times_written(first.clickhouse_url, account).values()) == {1}
