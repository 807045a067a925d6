"""What this process has changed of the store: whoever keeps an answer can see that it may no longer hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count


class Versions:
    """A number for each account, another one after each change; what other processes change is not seen."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._of: dict[str, int] = {}

    def of(self, account: str) -> int:
        return self._of.get(account, 0)

    @contextmanager
    def changing(self, account: str) -> Iterator[None]:
        """Around what makes a change readable; one that failed may be readable too."""
        try:
            yield
        finally:
            self._of[account] = next(self._numbers)
