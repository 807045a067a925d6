"""What an organization decides is changed by one request at a time, and only from the version that was read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from metroculus.codes import DECISION_CHANGED
from metroculus.storage.engine import StoreError
from metroculus.storage.store import StoreLate
from metroculus.wire import version_of
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError


class ChangeLocks:
    """A lock for each organization. A store call that its request gave up on keeps the lock until the call ends."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, organization: str, deadline: Deadline) -> AsyncIterator[None]:
        """Hold the organization's lock.

        Raises:
            StoreError: the deadline passes while an earlier change is still being written.
        """
        lock = self._locks.setdefault(organization, asyncio.Lock())
        try:
            async with asyncio.timeout(deadline.left()):
                await lock.acquire()
        except TimeoutError:
            raise StoreError("an earlier change is still being written") from None
        try:
            yield
        except StoreLate as late:
            late.running.add_done_callback(lambda _: lock.release())
            raise
        except BaseException:
            lock.release()
            raise
        lock.release()


def require_version(version: str | None, decided: Any, what: str) -> None:
    """Refuse a change that was made from another version than there is now.

    Args:
        version: that the change was made from; None to skip the check.
        what: the name of what is changed, for the error.

    Raises:
        ApiError: 409
    """
    if version is not None and version != version_of(decided):
        raise ApiError(
            DECISION_CHANGED,
            f"somebody else has changed {what} meanwhile: read what is there now, and repeat the change",
        )
