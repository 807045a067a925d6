"""The SDK on threads, with places by account: one that pushes much does not hold up the others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias, TypeVar
from weakref import WeakValueDictionary

import msgspec

from optscale_client.metroculus_client import Client, DeadlineExceeded, MetroculusError, ServiceUnavailable, structs

log = logging.getLogger("calls")

THREADS = 32
CHECKERS = 8
"""Threads for token checks alone: hours that hang hold up nobody's metrics."""
CALLS_OF_AN_ACCOUNT = 4
CALL_SECONDS = 35.0
CHECK_SECONDS = 5.0
T = TypeVar("T")
Method: TypeAlias = Callable[..., tuple[int, dict[str, Any]]]


class Calls:
    """Calls of the SDK that do not hold the loop."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.seen = "unknown"
        """What the last call saw: ``ok``, ``failing``, or ``unknown`` before the first."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="metroculus")
        self._checkers = ThreadPoolExecutor(CHECKERS, thread_name_prefix="tokens")
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def call(self, account: str, method: Method, *args: Any, shape: type[T], **kwargs: Any) -> T:
        """An answer about an account, read as ``shape``; the time in which it waits for its place counts.

        Raises:
            MetroculusError
        """
        place = self._places.setdefault(account, asyncio.Semaphore(CALLS_OF_AN_ACCOUNT))
        ends = time.monotonic() + CALL_SECONDS
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await place.acquire()
        except TimeoutError:
            raise DeadlineExceeded("every place of this account is taken by calls that hang") from None
        try:
            asked = partial(_until, ends, method, *args, **kwargs)
            return await self._answer(self._threads, asked, shape)
        finally:
            place.release()

    async def check(self, token: str, request_id: str) -> structs.CheckedPushToken:
        """Whose push token this is.

        Raises:
            MetroculusError
        """
        asked = partial(self.client.check_push_token, token, request_id=request_id, timeout=CHECK_SECONDS)
        return await self._answer(self._checkers, asked, structs.CheckedPushToken)

    async def _answer(self, threads: ThreadPoolExecutor, asked: Method, shape: type[T]) -> T:
        try:
            _, body = await asyncio.get_running_loop().run_in_executor(threads, asked)
        except MetroculusError as failure:
            # What it says of a request is an answer; that it does not know us, or cannot, is none.
            failing = failure.status is None or failure.status in (401, 403) or failure.status >= 500
            if failing:
                log.warning("Metroculus cannot be asked: %s", failure)
            self.seen = "failing" if failing else "ok"
            raise
        except OSError as failure:  # an authority's file that is not there now, for instance
            self.seen = "failing"
            log.warning("Metroculus cannot be asked: %s", failure)
            raise ServiceUnavailable("Metroculus cannot be asked") from None
        self.seen = "ok"
        try:
            return msgspec.convert(body, shape)
        except msgspec.ValidationError as problem:
            raise ServiceUnavailable("Metroculus answered with something else", status=502) from problem

    def close(self) -> None:
        for threads in (self._threads, self._checkers):
            threads.shutdown(wait=False, cancel_futures=True)
        self.client.close()


def _until(ends: float, method: Method, *args: Any, **kwargs: Any) -> tuple[int, dict[str, Any]]:
    """A call that is over by a moment of ``time.monotonic``."""
    return method(*args, timeout=ends - time.monotonic(), **kwargs)
