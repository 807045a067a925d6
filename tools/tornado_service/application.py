"""A Tornado application with what every service has: request ids, JSON errors, health, metrics, OpenAPI."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from http.client import responses
from typing import Any

import msgspec
from prometheus_client import generate_latest
from tornado.httputil import HTTPInputError
from tornado.web import Application, HTTPError, RequestHandler

from tools.tornado_service.errors import ApiError, CommonCodes, ErrorCode, error_body
from tools.tornado_service.limits import UPLOADS, refusal_of
from tools.tornado_service.negotiation import represent, takes_gzip
from tools.tornado_service.openapi import document
from tools.tornado_service.operation import NoQuery, Operation, operation
from tools.tornado_service.prepared import Prepared, encode, prepared_of
from tools.tornado_service.ready import READY_ANSWERS, KnownRequest, ReadyAnswer, ReadyAnswers, Target, when_taken
from tools.tornado_service.service import Service, log_line, objects_of, request_id_of
from tools.tornado_service.streamed import Streamed, send_streamed

log = logging.getLogger("service")

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class ServiceHandler(RequestHandler):
    """JSON in, JSON out; every failure in the one error shape."""

    service: Service
    _counted = False
    _error_code: str | None = None

    def __init__(self, application: Application, request: Any, **parts: Any) -> None:
        self.service = parts["service"]  # the first headers are made before ``initialize``
        super().__init__(application, request, **parts)

    def initialize(self, service: Service, **parts: Any) -> None:
        self._parts = parts
        self.__dict__.update(parts)

    @property
    def codes(self) -> CommonCodes:
        return self.service.codes

    def clear(self) -> None:
        """As Tornado's, with the headers that every answer of ours has."""
        self._headers = self.service.headers(self.request_id, self.request.headers.get("Origin"))
        self._write_buffer: list[bytes] = []
        self._status_code = 200
        self._reason = "OK"

    @property
    def actor(self) -> dict[str, str]:
        """Who asks, as the audit log tells it; a service's handlers know more once they have authorized it."""
        return {"kind": "anonymous"}

    @property
    def address(self) -> str:
        """Where the request comes from."""
        forwarded = self.request.headers.get_list("X-Forwarded-For")
        return self.service.proxies.client(self.request.remote_ip or "", forwarded)

    @property
    def audited_as(self) -> Any:
        """What the audit log says that was needed, an enum's member; None where there is no line."""
        declared = declared_of(type(self), self.request.method)
        return declared.needs if declared is not None else None

    def remember(self, operation: Operation, query: Any, path: dict[str, str]) -> None:
        """Keep what was made of this request's target, so that its answer may go out without a handler."""
        if not hasattr(self, "ready"):
            return
        objects = objects_of(self.request.arguments, path)
        target = Target(type(self), self._parts, operation.needs, query, objects, self.request.path)
        self.settings[READY_ANSWERS].remember(self.request.uri or "", target, self.request.host)

    def tell_audit(self, **about: str) -> None:
        """Add to this request's audit line what only its handler knows."""
        self._told |= about

    @property
    def request_id(self) -> str:
        known: str | None = getattr(self, "_request_id", None)
        if known is None:
            known = self._request_id = request_id_of(self.request.headers)
        return known

    async def admit(self, operation: Operation, path: dict[str, str]) -> None:
        """``authorize``, where that has not been asked already.

        Raises:
            ApiError
        """
        await self.authorize(operation, path)

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
        declared = declared_of(type(self), self.request.method)
        if self.request.method == "OPTIONS":
            return
        if declared is None:
            raise ApiError(self.codes.method_not_allowed)
        if declared.needs is not None and self.service.in_flight > self.service.max_in_flight:
            reason = f"{self.service.max_in_flight} requests are being answered; come again"
            raise ApiError(self.codes.overloaded, reason, retry_after=1)

    def refuse_what_is_too_large(self) -> None:
        """Raises: ApiError"""
        refusal = refusal_of(self.request.connection)
        if refusal is None:
            return
        codes = {"body": self.codes.too_large, "url": self.codes.url_too_long, "headers": self.codes.invalid_parameter}
        raise ApiError(codes[refusal.part], refusal.reason, [refusal.part])

    @property
    def _allowed(self) -> str:
        allowed = [method for method in METHODS if declared_of(type(self), method) is not None]
        return ", ".join([*allowed, *(["HEAD"] if "GET" in allowed else []), "OPTIONS"])

    def options(self, **path: str) -> None:
        """What may be asked here; nothing of a tenant, so that whoever asks is not asked for a token."""
        self.set_status(204)
        self.clear_header("Content-Type")
        self.set_header("Allow", self._allowed)
        asked = self.request.headers
        if "Access-Control-Request-Method" in asked and "Access-Control-Allow-Origin" in self._headers:
            self.service.cross_origin.allow(self._headers, self._allowed)
        self.finish()

    async def head(self, **path: str) -> None:
        await self.get(**path)  # type: ignore[misc]

    async def send(self, value: Any) -> None:
        """Send an answer: packed where the caller takes that, a 304 where it has it already, or chunk by chunk."""
        if isinstance(value, Streamed):
            await send_streamed(self, value)
            return
        asked = self.request.headers
        if not isinstance(value, Prepared):
            encoded = value if isinstance(value, bytes) else encode(value)
            value = await prepared_of(encoded, pack=takes_gzip(asked))
        read = self._status_code == 200 and self.request.method in ("GET", "HEAD")
        body = represent(value, asked, self._headers, tagged=read)
        if body is None:
            self._status_code, self._reason = 304, "Not Modified"
        else:
            self._write_buffer.append(body)
        self.finish()

    def cut(self, code: ErrorCode) -> None:
        """An answer that had begun was cut: the log says why."""
        self._error_code = code.code

    def compute_etag(self) -> None:
        """Tornado's own tag is not made: an answer that has one was given it."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        raised = kwargs.get("exc_info", (None, None, None))[1]
        error = self._as_api_error(raised)
        self._error_code = error.code.code
        self.clear()
        self.set_status(error.code.status, responses.get(error.code.status))
        if error.code.status == 405:
            self.set_header("Allow", self._allowed)
        if error.retry_after is not None:
            self.set_header("Retry-After", str(error.retry_after))
        if error.code.status == 401:
            bearer = any(scheme.get("scheme") == "bearer" for scheme in self.service.security.values())
            self.set_header("WWW-Authenticate", "Bearer" if bearer else "Secret")
        self.finish(encode(error_body(error)))

    def _as_api_error(self, raised: BaseException | None) -> ApiError:
        if isinstance(raised, ApiError):
            return raised
        mapped = self.service.map_error(raised) if raised is not None else None
        if mapped is not None:
            return mapped
        if isinstance(raised, HTTPError):
            place = "body" if isinstance(raised.__cause__, HTTPInputError) else "path"
            framing = {
                400: ApiError(self.codes.invalid_parameter, f"the {place} cannot be read", [place]),
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
        when_taken(sent, self.request.connection, self._leave)
        return sent

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
        self.service.answered(
            handler=type(self).__name__,
            method=self.request.method if self.request.method in (*METHODS, "HEAD", "OPTIONS") else "OTHER",
            status=self.get_status(),
            seconds=time.perf_counter() - self._began,
            needs=self.audited_as,
            request_id=self.request_id,
            actor=self.actor,
            address=self.address,
            objects=objects_of(self.request.arguments, self.path_kwargs) | self._told,
            error_code=self._error_code,
        )


def declared_of(handler: type[ServiceHandler], method: str | None) -> Operation | None:
    """What a handler declares of a method; None where it has none."""
    name = _METHOD_NAMES.get(method or "")
    found: Operation | None = getattr(getattr(handler, name, None), "operation", None) if name else None
    return found


_METHOD_NAMES = {method: method.lower() for method in METHODS} | {"HEAD": "get"}


class OpenHandler(ServiceHandler):
    """No secret is needed: nothing here is of a tenant."""

    async def authorize(self, operation: Operation, path: dict[str, str]) -> None:
        return None


_HEALTHY = Prepared.of(encode({"status": "ok"}))


class NotFoundHandler(OpenHandler):
    async def prepare(self) -> None:
        self.refuse_what_is_too_large()
        raise ApiError(self.codes.not_found)


class Health(OpenHandler):
    """The process is up."""

    @operation(needs=None, answer=dict[str, str])
    async def get(self, query: NoQuery) -> Prepared:
        return _HEALTHY

    @classmethod
    def ready(cls, asked: KnownRequest) -> ReadyAnswer:
        return ReadyAnswer(_HEALTHY, {})


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


def make_application(
    service: Service,
    routes: Sequence[Route],
    uploads: Mapping[str, int] | None = None,
    not_found: type[ServiceHandler] = NotFoundHandler,
) -> Application:
    """An application of a service's routes and the four that every service has.

    Args:
        uploads: bytes that a body may have, by the beginning of its path; others have the usual limit.
        not_found: answers what no route is for.
    """
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
        default_handler_class=not_found,
        default_handler_args=shared,
        log_function=_log,
    )
    application.settings[READY_ANSWERS] = ReadyAnswers(service)
    application.settings[UPLOADS] = uploads or {}
    return application


def _log(handler: RequestHandler) -> None:
    if isinstance(handler, ServiceHandler):
        asked = handler.request
        log_line(asked.method, asked.path, handler.get_status(), asked.request_time(), handler.request_id)
