"""Group commit: what several threads want to write at once is written together, by one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_TOGETHER = 64


class FailedTogether(Exception):
    """A group could not be written; any of its items may be the cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Waiting(Generic[T]):
    def __init__(self, item: T) -> None:
        self.item = item
        self.leads = False
        self.done = False
        self.failure: Exception | None = None


class GroupCommit(Generic[T]):
    """While one group is written, the next one gathers; nobody waits where nothing is under way.

    Args:
        write: writes a group. Where it fails, it has failed for all of the group.
    """

    def __init__(self, write: Callable[[Sequence[T]], None]) -> None:
        self._write = write
        self._changed = threading.Condition()
        self._waiting: list[_Waiting[T]] = []
        self._led = False

    def commit(self, item: T) -> None:
        """Write an item, alone or with others; returns when that is done.

        Raises:
            FailedTogether: its group failed, perhaps because of another of it.
            Exception: what ``write`` raised for it alone.
        """
        mine = _Waiting(item)
        try:
            with self._changed:
                self._waiting.append(mine)
                if self._led:
                    self._changed.wait_for(lambda: mine.leads or mine.done)
                else:
                    self._led = mine.leads = True
        except BaseException:
            self._leave(mine)
            raise
        if mine.leads:
            self._lead()
        if mine.failure is not None:
            raise mine.failure

    def _leave(self, mine: _Waiting[T]) -> None:
        """A thread that was interrupted while it waited: it writes nothing, and leads nobody."""
        with self._changed:
            if mine in self._waiting:
                self._waiting.remove(mine)
            if mine.leads and not mine.done:
                self._hand_over()

    def _lead(self) -> None:
        """Write one group, the first that waits among it, and hand the lead to the next."""
        with self._changed:
            group, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
        failure: Exception | None = InterruptedError("the thread that wrote was interrupted")
        try:
            self._write([one.item for one in group])
            failure = None
        except Exception as problem:  # noqa: BLE001  (every thread of the group raises it)
            failure = problem if len(group) == 1 else FailedTogether(problem)
        finally:
            with self._changed:
                for one in group:
                    one.failure, one.done = failure, True
                self._hand_over()

    def _hand_over(self) -> None:
        self._led = bool(self._waiting)
        if self._waiting:
            self._waiting[0].leads = True
        self._changed.notify_all()
