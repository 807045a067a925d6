"""The cluster secret: compared in constant time, rotated without a restart."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable

GRACE_SECONDS = 15 * 60
"""How long the old secret stays good after a rotation."""


class SecretKeeper:
    """The current secret and the one before it.

    Args:
        secret: None where it is not known yet (etcd has not answered).
        clock: seconds that only rise.
    """

    def __init__(self, secret: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current = secret.encode() if secret else None
        self._previous: bytes | None = None
        self._previous_until = 0.0

    @property
    def known(self) -> bool:
        return self._current is not None

    def rotate(self, secret: str) -> None:
        """Take a new secret; an empty one is no secret and changes nothing."""
        new = secret.encode()
        if not new or new == self._current:
            return
        if self._current is not None:
            self._previous, self._previous_until = self._current, self._clock() + GRACE_SECONDS
        self._current = new

    def accepts(self, offered: bytes) -> bool:
        """Whether this is the secret, or the one before it within its grace; both are always compared."""
        current = hmac.compare_digest(offered, self._current or b"")
        previous = hmac.compare_digest(offered, self._previous or b"")
        return (current and self._current is not None) or (
            previous and self._previous is not None and self._clock() < self._previous_until
        )
