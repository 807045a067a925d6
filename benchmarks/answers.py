"""A large answer, from its bytes to a statement: processor time, memory, and what the loop's other callers see.

The answer is a week of 10,000 pods, 70,000 rows. ``json.loads`` of the same bytes is the limit it is held against.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import requests

from benchmarks.figures import ROUNDS, Declared
from benchmarks.servers import serving
from benchmarks.stacks import SECRET
from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.assets import Asset
from metroculus.cost_model.columns import Allocations
from metroculus.cost_model.components import Usage
from metroculus.cost_model.reading import AssetsReading, SourceReport, judge_sets
from metroculus.cost_model.reconcile import reconcile
from metroculus.cost_model.savings import idle_nodes, requested_by_node, unclaimed_volumes
from metroculus.cost_model.statement import Question
from metroculus.sources.answers.allocation_json import decode_allocation
from simulator import answers
from simulator.world import DAY, make_world
from standalone.running import single_machine, start
from tools.window import Window, iso

END = 1795219200
ACCOUNT = "5635f99d-4dc6-4e31-891f-4e8990925c83"
FOLDER = Path("build/bench-answers")
PODS, DAYS = 10_000, 7
BODY = Path("build/bench-answer.json")

FIGURES = (
    Declared(
        "statement_to_json_loads", "ratio",
        "processor time from the bytes of a large answer to its statement, to `json.loads` of the same bytes",
        at_most=0.40,
    ),
    Declared("statement_memory_to_body", "ratio", "peak memory of that, to the size of the answer", at_most=3.0),
    Declared("longest_healthz_ms", "ms", "the slowest `/healthz` while such an answer is read", at_most=50.0),
    Declared("savings_of_4000_nodes_ms", "ms", "which of 4,000 nodes with 40,000 pods could go", at_most=1000.0),
    Declared("savings_of_twice_the_nodes", "ratio", "the same of 8,000 nodes and 80,000 pods, to it", at_most=3.0),
)  # fmt: skip
WINDOW = Window.past(END - DAYS * DAY, END)
QUESTION = Question(cloud_account_id="bench", window=WINDOW, detail="pod")


def write_body(pods: int, days: int) -> int:
    """Days of many pods, copied from what the simulator gives for one; the answer's size in bytes."""
    world = make_world(days=2, end=END)
    rows = answers.allocation_rows(
        world, END - DAY, END, END, adjusted=True, aggregate=("namespace", "pod"), with_idle=True
    )
    some = [row for name, row in rows.items() if name[:2] != "__"]
    sets = []
    for day in range(END - days * DAY, END, DAY):
        dates = {"start": iso(day), "end": iso(day + DAY)}
        window = {"window": dates, **dates}
        many = {f"shop/pod-{n}": some[n % len(some)] | {"name": f"shop/pod-{n}"} | window for n in range(pods)}
        sets.append(many | {"__idle__": rows["__idle__"] | window})
    BODY.parent.mkdir(exist_ok=True)
    return BODY.write_bytes(json.dumps({"code": 200, "data": sets}).encode())


def measure() -> dict[str, float]:
    size = write_body(PODS, DAYS)
    limit, ours = [], []
    for _ in range(ROUNDS):
        limit.append(_child("json")["cpu"])
        ours.append(_child("statement"))
    found = {
        "statement_to_json_loads": median(one["cpu"] for one in ours) / median(limit),
        "statement_memory_to_body": median(one["peak"] for one in ours) / size,
    }
    write_body(PODS * DAYS, 1)
    found["longest_healthz_ms"] = asyncio.run(_longest_healthz())
    BODY.unlink()
    once, twice = (median(_savings_ms(nodes) for _ in range(ROUNDS)) for nodes in (4_000, 8_000))
    return found | {"savings_of_4000_nodes_ms": once, "savings_of_twice_the_nodes": twice / once}


def _savings_ms(nodes: int) -> float:
    """Milliseconds to say which of so many nodes could go, ten pods on each."""
    assets = tuple(
        Asset(type="node", name=f"node-{n}", cpu_cores=16.0, ram_bytes=64e9, hours=24.0, total_cost=20.0 + n % 7)
        for n in range(nodes)
    )
    pods = [
        Allocation(
            name=f"shop/pod-{n}", namespace="shop", pod=f"pod-{n}", node=f"node-{n % nodes}", start=END - DAY, end=END,
            usage=Usage(cpu_request=60.0 * 24 * (n % 3), ram_request=60.0 * 24 * 4e9),
        )
        for n in range(10 * nodes)
    ]  # fmt: skip
    reading = AssetsReading(source=SourceReport(name="assets", status="ok"), assets=assets)
    rows = Allocations.of(pods)
    began = time.perf_counter()
    idle_nodes(reading.assets, requested_by_node(rows))
    unclaimed_volumes(reading.assets)
    return 1000 * (time.perf_counter() - began)


def _child(what: str) -> dict[str, float]:
    """One run in a process of its own: processor seconds, and bytes of memory beyond what it began with."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.answers", what], capture_output=True, check=True)
    return dict(json.loads(done.stdout))


def _run(what: str) -> dict[str, float]:
    before = _peak()
    body = BODY.read_bytes()
    began = time.process_time()
    if what == "json":
        json.loads(body)
    else:
        decoded = decode_allocation("bench", body, ("namespace", "pod"))
        reconcile(QUESTION, judge_sets("allocation", decoded.sets, WINDOW, 0), None, [])
    return {"cpu": time.process_time() - began, "peak": _peak() - before}


def _peak() -> int:
    """Bytes resident at most so far; ``getrusage`` would count what the parent had before this process began."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def _longest_healthz() -> float:
    """The slowest of many health checks while one statement reads a large answer, in milliseconds."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    with serving("bare", str(BODY)) as upstream:
        plan = single_machine(
            FOLDER, SECRET, kubecost_api_url=upstream["url"], kubecost_flavour="kubecost", rounds=False
        )
        running = start(plan)
        url = running.metroculus_listener.url
        asking = asyncio.create_task(asyncio.to_thread(_ask_statement, url))
        longest = 0.0
        while not asking.done():
            longest = max(longest, await asyncio.to_thread(_healthz_ms, url))
        asking.result()
        await running.stop()
    return longest


def _ask_statement(url: str) -> None:
    path = f"/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&start_date={END - DAY}&end_date={END}"
    requests.get(f"{url}{path}&detail_level=summary", headers={"Secret": SECRET}, timeout=60).raise_for_status()


def _healthz_ms(url: str) -> float:
    began = time.perf_counter()
    requests.get(f"{url}/healthz", timeout=60)
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1])))
