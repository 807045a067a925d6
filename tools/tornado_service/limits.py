"""What a request may weigh: told to whoever sends more in the service's own error shape, before it is read whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream

from tools.tornado_service.ready import ReadyAnswers

log = logging.getLogger("service")

MAX_BODY_BYTES = 1 << 20
"""Of a body, where nothing else is said of its path."""
MAX_URL_BYTES = 64 << 10
MAX_HEADER_BYTES = 64 << 10
PARSED_BYTES = 160 << 10
"""What the parser takes of a header; a longer one closes the connection without a word."""
UPLOADS = "uploads"
"""The application's setting of how large bodies may be, by the beginning of their path."""
DRAINED_BYTES = 8 << 20
"""A body up to this size is read to its end before it is refused, so that the refusal is read too."""
CROWDED_SECONDS = 60.0
"""Between two lines of the log that say that all connections are taken."""


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


def may_be_closed(connection: Any) -> None:
    """Say that nothing of worth is under way on a connection: it may be closed to make room for another."""
    tell: Callable[[], None] | None = getattr(connection, "may_be_closed", None)
    if tell is not None:
        tell()


class LimitedServer(HTTPServer):
    """Tornado's server; a request that is too large reaches its handler without a body, and with a ``Refusal``.

    Where all connections are taken, the one that is idle for the longest makes room for the next: without room the
    process would run out of descriptors, and Tornado's loop would do nothing but fail to accept.
    """

    max_connections: int
    answers: ReadyAnswers
    uploads: Mapping[str, int]

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        self.max_connections = kwargs.pop("max_connections")
        self.answers = kwargs.pop("answers")
        self.uploads = kwargs.pop("uploads")
        self._connected: set[IOStream] = set()
        self._idle: dict[IOStream, None] = {}
        """Connections on which nothing is asked, the longest idle first."""
        self._told_at = float("-inf")
        super().initialize(*args, **kwargs)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        if len(self._connected) >= self.max_connections and not self._make_room():
            stream.close()
            return
        self._connected.add(stream)
        self._idle[stream] = None
        super().handle_stream(stream, address)

    def _make_room(self) -> bool:
        """Whether there was an idle connection to close."""
        if time.monotonic() - self._told_at >= CROWDED_SECONDS:
            self._told_at = time.monotonic()
            log.warning("all %d connections are taken; idle ones are closed", self.max_connections)
        longest = next(iter(self._idle), None)
        if longest is None:
            return False
        self._forget(longest)
        longest.close()
        return True

    def _forget(self, stream: IOStream) -> None:
        self._connected.discard(stream)
        self._idle.pop(stream, None)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        stream = cast(HTTP1ServerConnection, server_conn).stream
        if stream in self._connected:
            self._idle.setdefault(stream)
            request_conn.may_be_closed = lambda: self._idle.setdefault(stream)  # type: ignore[attr-defined]
        inner = super().start_request(server_conn, request_conn)
        return _Weighed(inner, request_conn, lambda: self._idle.pop(stream, None), self.answers, self.uploads)

    def on_close(self, server_conn: object) -> None:
        self._forget(cast(HTTP1ServerConnection, server_conn).stream)
        super().on_close(server_conn)


class _Weighed(HTTPMessageDelegate):
    def __init__(
        self,
        inner: HTTPMessageDelegate,
        connection: HTTPConnection,
        begun: Callable[[], None],
        answers: ReadyAnswers,
        uploads: Mapping[str, int],
    ) -> None:
        self._uploads = uploads
        self._most = MAX_BODY_BYTES
        self._inner = inner
        self._answers = answers
        self._send: Callable[[], None] | None = None
        self._connection = connection
        self._begun = begun
        self._size = 0
        self._refused = self._over = False

    def _refuse(self, part: Literal["body", "url", "headers"], limit: int) -> None:
        self._connection.refusal = Refusal(part, limit)  # type: ignore[attr-defined]
        self._refused = True

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self._begun()
        declared = headers.get("Content-Length", "0")
        size = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 19 else 0
        if self._uploads and isinstance(start_line, RequestStartLine):
            larger = (most for prefix, most in self._uploads.items() if start_line.path.startswith(prefix))
            self._most = next(larger, MAX_BODY_BYTES)
        if isinstance(start_line, RequestStartLine) and len(start_line.path) > MAX_URL_BYTES:
            self._refuse("url", MAX_URL_BYTES)
        elif sum(len(name) + len(value) + 4 for name, value in headers.get_all()) > MAX_HEADER_BYTES:
            self._refuse("headers", MAX_HEADER_BYTES)
        elif size > self._most:
            self._refuse("body", self._most)
        elif isinstance(start_line, RequestStartLine):
            self._send = self._answers.find(start_line, headers, self._connection)
            if self._send is not None:
                return None
        waited = self._inner.headers_received(start_line, headers)
        if self._refused and size > DRAINED_BYTES:
            self._finish()
        return waited

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self._size += len(chunk)
        if self._size > self._most and not self._refused:
            self._refuse("body", self._most)
        if self._refused:
            if self._size > DRAINED_BYTES:
                self._finish()
            return None
        return self._inner.data_received(chunk) if self._send is None else None

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            if self._send is not None:
                self._send()
            else:
                self._inner.finish()

    def finish(self) -> None:
        self._finish()

    def on_connection_close(self) -> None:
        if self._send is None:
            self._inner.on_connection_close()
