"""The worker's rounds: what is due of which cluster goes to whoever does the work; what became of it is remembered."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from metroculus.metroculus_worker.backfill import Progress, Report
from metroculus.metroculus_worker.daily import settled_day
from metroculus.metroculus_worker.extract import RepairOrder
from metroculus.metroculus_worker.metrics import Freshness, WorkerMetrics
from metroculus.metroculus_worker.plan import CLOSED_AFTER_SECONDS
from metroculus.metroculus_worker.tasks import Done, Hands, Task
from metroculus.metroculus_worker.works import Works
from metroculus.sources.accounts import Accounts
from metroculus.sources.errors import RegistryError
from metroculus.storage.engine import StoreError
from metroculus.storage.store import Store
from tools.window import DAY, HOUR

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

    The rounds keep in memory when each cluster is due next, so that a round gives out only the clusters that are. A
    cluster of which nothing is known is due.

    Args:
        hands: who does the work, and calls ``took`` with what became of it.
        works: the work that is done by this process itself.
    """

    def __init__(
        self,
        store: Store,
        accounts: Accounts,
        hands: Hands,
        works: Works,
        metrics: WorkerMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._hands = hands
        self._metrics = metrics
        self._clock = clock
        self.works = works
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
        self._silences_in_a_row: Counter[str] = Counter()
        self._shifts: dict[str, int] = {}
        self._extracted_version: dict[str, int | None] = {}
        """By cluster, the version of the entry that its last round used."""
        self._without_assets: set[str] = set()
        self._savings_day: dict[str, int] = {}
        """The last day of which savings are stored."""
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
        )

    @property
    def _of_clusters(self) -> tuple[set[str], ...]:
        return self.silent, self._without_assets

    def forget_all(self) -> None:
        """Begin anew: everything is due."""
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
        await self._give(self._extraction(account) for account in known if self._may_extract(account))
        return max(int(now) + 1, min((self._due_at.get(account, now) for account in known), default=now + HOUR))

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
        )

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
        return any(self._may_extract(account) for account in self._listed)

    def _may_extract(self, account: str) -> bool:
        return self._is_due(account) and not self._hands.busy("extract", account)

    def _is_due(self, account: str) -> bool:
        """No cluster waits longer than an hour; a later due time comes from a clock that was set back."""
        now, due_at = self._clock(), self._due_at.get(account, 0)
        return due_at <= now or due_at > now + HOUR

    async def assets_all(self, again: bool = False) -> None:
        """The days of assets that lack or may still change; ``again`` only where the last try failed."""
        known = await self._known() or []
        wanted = [account for account in known if account in self._without_assets or not again]
        self._without_assets.update(wanted)
        await self._give(Task(kind="assets", account=account) for account in wanted)

    async def savings_all(self) -> None:
        """What could be saved as of the last day, and assets, of each cluster that they could not be had of yet."""
        if self._without_assets:
            await self.assets_all(again=True)
        day = settled_day(int(self._clock()))
        known = await self._known() or []
        lacking = [account for account in known if self._savings_day.get(account) != day]
        await self._give(Task(kind="savings", account=account) for account in lacking)

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
        await self._give(
            Task(kind="summaries", account=account, version=versions[account], everything=everything)
            for account in changed
        )
        try:
            self._metrics.store_bytes.set(await self._store.run(self._store.maintenance.bytes_on_disk))
        except StoreError as failure:
            log.info("the size of the store cannot be read: %s", failure)

    async def clean(self) -> None:
        """Drop what is older than is kept, sweep, and sum up whatever was left out."""
        await self._give([Task(kind="clean")])
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
        await self._give(Task(kind="backfills", account=account) for account in accounts)

    async def fill(
        self, account: str, window: tuple[int, int], parallel: int, report: Report, order: RepairOrder | None = None
    ) -> Progress:
        """Back-fill one cluster now, in this process.

        Raises:
            NotOurs, StoreError, SourceError, LostOwnership
        """
        return await self.works.fill(account, window, parallel, report, order)

    def took(self, done: Done) -> None:
        """What became of a task; call on the loop."""
        account, kind = done.task.account, done.task.kind
        if not done.owned:
            self._not_ours(done)
            return
        if kind == "extract":
            self._took_extraction(done)
        elif done.failure is not None:
            self._failed(done)
        elif kind == "assets":
            self._without_assets.discard(account)
        elif kind == "savings" and done.day is not None:
            self._savings_day[account] = done.day
        elif kind == "summaries":
            self._summed_up[account] = done.task.version
        elif kind == "clean":
            self._sum_up_everything = True
        if done.state is not None:
            self.states[account] = done.state
            self._metrics.stands(account, done.state, done.at, succeeded=done.failure is None)

    def _took_extraction(self, done: Done) -> None:
        account = done.task.account
        if done.state is not None:  # it came to its end, whatever the source did
            if done.silent:
                self.silent.add(account)
            else:
                self.silent.discard(account)
                self._silences_in_a_row.pop(account, None)
            if done.task.version is not None:
                self._extracted_version[account] = done.task.version
        if done.shift is not None:
            self._shifts[account] = done.shift
        if done.due_at is not None:
            self._due_at[account] = done.due_at
        if done.failure is not None:
            self._failed(done)
        else:
            self.failing.pop(account, None)

    def _failed(self, done: Done) -> None:
        account, now = done.task.account, int(self._clock())
        self._metrics.failed(account)
        if done.task.kind == "clean":
            return
        self.failing[account] = done.failure or ""
        if account in self.silent and not done.ours:
            pause = FIRST_PAUSE_SECONDS << min(self._silences_in_a_row[account], 8)
            self._silences_in_a_row[account] += 1
            self._due_at[account] = now + min(pause, LAST_PAUSE_SECONDS)
        elif done.ours:
            self._due_at[account] = now + STORE_RETRY_SECONDS
        else:
            self._due_at[account] = min(max(self._due_at.get(account, now), now + 1), now + FIRST_PAUSE_SECONDS)

    def _not_ours(self, done: Done) -> None:
        if done.task.kind == "extract":
            self._forget(done.task.account)
            self._due_at[done.task.account] = int(self._clock()) + FIRST_PAUSE_SECONDS

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
            if not self._hands.busy("extract", account):
                await self._hands.let_go(account)
                self._forget(account)
        return known

    def _forget(self, account: str) -> None:
        """Drop the state of a cluster that another worker owns, or that is gone."""
        if account in self.states:
            self._metrics.forget(account)
        for known in self._by_cluster:
            known.pop(account, None)
        for clusters in self._of_clusters:
            clusters.discard(account)

    async def _give(self, tasks: Iterable[Task]) -> None:
        """Have tasks done that are not under way."""
        free = [task for task in tasks if not self._hands.busy(task.kind, task.account)]
        try:
            await self._hands.give(free)
        except OSError as failure:
            log.warning("work cannot be given out: %s", failure)
            for task in free:
                if task.kind == "extract":
                    self._due_at[task.account] = int(self._clock()) + STORE_RETRY_SECONDS
