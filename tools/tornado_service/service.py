"""What the handlers of one service share: who it is, what it stands on, its figures, its logs."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import count
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from tornado.httputil import HTTPHeaders, format_timestamp

from tools.tornado_service.audit import AuditLog, bounded
from tools.tornado_service.cross_origin import CrossOrigin
from tools.tornado_service.errors import ApiError, CommonCodes
from tools.tornado_service.proxies import TrustedProxies

log = logging.getLogger("service")

MAX_IN_FLIGHT = 1000
AUDITED_IDS = ("organization_id", "cluster_id", "cloud_account_id")
"""Parameters that name whose data is asked for; what stands in the path is told whole."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROCESS = uuid4().hex[:20]
_NUMBERS = count(1)


@dataclass
class Service:
    """What a service's handlers share."""

    name: str
    version: str
    codes: CommonCodes
    ready: Callable[[], dict[str, str]]
    """Each dependency with its state; ``down`` means that nothing can be served."""
    map_error: Callable[[BaseException], ApiError | None] = lambda error: None
    """A service's own errors as outcomes."""
    clock: Callable[[], float] = time.time
    security: dict[str, Any] = field(default_factory=dict)
    """How a caller shows who it is, as OpenAPI's security scheme by name."""
    audit: AuditLog | None = None
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    cross_origin: CrossOrigin = field(default_factory=CrossOrigin)
    max_in_flight: int = MAX_IN_FLIGHT
    """Requests answered at once, but for those that need no permission; the next is told to come again."""
    stopping: bool = False
    in_flight: int = 0
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        labels = ["handler", "method", "status"]
        requests = Counter("http_requests", "Requests answered", labels, registry=self.registry)
        seconds = Histogram("http_request_seconds", "Time to answer", ["handler"], registry=self.registry)
        self._requests_of = cache(requests.labels)
        self._seconds_of = cache(seconds.labels)
        self.flying = Gauge("http_requests_in_flight", "Requests being answered", registry=self.registry)
        self.flying.set_function(lambda: self.in_flight)
        if self.audit is not None:
            lost = Gauge("audit_lines_lost", "Audit lines that could not be written", registry=self.registry)
            lost.set_function(lambda: self.audit.failures if self.audit is not None else 0)

    def headers(self, request_id: str, origin: str | None) -> HTTPHeaders:
        """The headers that every answer to a page of this origin has."""
        headers = common_headers(request_id)
        self.cross_origin.tell(headers, origin)
        return headers

    def answered(
        self,
        *,
        handler: str,
        method: str,
        status: int,
        seconds: float,
        needs: Any,
        request_id: str,
        actor: Mapping[str, str],
        address: str,
        objects: Mapping[str, str],
        error_code: str | None = None,
    ) -> None:
        """Count a request, and write an audit line where it needed a permission.

        Args:
            needs: the permission, an enum's member; None where none was needed.
        """
        self._requests_of(handler, method, str(status)).inc()
        self._seconds_of(handler).observe(seconds)
        if self.audit is not None and needs is not None:
            self.audit.write(
                request_id=request_id,
                actor=actor,
                address=address,
                method=method,
                operation=handler,
                needs=needs.name.lower(),
                objects=objects,
                status=status,
                error_code=error_code,
                milliseconds=round(1000 * seconds, 1),
            )


def objects_of(arguments: Mapping[str, list[bytes]], path: Mapping[str, str]) -> dict[str, str]:
    """Whose data a request is about, as the audit log tells it."""
    return bounded({name: arguments[name][0] for name in AUDITED_IDS if name in arguments} | dict(path))


def request_id_of(headers: HTTPHeaders) -> str:
    """The caller's own id of a request where that is one, else a new one."""
    if "X-Request-ID" in headers and _REQUEST_ID.fullmatch(headers["X-Request-ID"]):
        return headers["X-Request-ID"]
    return f"{_PROCESS}{next(_NUMBERS):012x}"


def common_headers(request_id: str) -> HTTPHeaders:
    """The headers that every answer has."""
    headers = HTTPHeaders()
    headers["Content-Type"] = "application/json; charset=utf-8"
    headers["Cache-Control"] = "private"
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Vary"] = "Accept-Encoding"
    headers["Date"] = _date_at(int(time.time()))
    headers["X-Request-ID"] = request_id
    return headers


@lru_cache(2)
def _date_at(second: int) -> str:
    return format_timestamp(second)


def log_line(method: str | None, path: str, status: int, seconds: float, request_id: str) -> None:
    """One line a request; the query is left out, for it may hold what does not belong into a log."""
    level = logging.WARNING if status >= 500 else logging.INFO
    if not log.isEnabledFor(level):
        return
    path = path[:200]
    if not (path.isascii() and path.isprintable() and "\\" not in path):
        path = path.encode("unicode_escape").decode()
    told = (method, path, status, 1000.0 * seconds, request_id)
    # A record made here need not look for the line that made it.
    log.handle(logging.LogRecord(log.name, level, __file__, 0, "%s %s %d %.1fms request_id=%s", told, None))
