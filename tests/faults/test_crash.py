"""Nothing lost, nothing twice: workers are killed, raced and paused, and every total stays the simulator's truth."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import lru_cache
from math import fsum
from pathlib import Path
from typing import Any

import pytest

from metroculus.storage.store import open_store
from simulator.costs import truth
from simulator.server import Habits
from simulator.world import World, make_world
from tests.support import DAY, END, HOUR, NOW, Stack

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "4"))
DAYS = int(os.environ.get("CRASH_DAYS", "2"))
FILLER = Path(__file__).with_name("filler.py")
ACCOUNTS = [f"00000000-0000-4000-8000-{n:012d}" for n in range(3)]
START = END - DAYS * DAY


@lru_cache
def worlds() -> tuple[World, ...]:
    return tuple(
        make_world(seed=n, days=DAYS, end=END, prime=prime, cluster_id=f"c{n}") for n, prime in enumerate((3, 5, 7))
    )


@lru_cache
def truth_of_hour(number: int, hour: int) -> float:
    total: Any = truth(worlds()[number], hour, hour + HOUR, now=NOW, adjusted=True)["total_cost"]
    return total


@pytest.fixture
def upstreams(stack: Stack) -> list[str]:
    return [stack.simulate(world, Habits(serves=frozenset({"kubecost"})))[1] for world in worlds()]


def command(store_url: str, folder: Path, upstreams: list[str], die_at: str = "-", *more: str) -> list[str]:
    pairs = [text for pair in zip(ACCOUNTS, upstreams, strict=True) for text in pair]
    stamps = [str(START), str(END), str(NOW)]
    return [sys.executable, str(FILLER), store_url, str(folder / "worker"), *stamps, die_at, *pairs, *more]


def what_is_stored_is_true(store_url: str) -> int:
    """Every hour that can be seen is whole and true; how many there are."""
    store = open_store(store_url, lambda: NOW)
    seen = 0
    try:
        for number, account in enumerate(ACCOUNTS):
            committed = store.ledger.committed(account, START, END)
            assert committed.passed_over == ()
            told, management = store.history.allocations(committed, ("pod",))
            true = fsum(truth_of_hour(number, hour) for hour in committed.hours)
            assert fsum([*(a.costs.total for a in told.allocations), management or 0.0]) == true
            assert fsum(marker.total for marker in committed.hours.values()) == true
            seen += len(committed.hours)
    finally:
        store.close()
    return seen


def finish(store_url: str, folder: Path, upstreams: list[str]) -> None:
    assert subprocess.run(command(store_url, folder, upstreams), timeout=120).returncode == 0
    assert what_is_stored_is_true(store_url) == 3 * DAYS * 24


ENGINES = pytest.mark.parametrize("store_url", ["embedded", "server"], indirect=True)


@ENGINES
def test_killed_at_random_moments(store_url: str, tmp_path: Path, upstreams: list[str]) -> None:
    rng = random.Random(4)
    seen = 0
    for _ in range(ROUNDS):
        process = subprocess.Popen(
            command(store_url, tmp_path, upstreams), stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None and process.stdout.readline() == b"filling\n"
        try:
            process.wait(rng.uniform(0.0, 0.6))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        assert process.wait(20) in (0, -signal.SIGKILL)
        process.stdout.close()
        stored = what_is_stored_is_true(store_url)
        assert stored >= seen, "an hour that was acknowledged is gone"
        seen = stored
    finish(store_url, tmp_path, upstreams)


@ENGINES
def test_killed_at_each_step(store_url: str, tmp_path: Path, upstreams: list[str]) -> None:
    """Rows, marker, assets, their marker, summaries, their marker: before and after each kind of write."""
    for step in ("1", "1+", "2", "2+", "3", "4+", "9", "14+", "20", "23+", "24"):
        killed = subprocess.run(command(store_url, tmp_path, upstreams, step), timeout=60)
        assert killed.returncode in (0, -signal.SIGKILL)
        what_is_stored_is_true(store_url)
    finish(store_url, tmp_path, upstreams)


@pytest.mark.parametrize("workers", [2, 8])
def test_workers_that_race_leave_one_truth(clickhouse: Any, tmp_path: Path, upstreams: list[str], workers: int) -> None:
    """No lock at all: the fence alone decides, and every hour is whole."""
    with clickhouse.database(f"race{workers}") as url:
        racing = [
            subprocess.Popen(command(url, tmp_path / str(n), upstreams, "-", "--no-lock")) for n in range(workers)
        ]
        assert [process.wait(120) for process in racing] == [0] * workers
        assert what_is_stored_is_true(url) == 3 * DAYS * 24


def test_a_second_process_is_refused_by_an_embedded_store(tmp_path: Path) -> None:
    from metroculus.storage.engine import StoreOwned

    url = f"embedded:{tmp_path / 'store'}"
    first = open_store(url, lambda: NOW)
    try:
        began = time.monotonic()
        with pytest.raises(StoreOwned, match="in use by another process"):
            open_store(url, lambda: NOW)
        assert time.monotonic() - began < 15
    finally:
        first.close()
    open_store(url, lambda: NOW).close()
