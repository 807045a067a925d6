"""Instances that share their answers by a real Redis, which may be away, hang, or hold something else."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from metroculus.config import SETTINGS
from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.components import Costs
from metroculus.metroculus_api.shared_answers import AWAY_SECONDS, PREFIX, SharedAnswers
from metroculus.storage.ledger import FencedWriter, HourBatch
from simulator.costs import truth
from simulator.server import Habits
from tests.conftest import ClickHouse, Redis
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, Metroculus, Stack, exact_world, until
from tools.settings import SettingsError, load
from tools.tornado_service.prepared import Prepared

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
    restate(both.running[0])
    state, total = both.costs(both.first)
    assert state == "miss" and total > 4096, "the answer of before is still in Redis"
    both.client.put_kubecost_source(ACCOUNT, "kubecost", f"{both.url}/")
    upstream = both.asked
    assert both.costs(both.first)[0] == "miss"
    assert until(lambda: both.costs(both.second)[0] != "stale") and both.asked > upstream
    both.client.put_kubecost_source(OTHER, "kubecost", both.url)
    assert both.costs(both.second, cloud_account_id=OTHER)[0] == "miss", "an account has its own answers"


def restate(running: Any) -> None:
    row = Allocation(name="shop", namespace="shop", costs=Costs(cpu=4096.0), start=END - DAY, end=END - DAY + HOUR)
    store = running.metroculus.dependencies.store
    store.ledger.commit([HourBatch(account=ACCOUNT, hour=END - DAY, allocations=[row])], FencedWriter(1000))


def test_what_an_instance_changed_itself_it_never_takes_from_before(
    stack: Stack, redis_server: Redis, database: str
) -> None:
    both = Instances(stack, redis_server.url, clickhouse_url=database)
    assert both.costs(both.first)[0] == "miss"
    assert until(lambda: redis_server.client().keys(f"{PREFIX}{ACCOUNT}:*"))
    restate(both.running[1])
    assert both.costs(both.second)[1] > 4096, "its first question comes after its change"


def test_a_question_that_began_before_a_change_is_not_shared_as_what_came_after(
    stack: Stack, redis_server: Redis, database: str
) -> None:
    both = Instances(stack, redis_server.url, clickhouse_url=database)
    both.simulator.habits.seconds_an_hour = 0.1
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(both.costs, both.first)
        assert until(lambda: both.asked > 0)
        restate(both.running[0])
        asked.result(60)
    both.simulator.habits.seconds_an_hour = 0.0
    assert both.costs(both.first)[1] > 4096


@pytest.mark.parametrize("differs", ["kubecost_api_url", "cache_ttl"])
def test_instances_with_other_settings_share_nothing(stack: Stack, redis_server: Redis, differs: str) -> None:
    worlds = [WORLD, exact_world(11, days=2) if differs == "kubecost_api_url" else WORLD]
    urls = [stack.simulate(world, Habits())[1] for world in worlds]
    ttls = (300.0, 10.0) if differs == "cache_ttl" else (300.0, 300.0)
    url = urls if differs == "kubecost_api_url" else [urls[0]] * 2
    started = [
        Metroculus(stack.start(redis_url=redis_server.url, kubecost_api_url=one, cache_ttl=ttl))
        for one, ttl in zip(url, ttls, strict=True)
    ]
    for instance, world in zip(started, worlds, strict=True):
        answer = instance.get("kubecost_cluster_costs", **WINDOW)
        true = truth(world, END - DAY, END, now=NOW, adjusted=True)["total_cost"]
        assert (answer.headers["X-Cache"], answer.json()["total_cost"]) == ("miss", true)
        assert until(lambda: redis_server.client().keys(f"{PREFIX}*"))


def test_many_at_once_are_no_outage(stack: Stack, redis_server: Redis) -> None:
    async def ask_many() -> list[Any]:
        shared = SharedAnswers(redis_server.url, 60.0, "scope")
        answer = Prepared.of(b"{}" * 2000)
        for number in range(300):
            shared.put(ACCOUNT, 1, number, answer, 0.0)
        await asyncio.gather(*shared._writing)
        found = await asyncio.gather(*(shared.get(ACCOUNT, 1, number) for number in range(200)))
        state = shared.state
        shared.close()
        await asyncio.gather(*shared._writing)
        return [state, sum(one is not None for one in found)]

    state, found = asyncio.run(ask_many())
    assert state == "ok" and found == 200


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:pa55w/ord@h:6379/0",
        "redis://h:notaport/0",
        "redis://h:99999",
        "redis:///0",
        "http://h",
        "redis://h/a",
        "redis://h?foo=bar",
        "redis://h?decode_responses=True",
        "redis://h?ssl_ca_certs=/x",
    ],
)
def test_a_url_that_is_none_is_refused_by_name_and_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="REDIS_URL") as refused:
        load(SETTINGS, {}, {"REDIS_URL": url}, None, lambda key: None)
    assert "pa55w" not in str(refused.value)


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
