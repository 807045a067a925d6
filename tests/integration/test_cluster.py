"""Two replicas behind a ZooKeeper: tables are Replicated and Distributed by the cluster's name alone."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from metroculus.cost_model.allocation import Filters
from metroculus.storage.engine import StoreError
from metroculus.storage.ledger import FencedWriter, HourBatch
from metroculus.storage.migrations import MIGRATIONS
from metroculus.storage.migrations.runner import migrate
from metroculus.storage.store import Store, open_engine, open_store
from tests.conftest import free_port, need
from tests.contract.test_migrations import expected, fill, totals
from tests.stores import OPEN_STORE, PASSWORD, ClickHouse, allocation
from tests.support import ACCOUNT, END, HOUR, NOW, until

REPLICA = (
    "<replica><host>127.0.0.1</host><port>{port}</port><user>default</user><password>{password}</password></replica>"
)
CONFIG = """
 <interserver_http_host>127.0.0.1</interserver_http_host><interserver_http_port>{interserver}</interserver_http_port>
 <remote_servers><main><shard><internal_replication>true</internal_replication>{replicas}</shard></main></remote_servers>
 <zookeeper><node><host>127.0.0.1</host><port>{zookeeper}</port></node></zookeeper>
 <macros><shard>1</shard><replica>{name}</replica></macros>
 <distributed_ddl><path>/clickhouse/task_queue/ddl</path></distributed_ddl>"""


@pytest.fixture
def zookeeper(tmp_path: Path) -> Iterator[int]:
    need("java", "/usr/share/java/zookeeper.jar", package="zookeeper default-jre-headless")
    port = free_port()
    (tmp_path / "zoo.cfg").write_text(
        f"dataDir={tmp_path / 'zookeeper'}\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\ntickTime=500\n"
    )
    process = subprocess.Popen(
        ["java", "-cp", "/usr/share/java/*", "org.apache.zookeeper.server.quorum.QuorumPeerMain", tmp_path / "zoo.cfg"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 30
    while True:
        assert process.poll() is None and time.monotonic() < until, "ZooKeeper did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    yield port
    process.terminate()
    process.wait(20)


@pytest.fixture
def replicas(zookeeper: int, tmp_path: Path) -> Iterator[list[ClickHouse]]:
    need("clickhouse-server", package="clickhouse-server")
    ports = [free_port(), free_port()]
    everyone = "".join(REPLICA.format(port=port, password=PASSWORD) for port in ports)
    made = [
        ClickHouse(
            tmp_path / f"r{n}",
            port,
            CONFIG.format(interserver=free_port(), replicas=everyone, zookeeper=zookeeper, name=f"r{n}"),
        )
        for n, port in enumerate(ports)
    ]
    for one in made:
        one.start()
    yield made
    for one in made:
        one.stop()


def restart(replicas: list[ClickHouse]) -> None:
    for server in replicas:
        server.stop(kill=True)
        with suppress(AssertionError):  # while ZooKeeper still holds the session of the one before
            server.start()


def opened(replicas: list[ClickHouse]) -> list[Store]:
    """Stores of both replicas.

    The oldest servers may hang or die of a schema that changes on a cluster, or of their session with ZooKeeper: they
    are started again, as an operator would, and the stores opened anew.
    """
    until = time.monotonic() + 90
    while True:
        stores = [open_store(f"{one.url()}?cluster=main", lambda: NOW) for one in replicas]
        failures = [store.failed for store in stores if store.failed is not None]
        if not failures:
            return stores
        for store in stores:
            store.close()
        assert time.monotonic() < until, failures
        restart(replicas)


def total(store: Store) -> float:
    committed = store.ledger.committed(ACCOUNT, END - 24 * HOUR, END)
    return sum(one.total for one in store.history.sums(committed, (), Filters()))


def eventually(store: Store, expected: float) -> None:
    """A replica is behind for a moment; what it does not have whole it does not show."""
    until = time.monotonic() + 20
    while True:
        try:
            if total(store) == expected:
                return
        except StoreError:
            pass
        assert time.monotonic() < until, f"{total(store)} is not {expected}"
        time.sleep(0.1)


def test_what_one_replica_took_the_other_has_and_keeps_when_the_first_is_gone(replicas: list[ClickHouse]) -> None:
    first, second = opened(replicas)
    tables = dict(
        first.engine.query(
            "SELECT name, engine FROM system.tables WHERE database = 'default' AND name LIKE 'k8s_alloc%'"
        )
    )
    assert tables == {"k8s_allocations": "Distributed", "k8s_allocations_local": "ReplicatedMergeTree"}
    hours = [END - (n + 1) * HOUR for n in range(6)]
    batches = [
        HourBatch(account=ACCOUNT, hour=hour, allocations=[allocation(f"web-{n}", 8.0, hour=hour) for n in range(100)])
        for hour in hours
    ]
    first.ledger.commit(batches, FencedWriter(1))
    for table in ("k8s_allocations_local", "k8s_allocations"):  # the second may ask the other replica
        asked = f"SELECT DISTINCT covered_seconds, ran_until - ran_from, gpu, unknown FROM {table}"
        assert until(lambda sql=asked: [*map(list, first.engine.query(sql))] == [[HOUR, HOUR, 0.0, 0]]), table
    assert total(first) == 6 * 100 * 12.25
    eventually(second, 6 * 100 * 12.25)
    second.ledger.commit(
        [HourBatch(account=ACCOUNT, hour=hours[0], allocations=[allocation("web-1", 8.0)])], FencedWriter(2)
    )
    second.summaries.rebuild(ACCOUNT, hours[-1], END, FencedWriter(2))
    eventually(first, 500 * 12.25 + 12.25)
    assert first.maintenance.clean(NOW + 3 * 86400, 400).batches == 1
    eventually(second, 500 * 12.25 + 12.25)
    first.close()
    replicas[0].stop(kill=True)
    eventually(second, 500 * 12.25 + 12.25)
    second.close()


def filled(replicas: list[ClickHouse], url: str) -> None:
    """A store whose schema is number 1, on servers that may die as ``opened`` says."""
    for _ in range(5):
        try:
            engine = open_engine(url)
            migrate(engine, MIGRATIONS[:1])
            engine.close()
            break
        except StoreError:
            restart(replicas)
    fill(url, 1)


@pytest.mark.parametrize("killed_after", [None, 1.2])
def test_programs_that_start_at_once_bring_the_cluster_to_one_schema(
    replicas: list[ClickHouse], killed_after: float | None
) -> None:
    """Three at once, on both replicas; two of them are killed somewhere on the way where that is asked for."""
    urls = [f"{one.url()}?cluster=main" for one in replicas]
    filled(replicas, urls[0])
    root = Path(__file__).parent.parent.parent
    starting = [subprocess.Popen([sys.executable, "-c", OPEN_STORE, urls[n % 2]], cwd=root) for n in range(3)]
    if killed_after is not None:
        time.sleep(killed_after)
        for one in starting[:2]:
            one.kill()
    for one in starting:
        one.wait(120)
    for store in opened(replicas):
        left = store.engine.query(
            "SELECT name FROM system.tables WHERE database = 'default' AND (name LIKE '%_new' OR name LIKE '%_old')"
        )
        assert list(left) == []
        for account, said in expected(1).items():
            assert totals(store, account) == said
        store.close()
