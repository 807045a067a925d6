"""The worker's rounds: extract, fill assets, sum up, clean, and do the back-fills that were asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from metroculus.metroculus_worker.backfill import Progress, Report, backfill, bounds
from metroculus.metroculus_worker.daily import extract_assets
from metroculus.metroculus_worker.extract import Extractor, LostOwnership, RepairOrder
from metroculus.metroculus_worker.metrics import Freshness, WorkerMetrics, freshness
from metroculus.metroculus_worker.ownership import Owned, Owners
from metroculus.metroculus_worker.plan import CLOSED_AFTER_SECONDS, Stretch, day_of, due, last_complete_hour
from metroculus.sources.accounts import Accounts
from metroculus.sources.errors import NoSource, RegistryError, SourceError
from metroculus.storage.engine import StoreError
from metroculus.storage.jobs import Backfill, State
from metroculus.storage.store import Store
from tools.window import DAY, HOUR

log = logging.getLogger("worker")

FAILURES = (SourceError, NoSource, StoreError, RegistryError, LostOwnership, OSError)
"""What may fail of one cluster and leaves the others whole."""

YOUNG_GAP_SECONDS = HOUR
"""An hour that lacks and ended less than this ago is asked for again within a minute or so."""


class NotOurs(Exception):
    """Another worker owns the cluster."""


class Worker:
    """Rounds over all clusters, each cluster by itself.

    Args:
        parallel: clusters that are worked on side by side.
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
        parallel: int,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._owners = owners
        self._metrics = metrics
        self._clock = clock
        self._seconds_a_call = seconds_a_call
        self._retention_days = retention_days
        self._gate = asyncio.Semaphore(parallel)
        self._busy: dict[str, asyncio.Lock] = {}
        self._owned: dict[str, Owned] = {}
        self.extractor = Extractor(store, accounts, clock, seconds_a_call)
        self.states: dict[str, Freshness] = {}
        self.failing: dict[str, str] = {}

    async def extract_all(self) -> bool:
        """One round over all clusters.

        Returns:
            whether an hour that has just ended is still to come.
        """
        known = await self._known()
        young = await self._each([a for a in known if not self._lock(a).locked()], self._extract, heals=True)
        return any(young)

    async def assets_all(self) -> None:
        """The days of assets that lack or may still change."""

        async def one(account: str, owned: Owned) -> None:
            now = int(self._clock())
            window = (now - CLOSED_AFTER_SECONDS, now)
            await extract_assets(self._store, self._accounts, account, owned, window, self._clock, self._seconds_a_call)

        await self._each(await self._known(), one)

    async def aggregate_all(self, everything: bool = False) -> None:
        """Summaries of the days that are still open, or of all that is stored."""

        async def one(account: str, owned: Owned) -> None:
            span = await self._store.run(self._store.ledger.span, account)
            if span is not None:
                first = span[0] if everything else max(span[0], span[1] - CLOSED_AFTER_SECONDS - DAY)
                await self._store.run(self._store.summaries.rebuild, account, first, span[1], owned.writer)

        await self._each(await self._known(), one)
        try:
            self._metrics.store_bytes.set(await self._store.run(self._store.maintenance.bytes_on_disk))
        except StoreError as failure:
            log.info("the size of the store cannot be read: %s", failure)

    async def clean(self) -> None:
        """Drop what is older than is kept, sweep, and sum up whatever was left out."""
        try:
            cleaned = await self._store.run(self._store.maintenance.clean, int(self._clock()), self._retention_days)
        except StoreError as failure:
            log.warning("cleaning failed: %s", failure)
            return
        log.info("dropped months %s, swept %d batches", list(cleaned.months), cleaned.batches)
        if cleaned.broken:
            log.error("%d batches have lost rows: back-fill or repair their hours", cleaned.broken)
        await self.aggregate_all(everything=True)

    async def work_off(self) -> None:
        """Do the back-fills that were asked for, those of one cluster one after the other."""
        try:
            jobs = await self._store.run(self._store.jobs.open)
        except StoreError as failure:
            log.info("back-fills cannot be read: %s", failure)
            return
        by_account: dict[str, list[Backfill]] = {}
        for job in jobs:
            by_account.setdefault(job.account, []).append(job)

        async def one(account: str, owned: Owned) -> None:
            for job in by_account[account]:
                await self._do(job, owned)

        await self._each([account for account in by_account if not self._lock(account).locked()], one)

    async def fill(
        self, account: str, window: tuple[int, int], parallel: int, report: Report, order: RepairOrder | None = None
    ) -> Progress:
        """Back-fill one cluster now: hours, assets, summaries.

        Raises:
            NotOurs, StoreError, SourceError, LostOwnership
        """
        async with self._owning(account) as owned:
            return await self._fill(account, owned, window, parallel, report, order)

    async def _fill(
        self,
        account: str,
        owned: Owned,
        window: tuple[int, int],
        parallel: int,
        report: Report,
        order: RepairOrder | None,
    ) -> Progress:
        whole = bounds(*window, int(self._clock()))
        progress = await backfill(self._store, self.extractor, account, owned, whole, parallel, report, order)
        if whole[0] < whole[1]:
            try:
                await extract_assets(
                    self._store, self._accounts, account, owned, whole, self._clock, self._seconds_a_call
                )
            except SourceError as failure:
                log.warning("account %s: assets could not be had: %s", account, failure)
            await self._store.run(self._store.summaries.rebuild, account, *whole, owned.writer)
            await self._look(account, succeeded=progress.complete)
        return progress

    async def _do(self, job: Backfill, owned: Owned) -> None:
        """One job to its end; progress is written as it goes, and whoever comes after goes on from there."""
        order = RepairOrder(job.id, "backfills", job.reason) if job.repair else None
        latest = Progress(total=job.hours_total)
        written = job

        def report(progress: Progress) -> None:
            nonlocal latest
            latest = progress

        async def keep_telling() -> None:
            nonlocal written
            written_down = None
            while True:
                if latest is not written_down:
                    written_down = latest
                    written = await self._store.run(
                        self._store.jobs.advance,
                        written,
                        "running",
                        written_down.total,
                        written_down.done,
                        written_down.missing,
                    )
                await asyncio.sleep(0.5)

        telling = asyncio.create_task(keep_telling())
        try:
            done = await self._fill(job.account, owned, (job.first, job.last), job.parallel, report, order)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        state: State = "done" if done.complete else "incomplete"
        reason = job.reason if done.complete else done.last_reason
        await self._store.run(self._store.jobs.advance, written, state, done.total, done.done, done.missing, reason)

    async def _extract(self, account: str, owned: Owned) -> bool:
        """One cluster's round; whether an hour that has just ended is still to come."""
        now = int(self._clock())
        end = last_complete_hour(now)
        shift = await self.extractor.day_shift(account)
        start = day_of(now - CLOSED_AFTER_SECONDS, shift)
        committed = await self._store.run(self._store.ledger.committed, account, start, end)
        gaps = await self._store.run(self._store.gaps.of, account, start, end)
        failures = []
        for stretch in due(start, now, committed.hours, gaps, shift=shift):
            failures += await self._extract_one(account, owned, stretch)
        state = await self._look(account, succeeded=not failures)
        if failures:
            raise SourceError(failures[0])
        return state.stored_until is None or (state.stored_until < end and now - end < YOUNG_GAP_SECONDS)

    async def _extract_one(self, account: str, owned: Owned, stretch: Stretch) -> list[str]:
        """Why the source failed, where it did."""
        began = time.monotonic()
        outcome = await self.extractor.extract(account, owned, stretch)
        self._metrics.extracted(account, outcome, time.monotonic() - began)
        return [outcome.failure] if outcome.failure is not None else []

    async def _look(self, account: str, succeeded: bool) -> Freshness:
        """How the cluster's open days stand now."""
        now = int(self._clock())
        start, end = now - now % HOUR - CLOSED_AFTER_SECONDS, last_complete_hour(now)
        committed = await self._store.run(self._store.ledger.committed, account, start, end)
        asked = await self._store.run(self._store.gaps.of, account, start, end)
        state = freshness(committed.hours, asked, len(committed.passed_over), end)
        self.states[account] = state
        self._metrics.stands(account, state, now, succeeded)
        return state

    async def _known(self) -> list[str]:
        """The clusters that there are; those that are gone are let go."""
        try:
            known = await self._accounts.known()
            if self._accounts.one_cluster:  # every account is that cluster: those that anybody ever filled
                known = await self._store.run(self._store.ledger.accounts)
        except (RegistryError, StoreError) as failure:
            log.warning("the clusters cannot be read: %s", failure)
            return []
        for account in [one for one in self._owned if one not in known and not self._lock(one).locked()]:
            self._let_go(account)
            if self.states.pop(account, None) is not None:
                self._metrics.forget(account)
            self.failing.pop(account, None)
        return known

    async def _each(
        self, accounts: list[str], work: Callable[[str, Owned], Awaitable[bool | None]], heals: bool = False
    ) -> list[bool]:
        """Work on clusters side by side; what fails of one is reported and leaves the others whole.

        Args:
            heals: whether a cluster that was failing is not any more where this works.
        """

        async def one(account: str) -> bool:
            try:
                async with self._gate, self._owning(account) as owned:
                    answer = bool(await work(account, owned))
            except NotOurs:
                return False
            except FAILURES as failure:
                self._failed(account, failure)
                return True
            if heals:
                self.failing.pop(account, None)
            return answer

        answers = await asyncio.gather(*(one(account) for account in accounts), return_exceptions=True)
        for account, answer in zip(accounts, answers, strict=True):
            if isinstance(answer, Exception):
                self._failed(account, answer)
                log.error("a defect, account %s", account, exc_info=answer)
        return [answer for answer in answers if isinstance(answer, bool)]

    def _failed(self, account: str, failure: BaseException) -> None:
        if isinstance(failure, (LostOwnership, RegistryError)):  # another worker may have the key that opens it
            self._let_go(account)
        self.failing[account] = str(failure) or type(failure).__name__
        self._metrics.failed(account)
        log.warning("account %s: %s", account, self.failing[account])

    @asynccontextmanager
    async def _owning(self, account: str) -> AsyncIterator[Owned]:
        """The cluster, for one piece of work at a time.

        Raises:
            NotOurs, OSError, StoreError
        """
        async with self._lock(account):
            owned = self._owned.get(account)
            if owned is None or not owned.still():
                self._let_go(account)
                owned = await self._store.run(self._owners.own, account, self._store.ledger.highest_fence)
                if owned is None:
                    raise NotOurs(account)
                self._owned[account] = owned
            yield owned

    def _lock(self, account: str) -> asyncio.Lock:
        return self._busy.setdefault(account, asyncio.Lock())

    def _let_go(self, account: str) -> None:
        owned = self._owned.pop(account, None)
        if owned is not None:
            owned.release()

    def close(self) -> None:
        """Let go of every cluster."""
        for account in list(self._owned):
            self._let_go(account)
        self._owners.close()
