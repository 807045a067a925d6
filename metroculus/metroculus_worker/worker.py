"""The worker's rounds: submit the tasks that are due, and remember their results."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from metroculus.metroculus_worker.attempts import AttemptLog
from metroculus.metroculus_worker.backfill import Progress, Report
from metroculus.metroculus_worker.daily import settled_day
from metroculus.metroculus_worker.extract import RepairOrder
from metroculus.metroculus_worker.metrics import Freshness, WorkerMetrics
from metroculus.metroculus_worker.task_runner import TaskRunner
from metroculus.metroculus_worker.tasks import Executor, Task, TaskResult
from metroculus.plan import CLOSED_AFTER_SECONDS
from metroculus.sources.accounts import Accounts
from metroculus.sources.errors import RegistryError
from metroculus.storage.engine import StoreError
from metroculus.storage.store import Store
from tools.window import DAY, HOUR, MINUTE

log = logging.getLogger("worker")

FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 60, 300
"""The pause after a source did not answer; it doubles each time, up to the last."""
LIST_SECONDS = 60
"""Between two looks at which clusters there are: one that was linked is seen so soon."""
STORE_RETRY_SECONDS = 5
"""After the store or the registry failed, a cluster is tried again so soon."""
SUMMED_AGAIN_SECONDS = CLOSED_AFTER_SECONDS + 2 * DAY
"""Hours that are younger are looked at for changes."""


class Worker:
    """Rounds over all clusters, each cluster by itself.

    The rounds remember when each cluster is due next, and submit tasks of those alone. A cluster of which nothing is
    remembered is due.

    Args:
        executor: executes tasks, and passes their results to ``record``.
        runner: runs the tasks that this process executes itself.
        attempts: is told of every extraction and what became of it.
    """

    def __init__(
        self,
        store: Store,
        accounts: Accounts,
        executor: Executor,
        runner: TaskRunner,
        metrics: WorkerMetrics,
        clock: Callable[[], float],
        attempts: AttemptLog,
    ) -> None:
        self._attempts = attempts
        self._store = store
        self._accounts = accounts
        self._executor = executor
        self._metrics = metrics
        self._clock = clock
        self.runner = runner
        self._entry_versions: dict[str, int] = {}
        """By cluster, a number that changes whenever its source entry changes."""
        self._listed: list[str] = []
        self._list_at = 0
        """When to ask again which clusters there are."""
        self._sum_up_everything = False
        self.states: dict[str, Freshness] = {}
        self.failing: dict[str, str] = {}
        self.silent: set[str] = set()
        """Clusters whose source did not answer the last time."""
        self._due_at: dict[str, int] = {}
        self._pushed: frozenset[str] = frozenset()
        """Clusters of which answers that were pushed waited at the last look."""
        self._silences_in_a_row: Counter[str] = Counter()
        self._shifts: dict[str, int] = {}
        self._extracted_version: dict[str, int | None] = {}
        """By cluster, the version of the entry that its last round used."""
        self._without_assets: set[str] = set()
        self._savings_day: dict[str, int] = {}
        """The last day of which savings are stored."""
        self._live_minute = 0
        """The last minute in which rates were asked for."""
        self._live: set[str] = set()
        """Clusters whose rates were asked for."""
        self._live_failing: set[str] = set()
        self._without_metrics: dict[str, int | None] = {}
        """Clusters that have no source of metrics, with the version of the entry that says so."""
        self._summed_up: dict[str, int | None] = {}
        """Which version of a cluster's hours its summaries were last made of."""

    def _remembered(self) -> set[str]:
        """Every cluster of which anything is remembered."""
        return set[str]().union(*self._by_cluster, *self._of_clusters)

    @property
    def _by_cluster(self) -> tuple[dict[str, Any], ...]:
        return (
            self.states,
            self.failing,
            self._due_at,
            self._silences_in_a_row,
            self._shifts,
            self._extracted_version,
            self._savings_day,
            self._summed_up,
            self._without_metrics,
        )

    @property
    def _of_clusters(self) -> tuple[set[str], ...]:
        return self.silent, self._without_assets, self._live, self._live_failing

    def reset(self) -> None:
        """Forget everything: every cluster is due."""
        for account in self._remembered():
            self._forget(account)
        self._listed, self._list_at = [], 0

    async def extract_all(self) -> int:
        """One round over the clusters of which anything is due.

        Returns:
            the moment at which the next round has something to do.
        """
        now = int(self._clock())
        self._list_at = now + STORE_RETRY_SECONDS
        known = await self._known()
        if known is None:
            return self._list_at
        self._listed, self._list_at = known, now + LIST_SECONDS
        for account in self._lacking(known):
            if self._entry_versions.get(account) != self._extracted_version[account]:
                self._due_at[account] = 0
        await self._submit(self._extraction(account) for account in known if self._may_extract(account))
        return max(int(now) + 1, min((self._due_at.get(account, now) for account in known), default=now + HOUR))

    async def look_into_inbox(self) -> None:
        """Clusters of which something was pushed are due."""
        try:
            pushed = await self._store.run(self._store.inbox.waiting_accounts)
        except StoreError as failure:
            log.info("what was pushed cannot be read: %s", failure)
            return
        self._pushed = frozenset(pushed)
        for account in pushed:
            if account in self._entry_versions and account not in self.failing:
                self._due_at[account] = 0

    def _extraction(self, account: str) -> Task:
        version = self._entry_versions.get(account)
        return Task(
            kind="extract",
            account=account,
            version=version,
            # Gaps that another source left do not count.
            patience=self._extracted_version.get(account, version) == version,
            silent=account in self.silent,
            shift=self._shifts.get(account, 0),
            pushed=account in self._pushed,
        )

    def _lacking(self, known: Sequence[str]) -> list[str]:
        """The clusters that a change of their source entry may help: they lack hours, fail, or do not answer."""
        gaps = {account for account, state in self.states.items() if state.gaps}
        return [one for one in known if one in self._extracted_version and one in {*gaps, *self.failing, *self.silent}]

    def cluster_states(self) -> dict[str, str]:
        """The state of each cluster that was extracted or failed, as ``/readyz`` names it."""
        named = {}
        for account in sorted({*self.states, *self.failing}):
            state = self.states.get(account)
            lagging = state is None or state.gaps > 0
            by_fallback = state is not None and state.by_fallback > 0
            stands = "gaps" if lagging else "told by another source" if by_fallback else "ok"
            failing = account in self.failing
            named[account] = "not answering" if account in self.silent else "failing" if failing else stands
        return named

    def has_work(self) -> bool:
        """Whether a round would do anything, as far as is known without asking.

        A round may go on for as long as the slowest source of it hangs; the next one does not wait for that.
        """
        if not self._list_at - LIST_SECONDS <= self._clock() < self._list_at:
            return True
        return any(self._may_extract(account) for account in self._listed)

    def _may_extract(self, account: str) -> bool:
        return self._is_due(account) and not self._executor.busy("extract", account)

    def _is_due(self, account: str) -> bool:
        """No cluster waits longer than an hour; a later due time comes from a clock that was set back."""
        now, due_at = self._clock(), self._due_at.get(account, 0)
        return due_at <= now or due_at > now + HOUR

    async def assets_all(self, again: bool = False) -> None:
        """The days of assets that lack or may still change; ``again`` only where the last try failed."""
        known = await self._known() or []
        wanted = [account for account in known if account in self._without_assets or not again]
        self._without_assets.update(wanted)
        await self._submit(Task(kind="assets", account=account) for account in wanted)

    async def savings_all(self) -> None:
        """What could be saved as of the last day, and assets, of each cluster that they could not be had of yet."""
        if self._without_assets:
            await self.assets_all(again=True)
        day = settled_day(int(self._clock()))
        known = await self._known() or []
        lacking = [account for account in known if self._savings_day.get(account) != day]
        await self._submit(Task(kind="savings", account=account) for account in lacking)

    async def live_all(self) -> None:
        """What each cluster costs an hour, once a minute; one without metrics is asked again when its entry changes."""
        minute = int(self._clock()) // MINUTE
        if minute == self._live_minute:
            return
        self._live_minute = minute
        known = await self._known() or []
        await self._submit(
            Task(
                kind="live",
                account=account,
                version=self._entry_versions.get(account),
                silent=account in self._live_failing,
            )
            for account in known
            if account not in self._without_metrics
            or self._without_metrics[account] != self._entry_versions.get(account)
        )

    async def sweep_live(self) -> None:
        """Drop rates that are older than they are kept."""
        try:
            await self._store.run(self._store.live.sweep, int(self._clock()))
        except StoreError as failure:
            log.info("old rates cannot be dropped: %s", failure)

    async def aggregate_all(self, everything: bool = False) -> None:
        """Summaries of the days that are still open, where anything of them has changed, or of all that is stored."""
        everything = everything or self._sum_up_everything
        since = 0 if everything else int(self._clock()) - SUMMED_AGAIN_SECONDS
        try:
            versions = await self._store.run(self._store.ledger.newest_sequences, since)
        except StoreError as failure:
            log.warning("what has changed cannot be read: %s", failure)
            return
        self._sum_up_everything = False
        known = await self._known() or []
        changed = [account for account in known if account in versions]
        if not everything:
            changed = [account for account in changed if self._summed_up.get(account) != versions[account]]
        await self._submit(
            Task(kind="summaries", account=account, version=versions[account], everything=everything)
            for account in changed
        )
        try:
            self._metrics.store_bytes.set(await self._store.run(self._store.maintenance.bytes_on_disk))
        except StoreError as failure:
            log.info("the size of the store cannot be read: %s", failure)

    async def clean(self) -> None:
        """Drop what is older than is kept, sweep, and sum up whatever was left out."""
        await self._submit([Task(kind="clean")])
        if self._sum_up_everything:
            await self.aggregate_all()

    async def work_off(self) -> None:
        """Do the back-fills that were asked for, those of one cluster one after the other."""
        try:
            jobs = await self._store.run(self._store.jobs.open)
        except StoreError as failure:
            log.info("back-fills cannot be read: %s", failure)
            return
        accounts = dict.fromkeys(job.account for job in jobs)
        await self._submit(Task(kind="backfills", account=account) for account in accounts)

    async def fill(
        self, account: str, window: tuple[int, int], parallel: int, report: Report, order: RepairOrder | None = None
    ) -> Progress:
        """Back-fill one cluster now, in this process.

        Raises:
            NotOurs, StoreError, SourceError, LostOwnership
        """
        return await self.runner.fill(account, window, parallel, report, order)

    def record(self, result: TaskResult) -> None:
        """Remember the result of a task; call on the loop."""
        account, kind = result.task.account, result.task.kind
        if not result.owned:
            self._record_not_owned(result)
            return
        if kind == "extract":
            self._record_extraction(result)
        elif kind == "live":
            self._record_live(result)
        elif result.failure is not None:
            self._record_failure(result)
        elif kind == "assets":
            self._without_assets.discard(account)
        elif kind == "savings" and result.savings_day is not None:
            self._savings_day[account] = result.savings_day
        elif kind == "summaries":
            self._summed_up[account] = result.task.version
        elif kind == "clean":
            self._sum_up_everything = True
        if result.state is not None:
            self.states[account] = result.state
            self._metrics.stands(account, result.state, result.finished_at, succeeded=result.failure is None)

    def _record_extraction(self, result: TaskResult) -> None:
        account = result.task.account
        if not result.internal:
            self._attempts.note(account, result.finished_at, result.failure is not None)
        if result.state is not None:  # it came to its end, whatever the source did
            if result.silent:
                self.silent.add(account)
            else:
                self.silent.discard(account)
                self._silences_in_a_row.pop(account, None)
            if result.task.version is not None:
                self._extracted_version[account] = result.task.version
        if result.shift is not None:
            self._shifts[account] = result.shift
        if result.due_at is not None:
            self._due_at[account] = result.due_at
        if result.failure is not None:
            self._record_failure(result)
        else:
            self.failing.pop(account, None)

    def _record_live(self, result: TaskResult) -> None:
        """A rate that cannot be had is no failure of history: it fails by itself, and is told by its age."""
        account = result.task.account
        if account not in self._entry_versions and not self._accounts.one_cluster:  # unlinked meanwhile
            return
        self._live.add(account)
        if result.failure is not None:
            self._live_failing.add(account)
        else:
            self._live_failing.discard(account)
        if result.without_metrics:
            self._without_metrics[account] = result.task.version
        else:
            self._without_metrics.pop(account, None)
        self._metrics.live(account, result.live_until, result.failure is not None)

    def _record_failure(self, result: TaskResult) -> None:
        account, now = result.task.account, int(self._clock())
        self._metrics.failed(account)
        if result.task.kind == "clean":
            return
        self.failing[account] = result.failure or ""
        if account in self.silent and not result.internal:
            pause = FIRST_PAUSE_SECONDS << min(self._silences_in_a_row[account], 8)
            self._silences_in_a_row[account] += 1
            self._due_at[account] = now + min(pause, LAST_PAUSE_SECONDS)
        elif result.internal:
            self._due_at[account] = now + STORE_RETRY_SECONDS
        else:
            self._due_at[account] = min(max(self._due_at.get(account, now), now + 1), now + FIRST_PAUSE_SECONDS)

    def _record_not_owned(self, result: TaskResult) -> None:
        if result.task.kind == "extract":
            self._forget(result.task.account)
            self._due_at[result.task.account] = int(self._clock()) + FIRST_PAUSE_SECONDS

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
        for account in sorted(self._remembered().difference(known)):
            if not any(self._executor.busy(kind, account) for kind in ("extract", "live")):
                await self._executor.release(account)
                self._forget(account)
        return known

    def _forget(self, account: str) -> None:
        """Drop the state of a cluster that another worker owns, or that is gone."""
        self._attempts.forget(account)
        self._metrics.forget(account)
        for known in self._by_cluster:
            known.pop(account, None)
        for clusters in self._of_clusters:
            clusters.discard(account)

    async def _submit(self, tasks: Iterable[Task]) -> None:
        """Submit the tasks that are not under way already."""
        free = [task for task in tasks if not self._executor.busy(task.kind, task.account)]
        try:
            await self._executor.submit(free)
        except OSError as failure:
            log.warning("tasks cannot be submitted: %s", failure)
            for task in free:
                if task.kind == "extract":
                    self._due_at[task.account] = int(self._clock()) + STORE_RETRY_SECONDS
