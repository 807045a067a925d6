"""The worker's wiring: its rounds, their schedules, and an address that tells how it is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from functools import partial
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from tornado.web import Application

from metroculus.codes import CODES
from metroculus.config import WORKER_ROLES, MetroculusConfig, WorkerConfig
from metroculus.dependencies import Dependencies
from metroculus.metroculus_worker.alerting import AlertRound
from metroculus.metroculus_worker.attempts import AttemptLog
from metroculus.metroculus_worker.influx import InfluxRound
from metroculus.metroculus_worker.metrics import WorkerMetrics
from metroculus.metroculus_worker.notify import Notifier
from metroculus.metroculus_worker.ownership import FileOwners, Owned, Owners
from metroculus.metroculus_worker.queue import QueueError, TaskQueue
from metroculus.metroculus_worker.task_runner import LocalExecutor, TaskRunner
from metroculus.metroculus_worker.tasks import TaskResult
from metroculus.metroculus_worker.worker import Worker
from metroculus.sources.accounts import Accounts
from metroculus.storage.engine import StoreError
from metroculus.storage.store import Store
from metroculus.watch.budgets import BudgetReader
from metroculus.watch.months import Months
from tools.tornado_service.application import make_application
from tools.tornado_service.service import Service
from tools.version import VERSION

log = logging.getLogger("worker")

JOBS_SECONDS = 1
INBOX_SECONDS = 3
"""Between two looks at whether anything was pushed."""
SAVINGS_SECONDS = 3600
"""Between two looks at which clusters' savings of the last day are not stored yet."""
DUE_SECONDS = 2
"""Between two looks at whether anything is due, which ask nobody."""
ALERTS_SECONDS = 60
COMPARE_SECONDS = 600
"""Between two looks at which clusters' last day was not held against their metrics yet."""
INFLUX_SECONDS = 30
"""Between two looks at what an InfluxDB was not told yet."""
LIVE_SECONDS = 5
"""Between two looks at whether a minute has begun."""
SWEEP_LIVE_SECONDS = 3600
NOTIFY_SECONDS = 5
"""Between two looks at whether any alert is still to be sent."""
LEAD_SECONDS = 5
"""Interval at which a worker tries to lead."""
COUNT_SECONDS = 15
ROUNDS = "rounds"
"""The name that the leading worker owns."""

Round = Callable[[], Coroutine[Any, Any, Any]]


@dataclass
class WorkerService:
    """A wired worker; ``start`` begins its rounds, ``stop`` lets what is being written be written.

    With a queue one of the workers leads: it makes the rounds, and all of them execute tasks.
    """

    application: Application
    service: Service
    worker: Worker
    config: WorkerConfig
    metrics: WorkerMetrics
    owners: Owners
    store: Store
    alerts: AlertRound
    notifier: Notifier
    influx: InfluxRound
    queue: TaskQueue | None = None
    scheduler: AsyncIOScheduler = field(default_factory=lambda: AsyncIOScheduler(timezone=UTC))
    queue_failure: str | None = None
    _leadership: Owned | None = None
    """Held while this worker leads."""
    _leading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _counting: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _repeated: list[asyncio.Task[Any]] = field(default_factory=list)

    def start(self) -> None:
        """Catch up at once, then keep to the schedules; call on the loop."""
        self.scheduler.start()
        if self.queue is None:
            self._begin_rounds(self.config.roles)
        else:
            self._launch(partial(self.queue.open, self.config.roles, self.worker.runner.run))
            self._launch(partial(self._repeat, self._count_messages, COUNT_SECONDS))
            self._launch(partial(self._repeat, self._lead, LEAD_SECONDS))

    def _begin_rounds(self, roles: Sequence[str]) -> None:
        """Make the rounds of these roles."""
        self.alerts.active = True
        self.metrics.makes_rounds.set(1)
        extracts, aggregates = "extractor" in roles, "aggregator" in roles
        worker, config = self.worker, self.config
        at_once: list[Round] = []
        for wanted, name, run, cron, begins in (
            (extracts, "extract", worker.extract_all, config.extract_schedule, True),
            (extracts, "assets", worker.assets_all, config.assets_schedule, True),
            (aggregates, "aggregate", worker.aggregate_all, config.aggregate_schedule, True),
            (aggregates, "clean", worker.clean, config.cleanup_schedule, False),
        ):
            if wanted:
                self._add(name, run, CronTrigger.from_crontab(cron, timezone=UTC))
                at_once += [run] if begins else []
        repeated: list[tuple[Round, float]] = []
        if extracts:
            repeated += [
                (self.extract, DUE_SECONDS),
                (worker.look_into_inbox, INBOX_SECONDS),
                (worker.savings_all, SAVINGS_SECONDS),
                (worker.work_off, JOBS_SECONDS),
                (self.alerts.evaluate, ALERTS_SECONDS),
                (self.alerts.compare_days, COMPARE_SECONDS),
                (self.notifier.deliver, NOTIFY_SECONDS),
                (self.influx.send, INFLUX_SECONDS),
            ]
        if "processor" in roles:
            repeated += [(worker.live_all, LIVE_SECONDS), (worker.sweep_live, SWEEP_LIVE_SECONDS)]
        for run, seconds in repeated:
            self._repeated.append(self._launch(partial(self._repeat, run, seconds)))
        for run in at_once:
            self._launch(run)

    async def _lead(self) -> None:
        """Take over leadership where no other worker has it; give up where it was lost."""
        if self._leading.locked():
            return
        async with self._leading:
            if self._leadership is not None and not self._leadership.still():
                log.warning("this worker does not lead any more")
                self._leadership = None
                await self._end_rounds()
            if self._leadership is not None:
                return
            try:
                self._leadership = await self.store.run(self.owners.own, ROUNDS, self.store.highest_fence)
            except (OSError, StoreError) as failure:
                log.warning("leadership cannot be asked for: %s", failure)
            if self._leadership is not None:
                log.info("this worker leads")
                self.worker.reset()
                await self._queue().start_leading(self._leadership.writer.fence)
                self._begin_rounds(WORKER_ROLES)

    async def _end_rounds(self) -> None:
        self.alerts.active = False
        self.metrics.makes_rounds.set(0)
        self.metrics.quiet()
        for repeated in self._repeated:
            repeated.cancel()
        self._repeated.clear()
        self.scheduler.remove_all_jobs()
        await self._queue().stop_leading()
        self.worker.reset()

    def _queue(self) -> TaskQueue:
        assert self.queue is not None
        return self.queue

    async def _count_messages(self) -> None:
        if self._counting.locked():
            self.queue_failure = "RabbitMQ does not answer"
            return
        async with self._counting:
            try:
                self.metrics.queued(await self._queue().counts())
                self.queue_failure = None
            except QueueError as failure:
                self.queue_failure = str(failure)
                log.warning("%s", failure)

    def _add(self, name: str, run: Round, trigger: Any) -> None:
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

    def _launch(self, run: Round) -> asyncio.Task[Any]:
        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

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
        self.notifier.close()
        await self.alerts.close()
        await self.influx.close()
        if self._leadership is not None:
            await asyncio.to_thread(self._leadership.release)
        if self.queue is not None:
            await self.queue.close()
        self.worker.runner.close()


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
    _quieten()
    if dependencies.accounts.one_cluster:
        log.warning("KUBECOST_ACCOUNT_ID is not set: history is kept only of accounts that were back-filled")
    settings = config.worker
    store = dependencies.store

    def ready() -> dict[str, str]:
        states = {"store": "ok" if store.failed is None else "failing"}
        if queue is not None:
            states["queue"] = "ok" if running.queue_failure is None else "failing"
        return states | worker.cluster_states()

    service = Service("metroculus-worker", VERSION, CODES, ready, clock=clock)
    metrics = WorkerMetrics(service.registry, clock)
    dependencies.http.observers.append(metrics.called)
    owners = owners or FileOwners(config.data_dir / "locks")

    def record(result: TaskResult) -> None:
        worker.record(result)

    queue = TaskQueue(settings.queue_url, settings.parallel, record) if settings.queue_url is not None else None
    runner = TaskRunner(
        store,
        dependencies.accounts,
        owners,
        metrics,
        clock,
        config.kubecost_timeout,
        settings.retention_days,
        settings.purge_grace_days,
        settings.parallel,
        record if queue is None else queue.report,
        keep_ownership=queue is None,
    )
    executor = LocalExecutor(runner) if queue is None else queue
    attempts = AttemptLog(clock)
    worker = Worker(store, dependencies.accounts, executor, runner, metrics, clock, attempts)
    alone = owners if queue is None else None  # with a queue one worker leads, and alone makes rounds
    alerts = _make_alerts(config, store, dependencies.accounts, attempts, alone, metrics, clock)
    notifier = Notifier(store, config.alerts, metrics, alerts.owns, clock)
    influx = InfluxRound(store, config.influx, alone, metrics, clock)
    application = make_application(service, [])
    running = WorkerService(
        application, service, worker, settings, metrics, owners, store, alerts, notifier, influx, queue
    )
    return running


def _quieten() -> None:
    """A line a second, ten a connection, and a stack for each try while RabbitMQ is away say nothing."""
    for chatty, level in (("apscheduler", "WARNING"), ("dramatiq", "WARNING"), ("pika", "CRITICAL")):
        logging.getLogger(chatty).setLevel(level)


def _make_alerts(
    config: MetroculusConfig,
    store: Store,
    accounts: Accounts,
    attempts: AttemptLog,
    owners: Owners | None,
    metrics: WorkerMetrics,
    clock: Callable[[], float],
) -> AlertRound:
    return AlertRound(
        store,
        accounts,
        BudgetReader(accounts, store, Months(accounts, store, clock), clock),
        attempts,
        owners,
        metrics,
        clock,
        config.kubecost_timeout,
        config.alerts.store_bytes,
        config.alerts.targets,
    )
