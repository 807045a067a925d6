"""Workers over RabbitMQ: every hour once, whoever is killed; what fails by a defect is kept; who leads is one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pika
import pytest
import requests

from metroculus.config import WORKER_ROLES, MetroculusConfig
from metroculus.dependencies import open_registry
from metroculus.metroculus_worker import queue as module
from metroculus.metroculus_worker.queue import NAMES, TaskQueue
from metroculus.metroculus_worker.tasks import Task, TaskResult
from metroculus.sources.registry.protocol import Credentials
from metroculus.storage.columns import EXTRACTIONS, SUMMARY_BUILDS
from metroculus.storage.engine import StoreError
from metroculus.storage.server import ServerEngine
from simulator.costs import truth
from simulator.server import Habits
from tests.conftest import Rabbit, free_port
from tests.support import DAY, END, NOW, Stack, exact_world, until

pytestmark = pytest.mark.queue

KEY = "Zm9yIHR3byB3b3JrZXJzIG9mIHR3byBtYWNoaW5lcyE="
WORLD = exact_world(days=1)
CLUSTERS = 8
NEVER = "0 0 29 2 *"


@dataclass
class Fleet:
    """Worker processes of one registry, one set of locks, one ClickHouse and one RabbitMQ."""

    folder: Path
    rabbit: Rabbit
    etcd_url: str
    clickhouse_url: str
    upstream: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def link(self, accounts: list[str], url: str | None = None) -> None:
        config = MetroculusConfig(registry_url=self.etcd_url, encryption_key=KEY, data_dir=self.folder)
        registry = open_registry(config)
        try:
            for account in accounts:
                entry = ("kubecost", url or self.upstream, Credentials())
                _run(registry.put(account, *entry))
        finally:
            registry.close()

    def start(self, *roles: str, **settings: str) -> subprocess.Popen[bytes]:
        number, port = len(self.processes), free_port()
        environment = {
            **os.environ,
            "CONFIG_URL": self.etcd_url,
            "REGISTRY_URL": self.etcd_url,
            "WORKER_LOCKS": "etcd",
            "ENCRYPTION_KEY": KEY,
            "CLICKHOUSE_URL": self.clickhouse_url,
            "QUEUE_URL": self.rabbit.url,
            "UPSTREAM_ALLOW": "127.0.0.0/8",
            "DATA_DIR": str(self.folder / f"worker{number}"),
            "WORKER_LISTEN": f"127.0.0.1:{port}",
            "KUBECOST_TIMEOUT": "20",
            "EXTRACT_PARALLEL": "2",
            "AGGREGATE_SCHEDULE": "* * * * *",
            **settings,
        }
        options = [part for role in roles for part in ("--role", role)]
        with (self.folder / f"worker{number}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.at", str(NOW), "worker", *options],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.processes.append(process)
        self.addresses.append(f"http://127.0.0.1:{port}")
        return process

    def log(self, number: int) -> str:
        return (self.folder / f"worker{number}.log").read_text()

    def metrics(self, number: int) -> str:
        try:
            return requests.get(f"{self.addresses[number]}/metrics", timeout=5).text
        except requests.RequestException:
            return ""

    def leaders(self) -> list[int]:
        numbers = range(len(self.processes))
        return [one for one in numbers if "metroculus_worker_makes_rounds 1.0" in self.metrics(one)]

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)

    def rows(self, query: str) -> list[dict[str, Any]]:
        engine = ServerEngine(self.clickhouse_url)
        try:
            return list(engine.rows(query))
        except StoreError:
            return []  # the schema may not be there yet
        finally:
            engine.close()

    def hours(self) -> dict[str, int]:
        query = f"SELECT account, uniqExact(hour) AS hours FROM {EXTRACTIONS.name} GROUP BY account"
        return {str(row["account"]): int(row["hours"]) for row in self.rows(query)}

    def batches(self) -> dict[str, int]:
        query = f"SELECT account, uniqExact(batch) AS batches FROM {EXTRACTIONS.name} GROUP BY account"
        return {str(row["account"]): int(row["batches"]) for row in self.rows(query)}

    def totals(self) -> dict[str, float]:
        query = (
            f"SELECT account, sum(total) AS usd FROM (SELECT account, hour, argMax(total, sequence) AS total"
            f" FROM {EXTRACTIONS.name} GROUP BY account, hour) GROUP BY account"
        )
        return {str(row["account"]): float(row["usd"]) for row in self.rows(query)}


def _run(work: Any) -> Any:
    return asyncio.run(work)


def accounts(count: int) -> list[str]:
    return [str(UUID(int=1000 + number, version=4)) for number in range(count)]


@pytest.fixture
def fleet(stack: Stack, etcd: Any, rabbitmq: Rabbit, clickhouse: Any, tmp_path: Path) -> Iterator[Fleet]:
    _, upstream = stack.simulate(WORLD, Habits(seconds_an_hour=0.005))
    with clickhouse.database(f"queue_{uuid4().hex[:8]}") as url:
        made = Fleet(tmp_path, rabbitmq, etcd.url, url, upstream)
        yield made
        made.stop()
    purge(rabbitmq)


def purge(rabbit: Rabbit) -> None:
    """The queues are the session's."""
    with pika.BlockingConnection(pika.URLParameters(rabbit.url)) as connection:
        for name in ("extract", "silent", "assets", "savings", "backfills", "summaries", "clean", "done"):
            for kind in ("", ".DQ", ".XQ"):
                connection.channel().queue_delete(f"{NAMES}.{name}{kind}")


def stored(fleet: Fleet, known: list[str]) -> Callable[[], bool]:
    return lambda: fleet.hours() == dict.fromkeys(known, 24)


def true_total() -> Any:
    return pytest.approx(truth(WORLD, END - DAY, END, now=NOW, adjusted=True)["total_cost"], rel=1e-9)


def test_two_workers_share_the_clusters_and_each_hour_is_stored_once(fleet: Fleet) -> None:
    known = accounts(CLUSTERS)
    fleet.link(known)
    fleet.start(), fleet.start()
    assert until(stored(fleet, known), 90), fleet.log(0)[-3000:]
    assert len(fleet.leaders()) == 1
    assert fleet.batches() == dict.fromkeys(known, 24), "nobody wrote what another had written"
    assert list(fleet.totals().values()) == [true_total()] * CLUSTERS
    written = [re.findall(r'extraction_rows_total\{cloud_account_id="([^"]+)"', fleet.metrics(one)) for one in (0, 1)]
    assert written[0] and written[1], "one worker did all the work"


def test_a_backlog_is_worked_off_once_whoever_is_killed(fleet: Fleet) -> None:
    """``make scale`` runs it with 2,000 clusters."""
    known = accounts(int(os.environ.get("QUEUE_CLUSTERS", "12")))
    workers, kills = int(os.environ.get("QUEUE_WORKERS", "2")), int(os.environ.get("QUEUE_KILLS", "1"))
    patience = float(os.environ.get("QUEUE_SECONDS", "150"))
    fleet.link(known)
    running = [fleet.start() for _ in range(workers)]
    began = time.monotonic()
    for number in range(kills):
        done = 24 * len(known) * (number + 1) // (kills + 2)
        assert until(lambda done=done: sum(fleet.hours().values()) >= done, patience), fleet.log(0)[-3000:]
        running[number % workers].kill()
        running[number % workers] = fleet.start()
    assert until(stored(fleet, known), patience), fleet.log(0)[-3000:]
    assert fleet.totals() == dict.fromkeys(known, true_total())
    assert until(lambda: len(fleet.leaders()) == 1, 60), "the rounds are nobody's, or two workers'"
    print(f"{len(known)} clusters of 24 hours on {workers} workers, {kills} killed: {time.monotonic() - began:.0f} s")


def test_rabbitmq_that_is_away_loses_nothing(fleet: Fleet) -> None:
    known = accounts(CLUSTERS)
    fleet.link(known)
    fleet.start()
    assert until(lambda: bool(fleet.hours()), 60), fleet.log(0)[-3000:]
    fleet.rabbit.stop()
    try:
        ready = lambda: requests.get(f"{fleet.addresses[0]}/readyz", timeout=5).json()  # noqa: E731
        assert until(lambda: "failing" in str(ready()), 60), f"{ready()} {fleet.log(0)[-3000:]}"
    finally:
        fleet.rabbit.start()
    assert until(stored(fleet, known), 90), fleet.log(0)[-3000:]
    assert until(lambda: "failing" not in str(ready()), 60), f"{ready()} {fleet.log(0)[-3000:]}"


def test_a_defect_is_tried_again_and_then_kept_as_a_dead_letter(fleet: Fleet) -> None:
    fleet.link(accounts(1))
    fleet.start()
    assert until(stored(fleet, accounts(1)), 60), fleet.log(0)[-3000:]
    with pika.BlockingConnection(pika.URLParameters(fleet.rabbit.url)) as connection:
        channel = connection.channel()
        message = {
            "queue_name": "metroculus.extract",
            "actor_name": "extract",
            "args": ["no task"],
            "kwargs": {},
            "options": {"retries": 3},
            "message_id": str(uuid4()),
            "message_timestamp": 0,
        }
        channel.basic_publish("", "metroculus.extract", json.dumps(message).encode())
    dead = 'metroculus_queue_dead_letters{queue="extract"} 1.0'
    assert until(lambda: dead in fleet.metrics(0), 60), fleet.metrics(0)[-2000:]


def test_roles_are_kept_apart(fleet: Fleet) -> None:
    known = accounts(3)
    summed = lambda: bool(fleet.rows(f"SELECT 1 AS there FROM {SUMMARY_BUILDS.name} LIMIT 1"))  # noqa: E731
    fleet.link(known)
    fleet.start("aggregator", AGGREGATE_SCHEDULE=NEVER)
    assert until(lambda: fleet.leaders() == [0], 60), fleet.log(0)[-3000:]
    extractor = fleet.start("extractor", AGGREGATE_SCHEDULE=NEVER)
    assert until(stored(fleet, known), 90), fleet.log(1)[-3000:]
    fleet.stop()
    assert extractor.returncode == 0, "a worker that is asked to stop ends by itself"
    fleet.start("extractor", AGGREGATE_SCHEDULE=NEVER)
    assert until(lambda: fleet.leaders() == [2], 60) and not summed(), "an extractor sums up nothing"
    fleet.start("aggregator", AGGREGATE_SCHEDULE=NEVER)
    assert until(summed, 90), fleet.log(3)[-3000:]


def test_one_that_is_stopped_for_a_while_neither_loses_nor_doubles(fleet: Fleet) -> None:
    """SIGSTOP of whoever leads, past its lease; then both go on."""
    known = accounts(CLUSTERS)
    fleet.link(known)
    fleet.start()
    assert until(lambda: bool(fleet.hours()), 60), fleet.log(0)[-3000:]
    fleet.start()
    fleet.processes[0].send_signal(signal.SIGSTOP)
    try:
        assert until(stored(fleet, known), 90), fleet.log(1)[-3000:]
    finally:
        fleet.processes[0].send_signal(signal.SIGCONT)
    assert until(lambda: fleet.leaders() == [1], 60), fleet.leaders()
    assert list(fleet.totals().values()) == [true_total()] * CLUSTERS


class Hand:
    """One worker's side of the queue and, where it leads, what it heard."""

    def __init__(self, rabbit: Rabbit) -> None:
        self.heard: list[TaskResult] = []
        self.queue = TaskQueue(rabbit.url, 8, self.heard.append)

    async def do(self, task: Task) -> None:
        self.queue.report(TaskResult(task=task, finished_at=0))

    def waits_for(self, tasks: list[Task]) -> int:
        return sum(self.queue.busy(task.kind, task.account) for task in tasks)


async def _until(check: Callable[[], bool]) -> bool:
    return await asyncio.to_thread(until, check, 30)


def _tasks(count: int, of: str) -> list[Task]:
    return [Task(kind="extract", account=f"{of}-{number}") for number in range(count)]


def test_no_result_is_lost_though_it_comes_while_tasks_are_still_given(rabbitmq: Rabbit) -> None:
    async def run() -> None:
        leader, other = Hand(rabbitmq), Hand(rabbitmq)
        await leader.queue.start_leading(1)
        await other.queue.open(WORKER_ROLES, other.do)
        tasks = _tasks(300, "a")
        await leader.queue.submit(tasks)
        assert await _until(lambda: len(leader.heard) == 300) and leader.waits_for(tasks) == 0
        await asyncio.gather(leader.queue.close(), other.queue.close())

    _run(run())
    purge(rabbitmq)


def test_whoever_led_before_takes_no_result_from_who_leads_now(rabbitmq: Rabbit) -> None:
    async def run() -> None:
        before, now, other = Hand(rabbitmq), Hand(rabbitmq), Hand(rabbitmq)
        await before.queue.start_leading(1)
        await now.queue.start_leading(2)
        await other.queue.open(WORKER_ROLES, other.do)
        tasks = _tasks(30, "b")
        await now.queue.submit(tasks)
        await _until(lambda: len(now.heard) >= 10)
        await before.queue.stop_leading()
        assert await _until(lambda: len(now.heard) == 30), f"{len(now.heard)} heard, {len(before.heard)} taken"
        assert not before.heard and now.waits_for(tasks) == 0
        await asyncio.gather(*(one.queue.close() for one in (before, now, other)))

    _run(run())
    purge(rabbitmq)


def test_a_task_that_is_lost_is_given_again_when_its_queue_is_empty(
    rabbitmq: Rabbit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESUBMIT_SECONDS", 0.5)

    async def run() -> None:
        leader = Hand(rabbitmq)
        await leader.queue.start_leading(1)
        tasks = _tasks(3, "d")
        await leader.queue.submit(tasks)
        await asyncio.sleep(0.6)
        await leader.queue.counts()
        assert leader.waits_for(tasks) == 3, "they wait in the queue: they are not lost"
        with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
            connection.channel().queue_purge(f"{NAMES}.extract")
        await leader.queue.counts()
        assert leader.waits_for(tasks) == 0
        await leader.queue.close()

    _run(run())
    purge(rabbitmq)
