"""Answers that are there already: sent without a handler, for what was asked before and whose answer is kept.

A handler is what a request costs: an object, a task and a turn of the loop for each. A target (path and query) that a
handler has read once is remembered as it was read. The next request for it is asked about at the handler's class, on
the spot: whether the caller may have it, and whether its answer is kept. Whatever is not both is the handler's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tornado.httputil import HTTPConnection, HTTPHeaders, RequestStartLine, ResponseStartLine

from tools.tornado_service.negotiation import represent
from tools.tornado_service.prepared import Prepared
from tools.tornado_service.service import Service, common_headers, log_line, request_id_of

READY_ANSWERS = "ready_answers"
"""The application's setting that holds them."""
SEND_SECONDS = 60.0
"""For an answer to be taken; who takes it more slowly is disconnected."""
MOST_TARGETS = 1024
LONGEST_TARGET = 2048
MOST_HOSTS, LONGEST_HOST = 64, 253


@dataclass(frozen=True)
class ReadyAnswer:
    """An answer that may go out: its bytes, the headers that tell how it was come by, who asks (for the audit log)."""

    prepared: Prepared
    actor: Mapping[str, str]
    headers: tuple[tuple[str, str], ...] = ()
    take_place: Callable[[], Callable[[], None]] | None = None
    """Counts the caller in until its answer was taken; what it gives counts it out again."""


class ReadyHandler(Protocol):
    """A handler's class that may have an answer ready."""

    @classmethod
    def ready(cls, asked: Asked) -> ReadyAnswer | None:
        """None where the caller may not have it, or it is not kept: the handler says which."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """What a handler made of a target."""

    handler: Any
    parts: Mapping[str, Any]
    """What the handler was given in its route."""
    needs: Any
    query: Any
    objects: Mapping[str, str]
    path: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a target that is known."""

    target: Target
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
        """What stood in ``Host`` where Tornado took it."""

    def remember(self, text: str, target: Target, host: str) -> None:
        """Keep what a handler made of a target."""
        if len(text) > LONGEST_TARGET or len(host) > LONGEST_HOST or not hasattr(target.handler, "ready"):
            return
        if len(self._targets) >= MOST_TARGETS:
            self._targets.clear()
        self._targets[text] = target
        if len(self._hosts) >= MOST_HOSTS:
            if target.needs is None:  # whoever may ask that may ask under any name
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
        asked = Asked(target, headers, service, address, request_id_of(headers))
        found = target.handler.ready(asked)
        return None if found is None else lambda: self._send(line.method, asked, found, connection, began)

    def _send(self, method: str, asked: Asked, found: ReadyAnswer, connection: HTTPConnection, began: float) -> None:
        target, service = asked.target, self._service
        headers = common_headers(asked.request_id)
        for name, value in found.headers:
            headers[name] = value
        body = represent(found.prepared, asked.headers, headers)
        status, reason = (200, "OK") if body is not None else (304, "Not Modified")
        chunk = body if body is not None and method != "HEAD" else b""
        sent = connection.write_headers(ResponseStartLine("", status, reason), headers, chunk)
        connection.finish()
        if sent.done():
            _look_at(sent)
        else:
            self._wait_for(sent, connection, found.take_place() if found.take_place is not None else None)
        seconds = time.perf_counter() - began
        name = target.handler.__name__
        service.count(name, method, status, seconds)
        if target.needs is not None:
            service.tell_audit(
                request_id=asked.request_id,
                actor=found.actor,
                address=asked.address,
                method=method,
                handler=name,
                needs=target.needs,
                objects=target.objects,
                status=status,
                error_code=None,
                seconds=seconds,
            )
        log_line(method, target.path, status, seconds, asked.request_id)

    def _wait_for(self, sent: Any, connection: Any, leave_place: Callable[[], None] | None) -> None:
        """Until the kernel has it all, the request is in flight, and takes its caller's place."""
        service = self._service
        service.in_flight += 1
        guard = asyncio.get_running_loop().call_later(SEND_SECONDS, connection.stream.close)

        def taken(_: object) -> None:
            guard.cancel()
            _look_at(sent)
            service.in_flight -= 1
            if leave_place is not None:
                leave_place()

        sent.add_done_callback(taken)


def _look_at(sent: Any) -> None:
    """A client that went away is no failure of ours."""
    if not sent.cancelled():
        sent.exception()
