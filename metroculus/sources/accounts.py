"""Which sources answer for an account: its own entry, the operator's Kubecost where that is the account's, Thanos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from metroculus.cost_model.prices import CustomPrices
from metroculus.sources.kubecost.client import Flavour, KubecostSource
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.registry.sqlite import SourceRegistry
from metroculus.sources.thanos.client import ThanosSource


@dataclass(frozen=True)
class DefaultUpstream:
    """``KUBECOST_API_URL``: one cluster's. Without an account every account is that cluster."""

    url: str
    account: str | None = None
    flavour: Flavour | None = None


@dataclass(frozen=True)
class AccountSources:
    kubecost: KubecostSource | None
    thanos: ThanosSource | None
    custom_prices: CustomPrices | None = None


class Accounts:
    """Finds the sources of an account; a source that was made is kept, with what it found out about its upstream."""

    def __init__(
        self,
        registry: SourceRegistry,
        http: SourceHttp,
        thanos: ThanosSource | None,
        default: DefaultUpstream | None,
        clock: Callable[[], float],
    ) -> None:
        self.registry = registry
        self._http = http
        self._thanos = thanos
        self._default = default
        self._clock = clock
        self._made: dict[str, tuple[int, KubecostSource]] = {}

    @property
    def one_cluster(self) -> bool:
        """Every account is the one cluster behind ``KUBECOST_API_URL``."""
        return self._default is not None and self._default.account is None

    async def known(self) -> list[str]:
        """Every account that has an upstream of its own, or whose the operator's Kubecost is."""
        own = self._default.account if self._default is not None else None
        return sorted({*await self.registry.accounts(), *([own] if own is not None else [])})

    async def revision(self, account: str) -> int | None:
        """What tells the account's source from any that it had or will have; None where it has none of its own."""
        return 0 if self._default_of(account) is not None else await self.registry.revision(account)

    def _default_of(self, account: str) -> DefaultUpstream | None:
        """The operator's Kubecost, where it is the account's."""
        default = self._default
        return default if default is not None and default.account in (None, account) else None

    async def of(self, account: str) -> AccountSources:
        default = self._default_of(account)
        if default is not None:
            upstream = Upstream("the cost source", default.url, trusted=True)
            kept = self._kept(account if default.account else "", 0, upstream, default.flavour)
            return AccountSources(kept, self._thanos)
        entry = await self.registry.get(account)
        if entry is None or entry.flavour == "push":
            self._made.pop(account, None)
            return AccountSources(None, self._thanos)
        known = entry.credentials
        upstream = Upstream("the cost source", entry.url, known.headers, known.ca, owner=account)
        kept = self._kept(account, entry.revision, upstream, entry.flavour)
        return AccountSources(kept, self._thanos, known.custom_prices)

    def _kept(self, key: str, revision: int, upstream: Upstream, flavour: Flavour | None) -> KubecostSource:
        kept = self._made.get(key)
        if kept is None or kept[0] != revision:
            kept = (revision, KubecostSource(self._http, upstream, flavour, self._clock))
            self._made[key] = kept
        return kept[1]
