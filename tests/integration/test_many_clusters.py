"""What is asked of many clusters at once: each as its own statement tells it, with as many questions as for one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.components import Costs
from metroculus.sources.registry.protocol import Credentials
from metroculus.storage.engine import StoreError
from metroculus.storage.ledger import FencedWriter, HourBatch
from metroculus.storage.store import Store, open_store
from simulator.costs import truth
from simulator.server import Habits
from tests.integration.test_services import link
from tests.support import DAY, END, HOUR, NOW, Stack, ask, exact_world, make_tenant, until
from tools.zones import UTC_ZONE

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


def questions_of(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what is asked of the store from now on."""
    asked: Counter[str] = Counter()
    for name in ("rows", "columns"):
        method = getattr(kept.store.engine, name)
        monkeypatch.setattr(kept.store.engine, name, lambda sql, m=method, n=name: (asked.update([n]), m(sql))[1])
    return asked


def test_each_is_what_its_own_statement_says_and_the_store_is_asked_once(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(stack, clusters=9)
    asked = questions_of(kept, monkeypatch)
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


def months(kept: Kept, accounts: list[str], **asked: Any) -> dict[str, Any]:
    _, body = kept.client.get_k8s_months(accounts, **asked)
    return {one["cloud_account_id"]: one for one in body["accounts"]}


@pytest.mark.parametrize("timezone", [None, "America/New_York"])
def test_months_of_many_are_those_of_each_and_read_again_only_where_something_changed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, timezone: str | None
) -> None:
    kept = Kept(stack, clusters=9)
    asked = questions_of(kept, monkeypatch)
    together = months(kept, [*kept.accounts, account(99)], months=3, timezone=timezone)
    cold = asked.total()
    assert cold <= 20, "as many questions as for one"
    assert not any(month["costs"] for month in together[account(99)]["months"]["months"]), "nothing is stored of it"
    for number, one in enumerate(kept.accounts):
        true = truth(WORLDS[number % 3], END - 2 * DAY, END, now=NOW, adjusted=True)
        stored = [month["costs"] for month in together[one]["months"]["months"] if month["costs"]]
        assert sum(costs["total_cost"] for costs in stored) == true["total_cost"]
        assert sum(costs["idle_cost"] for costs in stored) == true["idle_cost"]
        assert together[one]["months"]["months"][-1]["projection"]["total_cost"] > stored[-1]["total_cost"]
        assert together[one]["months"] == kept.client.get_k8s_monthly(one, 3, timezone=timezone)[1]
    asked.clear()
    again = months(kept, kept.accounts, months=3, timezone=timezone)
    assert {one: again[one] for one in kept.accounts} == {one: together[one] for one in kept.accounts}
    assert asked.total() == 1, "whether anything has changed"
    row = Allocation(name="shop", namespace="shop", costs=Costs(cpu=4096.0), start=END - DAY, end=END - DAY + HOUR)
    kept.store.ledger.commit([HourBatch(account=account(1), hour=END - DAY, allocations=[row])], FencedWriter(1000))
    changed = months(kept, kept.accounts, months=3, timezone=timezone)
    assert [one for one in kept.accounts if changed[one] != together[one]] == [account(1)]
    assert changed[account(1)]["months"]["months"][-1]["costs"]["cpu_cost"] > 4096


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


def test_history_of_a_removed_account_is_purged_after_its_grace_unless_it_is_there_again(stack: Stack) -> None:
    now = [NOW]
    stack.plan = {"clock": lambda: now[0]}
    kept = Kept(stack, clusters=3)
    ledger = kept.store.ledger

    def clean(days: float) -> list[str]:
        now[0] = NOW + int(days * DAY)
        stack.thread.run(kept.running.worker.worker.clean())
        assert until(lambda: not list(kept.store.engine.query("SELECT 1 FROM system.mutations WHERE is_done = 0")))
        return list(ledger.accounts())

    kept.client.delete_kubecost_source(account(0))
    kept.client.delete_kubecost_source(account(1))
    assert clean(29.9) == kept.accounts
    kept.client.put_kubecost_source(account(1), "push")
    assert clean(30.1) == [account(1), account(2)]
    assert clean(60) == [account(1), account(2)], "what was never removed stays, however old"


@pytest.mark.parametrize("why", ["the operator's own", "linked again meanwhile"])
def test_history_of_an_account_that_is_answered_is_never_purged(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    now = [NOW]
    stack.plan = {"clock": lambda: now[0]}
    if why == "the operator's own":
        _, url = stack.simulate(WORLDS[0], Habits())
        stack.plan |= {"kubecost_api_url": url, "kubecost_account_id": account(1)}
    kept = Kept(stack, clusters=3)
    registry, purge = kept.running.metroculus.dependencies.registry, kept.store.maintenance.purge
    for one in (account(0), account(1)):
        stack.thread.run(registry.delete(one))

    def then_linked(one: str) -> None:
        purge(one)
        if why == "linked again meanwhile":
            kept.client.put_kubecost_source(account(1), "push")

    monkeypatch.setattr(kept.store.maintenance, "purge", then_linked)
    version = kept.store.version(account(0))
    now[0] = NOW + 31 * DAY
    stack.thread.run(kept.running.worker.worker.clean())
    assert until(lambda: kept.store.ledger.accounts() == [account(1), account(2)])
    assert kept.store.version(account(0)) != version, "kept answers of it are over"


def told_by(cpu: float, hour: int, currency: str = "USD") -> HourBatch:
    row = Allocation(name="shop", namespace="shop", costs=Costs(cpu=cpu), start=hour, end=hour + HOUR)
    return HourBatch(account="", hour=hour, currency=currency, allocations=[row], management=0.0)


def store_hours(kept: Kept, one: str, batches: list[HourBatch], fence: int) -> None:
    kept.store.ledger.commit([replace(batch, account=one) for batch in batches], FencedWriter(fence))


def test_months_in_several_currencies_are_never_added(stack: Stack) -> None:
    """Of three clusters one changed from yen to euro with the month, one stays, and one has stored nothing yet."""
    kept = Kept(stack, clusters=3)
    tenant = make_tenant(kept.running, "acme")
    urls = [kept.stack.serve(one.application()) for one in kept.simulators]
    ids = [link(kept.running, tenant, f"c{n}", "kubecost", urls[n]) for n in range(3)]
    this, _ = UTC_ZONE.period(NOW, "month")
    before = [told_by(1000.0, this - n * HOUR - HOUR, "JPY") for n in range(20 * 24)]
    store_hours(kept, ids[0], [*before, *(told_by(1.0, this + n * HOUR, "EUR") for n in range(24))], 500)
    store_hours(kept, ids[1], [*before, *(told_by(1000.0, this + n * HOUR, "JPY") for n in range(24))], 501)
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/monthly"
    last, running = ask(kept.running, tenant.tokens["viewer"], path, params={"months": 2}).json()["months"]
    assert (last["currency"], last["total_cost"]) == ("JPY", 2 * 480 * 1000.0)
    assert running["currency"] == "EUR, JPY" and running["total_cost"] is None and running["projection"]["low"] is None
    by_id = {one["cloud_account_id"]: one for one in running["clusters"]}
    assert (by_id[ids[0]]["total_cost"], by_id[ids[0]]["currency"]) == (24.0, "EUR")
    assert by_id[ids[2]]["currency"] is None
    assert by_id[ids[0]]["projection"]["total_cost"] == 24.0 + 1.0 * by_id[ids[0]]["projection"]["hours_left"]
    alone = kept.client.get_k8s_monthly(ids[0], 2)[1]
    assert alone["currency"] == "EUR" and [one["currency"] for one in alone["months"]] == ["JPY", "EUR"]


def test_a_month_that_was_read_while_rows_were_away_is_not_remembered(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(stack, clusters=1)
    one, hour = account(0), END - 40 * DAY
    store_hours(kept, one, [told_by(1.0, hour)], 500)
    store_hours(kept, one, [told_by(2.0, hour)], 501)
    restated = kept.store.ledger.newest_of([one], hour, hour + HOUR)[one][hour].batch
    rows, kept.store.ledger._counted = kept.store.engine.rows, {}

    def without_the_last(sql: str) -> Iterator[dict[str, Any]]:
        return (row for row in rows(sql) if row.get("batch") != restated or "there" not in row)

    def october() -> float:
        return float(months(kept, [one], months=3)[one]["months"]["months"][1]["costs"]["total_cost"])

    monkeypatch.setattr(kept.store.engine, "rows", without_the_last)
    assert october() == 1.0, "the batch before stands in"
    monkeypatch.setattr(kept.store.engine, "rows", rows)
    assert october() == 2.0


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


def test_what_is_stored_meanwhile_is_not_missed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day is restated between the reading of many and the answer about each."""
    kept = Kept(stack, clusters=2)
    window = {"start_date": END - DAY, "end_date": END}
    costs = kept.running.metroculus.application.wildcard_router.rules  # the handler's own controller is in its route
    controller = next(
        rule.target_kwargs["costs"] for rule in costs if "costs" in rule.target_kwargs and "cache" in rule.target_kwargs
    )
    read_ahead = controller.read_ahead

    async def then_restated(*asked: Any) -> Any:
        found = await read_ahead(*asked)
        row = Allocation(name="shop", namespace="shop", costs=Costs(cpu=4096.0), start=END - DAY, end=END - DAY + HOUR)
        batch = HourBatch(account=account(0), hour=END - DAY, allocations=[row])
        await kept.store.run(kept.store.ledger.commit, [batch], FencedWriter(1000))
        return found

    monkeypatch.setattr(controller, "read_ahead", then_restated)
    told = kept.statements(kept.accounts, **window)[account(0)]["statement"]
    monkeypatch.undo()
    kept.running.metroculus.cache.clear()
    assert told == kept.client.get_kubecost_cluster_costs(account(0), **window)[1] and told["total_cost"] > 4096


def test_a_store_that_hangs_leaves_what_is_live(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(stack, clusters=3)
    asked: list[float] = []

    def hangs(*_: Any) -> Any:
        asked.append(time.monotonic())
        time.sleep(8)
        raise StoreError("too late")

    monkeypatch.setattr(kept.store.ledger, "committed_of", hangs)
    told = kept.statements(kept.accounts, start_date=END - DAY, end_date=END, timeout=12)
    assert len(asked) == 1, "it is asked once for all"
    for one in told.values():
        assert one["error"] is None and one["statement"]["summary"]["known_cost"] > 0
        assert one["statement"]["sources"][0] == {**one["statement"]["sources"][0], "name": "store"}


def test_a_joint_answer_is_kept_and_renewed_as_a_single_one(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(stack, clusters=3)
    window = {"start_date": END - DAY, "end_date": END}
    first = kept.statements(kept.accounts, **window)
    read = kept.running.metroculus.cache.stats()
    asked: list[str] = []
    monkeypatch.setattr(kept.store.ledger, "committed_of", lambda *of: asked.append("store"))
    assert kept.statements(kept.accounts, **window) == first and not asked
    stats = kept.running.metroculus.cache.stats()
    assert (stats.hits - read.hits, stats.misses) == (3, 3)


def test_batches_that_were_counted_stay_counted(stack_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of more batches than are kept is forgotten, and no hour with it."""
    store, writer = stack_store
    monkeypatch.setattr("metroculus.storage.ledger.COUNTED_KEPT", 5)
    one = account(5000)
    row = Allocation(name="shop", namespace="shop", costs=Costs(cpu=1.0), start=END, end=END + HOUR)
    batches = [HourBatch(account=one, hour=END + n * HOUR, allocations=[row]) for n in range(12)]
    store.ledger.commit(batches, writer)
    for _ in range(3):
        assert len(store.ledger.committed(one, END, END + 12 * HOUR).hours) == 12
        store.ledger.commit(batches[:1], writer)


def test_a_batch_that_has_lost_rows_is_told_of_once(tmp_path: Any) -> None:
    store = open_store(f"embedded:{tmp_path / 'store'}", lambda: NOW)
    writer = FencedWriter(1)
    rows = [
        Allocation(name=f"n{n}", namespace=f"n{n}", costs=Costs(cpu=1.0), start=END - DAY, end=END - DAY + HOUR)
        for n in range(2)
    ]
    store.ledger.commit([HourBatch(account=account(1), hour=END - DAY, allocations=rows)], writer)
    store.engine.command("ALTER TABLE k8s_allocations DELETE WHERE namespace = 'n0' SETTINGS mutations_sync = 2")
    store.ledger.verify(account(1))
    marks = lambda: next(iter(list(store.engine.rows("SELECT count() AS n FROM k8s_extractions"))))["n"]  # noqa: E731
    told = [(store.maintenance.clean(NOW + night * DAY, 400).broken, marks()) for night in range(4)]
    assert [broken for broken, _ in told] == [1, 1, 1, 1] and len({count for _, count in told}) == 1
    assert len(store.ledger.committed(account(1), END - DAY, END).passed_over) == 1
    store.close()
