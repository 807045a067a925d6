"""One worker at a time owns a cluster, and gets a fence with it: a number above all that ever wrote."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from metroculus.storage.ledger import FencedWriter
from metroculus.storage.store import Store


class Owned(Protocol):
    """A cluster that is ours until ``release``; ``still`` says whether it is."""

    writer: FencedWriter

    def still(self) -> bool: ...

    def release(self) -> None: ...


class Owners(Protocol):
    """Grants ownership of names, each to one worker at a time; blocks briefly."""

    def own(self, name: str, highest_fence: Callable[[], int]) -> Owned | None:
        """Ownership of a name, or None where another worker has it.

        Raises:
            OSError: the lock cannot be used.
        """
        ...

    def close(self) -> None: ...


class Lease:
    """A name that this worker alone does something under, until it releases or loses it.

    Args:
        owners: None where one worker leads all others: what it does is nobody else's.
    """

    def __init__(self, store: Store, owners: Owners | None, name: str) -> None:
        self._store = store
        self._owners = owners
        self._name = name
        self._owned: Owned | None = None

    @property
    def held(self) -> bool:
        """Whether it is this worker's, as far as that is known without asking."""
        return self._owners is None or (self._owned is not None and self._owned.still())

    async def take(self) -> bool:
        """Hold it from now on; False where another worker does.

        Raises:
            OSError: the lock cannot be used.
            StoreError
        """
        if self._owners is not None and not self.held:
            self._owned = await self._store.run(self._owners.own, self._name, self._store.highest_fence)
        return self.held

    async def release(self) -> None:
        """Leave it to others; on a thread, for the lock may be in an etcd that hangs."""
        owned, self._owned = self._owned, None
        if owned is not None:
            await asyncio.to_thread(owned.release)


class FileOwners:
    """Locks of files in one folder: workers of one machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def own(self, name: str, highest_fence: Callable[[], int]) -> Owned | None:
        if not re.fullmatch(r"[0-9a-z-]+(\.[a-z]+)?", name):
            raise ValueError("a name that is owned is an account's, and of which part of it")
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            last = int(os.pread(descriptor, 20, 0) or b"0")
            fence = max(last, highest_fence()) + 1
            os.pwrite(descriptor, b"%d" % fence, 0)
            os.fsync(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return _OwnedFile(descriptor, FencedWriter(fence))

    def close(self) -> None:
        return None


class _OwnedFile:
    """The lock is the process's: it cannot be lost while it is held."""

    def __init__(self, descriptor: int, writer: FencedWriter) -> None:
        self.writer = writer
        self._descriptor: int | None = descriptor

    def still(self) -> bool:
        return self._descriptor is not None

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
