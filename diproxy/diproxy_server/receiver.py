"""The way on to Thanos Receive: the body as it came, under the account's own tenant header."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from tornado.httpclient import HTTPRequest, HTTPResponse
from tornado.simple_httpclient import HTTPTimeoutError

from diproxy.diproxy_server.errors import NO_RECEIVER, RETRY_SECONDS
from tools.http_client import CLIENT_FAILURES, HttpClient, TlsContext
from tools.tornado_service.errors import ApiError

log = logging.getLogger("receiver")

CONNECT_SECONDS = 3.0
RECEIVE_SECONDS = 30.0
AT_ONCE = 256
"""Requests to the receiver; the next is told to come again, so that memory does not grow with a slow one."""
MOST_ANSWER_BYTES = 1 << 20
MOST_SAID_BYTES = 4096
PASSED_ON = frozenset({400, 409, 413, 429})
"""What the receiver says of the samples themselves goes through as it is; everything else may be cured."""
DOUBTFUL = frozenset({400, 413})
"""A proxy before it, or an address that is something else, answers these, too: what does not even take a request
without samples, and what answers with a page, says nothing of samples.
"""
EMPTY = b"\x00"
"""A request without samples, as snappy packs it."""
PASSED_HEADERS = ("X-Prometheus-Remote-Write-Samples-Written", "X-Prometheus-Remote-Write-Histograms-Written",
        "X-Prometheus-Remote-Write-Exemplars-Written", "Retry-After")  # fmt: skip


@dataclass(frozen=True)
class Forwarded:
    """What the receiver answered."""

    status: int
    headers: Mapping[str, str]
    text: str


class Receiver:
    """One Thanos Receive (or another receiver of remote write 1.0).

    Args:
        url: where it takes samples; None where there is none.
        ca: PEM file of the authority that signed its certificate.
    """

    def __init__(self, url: str | None, ca: str | None = None) -> None:
        self._url = url
        self._client = HttpClient(force_instance=True, max_clients=AT_ONCE, max_body_size=MOST_ANSWER_BYTES)
        self._tls = TlsContext(ca)
        self._has_accepted = False
        """Whether it ever accepted a request; until then its refusals may come from something else at this address."""
        self._under_way = 0
        self.seen = "none" if url is None else "unknown"
        """What the last request saw: ``ok``, ``failing``; ``none`` where there is no receiver."""

    async def write(self, account: str, body: bytes, request_id: str) -> Forwarded:
        """Hand a request on.

        Raises:
            ApiError: 503: it is not known to be written, and may come again.
        """
        if self._url is None:
            raise ApiError(NO_RECEIVER, "no receiver of metrics is configured", retry_after=RETRY_SECONDS)
        if self._under_way >= AT_ONCE:
            raise ApiError(NO_RECEIVER, "the receiver of metrics is busy", retry_after=RETRY_SECONDS)
        self._under_way += 1
        try:
            answer = await self._fetch(self._url, account, body, request_id)
        finally:
            self._under_way -= 1
        text = answer.body[:MOST_SAID_BYTES].decode("utf-8", "replace") if answer.body else ""
        taken = answer.code // 100 == 2
        self._has_accepted |= taken
        if answer.code in DOUBTFUL and not self._has_accepted:
            self._has_accepted = await self._is_receiver(self._url, account, request_id)
        html = answer.headers.get("Content-Type", "").lower().startswith("text/html")
        passed_on = answer.code in PASSED_ON and (self._has_accepted or answer.code not in DOUBTFUL)
        if taken or (passed_on and not html):
            self.seen = "ok"
            headers = {name: answer.headers[name] for name in PASSED_HEADERS if name in answer.headers}
            return Forwarded(answer.code, headers, text)
        self.seen = "failing"
        log.warning("the receiver answered %d request_id=%s: %.200r", answer.code, request_id, text)
        raise ApiError(NO_RECEIVER, f"the receiver of metrics answered {answer.code}", retry_after=RETRY_SECONDS)

    async def _is_receiver(self, url: str, account: str, request_id: str) -> bool:
        """Whether it accepts a request without samples, as a receiver does."""
        try:
            answer = await self._fetch(url, account, EMPTY, request_id)
        except ApiError:
            return False
        return answer.code // 100 == 2

    async def _fetch(self, url: str, account: str, body: bytes, request_id: str) -> HTTPResponse:
        request = HTTPRequest(
            url,
            method="POST",
            body=body,
            headers={
                "Content-Type": "application/x-protobuf",
                "Content-Encoding": "snappy",
                "X-Prometheus-Remote-Write-Version": "0.1.0",
                "User-Agent": "diproxy",
                "THANOS-TENANT": account,
                "X-Request-ID": request_id,
            },
            connect_timeout=CONNECT_SECONDS,
            request_timeout=RECEIVE_SECONDS,
            follow_redirects=False,
        )
        try:
            request.ssl_options = self._tls.context() if url.startswith("https:") else None
            async with asyncio.timeout(RECEIVE_SECONDS + 1.0):
                return await self._client.fetch(request, raise_error=False)
        except CLIENT_FAILURES as failure:
            self.seen = "failing"
            late = isinstance(failure, (TimeoutError, HTTPTimeoutError))
            log.warning("the receiver failed request_id=%s: %s: %s", request_id, type(failure).__name__, failure)
            what = "did not answer in time" if late else "could not be reached"
            raise ApiError(NO_RECEIVER, f"the receiver of metrics {what}", retry_after=RETRY_SECONDS) from None

    def close(self) -> None:
        self._client.close()
