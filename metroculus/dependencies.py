"""What the API and the worker both stand on: the way out to upstreams, which upstream an account has, the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from metroculus.config import MetroculusConfig
from metroculus.sources.accounts import Accounts, DefaultUpstream
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.registry.sqlite import SourceRegistry, load_key
from metroculus.sources.thanos.client import Querier
from metroculus.storage.store import Store, open_store


@dataclass
class Dependencies:
    """Made once a process; ``close`` gives back what they hold."""

    http: SourceHttp
    registry: SourceRegistry
    accounts: Accounts
    store: Store | None

    def close(self) -> None:
        self.http.close()
        self.registry.close()
        if self.store is not None:
            self.store.close()


def make_dependencies(config: MetroculusConfig, clock: Callable[[], float] = time.time) -> Dependencies:
    """Put them together.

    Raises:
        RegistryError, StoreError: where their files cannot be used.
    """
    http = SourceHttp(config.upstream_allow, config.kubecost_timeout)
    registry = SourceRegistry(config.data_dir / "sources.sqlite", load_key(config.data_dir, config.encryption_key))
    querier = None
    if config.thanos_query_url:
        upstream = Upstream("the metrics source", config.thanos_query_url, trusted=True)
        querier = Querier(http, upstream, config.tenant_label, clock)
    default = None
    if config.kubecost_api_url:
        default = DefaultUpstream(config.kubecost_api_url, config.kubecost_account_id, config.kubecost_flavour)
    accounts = Accounts(registry, http, querier, default, clock)
    store = open_store(config.clickhouse_url, clock) if config.clickhouse_url else None
    return Dependencies(http, registry, accounts, store)
