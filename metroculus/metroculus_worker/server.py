"""The worker's wiring: its rounds, their schedules, and an address that tells how it is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC
from functools import partial
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from tornado.web import Application

from metroculus.codes import CODES
from metroculus.config import MetroculusConfig, WorkerConfig
from metroculus.dependencies import Dependencies
from metroculus.metroculus_worker.metrics import WorkerMetrics
from metroculus.metroculus_worker.ownership import FileOwners, Owners
from metroculus.metroculus_worker.worker import Worker
from tools.tornado_service.application import make_application
from tools.tornado_service.service import Service
from tools.version import VERSION

log = logging.getLogger("worker")

JOBS_SECONDS = 1
SAVINGS_SECONDS = 3600
"""Between two looks at which clusters' savings of the last day are not stored yet."""
DUE_SECONDS = 2
"""Between two looks at whether anything is due, which ask nobody."""


Round = Callable[[], Coroutine[Any, Any, Any]]


@dataclass
class WorkerService:
    """A wired worker; ``start`` begins its rounds, ``stop`` lets what is being written be written."""

    application: Application
    service: Service
    worker: Worker
    config: WorkerConfig
    scheduler: AsyncIOScheduler = field(default_factory=lambda: AsyncIOScheduler(timezone=UTC))
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def start(self) -> None:
        """Catch up at once, then keep to the schedules; call on the loop."""
        rounds: dict[str, tuple[Callable[[], Coroutine[Any, Any, Any]], str]] = {
            "extract": (self.worker.extract_all, self.config.extract_schedule),
            "assets": (self.worker.assets_all, self.config.assets_schedule),
            "aggregate": (self.worker.aggregate_all, self.config.aggregate_schedule),
            "clean": (self.worker.clean, self.config.cleanup_schedule),
        }
        for name, (run, cron) in rounds.items():
            self._add(name, run, CronTrigger.from_crontab(cron, timezone=UTC))
        for run, seconds in (
            (self.extract, DUE_SECONDS),
            (self.worker.savings_all, SAVINGS_SECONDS),
            (self.worker.work_off, JOBS_SECONDS),
        ):
            self._launch(partial(self._repeat, run, seconds))
        self.scheduler.start()
        for name in ("extract", "assets", "aggregate"):
            self._launch(rounds[name][0])

    def _add(self, name: str, run: Callable[[], Coroutine[Any, Any, Any]], trigger: Any) -> None:
        """A round that is late is run once, and a long one does not hold up the next of other clusters."""

        async def fire() -> None:
            self._launch(run)

        self.scheduler.add_job(
            fire, trigger, id=name, coalesce=True, misfire_grace_time=None, max_instances=1, replace_existing=True
        )

    async def _repeat(self, run: Round, seconds: float) -> None:
        """Start ``run`` every so many seconds, by the loop's clock: setting the wall clock does not stop it."""
        while True:
            self._launch(run)
            await asyncio.sleep(seconds)

    def _launch(self, run: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a round failed", exc_info=task.exception())

    async def extract(self) -> None:
        """A round of extraction, where there is anything to do."""
        if self.worker.has_work():
            await self.worker.extract_all()

    async def stop(self) -> None:
        """End the rounds; what is committed stays, what is not is never seen."""
        if self.scheduler.running:
            self.scheduler.shutdown(wait=False)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.worker.close()


def make_worker(
    config: MetroculusConfig,
    dependencies: Dependencies,
    owners: Owners | None = None,
    clock: Callable[[], float] = time.time,
) -> WorkerService:
    """Put the worker together over dependencies that are there already.

    Raises:
        ValueError: there is no store to keep history in.
    """
    if dependencies.store is None:
        raise ValueError("a worker needs a store")
    logging.getLogger("apscheduler").setLevel(logging.WARNING)  # a line a second says nothing
    if dependencies.accounts.one_cluster:
        log.warning("KUBECOST_ACCOUNT_ID is not set: history is kept only of accounts that were back-filled")
    settings = config.worker
    store = dependencies.store

    def ready() -> dict[str, str]:
        states = {"store": "ok" if store.failed is None else "failing"}
        for account in sorted({*worker.states, *worker.failing}):
            state = worker.states.get(account)
            lagging = state is None or state.gaps > 0
            by_fallback = state is not None and state.by_fallback > 0
            stands = "gaps" if lagging else "told by another source" if by_fallback else "ok"
            states[account] = (
                "not answering" if account in worker.silent else "failing" if account in worker.failing else stands
            )
        return states

    service = Service("metroculus-worker", VERSION, CODES, ready, clock=clock)
    metrics = WorkerMetrics(service.registry, clock)
    dependencies.http.observers.append(metrics.called)
    worker = Worker(
        store,
        dependencies.accounts,
        owners or FileOwners(config.data_dir / "locks"),
        metrics,
        clock,
        config.kubecost_timeout,
        settings.retention_days,
        settings.parallel,
    )
    return WorkerService(make_application(service, []), service, worker, settings)
