"""The SDK on a bounded pool of threads: no cluster and no organization takes more of it than its share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4
from weakref import WeakValueDictionary

import msgspec

from optscale_client.metroculus_client import (
    Client,
    DeadlineExceeded,
    MetroculusError,
    ServiceUnavailable,
    Validator,
    error_about,
)
from optscale_client.metroculus_client.structs import ACCOUNTS_AT_ONCE, Failure
from rest_api.rest_api_server.directory.model import Cluster
from rest_api.rest_api_server.kept import VALIDITY, forbid_keeping

THREADS = 128
CALLS_OF_A_CLUSTER = 4
CALLS_OF_AN_ORGANIZATION = 32
CALL_SECONDS = 35.0
"""For one call with the time that it waits for its place; a little over Metroculus' own deadline."""
About: TypeAlias = Cluster | Sequence[Cluster] | None
Method: TypeAlias = Callable[..., tuple[int, dict[str, Any]]]
T = TypeVar("T")


def in_parts(clusters: Sequence[Cluster]) -> list[Sequence[Cluster]]:
    """An organization's clusters as Metroculus takes them, at most so many in one call."""
    return [clusters[first : first + ACCOUNTS_AT_ONCE] for first in range(0, len(clusters), ACCOUNTS_AT_ONCE)]


def failure_about(failure: Failure | None) -> MetroculusError:
    """Why Metroculus has no answer about one of several accounts; None where it did not even name it."""
    if failure is None:
        return ServiceUnavailable("Metroculus left out an account that it was asked for", status=502)
    return error_about(failure.status_code, failure.error_code, failure.reason)


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
        self._validated = {
            client.get_kubecost_cluster_costs,
            client.get_kubecost_savings,
            client.get_kubecost_assets,
            client.get_kubecost_metrics,
            client.get_k8s_metadata,
        }
        """Methods whose answers have a tag."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="metroculus")
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def call(self, about: About, method: Method, *args: Any, shape: type[T], **kwargs: Any) -> T:
        """An answer.

        Args:
            about: whose it is; several are of one organization; None is the service's own work.
            shape: what it is read as, one of the SDK's ``structs``.

        Raises:
            MetroculusError
        """
        validity = VALIDITY.get()
        validator = Validator() if validity is not None and method in self._validated else None
        called = partial(method, *args, **kwargs)

        def asked(**more: Any) -> tuple[int, T]:
            status, body = called(**more)
            return status, msgspec.convert(body, shape)  # here, on the call's own thread: it may be large

        asked_at = validity.clock() if validity is not None else 0.0
        try:
            _, answer = await self._ask(about, asked if validator is None else partial(asked, validator=validator))
        except MetroculusError:
            forbid_keeping()
            raise
        except msgspec.ValidationError as problem:
            self.seen = "failing"
            forbid_keeping()
            raise ServiceUnavailable("Metroculus answered with something else", status=502) from problem
        if validator is not None and validity is not None:
            validity.add(
                asked_at, validator.age, validator.fresh_for, partial(self._revalidate, about, called, validator.etag)
            )
        else:
            forbid_keeping()
        return answer

    async def _revalidate(self, about: About, called: Method, etag: str | None) -> tuple[bool, float, float]:
        """Whether the answer to a call is what it was; its age, and for how long it is fresh (seconds)."""
        validator = Validator(etag)  # a new one: what the call learns now is of what may be another answer
        status, _ = await self._ask(about, partial(called, request_id=uuid4().hex, validator=validator))
        return status == 304, validator.age, validator.fresh_for

    async def _ask(self, about: About, called: Callable[..., tuple[int, T]]) -> tuple[int, T]:
        """Raises: MetroculusError"""
        ends = time.monotonic() + self._seconds
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as places:
            try:
                async with asyncio.timeout(self._seconds):
                    for place in self._shares(about):
                        await places.enter_async_context(place)
            except TimeoutError:
                raise DeadlineExceeded("every place of this cluster is taken by calls that hang") from None
            try:
                answer = await loop.run_in_executor(self._threads, partial(called, timeout=ends - time.monotonic()))
            except MetroculusError as failure:
                self.seen = "failing" if failure.status is None else "ok"
                raise
        self.seen = "ok"
        return answer

    def _shares(self, about: About) -> list[asyncio.Semaphore]:
        if about is None:
            return []
        one = about if isinstance(about, Cluster) else about[0]
        shares = [(f"organization {one.organization_id}", CALLS_OF_AN_ORGANIZATION)]
        if isinstance(about, Cluster):
            # A cluster's own place first: whoever waits for it holds none of the organization's.
            shares.insert(0, (f"cluster {one.id}", CALLS_OF_A_CLUSTER))
        return [self._places.setdefault(key, asyncio.Semaphore(places)) for key, places in shares]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.client.close()
