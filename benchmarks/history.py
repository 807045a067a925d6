"""The store under a large cluster: 30 days of 1,000 namespaces with 10 pods each, 7.2 million rows."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path
from statistics import median

from metroculus.cost_model.allocation import Allocation, Amounts, Costs, Egress, Filters, Usage
from metroculus.storage.embedded import EmbeddedEngine
from metroculus.storage.ledger import HourBatch, Pen
from metroculus.storage.store import Store, open_store
from tools.window import DAY, HOUR

END = 1795219200
NAMESPACES, PODS = 1_000, 10
FOLDER = Path("build/bench-store")
ACCOUNTS = ("5635f99d-4dc6-4e31-891f-4e8990925c83", "00000000-0000-4000-8000-00000000000b")
Figure = tuple[float, str, float, bool]


def decoded_hour(seed: int) -> list[Allocation]:
    """One hour as an answer decodes to, pod by pod."""
    rng = random.Random(seed)

    def figure() -> float:
        """Upstream rounds to five decimals."""
        return round(rng.random(), 5)

    return [
        Allocation(
            name=f"cluster-one/node-{n % 200}/ns-{n % NAMESPACES}/pod-{n}/main",
            namespace=f"ns-{n % NAMESPACES}",
            controller=f"web-{n % NAMESPACES}",
            controller_kind="deployment",
            pod=f"web-{n % NAMESPACES}-5d8c7f-{n:05d}",
            container="main",
            node=f"node-{n % 200}",
            cluster="cluster-one",
            services=("web",),
            labels={"app": "web", "team": f"team-{n % 40}"},
            start=END - HOUR,
            end=END,
            costs=Costs(cpu=figure(), ram=figure(), pv=figure(), network=figure()),
            egress=Egress(internet=figure()),
            usage=Usage(figure() * 60, figure() * 60, figure() * 60, figure() * 60),
            amounts=Amounts(figure(), figure()),
        )
        for n in range(NAMESPACES * PODS)
    ]


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def history(days: int = 30) -> dict[str, Figure]:
    """Ingest day by day, then ask; a question's time is the best of several, which the machine disturbed least."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    store = open_store(f"embedded:{FOLDER}")
    engine = store.engine
    assert isinstance(engine, EmbeddedEngine)
    hours = [decoded_hour(seed) for seed in range(4)]
    pen, start, rows = Pen(1), END - days * DAY, 0
    taken: list[float] = []
    memory: list[float] = []
    for day in range(start, END, DAY):
        batches = [
            HourBatch(account=ACCOUNTS[0], hour=hour, allocations=hours[hour // HOUR % 4], management=0.1)
            for hour in range(day, day + DAY, HOUR)
        ]
        began = time.perf_counter()
        store.ledger.commit(batches, pen)
        taken.append(time.perf_counter() - began)
        rows += sum(batch.rows for batch in batches)
        assert engine.process_id is not None
        memory.append(resident_mib(os.getpid()) + resident_mib(engine.process_id))
        print(f"\r  stored {rows:,} rows", end="", flush=True)
    print()
    _settle(store)
    early = max(memory[4:10])
    by_rows = _best_ms(lambda: store.history.measured(
        store.ledger.held(ACCOUNTS[0], start, END), ("namespace", "day"), Filters()
    ))  # fmt: skip
    week = _best_ms(lambda: store.history.measured(
        store.ledger.held(ACCOUNTS[0], END - 7 * DAY, END), ("namespace", "day"), Filters()
    ))  # fmt: skip
    began = time.perf_counter()
    store.summaries.rebuild(ACCOUNTS[0], start, END, pen)
    summing = time.perf_counter() - began
    _settle(store)
    by_summaries = _best_ms(lambda: store.summaries.measured(ACCOUNTS[0], start, END, ("namespace",), Filters()))
    by_day = _best_ms(lambda: store.summaries.measured(ACCOUNTS[0], start, END, ("namespace", "day"), Filters()))
    store.ledger.commit([HourBatch(account=ACCOUNTS[1], hour=END - HOUR, allocations=hours[0])], pen)
    small = _best_ms(lambda: store.history.measured(
        store.ledger.held(ACCOUNTS[1], END - HOUR, END), ("namespace",), Filters()
    ))  # fmt: skip
    size = store.maintenance.bytes_on_disk()
    store.close()
    shutil.rmtree(FOLDER)
    return {
        "ingest_rows_per_second": (rows / days / median(taken), "rows/s", 250_000.0, True),
        "ingest_with_all_merges": (rows / sum(taken), "rows/s", 0.0, True),
        "ingest_memory_late_to_early": (max(memory[-6:]) / early, "ratio", 1.15, False),
        "namespaces_by_day_from_rows": (by_rows, "ms", 300.0, False),
        "a_week_of_them_to_30_days": (week / by_rows, "ratio", 0.6, False),
        "namespaces_from_summaries": (by_summaries, "ms", 30.0, False),
        "namespaces_by_day_from_summaries": (by_day, "ms", 0.0, False),
        "one_hour_of_another_account": (small, "ms", 0.0, False),
        "rebuild_all_summaries": (summing, "s", 0.0, False),
        "store_bytes_per_row": (size / rows, "bytes", 0.0, False),
    }


def _settle(store: Store) -> None:
    """Wait until the engine has merged what was just written, a minute at most."""
    for _ in range(600):
        ((merging,),) = store.engine.query("SELECT count() FROM system.merges")
        if not merging:
            return
        time.sleep(0.1)


def _best_ms(work: object, times: int = 7) -> float:
    assert callable(work)
    measured = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        measured.append((time.perf_counter() - began) * 1000)
    return min(measured)
