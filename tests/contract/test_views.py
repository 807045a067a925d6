"""``v_hours`` and ``v_summaries``: what people read by SQL of their own is what the product reads."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from statistics import median
from uuid import uuid4

import pytest
from msgspec.structs import replace

from metroculus.cost_model.allocation import Filters
from metroculus.storage.ledger import FencedWriter, HourBatch
from metroculus.storage.store import Store, open_store
from tests.stores import allocation, idle
from tests.support import DAY, END, HOUR, NOW

HOURS = list(range(END - 6 * HOUR, END, HOUR))


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    opened = open_store(migrated_url, lambda: NOW)
    yield opened
    opened.close()


def batch(account: str, hour: int, usd: float, management: float | None = 0.5) -> HourBatch:
    rows = [allocation("web-1", usd, hour=hour), allocation("api-1", 1.0, "api", hour=hour), idle(2.0, hour)]
    return HourBatch(account=account, hour=hour, allocations=rows, management=management)


def by_view(store: Store, account: str) -> dict[int, float]:
    costs = "cpu + ram + gpu + pv + network + load_balancer + shared + external + management"
    rows = store.engine.rows(
        f"SELECT toUInt32(hour) AS stamp, sum({costs}) AS total FROM v_hours WHERE account = '{account}' GROUP BY hour"
    )
    return {row["stamp"]: row["total"] for row in rows}


def by_product(store: Store, account: str) -> dict[int, float]:
    committed = store.ledger.committed(account, HOURS[0], END)
    return {int(one.keys[0]): one.total for one in store.history.sums(committed, ("hour",), Filters())}


@pytest.mark.parametrize("seed", range(4))
def test_hours_are_what_the_batch_rule_lets_through(store: Store, seed: int) -> None:
    rng, account = random.Random(seed), str(uuid4())
    writers = [FencedWriter(fence) for fence in (1, 2, 3)]
    for _ in range(30):
        hour, writer = rng.choice(HOURS), rng.choice(writers)
        what = rng.choice(["commit", "commit", "again", "orphan", "lost"])
        if what == "commit":
            store.ledger.commit([batch(account, hour, rng.randint(0, 320) / 32)], writer)
        elif what == "again":
            known = store.ledger.committed(account, HOURS[0], END).hours
            store.ledger.confirm(account, list(known.values()), writer, NOW)
        elif what == "orphan":  # rows of a batch that nobody marks
            real, store.ledger._mark = store.ledger._mark, lambda markers: None  # type: ignore[method-assign]
            store.ledger.commit([batch(account, hour, 7.0)], writer)
            store.ledger._mark = real  # type: ignore[method-assign]
        else:  # a marker that counts more rows than are there, found by the nightly check
            (marker,) = store.ledger.commit([batch(account, hour, 9.0)], writer)
            broken = replace(marker, sequence=writer.sequence(), rows=marker.rows + 1, batch=marker.batch)
            store.ledger._mark([(account, broken)])
            store.ledger.verify(account)
            store.ledger.commit([batch(account, hour, 3.0)], writers[2])
    store.ledger.verify(account)
    assert by_view(store, account) == pytest.approx(by_product(store, account))


def test_a_batch_that_loses_rows_is_passed_over_by_the_view_after_the_check(store: Store) -> None:
    account, writer = str(uuid4()), FencedWriter(1)
    store.ledger.commit([batch(account, HOURS[0], 1.0)], writer)
    (marker,) = store.ledger.commit([batch(account, HOURS[0], 5.0)], writer)
    before = by_view(store, account)
    store.engine.command(f"ALTER TABLE k8s_allocations DELETE WHERE batch = {marker.batch} AND namespace = 'api'")
    for _ in range(200):
        ((left,),) = store.engine.query("SELECT count() FROM system.mutations WHERE is_done = 0")
        if not left:
            break
        time.sleep(0.05)
    assert store.ledger.verify(account) == 1
    assert by_view(store, account) == pytest.approx(by_product(store, account)) and by_view(store, account) != before


def test_summaries_are_the_newest_builds(store: Store) -> None:
    account, writer = str(uuid4()), FencedWriter(1)
    for usd in (1.0, 4.0):
        store.ledger.commit([batch(account, hour, usd) for hour in HOURS], writer)
        store.summaries.rebuild(account, HOURS[0], END, writer)
    for granularity, key in (("hour", "hour"), ("day", "day")):
        rows = store.engine.rows(
            "SELECT toUInt32(start) AS stamp, namespace, sum(total_cost) AS total FROM v_summaries"
            f" WHERE account = '{account}' AND granularity = '{granularity}' GROUP BY start, namespace"
        )
        found = {(row["stamp"], row["namespace"]): row["total"] for row in rows}
        answer = store.summaries.sums(account, HOURS[0], END, (key, "namespace"), Filters())
        assert found == {one.keys: pytest.approx(one.total) for one in answer.sums}


def test_a_question_takes_no_longer_beside_many_accounts(store: Store) -> None:
    def seconds(account: str) -> float:
        taken = []
        for _ in range(7):
            began = time.perf_counter()
            assert by_view(store, account)
            taken.append(time.perf_counter() - began)
        return median(taken)

    writer, account = FencedWriter(1), str(uuid4())
    store.ledger.commit([batch(account, hour, 1.0) for hour in HOURS], writer)
    alone = seconds(account)
    (marker, *_) = store.ledger.committed(account, HOURS[0], END).hours.values()
    many = [replace(marker, hour=END - DAY * 40 + n * HOUR) for n in range(500)]
    for _ in range(100):
        stranger = str(uuid4())
        store.ledger._mark([(stranger, one) for one in many])
    assert seconds(account) < 8 * alone, "50,000 markers of other accounts were read"
