"""Runs tasks: extraction of hours, assets and savings, back-fills, summaries and cleaning."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.live import LivePoint
from metroculus.metroculus_worker.backfill import Progress, Report, backfill, bounds, do_nothing
from metroculus.metroculus_worker.daily import extract_assets, extract_savings, settled_day
from metroculus.metroculus_worker.extract import Extractor, LostOwnership, Outcome, RepairOrder
from metroculus.metroculus_worker.metrics import Freshness, WorkerMetrics, freshness
from metroculus.metroculus_worker.ownership import Owned, Owners
from metroculus.metroculus_worker.slots import WITHOUT_SLOT, Slots
from metroculus.metroculus_worker.tasks import Kind, Task, TaskResult, role_of
from metroculus.plan import (
    CLOSED_AFTER_SECONDS,
    Stretch,
    arrived,
    day_of,
    due,
    last_complete_hour,
    next_due,
)
from metroculus.sources.accounts import Accounts
from metroculus.sources.errors import EntryUnreadable, NoMetricsSource, NoSource, RegistryError, SourceError
from metroculus.storage.engine import StoreError
from metroculus.storage.gaps import Gap
from metroculus.storage.inbox import PushedAnswer
from metroculus.storage.jobs import OPEN, Backfill, State
from metroculus.storage.ledger import CommittedHours
from metroculus.storage.store import Store
from tools.deadline import Deadline
from tools.window import DAY, HOUR, MINUTE

log = logging.getLogger("worker")

FAILURES = (SourceError, NoSource, StoreError, RegistryError, LostOwnership, OSError)
"""Failures of one cluster that do not affect the others."""
INTERNAL_FAILURES = (StoreError, RegistryError, OSError)
"""Failures that say nothing about the cluster's source."""

ROUND_SECONDS = 300.0
"""Time limit of one extraction task; hours that are still due are read by the next one."""
LIVE_SECONDS = 30.0
"""Time limit of reading a rate: the next minute is near."""
LIVE_AGAIN_SECONDS = HOUR
"""Minutes of which nothing is stored are asked for again for so long."""
LIVE_LATE_SECONDS = 15 * MINUTE
"""Minutes of which something lacks are asked for again for so long."""
CANCELLED_SECONDS = 2.0
"""Interval at which a running back-fill checks whether it was cancelled."""
NEWEST_RETRY_SECONDS = 60
"""A back-fill extracts the newest hours at most so often: a source that is silent costs a deadline each time."""
NOTE_SECONDS = 0.5
"""Interval at which the progress of a back-fill is stored."""
BACKFILLS_SHARE = 2
"""Back-fills and daily work run in a separate pool, half as large: a back-fill may take days."""
SILENT_SHARE = 4
"""Clusters whose source did not answer the last time run in a pool of a quarter, so that they delay no others."""
LIVE_SHARE = 3
"""Rates of the moment run in a pool of a third: an extraction may take minutes, and a rate is of this one."""
FAILING_LIVE_SHARE = 8
"""Rates that failed the last time keep nobody waiting: not other rates, and not the retries of extractions."""
SHARES = (1, BACKFILLS_SHARE, LIVE_SHARE, SILENT_SHARE, FAILING_LIVE_SHARE)
RETRIED_IN_SECONDS: tuple[Kind, ...] = ("extract", "backfills")


class NotOurs(Exception):
    """Another worker owns the cluster."""


class _OpenDays(Struct, frozen=True):
    """What was read of a cluster's days that may still change, and when."""

    read_at: int
    start: int
    shift: int
    committed: CommittedHours
    gaps: Mapping[int, Gap]

    def next_due(self, since: int) -> int:
        """When something of them is due next, where all that was due at ``since`` has been tried."""
        return next_due(self.start, since, self.read_at, self.committed.hours, self.gaps, self.shift)

    def freshness(self) -> Freshness:
        end = last_complete_hour(self.read_at)
        hours = {h: marker for h, marker in self.committed.hours.items() if h >= end - CLOSED_AFTER_SECONDS}
        tried = {h: gap for h, gap in self.gaps.items() if h >= end - CLOSED_AFTER_SECONDS}
        return freshness(hours, tried, len(self.committed.passed_over), end)


class _Arrived(Struct, frozen=True):
    """Answers that were pushed and are not stored yet, and what to read for their sake."""

    answers: tuple[PushedAnswer, ...] = ()
    stretches: tuple[Stretch, ...] = ()


class TaskRunner:
    """Runs tasks concurrently, in pools of bounded size; owns a cluster while it runs one of its tasks.

    Args:
        report: receives the result of each task, failed ones included.
        parallel: size of the largest pool.
        keep_ownership: whether a cluster stays owned between two tasks, where no other worker shares the work.
    """

    def __init__(
        self,
        store: Store,
        accounts: Accounts,
        owners: Owners,
        metrics: WorkerMetrics,
        clock: Callable[[], float],
        seconds_a_call: float,
        retention_days: int,
        purge_grace_days: int,
        parallel: int,
        report: Callable[[TaskResult], None],
        keep_ownership: bool = True,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._owners = owners
        self._metrics = metrics
        self._clock = clock
        self._seconds_a_call = seconds_a_call
        self._retention_days = retention_days
        self._purge_grace_days = purge_grace_days
        self._report_result = report
        self._keep_ownership = keep_ownership
        # A back-fill may run for days: after one slow answer it would run without a slot for all of them.
        self._pools = {
            share: Slots(pool_size(share, parallel), 0 if share == BACKFILLS_SHARE else WITHOUT_SLOT)
            for share in SHARES
        }
        self._due_at: dict[str, int] = {}
        """When the newest hours of a cluster are due next, of clusters whose tasks ran in this process."""
        self._busy: dict[str, asyncio.Lock] = {}
        self._owned: dict[str, Owned] = {}
        self._work: dict[Kind, Callable[[Task, Owned], Awaitable[None]]] = {
            "extract": self._extract,
            "assets": self._assets,
            "savings": self._savings,
            "backfills": self._backfills,
            "summaries": self._summaries,
            "clean": self._clean,
            "live": self._live,
        }
        self._live_points: dict[str, list[LivePoint]] = {}
        """By cluster what ``_still_open`` leaves of its stored rates."""
        self.extractor = Extractor(store, accounts, clock, seconds_a_call)

    async def run(self, task: Task) -> None:
        """Run a task and report its result, also where it fails.

        The pool is entered after the cluster's lock is held: a task that waits for its cluster takes no slot.

        Raises:
            NotOurs: the cluster is owned by another task or worker, and ownership is not kept: run the task later.
            Exception: a defect; it was reported, too.
        """
        name = _owner_name(task.kind, task.account)
        try:
            async with self._owning(name) as owned, self._pools[share_of(task.kind, task.silent)].slot():
                await self._work[task.kind](task, owned)
        except NotOurs:
            if not self._keep_ownership:
                raise
            self._report(task, owned=False)
        except FAILURES as failure:
            if isinstance(failure, (LostOwnership, RegistryError)):  # another worker may have the key that opens it
                await self._release(name)
            self._report_failure(task, failure, internal=isinstance(failure, INTERNAL_FAILURES))
        except Exception as defect:
            self._report_failure(task, defect)
            raise

    def busy(self, kind: Kind, account: str) -> bool:
        """Whether such a task would wait for one that is running in this process."""
        return self._lock(_owner_name(kind, account)).locked()

    async def release(self, account: str) -> None:
        """Release a cluster that was unlinked; one with a running task is left to a later call."""
        for name in {_owner_name(kind, account) for kind in self._work}:
            if not self._lock(name).locked():
                await self._release(name)
        self._due_at.pop(account, None)
        self._live_points.pop(account, None)

    async def fill(
        self, account: str, window: tuple[int, int], parallel: int, report: Report, order: RepairOrder | None = None
    ) -> Progress:
        """Back-fill one cluster now: hours, assets, summaries.

        Raises:
            NotOurs, StoreError, SourceError, LostOwnership
        """
        async with self._owning(_owner_name("backfills", account)) as owned:
            progress = await self._fill(account, owned, window, parallel, report, order)
            self._report(Task(kind="backfills", account=account), state=(await self._open_days(account)).freshness())
            return progress

    def close(self) -> None:
        """Release every cluster."""
        for owned in self._owned.values():
            owned.release()
        self._owned.clear()
        self._owners.close()

    def _report(self, task: Task, **what: object) -> None:
        self._report_result(TaskResult(task=task, finished_at=int(self._clock()), **what))  # type: ignore[arg-type]

    def _report_failure(self, task: Task, failure: Exception, internal: bool = False) -> None:
        why = str(failure) or type(failure).__name__
        level = logging.INFO if task.kind == "live" else logging.WARNING  # which is tried again each minute
        log.log(level, "account %s: %s: %s", task.account, task.kind, why)
        self._report(task, failure=why, internal=internal)

    async def _extract(self, task: Task, owned: Owned) -> None:
        """Extract what is due of the open days, newest first, until the source is silent or the time limit passes."""
        account, ends = task.account, time.monotonic() + ROUND_SECONDS
        # A silent source is not asked for its day shift: that question is larger than one hour of data.
        shift = task.shift if task.silent else await self.extractor.day_shift(account)
        days = await self._open_days(account, shift)
        stretches = due(days.start, days.read_at, days.committed.hours, days.gaps, task.patience, shift)
        pushed = await self._pushed(account, days.read_at) if task.pushed else _Arrived()
        stretches = sorted({*stretches, *pushed.stretches}, reverse=True)
        failures, silent, postponed = [], False, False
        for stretch in stretches:
            postponed = time.monotonic() > ends
            if silent or postponed:
                break
            began = time.monotonic()
            outcome: Outcome = await self.extractor.extract(account, owned, stretch)
            self._metrics.extracted(account, outcome, time.monotonic() - began)
            silent = outcome.silent
            if outcome.failure is not None:
                failures.append(outcome.failure)
        if not postponed:
            await self._take(account, owned, pushed.answers)  # as it was read: what came meanwhile is taken next
        now_open = await self._open_days(account, shift) if stretches else days
        # What became due while the task ran has not been tried yet.
        due_at = days.read_at if postponed else now_open.next_due(days.read_at)
        self._due_at[account] = due_at
        failure = failures[0] if failures else None
        if failure is not None:
            log.warning("account %s: %s", account, failure)
        self._report(task, due_at=due_at, state=now_open.freshness(), shift=shift, silent=silent, failure=failure)

    async def _pushed(self, account: str, now: int) -> _Arrived:
        """What was pushed of a cluster and is not stored yet."""
        inbox = self._store.inbox
        answers = await self._store.run(inbox.waiting, account)
        if answers:
            self._accounts.note_pushed(account)
        hours = {h for one in answers for h in range(one.first, one.last, HOUR)}
        told: set[int] = set()
        days = {one.first for one in answers if (one.kind, one.step) == ("allocation", "day")}
        if hours:
            first, last = day_of(min(hours), 0), day_of(max(hours), 0) + DAY
            for one in await self._store.run(inbox.overlapping, account, first, last):
                told.update(one.told if one.tells_hours else ())
        return _Arrived(tuple(answers), tuple(arrived(hours, told, days, now)))

    async def _take(self, account: str, owned: Owned, answers: Sequence[PushedAnswer]) -> None:
        """Note that these answers are stored, and store the days of assets that are among them."""
        for one in answers:
            if (one.kind, one.step) == ("assets", "day"):
                window = (one.first, one.last)
                try:
                    await extract_assets(
                        self._store, self._accounts, account, owned, window, self._clock, self._seconds_a_call
                    )
                except SourceError as failure:
                    log.warning("account %s: assets that were pushed cannot be read: %s", account, failure)
        closed_since = day_of(int(self._clock()) - CLOSED_AFTER_SECONDS, 0)
        old = [one for one in answers if one.first < closed_since]
        if old:  # the rounds sum up open days alone
            span = (min(one.first for one in old), max(one.last for one in old))
            await self._store.run(self._store.summaries.rebuild, account, *span, owned.writer)
        if answers:
            await self._store.run(self._store.inbox.take, answers)
            await self._advance_backfills(account)

    async def _advance_backfills(self, account: str) -> None:
        """Count anew what back-fills of the past had to leave to the cluster's agent."""
        for job in await self._store.run(self._store.jobs.of, account):
            if job.state != "incomplete" or job.repair:
                continue
            committed = await self._store.run(self._store.ledger.committed, account, job.first, job.last)
            done = len(committed.hours)
            if done > job.hours_done:
                state: State = "done" if done >= job.hours_total else "incomplete"
                sofar = (job.hours_total, done, max(0, job.hours_total - done))
                await self._store.run(self._store.jobs.advance, job, state, *sofar)

    async def _open_days(self, account: str, shift: int = 0) -> _OpenDays:
        """What is stored of the days that may still change, and what was asked for in vain."""
        now = int(self._clock())
        start, end = day_of(now - CLOSED_AFTER_SECONDS, shift), last_complete_hour(now)
        committed = await self._store.run(self._store.ledger.committed, account, start, end)
        gaps = await self._store.run(self._store.gaps.of, account, start, end, now)
        return _OpenDays(now, start, shift, committed, gaps)

    async def _assets(self, task: Task, owned: Owned) -> None:
        """Store the days of assets that are missing or may still change."""
        now = int(self._clock())
        window = (now - CLOSED_AFTER_SECONDS, now)
        await extract_assets(
            self._store, self._accounts, task.account, owned, window, self._clock, self._seconds_a_call
        )
        self._report(task)

    async def _savings(self, task: Task, owned: Owned) -> None:
        """Store the savings of the last day that has settled."""
        day = settled_day(int(self._clock()))
        stored = await extract_savings(
            self._store, self._accounts, task.account, owned, self._clock, self._seconds_a_call
        )
        self._report(task, savings_day=day if stored else None)

    async def _live(self, task: Task, owned: Owned) -> None:
        """Store what a cluster costs an hour at the minutes that came since the last one that is stored.

        What was not there the last time is asked for again, for an hour: metrics that are pushed arrive late.
        """
        account, now = task.account, int(self._clock())
        newest, since = now - now % MINUTE, now - LIVE_AGAIN_SECONDS
        stored = self._live_points.get(account, [])
        if not stored or stored[-1].at > newest or not self._keep_ownership:  # another worker may have gone on
            stored = _still_open(await self._store.run(self._store.live.of, account, since, newest))
        lacking = [one.at for one in stored if not one.complete]
        wanted = lacking[0] if lacking else stored[-1].at + MINUTE if stored else 0
        first = max(wanted, since - since % MINUTE + MINUTE)
        points: Sequence[LivePoint] = ()
        if first <= newest:
            try:
                sources = await self._accounts.of(account)
                points = await sources.live(first, newest, Deadline(min(self._seconds_a_call, LIVE_SECONDS)))
            except NoMetricsSource:
                self._report(task, without_metrics=True)
                return
        if points and owned.still():
            told = {one.at: one for one in stored}
            found = {one.at: replace(one, namespaces=()) for one in points}
            changed = [one for one in points if told.get(one.at) != found[one.at]]
            if changed:
                await self._store.run(self._store.live.commit, account, changed)
            stored = _still_open([one for _, one in sorted({**told, **found}.items())])
        self._live_points[account] = stored
        self._report(task, live_until=stored[-1].at if stored else 0)

    async def _summaries(self, task: Task, owned: Owned) -> None:
        """Rebuild the summaries of the open days, or of all stored days."""
        span = await self._store.run(self._store.ledger.span, task.account)
        if span is not None:
            first = span[0] if task.everything else max(span[0], span[1] - CLOSED_AFTER_SECONDS - DAY)
            await self._store.run(self._store.summaries.rebuild, task.account, first, span[1], owned.writer)
        self._report(task)

    async def _clean(self, task: Task, owned: Owned) -> None:
        """Apply the retention, and sweep unread batches."""
        cleaned = await self._store.run(self._store.maintenance.clean, int(self._clock()), self._retention_days)
        log.info("dropped months %s, swept %d batches", list(cleaned.months), cleaned.batches)
        if cleaned.broken:
            log.error("%d batches have lost rows: back-fill or repair their hours", cleaned.broken)
        await self._purge()
        self._report(task)

    async def _purge(self) -> None:
        """Delete the history of clusters that were removed so long ago that nobody wants it back."""
        registry = self._accounts.registry
        if self._accounts.one_cluster:  # every account is answered, whatever entries there are
            return
        known = await self._accounts.known()
        for account in await registry.removed_for(self._purge_grace_days * DAY):
            if account in known or await registry.is_there(account):
                continue
            await self._store.run(self._store.maintenance.purge, account)
            await registry.purged(account)
            log.info("purged the history of account %s, whose source was removed", account)

    async def _backfills(self, task: Task, owned: Owned) -> None:
        """Run the open back-fills of a cluster, one after the other."""
        for job in await self._store.run(self._store.jobs.of, task.account):
            if job.state in OPEN:
                await self._run_backfill(job, owned)
        self._report(task, state=(await self._open_days(task.account)).freshness())

    async def _newest_first(self, account: str, owned: Owned, running: asyncio.Lock) -> None:
        """Extract the newest hours before the back-fill goes on."""
        if running.locked() or self._clock() < self._due_at.get(account, 0):
            return
        async with running:
            task = Task(kind="extract", account=account)
            try:
                await self._extract(task, owned)
            except SourceError as failure:
                self._report_failure(task, failure)
            again = int(self._clock()) + NEWEST_RETRY_SECONDS
            self._due_at[account] = max(self._due_at.get(account, 0), again)

    async def _fill(
        self,
        account: str,
        owned: Owned,
        window: tuple[int, int],
        parallel: int,
        report: Report,
        order: RepairOrder | None,
        before_a_day: Callable[[], Awaitable[None]] = do_nothing,
    ) -> Progress:
        whole = bounds(*window, int(self._clock()))
        progress = await backfill(
            self._store, self.extractor, account, owned, whole, parallel, report, order, before_a_day
        )
        if whole[0] < whole[1]:
            try:
                await extract_assets(
                    self._store, self._accounts, account, owned, whole, self._clock, self._seconds_a_call
                )
            except SourceError as failure:
                log.warning("account %s: assets could not be had: %s", account, failure)
            await self._store.run(self._store.summaries.rebuild, account, *whole, owned.writer)
        return progress

    async def _run_backfill(self, job: Backfill, owned: Owned) -> None:
        """Run one back-fill; its progress is stored while it runs, so that another worker can resume it."""
        jobs, run = self._store.jobs, self._store.run
        why = await self._permanent_failure(job.account)
        if why is not None:
            sofar = (job.hours_total, job.hours_done, job.hours_missing)
            await run(jobs.advance, job, "failed", *sofar, why)
            return
        order = RepairOrder(job.id, "backfills", job.reason) if job.repair else None
        note = _ProgressNote(self._store, job)
        newest_first = partial(self._newest_first, job.account, owned, asyncio.Lock())
        window = (job.first, job.last)
        filling = asyncio.create_task(
            self._fill(job.account, owned, window, job.parallel, note.report, order, newest_first)
        )
        beside = [asyncio.create_task(note.keep_writing()), asyncio.create_task(self._until_cancelled(job.id))]
        try:
            await asyncio.wait([filling, beside[1]], return_when=asyncio.FIRST_COMPLETED)
            if not filling.done():
                log.info("account %s: a back-fill was cancelled", job.account)
                return
            done = filling.result()
        finally:
            for running in (filling, *beside):
                running.cancel()
            await asyncio.gather(filling, *beside, return_exceptions=True)
        # A note that was under way may still be written with the next sequence number: take the one after.
        written = replace(note.written, sequence=note.written.sequence + 1)
        state: State = "done" if done.complete else "incomplete"
        reason = job.reason if done.complete else done.last_reason
        await run(jobs.advance, written, state, done.total, done.done, done.missing, reason)

    async def _until_cancelled(self, job: str) -> None:
        while True:
            await asyncio.sleep(CANCELLED_SECONDS)
            newest = await self._store.run(self._store.jobs.get, job)
            if newest is not None and newest.state == "cancelled":
                return

    async def _permanent_failure(self, account: str) -> str | None:
        """Why a back-fill of a cluster can never succeed; None where it may."""
        try:
            sources = await self._accounts.of(account)
        except EntryUnreadable as failure:
            return str(failure)
        return None if sources.any else "no cost source is configured"

    @asynccontextmanager
    async def _owning(self, name: str) -> AsyncIterator[Owned]:
        """Ownership of a name, for one task at a time.

        Raises:
            NotOurs, OSError, StoreError
        """
        if not self._keep_ownership and self._lock(name).locked():
            raise NotOurs(name)
        async with self._lock(name):
            owned = self._owned.get(name)
            if owned is None or not owned.still():
                await self._release(name)
                owned = await self._store.run(self._owners.own, name, self._store.highest_fence)
                if owned is None:
                    raise NotOurs(name)
                self._owned[name] = owned
            try:
                yield owned
            finally:
                if not self._keep_ownership:
                    await self._release(name)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._busy.setdefault(name, asyncio.Lock())

    async def _release(self, name: str) -> None:
        """Release ownership, on a thread: the lock may be in an etcd that hangs."""
        owned = self._owned.pop(name, None)
        if owned is not None:
            await asyncio.to_thread(owned.release)


class _ProgressNote:
    """Stores the progress of a back-fill while it runs."""

    def __init__(self, store: Store, job: Backfill) -> None:
        self._store = store
        self._latest = Progress(total=job.hours_total)
        self.written = job

    def report(self, progress: Progress) -> None:
        self._latest = progress

    async def keep_writing(self) -> None:
        told = None
        while True:
            if self._latest is not told:
                told = self._latest
                self.written = await self._store.run(
                    self._store.jobs.advance, self.written, "running", told.total, told.done, told.missing
                )
            await asyncio.sleep(NOTE_SECONDS)


def _still_open(points: Sequence[LivePoint]) -> list[LivePoint]:
    """Of stored rates, in order, those since the first one that may only lack what is late; else the last one alone."""
    late = [one for one in points if not one.complete and one.at > points[-1].at - LIVE_LATE_SECONDS]
    return [replace(one, namespaces=()) for one in points if one.at >= (late[0] if late else points[-1]).at]


def share_of(kind: Kind, silent: bool) -> int:
    """The pool of a kind of task, as the divisor of the largest pool's size."""
    if kind in ("assets", "savings", "backfills"):
        return BACKFILLS_SHARE
    if kind == "live":
        return FAILING_LIVE_SHARE if silent else LIVE_SHARE
    return SILENT_SHARE if silent else 1


def pool_size(share: int, parallel: int) -> int:
    """Tasks that run concurrently in a pool."""
    return max(1, parallel // share)


def _owner_name(kind: Kind, account: str) -> str:
    """The name that is owned while a task runs; each role owns one of its own, so that all of them can run."""
    if kind == "clean":
        return "clean"
    names = {"extractor": account, "aggregator": f"{account}.summaries", "processor": f"{account}.live"}
    return names[role_of(kind)]


class LocalExecutor:
    """Runs tasks in this process."""

    def __init__(self, runner: TaskRunner) -> None:
        self._runner = runner
        self._in_flight: set[tuple[Kind, str]] = set()

    async def submit(self, tasks: Sequence[Task]) -> None:
        answers = await asyncio.gather(*(self._run(task) for task in tasks), return_exceptions=True)
        for task, answer in zip(tasks, answers, strict=True):
            if isinstance(answer, Exception):
                log.error("a defect, account %s", task.account, exc_info=answer)

    async def _run(self, task: Task) -> None:
        one = (task.kind, task.account)
        self._in_flight.add(one)
        try:
            await self._runner.run(task)
        finally:
            self._in_flight.discard(one)

    def busy(self, kind: Kind, account: str) -> bool:
        """Extraction and back-fills are retried in seconds, and so do not wait for another task of their cluster."""
        return (kind, account) in self._in_flight or (kind in RETRIED_IN_SECONDS and self._runner.busy(kind, account))

    async def release(self, account: str) -> None:
        await self._runner.release(account)
