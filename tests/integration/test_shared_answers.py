"""Instances that share their answers by a real Redis, which may be away, hang, or hold something else."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.components import Costs
from metroculus.metroculus_api.shared_answers import AWAY_SECONDS, PREFIX
from metroculus.storage.ledger import FencedWriter, HourBatch
from simulator.costs import truth
from simulator.server import Habits
from tests.conftest import ClickHouse, Redis
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, Metroculus, Stack, exact_world, until

WORLD = exact_world(7, days=2)
WINDOW = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": END}
OTHER = "00000000-0000-4000-8000-00000000000b"


class Instances:
    """Two instances of Metroculus over one registry and one Redis, and the upstream that both would ask."""

    def __init__(self, stack: Stack, redis_url: str, **more: Any) -> None:
        self.stack = stack
        self.simulator, self.url = stack.simulate(WORLD, Habits())
        registry = f"sqlite:{stack.folder / 'sources.sqlite'}"
        key = "Zm9yIHR3byB3b3JrZXJzIG9mIHR3byBtYWNoaW5lcyE="
        plan = {"redis_url": redis_url, "registry_url": registry, "encryption_key": key} | more
        self.running = [stack.start(**plan) for _ in range(2)]
        self.first, self.second = (Metroculus(one, seconds=20) for one in self.running)
        self.client = self.running[0].rest_api.metroculus.client
        self.client.put_kubecost_source(ACCOUNT, "kubecost", self.url)

    def costs(self, instance: Metroculus, **more: Any) -> tuple[str, float]:
        answer = instance.get("kubecost_cluster_costs", **(WINDOW | more))
        assert answer.status_code == 200, answer.text
        return answer.headers["X-Cache"], answer.json()["total_cost"]

    def shared(self, instance: int) -> int:
        return self.running[instance].metroculus.cache.stats().shared

    def state(self, instance: int) -> str:
        return self.running[instance].metroculus.service.ready()["shared answers"]

    @property
    def asked(self) -> int:
        return self.simulator.asked.total()


def true_total() -> float:
    return float(truth(WORLD, END - DAY, END, now=NOW, adjusted=True)["total_cost"])


def test_what_one_instance_asked_the_other_has(stack: Stack, redis_server: Redis) -> None:
    both = Instances(stack, redis_server.url)
    assert both.costs(both.first) == ("miss", true_total())
    assert until(lambda: redis_server.client().keys(f"{PREFIX}{ACCOUNT}:*"))
    upstream, age = both.asked, 2
    time.sleep(age)
    answer = both.second.get("kubecost_cluster_costs", **WINDOW)
    assert answer.headers["X-Cache"] == "hit" and answer.json()["total_cost"] == true_total()
    assert int(answer.headers["Age"]) >= age, "it is as old as when the sources answered"
    assert int(answer.headers["Cache-Control"].partition("max-age=")[2]) <= 300 - age
    assert both.asked == upstream and both.shared(1) == 1
    assert both.costs(both.second)[0] == "hit" and both.shared(1) == 1, "then it is its own"
    assert both.costs(both.second, detail_level="pod")[0] == "miss", "another question is another answer"


@pytest.fixture
def database(clickhouse: ClickHouse) -> Iterator[str]:
    with clickhouse.database(f"d{uuid4().hex}") as url:
        yield url


def test_another_source_or_other_hours_meet_nothing_of_before(stack: Stack, redis_server: Redis, database: str) -> None:
    both = Instances(stack, redis_server.url, clickhouse_url=database)
    assert both.costs(both.first)[0] == "miss" and both.costs(both.second)[0] == "hit"
    store: Any = both.running[0].metroculus.dependencies.store
    row = Allocation(name="shop", namespace="shop", costs=Costs(cpu=4096.0), start=END - DAY, end=END - DAY + HOUR)
    store.ledger.commit([HourBatch(account=ACCOUNT, hour=END - DAY, allocations=[row])], FencedWriter(1000))
    state, total = both.costs(both.first)
    assert state == "miss" and total > 4096, "the answer of before is still in Redis"
    both.client.put_kubecost_source(ACCOUNT, "kubecost", f"{both.url}/")
    upstream = both.asked
    assert both.costs(both.first)[0] == "miss"
    assert until(lambda: both.costs(both.second)[0] != "stale") and both.asked > upstream
    both.client.put_kubecost_source(OTHER, "kubecost", both.url)
    assert both.costs(both.second, cloud_account_id=OTHER)[0] == "miss", "an account has its own answers"


@pytest.mark.parametrize("value", [b"", b"\xff" * 100, b"\x94\x01\x02\x03\x04"])
def test_what_is_none_in_redis_is_passed_over(stack: Stack, redis_server: Redis, value: bytes) -> None:
    both = Instances(stack, redis_server.url)
    assert both.costs(both.first)[0] == "miss"
    known = redis_server.client()
    assert until(lambda: known.keys(f"{PREFIX}*"))
    for key in known.keys(f"{PREFIX}*"):
        known.set(key, value, keepttl=True)
    assert both.costs(both.second) == ("miss", true_total())


def test_a_redis_that_is_away_is_as_if_it_were_not_there(stack: Stack, redis_server: Redis) -> None:
    redis_server.kill()
    both = Instances(stack, redis_server.url)
    assert both.costs(both.first) == ("miss", true_total()) and both.costs(both.second)[0] == "miss"
    assert both.state(0) == "failing" and both.first.get("cache_stats").json()["shared"] == 0
    redis_server.start()
    time.sleep(AWAY_SECONDS)
    assert both.costs(both.first, detail_level="pod")[0] == "miss" and both.state(0) == "ok"
    assert until(lambda: redis_server.client().keys(f"{PREFIX}*"))
    assert both.costs(both.second, detail_level="pod")[0] == "hit"


def test_a_redis_that_hangs_costs_a_quarter_of_a_second_once(stack: Stack, redis_server: Redis) -> None:
    both = Instances(stack, redis_server.url)
    assert both.costs(both.first)[0] == "miss"
    assert redis_server.process is not None
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        levels = ("namespace", "workload", "pod")
        began = time.monotonic()
        assert [both.costs(both.second, detail_level=level)[0] for level in levels] == ["miss"] * 3
        taken = time.monotonic() - began
        assert both.state(1) == "failing"
        began = time.monotonic()
        assert [both.costs(both.second, detail_level=level)[0] for level in levels] == ["hit"] * 3
        assert time.monotonic() - began < taken
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
