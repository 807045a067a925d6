"""A Tornado application with what every service has: request ids, JSON errors, health, metrics, OpenAPI."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import responses
from typing import Any
from uuid import uuid4

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from tools.tornado_service.errors import ApiError, CommonCodes, error_body
from tools.tornado_service.openapi import document
from tools.tornado_service.operation import NoQuery, Operation, operation

log = logging.getLogger("service")

MAX_REQUEST_BYTES = 1 << 20
MAX_HEADER_BYTES = 64 << 10
GRACE_SECONDS = 35.0
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def _plain_text(value: Any) -> str:
    """Subclasses of ``str`` (ids, names) are text on the wire."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"cannot be answered: {type(value).__name__}")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain_text)


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
    stopping: bool = False
    in_flight: int = 0
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        labels = ["handler", "method", "status"]
        self.requests = Counter("http_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram("http_request_seconds", "Time to answer", ["handler"], registry=self.registry)
        self.flying = Gauge("http_requests_in_flight", "Requests being answered", registry=self.registry)
        self.flying.set_function(lambda: self.in_flight)


class ServiceHandler(RequestHandler):
    """JSON in, JSON out; every failure in the one error shape."""

    service: Service

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
        if self.service.stopping:
            self.set_header("Connection", "close")
        if self.request.method not in (*METHODS, "HEAD") or not self._implements(self.request.method):
            raise ApiError(self.codes.method_not_allowed)

    def _implements(self, method: str | None) -> bool:
        name = "get" if method == "HEAD" else (method or "").lower()
        return hasattr(getattr(type(self), name, None), "operation")

    async def head(self, **path: str) -> None:
        await self.get(**path)  # type: ignore[misc]

    def write_answer(self, value: Any) -> None:
        self.finish(value if isinstance(value, bytes) else _ENCODER.encode(value))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        raised = kwargs.get("exc_info", (None, None, None))[1]
        error = self._as_api_error(raised)
        self.clear()
        self.set_status(error.code.status, responses.get(error.code.status))
        if error.code.status == 405:
            allowed = [method for method in METHODS if self._implements(method)]
            self.set_header("Allow", ", ".join(allowed + (["HEAD"] if "GET" in allowed else [])))
        if error.retry_after is not None:
            self.set_header("Retry-After", str(error.retry_after))
        if error.code.status == 401:
            self.set_header("WWW-Authenticate", "Bearer" if self.service.name == "rest-api" else "Secret")
        self.finish(_ENCODER.encode(error_body(error)))

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

    def on_finish(self) -> None:
        if not getattr(self, "_counted", False):
            return
        self.service.in_flight -= 1
        self._counted = False
        name = type(self).__name__
        method = self.request.method if self.request.method in (*METHODS, "HEAD") else "OTHER"
        self.service.requests.labels(name, method, str(self.get_status())).inc()
        self.service.seconds.labels(name).observe(time.perf_counter() - self._began)

    def on_connection_close(self) -> None:
        self.on_finish()


class OpenHandler(ServiceHandler):
    """No secret is needed: nothing here is of a tenant."""

    async def authorize(self, operation: Operation, path: dict[str, str]) -> None:
        return None


class NotFoundHandler(OpenHandler):
    async def prepare(self) -> None:
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

    @operation(needs=None, answer=Readiness)
    async def get(self, query: NoQuery) -> Readiness:
        states = dict(self.service.ready())
        if self.service.stopping:
            states["service"] = "down"
        ready = "down" not in states.values()
        self.set_status(200 if ready else 503)
        return Readiness(ready, states)


class Metrics(OpenHandler):
    """Prometheus text."""

    @operation(needs=None, answer=str)
    async def get(self, query: NoQuery) -> bytes:
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        return generate_latest(self.service.registry)


class OpenApi(OpenHandler):
    """This service's contract, OpenAPI 3.1, generated from what validates requests."""

    routes: Sequence[tuple[Any, ...]]

    @operation(needs=None, answer=dict[str, Any])
    async def get(self, query: NoQuery) -> dict[str, Any]:
        return document(self.service.name, self.service.version, self.routes)


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


@dataclass
class Listener:
    """A server on its address; ``stop`` finishes what is in flight."""

    server: HTTPServer
    service: Service
    address: str
    port: int
    tls: bool

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.address}:{self.port}"

    async def stop(self, seconds: float = GRACE_SECONDS) -> None:
        """Take no new connections, let requests in flight finish, then close."""
        self.service.stopping = True
        self.server.stop()
        end = time.monotonic() + seconds
        while self.service.in_flight and time.monotonic() < end:  # noqa: ASYNC110  (a drain is rare, and bounded)
            await asyncio.sleep(0.02)
        await self.server.close_all_connections()


def listen(
    application: Application, service: Service, address: str, port: int, tls: tuple[str, str] | None = None
) -> Listener:
    """Serve an application; port 0 takes a free one.

    Raises:
        OSError: naming the address that is taken or not this machine's.
    """
    context = None
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*tls)
    server = HTTPServer(
        application,
        ssl_options=context,
        max_body_size=MAX_REQUEST_BYTES,
        max_header_size=MAX_HEADER_BYTES,
        idle_connection_timeout=75,
        body_timeout=30,
    )
    try:
        sockets = bind_sockets(port, address)
    except OSError as problem:
        raise OSError(f"cannot listen on {address}:{port}: {problem.strerror or problem}") from None
    server.add_sockets(sockets)
    return Listener(server, service, address, sockets[0].getsockname()[1], tls is not None)


def stop_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT from now on; call it before anyone is told that the service is up."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped
