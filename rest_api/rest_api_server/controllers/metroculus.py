"""The SDK on a bounded pool of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from optscale_client.metroculus_client import Client, MetroculusError

THREADS = 64
Json = dict[str, Any]


class MetroculusPool:
    """Calls of the SDK that do not hold the loop."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.seen = "unknown"
        """What the last call saw: ``ok``, ``failing``, or ``unknown`` before the first."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="metroculus")

    async def call(self, method: Callable[..., tuple[int, Json]], *args: Any, **kwargs: Any) -> Json:
        """The body of an answer.

        Raises:
            MetroculusError
        """
        loop = asyncio.get_running_loop()
        try:
            _, body = await loop.run_in_executor(self._threads, partial(method, *args, **kwargs))
        except MetroculusError as failure:
            self.seen = "failing" if failure.status is None else "ok"
            raise
        self.seen = "ok"
        return body

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.client.close()
