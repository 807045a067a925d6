"""Limits how many tasks run at the same time; a task whose source answers slowly gives its slot to the next task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from tools.waiting import while_asking

PATIENCE_SECONDS = 2.0
"""A task keeps its slot for this long during a call to its source."""
WITHOUT_SLOT = 4
"""Tasks that may run without a slot, for each slot; their answers must fit into memory."""


class Slots:
    """A pool of slots. If many sources stop answering together, other tasks wait two seconds and not a deadline.

    Args:
        without: tasks that may run without a slot, for each slot.
    """

    def __init__(self, size: int, without: int = WITHOUT_SLOT) -> None:
        self._free = asyncio.Semaphore(size)
        self._may_run_without = without * size

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A slot for the current task; it may be released before the block ends."""
        await self._free.acquire()
        slot = _Slot(self)
        token = while_asking.set(slot.while_asking)
        try:
            yield
        finally:
            while_asking.reset(token)
            slot.ended = True
            if slot.released:
                self._may_run_without += 1
            else:
                self._free.release()

    def release_early(self) -> bool:
        """Release the slot of a task that goes on; False if too many tasks already run without one."""
        if not self._may_run_without:
            return False
        self._may_run_without -= 1
        self._free.release()
        return True


class _Slot:
    """A task's slot. After an early release the task does not wait for another one: that would use up its deadlines."""

    def __init__(self, pool: Slots) -> None:
        self._pool = pool
        self.released = False
        self.ended = False
        """Whether the task has ended; one of its calls may still be running if another one failed first."""

    @contextmanager
    def while_asking(self) -> Iterator[None]:
        """Around one call to the source; calls of one task may run side by side."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def release() -> None:
            nonlocal timer
            if self.released or self.ended:
                return
            self.released = self._pool.release_early()
            if not self.released:
                timer = loop.call_later(PATIENCE_SECONDS, release)

        timer = loop.call_later(PATIENCE_SECONDS, release)
        try:
            yield
        finally:
            timer.cancel()
