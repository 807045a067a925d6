"""Ownership by etcd leases: workers of many machines, each cluster with one of them.

A worker that was paused past its lease finds out by its own clock, and what it still writes stands under its old fence.
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
    """Leases of one etcd.

    Args:
        client: an ``etcd3`` client, with a timeout.
    """

    def __init__(self, client: Any, lease_seconds: int = LEASE_SECONDS) -> None:
        self._client = client
        self._lease_seconds = lease_seconds
        self._name = uuid4().hex

    def own(self, account: str, highest_fence: Callable[[], int]) -> Owned | None:
        """The cluster under a lease.

        Raises:
            OSError: etcd does not answer.
        """
        began = time.monotonic()
        client, owner, counter = self._client, OWNERS + account, FENCES + account
        try:
            lease = client.lease(self._lease_seconds)
            known, about = client.get(counter)
            fence = max(int(known or 0), highest_fence()) + 1
            transactions = client.transactions
            unchanged = (
                transactions.mod(counter) == about.mod_revision if known is not None
                else transactions.version(counter) == 0
            )  # fmt: skip
            won, _ = client.transaction(
                compare=[transactions.version(owner) == 0, unchanged],
                success=[transactions.put(owner, self._name, lease), transactions.put(counter, str(fence))],
                failure=[],
            )
            if not won:
                lease.revoke()
                return None
        except Exception as problem:  # noqa: BLE001  (etcd3 raises grpc's own, its own and plain ones alike)
            raise OSError(f"etcd cannot be asked who owns a cluster: {type(problem).__name__}") from None
        return _Leased(lease, FencedWriter(fence), began, self._lease_seconds)

    def close(self) -> None:
        self._client.close()


class _Leased:
    """A lease that is kept alive by a thread of its own; it counts from before the call that renewed it."""

    def __init__(self, lease: Any, writer: FencedWriter, began: float, seconds: int) -> None:
        self.writer = writer
        self._lease = lease
        self._seconds = seconds
        self._until = began + seconds
        self._released = threading.Event()
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def _keep(self) -> None:
        while not self._released.wait(self._seconds / REFRESHES_A_LEASE):
            began = time.monotonic()
            try:
                alive = any(answer.TTL > 0 for answer in self._lease.refresh())
            except Exception as problem:  # noqa: BLE001  (a blip of etcd: the lease ends by itself, and we know when)
                if time.monotonic() >= self._until:
                    return self._released.set()  # it has ended by itself, and what was owned is another's by now
                log.warning("a lease could not be renewed: %s", type(problem).__name__)
                continue
            if not alive:
                return self._released.set()
            self._until = began + self._seconds

    def still(self) -> bool:
        return not self._released.is_set() and time.monotonic() < self._until

    def release(self) -> None:
        self._released.set()
        try:
            self._lease.revoke()
        except Exception as problem:  # noqa: BLE001  (it ends by itself)
            log.info("a lease could not be revoked: %s", type(problem).__name__)
