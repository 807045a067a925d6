"""The worker's round of alerts: observe, hold against what each kind fires on, keep what changed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from metroculus.cost_model.allocation import Filters
from metroculus.metroculus_worker.attempts import AttemptLog
from metroculus.metroculus_worker.daily import settled_day
from metroculus.metroculus_worker.metrics import WorkerMetrics
from metroculus.metroculus_worker.ownership import Lease, Owners
from metroculus.sources.accounts import PUSH, Accounts
from metroculus.sources.errors import NoSource, RegistryError, SourceError
from metroculus.storage.engine import StoreError
from metroculus.storage.ledger import NewestHour
from metroculus.storage.store import Store
from metroculus.watch.alerts import PLATFORM, Alert, Finding, advance, resolve_gone
from metroculus.watch.budgets import BudgetReader, StoredBudget, read_budget
from metroculus.watch.findings import (
    SPIKE_HOURS,
    Compared,
    budget_findings,
    cost_spike,
    data_stale,
    drift,
    extraction_failing,
    not_pushed,
    push_silent,
    store_capacity,
    threshold_subject,
)
from metroculus.watch.spikes import find_spikes
from tools.deadline import Deadline
from tools.window import DAY, HOUR, SETTLING_SECONDS

log = logging.getLogger("alerts")

LOOK_BACK_SECONDS = 7 * DAY
"""A newest hour that is older than this is as good as none."""
EVALUATED_AT_ONCE = 2
"""Clusters, or budgets of organizations, that are worked out side by side."""
BUDGET_SECONDS = 60.0
STARTING_SECONDS = 120.0
TAKEOVER_SECONDS = 900.0
"""After so long a worker evaluates organizations whose clusters it does not extract, and takes silence for a try."""
COMPARED_AGAIN_SECONDS = HOUR
"""After a day could not be compared."""

_ALERT = msgspec.json.Decoder(Alert)
_ACCOUNTS = msgspec.json.Decoder(list[str])
_COMPARED = msgspec.json.Decoder(Compared)


@dataclass
class _Organization:
    """What is kept of one organization that alerts need."""

    accounts: dict[str, int] = field(default_factory=dict)
    """With when each became the organization's."""
    budgets: list[StoredBudget] = field(default_factory=list)
    alerts: dict[str, Alert] = field(default_factory=dict)
    compared: dict[str, Compared] = field(default_factory=dict)


class _Observed(Struct, frozen=True):
    """What one round has seen of all clusters."""

    now: int
    newest: Mapping[str, NewestHour]
    heard: Mapping[str, int]
    """When agents were heard of last, of clusters that push."""
    pushed_before: frozenset[str]
    """Clusters of which something was pushed, and whose source is another now."""
    store_share: float | None


class AlertRound:
    """Evaluates every organization that this worker owns the alerts of.

    Args:
        owners: None where one worker leads all others, and alone makes rounds.
        store_bytes: what the store may take; None is its volume.
        targets: where transitions are owed to.
    """

    def __init__(
        self,
        store: Store,
        accounts: Accounts,
        budgets: BudgetReader,
        attempts: AttemptLog,
        owners: Owners | None,
        metrics: WorkerMetrics,
        clock: Callable[[], float],
        seconds_a_call: float,
        store_bytes: int | None,
        targets: tuple[str, ...],
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._budgets = budgets
        self._attempts = attempts
        self._owners = owners
        self._metrics = metrics
        self._clock = clock
        self._seconds_a_call = seconds_a_call
        self._store_bytes = store_bytes
        self._targets = targets
        self._leases: dict[str, Lease] = {}
        self.active = True
        """Whether this worker makes rounds."""
        self._began = time.monotonic()
        self._first_seen: dict[tuple[str, str], int] = {}
        """When this worker saw first that an organization has an account."""
        self._running = asyncio.Lock()
        self._comparing = asyncio.Lock()
        self._places = asyncio.Semaphore(EVALUATED_AT_ONCE)
        self._computed: dict[str, tuple[object, list[Finding]]] = {}
        """By what it is of, the findings that take reading many hours, and what they were made of."""
        self._tried_at: dict[tuple[str, int], int] = {}
        """When a day of a cluster was compared in vain."""

    async def evaluate(self) -> None:
        """One round; where the store does not answer, nothing fires and nothing is resolved."""
        if self._running.locked() or not self.active:
            return
        async with self._running:
            try:
                observed, organizations = await self._observe()
            except (StoreError, RegistryError, OSError) as failure:
                log.warning("alerts cannot be evaluated: %s", failure)
                return
            self._metrics.observed(observed.heard, observed.store_share)
            for name, one in organizations.items():
                try:
                    if await self._take(name, one):
                        await self._keep(name, one, await self._findings(name, one, observed), observed.now)
                except (StoreError, RegistryError, OSError) as failure:  # the others are looked at nevertheless
                    log.warning("alerts of organization %s cannot be evaluated: %s", name, failure)
            alerts = (alert for one in organizations.values() for alert in one.alerts.values())
            self._metrics.alerting(alert for alert in alerts if alert.state == "firing")

    async def compare_days(self) -> None:
        """Hold the last settled day of clusters that two sources tell against each other, once a day."""
        if self._comparing.locked():
            return
        async with self._comparing:
            try:
                organizations = await self._organizations()
                day = settled_day(int(self._clock()))
                for name, one in organizations.items():
                    for account in one.accounts:
                        known = one.compared.get(account)
                        if (known is None or known.day != day) and self.owns(name):
                            await self._compare(name, account, day)
            except (StoreError, RegistryError) as failure:
                log.warning("days cannot be compared: %s", failure)

    async def close(self) -> None:
        for lease in self._leases.values():
            await lease.release()

    def owns(self, organization: str) -> bool:
        """Whether this worker evaluates an organization's alerts now, as far as it knows."""
        return self.active and self._lease(organization).held

    def _lease(self, organization: str) -> Lease:
        if organization not in self._leases:
            self._leases[organization] = Lease(self._store, self._owners, f"{organization}.alerts")
        return self._leases[organization]

    async def _take(self, organization: str, one: _Organization) -> bool:
        """Whoever extracts its clusters evaluates it: how that fails is known there alone.

        A worker that has only begun may be that one; later it leaves to others what it does not extract, and takes up
        what nobody does.
        """
        lease = self._lease(organization)
        extracts = organization == PLATFORM or any(self._attempts.knows(account) for account in one.accounts)
        if self._owners is not None and not extracts and STARTING_SECONDS < self._uptime() < TAKEOVER_SECONDS:
            await lease.release()
            return False
        return await lease.take() and self.active

    def _uptime(self) -> float:
        """Seconds since this worker began to look."""
        return time.monotonic() - self._began

    async def _observe(self) -> tuple[_Observed, dict[str, _Organization]]:
        """Raises: StoreError, RegistryError"""
        run, now = self._store.run, int(self._clock())
        heard = await run(self._store.inbox.heard)
        pushed = {account for account in heard if await self._is_pushed(account)}
        observed = _Observed(
            now=now,
            newest=await run(self._store.ledger.newest_hours, now - LOOK_BACK_SECONDS),
            heard={account: at for account, at in heard.items() if account in pushed},
            pushed_before=frozenset(heard.keys() - pushed),
            store_share=await self._share_of_store(),
        )
        organizations = await self._organizations()
        if not self._accounts.one_cluster:
            known = await self._accounts.known()
            for one in organizations.values():  # a cluster that was unlinked is watched no more
                one.accounts = {account: since for account, since in one.accounts.items() if account in known}
        return observed, organizations

    async def _share_of_store(self) -> float | None:
        if self._store_bytes is None:
            return await self._store.run(self._store.maintenance.share_of_volume)
        return await self._store.run(self._store.maintenance.bytes_on_disk) / self._store_bytes

    async def _organizations(self) -> dict[str, _Organization]:
        documents = self._store.documents
        newest = await self._store.run(documents.of_all, ("accounts", "budget", "alert", "drift"))
        found = {PLATFORM: _Organization()}
        for one in newest:
            known = found.setdefault(one.organization, _Organization())
            if one.kind == "accounts":
                for account in _ACCOUNTS.decode(one.body):
                    since = self._first_seen.setdefault((one.organization, account), one.changed_at)
                    known.accounts[account] = min(since, one.changed_at)
            elif one.kind == "alert":
                known.alerts[one.name] = _ALERT.decode(one.body)
            elif one.kind == "drift":
                known.compared[one.name] = _COMPARED.decode(one.body)
            elif one.body:
                known.budgets.append(read_budget(one))
        return found

    async def _findings(self, name: str, one: _Organization, observed: _Observed) -> list[Finding]:
        if name == PLATFORM:
            return [store_capacity(observed.store_share)]
        found: list[Finding] = []
        for account, since in one.accounts.items():
            found.append(extraction_failing(account, self._attempts.of(account)))
            tried = self._attempts.knows(account) or self._uptime() > TAKEOVER_SECONDS
            newest = observed.newest.get(account)
            stored_until = None if newest is None else newest.end
            found.append(data_stale(account, stored_until, since, tried, observed.now))
            if account in one.compared:
                found.append(drift(account, one.compared[account], settled_day(observed.now)))
            if account in observed.heard:
                found.append(push_silent(account, observed.heard[account], observed.now))
            elif account in observed.pushed_before:
                found.append(not_pushed(account))
        spikes = [self._spike(account, observed) for account in one.accounts]
        for several in await asyncio.gather(*spikes, self._of_budgets(name, one, observed)):
            found += several
        return found

    async def _is_pushed(self, account: str) -> bool:
        """As its entry says; of one that cannot be read nothing is taken for changed."""
        try:
            entry = await self._accounts.registry.get(account)
        except RegistryError:
            return True
        return entry is not None and entry.flavour == PUSH

    async def _spike(self, account: str, observed: _Observed) -> list[Finding]:
        """Worked out where an hour was stored or has settled since."""
        settled = observed.now - SETTLING_SECONDS
        settled -= settled % HOUR
        newest = observed.newest.get(account)
        inputs = (None if newest is None else newest.sequence, settled)
        known = self._computed.get(account)
        if known is not None and known[0] == inputs:
            return known[1]
        try:
            filters = Filters(clusters=(await self._accounts.of(account)).clusters.named)
            async with self._places:
                start = settled - 2 * SPIKE_HOURS * HOUR
                spikes = await self._store.run(find_spikes, self._store, account, start, settled, filters)
        except (StoreError, RegistryError) as failure:  # other clusters do not wait for this one
            log.warning("account %s: spikes cannot be looked for: %s", account, failure)
            return []
        found = [cost_spike(account, spikes, settled)]
        self._computed[account] = inputs, found
        return found

    async def _of_budgets(self, name: str, one: _Organization, observed: _Observed) -> list[Finding]:
        if not one.budgets:
            return []
        versions = tuple(observed.newest.get(account) for account in one.accounts)
        inputs = (tuple(one.budgets), tuple(one.accounts), versions, observed.now // HOUR)
        known = self._computed.get(f"budgets {name}")
        if known is not None and known[0] == inputs:
            return known[1]
        try:
            async with self._places:
                states = await self._budgets.states(name, one.budgets, Deadline(BUDGET_SECONDS))
        except (StoreError, RegistryError) as failure:  # the organization's other alerts do not wait for its budgets
            log.warning("budgets of organization %s cannot be held against the store: %s", name, failure)
            return []
        found = [finding for state in states for finding in budget_findings(state)]
        self._computed[f"budgets {name}"] = inputs, found
        return found

    async def _keep(self, name: str, one: _Organization, findings: Iterable[Finding], now: int) -> None:
        """Write the alerts that changed."""
        by_subject = {(alert.kind, alert.subject): alert for alert in one.alerts.values()}
        changed: dict[str, Alert] = {}

        def put(before: Alert | None, after: Alert | None) -> None:
            if after is not None and after is not before:
                changed[after.id] = after
                one.alerts[after.id] = after
                if before is None or before.transition != after.transition:
                    log.warning("alert %s of organization %s: %s %s", after.kind, name, after.subject, after.state)

        for finding in findings:
            alert = by_subject.pop((finding.kind, finding.subject), None)
            put(alert, advance(name, alert, finding, now, self._targets))
        for (kind, subject), alert in by_subject.items():
            if _is_gone(alert, one):
                put(alert, resolve_gone(alert, now, self._targets))
            else:
                unknown = Finding(kind=kind, subject=subject, verdict="unknown", epoch=alert.epoch)
                put(alert, advance(name, alert, unknown, now, self._targets))
        if changed:
            bodies = {key: msgspec.json.encode(alert).decode() for key, alert in changed.items()}
            await self._store.run(self._store.documents.put_all, name, "alert", bodies)

    async def _compare(self, name: str, account: str, day: int) -> None:
        """Keep what two sources say of a day; tried again within the hour where one of them does not say it."""
        now, key = int(self._clock()), (account, day)
        if self._tried_at.get(key, 0) + COMPARED_AGAIN_SECONDS > now:
            return
        self._tried_at = {one: at for one, at in self._tried_at.items() if one[1] >= day - DAY} | {key: now}
        try:
            sources = await self._accounts.of(account)
            told = await sources.day_by_two(day, self._seconds_a_call)
            if told is None:
                return
            currency = await sources.currency(Deadline(self._seconds_a_call))
        except (SourceError, NoSource) as failure:
            log.info("account %s: a day cannot be compared: %s", account, failure)
            return
        if None in told:
            return
        body = Compared(day=day, by_api=told[0], by_metrics=told[1], currency=currency)
        await self._store.run(self._store.documents.put, name, "drift", account, msgspec.json.encode(body).decode())


def _is_gone(alert: Alert, one: _Organization) -> bool:
    """Whether what an alert is about does not exist any more: its cluster, its budget, or its threshold."""
    if alert.kind == "budget":
        return not any(
            alert.subject == threshold_subject(stored.id, threshold.on, threshold.percent)
            for stored in one.budgets
            for threshold in stored.budget.thresholds
        )
    return alert.cloud_account_id is not None and alert.cloud_account_id not in one.accounts
