"""The worker's rounds: extract, fill assets, sum up, clean, and do the back-fills that were asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from msgspec.structs import replace

from metroculus.metroculus_worker.backfill import Progress, Report, backfill, bounds
from metroculus.metroculus_worker.daily import extract_assets, extract_savings, settled_day
from metroculus.metroculus_worker.extract import Extractor, LostOwnership, Outcome, RepairOrder
from metroculus.metroculus_worker.metrics import Freshness, WorkerMetrics, freshness
from metroculus.metroculus_worker.ownership import Owned, Owners
from metroculus.metroculus_worker.plan import (
    CLOSED_AFTER_SECONDS,
    Stretch,
    day_of,
    due,
    last_complete_hour,
    next_due,
)
from metroculus.sources.accounts import Accounts
from metroculus.sources.errors import EntryUnreadable, NoSource, RegistryError, SourceError
from metroculus.storage.engine import StoreError
from metroculus.storage.jobs import Backfill, State
from metroculus.storage.store import Store
from tools.window import DAY, HOUR

log = logging.getLogger("worker")

FAILURES = (SourceError, NoSource, StoreError, RegistryError, LostOwnership, OSError)
"""What may fail of one cluster and leaves the others whole."""

ROUND_SECONDS = 300.0
"""What one cluster may take of a round; the rest of what is due is read in the next one."""
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 60, 300
"""The pause after a source did not answer; it doubles each time, up to the last."""
LIST_SECONDS = 60
"""Between two looks at which clusters there are: one that was linked is seen so soon."""
STORE_RETRY_SECONDS = 5
"""After the store or the registry failed, a cluster is tried again so soon."""
CANCELLED_SECONDS = 2.0
"""Between two looks at whether a back-fill was cancelled."""
BACKFILLS_SHARE = 2
"""Back-fills and what is done daily have places of their own, half as many: one may take days."""
SILENT_SHARE = 4
"""Clusters whose source did not answer the last time have this part of the places, so that they hold up nobody else."""


class NotOurs(Exception):
    """Another worker owns the cluster."""


class Worker:
    """Rounds over all clusters, each cluster by itself.

    The worker keeps in memory when each cluster is due next, so that a round reads only the clusters that are. Only the
    owner of a cluster changes what is stored of it, so the memory stays right; a cluster that is newly owned is due.

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
        self._places = asyncio.Semaphore(parallel)
        self._places_of_backfills = asyncio.Semaphore(max(1, parallel // BACKFILLS_SHARE))
        self._places_of_silent = asyncio.Semaphore(max(1, parallel // SILENT_SHARE))
        self._without_assets: set[str] = set()
        self._savings_day: dict[str, int] = {}
        """The last day of which savings are stored."""
        self._shifts: dict[str, int] = {}
        self._entry_versions: dict[str, int] = {}
        """By cluster, a number that changes whenever its source entry changes."""
        self._extracted_version: dict[str, int | None] = {}
        """By cluster, the version of the entry that its last round used."""
        self._on_rounds = False
        self._listed: list[str] = []
        self._list_at = 0
        """When to ask again which clusters there are."""
        self._due_at: dict[str, int] = {}
        self._silences_in_a_row: Counter[str] = Counter()
        self._summed_up: dict[str, int] = {}
        """Which version of a cluster's hours its summaries were last made of."""
        self._busy: dict[str, asyncio.Lock] = {}
        self._owned: dict[str, Owned] = {}
        self.extractor = Extractor(store, accounts, clock, seconds_a_call)
        self.states: dict[str, Freshness] = {}
        self.failing: dict[str, str] = {}
        self.silent: set[str] = set()
        """Clusters whose source did not answer the last time."""

    async def extract_all(self) -> int:
        """One round over the clusters of which anything is due.

        Returns:
            the moment at which the next round has something to do.
        """
        self._on_rounds, now = True, int(self._clock())
        self._list_at = now + STORE_RETRY_SECONDS
        known = await self._known()
        if known is None:
            return self._list_at
        self._listed, self._list_at = known, now + LIST_SECONDS
        for account in self._lacking(known):
            if self._entry_versions.get(account) != self._extracted_version[account]:
                self._due_at[account] = 0
        await self._each([a for a in known if self._is_due(a) and not self._lock(a).locked()], self._extract)
        return max(int(now) + 1, min((self._due_at.get(account, now) for account in known), default=now + HOUR))

    def _lacking(self, known: Sequence[str]) -> list[str]:
        """The clusters that a change of their source entry may help: they lack hours, fail, or do not answer."""
        gaps = {account for account, state in self.states.items() if state.gaps}
        return [one for one in known if one in self._extracted_version and one in {*gaps, *self.failing, *self.silent}]

    def has_work(self) -> bool:
        """Whether a round would do anything, as far as is known without asking.

        A round may go on for as long as the slowest source of it hangs; the next one does not wait for that.
        """
        if not self._list_at - LIST_SECONDS <= self._clock() < self._list_at:
            return True
        return any(self._is_due(account) and not self._lock(account).locked() for account in self._listed)

    def now(self) -> int:
        """Unix seconds."""
        return int(self._clock())

    def _is_due(self, account: str) -> bool:
        """No cluster waits longer than an hour; a later due time comes from a clock that was set back."""
        now, due_at = self._clock(), self._due_at.get(account, 0)
        return due_at <= now or due_at > now + HOUR

    async def assets_all(self, again: bool = False) -> None:
        """The days of assets that lack or may still change; ``again`` only where the last try failed."""

        async def one(account: str, owned: Owned) -> None:
            now = int(self._clock())
            window = (now - CLOSED_AFTER_SECONDS, now)
            self._without_assets.add(account)
            await extract_assets(self._store, self._accounts, account, owned, window, self._clock, self._seconds_a_call)
            self._without_assets.discard(account)

        known = await self._known() or []
        wanted = [account for account in known if account in self._without_assets or not again]
        await self._each(wanted, one, self._places_of_backfills)

    async def savings_all(self) -> None:
        """What could be saved as of the last day, and assets, of each cluster that they could not be had of yet."""
        if self._without_assets:
            await self.assets_all(again=True)
        day = settled_day(int(self._clock()))

        async def one(account: str, owned: Owned) -> None:
            if await extract_savings(self._store, self._accounts, account, owned, self._clock, self._seconds_a_call):
                self._savings_day[account] = day

        known = await self._known() or []
        lacking = [account for account in known if self._savings_day.get(account) != day]
        await self._each(lacking, one, self._places_of_backfills)

    async def aggregate_all(self, everything: bool = False) -> None:
        """Summaries of the days that are still open, where anything of them has changed, or of all that is stored."""

        versions = self._store.ledger.versions

        async def one(account: str, owned: Owned) -> None:
            version = versions.of(account)
            span = await self._store.run(self._store.ledger.span, account)
            if span is not None:
                first = span[0] if everything else max(span[0], span[1] - CLOSED_AFTER_SECONDS - DAY)
                await self._store.run(self._store.summaries.rebuild, account, first, span[1], owned.writer)
            self._summed_up[account] = version

        known = await self._known() or []
        changed = [account for account in known if everything or self._summed_up.get(account) != versions.of(account)]
        await self._each(changed, one)
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

        free = [account for account in by_account if not self._lock(account).locked()]
        await self._each(free, one, self._places_of_backfills)

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
        newest = asyncio.Lock()

        async def newest_first() -> None:
            """What has become due of the running days goes before the past."""
            if self._on_rounds and self._is_due(account) and not newest.locked():
                async with newest:
                    try:
                        await self._extract(account, owned)
                    except SourceError as failure:
                        await self._failed(account, failure)

        progress = await backfill(
            self._store, self.extractor, account, owned, whole, parallel, report, order, newest_first
        )
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
        why = await self._permanent_failure(job.account)
        if why is not None:
            sofar = (job.hours_total, job.hours_done, job.hours_missing)
            await self._store.run(self._store.jobs.advance, job, "failed", *sofar, why)
            return
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

        async def until_cancelled() -> None:
            while True:
                await asyncio.sleep(CANCELLED_SECONDS)
                newest = await self._store.run(self._store.jobs.get, job.id)
                if newest is not None and newest.state == "cancelled":
                    return

        filling = asyncio.create_task(
            self._fill(job.account, owned, (job.first, job.last), job.parallel, report, order)
        )
        beside = [asyncio.create_task(keep_telling()), asyncio.create_task(until_cancelled())]
        try:
            await asyncio.wait([filling, beside[1]], return_when=asyncio.FIRST_COMPLETED)
            if not filling.done():
                log.info("account %s: a back-fill was cancelled", job.account)
                return
            done = filling.result()
        finally:
            for task in (filling, *beside):
                task.cancel()
            await asyncio.gather(filling, *beside, return_exceptions=True)
        # A progress report that was under way may still be written with the next sequence number: take the one after.
        written = replace(written, sequence=written.sequence + 1)
        state: State = "done" if done.complete else "incomplete"
        reason = job.reason if done.complete else done.last_reason
        await self._store.run(self._store.jobs.advance, written, state, done.total, done.done, done.missing, reason)

    async def _permanent_failure(self, account: str) -> str | None:
        """Why a back-fill of a cluster can never succeed; None where it may."""
        try:
            sources = await self._accounts.of(account)
        except EntryUnreadable as failure:
            return str(failure)
        return None if sources.any else "no cost source is configured"

    async def _extract(self, account: str, owned: Owned) -> None:
        """One cluster's round: what is due, the newest first, until its source does not answer or its time is over."""
        now, ends = int(self._clock()), time.monotonic() + ROUND_SECONDS
        version = self._entry_versions.get(account)
        patience = self._extracted_version.get(account, version) == version  # gaps of another source do not count
        if account not in self.silent:  # it would cost it a question that is larger than an hour
            self._shifts[account] = await self.extractor.day_shift(account)
        shift = self._shifts.get(account, 0)
        start = day_of(now - CLOSED_AFTER_SECONDS, shift)
        committed = await self._store.run(self._store.ledger.committed, account, start, last_complete_hour(now))
        gaps = await self._store.run(self._store.gaps.of, account, start, last_complete_hour(now), now)
        failures, silent, postponed = [], False, False
        for stretch in due(start, now, committed.hours, gaps, patience, shift):
            postponed = time.monotonic() > ends
            if silent or postponed:
                break
            outcome = await self._extract_one(account, owned, stretch)
            silent = outcome.silent
            if outcome.failure is not None:
                failures.append(outcome.failure)
        self._set_silent(account, silent)
        self._extracted_version[account] = version
        await self._look(account, succeeded=not failures, since=now)
        if failures:
            raise SourceError(failures[0])
        if postponed:
            self._due_at[account] = now
        self.failing.pop(account, None)

    def _set_silent(self, account: str, silent: bool) -> None:
        if silent:
            self.silent.add(account)
        else:
            self.silent.discard(account)
            self._silences_in_a_row.pop(account, None)

    async def _extract_one(self, account: str, owned: Owned, stretch: Stretch) -> Outcome:
        began = time.monotonic()
        outcome = await self.extractor.extract(account, owned, stretch)
        self._metrics.extracted(account, outcome, time.monotonic() - began)
        return outcome

    async def _look(self, account: str, succeeded: bool, since: int | None = None) -> None:
        """How the cluster's open days stand now, and when something of them is due next.

        Args:
            since: the start of the round. What became due after it is still to be done.
        """
        now, shift = int(self._clock()), self._shifts.get(account, 0)
        start, end = day_of(now - CLOSED_AFTER_SECONDS, shift), last_complete_hour(now)
        committed = await self._store.run(self._store.ledger.committed, account, start, end)
        asked = await self._store.run(self._store.gaps.of, account, start, end, now)
        self._due_at[account] = next_due(start, now if since is None else since, now, committed.hours, asked, shift)
        open_since = end - CLOSED_AFTER_SECONDS
        hours = {hour: marker for hour, marker in committed.hours.items() if hour >= open_since}
        tried = {hour: gap for hour, gap in asked.items() if hour >= open_since}
        state = freshness(hours, tried, len(committed.passed_over), end)
        self.states[account] = state
        self._metrics.stands(account, state, now, succeeded)

    async def _known(self) -> list[str] | None:
        """The clusters that there are, None where nobody can say; those that are gone are let go."""
        try:
            self._entry_versions = await self._accounts.known()
            known = list(self._entry_versions)
            if self._accounts.one_cluster:  # every account is that cluster: those that anybody ever filled
                known = await self._store.run(self._store.ledger.accounts)
        except (RegistryError, StoreError) as failure:
            log.warning("the clusters cannot be read: %s", failure)
            return None
        there = set(known)
        told_of = {*self._owned, *self.states, *self.failing, *self.silent} - there
        for account in [one for one in sorted(told_of) if not self._lock(one).locked()]:
            await self._let_go(account)
            self._forget(account)
        return known

    def _forget(self, account: str) -> None:
        """Drop the state of a cluster that another worker owns, or that is gone."""
        if self.states.pop(account, None) is not None:
            self._metrics.forget(account)
        for known in (
            self.failing,
            self._silences_in_a_row,
            self._summed_up,
            self._savings_day,
            self._extracted_version,
            self._shifts,
        ):
            known.pop(account, None)
        self.silent.discard(account)
        self._without_assets.discard(account)

    async def _each(
        self,
        accounts: Sequence[str],
        work: Callable[[str, Owned], Awaitable[None]],
        places: asyncio.Semaphore | None = None,
    ) -> None:
        """Work on clusters side by side; what fails of one is reported and leaves the others whole.

        A place is taken after the cluster's own lock: whoever waits for a cluster that is being worked on takes none.
        """

        async def one(account: str) -> None:
            try:
                async with self._owning(account) as owned, places or self._place(account):
                    await work(account, owned)
            except NotOurs:
                self._forget(account)
                self._due_at[account] = int(self._clock()) + FIRST_PAUSE_SECONDS
            except FAILURES as failure:
                await self._failed(account, failure)

        answers = await asyncio.gather(*(one(account) for account in accounts), return_exceptions=True)
        for account, answer in zip(accounts, answers, strict=True):
            if isinstance(answer, Exception):
                await self._failed(account, answer)
                log.error("a defect, account %s", account, exc_info=answer)

    def _place(self, account: str) -> asyncio.Semaphore:
        return self._places_of_silent if account in self.silent else self._places

    async def _failed(self, account: str, failure: BaseException) -> None:
        if isinstance(failure, (LostOwnership, RegistryError)):  # another worker may have the key that opens it
            await self._let_go(account)
        now = int(self._clock())
        ours = isinstance(failure, (StoreError, RegistryError, OSError))
        if account in self.silent and not ours:
            pause = FIRST_PAUSE_SECONDS << min(self._silences_in_a_row[account], 8)
            self._silences_in_a_row[account] += 1
            self._due_at[account] = now + min(pause, LAST_PAUSE_SECONDS)
        elif ours:
            self._due_at[account] = now + STORE_RETRY_SECONDS
        else:
            self._due_at[account] = min(max(self._due_at.get(account, now), now + 1), now + FIRST_PAUSE_SECONDS)
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
                await self._let_go(account)
                owned = await self._store.run(self._owners.own, account, self._store.ledger.highest_fence)
                if owned is None:
                    raise NotOurs(account)
                self._owned[account] = owned
            yield owned

    def _lock(self, account: str) -> asyncio.Lock:
        return self._busy.setdefault(account, asyncio.Lock())

    async def _let_go(self, account: str) -> None:
        """Release a cluster; on a thread, because the lock may be in an etcd that hangs."""
        owned = self._owned.pop(account, None)
        self._due_at.pop(account, None)
        if owned is not None:
            await asyncio.to_thread(owned.release)

    def close(self) -> None:
        """Let go of every cluster."""
        for owned in self._owned.values():
            owned.release()
        self._owned.clear()
        self._owners.close()
