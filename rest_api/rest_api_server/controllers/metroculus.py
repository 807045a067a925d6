"""The SDK on a bounded pool of threads: no cluster and no organization takes more of it than its share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeAlias, TypeVar
from weakref import WeakValueDictionary

import msgspec

from optscale_client.metroculus_client import Client, DeadlineExceeded, MetroculusError, ServiceUnavailable
from rest_api.rest_api_server.directory.model import Cluster

THREADS = 128
CALLS_OF_A_CLUSTER = 4
CALLS_OF_AN_ORGANIZATION = 32
CALL_SECONDS = 35.0
"""For one call with the time that it waits for its place; a little over Metroculus' own deadline."""
Method: TypeAlias = Callable[..., tuple[int, dict[str, Any]]]
T = TypeVar("T")


class MetroculusPool:
    """Calls of the SDK that do not hold the loop.

    Args:
        seconds: for one call, waiting for its place included.
    """

    def __init__(self, client: Client, seconds: float = CALL_SECONDS) -> None:
        self.client = client
        self.seen = "unknown"
        """What the last call saw: ``ok``, ``failing``, or ``unknown`` before the first."""
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="metroculus")
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def call(
        self, about: Cluster | Sequence[Cluster], method: Method, *args: Any, shape: type[T], **kwargs: Any
    ) -> T:
        """An answer.

        Args:
            about: whose it is; several are of one organization.
            shape: what it is read as, one of the SDK's ``structs``.

        Raises:
            MetroculusError
        """
        ends = time.monotonic() + self._seconds
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as places:
            try:
                async with asyncio.timeout(self._seconds):
                    for place in self._shares(about):
                        await places.enter_async_context(place)
            except TimeoutError:
                raise DeadlineExceeded("every place of this cluster is taken by calls that hang") from None
            left = ends - time.monotonic()
            try:
                _, body = await loop.run_in_executor(self._threads, partial(method, *args, timeout=left, **kwargs))
            except MetroculusError as failure:
                self.seen = "failing" if failure.status is None else "ok"
                raise
        try:
            answer = msgspec.convert(body, shape)
        except msgspec.ValidationError as problem:
            self.seen = "failing"
            raise ServiceUnavailable("Metroculus answered with something else", status=502) from problem
        self.seen = "ok"
        return answer

    def _shares(self, about: Cluster | Sequence[Cluster]) -> list[asyncio.Semaphore]:
        one = about if isinstance(about, Cluster) else about[0]
        shares = [(f"organization {one.organization_id}", CALLS_OF_AN_ORGANIZATION)]
        if isinstance(about, Cluster):
            # A cluster's own place first: whoever waits for it holds none of the organization's.
            shares.insert(0, (f"cluster {one.id}", CALLS_OF_A_CLUSTER))
        return [self._places.setdefault(key, asyncio.Semaphore(places)) for key, places in shares]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.client.close()
