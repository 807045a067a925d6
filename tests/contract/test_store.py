"""What every engine of the store must do: the batch rule, reading back, summaries, jobs, cleaning."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations, product
from random import Random
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, MANAGEMENT, Allocation, Filters
from metroculus.cost_model.assets import Asset
from metroculus.cost_model.columns import Allocations, group
from metroculus.cost_model.components import Costs
from metroculus.storage.blocks import NodeKind
from metroculus.storage.columns import ACCOUNTED, COST_COLUMNS
from metroculus.storage.engine import StoreError, TooManyRows, literal
from metroculus.storage.gaps import Gap
from metroculus.storage.history import CostSums, Page, Stretch
from metroculus.storage.jobs import Repair
from metroculus.storage.ledger import CommittedHours, FencedWriter, HourBatch
from metroculus.storage.store import Store, open_store
from tests.stores import allocation, idle
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, until
from tools.window import parse_rfc3339
from tools.zones import UTC_ZONE, Zone, zone_of

OTHER = "00000000-0000-4000-8000-00000000000b"
H = END - DAY
"""The first hour of the last day."""


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    opened = open_store(migrated_url, lambda: NOW)
    yield opened
    opened.close()


def batch(hour: int, *allocations: Allocation, account: str = ACCOUNT, **more: object) -> HourBatch:
    values: dict[str, object] = {"account": account, "hour": hour, "allocations": allocations, "fetched_at": NOW}
    return HourBatch(**(values | more))  # type: ignore[arg-type]


def total(store: Store, start: int = H, end: int = END, account: str = ACCOUNT) -> float:
    """By rows and by what summaries there are: the two must agree."""
    committed = store.ledger.committed(account, start, end)
    by_rows = sum(one.total for one in store.history.sums(committed, (), Filters()))
    by_summaries = sum(one.total for one in store.summaries.sums(account, start, end, (), Filters()).sums)
    assert by_summaries == by_rows
    assert sum(marker.total for marker in committed.hours.values()) == by_rows
    return by_rows


def test_an_hour_is_read_back_as_it_was_written(store: Store) -> None:
    kept = allocation("web-1", 8.0, hour=H, labels={"app.kubernetes.io/name": "web"}, annotations={"owner": "ann"})
    store.ledger.commit(
        [batch(H, kept, idle(4.0, H), management=0.5, nodes={"node-1": NodeKind("m5.large", "eu-1a")})], FencedWriter(1)
    )
    committed = store.ledger.committed(ACCOUNT, H, END)
    properties = ("pod", "controller", "controllerKind", "node", "container", "cluster", "label:app.kubernetes.io/name")
    told, management = store.history.allocations(committed, (*properties, "annotation:owner"), by_services=True)
    read = {one.special: one for one in told.allocations}
    assert management == 0.5
    assert read[IDLE].costs == Costs(cpu=4.0)
    back = read[None]
    assert (back.costs, back.egress, back.usage, back.amounts) == (kept.costs, kept.egress, kept.usage, kept.amounts)
    for name in ("namespace", "pod", "controller", "controller_kind", "node", "container", "cluster", "services"):
        assert getattr(back, name) == getattr(kept, name)
    assert (back.start, back.end, back.labels, back.annotations) == (H, H + HOUR, kept.labels, kept.annotations)
    by_type = store.history.sums(committed, ("instance_type", "zone"), Filters())
    assert ("m5.large", "eu-1a") in {one.keys for one in by_type}


def test_what_a_batch_leaves_out_is_the_default_there_and_what_another_has_is_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where hours go in by several inserts, in each of which other columns are empty."""
    monkeypatch.setattr("metroculus.storage.ledger.SMALL_ROWS", 3)
    monkeypatch.setattr("metroculus.storage.blocks.INSERT_ROWS", 2)
    hours = [
        [allocation("plain", 1.0, hour=H, labels={}, services=())],
        [allocation("gpu", 1.0, hour=H + HOUR, costs=Costs(gpu=2.5), labels={"a": "1"}, unknown=("ram",))],
        [allocation("short", 1.0, hour=H + 2 * HOUR, end=H + 2 * HOUR + 60, services=("web", "api"))],
        [allocation(f"many-{n}", 1.0 + n, hour=H + 3 * HOUR, annotations={"n": str(n)}) for n in range(5)],
        [],
    ]
    batches = [
        batch(H + n * HOUR, *rows, management=None if n == 1 else n / 4, account=ACCOUNT)
        for n, rows in enumerate(hours)
    ]
    markers = store.ledger.commit(batches, FencedWriter(1))
    assert [marker.rows for marker in markers] == [2, 1, 2, 6, 1]
    wanted = [
        (row.start, row.pod, row.costs.cpu, row.costs.gpu, 0.0, [*row.services], [*row.labels], [*row.annotations],
         [*row.annotations.values()], row.end - row.start, int("ram" in row.unknown))
        for rows in hours for row in rows
    ]  # fmt: skip
    wanted += [(H + n * HOUR, "", 0.0, 0.0, n / 4, [], [], [], [], HOUR, 0) for n in (0, 2, 3, 4)]
    found = store.engine.query(
        "SELECT toUInt32(hour), pod, cpu, gpu, management, services, label_names, annotation_names, annotation_values,"
        " covered_seconds, unknown != 0 FROM k8s_allocations"
    )
    assert sorted(map(list, found)) == sorted(map(list, wanted))
    assert total(store) == sum(one.total for one in markers)


def test_a_label_is_found_by_either_spelling(store: Store) -> None:
    store.ledger.commit([batch(H, allocation("web-1", 8.0, labels={"app.io/team": "red"}))], FencedWriter(1))
    committed = store.ledger.committed(ACCOUNT, H, END)
    for spelling in ("label:app.io/team", "label:app_io_team"):
        assert [one.keys for one in store.history.sums(committed, (spelling,), Filters())] == [("red",)]
    assert [one.keys for one in store.history.sums(committed, ("label:absent",), Filters())] == [("__unallocated__",)]


def test_a_restatement_replaces_up_down_and_to_nothing(store: Store) -> None:
    writer = FencedWriter(1)
    for figure in (10.0, 12.0, 7.0):
        store.ledger.commit([batch(H, allocation("web-1", figure), allocation(f"gone-{figure}", 1.0))], writer)
        assert total(store) == (figure + 1.0) * 1.5 + 0.5
    store.ledger.commit([batch(H)], writer)
    assert total(store) == 0.0
    assert list(store.ledger.committed(ACCOUNT, H, END).hours) == [H]


def test_an_hour_that_cost_nothing_is_not_an_hour_that_was_never_fetched(store: Store) -> None:
    store.ledger.commit([batch(H)], FencedWriter(1))
    assert store.ledger.committed(ACCOUNT, H, H + 3 * HOUR).missing() == [(H + HOUR, H + 3 * HOUR)]


@pytest.mark.parametrize("times", [2, 3, 10])
def test_the_same_hour_delivered_again_counts_once(store: Store, times: int) -> None:
    for fence in range(1, times + 1):
        store.ledger.commit([batch(H, allocation("web-1", 8.0))], FencedWriter(fence))
    assert total(store) == 12.25


def test_an_older_fence_never_overrides_a_newer_one(store: Store) -> None:
    paused, later = FencedWriter(1), FencedWriter(2)
    store.ledger.commit([batch(H, allocation("web-1", 8.0))], later)
    store.ledger.commit([batch(H, allocation("web-1", 99.0))], paused)
    assert total(store) == 12.25
    assert store.highest_fence() == 2


def test_rows_without_a_marker_are_never_seen(store: Store) -> None:
    store.ledger.commit([batch(H, allocation("web-1", 8.0))], FencedWriter(1))
    engine, told = store.engine, store.engine.insert
    engine.insert = lambda *a: (_ for _ in ()).throw(InterruptedError)  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        store.ledger.commit([batch(H, allocation("web-1", 99.0))], FencedWriter(2))
    engine.insert = told  # type: ignore[method-assign]
    assert total(store) == 12.25


def test_a_marker_whose_rows_are_not_all_there_is_passed_over_and_told(store: Store) -> None:
    writer = FencedWriter(1)
    store.ledger.commit([batch(H, allocation("web-1", 8.0))], writer)
    whole = store.ledger.commit([batch(H, allocation("web-1", 99.0), allocation("web-2", 99.0))], writer)[0]
    store.ledger._mark([(ACCOUNT, replace(whole, batch=whole.batch ^ 1, sequence=writer.sequence()))])
    store.ledger._mark([(ACCOUNT, replace(whole, rows=3, sequence=writer.sequence()))])
    committed = store.ledger.committed(ACCOUNT, H, END)
    assert committed.hours[H].batch == whole.batch
    assert len(committed.passed_over) == 2


def test_a_confirmed_hour_keeps_its_rows_under_a_newer_sequence(store: Store) -> None:
    writer = FencedWriter(1)
    first = store.ledger.commit([batch(H, allocation("web-1", 8.0))], writer)
    version = store.version(ACCOUNT)
    store.ledger.confirm(ACCOUNT, first, writer, NOW + 60)
    assert store.version(ACCOUNT) == version, "kept answers go on: no cost has changed"
    marker = store.ledger.committed(ACCOUNT, H, END).hours[H]
    assert (marker.batch, marker.fetched_at) == (first[0].batch, NOW + 60)
    assert total(store) == 12.25


def test_accounts_do_not_see_each_other(store: Store) -> None:
    store.ledger.commit([batch(H, allocation("web-1", 8.0))], FencedWriter(1))
    store.ledger.commit([batch(H, allocation("web-1", 5.0), account=OTHER)], FencedWriter(1))
    assert (total(store), total(store, account=OTHER)) == (12.25, 7.75)
    assert store.ledger.accounts() == sorted((OTHER, ACCOUNT))


def test_hours_that_reach_over_the_edge_are_not_in_the_window(store: Store) -> None:
    store.ledger.commit([batch(H + n * HOUR, allocation("web-1", 8.0)) for n in range(3)], FencedWriter(1))
    committed = store.ledger.committed(ACCOUNT, H + 1800, H + 2 * HOUR + 1800)
    assert list(committed.hours) == [H + HOUR]
    assert committed.missing() == [(H + 1800, H + HOUR), (H + 2 * HOUR, H + 2 * HOUR + 1800)]


HOSTILE = (
    "'; DROP TABLE k8s_allocations; --",
    "\\",
    "a'b\\'c",
    'x"y',
    "\n\t\0",
    "${}",
    "%s %(a)s",
    "日本",
    "𝄞",
    "{a}",
    "?",
)


def test_text_is_kept_compared_and_never_read_as_sql(store: Store) -> None:
    for text in HOSTILE:
        assert [row[0] for row in store.engine.query(f"SELECT {literal(text)}")] == [text]
    rows = [allocation(text, 8.0, namespace=text) for text in HOSTILE]
    store.ledger.commit([batch(H, *rows, allocation("web-1", 1.0))], FencedWriter(1))
    committed = store.ledger.committed(ACCOUNT, H, END)
    for text in HOSTILE:
        found = store.history.sums(committed, ("namespace", "pod"), Filters(namespaces=(text,)))
        assert [one.keys for one in found] == [(text, text)], text


def test_sums_of_namespaces_count_their_pods_as_rows_of_pods_do(store: Store) -> None:
    """Alone, and beside rows of a live source, some of which are of the same pods."""
    rng = Random(3)

    def rows(hour: int) -> list[Allocation]:
        return [
            replace(
                allocation(rng.choice(("web-1", "web-2", "", "__unmounted__", "api")), rng.randrange(1, 64) / 8, hour=hour),
                namespace=rng.choice(("shop", "lab", "kube-system")),
                unknown=rng.choice(((), ("cpu_usage",))),
            )
            for _ in range(12)
        ]  # fmt: skip

    batches = [batch(hour, *rows(hour), idle(4.0, hour), management=0.5) for hour in range(H, H + 5 * HOUR, HOUR)]
    store.ledger.commit(batches, FencedWriter(1))
    committed = store.ledger.committed(ACCOUNT, H, END)
    by_pods, management = store.history.allocations(committed, ("pod",))
    by_namespaces, same = store.history.allocations(committed, (), with_pods=True)
    assert management == same and len(by_namespaces.allocations) == 4 < len(by_pods.allocations)
    live = Allocations.of(rows(END))
    for beside in (Allocations.of(()), live):
        told = [
            dict(group(Allocations.joined([Allocations.of(one.allocations), beside]), ("namespace",)))
            for one in (by_pods, by_namespaces)
        ]
        assert told[0] == told[1] and sum(one.pods for one in told[0].values()) > 3


def test_filters_hold_and_special_names_are_rows_like_any(store: Store) -> None:
    store.ledger.commit(
        [
            batch(
                H,
                allocation("web-1", 8.0, node="a"),
                allocation("web-2", 4.0, node="b", services=("api", "web")),
                idle(2.0, H),
                management=1.0,
            )
        ],
        FencedWriter(1),
    )
    committed = store.ledger.committed(ACCOUNT, H, END)

    def sums(group_by: tuple[str, ...], **filters: tuple[str, ...]) -> dict[tuple[str | int, ...], float]:
        return {one.keys: one.total for one in store.history.sums(committed, group_by, Filters(**filters))}

    assert sums(("namespace",)) == {("shop",): 18.5, (IDLE,): 2.0, (MANAGEMENT,): 1.0}
    assert sums(("node",), nodes=("b",)) == {("b",): 6.25}
    assert sums((), services=("api",)) == {(): 6.25}
    assert sums(("service",)) == {("web",): 12.25, ("api",): 6.25, (IDLE,): 2.0, (MANAGEMENT,): 1.0}
    assert sums(("namespace",), namespaces=(IDLE, MANAGEMENT)) == {(IDLE,): 2.0, (MANAGEMENT,): 1.0}


@pytest.mark.parametrize(
    ("key", "first", "second"),
    [("hour", H, H + HOUR), ("day", H - DAY, H), ("month", 1793491200 - 30 * DAY, 1793491200)],
)
def test_time_is_cut_in_utc(store: Store, key: str, first: int, second: int) -> None:
    store.ledger.commit(
        [batch(first, allocation("web-1", 8.0)), batch(second, allocation("web-1", 4.0))], FencedWriter(1)
    )
    committed = store.ledger.committed(ACCOUNT, first, END)
    by_rows = {one.keys: one.total for one in store.history.sums(committed, (key,), Filters())}
    begins = {"hour": first, "day": first, "month": 1790812800}[key]
    assert by_rows == {(begins,): 12.25, (second,): 6.25}
    store.summaries.rebuild(ACCOUNT, first, END, FencedWriter(1))
    answer = store.summaries.sums(ACCOUNT, first, END, (key,), Filters())
    assert {one.keys: one.total for one in answer.sums} == by_rows


@pytest.mark.parametrize("summarised", [False, True])
def test_time_is_cut_in_a_zone_over_a_change_of_clocks(store: Store, summarised: bool) -> None:
    first, last = parse_rfc3339("2026-10-23T00:00:00Z") or 0, parse_rfc3339("2026-11-03T00:00:00Z") or 0
    hours = range(first, last, HOUR)
    store.ledger.commit(
        [batch(hour, allocation("web-1", 1.0 + number)) for number, hour in enumerate(hours)], FencedWriter(1)
    )
    if summarised:
        store.summaries.rebuild(ACCOUNT, first, last, FencedWriter(1))
    zones = map(zone_of, ("Europe/Berlin", "Asia/Kolkata", "America/St_Johns", "Pacific/Kiritimati"))
    keys: tuple[Literal["day", "month"], ...] = ("day", "month")
    for zone, key in product(zones, keys):
        expected: dict[tuple[str | int, ...], float] = {}
        for one in store.summaries.sums(ACCOUNT, first, last, ("hour",), Filters()).sums:
            period = (zone.period(int(one.keys[0]), key)[0],)
            expected[period] = expected.get(period, 0.0) + one.total
        answer = store.summaries.sums(ACCOUNT, first, last, (key,), Filters(), zone=zone)
        assert {one.keys: one.total for one in answer.sums} == pytest.approx(expected)
        committed = store.ledger.committed(ACCOUNT, first, last)
        by_rows = store.history.sums(committed, (key, "pod"), Filters(), zone=zone)
        assert {one.keys[:1]: one.total for one in by_rows if one.keys[1] == "web-1"} == pytest.approx(
            {period: usd for period, usd in by_pod(store, committed, zone, key).items()}
        )


def by_pod(store: Store, committed: CommittedHours, zone: Zone, key: Literal["day", "month"]) -> dict[Any, float]:
    sums: dict[Any, float] = {}
    for one in store.history.sums(committed, ("hour", "pod"), Filters()):
        if one.keys[1] == "web-1":
            period = (zone.period(int(one.keys[0]), key)[0],)
            sums[period] = sums.get(period, 0.0) + one.total
    return sums


def test_a_summary_answers_only_for_the_batches_it_was_made_of(store: Store) -> None:
    writer = FencedWriter(1)
    store.ledger.commit([batch(H + n * HOUR, allocation("web-1", 8.0)) for n in range(24)], writer)
    assert store.summaries.rebuild(ACCOUNT, H, END, writer) == 24 + 1 + 1
    assert store.summaries.rebuild(ACCOUNT, H, END, writer) == 0
    assert total(store) == 24 * 12.25
    store.ledger.commit([batch(H, allocation("web-1", 10.0))], writer)
    assert total(store) == 23 * 12.25 + 15.25
    assert store.summaries.rebuild(ACCOUNT, H, H + HOUR, writer) == 3
    assert total(store) == 23 * 12.25 + 15.25
    days = store.summaries.sums(ACCOUNT, H, END, ("namespace", "day"), Filters()).sums
    assert {one.keys: one.total for one in days} == {("shop", H): 23 * 12.25 + 15.25}


def test_a_summary_whose_rows_are_not_all_there_is_not_used(store: Store) -> None:
    writer = FencedWriter(1)
    store.ledger.commit([batch(H, allocation("web-1", 8.0), idle(2.0, H))], writer)
    store.summaries.rebuild(ACCOUNT, H, END, writer)
    store.engine.command(f"ALTER TABLE k8s_cost_summaries DELETE WHERE namespace = {literal(IDLE)}")
    wait_for_mutations(store)
    assert total(store) == 14.25


def wait_for_mutations(store: Store) -> None:
    import time

    for _ in range(200):
        if not next(iter(store.engine.query("SELECT count() FROM system.mutations WHERE is_done = 0")))[0]:
            return
        time.sleep(0.05)
    raise AssertionError("a mutation does not end")


def test_sweeping_takes_what_is_old_and_unread_and_nothing_else(store: Store) -> None:
    writer, now = FencedWriter(1), NOW
    store.ledger.commit([batch(H, allocation("web-1", 9.0))], writer)
    store.ledger.commit([batch(H, allocation("web-1", 8.0))], writer)
    assert store.maintenance.clean(now + 3600, 400).batches == 0
    assert store.maintenance.clean(now + 2 * DAY, 400).batches == 1
    wait_for_mutations(store)
    assert total(store) == 12.25
    assert next(iter(store.engine.query("SELECT count() FROM k8s_allocations")))[0] == 1


def test_sweeping_takes_superseded_summaries_and_assets_too(store: Store) -> None:
    writer = FencedWriter(1)
    for figure in (9.0, 8.0):
        store.ledger.commit([batch(H, allocation("web-1", figure))], writer)
        store.summaries.rebuild(ACCOUNT, H, END, writer)
        node = Asset(type="node", name="a", total_cost=figure)
        store.assets.commit(ACCOUNT, H, [node], store.ledger.new_batch(), NOW, writer)
    assert store.maintenance.clean(NOW + 2 * DAY, 400).batches == 1 + 3 + 1
    wait_for_mutations(store)
    for table, rows in (("k8s_allocations", 1), ("k8s_cost_summaries", 3), ("k8s_assets", 1)):
        assert next(iter(store.engine.query(f"SELECT count() FROM {table}")))[0] == rows
    assert total(store) == 12.25
    assert store.assets.read(ACCOUNT, list(store.assets.days(ACCOUNT, H, END).values()))[0].total_cost == 8.0


def test_small_commits_at_once_are_one_insert_and_each_is_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.migrate()
    accounts = [f"00000000-0000-4000-8000-{number:012x}" for number in range(1, 13)]
    writers = [FencedWriter(number + 1) for number in range(len(accounts))]
    group: Any = store.ledger._group
    insert, inserts = store.engine.insert_blocks, []

    def insert_when_all_wait(table: str, blocks: Any) -> None:
        if not inserts:
            assert until(lambda: len(group._waiting) == len(accounts) - 1)
        inserts.append(table)
        insert(table, blocks)

    monkeypatch.setattr(store.engine, "insert_blocks", insert_when_all_wait)

    def commit(number: int) -> None:
        rows = [allocation(f"web-{pod}", float(number + 1)) for pod in range(number % 3)]
        own = batch(H + number * HOUR, *rows, account=accounts[number], management=0.25)
        store.ledger.commit([own], writers[number])

    with ThreadPoolExecutor(len(accounts)) as threads:
        list(threads.map(commit, range(len(accounts))))
    assert len(inserts) == 2, "the first, and all the others together"
    for number, account in enumerate(accounts):
        committed = store.ledger.committed(account, H, END)
        (marker,) = committed.hours.values()
        assert (marker.hour, marker.rows, marker.fence) == (H + number * HOUR, number % 3 + 1, number + 1)
        assert marker.verified and not committed.passed_over
        assert total(store, account=account) == number % 3 * (1.5 * (number + 1) + 0.25) + 0.25


@pytest.mark.parametrize(
    "refusal", [StoreError("the store answered with error 241", 241), UnicodeEncodeError("utf-8", "x", 0, 1, "no")]
)
def test_rows_that_the_engine_refuses_fail_their_own_account_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    store.migrate()
    group: Any = store.ledger._group
    insert, inserts = store.engine.insert_blocks, []

    def refuse(table: str, blocks: Any) -> None:
        if not inserts:
            assert until(lambda: len(group._waiting) == 3)
        inserts.append(table)
        if any("bad" in block["pod"].values for block in blocks):
            raise refusal
        insert(table, blocks)

    monkeypatch.setattr(store.engine, "insert_blocks", refuse)
    accounts = [f"00000000-0000-4000-8000-{number:012x}" for number in range(1, 5)]

    def commit(number: int) -> None:
        pod = "bad" if number == 3 else "web-1"
        own = batch(H, allocation(pod, 8.0), account=accounts[number])
        store.ledger.commit([own], FencedWriter(number + 1))

    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(commit, number) for number in range(4)]
        for one in done[:3]:
            one.result(60)
        with pytest.raises(type(refusal)):
            done[3].result(60)
    assert store.ledger.accounts() == accounts[:3]
    assert all(total(store, account=account) == 12.25 for account in accounts[:3])


def test_many_accounts_whose_rows_are_too_many_for_one_question_are_read_in_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = [f"00000000-0000-4000-8000-{number:012x}" for number in range(1, 6)]
    for account in accounts:
        rows = [allocation(f"web-{pod}", 8.0) for pod in range(10)]
        store.ledger.commit([batch(H, *rows, account=account)], FencedWriter(1))
    monkeypatch.setattr("metroculus.storage.history.MAX_ROWS", 15)
    found = store.summaries.sums_by_account(accounts, H, END, ("pod",), Filters())
    assert [len(found[account].sums) for account in accounts] == [10] * 5
    monkeypatch.setattr("metroculus.storage.history.MAX_ROWS", 9)
    with pytest.raises(TooManyRows):
        store.summaries.sums_by_account(accounts, H, END, ("pod",), Filters())


@pytest.mark.parametrize("by", ["total", "cpu"])
@pytest.mark.parametrize("descending", [True, False])
def test_pages_have_each_row_once_in_order(store: Store, by: str, descending: bool) -> None:
    """Costs in tenths, the same total divided in other ways: sums in another order differ in the last digit."""
    accounts = [f"00000000-0000-4000-8000-{number:012x}" for number in range(1, 4)]
    parts = list(permutations((0.1, 0.2, 0.3, 0.0)))
    for number, account in enumerate(accounts):
        rows = [
            allocation(
                f"é{pod}-x", 0.0, namespace=f"ns-{pod % 2}", costs=Costs(*parts[(pod + 7 * number) % len(parts)])
            )
            for pod in range(9)
        ]
        hours = [batch(H + hour * HOUR, *rows, account=account, management=0.6) for hour in range(3)]
        store.ledger.commit(hours, FencedWriter(1))
    committed = list(store.ledger.committed_of([*accounts, OTHER], H, END).values())
    keys, measures = ("namespace", "pod"), COST_COLUMNS
    summed = store.history.sums_by_account(committed, keys, Filters(), measures)
    everything = {(account, one.keys): one for account in summed for one in summed[account]}
    walked = []
    for offset in range(0, 35, 4):
        page = Page(by, descending, offset, 4)
        rows = store.history.first_rows(committed, keys, Filters(), measures, UTC_ZONE, page)
        assert len(rows) == min(page.end, 30)
        walked += rows[offset:]
    assert store.history.count_rows(committed, keys, Filters()) == dict.fromkeys(accounts, 10)
    assert sorted((row.account, row.sums.keys) for row in walked) == sorted(everything)
    costs = [row.sums.total if by == "total" else row.sums.costs.cpu for row in walked]
    rounded = [round(cost, 6) for cost in costs]
    assert rounded == sorted(rounded, reverse=descending)
    for row in walked:
        assert row.sums.total == pytest.approx(everything[row.account, row.sums.keys].total, rel=1e-12)


HOSTILE_NAMES = ("a", "a'b", "a\\", "a\\'; --", "a,b", "a\nb", "é", "\u202eb", "z" * 63, "")


def test_rows_are_walked_by_their_keys_as_of_a_sequence(store: Store) -> None:
    """What is stored later, or again, is in no page of a list that began before."""
    writer = FencedWriter(3)
    rows = [allocation(pod, 1.0, namespace=f"ns-{n % 3}") for n, pod in enumerate(HOSTILE_NAMES)]
    store.ledger.commit([batch(H, *rows), batch(H + HOUR, *rows[:4])], writer)
    keys, began = ("namespace", "pod"), store.ledger.committed(ACCOUNT, H, END)
    everything = {one.keys: one.total for one in store.history.sums(began, keys, Filters())}
    newest = max(marker.sequence for marker in began.hours.values())
    store.ledger.commit([batch(H, allocation("new", 5.0)), batch(H + 2 * HOUR, *rows)], writer)

    pinned, after = store.ledger.committed(ACCOUNT, H, END, newest), ()
    assert pinned.hours == began.hours
    ends = store.history.row_ends(pinned, keys, Filters(), (), 3, 2)
    assert len(ends) == 2
    ends += store.history.row_ends(pinned, keys, Filters(), ends[-1], 3, 99)
    walked: list[CostSums] = []
    for end in (*ends, ()):
        walked += store.history.rows_between(pinned, keys, Filters(), COST_COLUMNS, Stretch(after, end), 99)
        assert len(walked) % 3 == 0 or not end
        after = end
    assert len(walked) == len(everything) and len(ends) == len(walked) // 3
    assert {one.keys: one.total for one in walked} == pytest.approx(everything)
    others = Filters(namespaces=("ns-9",))
    assert store.history.rows_between(began, keys, others, COST_COLUMNS, Stretch(), 3) == []
    assert store.history.row_ends(began, keys, others, (), 3, 9) == []


def test_a_purged_account_leaves_nothing_and_takes_nothing_of_others(store: Store) -> None:
    writer = FencedWriter(1)
    for account in (ACCOUNT, OTHER):
        store.ledger.commit([batch(H, allocation("web-1", 8.0), account=account)], writer)
        store.summaries.rebuild(account, H, END, writer)
        node = Asset(type="node", name="a", total_cost=1.0)
        store.assets.commit(account, H, [node], store.ledger.new_batch(), NOW, writer)
        store.jobs.ask(account, H, END, 1)
        store.gaps.record(account, [Gap(H + HOUR, NOW, "nothing")])
    store.maintenance.purge(OTHER)
    wait_for_mutations(store)
    for table in ACCOUNTED:
        found = store.engine.query(f"SELECT DISTINCT account FROM {table.name}")
        assert {row[0] for row in found} <= {ACCOUNT}, table.name
    assert total(store) == 12.25 and store.ledger.accounts() == [ACCOUNT]
    assert store.summaries.sums(OTHER, H, END, (), Filters()).sums == ()


def test_what_was_read_before_is_read_anew_when_it_changes(store: Store) -> None:
    writer = FencedWriter(1)

    def read() -> list[tuple[int, float]]:
        return [(hour, one.total) for hour, one in store.ledger.committed(ACCOUNT, H - 60, END).hours.items()]

    assert read() == read() == []
    [marker] = store.ledger.commit([batch(H, allocation("web-1", 8.0))], writer)
    assert read() == read() == [(H, 12.25)]
    store.ledger.commit([batch(H, allocation("web-1", 8.0), account=OTHER)], writer)
    store.ledger.commit([batch(H, allocation("web-1", 4.0)), batch(H + HOUR)], writer)
    assert read() == read() == [(H, 6.25), (H + HOUR, 0.0)]
    before = store.ledger.committed(ACCOUNT, H, END, up_to=marker.sequence)
    assert before.hours[H].total == 12.25, "as of a sequence it is another question"
    store.ledger.confirm(ACCOUNT, [store.ledger.committed(ACCOUNT, H, END).hours[H]], writer, NOW + 9)
    assert store.ledger.committed(ACCOUNT, H, END).hours[H].fetched_at == NOW + 9
    store.maintenance.purge(ACCOUNT)
    wait_for_mutations(store)
    assert read() == []


@pytest.mark.parametrize("done", [True, False])
def test_a_purge_that_fails_half_way_makes_no_hour_free(
    store: Store, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """Hours are there with their cost, or not at all, whichever statement failed, and whether it took effect."""
    command = store.engine.command
    for fails in range(1, len(ACCOUNTED) + 1):
        store.ledger.commit([batch(H, allocation("web-1", 8.0))], FencedWriter(fails))
        assert total(store) == 12.25
        said: list[str] = []

        def failing(sql: str, said: list[str] = said, fails: int = fails) -> None:
            said.append(sql)
            if done or len(said) != fails:
                command(sql)
            if len(said) == fails:
                raise StoreError("away")

        monkeypatch.setattr(store.engine, "command", failing)
        with pytest.raises(StoreError):
            store.maintenance.purge(ACCOUNT)
        monkeypatch.undo()
        wait_for_mutations(store)
        committed = store.ledger.committed(ACCOUNT, H, END)
        allocations, _ = store.history.allocations(committed, ())
        assert sum(one.costs.total for one in allocations.allocations) == (12.25 if committed.hours else 0.0)
        assert not committed.passed_over, "marks go before what they are of"


def test_retention_drops_whole_months(store: Store) -> None:
    writer = FencedWriter(1)
    old = H - 60 * DAY
    store.ledger.commit([batch(old, allocation("web-1", 9.0)), batch(H, allocation("web-1", 8.0))], writer)
    store.summaries.rebuild(ACCOUNT, old, END, writer)
    assert list(store.ledger.committed(ACCOUNT, old, END).hours) == [old, H]
    assert store.maintenance.clean(NOW, 30).months == (202609,)
    assert list(store.ledger.committed(ACCOUNT, old, END).hours) == [H]
    assert store.maintenance.bytes_on_disk() > 0


def test_gaps_keep_the_last_attempt(store: Store) -> None:
    store.gaps.record(ACCOUNT, [Gap(H, NOW, "empty"), Gap(H + HOUR, NOW, "empty")])
    store.gaps.record(ACCOUNT, [Gap(H, NOW + 60, "unreachable")])
    assert store.gaps.of(ACCOUNT, H, END) == {H: Gap(H, NOW + 60, "unreachable"), H + HOUR: Gap(H + HOUR, NOW, "empty")}


def test_assets_of_a_day_are_replaced_as_a_whole(store: Store) -> None:
    writer = FencedWriter(1)
    node, disk = Asset(type="node", name="a", total_cost=2.5), Asset(type="disk", name="b", total_cost=0.5)
    for assets in ([node, disk], [node]):
        store.assets.commit(ACCOUNT, H, assets, store.ledger.new_batch(), NOW, writer)
        days = store.assets.days(ACCOUNT, H, END)
        assert store.assets.read(ACCOUNT, list(days.values())) == assets
        assert days[H].total == sum(one.total_cost for one in assets)
    assert store.assets.days(ACCOUNT, H - DAY, H) == {}


def test_jobs_are_taken_up_where_they_stand(store: Store) -> None:
    job = store.jobs.ask(ACCOUNT, H, END, 2)
    assert store.jobs.open() == [job]
    running = store.jobs.advance(job, "running", 24, 5, 0)
    assert store.jobs.get(job.id) == running
    store.jobs.advance(running, "done", 24, 24, 0)
    assert store.jobs.open() == []
    assert store.jobs.get("absent") is None


def test_repairs_are_audited(store: Store) -> None:
    one = Repair(
        account=ACCOUNT, hour=H, repair="id", who="ann", why="the bill was late", before=1.0, after=2.0,
        before_batch=1, repaired_at=NOW,
    )  # fmt: skip
    store.jobs.audit([one])
    assert store.jobs.audited(ACCOUNT) == [one]
    assert store.jobs.audited(OTHER) == []


def test_a_store_is_opened_again_with_what_it_holds(migrated_url: str) -> None:
    first = open_store(migrated_url, lambda: NOW)
    first.ledger.commit([batch(H, allocation("web-1", 8.0))], FencedWriter(3))
    first.close()
    second = open_store(migrated_url, lambda: NOW)
    try:
        assert (total(second), second.highest_fence()) == (12.25, 3)
    finally:
        second.close()


def test_an_empty_store_answers_with_nothing(store: Store) -> None:
    assert store.ledger.committed(ACCOUNT, H, END).hours == {}
    assert store.ledger.span(ACCOUNT) is None
    assert store.highest_fence() == 0
    assert store.summaries.sums(ACCOUNT, H, END, ("namespace",), Filters()).sums == ()


@pytest.mark.parametrize("sql", ["SELECT nonsense FROM nowhere", "DROP TABLE nowhere", "SELECT throwIf(1)"])
def test_a_statement_that_fails_is_an_error_and_nothing_else_fails(store: Store, sql: str) -> None:
    before = getattr(store.engine, "process_id", None)
    for ask in (store.engine.command, lambda text: list(store.engine.query(text))):
        with pytest.raises(StoreError) as failure:
            ask(sql)
        assert "\n" not in str(failure.value)
    assert list(store.engine.query("SELECT 1"))[0][0] == 1
    assert getattr(store.engine, "process_id", None) == before


def test_an_answer_that_is_not_read_to_its_end_does_not_hold_up_the_next(store: Store) -> None:
    many = "SELECT number FROM system.numbers LIMIT 300000"
    assert next(iter(store.engine.query(many)))[0] == 0
    assert [row[0] for row in store.engine.query("SELECT 7")] == [7]
    assert sum(1 for _ in store.engine.query(many)) == 300_000
