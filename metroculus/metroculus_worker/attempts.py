"""How often a cluster was extracted in the last hour, and how often that failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from metroculus.watch.findings import Attempts
from tools.window import HOUR

MOST = 3600
"""Of one cluster: one a second."""


class AttemptLog:
    """Counts in memory: what was before a restart is not known, and is not taken for success."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._attempts: dict[str, deque[tuple[int, bool]]] = {}
        self._since: dict[str, int] = {}

    def note(self, account: str, at: int, failed: bool) -> None:
        self._since.setdefault(account, at)
        self._attempts.setdefault(account, deque(maxlen=MOST)).append((at, failed))

    def of(self, account: str) -> Attempts:
        now = int(self._clock())
        attempts = [(at, failed) for at, failed in self._attempts.get(account, ()) if now - HOUR < at <= now]
        since = self._since.get(account, now)
        if since > now:  # a clock that was set back
            self._since[account] = since = now
        return Attempts(
            count=len(attempts),
            failed=sum(failed for _, failed in attempts),
            observed_seconds=min(HOUR, now - since),
        )

    def knows(self, account: str) -> bool:
        """Whether it was extracted at all since this process began."""
        return account in self._since

    def forget(self, account: str) -> None:
        self._attempts.pop(account, None)
        self._since.pop(account, None)
