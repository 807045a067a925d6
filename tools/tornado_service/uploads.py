"""Bodies that are larger than a request's usual limit: who sends one is known before any of it is kept.

What is kept at once is bounded over all requests, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections import Counter
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.web import RequestHandler, stream_request_body

from tools.tornado_service.application import ServiceHandler, declared_of
from tools.tornado_service.errors import ApiError
from tools.tornado_service.limits import may_be_closed
from tools.tornado_service.operation import Operation

CALLER_SHARE = 2
"""The budget divided by this is the most that one caller may hold."""
UPLOAD_SECONDS = 300.0
"""For a body of somebody who is known to come whole: lines are slow."""
FULL_SECONDS = 2
"""``Retry-After`` of a request for which the budget has no bytes left."""


class UploadBudget:
    """How many bytes of request bodies one service holds at once.

    Args:
        total: bytes of all bodies together.
        each: bytes of the largest body.
    """

    def __init__(self, total: int, each: int) -> None:
        self.total = max(total, each)
        self.each = each
        self.share = max(self.total // CALLER_SHARE, each)
        self.taken: Counter[str] = Counter()

    def take(self, size: int, who: str = "") -> bool:
        """Reserve bytes for a caller; False where the budget, or the caller's share of it, is used up."""
        if self.taken.total() + size > self.total or self.taken[who] + size > self.share:
            return False
        self.taken[who] += size
        return True

    def give_back(self, size: int, who: str = "") -> None:
        self.taken[who] -= size
        if not self.taken[who]:
            del self.taken[who]


@stream_request_body
class UploadHandler(ServiceHandler):
    """A handler whose methods take the raw body (``operation(raw_body=True)``).

    A request that is refused is read to its end without being kept, where it is not too long for that: whoever closes
    a connection on which the other side still sends is not heard.
    """

    budget: UploadBudget
    _held = 0
    _holder = ""
    _keeps = True
    """Whether the method takes a body at all."""
    _refusal: ApiError | None = None

    @property
    def uploader(self) -> str:
        """The caller whose share the body counts against; empty where all callers share one."""
        return ""

    async def prepare(self) -> None:
        self._body = bytearray()
        try:
            await super().prepare()
            declared = declared_of(type(self), self.request.method)
            if declared is None or not declared.raw_body:
                self._keeps = False
                return
            await self.authorize(declared, self.path_kwargs)
            cast(HTTP1Connection, self.request.connection).set_body_timeout(UPLOAD_SECONDS)
        except ApiError as refusal:
            length = self.request.headers.get("Content-Length", "0")
            if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > self.budget.each):
                raise
            self._refusal = refusal
            # What is read now is kept for nobody: it takes no place of a request, and its connection makes room.
            self._leave()
            may_be_closed(self.request.connection)

    async def admit(self, operation: Operation, path: dict[str, str]) -> None:
        if self._refusal is not None:
            raise self._refusal

    def _drop(self) -> None:
        self._body = bytearray()
        if self._held:
            self.budget.give_back(self._held, self._holder)
        self._held = 0

    def data_received(self, chunk: bytes) -> None:
        """Bytes count when they arrive, not when ``Content-Length`` announces them: an announcement costs nothing."""
        if self._finished or self._refusal is not None or not self._keeps:
            return
        self._holder = self.uploader
        if self.budget.take(len(chunk), self._holder):
            self._held += len(chunk)
            self._body += chunk
            return
        self._drop()
        reason = "too much is being received; come again"
        self._refusal = ApiError(self.codes.overloaded, reason, retry_after=FULL_SECONDS)

    @property
    def raw_body(self) -> bytes:
        """What was received.

        Raises:
            ApiError: it is too large.
        """
        self.refuse_what_is_too_large()
        body, self._body = bytes(self._body), bytearray()  # it counts until it is answered
        return body

    def on_finish(self) -> None:
        self._drop()
        super().on_finish()

    def on_connection_close(self) -> None:
        """Where the body was broken off, no method runs, and nothing else would end the request."""
        received = self.request._body_future.done()
        RequestHandler.on_connection_close(self)
        if not received and not self._finished:
            self._drop()
            self._leave()
        super().on_connection_close()
