"""Slots: how many tasks run at the same time, not counting those that were kept waiting by their source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

PATIENCE_SECONDS = 2.0
"""So long a call to a source may take before its task gives its slot to the next one."""
WITHOUT_SLOT = 4
"""Tasks that may go on without one, for each slot: what they will be answered has to fit into memory."""


class Slots:
    """A pool of slots; sources that fall silent together cost the others two seconds, and not a deadline.

    Args:
        without: tasks that may go on without a slot, for each slot.
    """

    def __init__(self, size: int, without: int = WITHOUT_SLOT) -> None:
        self._free = asyncio.Semaphore(size)
        self._may_be_given_up = without * size

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """One slot, for as long as a task runs, or until it gives it up."""
        await self._free.acquire()
        slot = Slot(self)
        try:
            yield slot
        finally:
            slot.over = True
            if slot.given_up:
                self._may_be_given_up += 1
            else:
                self._free.release()

    def take_back(self) -> bool:
        """Let the next task run in place of one that is kept waiting; False where too many wait already."""
        if not self._may_be_given_up:
            return False
        self._may_be_given_up -= 1
        self._free.release()
        return True


class Slot:
    """A task's slot. A task that gave it up goes on without one: to wait for another would use up its deadlines."""

    def __init__(self, pool: Slots) -> None:
        self._pool = pool
        self.given_up = False
        self.over = False
        """Whether the task has ended; a call of it may still be under way, where another one failed first."""

    @contextmanager
    def while_asking(self) -> Iterator[None]:
        """Around one call to a source; calls of one task may run side by side."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def give_up() -> None:
            nonlocal timer
            if self.given_up or self.over:
                return
            self.given_up = self._pool.take_back()
            if not self.given_up:
                timer = loop.call_later(PATIENCE_SECONDS, give_up)

        timer = loop.call_later(PATIENCE_SECONDS, give_up)
        try:
            yield
        finally:
            timer.cancel()
