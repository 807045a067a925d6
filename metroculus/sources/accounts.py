"""Which sources an account has: its own entry, the operator's Kubecost where that is the account's, metrics.

This is where a flavour of upstream is registered: ``FLAVOURS`` says how a source of each is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from metroculus.sources.choose import AccountSources
from metroculus.sources.clusters import Clusters
from metroculus.sources.kubecost.client import Flavour, KubecostSource
from metroculus.sources.outbound.addresses import AllowedAddresses, check_allowed, parse_upstream_url
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.pushed import Content, Inbox, Kind, PushedSource, Step, read_content
from metroculus.sources.registry.protocol import (
    Credentials,
    MetricsCluster,
    Outdated,
    SourceEntry,
    SourceRegistry,
    TooManyTokens,
)
from metroculus.sources.source import CostSource
from metroculus.sources.thanos.client import Querier
from metroculus.sources.thanos.source import MetricsSource

__all__ = [
    "Accounts",
    "AllowedAddresses",
    "Credentials",
    "DefaultUpstream",
    "MetricsCluster",
    "Outdated",
    "SourceEntry",
    "TooManyTokens",
    "flavours",
]

T = TypeVar("T")
Clock = Callable[[], float]
MakeSource = Callable[[SourceHttp, Upstream, Clock], CostSource]

PUSH = "push"
"""The account's agent pushes metrics, or its upstream's answers, and no upstream is asked."""

PUSHING_SECONDS = 5.0
"""Seconds between two looks at which accounts have pushed something."""
FORMS_SECONDS = 60.0
"""Seconds between two looks at what the assets of accounts look like."""

FLAVOURS: dict[str, MakeSource] = {
    "kubecost": lambda http, upstream, clock: KubecostSource(http, upstream, "kubecost", clock),
    "opencost": lambda http, upstream, clock: KubecostSource(http, upstream, "opencost", clock),
}
"""How a source of each flavour is made; the names are what ``PUT kubecost_sources`` takes beside ``push``."""


def flavours() -> tuple[str, ...]:
    """What an entry's flavour may be."""
    return (*FLAVOURS, PUSH)


@dataclass(frozen=True)
class DefaultUpstream:
    """``KUBECOST_API_URL``: one cluster's. Without an account every account is that cluster."""

    url: str
    account: str | None = None
    flavour: Flavour | None = None


class _Snapshot(Generic[T]):
    """What one question said, for all who ask within some seconds; who asks meanwhile waits for the same answer."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._said: tuple[float, T] | None = None
        self._asking: asyncio.Task[T] | None = None

    async def get(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._said is not None and 0 <= self._clock() - self._said[0] < self._seconds:
            return self._said[1]
        if self._asking is None:
            self._asking = asyncio.ensure_future(ask())
            self._asking.add_done_callback(self._answered)
        return await asyncio.shield(self._asking)

    def _answered(self, asked: asyncio.Task[T]) -> None:
        self._asking = None
        if not asked.cancelled() and asked.exception() is None:
            self._said = (self._clock(), asked.result())


class Accounts:
    """Finds the sources of an account; a source that was made is kept, with what it found out about its upstream."""

    def __init__(
        self,
        registry: SourceRegistry,
        http: SourceHttp,
        querier: Querier | None,
        default: DefaultUpstream | None,
        clock: Clock,
        makers: Mapping[str, MakeSource] | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        self._inbox = inbox
        self._pushing: set[str] = set()
        """Accounts whose upstream's answers were pushed, as far as that is known here."""
        self._pushed_once = _Snapshot[Sequence[str]](PUSHING_SECONDS, clock)
        self._forms = _Snapshot[Mapping[str, str]](FORMS_SECONDS, clock)
        self.registry = registry
        self._http = http
        self._querier = querier
        self._default = default
        self._clock = clock
        self._makers = FLAVOURS if makers is None else makers
        self._made: dict[str, tuple[int, CostSource]] = {}
        self._of_metrics: dict[str, tuple[object, MetricsSource]] = {}

    @property
    def one_cluster(self) -> bool:
        """Every account is the one cluster behind ``KUBECOST_API_URL``."""
        return self._default is not None and self._default.account is None

    async def known(self) -> dict[str, int]:
        """Every account that has an upstream of its own, or whose the operator's Kubecost is, in order.

        Each with a number that changes whenever its source entry does.
        """
        own = self._default.account if self._default is not None else None
        entry_versions = await self.registry.entry_versions() | ({own: 0} if own is not None else {})
        self._of_metrics = {one: kept for one, kept in self._of_metrics.items() if one in entry_versions}
        return dict(sorted(entry_versions.items()))

    async def revision(self, account: str) -> int | None:
        """A number that changes whenever the account's source entry changes; None where it has no source of its own."""
        return 0 if self._default_of(account) is not None else await self.registry.revision(account)

    def remembered_revision(self, account: str) -> tuple[int | None] | None:
        """``revision`` without asking anybody; None where it was not asked for lately."""
        return (0,) if self._default_of(account) is not None else self.registry.remembered_revision(account)

    async def of(self, account: str) -> AccountSources:
        """The account's sources, in order of authority.

        Raises:
            RegistryError
        """
        default = self._default_of(account)
        if default is not None:
            upstream = Upstream("the cost source", default.url, trusted=True)

            def make() -> CostSource:
                return KubecostSource(self._http, upstream, default.flavour, self._clock)

            own_cluster = Clusters() if default.account else None
            behind = self._metrics(account, own_cluster)
            return AccountSources([self._kept(account if default.account else "", 0, make), *behind])
        entry = await self.registry.get(account)
        if entry is None:
            self._made.pop(account, None)
            return AccountSources(self._metrics(account))
        known = entry.credentials
        clusters = Clusters(known.clusters)
        behind = self._metrics(account, clusters, known.thanos)
        if entry.flavour == PUSH:
            # Of an account that pushes metrics alone these are the first source.
            pushed = await self._pushed(entry) if not behind or await self._has_pushed(account) else None
            if pushed is None:
                return AccountSources(behind, known.custom_prices, clusters, known.currency)
            own: CostSource = pushed
        else:
            own = self._own(entry)
        own.clusters = clusters
        return AccountSources([own, *behind], known.custom_prices, clusters, known.currency)

    async def look_up(self, accounts: Sequence[str]) -> None:
        """Read the entries of many accounts in one go, before each is asked for."""
        await self.registry.look_up(accounts)

    async def of_all(self, accounts: Sequence[str]) -> dict[str, AccountSources]:
        """``of`` many accounts, whose entries are read in one go.

        Raises:
            RegistryError
        """
        await self.look_up(accounts)
        return dict(zip(accounts, await asyncio.gather(*map(self.of, accounts)), strict=True))

    async def _pushed(self, entry: SourceEntry) -> CostSource | None:
        """What the account's agent pushed; None where nothing of that is kept."""
        inbox, account = self._inbox, entry.cloud_account_id
        if inbox is None:
            self._made.pop(account, None)
            return None
        source = self._kept(
            account, entry.revision, lambda: PushedSource(inbox, account, self._http.offload, self._clock)
        )
        assert isinstance(source, PushedSource)
        if await self._has_pushed(account):
            await source.learn(await self._assets_form(inbox, account))
        return source

    async def _assets_form(self, inbox: Inbox, account: str) -> str:
        """What an account's last assets looked like; one question for all accounts answers it for a minute."""
        return (await self._forms.get(inbox.assets_forms)).get(account, "")

    def note_pushed(self, account: str) -> None:
        """Something was pushed of an account: it is known at once, and not after the next look."""
        self._pushing.add(account)

    async def _has_pushed(self, account: str) -> bool:
        """Whether an upstream's answers were ever pushed; one question for all accounts answers it for some seconds."""
        if self._inbox is None or account in self._pushing:
            return account in self._pushing
        self._pushing.update(await self._pushed_once.get(self._inbox.accounts))
        return account in self._pushing

    async def pushes(self, account: str) -> bool:
        """Whether an account's costs are pushed.

        Raises:
            RegistryError
        """
        entry = await self.registry.get(account)
        return entry is not None and entry.flavour == PUSH

    async def read_pushed(self, kind: Kind, step: Step, first: int, last: int, packed: bytes) -> Content:
        """What an answer that was pushed holds.

        Raises:
            TooLarge, BadAnswer
        """
        return await read_content(self._http.offload, kind, step, first, last, packed, int(self._clock()))

    def _metrics(
        self, account: str, clusters: Clusters | None = None, series: MetricsCluster | None = None
    ) -> list[CostSource]:
        """The metrics of an account, where there is a querier.

        Those of an account with an entry are kept, with what was learned of how they are written.
        """
        if self._querier is None:
            return []
        selected = (series.label, series.value) if series is not None else None
        if clusters is None:  # no entry: whatever account was asked for, of which there are any number
            self._of_metrics.pop(account, None)
            return [MetricsSource(self._querier, account)]
        meant = (clusters, selected)
        kept = self._of_metrics.get(account)
        if kept is None or kept[0] != meant:
            kept = (meant, MetricsSource(self._querier, account, clusters, selected))
            self._of_metrics[account] = kept
        return [kept[1]]

    @staticmethod
    async def checked_url(text: str, allowed: AllowedAddresses) -> str:
        """An upstream's URL as it is stored.

        Raises:
            ValueError: it is none.
            AddressRefused: the operator does not allow where it leads.
        """
        url = parse_upstream_url(text)
        await check_allowed(url, allowed)
        return url.text

    def _default_of(self, account: str) -> DefaultUpstream | None:
        """The operator's Kubecost, where it is the account's."""
        default = self._default
        return default if default is not None and default.account in (None, account) else None

    def _own(self, entry: SourceEntry) -> CostSource:
        known = entry.credentials
        owner = entry.cloud_account_id
        upstream = Upstream("the cost source", entry.url, known.headers, known.ca, owner=owner)
        return self._kept(owner, entry.revision, lambda: self._makers[entry.flavour](self._http, upstream, self._clock))

    def _kept(self, key: str, revision: int, make: Callable[[], CostSource]) -> CostSource:
        kept = self._made.get(key)
        if kept is None or kept[0] != revision:
            kept = (revision, make())
            self._made[key] = kept
        return kept[1]
