"""Bodies that are larger than a request's usual limit: who sends one is known before any of it is kept.

What is kept at once is bounded over all requests, so that memory does not grow with their number.
"""

from __future__ import annotations

from tornado.web import RequestHandler, stream_request_body

from tools.tornado_service.application import ServiceHandler, declared_of
from tools.tornado_service.errors import ApiError
from tools.tornado_service.limits import DRAINED_BYTES
from tools.tornado_service.operation import Operation

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
        self.taken = 0

    def take(self, size: int) -> bool:
        """Whether there is room for so many more; takes it."""
        if self.taken + size > self.total:
            return False
        self.taken += size
        return True

    def give_back(self, size: int) -> None:
        self.taken -= size


@stream_request_body
class UploadHandler(ServiceHandler):
    """A handler whose methods take the raw body (``operation(raw_body=True)``).

    A request that is refused is read to its end without being kept, where it is not too long for that: whoever closes
    a connection on which the other side still sends is not heard.
    """

    room: UploadRoom
    _held = 0
    _refusal: ApiError | None = None
    _whole = False
    """Whether the body was received to its end."""

    async def prepare(self) -> None:
        await super().prepare()
        self._body = bytearray()
        declared = declared_of(type(self), self.request.method)
        if declared is None or self.request.method == "OPTIONS":
            return
        length = self.request.headers.get("Content-Length", "0")
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0
        try:
            await self.authorize(declared, self.path_kwargs)
            self._hold(size)
        except ApiError as refusal:
            if size > DRAINED_BYTES:
                raise
            self._refusal = refusal

    async def admit(self, operation: Operation, path: dict[str, str]) -> None:
        if self._refusal is not None:
            raise self._refusal

    def _hold(self, size: int) -> None:
        """Take room for so many bytes.

        Raises:
            ApiError: there is none now.
        """
        more = size - self._held
        if more > 0 and not self.room.take(more):
            self._drop()
            raise ApiError(self.codes.overloaded, "too much is being received; come again", retry_after=FULL_SECONDS)
        self._held += max(0, more)

    def _drop(self) -> None:
        self._body.clear()
        self.room.give_back(self._held)
        self._held = 0

    def data_received(self, chunk: bytes) -> None:
        if self._finished or self._refusal is not None:
            return
        try:
            self._hold(len(self._body) + len(chunk))
        except ApiError as refusal:
            self._refusal = refusal
        else:
            self._body += chunk

    @property
    def raw_body(self) -> bytes:
        """What was received.

        Raises:
            ApiError: it is too large.
        """
        self.refuse_what_is_too_large()
        self._whole = True
        return bytes(self._body)

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
