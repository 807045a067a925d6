"""The one way out to an upstream: deadlines, caps, retries, a breaker; allowed addresses; no redirects.

This is the only layer that retries. Answers are never echoed: what a caller may see of a failure is its kind.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import cast
from urllib.parse import urlencode

from tornado.httpclient import HTTPRequest, HTTPResponse
from tornado.httputil import HTTPHeaders, HTTPInputError
from tornado.iostream import StreamClosedError, UnsatisfiableReadError
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError

from metroculus.sources.answers.unzip import unzip
from metroculus.sources.errors import (
    AddressRefused,
    BadAnswer,
    BreakerOpen,
    DeadlineExceeded,
    SourceError,
    TooLarge,
    Unreachable,
)
from metroculus.sources.outbound.addresses import AllowedAddresses, GuardedResolver
from tools.deadline import Deadline
from tools.http_client import HttpClient
from tools.offload import Offload
from tools.waiting import while_asking

CONNECT_SECONDS = 3.0
MAX_BODY_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 64 * 2**10
LARGE_BODY_BYTES = 2**20
UNLIMITED = 2**40
"""The client's own cap, never met: ours is, and is told as what it is."""
CALLS_AT_ONCE = 8
RETRIES = 2
RETRY_STATUSES = frozenset({429, 502, 503, 504})
MAX_RETRY_AFTER_SECONDS = 5.0
BREAKER_WINDOW_SECONDS, BREAKER_CALLS, BREAKER_SHARE, PROBE_SECONDS = 10.0, 10, 0.5, 5.0
LATE_IN_A_ROW = 5
"""So many calls that were not answered in time open the breaker, however far apart: ten of them take minutes."""
BUDGET_WINDOW_SECONDS, BUDGET_SHARE, BUDGET_FLOOR = 60.0, 0.1, 3


@dataclass
class _Health:
    """What the last calls to one upstream saw: its breaker, its retry budget, its places."""

    clock: Callable[[], float] = monotonic
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CALLS_AT_ONCE))
    outcomes: deque[tuple[float, bool]] = field(default_factory=deque)
    first_calls: deque[float] = field(default_factory=deque)
    retries: deque[float] = field(default_factory=deque)
    open_since: float | None = None
    probed_at: float = 0.0
    late_in_a_row: int = 0

    def admit(self) -> None:
        """Let a call through, or say that the breaker is open.

        Raises:
            Unreachable: while it is open, but for one probe every five seconds.
        """
        now = self.clock()
        if self.open_since is None:
            return
        if now - max(self.probed_at, self.open_since) < PROBE_SECONDS:
            raise BreakerOpen("the source failed repeatedly and is left alone for some seconds")
        self.probed_at = now

    def record(self, succeeded: bool, late: bool = False) -> None:
        """What became of a call; ``late`` where it had its time and was not answered."""
        now = self.clock()
        self.late_in_a_row = self.late_in_a_row + 1 if late else 0
        self.outcomes.append((now, succeeded))
        while self.outcomes and self.outcomes[0][0] < now - BREAKER_WINDOW_SECONDS:
            self.outcomes.popleft()
        if succeeded:
            if self.open_since is not None:
                self.open_since = None
                self.outcomes.clear()
            return
        failures = sum(not outcome for _, outcome in self.outcomes)
        mostly = len(self.outcomes) >= BREAKER_CALLS and failures >= BREAKER_SHARE * len(self.outcomes)
        if mostly or self.late_in_a_row >= LATE_IN_A_ROW:
            self.open_since = self.open_since or now

    def count_call(self) -> None:
        self.first_calls.append(self.clock())

    def may_retry(self) -> bool:
        """Whether the budget has a retry left; takes it."""
        now = self.clock()
        for stamps in (self.first_calls, self.retries):
            while stamps and stamps[0] < now - BUDGET_WINDOW_SECONDS:
                stamps.popleft()
        if len(self.retries) >= max(BUDGET_FLOOR, BUDGET_SHARE * len(self.first_calls)):
            return False
        self.retries.append(now)
        return True


@dataclass(frozen=True)
class Upstream:
    """Where a source is and how it is spoken to."""

    name: str
    """What it is called in ``sources`` and in errors."""
    url: str
    """Base URL, checked, without a trailing slash."""
    headers: Mapping[str, str] = field(default_factory=dict)
    ca: str | None = None
    """PEM of the authority that signed its certificate; None is the system's."""
    trusted: bool = False
    """Set by the operator, and so not bound to ``UPSTREAM_ALLOW``."""
    owner: str = ""
    """Whose it is: accounts that name one URL share neither its breaker nor its places nor its budget."""

    @property
    def key(self) -> str:
        return f"{self.owner} {self.url}"


Observer = Callable[[str, bool, float], None]
"""Told of each call: what was asked, whether it answered, and in how many seconds."""


class SourceHttp:
    """Tornado's own client under the rules of this module.

    Args:
        allowed: what tenants' URLs may reach.
        timeout: seconds for one call, never longer than what is left of the caller's deadline.
    """

    def __init__(self, allowed: AllowedAddresses, timeout: float = 30.0) -> None:
        self.timeout = timeout
        limits = {
            "max_clients": 1000,
            "max_body_size": UNLIMITED,
            "max_header_size": MAX_HEADER_BYTES,
        }
        self._trusted = HttpClient(force_instance=True, **limits)
        self._guarded = HttpClient(force_instance=True, resolver=GuardedResolver(allowed=allowed), **limits)
        self._health: dict[str, _Health] = {}
        self.offload = Offload()
        """Where answers are decoded that would hold the loop."""
        self.observers: list[Observer] = []

    def close(self) -> None:
        self._trusted.close()
        self._guarded.close()
        self.offload.close()

    def seen(self) -> dict[str, str]:
        """What the last calls to each upstream saw, by whose it is and its URL: ``ok`` or ``open``."""
        return {key: "open" if health.open_since is not None else "ok" for key, health in self._health.items()}

    async def get(
        self,
        upstream: Upstream,
        path: str,
        params: Mapping[str, str],
        deadline: Deadline,
    ) -> bytes:
        """The body of a 200.

        Raises:
            Unreachable, DeadlineExceeded, BadAnswer, AddressRefused
        """
        health = self._health.setdefault(upstream.key, _Health())
        url = f"{upstream.url}{path}?{urlencode(params)}" if params else f"{upstream.url}{path}"
        headers = {"Accept-Encoding": "gzip", **upstream.headers} | (
            {"X-Request-ID": deadline.request_id} if deadline.request_id else {}
        )
        health.count_call()
        attempt = 0
        while True:
            try:
                with while_asking.get()():
                    return await self._attempt(upstream, health, url, headers, deadline)
            except _Retryable as failure:
                if deadline.left() <= 0:
                    raise DeadlineExceeded(f"{upstream.name} did not answer in time") from None
                wait = failure.wait if failure.wait is not None else random.random() * min(0.25 * 2**attempt, 2.0)
                if attempt >= RETRIES or wait > min(MAX_RETRY_AFTER_SECONDS, deadline.left()) or not health.may_retry():
                    raise failure.error from None
                attempt += 1
                await asyncio.sleep(wait)

    async def _attempt(
        self, upstream: Upstream, health: _Health, url: str, headers: dict[str, str], deadline: Deadline
    ) -> bytes:
        try:
            async with asyncio.timeout(seconds_left(deadline)):
                await health.places.acquire()
        except TimeoutError:
            raise DeadlineExceeded(f"{upstream.name} is busy: the deadline passed in the queue") from None
        try:
            health.admit()
            succeeded: bool | None = None  # of a call that was given up nothing is learned
            late, began = False, monotonic()
            try:
                body = await self._fetch(upstream, url, headers, deadline)
                succeeded = True
                return body
            except _Retryable:
                succeeded = False
                raise
            except DeadlineExceeded:
                if monotonic() - began >= CONNECT_SECONDS:  # else whoever asked had hardly any time left
                    succeeded, late = False, upstream.owner != ""
                raise
            except Unreachable:
                succeeded = False
                raise
            except _ServerError as failure:
                succeeded = False
                raise failure.error from None
            except (BadAnswer, TooLarge):
                succeeded = True  # it is there, and answers
                raise
            finally:
                if succeeded is not None:
                    health.record(succeeded, late)
                for observe in self.observers:
                    observe(upstream.name, bool(succeeded), monotonic() - began)
        finally:
            health.places.release()

    async def _fetch(self, upstream: Upstream, url: str, headers: dict[str, str], deadline: Deadline) -> bytes:
        body = _CappedBody()
        seconds = min(self.timeout, seconds_left(deadline))
        request = HTTPRequest(
            url,
            headers=HTTPHeaders(headers),
            connect_timeout=min(CONNECT_SECONDS, seconds),
            request_timeout=seconds,
            follow_redirects=False,
            decompress_response=False,
            header_callback=body.foresee,
            streaming_callback=body.take,
            ssl_options=_ssl_context(upstream.ca) if url.startswith("https:") else None,
        )
        client = self._trusted if upstream.trusted else self._guarded
        try:
            async with asyncio.timeout(seconds + 0.25):
                response = await client.fetch(request, raise_error=False)
                return await _read(upstream, response, body)
        except (TimeoutError, HTTPTimeoutError) as failure:
            if "connecting" in str(failure):
                raise _Retryable(Unreachable(f"{upstream.name} could not be reached")) from None
            raise DeadlineExceeded(f"{upstream.name} did not answer in time") from None
        except AddressRefused as refusal:
            raise Unreachable(str(refusal)) from None
        except (HTTPStreamClosedError, StreamClosedError, OSError):
            if body.too_large:
                raise _too_large(upstream) from None
            how = "broke off its answer" if body.size else "could not be reached"
            raise _Retryable(Unreachable(f"{upstream.name} {how}")) from None
        except (HTTPInputError, UnsatisfiableReadError, ValueError):
            raise BadAnswer(f"{upstream.name} answered with something that is not HTTP") from None


class _CappedBody:
    """Collects a body as it comes and stops at the cap."""

    def __init__(self) -> None:
        self._body = bytearray()
        self.too_large = False

    def foresee(self, header: str) -> None:
        name, _, value = header.partition(":")
        if name.lower() == "content-length" and declares_more(value.strip(), MAX_BODY_BYTES):
            self._refuse()

    def take(self, part: bytes) -> None:
        if self.size + len(part) > MAX_BODY_BYTES:
            self._refuse()
        self._body += part

    def _refuse(self) -> None:
        self.too_large = True
        self._body.clear()
        raise _BodyTooLarge

    @property
    def size(self) -> int:
        return len(self._body)

    def whole(self) -> bytes:
        """The body; a large one is not copied, which would hold the loop."""
        return cast("bytes", self._body) if self.size > LARGE_BODY_BYTES else bytes(self._body)


def declares_more(length: str, limit: int) -> bool:
    """Whether a Content-Length is one, and over the limit."""
    return length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > limit)


class _BodyTooLarge(Exception):
    """Ends the transfer from inside the client."""


class _Retryable(Exception):
    def __init__(self, error: SourceError, wait: float | None = None) -> None:
        self.error = error
        self.wait = wait


class _ServerError(Exception):
    def __init__(self, error: SourceError) -> None:
        self.error = error


def seconds_left(deadline: Deadline) -> float:
    """Seconds that a call may still take.

    Raises:
        DeadlineExceeded: there are none.
    """
    left = deadline.left()
    if left <= 0:
        raise DeadlineExceeded("the deadline passed before the source answered")
    return left


def _too_large(upstream: Upstream) -> TooLarge:
    return TooLarge(f"{upstream.name} answered with more than {MAX_BODY_BYTES >> 20} MiB")


async def _read(upstream: Upstream, response: HTTPResponse, body: _CappedBody) -> bytes:
    """The body of a complete 200; every other outcome as its error."""
    if response.code == 200:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding == "identity":
            return body.whole()
        if encoding != "gzip":
            raise BadAnswer(f"{upstream.name} answered in an encoding that was not asked for")
        try:
            # On a thread: what unpacks to hundreds of megabytes would hold everybody else up.
            unpacked = await asyncio.to_thread(unzip, body.whole(), MAX_BODY_BYTES)
        except zlib.error:
            raise BadAnswer(f"{upstream.name} answered with gzip that cannot be unpacked") from None
        if unpacked is None:
            raise _too_large(upstream)
        return unpacked
    error = BadAnswer(f"{upstream.name} answered with status {response.code}", response.code)
    if response.code in RETRY_STATUSES:
        raise _Retryable(error, _retry_after(response.headers.get("Retry-After")))
    if response.code >= 500:
        raise _ServerError(error)
    raise error


def _retry_after(text: str | None) -> float | None:
    """Seconds to wait as the upstream asks; None where it asks nothing that can be understood."""
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, OverflowError):
        return None


def _ssl_context(ca: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=ca)
