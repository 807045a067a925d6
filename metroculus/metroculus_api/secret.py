"""The cluster secret: compared in constant time, rotated without a restart."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable

from tools.settings import cluster_secret

log = logging.getLogger("secret")

GRACE_SECONDS = 15 * 60
"""How long the old secret stays good after a rotation."""
CATCH_UP_SECONDS = 1.0


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
        self.source: Callable[[], str | None] | None = None
        """Reads the secret from where it is kept, blocking; None where it is only told."""
        self._caught_up_at = -CATCH_UP_SECONDS
        self._catching_up: asyncio.Task[None] | None = None

    @property
    def known(self) -> bool:
        return self._current is not None

    def rotate(self, secret: str) -> None:
        """Take a new secret; what is none, an empty one for instance, changes nothing."""
        try:
            new = cluster_secret(secret).encode()
        except ValueError as problem:
            log.warning("the secret was not taken over: it %s", problem)
            return
        if new == self._current:
            return
        if self._current is not None:
            self._previous, self._previous_until = self._current, self._clock() + GRACE_SECONDS
        self._current = new

    async def catch_up(self) -> None:
        """Read the secret from where it is kept, at most once a second.

        A caller may have been told of a new one a moment before we are: it is good already.
        """
        if self.source is None:
            return
        if self._catching_up is None and self._clock() - self._caught_up_at >= CATCH_UP_SECONDS:
            self._catching_up = asyncio.create_task(self._read(self.source))
        if self._catching_up is not None:
            await asyncio.shield(self._catching_up)

    async def _read(self, source: Callable[[], str | None]) -> None:
        try:
            found: str | None = await asyncio.to_thread(source)
            self.rotate(found or "")
        except Exception as problem:  # noqa: BLE001  (whatever the source raises, what is known stays good)
            log.warning("the secret could not be read again: %s", problem)
        finally:
            self._caught_up_at = self._clock()
            self._catching_up = None

    def accepts(self, offered: bytes) -> bool:
        """Whether this is the secret, or the one before it within its grace; both are always compared."""
        current = hmac.compare_digest(offered, self._current or b"")
        previous = hmac.compare_digest(offered, self._previous or b"")
        return (current and self._current is not None) or (
            previous and self._previous is not None and self._clock() < self._previous_until
        )
