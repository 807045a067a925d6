"""A store that is down, full or killed mid-write: nothing is half visible, and it goes on by itself."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from metroculus.metroculus_worker.worker import STORE_RETRY_SECONDS
from metroculus.storage.embedded import EmbeddedEngine
from metroculus.storage.engine import StoreError, StoreOwned
from metroculus.storage.history import Filters
from metroculus.storage.ledger import FencedWriter, HourBatch
from metroculus.storage.migrations import MIGRATIONS
from metroculus.storage.migrations.runner import migrate
from metroculus.storage.store import Store, open_store
from simulator.costs import truth
from simulator.server import Habits
from tests.stores import OPEN_STORE, allocation
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, Metroculus, Stack, exact_world, until

ROWS = 20_000


def hour_of(number: int, rows: int = ROWS) -> HourBatch:
    hour = END - (number + 1) * HOUR
    pods = [allocation(f"web-{n}-{number}-{'x' * 40}", 1.0 + n, hour=hour) for n in range(rows)]
    return HourBatch(account=ACCOUNT, hour=hour, allocations=pods, fetched_at=NOW)


def whole(store: Store) -> set[int]:
    """The hours that can be seen, each of them whole."""
    committed = store.ledger.committed(ACCOUNT, END - 400 * HOUR, END)
    measured = store.history.sums(committed, ("hour",), Filters())
    sums = {one.keys[0]: one.total for one in measured}
    assert sums == {hour: marker.total for hour, marker in committed.hours.items()}
    return set(committed.hours)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        message = "a small tmpfs cannot be mounted here: run as root"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_shows_nothing_half_and_heals_with_room(small_disk: Path) -> None:
    store = open_store(f"embedded:{small_disk / 'store'}", lambda: NOW)
    writer, stored = FencedWriter(1), set[int]()
    try:
        with pytest.raises(StoreError) as failure:
            for number in range(100):
                stored |= {m.hour for m in store.ledger.commit([hour_of(number)], writer)}
        assert "\n" not in str(failure.value)
        assert whole(store) >= stored, "what was acknowledged stays, also while the disk is full"
        assert store.failed is not None, "questions are answered, and nothing can be written: /readyz must say so"
        subprocess.run(["mount", "-o", "remount,size=400m", small_disk], check=True)
        first = len(stored)
        stored |= {m.hour for m in store.ledger.commit([hour_of(first), hour_of(first + 1)], writer)}
        assert whole(store) == stored and store.failed is None
    finally:
        store.close()


@pytest.mark.parametrize("schema", [0, 6])
def test_a_schema_is_not_changed_on_a_full_disk_and_the_store_opens_when_there_is_room(
    small_disk: Path, schema: int
) -> None:
    url = f"embedded:{small_disk / 'store'}"
    if schema:
        older = EmbeddedEngine(small_disk / "store")
        migrate(older, MIGRATIONS[:schema])
        older.close()
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(b"x" * 65536)
    for _ in range(2):
        with pytest.raises(StoreError, match="less than 8 MiB are free; make room first"):
            open_store(url, lambda: NOW)
    filler.unlink()
    store = open_store(url, lambda: NOW)
    store.ledger.commit([hour_of(0, 10)], FencedWriter(1))
    store.close()
    store = open_store(url, lambda: NOW)
    assert len(whole(store)) == 1
    store.close()


def test_an_engine_is_started_again_by_a_program_with_many_descriptors(tmp_path: Path) -> None:
    engine = EmbeddedEngine(tmp_path / "store")
    low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, high), high))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert engine.process_id is not None
        os.kill(engine.process_id, signal.SIGKILL)
        assert until(lambda: list(_answered(engine)) == [[1]])
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, high))
        engine.close()


def _answered(engine: EmbeddedEngine) -> list[Any]:
    try:
        return list(engine.query("SELECT 1"))
    except StoreError:  # the statement that its death was noticed by
        return []


@pytest.mark.parametrize("name", ["engine.lock", "owner.lock", f"block-{'0' * 32}"])
def test_a_store_that_could_not_be_opened_is_opened_by_the_same_program_later(tmp_path: Path, name: str) -> None:
    url, folder = f"embedded:{tmp_path / 'store'}", tmp_path / "store" / name
    folder.mkdir(parents=True)
    if name.endswith("lock"):
        with pytest.raises(StoreError, match=f"{name}|Is a directory"):
            open_store(url, lambda: NOW)
        folder.rmdir()
    open_store(url, lambda: NOW).close()


def test_an_engine_that_is_killed_mid_write_comes_back_with_the_next_call(tmp_path: Path) -> None:
    store = open_store(f"embedded:{tmp_path / 'store'}", lambda: NOW)
    engine: Any = store.engine
    assert isinstance(engine, EmbeddedEngine)
    writer, failed = FencedWriter(1), 0
    try:
        store.ledger.commit([hour_of(0, 100)], writer)

        def kill(process_id: int, after: float) -> None:
            """So long after rows were handed over."""
            assert until(lambda: any((tmp_path / "store").glob("block-*")))
            time.sleep(after)
            os.kill(process_id, signal.SIGKILL)

        for number in range(1, 6):
            large = hour_of(number, 60_000)
            killer = threading.Thread(target=kill, args=(engine.process_id, 0.01 * number))
            killer.start()
            try:
                store.ledger.commit([large], writer)
            except StoreError as failure:
                failed += 1
                assert "engine" in str(failure)
            killer.join()
            seen = whole(store)
            assert END - HOUR in seen
        assert failed, "none of the kills came in time"
        store.ledger.commit([hour_of(number, 100) for number in range(6)], writer)
        assert len(whole(store)) == 6
    finally:
        store.close()


def test_an_engine_that_died_while_nobody_asked_costs_no_commit(tmp_path: Path) -> None:
    store = open_store(f"embedded:{tmp_path / 'store'}", lambda: NOW)
    engine: Any = store.engine
    try:
        for number in range(3):
            store.ledger.commit([hour_of(number, 100)], FencedWriter(number + 1))
            os.kill(engine.process_id, signal.SIGKILL)
            assert until(lambda: engine._process.poll() is not None)
        store.ledger.commit([hour_of(3, 100)], FencedWriter(4))
        assert len(whole(store)) == 4 and store.failed is None
        assert not list((tmp_path / "store").glob("block-*"))
    finally:
        store.close()


@pytest.mark.parametrize("engine_lives", (False, True))
def test_a_store_whose_program_was_killed_while_it_opened_it_is_opened_again(
    tmp_path: Path, engine_lives: bool
) -> None:
    folder = tmp_path / "store"
    for number in range(8):
        first = subprocess.Popen([sys.executable, "-c", OPEN_STORE, f"embedded:{folder}"], start_new_session=True)
        lock = folder / ("engine.lock" if engine_lives else "owner.lock")
        assert until(lambda file=lock: file.exists() and locked(file))  # type: ignore[misc]
        time.sleep(0.05 * number)  # any moment, from a lock that was just taken to a store that is about to be closed
        first.kill()
        first.wait(20)
        open_store(f"embedded:{folder}", lambda: NOW).close()


def test_a_store_is_refused_at_once_while_its_program_lives(tmp_path: Path) -> None:
    store = open_store(f"embedded:{tmp_path / 'store'}", lambda: NOW)
    try:
        os.kill(store.engine.process_id, signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(StoreOwned, match="in use by another process"):
            open_store(f"embedded:{tmp_path / 'store'}", lambda: NOW)
    finally:
        store.close()


def locked(file: Path) -> bool:
    """Whether somebody holds it; asked of the kernel, because a lock of our own would be in their way."""
    return f":{file.stat().st_ino} " in Path("/proc/locks").read_text()


def test_rows_that_a_killed_program_handed_over_are_removed_when_the_store_is_opened(tmp_path: Path) -> None:
    left = tmp_path / "store" / f"block-{'0' * 32}"
    open_store(f"embedded:{tmp_path / 'store'}", lambda: NOW).close()
    left.write_bytes(b"half")
    open_store(f"embedded:{tmp_path / 'store'}", lambda: NOW).close()
    assert not left.exists()


def test_a_killed_server_is_waited_for_and_the_worker_goes_on_by_itself(clickhouse: Any, stack: Stack) -> None:
    """Also: the service answers what it can while the store is away, and says that it is."""
    world = exact_world(days=2)
    simulator, url = stack.simulate(world, Habits(serves=frozenset({"kubecost"})))
    engine_url = clickhouse.url("going")
    admin = open_store(clickhouse.url(), lambda: NOW)
    admin.engine.command("CREATE DATABASE IF NOT EXISTS going")
    admin.close()
    clock = [NOW]
    running = stack.start(
        clickhouse_url=engine_url,
        kubecost_api_url=url,
        kubecost_account_id=ACCOUNT,
        rounds=False,
        clock=lambda: clock[0],
    )
    worker: Any = running.worker
    store: Any = running.metroculus.dependencies.store
    asked = {"cloud_account_id": ACCOUNT, "start_date": world.start, "end_date": END}
    true = truth(world, now=NOW, adjusted=True)["total_cost"]
    stack.thread.run(worker.worker.fill(ACCOUNT, (world.start, END - DAY), 1, lambda progress: None))
    clickhouse.stop(kill=True)
    try:
        stack.thread.run(worker.worker.extract_all())
        assert "could not be reached" in worker.worker.failing[ACCOUNT]
        live = Metroculus(running).get("kubecost_cluster_costs", **asked).json()
        assert live["total_cost"] == true and live["complete"] is False
        assert live["sources"][0] | {"warnings": []} == {
            "name": "store", "status": "unavailable", "fetched_at": None, "coverage": None,
            "error": "the store cannot be used", "warnings": [], "residual_bound": None,
        }  # fmt: skip
        expenses = Metroculus(running).get("k8s_expenses", **asked)
        assert (expenses.status_code, expenses.json()["error"]["error_code"]) == (503, "OM0025")
        assert "Retry-After" in expenses.headers
        ready = requests.get(f"{running.metroculus_listener.url}/readyz", timeout=10)
        assert (ready.status_code, ready.json()["dependencies"]["store"]) == (200, "failing")
    finally:
        clickhouse.start()
    clock[0] += STORE_RETRY_SECONDS
    stack.thread.run(worker.worker.extract_all())
    assert ACCOUNT not in worker.worker.failing
    simulator.habits.fail_with = (503, "down")
    after = Metroculus(running).get("kubecost_cluster_costs", **asked).json()
    assert (after["total_cost"], after["complete"]) == (true, True)
    assert len(store.ledger.committed(ACCOUNT, world.start, END).hours) == 48
    store.engine.command("DROP DATABASE going")


def test_a_service_starts_while_its_server_is_away_and_uses_it_when_it_is_back(clickhouse: Any) -> None:
    clickhouse.stop()
    store = open_store(clickhouse.url(), lambda: NOW)
    try:
        assert store.failed is not None and "could not be reached" in store.failed
        with pytest.raises(StoreError):
            store.migrate()
    finally:
        clickhouse.start()
    until = time.monotonic() + 20
    while True:
        try:
            store.migrate()
            break
        except StoreError:
            assert time.monotonic() < until
            time.sleep(0.1)
    assert store.ledger.committed(ACCOUNT, END - DAY, END).hours == {}
    store.close()


def test_without_the_engine_it_is_said_how_to_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "chdb.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.syspath_prepend(blocked)
    with pytest.raises(StoreError, match=r"pip install 'metroculus\[embedded\]'"):
        open_store(f"embedded:{tmp_path / 'store'}", lambda: NOW)


@pytest.mark.parametrize("kind", ["embedded", "server"])
def test_a_store_that_stands_still_mid_write_loses_nothing(kind: str, clickhouse: Any, tmp_path: Path) -> None:
    with clickhouse.database("slow") as url:
        store = open_store(url if kind == "server" else f"embedded:{tmp_path / 'store'}", lambda: NOW)
        process = clickhouse.process.pid if kind == "server" else store.engine.process_id  # type: ignore[attr-defined]
        stop = threading.Timer(0.1, os.kill, (process, signal.SIGSTOP))
        go_on = threading.Timer(2.5, os.kill, (process, signal.SIGCONT))
        began = time.monotonic()
        stop.start(), go_on.start()
        try:
            store.ledger.commit([hour_of(0, 60_000), hour_of(1, 60_000)], FencedWriter(1))
            assert time.monotonic() - began > 2.0, "it did not stand still in time"
            assert len(whole(store)) == 2
        finally:
            stop.join(), go_on.join()
            store.close()
