"""What is asked of many clusters at once: each as its own statement tells it, with as many questions as for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.components import Costs
from metroculus.sources.registry.protocol import Credentials
from metroculus.storage.ledger import FencedWriter, HourBatch
from metroculus.storage.store import Store, open_store
from simulator.costs import truth
from simulator.server import Habits
from tests.integration.test_services import link
from tests.support import DAY, END, HOUR, NOW, Stack, ask, exact_world, make_tenant

WORLDS = [exact_world(prime, days=2) for prime in (7, 11, 13)]
WINDOW = f"window={END - DAY},{END}"


@pytest.fixture(scope="module")
def stack_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, FencedWriter]]:
    store = open_store(f"embedded:{tmp_path_factory.mktemp('many') / 'store'}", lambda: NOW)
    yield store, FencedWriter(1)
    store.close()


def account(number: int) -> str:
    return str(UUID(int=7000 + number, version=4))


class Kept:
    """Clusters of three kinds whose last two days are stored."""

    def __init__(self, stack: Stack, clusters: int) -> None:
        self.stack = stack
        self.running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}", rounds=False)
        self.client = self.running.rest_api.metroculus.client
        self.store: Any = self.running.metroculus.dependencies.store
        self.simulators, urls = zip(*(stack.simulate(world, Habits()) for world in WORLDS), strict=True)
        self.accounts = [account(number) for number in range(clusters)]
        registry = self.running.metroculus.dependencies.registry
        for number, one in enumerate(self.accounts):
            stack.thread.run(registry.put(one, "kubecost", urls[number % 3], Credentials()))
        stack.thread.run(self.running.worker.worker.extract_all())

    def statements(self, accounts: list[str], **asked: Any) -> dict[str, Any]:
        _, body = self.client.get_k8s_costs(accounts, **asked)
        return {one["cloud_account_id"]: one for one in body["accounts"]}


def test_each_is_what_its_own_statement_says_and_the_store_is_asked_once(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(stack, clusters=9)
    asked: Counter[str] = Counter()
    for name in ("rows", "columns"):
        method = getattr(kept.store.engine, name)
        monkeypatch.setattr(kept.store.engine, name, lambda sql, m=method, n=name: (asked.update([n]), m(sql))[1])
    upstream = sum(one.asked.total() for one in kept.simulators)
    window = {"start_date": END - DAY, "end_date": END}
    together = kept.statements(kept.accounts, **window)
    assert asked.total() <= 3 and sum(one.asked.total() for one in kept.simulators) == upstream
    for number, one in enumerate(kept.accounts):
        true = truth(WORLDS[number % 3], END - DAY, END, now=NOW, adjusted=True)
        assert together[one]["statement"]["total_cost"] == true["total_cost"] and together[one]["error"] is None
        kept.running.metroculus.cache.clear()
        alone = kept.client.get_kubecost_cluster_costs(one, **window)[1]
        assert together[one]["statement"] == alone
    asked.clear()
    assert kept.statements(kept.accounts, **window) == together
    assert asked.total() <= 3
    filtered = kept.statements(kept.accounts, **window, k8s_namespace=["shop"])
    true = truth(WORLDS[0], END - DAY, END, now=NOW, adjusted=True)
    assert filtered[kept.accounts[0]]["statement"]["total_cost"] == true["namespaces"]["shop"]


def test_one_that_fails_or_is_unknown_leaves_the_others_whole(stack: Stack) -> None:
    kept = Kept(stack, clusters=3)
    kept.simulators[1].habits.fail_with = (500, "no")
    window = {"start_date": END - DAY, "end_date": END + 10 * 60}
    told = kept.statements([*kept.accounts, account(99)], **window)
    whole, failing, unknown = told[account(0)], told[account(1)], told[account(99)]
    assert whole["statement"]["complete"] and whole["statement"]["total_cost"] > 0
    assert failing["statement"]["complete"] is False, "the day is known, the running hour is not"
    assert failing["statement"] == kept.client.get_kubecost_cluster_costs(account(1), **window)[1]
    assert unknown["statement"] is None and unknown["error"]["status_code"] == 409


def test_an_organization_sees_many_with_one_call(stack: Stack) -> None:
    kept = Kept(stack, clusters=3)
    tenant = make_tenant(kept.running, "acme")
    urls = [kept.stack.serve(one.application()) for one in kept.simulators]
    ids = [link(kept.running, tenant, f"c{n}", "kubecost", urls[n % 3]) for n in range(6)]
    stack.thread.run(kept.running.worker.worker.extract_all())
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters?{WINDOW}"
    body = ask(kept.running, tenant.tokens["viewer"], path).json()
    trues = [truth(WORLDS[n % 3], END - DAY, END, now=NOW, adjusted=True)["total_cost"] for n in range(6)]
    by_id = {row["cluster_id"]: row["total_cost"] for row in body["clusters"]}
    assert by_id == dict(zip(ids, trues, strict=True)) and body["total_cost"] == sum(trues) and body["complete"]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 64)), max_size=4), min_size=1, max_size=4))
def test_sums_of_many_are_those_of_each(stack_store: Any, drawn: list[list[tuple[int, int]]]) -> None:
    """Whatever is stored of whom: the same hours, restated, some of nothing."""
    store, writer = stack_store
    accounts = [account(1000 + n + 10 * writer.sequence()) for n in range(len(drawn))]
    for one, batches in zip(accounts, drawn, strict=True):
        for hour, eighths in batches:
            row = Allocation(name="shop", namespace="shop", costs=Costs(cpu=eighths / 8), start=END, end=END + HOUR)
            store.ledger.commit([HourBatch(account=one, hour=END + hour * HOUR, allocations=[row])], writer)
    together = store.ledger.committed_of(accounts, END, END + 3 * HOUR)
    for one in accounts:
        assert together[one] == store.ledger.committed(one, END, END + 3 * HOUR)
    stored = [one for one in together.values() if one.hours]
    for one, (found, management) in zip(stored, store.history.allocations_of(stored), strict=True):
        alone, usd = store.history.allocations(one, ())
        assert (found.allocations.costs.sum(), management) == (alone.allocations.costs.sum(), usd)
        newest = {hour: eighths / 8 for hour, eighths in drawn[accounts.index(one.account)]}
        assert found.allocations.costs.sum() == sum(newest.values())
