"""Answers that several instances share, in a Redis; without it, or while it is away, each has only its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from hashlib import blake2b

import msgspec
from msgspec import Struct

from tools.tornado_service.prepared import Prepared
from tools.version import VERSION

log = logging.getLogger("cache")

SECONDS_A_CALL = 0.25
"""For Redis to answer; whoever asks has a source to ask instead."""
AWAY_SECONDS = 5.0
"""After a failure Redis is left alone for so long."""
CALLS_AT_ONCE = 32
MOST_WRITTEN = 256
"""Answers that wait to be shared; more are not shared."""
PREFIX = "metroculus:answers:"


class _Stored(Struct, frozen=True, array_like=True):
    body: bytes
    packed: bytes | None
    etag: str


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Stored)


class SharedAnswers:
    """A second level behind each instance's own cache.

    Ages come from Redis' own expiry, so that clocks of instances need not agree.

    Args:
        fresh: seconds that an answer is kept.
        scope: the settings that answers depend on; instances share only where theirs are the same.
        clock: seconds that only rise.
    """

    def __init__(self, url: str, fresh: float, scope: Hashable, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            import redis.asyncio  # here: a service without REDIS_URL needs none of it
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise OSError("REDIS_URL names a Redis: pip install 'metroculus[redis]'") from None

        self._redis = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=SECONDS_A_CALL,
            socket_connect_timeout=SECONDS_A_CALL,
            retry=Retry(NoBackoff(), 0),
        )
        self._scope = scope
        self._places = asyncio.Semaphore(CALLS_AT_ONCE)
        self._errors = (redis.RedisError, OSError, TimeoutError, TypeError, ValueError)
        self._fresh_ms = int(1000 * fresh)
        self._clock = clock
        self._away_until = float("-inf")
        self._writing: set[asyncio.Task[None]] = set()
        self.state = "unknown"
        """What the last call saw: ``ok``, ``failing``, or ``unknown`` before the first."""

    async def get(self, account: str, revision: Hashable, question: Hashable) -> tuple[Prepared, float] | None:
        """An answer and its age in seconds; None where there is none, or Redis does not answer in time."""
        key = self._key(account, revision, question)
        if self._clock() < self._away_until or not await self._take_place():
            return None
        try:
            async with asyncio.timeout(SECONDS_A_CALL), self._redis.pipeline(transaction=True) as asked:
                asked.get(key)
                asked.pttl(key)
                found, left = await asked.execute()
        except self._errors as failure:
            self._failed(failure)
            return None
        finally:
            self._places.release()
        self.state = "ok"
        if found is None or left <= 0:
            return None
        try:
            stored = _DECODER.decode(found)
        except msgspec.DecodeError:
            return None
        return Prepared(stored.body, stored.packed, stored.etag), max(0.0, (self._fresh_ms - left) / 1000)

    def put(self, account: str, revision: Hashable, question: Hashable, answer: Prepared, age: float) -> None:
        """Share an answer that is so old, without waiting for it."""
        left = self._fresh_ms - int(1000 * age)
        if left <= 0 or self._clock() < self._away_until or len(self._writing) >= MOST_WRITTEN:
            return
        value = _ENCODER.encode(_Stored(answer.body, answer.packed, answer.etag))
        task = asyncio.get_running_loop().create_task(self._set(self._key(account, revision, question), value, left))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _set(self, key: str, value: bytes, left: int) -> None:
        async with self._places:
            try:
                async with asyncio.timeout(SECONDS_A_CALL):
                    await self._redis.set(key, value, px=left)
            except self._errors as failure:
                self._failed(failure)
            else:
                self.state = "ok"

    async def _take_place(self) -> bool:
        """Whether a call may be made; one that would have to wait for others asks the sources instead."""
        try:
            async with asyncio.timeout(SECONDS_A_CALL):
                await self._places.acquire()
        except TimeoutError:
            return False
        return True

    def _failed(self, failure: BaseException) -> None:
        if self.state != "failing":
            log.warning("shared answers cannot be had (%s): each instance goes on with its own", type(failure).__name__)
        self.state = "failing"
        self._away_until = self._clock() + AWAY_SECONDS

    def close(self) -> None:
        """Let go of the connections; call on the loop."""
        for task in self._writing:
            task.cancel()
        self._writing.add(asyncio.get_running_loop().create_task(self._redis.aclose()))

    def _key(self, account: str, revision: Hashable, question: Hashable) -> str:
        """Of everything that an answer is of: also the program, whose answers may have another shape."""
        asked = repr((VERSION, self._scope, account, revision, question)).encode()
        return f"{PREFIX}{account}:{blake2b(asked, digest_size=20).hexdigest()}"
