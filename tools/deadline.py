"""A deadline that everything done on behalf of one request shares."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic


class Deadline:
    """A point in time, and the id of the request that it belongs to.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float, request_id: str = "") -> None:
        self.at = monotonic() + seconds
        self.request_id = request_id
        self._callbacks: list[Callable[[], None]] = []

    def left(self) -> float:
        """Seconds; negative once it has passed."""
        return self.at - monotonic()

    def part(self, share: float) -> Deadline:
        """A shorter deadline for optional work; it expires with this one."""
        earlier = Deadline(self.left() * share, self.request_id)
        self.add_callback(earlier.expire)
        return earlier

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the deadline is ended early; in the order of registration."""
        self._callbacks.append(callback)

    def expire(self) -> None:
        """End it now, because nobody waits any more.

        Questions are asked side by side, and only the first failure among them is waited for. What has not been asked
        yet is not asked; a call that is on its way keeps its place until it ends, because the client cannot take a
        request back.
        """
        self.at = monotonic()
        for callback in self._callbacks:
            callback()
