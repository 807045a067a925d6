"""What this process has changed of the store: whoever keeps an answer can see that it may no longer hold."""

from __future__ import annotations

from itertools import count


class Versions:
    """A number for each account, another one after each change; what other processes change is not seen."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._of: dict[str, int] = {}

    def of(self, account: str) -> int:
        return self._of.get(account, 0)

    def changed(self, account: str) -> None:
        """Call when the change can be read, also where it is not known whether it can."""
        self._of[account] = next(self._numbers)
