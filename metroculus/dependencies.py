"""What the API and the worker both stand on: the way out to upstreams, which upstream an account has, the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from metroculus.config import MetroculusConfig
from metroculus.sources.accounts import Accounts, DefaultUpstream
from metroculus.sources.errors import BadAnswer, RegistryError
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.pushed import Pushed
from metroculus.sources.registry.etcd import EtcdEntries
from metroculus.sources.registry.protocol import KEY_FILE, SourceRegistry, load_keys
from metroculus.sources.registry.sqlite import SqliteEntries
from metroculus.sources.thanos.client import Querier
from metroculus.storage.inbox import PiecesLost, PushedAnswer
from metroculus.storage.store import Store, open_store
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


READ_AHEAD_BYTES = 8 << 20
"""Of bodies, as gzip, that are read with one question."""


class _Bodies:
    """Bodies of answers. With one that is asked for those behind it are read: hours are small, and many."""

    def __init__(self, store: Store, answers: Sequence[PushedAnswer]) -> None:
        self._store = store
        self._answers = answers
        """The one that counts before the others to the same question."""
        self._read: dict[int, bytes] = {}
        self._asked: set[int] = set()

    async def of(self, answer: PushedAnswer) -> bytes:
        """The body of one of them as gzip.

        Raises:
            BadAnswer, StoreError
        """
        inbox, run = self._store.inbox, self._store.run
        if answer.answer not in self._read:
            self._read = await run(inbox.packed_of, [answer, *self._behind(answer)])
        self._asked.add(answer.answer)
        found = self._read.pop(answer.answer, None)
        try:
            return found if found is not None else await run(inbox.packed, answer)
        except PiecesLost as failure:
            raise BadAnswer(str(failure)) from None

    def _behind(self, answer: PushedAnswer) -> Iterator[PushedAnswer]:
        """Others of its kind that were not asked for, one to each question, as far as they are small together."""
        seen, size = {answer.question}, answer.bytes
        for one in self._answers:
            alike = (one.kind, one.step) == (answer.kind, answer.step) and bool(one.told)
            known = one.answer in self._asked or one.question in seen
            if not alike or known or size + one.bytes > READ_AHEAD_BYTES:
                continue
            seen.add(one.question)
            size += one.bytes
            yield one


class StoredInbox:
    """The store's inbox, as the source of what was pushed reads it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def answers(self, account: str, start: int, end: int) -> Sequence[Pushed]:
        """Raises: StoreError"""
        found = await self._store.run(self._store.inbox.overlapping, account, start, end)
        bodies = _Bodies(self._store, found)
        return [
            Pushed(
                kind=one.kind,
                step=one.step,
                first=one.first,
                last=one.last,
                told=one.told,
                asked_at=one.asked_at,
                received_at=one.received_at,
                packed=partial(bodies.of, one),
            )
            for one in found
        ]

    async def accounts(self) -> Sequence[str]:
        """Raises: StoreError"""
        return await self._store.run(self._store.inbox.accounts)

    async def assets_form(self, account: str) -> str:
        """Raises: StoreError"""
        return await self._store.run(self._store.inbox.assets_form, account)

    async def assets_forms(self) -> Mapping[str, str]:
        """Raises: StoreError"""
        return await self._store.run(self._store.inbox.assets_forms)

    async def currency(self, account: str) -> str:
        """Raises: StoreError"""
        return await self._store.run(self._store.inbox.currency, account)


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
