"""The store under a large cluster: 30 days of 1,000 namespaces with 10 pods each, 7.2 million rows."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.figures import Declared
from metroculus.cost_model.allocation import Allocation, Filters
from metroculus.cost_model.columns import Allocations
from metroculus.cost_model.components import Amounts, Costs, Egress, Usage
from metroculus.storage.columns import COST_COLUMNS
from metroculus.storage.embedded import EmbeddedEngine
from metroculus.storage.ledger import FencedWriter, HourBatch
from metroculus.storage.store import Store, open_store
from tools.window import DAY, HOUR

END = 1795219200
NAMESPACES, PODS = 1_000, 10
FOLDER = Path("build/bench-store")
ACCOUNT = "5635f99d-4dc6-4e31-891f-4e8990925c83"

FIGURES = (
    Declared(
        "ingest_to_insert", "ratio",
        "rows a second from decoded hours to committed ones, to the engine's own `INSERT … SELECT` of the same rows,"
        " day by day in turn",
        at_least=0.5,
    ),
    Declared("ingest_memory_late_to_early", "ratio", "memory of both processes late to early", at_most=1.15),
    Declared(
        "rows_to_plain_sql", "ratio",
        "namespace totals by day from rows, to the same sums by SQL without the batch rule",
        at_most=3.0,
    ),
    Declared("a_week_to_30_days", "ratio", "a week of them, to thirty days", at_most=0.6),
    Declared("summaries_to_plain_sql", "ratio", "namespace totals of 30 days from summaries, to that SQL", at_most=0.5),
    Declared("store_bytes_per_row", "bytes", "size on disk of a row of one container and hour"),
)  # fmt: skip


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


def measure(days: int = 30) -> dict[str, float]:
    """Ingest day by day, then ask; every question beside the same question asked of the engine by hand."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    store = open_store(f"embedded:{FOLDER}")
    engine = store.engine
    assert isinstance(engine, EmbeddedEngine)
    hours = [Allocations.of(decoded_hour(seed)) for seed in range(4)]
    writer, start, rows = FencedWriter(1), END - days * DAY, 0
    taken: list[float] = []
    own: list[float] = []
    memory: list[float] = []
    for day in range(start, END, DAY):
        batches = [
            HourBatch(account=ACCOUNT, hour=hour, allocations=hours[hour // HOUR % 4], management=0.1)
            for hour in range(day, day + DAY, HOUR)
        ]
        taken.append(_seconds(lambda batches=batches: store.ledger.commit(batches, writer)))
        own.append(_own_insert_seconds(engine, day))
        rows += sum(batch.rows for batch in batches)
        assert engine.process_id is not None
        memory.append(resident_mib(os.getpid()) + resident_mib(engine.process_id))
        print(f"\r  stored {rows:,} rows", end="", flush=True)
    print()
    engine.command("DROP TABLE bench_copy")
    _settle(store)
    found = {
        "ingest_to_insert": median(own) / median(taken),
        "ingest_memory_late_to_early": max(memory[-6:]) / max(memory[4:10]),
    }
    by_namespace_and_day = ("namespace", "day")
    plain = _median_seconds(lambda: list(engine.query(_plain_sql(start, END))))

    def from_rows(since: int) -> float:
        def ask() -> object:
            committed = store.ledger.committed(ACCOUNT, since, END)
            return store.history.sums(committed, by_namespace_and_day, Filters())

        return _median_seconds(ask)

    month = from_rows(start)
    found |= {"rows_to_plain_sql": month / plain, "a_week_to_30_days": from_rows(END - 7 * DAY) / month}
    store.summaries.rebuild(ACCOUNT, start, END, writer)
    _settle(store)
    summed = _median_seconds(lambda: store.summaries.sums(ACCOUNT, start, END, ("namespace",), Filters()))
    found |= {
        "summaries_to_plain_sql": summed / plain,
        "store_bytes_per_row": store.maintenance.bytes_on_disk() / rows,
    }
    store.close()
    shutil.rmtree(FOLDER)
    return found


def _plain_sql(start: int, end: int) -> str:
    """The sums of ``History.sums`` as somebody would write them who knows of no batches."""
    sums = ", ".join(f"sum({name})" for name in COST_COLUMNS)
    return (
        f"SELECT namespace, intDiv(toUInt32(hour), 86400) AS d, {sums} FROM k8s_allocations"
        f" WHERE account = '{ACCOUNT}' AND hour >= toDateTime({start}, 'UTC') AND hour < toDateTime({end}, 'UTC')"
        " GROUP BY namespace, d"
    )


def _own_insert_seconds(engine: EmbeddedEngine, day: int) -> float:
    """What the engine itself takes to insert a day's rows again, into a table of the same shape, which merges, too."""
    engine.command("CREATE TABLE IF NOT EXISTS bench_copy AS k8s_allocations")
    where = f"hour >= toDateTime({day}, 'UTC') AND hour < toDateTime({day + DAY}, 'UTC')"
    return _seconds(lambda: engine.command(f"INSERT INTO bench_copy SELECT * FROM k8s_allocations WHERE {where}"))


def _settle(store: Store) -> None:
    """Wait until the engine has merged what was just written, a minute at most."""
    for _ in range(600):
        ((merging,),) = store.engine.query("SELECT count() FROM system.merges")
        if not merging:
            return
        time.sleep(0.1)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _median_seconds(work: Callable[[], object], times: int = 5) -> float:
    return median(_seconds(work) for _ in range(times))
