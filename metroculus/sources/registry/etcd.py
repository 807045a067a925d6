"""The registry of sources in etcd, for services and workers of many machines."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import msgspec

from metroculus.sources.errors import EntryUnreadable, RegistryError
from metroculus.sources.registry.protocol import StoredEntry

log = logging.getLogger("registry")

PREFIX = "/metroculus/sources/"
REMOVED = "/metroculus/removed/"
"""When an account's entry was removed (Unix seconds), until its history is purged."""

_ENCODER = msgspec.json.Encoder(enc_hook=str)
"""Kinds of text (ids) are text."""
_ENTRY = msgspec.json.Decoder(StoredEntry)


class Etcd(Protocol):
    """What is needed of an etcd: clients of ``etcd3``, with a timeout, and waiting for a change under a prefix."""

    def client(self) -> Any: ...

    def wait_for_change(self, client: Any, prefix: str, revision: int, seconds: float) -> None: ...


class EtcdEntries:
    """Entries as keys; the client is made anew after it failed.

    Raises:
        RegistryError: from every method, where etcd does not answer in time.
    """

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._client: Any = None

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _asked(self, what: Any) -> Any:
        """What ``what`` makes of a client."""
        client = self._client
        try:
            if client is None:
                client = self._client = self._etcd.client()
            return what(client)
        except Exception as problem:  # noqa: BLE001  (etcd3 raises grpc's own, its own and plain ones alike)
            self.close()
            log.warning("etcd failed: %s: %.200s", type(problem).__name__, problem)
            raise RegistryError(f"the registry of sources cannot be used: etcd, {type(problem).__name__}") from None

    def read(self, account: str) -> StoredEntry | None:
        value = self._asked(lambda client: client.get(PREFIX + account)[0])
        return None if value is None else _read(value)

    def revision(self, account: str) -> int | None:
        entry = self.read(account)
        return None if entry is None else entry.revision

    def accounts(self) -> list[str]:
        return sorted(self.entry_versions())

    def entry_versions(self) -> dict[str, int]:
        keys = self._asked(lambda client: [about for _, about in client.get_prefix(PREFIX, keys_only=True)])
        return {about.key.decode()[len(PREFIX) :]: about.mod_revision for about in keys}

    def create(self, entry: StoredEntry) -> bool:
        key = PREFIX + entry.cloud_account_id

        def put(client: Any) -> bool:
            done, _ = client.transaction(
                compare=[client.transactions.version(key) == 0],
                success=[client.transactions.put(key, _ENCODER.encode(entry))],
                failure=[],
            )
            return bool(done)

        return bool(self._asked(put))

    def write(self, entry: StoredEntry) -> None:
        self._asked(lambda client: client.put(PREFIX + entry.cloud_account_id, _ENCODER.encode(entry)))

    def replace(self, entry: StoredEntry, revision: int) -> bool:
        key = PREFIX + entry.cloud_account_id

        def swap(client: Any) -> bool:
            value, about = client.get(key)
            if value is None or _read(value).revision != revision:
                return False
            done, _ = client.transaction(
                compare=[client.transactions.mod(key) == about.mod_revision],
                success=[client.transactions.put(key, _ENCODER.encode(entry))],
                failure=[],
            )
            return bool(done)

        return bool(self._asked(swap))

    def remove(self, account: str, at: int) -> bool:
        key = PREFIX + account

        def delete(client: Any) -> bool:
            done, _ = client.transaction(
                compare=[client.transactions.version(key) > 0],
                success=[client.transactions.delete(key), client.transactions.put(REMOVED + account, str(at))],
                failure=[],
            )
            return bool(done)

        return bool(self._asked(delete))

    def removed(self) -> dict[str, int]:
        found = self._asked(lambda client: list(client.get_prefix(REMOVED)))
        stamps = {about.key.decode()[len(REMOVED) :]: value.decode() for value, about in found}
        return {account: int(at) for account, at in stamps.items() if at.isdecimal()}

    def mark_removed(self, account: str, at: int | None) -> None:
        if at is None:
            self._asked(lambda client: client.delete(REMOVED + account))
        else:
            self._asked(lambda client: client.put(REMOVED + account, str(at)))

    def wait_for_change(self, seconds: float) -> None:
        def wait(client: Any) -> None:
            revision = client.get_response(PREFIX).header.revision
            self._etcd.wait_for_change(client, PREFIX, revision + 1, seconds)

        self._asked(wait)


def _read(value: bytes) -> StoredEntry:
    try:
        return _ENTRY.decode(value)
    except msgspec.DecodeError:
        raise EntryUnreadable("an entry of the registry of sources cannot be read") from None
