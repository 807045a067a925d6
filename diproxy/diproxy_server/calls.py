"""The SDK on threads, with places by account: one that pushes much does not hold up the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from optscale_client.metroculus_client import Client, MetroculusError, ServiceUnavailable

THREADS = 32
CALLS_OF_AN_ACCOUNT = 4
CALL_SECONDS = 35.0
T = TypeVar("T")


class Calls:
    """Calls of the SDK that do not hold the loop."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.seen = "unknown"
        """What the last call saw: ``ok``, ``failing``, or ``unknown`` before the first."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="metroculus")
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def call(
        self, account: str, method: Callable[..., tuple[int, dict[str, Any]]], *args: Any, shape: type[T], **kwargs: Any
    ) -> T:
        """An answer, read as ``shape``; without an account the call is the gateway's own, and waits for no place.

        Raises:
            MetroculusError
        """
        status_and_body = partial(method, *args, timeout=CALL_SECONDS, **kwargs)
        place = self._places.setdefault(account, asyncio.Semaphore(CALLS_OF_AN_ACCOUNT if account else THREADS))
        async with place:
            try:
                _, body = await asyncio.get_running_loop().run_in_executor(self._threads, status_and_body)
            except MetroculusError as failure:
                self.seen = "failing" if failure.status is None else "ok"
                raise
        self.seen = "ok"
        try:
            return msgspec.convert(body, shape)
        except msgspec.ValidationError as problem:
            raise ServiceUnavailable("Metroculus answered with something else", status=502) from problem

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.client.close()
