"""Ownership by an etcd lease: workers of many machines, each cluster with one of them.

All that a process owns hangs on one lease. A worker that was paused past it finds out by its own clock, and what it
still writes stands under its old fences.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from metroculus.metroculus_worker.ownership import Owned
from metroculus.storage.ledger import FencedWriter

log = logging.getLogger("owners")

LEASE_SECONDS = 15
REFRESHES_A_LEASE = 3
OWNERS, FENCES = "/metroculus/owners/", "/metroculus/fences/"


class EtcdOwners:
    """Keys of one etcd under a lease of this process.

    Args:
        client: an ``etcd3`` client, with a timeout.
    """

    def __init__(self, client: Any, lease_seconds: int = LEASE_SECONDS) -> None:
        self._client = client
        self._lease_seconds = lease_seconds
        self._name = uuid4().hex
        self._leasing = threading.Lock()
        self._lease: _Lease | None = None

    def own(self, name: str, highest_fence: Callable[[], int]) -> Owned | None:
        """Ownership of a name, under the lease.

        Raises:
            OSError: etcd does not answer.
        """
        client, owner, counter = self._client, OWNERS + name, FENCES + name
        try:
            lease = self._leased()
            holder, _ = client.get(owner)
            known, about = client.get(counter)
            fence = max(int(known or 0), highest_fence()) + 1
            transactions = client.transactions
            unchanged = (
                transactions.mod(counter) == about.mod_revision if known is not None
                else transactions.version(counter) == 0
            )  # fmt: skip
            ours = holder is not None and holder.decode() == self._name  # a key of ours that could not be deleted
            free = transactions.value(owner) == self._name if ours else transactions.version(owner) == 0
            won, _ = client.transaction(
                compare=[free, unchanged],
                success=[transactions.put(owner, self._name, lease.handle), transactions.put(counter, str(fence))],
                failure=[],
            )
        except Exception as problem:  # noqa: BLE001  (etcd3 raises grpc's own, its own and plain ones alike)
            raise OSError(f"etcd cannot be asked who owns a cluster: {type(problem).__name__}") from None
        return _Owned(self, owner, lease, FencedWriter(fence)) if won else None

    def _leased(self) -> _Lease:
        with self._leasing:
            if self._lease is None or not self._lease.alive():
                self._lease = _Lease(self._client, self._lease_seconds)
            return self._lease

    def give_back(self, owner: str) -> None:
        """Delete a key, where it is still ours."""
        transactions = self._client.transactions
        try:
            self._client.transaction(
                compare=[transactions.value(owner) == self._name], success=[transactions.delete(owner)], failure=[]
            )
        except Exception as problem:  # noqa: BLE001  (it ends with the lease, or is taken again by this process)
            log.info("a cluster could not be given back: %s", type(problem).__name__)

    def close(self) -> None:
        if self._lease is not None:
            self._lease.end()
        self._client.close()


class _Lease:
    """A lease that is kept alive by a thread of its own; it counts from before the call that renewed it."""

    def __init__(self, client: Any, seconds: int) -> None:
        began = time.monotonic()
        self.handle = client.lease(seconds)
        self._seconds = seconds
        self._until = began + seconds
        self._over = threading.Event()
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def _keep(self) -> None:
        while not self._over.wait(self._seconds / REFRESHES_A_LEASE):
            began = time.monotonic()
            try:
                alive = any(answer.TTL > 0 for answer in self.handle.refresh())
            except Exception as problem:  # noqa: BLE001  (a blip of etcd: the lease ends by itself, and we know when)
                if time.monotonic() >= self._until:
                    return self._over.set()  # it has ended by itself, and what was owned is another's by now
                log.warning("the lease could not be renewed: %s", type(problem).__name__)
                continue
            if not alive:
                return self._over.set()
            self._until = began + self._seconds

    def alive(self) -> bool:
        return not self._over.is_set() and time.monotonic() < self._until

    def end(self) -> None:
        """Everything that hangs on it is free at once."""
        self._over.set()
        try:
            self.handle.revoke()
        except Exception as problem:  # noqa: BLE001  (it ends by itself)
            log.info("the lease could not be revoked: %s", type(problem).__name__)


class _Owned:
    def __init__(self, owners: EtcdOwners, owner: str, lease: _Lease, writer: FencedWriter) -> None:
        self.writer = writer
        self._owners = owners
        self._owner = owner
        self._lease = lease
        self._released = False

    def still(self) -> bool:
        return not self._released and self._lease.alive()

    def release(self) -> None:
        if not self._released:
            self._released = True
            if self._lease.alive():
                self._owners.give_back(self._owner)
