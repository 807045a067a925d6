"""A cache of committed hours, for a store that no other program writes to."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metroculus.storage.ledger import CommittedHours

Stretch = tuple[int, int, int | None]
"""The first second of a stretch of whole hours, its end, and up to which sequence it was read."""
_Hours = Mapping[str, "CommittedHours"]
_Key = tuple[tuple[str, ...], Stretch]


class KnownHours:
    """Committed hours by accounts and stretch of time. An entry is dropped when one of its accounts changes.

    All methods may be called from any thread.

    Args:
        most: limit of markers in the cache; the least recently used entries are dropped first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[_Key, _Hours] = OrderedDict()
        self._markers = 0
        self._changes = 0
        self._changed: dict[str, int] = {}
        """By account, which change was its last since everything was forgotten."""
        self._keys_of: defaultdict[str, set[_Key]] = defaultdict(set)
        self._forgotten = 0
        self._lock = Lock()

    def find(self, accounts: tuple[str, ...], stretch: Stretch) -> _Hours | None:
        with self._lock:
            found = self._kept.get((accounts, stretch))
            if found is not None:
                self._kept.move_to_end((accounts, stretch))
            return found

    def changes(self) -> int:
        """How many changes there were; take it before the read whose result is given to ``keep``."""
        return self._changes

    def keep(self, accounts: tuple[str, ...], stretch: Stretch, hours: _Hours, since: int) -> None:
        """Keep the result of a read, unless one of the accounts changed after ``since``."""
        size = _markers_of(hours)
        with self._lock:
            changed = max(self._forgotten, *(self._changed.get(account, 0) for account in accounts))
            if changed > since or size > self._most // 4:
                return
            self._drop((accounts, stretch))
            self._kept[accounts, stretch] = hours
            self._markers += size
            for account in accounts:
                self._keys_of[account].add((accounts, stretch))
            while self._markers > self._most:
                self._drop(next(iter(self._kept)))

    def changed(self, accounts: Iterable[str]) -> None:
        """Drop the entries of these accounts; call it when their change can be read."""
        with self._lock:
            self._changes += 1
            for account in accounts:
                self._changed[account] = self._changes
                for key in list(self._keys_of.get(account, ())):
                    self._drop(key)

    def forget(self) -> None:
        """Drop everything: any account may have changed."""
        with self._lock:
            self._changes += 1
            self._forgotten = self._changes
            for forgotten in (self._changed, self._kept, self._keys_of):
                forgotten.clear()
            self._markers = 0

    def _drop(self, key: _Key) -> None:
        hours = self._kept.pop(key, None)
        if hours is None:
            return
        self._markers -= _markers_of(hours)
        for account in key[0]:
            self._keys_of[account].discard(key)
            if not self._keys_of[account]:
                del self._keys_of[account]


def _markers_of(hours: _Hours) -> int:
    """At least one per account, because an account without hours takes memory, too."""
    return sum(len(one.hours) + 1 for one in hours.values())
