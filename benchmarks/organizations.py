"""An organization of 150 stored clusters: its list, months and expenses, and how long they hold the loop."""

from __future__ import annotations

import asyncio.events
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Declared
from benchmarks.stacks import stack_in
from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.components import Costs
from metroculus.storage.ledger import FencedWriter, HourBatch
from tests.support import DAY, END, HOUR, Stack, ask, link_pushed, make_tenant

CLUSTERS, DAYS, NAMESPACES = 150, 3, 10
FOLDER = Path("build/bench-organization")

FIGURES = (
    Declared("list_of_150_ms", "ms", "the list of 150 stored clusters, a day that nobody asked for", at_most=300),
    Declared("months_of_150_ms", "ms", "its months, none of which was read before", at_most=1000),
    Declared("months_again_of_150_ms", "ms", "its months again", at_most=300),
    Declared("expenses_of_150_ms", "ms", "its expenses with the statements beside them", at_most=300),
    Declared(
        "longest_callback_ms", "ms", "CPU time of the longest turn of the loop that both services share meanwhile",
        at_most=20,
    ),
)  # fmt: skip


def measure() -> dict[str, float]:
    with stack_in(FOLDER) as stack:
        return _measure(stack)


def _measure(stack: Stack) -> dict[str, float]:
    running: Any = stack.start(clickhouse_url=f"embedded:{FOLDER / 'store'}", rounds=False)
    tenant = make_tenant(running, "acme")
    store = running.metroculus.dependencies.store
    accounts = [link_pushed(stack, running, tenant.organization_id, f"c{number}") for number in range(CLUSTERS)]

    def fill(account: str) -> None:
        rows = [
            Allocation(
                name=f"ns-{n}", namespace=f"ns-{n}", pod=f"pod-{n}", node="node-1", costs=Costs(cpu=1.5, ram=0.5)
            )
            for n in range(NAMESPACES)
        ]
        writer, start = FencedWriter(1), END - DAYS * DAY
        hours = range(start, END, HOUR)
        store.ledger.commit(
            [HourBatch(account=account, hour=h, allocations=rows, management=0.1) for h in hours], writer
        )
        store.summaries.rebuild(account, start, END, writer)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(fill, accounts))
    organization = f"/restapi/v2/organizations/{tenant.organization_id}"

    def taken(path: str) -> float:
        began = time.perf_counter()
        answer = ask(running, tenant.tokens["viewer"], organization + path)
        assert answer.status_code == 200, answer.text
        return 1000 * (time.perf_counter() - began)

    windows = [(END - n * HOUR - DAY, END - n * HOUR) for n in range(12)]
    ask(running, tenant.tokens["viewer"], f"{organization}/kubecost/clusters?window={windows[11][0]},{windows[11][1]}")
    with longest_callback() as longest:
        lists = [taken(f"/kubecost/clusters?window={start},{end}") for start, end in windows[:5]]
        months = [
            taken(f"/kubecost/monthly?months=12&timezone={zone}") for count, zone in ((12, "UTC"), (12, "Asia/Tokyo"))
        ]
        again = [taken("/kubecost/monthly?months=12") for _ in range(5)]
        expenses = [taken(f"/clean_expenses?start_date={start}&end_date={end}") for start, end in windows[5:10]]
    return {
        "list_of_150_ms": median(lists),
        "months_of_150_ms": median(months),
        "months_again_of_150_ms": median(again),
        "expenses_of_150_ms": median(expenses),
        "longest_callback_ms": 1000 * max(longest),
    }


@contextmanager
def longest_callback() -> Iterator[list[float]]:
    """CPU seconds of each turn of every loop of this process that took longer than the ones before."""
    longest = [0.0]
    run: Callable[[Any], None] = asyncio.events.Handle._run

    def timed(handle: Any) -> None:
        began = time.thread_time()
        run(handle)
        took = time.thread_time() - began
        if took > longest[-1]:
            longest.append(took)

    asyncio.events.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield longest
    finally:
        asyncio.events.Handle._run = run  # type: ignore[method-assign]
