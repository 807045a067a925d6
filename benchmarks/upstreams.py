"""Clusters whose sources take time, or never answer: what an organization waits for, and what the others wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

from benchmarks.figures import ROUNDS, Declared
from benchmarks.stacks import stack_in, worker_in
from benchmarks.upstream_server import END, UpstreamServer, upstreams
from metroculus.metroculus_worker.backfill import Progress
from metroculus.metroculus_worker.server import WorkerService
from metroculus.metroculus_worker.tasks import TaskResult
from metroculus.sources.answers.allocation_json import decode_allocation
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.registry.protocol import Credentials
from simulator.world import DAY, HOUR
from tests.support import Stack, ask, link_cluster, make_tenant
from tools.deadline import Deadline

DELAY = 0.2
CLUSTERS = 50
WELL = 48
DEADLINE, PATIENCE = 10.0, 120.0
LARGE_COPIES, LARGE_DAYS, LARGE_PARALLEL = 150, 7, 2
SETTLED = 20 * 60
FOLDER = Path("build/bench-upstreams")
Asked = tuple[str, tuple[tuple[str, str], ...]]
"""Path and query of a question to a source."""

FIGURES = (
    Declared(
        "live_of_50_to_one_answer", "ratio",
        "the list of 50 clusters of which nothing is stored, whose sources answer after 200 ms, to those 200 ms",
        at_most=1.25,
    ),
    Declared(
        "hour_beside_a_silent_source", "ratio",
        "until the last of 48 clusters has its hour while the source of another falls silent, to the same without it",
        at_most=1.2,
    ),
    Declared(
        "hour_beside_12_silent_sources", "ratio", "the same while the sources of 12 others fall silent at once",
        at_most=1.2,
    ),
    Declared(
        "committed_to_decoding", "ratio",
        "a back-fill of a week from the bytes of its answers to committed rows, to decoding those answers alone",
        at_most=1.3,
    ),
)  # fmt: skip


def measure() -> dict[str, float]:
    with upstreams(delay=DELAY) as server:
        server.set_clock(END)
        with stack_in(FOLDER) as stack:
            found = {"live_of_50_to_one_answer": _list_seconds(stack, server) / DELAY}
        for name, silent in (("hour_beside_a_silent_source", 1), ("hour_beside_12_silent_sources", 12)):
            found[name] = asyncio.run(_lateness(server, silent))
    with upstreams(LARGE_COPIES, days=LARGE_DAYS + 1) as server:
        server.set_clock(END + SETTLED)
        found["committed_to_decoding"] = asyncio.run(_committed_to_decoding(server))
    return found


def _list_seconds(stack: Stack, server: UpstreamServer) -> float:
    """For an organization's list of clusters, each of whose windows was never asked for."""
    running: Any = stack.start(clickhouse_url=f"embedded:{FOLDER / 'store'}", rounds=False)
    tenant = make_tenant(running, "acme")
    for number in range(CLUSTERS):
        link_cluster(stack, running, tenant.organization_id, f"c{number}", "kubecost", server.url_of(f"c{number}"))
    taken = []
    for hours in range(2 * ROUNDS + 1):
        window = f"{END - DAY - hours * HOUR},{END - hours * HOUR}"
        began = time.perf_counter()
        path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters?window={window}"
        answer = ask(running, tenant.tokens["viewer"], path)
        taken.append(time.perf_counter() - began)
        told = answer.json()
        assert answer.status_code == 200 and told["complete"] is True, answer.text
    return median(taken[1:])  # the first also asks each source what it is


async def _committed_to_decoding(server: UpstreamServer) -> float:
    """Seconds until a back-fill has committed its last hour, to those of decoding its answers one after the other."""
    window = (END - LARGE_DAYS * DAY, END)
    accounts = [str(UUID(int=number, version=4)) for number in range(ROUNDS + 2)]
    kept: dict[Asked, bytes] = {}
    filled = []
    async with worker_in(FOLDER, lambda: END + SETTLED, PATIENCE) as (service, dependencies):
        _keep_answers(dependencies.http, kept)
        for account in accounts:
            await dependencies.registry.put(account, "kubecost", server.url_of(account), Credentials())
            began = time.perf_counter()
            committed_at: list[float] = []

            def note(progress: Progress, noted: list[float] = committed_at) -> None:
                if progress.complete:
                    noted.append(time.perf_counter())

            await service.worker.fill(account, window, LARGE_PARALLEL, note)
            filled.append(committed_at[0] - began)
        decoded = [await asyncio.to_thread(_decoding_seconds, kept) for _ in range(ROUNDS)]
    return median(filled[2:]) / median(decoded)  # the first asks the source, the second starts what decodes


def _keep_answers(http: SourceHttp, kept: dict[Asked, bytes]) -> None:
    """Every answer is had of the source once, and from memory after that, whichever cluster asks."""
    get = http.get

    async def known(upstream: Upstream, path: str, params: Mapping[str, str], deadline: Deadline) -> bytes:
        asked = (path, tuple(params.items()))
        if asked not in kept:
            kept[asked] = await get(upstream, path, params, deadline)
        return kept[asked]

    http.get = known  # type: ignore[method-assign]


def _decoding_seconds(kept: Mapping[Asked, bytes]) -> float:
    began = time.perf_counter()
    for (path, params), body in kept.items():
        if path.endswith("/allocation"):
            aggregate = dict(params).get("aggregate", "")
            decode_allocation("kubecost", body, tuple(filter(None, aggregate.split(","))))
    return time.perf_counter() - began


async def _lateness(server: UpstreamServer, silent: int) -> float:
    """Seconds from the turn of an hour until each of the others has it, to the same an hour before the silence."""
    now = END - DAY + SETTLED
    accounts = [str(UUID(int=number, version=4)) for number in range(WELL + silent)]
    falls_silent = accounts[:: len(accounts) // silent][:silent]
    others = set(accounts).difference(falls_silent)
    async with worker_in(FOLDER, lambda: now, DEADLINE) as (service, dependencies):
        for account in accounts:
            await dependencies.registry.put(account, "kubecost", server.url_of(account), Credentials())

        async def hour() -> float:
            nonlocal now
            now += HOUR
            server.set_clock(now)
            return await _seconds_until_told(service, others)

        server.silence([])
        server.set_clock(now)
        await service.worker.extract_all()
        well = median([await hour() for _ in range(ROUNDS)])
        server.silence(falls_silent)
        return await hour() / well


async def _seconds_until_told(service: WorkerService, accounts: set[str]) -> float:
    """How long a round takes until the last of these accounts has its hours; the round itself is waited for, too."""
    left = set(accounts)
    began = time.perf_counter()
    taken = 0.0
    record = service.worker.record

    def noting(result: TaskResult) -> None:
        nonlocal taken
        record(result)
        if result.task.kind == "extract" and result.task.account in left:
            assert result.failure is None and result.due_at is not None, result
            left.discard(result.task.account)
            taken = time.perf_counter() - began

    service.worker.record = noting  # type: ignore[method-assign]
    try:
        await service.worker.extract_all()
    finally:
        service.worker.record = record  # type: ignore[method-assign]
    if left:
        raise RuntimeError(f"{len(left)} clusters were not due")
    return taken
