"""Bodies that are larger than a request's usual limit: who sends one is known before any of it is kept.

What is kept at once is bounded over all requests, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections import Counter

from tornado.web import RequestHandler, stream_request_body

from tools.tornado_service.application import ServiceHandler, declared_of
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import Operation

SHARERS = 2
"""One caller has this part of the room at most."""
FULL_SECONDS = 2
"""After which whoever finds no room is told to come again."""


class UploadRoom:
    """Bytes of bodies that may be held at once by one service.

    Args:
        total: of all of them.
        each: of one.
    """

    def __init__(self, total: int, each: int) -> None:
        self.total = max(total, each)
        self.each = each
        self.share = max(self.total // SHARERS, each)
        self.taken: Counter[str] = Counter()

    def take(self, size: int, who: str = "") -> bool:
        """Whether there is room for so many more of somebody's; takes it. Nobody has all of it."""
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

    room: UploadRoom
    _held = 0
    _holder = ""
    _keeps = True
    """Whether the method takes a body at all."""
    _refusal: ApiError | None = None
    _whole = False
    """Whether the body was received to its end."""

    @property
    def sharer(self) -> str:
        """Whose the body is, once that is known."""
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
        except ApiError as refusal:
            length = self.request.headers.get("Content-Length", "0")
            if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > self.room.each):
                raise
            self._refusal = refusal

    async def admit(self, operation: Operation, path: dict[str, str]) -> None:
        if self._refusal is not None:
            raise self._refusal

    def _drop(self) -> None:
        self._body = bytearray()
        if self._held:
            self.room.give_back(self._held, self._holder)
        self._held = 0

    def data_received(self, chunk: bytes) -> None:
        """Room is taken by what has come, not by what was promised: a promise costs nothing."""
        if self._finished or self._refusal is not None or not self._keeps:
            return
        self._holder = self.sharer
        if self.room.take(len(chunk), self._holder):
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
        self._whole = True
        body, self._body = bytes(self._body), bytearray()  # its room is given back with the answer
        return body

    def on_finish(self) -> None:
        if hasattr(self, "_body"):
            self._drop()
        super().on_finish()

    def on_connection_close(self) -> None:
        """Nobody works on a body that was broken off."""
        RequestHandler.on_connection_close(self)
        if not self._whole and not self._finished:
            if hasattr(self, "_body"):
                self._drop()
            self._leave()
        super().on_connection_close()
