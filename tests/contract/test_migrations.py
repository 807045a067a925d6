"""Stores of earlier schemas open, keep their totals and go on; programs of two numbers work side by side."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from metroculus.cost_model.allocation import Filters
from metroculus.storage.columns import ALLOCATIONS
from metroculus.storage.engine import StoreError
from metroculus.storage.ledger import FencedWriter, HourBatch
from metroculus.storage.migrations import MIGRATIONS
from metroculus.storage.migrations.runner import migrate
from metroculus.storage.migrations.steps import AddColumns, CreateView, Migration, columns_of, resulting_columns
from metroculus.storage.store import Store, open_engine, open_store
from tests.stores import OPEN_STORE, allocation
from tests.support import DAY, END, HOUR, NOW

FIXTURES = Path(__file__).parent.parent / "data" / "stores"
FIRST = END - 2 * DAY


def rows_of(number: int) -> dict[str, list[dict[str, object]]]:
    """What a store of a schema held, by table."""
    tables: dict[str, list[dict[str, object]]] = defaultdict(list)
    with gzip.open(FIXTURES / f"{number:04}.jsonl.gz", "rt") as lines:
        for line in lines:
            table, row = json.loads(line)
            tables[table].append(row)
    return tables


def fill(url: str, number: int) -> None:
    """A store as programs of that number left it."""
    engine = open_engine(url)
    migrate(engine, MIGRATIONS[:number])
    for table, rows in rows_of(number).items():
        names = list(rows[0])
        for first in range(0, len(rows), 500):
            engine.insert(table, names, [[row[name] for name in names] for row in rows[first : first + 500]])
    engine.close()


def totals(store: Store, account: str) -> dict[str, object]:
    """Everything that the fixture's own program said of an account."""
    committed = store.ledger.committed(account, FIRST, END)
    keys = ("namespace", "pod", "service", "node", "label:team", "day", "hour", "instance_type", "cluster")
    return {
        "hours": {str(hour): marker.total for hour, marker in committed.hours.items()},
        "by": {
            key: sorted(
                [*map(str, one.keys), one.total]
                for one in store.summaries.sums(account, FIRST, END, (key,), Filters()).sums
            )
            for key in keys
        },
        "assets": [
            asset.name for asset in store.assets.read(account, list(store.assets.days(account, FIRST, END).values()))
        ],
        "gaps": sorted(store.gaps.of(account, FIRST, END)),
    }


@pytest.fixture(params=[1])
def old_store(request: pytest.FixtureRequest, store_url: str) -> Iterator[tuple[int, str]]:
    fill(store_url, request.param)
    yield request.param, store_url


def expected(number: int) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((FIXTURES / f"{number:04}.totals.json").read_text())
    return found


def test_a_store_of_an_earlier_schema_keeps_its_totals_and_goes_on(old_store):
    number, url = old_store
    store = open_store(url, lambda: NOW)
    try:
        for account, said in expected(number).items():
            assert totals(store, account) == said
            added = HourBatch(account=account, hour=END - 5 * HOUR, allocations=[allocation("late", 8.0)])
            store.ledger.commit([added], FencedWriter(9))
            after = store.ledger.committed(account, FIRST, END)
            assert len(after.hours) == len(said["hours"]) + 1
            assert store.ledger.committed(account, FIRST, END).hours[END - 5 * HOUR].currency == "USD"
    finally:
        store.close()


@pytest.mark.parametrize("done", range(len(MIGRATIONS[1].steps)))
def test_a_migration_that_was_ended_half_way_is_finished_by_the_next_start(store_url, done):
    fill(store_url, 1)
    engine = open_engine(store_url)
    for step in MIGRATIONS[1].steps[:done]:
        step.apply(engine)
    step = MIGRATIONS[1].steps[done]
    if isinstance(step, AddColumns):  # ended between two columns of one table
        AddColumns(step.table, step.columns[:1]).apply(engine)
    engine.close()
    store = open_store(store_url, lambda: NOW)
    for account, said in expected(1).items():
        assert totals(store, account) == said
    store.close()


def newer(readable_from: int) -> Migration:
    number = len(MIGRATIONS) + 1
    return Migration(
        number=number,
        readable_from=readable_from,
        steps=(AddColumns(ALLOCATIONS.name, (("from_the_future", "Float64", "0"),)),),
    )


def test_programs_of_two_numbers_work_side_by_side(store_url):
    ours = open_store(store_url, lambda: NOW)
    if ours.engine.alone:
        pytest.skip("one process owns an embedded store")
    theirs = Store(open_engine(store_url), lambda: NOW, (*MIGRATIONS, newer(len(MIGRATIONS))))
    theirs.migrate()
    account = "5635f99d-4dc6-4e31-891f-4e8990925c83"
    hours = range(END - DAY, END, HOUR)
    failures: list[Exception] = []

    def write(store: Store, mine: list[int], writer: FencedWriter) -> None:
        try:
            for hour in mine:
                store.ledger.commit(
                    [HourBatch(account=account, hour=hour, allocations=[allocation("web", 2.0, hour=hour)])], writer
                )
        except Exception as failure:  # noqa: BLE001  (told by the main thread)
            failures.append(failure)

    workers = [
        threading.Thread(target=write, args=(ours, list(hours)[::2], FencedWriter(1))),
        threading.Thread(target=write, args=(theirs, list(hours)[1::2], FencedWriter(2))),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    for store in (ours, theirs):
        answer = store.summaries.sums(account, END - DAY, END, (), Filters())
        assert answer.sums[0].total == 24 * 3.25
    ours.close()
    again = open_store(store_url, lambda: NOW)  # of the older number, started beside the newer one
    assert len(again.ledger.committed(account, END - DAY, END).hours) == 24
    again.close()
    theirs.close()


def test_a_store_that_needs_a_newer_program_is_refused_in_one_line(store_url):
    engine = open_engine(store_url)
    number = len(MIGRATIONS) + 1
    migrate(engine, (*MIGRATIONS, newer(number)))
    with pytest.raises(StoreError, match=rf"schema is number {number}.*upgrade") as refused:
        migrate(engine, MIGRATIONS)
    assert "\n" not in str(refused.value)
    engine.close()


def test_eight_programs_that_start_at_once_make_one_schema(store_url):
    engines = [open_engine(store_url)] * 8
    fill_first = threading.Barrier(8)
    failures: list[Exception] = []

    def start(engine) -> None:
        fill_first.wait()
        try:
            migrate(engine, MIGRATIONS)
        except Exception as failure:  # noqa: BLE001  (told by the main thread)
            failures.append(failure)

    starting = [threading.Thread(target=start, args=(engine,)) for engine in engines]
    for one in starting:
        one.start()
    for one in starting:
        one.join()
    assert not failures
    for step in (step for migration in MIGRATIONS for step in migration.steps):
        table = step.table if isinstance(step, AddColumns) else step.name
        names = step.columns if isinstance(step, CreateView) else [column[0] for column in step.columns]
        assert set(names) <= set(columns_of(engines[0], table))
    engines[0].close()


ROWS = int(os.environ.get("STORE_ROWS", "200000"))
"""How large a store is migrated; ``make test-long`` takes 7.2 million rows, a month of 10,000 pods."""
AT_MOST_SECONDS = 60
COPIED = ("k8s_allocations", "k8s_extractions", "k8s_cost_summaries", "k8s_summary_builds")


def copy_of(account: str, number: int) -> str:
    return f"{account[:24]}{number:012}"


def fill_large(url: str, rows: int) -> int:
    """A store of number 1 with many accounts, each a copy of one of the fixture's; how many copies of each."""
    fill(url, 1)
    copies = rows // len(rows_of(1)["k8s_allocations"])
    columns = defaultdict(list)
    for table, name, _ in resulting_columns(MIGRATIONS[:1]):
        columns[table].append(name)
    copied = "concat(substring(account, 1, 24), substring(toString(1000000000000 + copy), 2))"
    engine = open_engine(url)
    for table in COPIED:
        named = ", ".join(columns[table])
        shown = ", ".join(copied if name == "account" else name for name in columns[table])
        engine.command(f"INSERT INTO {table} ({named}) SELECT {shown} FROM {table} ARRAY JOIN range({copies}) AS copy")
    engine.close()
    return copies


@pytest.mark.parametrize("store_url", ["embedded", "server"], indirect=True)
@pytest.mark.parametrize("killed_after", [None, 0.7, 1.5])
def test_a_large_store_opens_in_under_a_minute_killed_on_the_way_or_not(store_url, killed_after):
    copies = fill_large(store_url, ROWS)
    if killed_after is not None:
        first = subprocess.Popen([sys.executable, "-c", OPEN_STORE, store_url], cwd=FIXTURES.parent.parent.parent)
        with suppress(subprocess.TimeoutExpired):
            first.wait(killed_after)  # where it was ready before, there is nothing to kill
        first.kill()
        first.wait(20)
    began = time.monotonic()
    store = open_store(store_url, lambda: NOW)
    took = time.monotonic() - began
    try:
        assert took < AT_MOST_SECONDS, f"{took:.1f} s"
        for account, said in expected(1).items():
            for number in (0, copies - 1):
                found = totals(store, copy_of(account, number))
                assert (found["hours"], found["by"]) == (said["hours"], said["by"])
    finally:
        store.close()
