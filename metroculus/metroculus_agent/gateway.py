"""The agent's way to the gateway: what is wanted, and delivering it. Token and CA are read anew for each request."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
from pathlib import Path
from urllib.parse import urlencode

import msgspec
from msgspec import Struct
from tornado.httpclient import HTTPRequest, HTTPResponse

from tools.http_client import CLIENT_FAILURES, HttpClient, TlsContext
from tools.window import DAY, HOUR

CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 120.0
MAX_ANSWER_BYTES = 4 << 20
PACKING_LEVEL = 4
FIRST_STAMP, LAST_STAMP = 946684800, 4102444800
"""The years 2000 to 2100."""


class Wanted(Struct, frozen=True, kw_only=True):
    """A question for the upstream, as the gateway puts it."""

    kind: str
    start: int
    end: int
    step: str
    aggregate: tuple[str, ...] = ()
    asked_at: int | None = None

    @property
    def makes_sense(self) -> bool:
        """Whether it is about whole hours of at most a day, of our time."""
        whole = self.start % HOUR == 0 and self.end % HOUR == 0
        return whole and FIRST_STAMP <= self.start < self.end <= min(self.start + DAY, LAST_STAMP)


class GatewayError(Exception):
    """The gateway did not take something.

    Args:
        status: None where it could not be reached.
        retry_after: seconds to wait, where it said so.
    """

    def __init__(self, text: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after

    @property
    def of_the_answer(self) -> bool:
        """Whether this very answer is refused; others may be taken."""
        return self.status in (400, 413)


_WANTED = msgspec.json.Decoder(list[Wanted])


class Gateway:
    """One gateway, as one account.

    Args:
        url: its base.
        token_file: holds the account's push token.
        ca_file: PEM of the authority that signed its certificate; None is the system's.
    """

    def __init__(self, url: str, account: str, token_file: Path, ca_file: str | Path | None = None) -> None:
        self._url = url.rstrip("/")
        self._account = account
        self._token_file = token_file
        self._tls = TlsContext(ca_file)
        self._client = HttpClient(force_instance=True, max_clients=4, max_body_size=MAX_ANSWER_BYTES)

    async def wanted(self) -> list[Wanted]:
        """Raises: GatewayError"""
        answer = await self._request("GET", "/push/v2/wanted", None, {})
        try:
            wanted = _WANTED.decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise GatewayError("the gateway answered with something that is not its JSON") from None
        if not all(one.makes_sense for one in wanted):
            raise GatewayError("the gateway wants what is no hours of one day")
        return wanted

    async def deliver(self, wanted: Wanted, body: bytes, currency: str | None = None) -> int:
        """Push an answer of the upstream, with the currency of its money where that is known; it is kept after this.

        Returns:
            the bytes that were sent.

        Raises:
            GatewayError
        """
        packed, digest = await asyncio.to_thread(_packed, body)
        path = f"/push/v2/answers/{wanted.kind}/{wanted.start}/{wanted.end}/{wanted.step}"
        query = {"asked_at": wanted.asked_at, "currency": currency}
        path += "?" + urlencode({name: value for name, value in query.items() if value is not None})
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "Digest": f"sha-256={digest}"}
        await self._request("PUT", path, packed, headers)
        return len(packed)

    async def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> HTTPResponse:
        try:
            token = self._token_file.read_text().strip()
            tls = self._tls.context() if self._url.startswith("https:") else None
        except (OSError, UnicodeDecodeError) as problem:
            raise GatewayError(f"the token or the CA cannot be read: {problem}") from None
        if not token or not token.isascii() or not token.isprintable():
            raise GatewayError(f"{self._token_file} holds no push token: it must be one line")
        request = HTTPRequest(
            self._url + path,
            method=method,
            body=body,
            headers={"Authorization": f"Bearer {token}", "Cloud-Account-Id": self._account, **headers},
            connect_timeout=CONNECT_SECONDS,
            request_timeout=REQUEST_SECONDS,
            follow_redirects=False,
            ssl_options=tls,
        )
        try:
            async with asyncio.timeout(REQUEST_SECONDS + CONNECT_SECONDS):
                answer = await self._client.fetch(request, raise_error=False)
        except CLIENT_FAILURES as failure:  # what they say may hold what was sent
            raise GatewayError(f"the gateway could not be reached: {type(failure).__name__}") from None
        if answer.code not in (200, 202):
            raise GatewayError(f"the gateway answered {answer.code}: {_reason(answer)}", answer.code, _seconds(answer))
        return answer

    def close(self) -> None:
        self._client.close()


def _packed(body: bytes) -> tuple[bytes, str]:
    """A body as gzip, and the base64 digest of that."""
    packed = gzip.compress(body, PACKING_LEVEL, mtime=0)
    return packed, base64.b64encode(hashlib.sha256(packed).digest()).decode()


def _reason(answer: HTTPResponse) -> str:
    try:
        return str(msgspec.json.decode(answer.body)["error"]["reason"])[:500]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return "(no reason given)"


def _seconds(answer: HTTPResponse) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None
