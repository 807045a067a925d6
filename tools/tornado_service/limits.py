"""What a request may weigh: told to whoever sends more in the service's own error shape, before it is read whole."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Literal

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine

MAX_BODY_BYTES = 1 << 20
MAX_URL_BYTES = 64 << 10
MAX_HEADER_BYTES = 64 << 10
PARSED_BYTES = 256 << 10
"""What the parser takes of a header; a longer one closes the connection without a word."""
DRAINED_BYTES = 8 << 20
"""A body up to this size is read to its end before it is refused, so that the refusal is read too."""


@dataclass(frozen=True)
class Refusal:
    """What of a request is too large, and what the limit is."""

    part: Literal["body", "url", "headers"]
    limit: int

    @property
    def reason(self) -> str:
        return f"{self.part}: at most {self.limit >> 10} KiB"


def refusal_of(connection: Any) -> Refusal | None:
    """What ``LimitedServer`` found too large in the request that came over this connection."""
    found: Refusal | None = getattr(connection, "refusal", None)
    return found


class LimitedServer(HTTPServer):
    """Tornado's server; a request that is too large reaches its handler without a body, and with a ``Refusal``."""

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        return _Weighed(super().start_request(server_conn, request_conn), request_conn)


class _Weighed(HTTPMessageDelegate):
    def __init__(self, inner: HTTPMessageDelegate, connection: HTTPConnection) -> None:
        self._inner = inner
        self._connection = connection
        self._size = 0
        self._refused = self._over = False

    def _refuse(self, part: Literal["body", "url", "headers"], limit: int) -> None:
        self._connection.refusal = Refusal(part, limit)  # type: ignore[attr-defined]
        self._refused = True

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        declared = headers.get("Content-Length", "0")
        size = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 19 else 0
        if isinstance(start_line, RequestStartLine) and len(start_line.path) > MAX_URL_BYTES:
            self._refuse("url", MAX_URL_BYTES)
        elif sum(len(name) + len(value) + 4 for name, value in headers.get_all()) > MAX_HEADER_BYTES:
            self._refuse("headers", MAX_HEADER_BYTES)
        elif size > MAX_BODY_BYTES:
            self._refuse("body", MAX_BODY_BYTES)
        waited = self._inner.headers_received(start_line, headers)
        if self._refused and size > DRAINED_BYTES:
            self._finish()
        return waited

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self._size += len(chunk)
        if self._size > MAX_BODY_BYTES and not self._refused:
            self._refuse("body", MAX_BODY_BYTES)
        if self._refused:
            if self._size > DRAINED_BYTES:
                self._finish()
            return None
        return self._inner.data_received(chunk)

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            self._inner.finish()

    def finish(self) -> None:
        self._finish()

    def on_connection_close(self) -> None:
        self._inner.on_connection_close()
