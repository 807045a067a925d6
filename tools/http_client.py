"""Tornado's own HTTP client, which hears of a connection that is reset half way; and TLS whose authority may change."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from tornado.httpclient import HTTPRequest
from tornado.httputil import HTTPInputError
from tornado.iostream import StreamClosedError, UnsatisfiableReadError
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError, SimpleAsyncHTTPClient, _HTTPConnection

CLIENT_FAILURES = (
    TimeoutError,
    HTTPTimeoutError,
    HTTPStreamClosedError,
    HTTPInputError,
    StreamClosedError,
    UnsatisfiableReadError,
    OSError,
    ValueError,
)
"""What a request may fail with that is nobody's defect here: no connection, no time, no HTTP, too much of it."""


class _Connection(_HTTPConnection):
    """Tornado's own waits for its timeout where a connection is reset half way: it raises where nobody catches it."""

    def on_connection_close(self) -> None:
        self._handle_exception(HTTPStreamClosedError, HTTPStreamClosedError("Connection closed"), None)


class HttpClient(SimpleAsyncHTTPClient):
    """A client of a service's own: make it with ``force_instance=True``, and close it."""

    def _connection_class(self) -> type:
        return _Connection


class TlsContext:
    """What a client trusts: the authorities of a PEM file, read again when it changes, or the system's."""

    def __init__(self, file: str | Path | None) -> None:
        self._file = Path(file) if file is not None else None
        self._made: tuple[float, ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """Of a file that cannot be read now, as it was before.

        Raises:
            OSError: it was never read.
        """
        try:
            changed_at = self._file.stat().st_mtime if self._file is not None else 0.0
            if self._made is None or self._made[0] != changed_at:
                self._made = changed_at, ssl.create_default_context(cafile=self._file)
        except OSError:  # an SSLError is one
            if self._made is None:
                raise
        return self._made[1]


async def post(
    client: HttpClient, url: str, body: bytes, headers: dict[str, str], seconds: float, tls: TlsContext
) -> tuple[int, bytes]:
    """The status and the body of the answer to a post to an operator's own address; it follows no redirect.

    Raises:
        one of ``CLIENT_FAILURES``, whose text may hold the URL.
    """
    request = HTTPRequest(
        url,
        method="POST",
        body=body,
        headers=headers,
        follow_redirects=False,
        connect_timeout=seconds,
        request_timeout=seconds,
        ssl_options=tls.context() if urlsplit(url).scheme == "https" else None,
    )
    async with asyncio.timeout(seconds):
        answer = await client.fetch(request, raise_error=False)
    return answer.code, answer.body or b""


def authorities(file: str | None) -> str | bool:
    """What ``requests`` is to verify by: a file of authorities, else the system's, else those that it brings along."""
    return file or ssl.get_default_verify_paths().cafile or True
