"""Whoever offers bad tokens or secrets is answered late, and never whoever offers a good one."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

WINDOW_SECONDS = 60.0
PAUSE_SECONDS = 1.0
MAX_WAITING = 64
"""Answers held back at once; beyond them the late are refused unread."""
MAX_KEYS = 10_000


class Slowdown:
    """Failures of the last minute, by what they have in common: an address, the beginning of a token.

    Args:
        allowed: failures a minute that are answered at once.
        clock: seconds that only rise.
    """

    def __init__(self, allowed: int = 10, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowed = allowed
        self._clock = clock
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._waiting = 0

    @property
    def retry_after(self) -> int:
        return int(WINDOW_SECONDS)

    def _count(self, key: str) -> int:
        since, count = self._failures.get(key, (0.0, 0))
        return count if self._clock() - since < WINDOW_SECONDS else 0

    def over(self, *keys: str) -> bool:
        """Whether one of them has failed too often."""
        return any(self._count(key) > self._allowed for key in keys)

    def crowded(self, *keys: str) -> bool:
        """Whether so many are held back that the next under these keys is refused unread."""
        return self._waiting >= MAX_WAITING and self.over(*keys)

    async def failed(self, *keys: str) -> bool:
        """Count a failure under each key; hold the answer back where that was too many.

        Returns:
            whether it was.
        """
        for key in keys:
            count = self._count(key)
            since = self._failures[key][0] if count else self._clock()
            self._failures[key] = since, count + 1
            self._failures.move_to_end(key)
        while len(self._failures) > MAX_KEYS:
            self._failures.popitem(last=False)
        if not self.over(*keys):
            return False
        self._waiting += 1
        try:
            await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._waiting -= 1
        return True
