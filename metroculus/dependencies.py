"""What the API and the worker both stand on: the way out to upstreams, which upstream an account has, the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metroculus.config import MetroculusConfig
from metroculus.sources.accounts import Accounts, DefaultUpstream
from metroculus.sources.errors import RegistryError
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.registry.etcd import EtcdEntries
from metroculus.sources.registry.protocol import KEY_FILE, SourceRegistry, load_keys
from metroculus.sources.registry.sqlite import SqliteEntries
from metroculus.sources.thanos.client import Querier
from metroculus.storage.store import Store, open_store
from metroculus.stored_inbox import StoredInbox
from optscale_client.config_client import ConfigError, EtcdConfig


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


def open_registry(config: MetroculusConfig, clock: Callable[[], float] = time.time) -> SourceRegistry:
    """The registry of sources that ``REGISTRY_URL`` names.

    Raises:
        RegistryError
    """
    if config.registry_url is None or not config.registry_url.startswith("etcd:"):
        file = Path(config.registry_url.partition(":")[2]) if config.registry_url else registry_file(config)
        kept = SqliteEntries(file)
        if config.encryption_key is None and not (config.data_dir / KEY_FILE).exists() and kept.accounts():
            kept.close()
            raise RegistryError(
                f"{config.data_dir / KEY_FILE} is missing, and {file} holds credentials that were sealed under it:"
                " restore it, or set ENCRYPTION_KEY"
            )
        return SourceRegistry(kept, load_keys(config.data_dir, config.encryption_key), now=clock)
    if config.encryption_key is None:
        raise RegistryError("REGISTRY_URL=etcd://… needs ENCRYPTION_KEY: a key file would be of this machine alone")
    try:
        entries = EtcdEntries(EtcdConfig(config.registry_url))
    except ConfigError as problem:
        raise RegistryError(f"REGISTRY_URL: {problem}") from None
    return SourceRegistry(entries, load_keys(config.data_dir, config.encryption_key), now=clock)


def registry_file(config: MetroculusConfig) -> Path:
    """Where the registry is kept by default."""
    return config.data_dir / "sources.sqlite"


def make_dependencies(config: MetroculusConfig, clock: Callable[[], float] = time.time) -> Dependencies:
    """Put them together.

    Raises:
        RegistryError, StoreError: where their files cannot be used.
    """
    http = SourceHttp(config.upstream_allow, config.kubecost_timeout)
    registry = open_registry(config, clock)
    querier = None
    if config.thanos_query_url:
        upstream = Upstream("the metrics source", config.thanos_query_url, trusted=True)
        querier = Querier(http, upstream, config.tenant_label, clock, config.replica_labels)
    default = None
    if config.kubecost_api_url:
        default = DefaultUpstream(config.kubecost_api_url, config.kubecost_account_id, config.kubecost_flavour)
    store = open_store(config.clickhouse_url, clock) if config.clickhouse_url else None
    inbox = StoredInbox(store) if store is not None else None
    accounts = Accounts(registry, http, querier, default, clock, inbox=inbox)
    return Dependencies(http, registry, accounts, store)
