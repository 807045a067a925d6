"""Sends kept answers without making a handler.

A handler costs an object, a task and a turn of the loop per request. When a handler has read a target (path and query),
the parsed query is remembered. For the next request of that target the handler's class is asked whether the caller may
have the answer and whether it is kept. If both hold, the answer is sent at once; every other request gets a handler.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from msgspec import Struct
from tornado.httputil import HTTPConnection, HTTPHeaders, RequestStartLine, ResponseStartLine

from tools.tornado_service.negotiation import represent
from tools.tornado_service.prepared import Prepared
from tools.tornado_service.service import Service, log_line, request_id_of

Sent: TypeAlias = "asyncio.Future[None]"
READY_ANSWERS = "ready_answers"
"""The application's setting that holds them."""
SEND_SECONDS = 60.0
"""For an answer to be taken; who takes it more slowly is disconnected."""
MOST_TARGETS = 1024
LONGEST_TARGET = 2048
MOST_HOSTS, LONGEST_HOST = 64, 253


class ReadyAnswer(Struct, frozen=True):
    """An answer that may go out: its bytes, the headers that tell how it was come by, who asks (for the audit log)."""

    prepared: Prepared
    actor: Mapping[str, str]
    headers: tuple[tuple[str, str], ...] = ()
    take_place: Callable[[], Callable[[], None]] | None = None
    """Counts the request against its caller's limit; the function that it returns ends that."""


class Target(Struct, frozen=True):
    """What a handler made of a target."""

    handler: Any
    """Its class. ``ready(asked)`` gives the answer; None where the caller may not have it, or it is not kept."""
    parts: Mapping[str, Any]
    """What the handler was given in its route."""
    needs: Any
    query: Any
    objects: Mapping[str, str]
    path: str


class KnownRequest(Struct, frozen=True):
    """A request for a target that is known."""

    target: Target
    method: str
    headers: HTTPHeaders
    service: Service
    address: str
    request_id: str


class ReadyAnswers:
    """The targets that are known of a service, and the way their answers go out."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._targets: dict[str, Target] = {}
        self._hosts: set[str] = set()
        """Values of ``Host`` that Tornado has accepted."""

    def remember(self, text: str, target: Target, host: str) -> None:
        """Keep what a handler made of a target."""
        if len(text) > LONGEST_TARGET or len(host) > LONGEST_HOST:
            return
        if len(self._targets) >= MOST_TARGETS:
            self._targets.clear()
        self._targets[text] = target
        if len(self._hosts) >= MOST_HOSTS:
            if target.needs is None:  # anybody may send such a request, with any Host
                return
            self._hosts.clear()
        self._hosts.add(host)

    def find(self, line: RequestStartLine, headers: HTTPHeaders, connection: Any) -> Callable[[], None] | None:
        """What sends the answer to a request; None where a handler is needed."""
        target = self._targets.get(line.path)
        service = self._service
        if target is None or line.method not in ("GET", "HEAD") or service.stopping:
            return None
        if headers.get("Host") not in self._hosts or "Content-Length" in headers or "Transfer-Encoding" in headers:
            return None
        if target.needs is not None and service.in_flight >= service.max_in_flight:
            return None
        began = time.perf_counter()
        peer = getattr(getattr(connection, "context", None), "remote_ip", None) or ""
        address = service.proxies.client(peer, headers.get_list("X-Forwarded-For"))
        asked = KnownRequest(target, line.method, headers, service, address, request_id_of(headers))
        found = target.handler.ready(asked)
        return None if found is None else lambda: self._send(asked, found, connection, began)

    def _send(self, asked: KnownRequest, found: ReadyAnswer, connection: HTTPConnection, began: float) -> None:
        target, method, service = asked.target, asked.method, self._service
        headers = service.headers(asked.request_id, asked.headers.get("Origin"))
        for name, value in found.headers:
            headers[name] = value
        body = represent(found.prepared, asked.headers, headers)
        status, reason = (200, "OK") if body is not None else (304, "Not Modified")
        chunk = body if body is not None and method != "HEAD" else b""
        sent = connection.write_headers(ResponseStartLine("", status, reason), headers, chunk)
        connection.finish()
        if not sent.done():
            self._wait_for(sent, connection, found.take_place)
        service.answered(
            handler=target.handler.__name__,
            method=method,
            status=status,
            seconds=time.perf_counter() - began,
            needs=target.needs,
            request_id=asked.request_id,
            actor=found.actor,
            address=asked.address,
            objects=target.objects,
        )
        log_line(method, target.path, status, time.perf_counter() - began, asked.request_id)

    def _wait_for(self, sent: Sent, connection: Any, take_place: Callable[[], Callable[[], None]] | None) -> None:
        """Until the kernel has it all, the request is in flight, and takes its caller's place."""
        service = self._service
        leave_place = take_place() if take_place is not None else None
        service.in_flight += 1

        def taken() -> None:
            service.in_flight -= 1
            if leave_place is not None:
                leave_place()

        when_taken(sent, connection, taken)


def when_taken(sent: Sent, connection: Any, taken: Callable[[], None]) -> None:
    """Call ``taken`` when an answer was sent, or its client is gone; whoever takes it too slowly is disconnected."""

    def over() -> None:
        if not sent.cancelled():
            sent.exception()  # a client that went away is no failure of ours
        taken()

    if sent.done():  # the kernel has it all: nobody is waited for
        over()
        return
    guard = asyncio.get_running_loop().call_later(SEND_SECONDS, disconnect, connection)

    def sent_or_failed(_: object) -> None:
        guard.cancel()
        over()

    sent.add_done_callback(sent_or_failed)


def disconnect(connection: Any) -> None:
    """End a connection at once, whatever is still to be sent: the other side sees that it was cut, and not an end."""
    stream = getattr(connection, "stream", None)
    if stream is None:
        return
    reset_on_close(stream, True)
    stream.close()


def reset_on_close(stream: Any, on: bool) -> None:
    """Whether the other side of a connection is told that it was cut when it is closed, also by the process' end."""
    with suppress(AttributeError, OSError):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))
