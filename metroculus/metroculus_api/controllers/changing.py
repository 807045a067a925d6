"""One change of an organization at a time, until what it writes is written: also where its caller has given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from metroculus.storage.engine import StoreError
from metroculus.storage.store import StoreLate
from tools.deadline import Deadline


class Changing:
    """What changes of an organization are made under, so that each is made from what the one before has written."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def one(self, organization: str, deadline: Deadline) -> AsyncIterator[None]:
        """The turn of a change; the next one's begins when the store is done with it.

        Raises:
            StoreError: the store is not done with the one before.
        """
        lock = self._locks.setdefault(organization, asyncio.Lock())
        try:
            async with asyncio.timeout(deadline.left()):
                await lock.acquire()
        except TimeoutError:
            raise StoreError("the store is still writing what was changed before") from None
        try:
            yield
        except StoreLate as late:
            late.running.add_done_callback(lambda _: lock.release())
            raise
        except BaseException:
            lock.release()
            raise
        lock.release()
