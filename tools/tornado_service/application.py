"""A Tornado application with what every service has: request ids, JSON errors, health, metrics, OpenAPI."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from http.client import responses
from typing import Any
from uuid import uuid4

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from tornado.web import Application, HTTPError, RequestHandler

from tools.tornado_service.audit import AuditLog, bounded
from tools.tornado_service.errors import ApiError, CommonCodes, error_body
from tools.tornado_service.limits import refusal_of
from tools.tornado_service.openapi import document
from tools.tornado_service.operation import NoQuery, Operation, operation
from tools.tornado_service.prepared import Prepared, encode
from tools.tornado_service.proxies import TrustedProxies

log = logging.getLogger("service")

MAX_IN_FLIGHT = 1000
SEND_SECONDS = 60.0
"""For an answer to be taken; who takes it more slowly is disconnected."""
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
AUDITED_IDS = ("organization_id", "cluster_id", "cloud_account_id")
"""Parameters that name whose data is asked for; what stands in the path is told whole."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


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
    max_in_flight: int = MAX_IN_FLIGHT
    """Requests answered at once, but for those that need no permission; the next is told to come again."""
    stopping: bool = False
    in_flight: int = 0
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        labels = ["handler", "method", "status"]
        requests = Counter("http_requests", "Requests answered", labels, registry=self.registry)
        seconds = Histogram("http_request_seconds", "Time to answer", ["handler"], registry=self.registry)
        self.requests_of = cache(requests.labels)
        self.seconds_of = cache(seconds.labels)
        self.flying = Gauge("http_requests_in_flight", "Requests being answered", registry=self.registry)
        self.flying.set_function(lambda: self.in_flight)
        if self.audit is not None:
            lost = Gauge("audit_lines_lost", "Audit lines that could not be written", registry=self.registry)
            lost.set_function(lambda: self.audit.failures if self.audit is not None else 0)


class ServiceHandler(RequestHandler):
    """JSON in, JSON out; every failure in the one error shape."""

    service: Service
    _counted = False
    _error_code: str | None = None
    _etag: str | None = None

    def initialize(self, service: Service, **parts: Any) -> None:
        self.service = service
        for name, part in parts.items():
            setattr(self, name, part)

    @property
    def codes(self) -> CommonCodes:
        return self.service.codes

    def set_default_headers(self) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "private")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.clear_header("Server")
        self.set_header("X-Request-ID", self.request_id)

    @property
    def actor(self) -> dict[str, str]:
        """Who asks, as the audit log tells it; a service's handlers know more once they have authorized it."""
        return {"kind": "anonymous"}

    @property
    def address(self) -> str:
        """Where the request comes from."""
        forwarded = self.request.headers.get_list("X-Forwarded-For")
        return self.service.proxies.client(self.request.remote_ip or "", forwarded)

    def tell_audit(self, **about: str) -> None:
        """Add to this request's audit line what only its handler knows."""
        self._told |= about

    @property
    def request_id(self) -> str:
        known: str | None = getattr(self, "_request_id", None)
        if known is None:
            given = self.request.headers.get("X-Request-ID", "")
            known = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
            self._request_id = known
        return known

    async def authorize(self, operation: Operation, path: dict[str, str]) -> None:
        """Refuse whoever may not; handlers of a service say how.

        Raises:
            ApiError
        """
        raise NotImplementedError

    async def prepare(self) -> None:
        self.service.in_flight += 1
        self._counted = True
        self._began = time.perf_counter()
        self._told: dict[str, str] = {}
        if self.service.stopping:
            self.set_header("Connection", "close")
        self.refuse_what_is_too_large()
        declared = self._declared()
        if declared is not None and declared.needs is not None and self.service.in_flight > self.service.max_in_flight:
            reason = f"{self.service.max_in_flight} requests are being answered; come again"
            raise ApiError(self.codes.overloaded, reason, retry_after=1)
        if self.request.method not in (*METHODS, "HEAD") or not self._implements(self.request.method):
            raise ApiError(self.codes.method_not_allowed)

    def refuse_what_is_too_large(self) -> None:
        """Raises: ApiError"""
        refusal = refusal_of(self.request.connection)
        if refusal is None:
            return
        codes = {"body": self.codes.too_large, "url": self.codes.url_too_long, "headers": self.codes.invalid_parameter}
        raise ApiError(codes[refusal.part], refusal.reason, [refusal.part])

    def _implements(self, method: str | None) -> bool:
        return self._declared(method) is not None

    def _declared(self, method: str | None = None) -> Operation | None:
        """What was declared of a method, the request's own when none is named."""
        method = method or self.request.method
        name = "get" if method == "HEAD" else (method or "").lower()
        found: Operation | None = getattr(getattr(type(self), name, None), "operation", None)
        return found

    async def head(self, **path: str) -> None:
        await self.get(**path)  # type: ignore[misc]

    def write_answer(self, value: Any) -> None:
        if isinstance(value, Prepared):
            self._etag = value.etag
            packed = value.packed if "gzip" in self.request.headers.get("Accept-Encoding", "") else None
            if packed is not None:
                self.set_header("Content-Encoding", "gzip")
            self.finish(packed or value.body)
        else:
            self.finish(value if isinstance(value, bytes) else encode(value))

    def compute_etag(self) -> str | None:
        return self._etag or super().compute_etag()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        raised = kwargs.get("exc_info", (None, None, None))[1]
        error = self._as_api_error(raised)
        self._error_code = error.code.code
        self.clear()
        self.set_status(error.code.status, responses.get(error.code.status))
        if error.code.status == 405:
            allowed = [method for method in METHODS if self._implements(method)]
            self.set_header("Allow", ", ".join(allowed + (["HEAD"] if "GET" in allowed else [])))
        if error.retry_after is not None:
            self.set_header("Retry-After", str(error.retry_after))
        if error.code.status == 401:
            self.set_header("WWW-Authenticate", "Bearer" if self.service.name == "rest-api" else "Secret")
        self.finish(encode(error_body(error)))

    def _as_api_error(self, raised: BaseException | None) -> ApiError:
        if isinstance(raised, ApiError):
            return raised
        mapped = self.service.map_error(raised) if raised is not None else None
        if mapped is not None:
            return mapped
        if isinstance(raised, HTTPError):
            framing = {
                400: ApiError(self.codes.invalid_parameter, "the path cannot be read", ["path"]),
                404: ApiError(self.codes.not_found),
                405: ApiError(self.codes.method_not_allowed),
                413: ApiError(self.codes.too_large),
            }.get(raised.status_code)
            if framing is not None:
                return framing
        return ApiError(self.codes.internal)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Only a defect is worth a stack trace; outcomes are in the request's own line."""
        if value is not None and self._as_api_error(value).code.status == 500:
            log.error("request %s failed", self.request_id, exc_info=(typ, value, tb))

    def finish(self, chunk: Any = None) -> asyncio.Future[None]:
        sent: asyncio.Future[None] = super().finish(chunk)
        if sent.done():  # the kernel has it all: nobody is waited for
            if not sent.cancelled():
                sent.exception()
            self._leave()
            return sent
        guard = asyncio.get_running_loop().call_later(SEND_SECONDS, self._disconnect)

        def taken(_: asyncio.Future[None]) -> None:
            guard.cancel()
            if not sent.cancelled():
                sent.exception()  # a client that went away is no failure of ours
            self._leave()

        sent.add_done_callback(taken)
        return sent

    def _disconnect(self) -> None:
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None:
            stream.close()
        self._leave()

    def _leave(self) -> None:
        """The request is over: its answer was taken, or nobody is there to take it."""
        if self._counted:
            self._counted = False
            self.service.in_flight -= 1

    def on_connection_close(self) -> None:
        """What is still worked on keeps its place until it is done, or hanging up would be a way to take more."""
        if self._finished:
            self._leave()

    def on_finish(self) -> None:
        if not hasattr(self, "_began"):
            return
        name = type(self).__name__
        method = self.request.method if self.request.method in (*METHODS, "HEAD") else "OTHER"
        seconds = time.perf_counter() - self._began
        self.service.requests_of(name, method, str(self.get_status())).inc()
        self.service.seconds_of(name).observe(seconds)
        declared = self._declared()
        if self.service.audit is not None and declared is not None and declared.needs is not None:
            named = {name: self.request.arguments[name][0] for name in AUDITED_IDS if name in self.request.arguments}
            self.service.audit.write(
                request_id=self.request_id,
                actor=self.actor,
                address=self.address,
                method=method,
                operation=name,
                needs=declared.needs.name.lower(),
                objects=bounded(named | dict(self.path_kwargs)) | self._told,
                status=self.get_status(),
                error_code=self._error_code,
                milliseconds=round(1000 * seconds, 1),
            )


class OpenHandler(ServiceHandler):
    """No secret is needed: nothing here is of a tenant."""

    async def authorize(self, operation: Operation, path: dict[str, str]) -> None:
        return None


class NotFoundHandler(OpenHandler):
    async def prepare(self) -> None:
        self.refuse_what_is_too_large()
        raise ApiError(self.codes.not_found)


class Health(OpenHandler):
    """The process is up."""

    @operation(needs=None, answer=dict[str, str])
    async def get(self, query: NoQuery) -> dict[str, str]:
        return {"status": "ok"}


class Readiness(msgspec.Struct, frozen=True):
    ready: bool
    dependencies: dict[str, str]


class Ready(OpenHandler):
    """Each dependency with its state; 503 only where nothing can be served."""

    @operation(needs=None, answer=Readiness, also=(503,))
    async def get(self, query: NoQuery) -> Readiness:
        states = dict(self.service.ready())
        if self.service.stopping:
            states["service"] = "down"
        ready = "down" not in states.values()
        self.set_status(200 if ready else 503)
        return Readiness(ready, states)


class Metrics(OpenHandler):
    """Prometheus text."""

    @operation(needs=None, answer=str, content="text/plain")
    async def get(self, query: NoQuery) -> bytes:
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        return generate_latest(self.service.registry)


class OpenApi(OpenHandler):
    """This service's contract, OpenAPI 3.1, generated from what validates requests."""

    routes: Sequence[tuple[Any, ...]]

    @operation(needs=None, answer=dict[str, Any])
    async def get(self, query: NoQuery) -> dict[str, Any]:
        return document(self.service.name, self.service.version, self.routes, self.service.security)


Route = tuple[str, type[ServiceHandler], dict[str, Any]]


def make_application(service: Service, routes: Sequence[Route]) -> Application:
    """An application of a service's routes and the four that every service has."""
    shared: dict[str, Any] = {"service": service}
    own: list[Route] = [(pattern, handler, shared | parts) for pattern, handler, parts in routes]
    common: list[Route] = [
        (r"/healthz", Health, shared),
        (r"/readyz", Ready, shared),
        (r"/metrics", Metrics, shared),
    ]
    every = own + common
    every.append((r"/openapi\.json", OpenApi, shared | {"routes": [*every, (r"/openapi\.json", OpenApi, shared)]}))
    application = Application(
        every,
        default_handler_class=NotFoundHandler,
        default_handler_args=shared,
        compress_response=True,
        log_function=log_request,
    )
    return application


def log_request(handler: RequestHandler) -> None:
    """One line a request; the query is left out, for it may hold what does not belong into a log."""
    if not isinstance(handler, ServiceHandler):
        return
    level = logging.WARNING if handler.get_status() >= 500 else logging.INFO
    log.log(
        level,
        "%s %s %d %.1fms request_id=%s",
        handler.request.method,
        handler.request.path[:200].encode("unicode_escape").decode(),
        handler.get_status(),
        1000.0 * handler.request.request_time(),
        handler.request_id,
    )
