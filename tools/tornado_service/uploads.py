"""Bodies that are larger than a request's usual limit: who sends one is known before any of it is read.

What is read at once is bounded over all requests, so that memory does not grow with their number.
"""

from __future__ import annotations

from tornado.web import RequestHandler, stream_request_body

from tools.tornado_service.application import ServiceHandler, declared_of
from tools.tornado_service.errors import ApiError

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
    """A handler whose methods take the raw body (``operation(raw_body=True)``)."""

    room: UploadRoom
    _held = 0
    _without_room = False
    _whole = False
    """Whether the body was received to its end."""

    async def prepare(self) -> None:
        await super().prepare()
        self._body = bytearray()
        declared = declared_of(type(self), self.request.method)
        if declared is None or self.request.method == "OPTIONS":
            return
        await self.authorize(declared, self.path_kwargs)
        self._authorized = True
        length = self.request.headers.get("Content-Length", "0")
        if length.isascii() and length.isdigit() and len(length) < 19:
            self._hold(int(length))
        self._refuse_without_room()

    def _hold(self, size: int) -> None:
        """Take room for so many bytes; where there is none, what was received is let go."""
        more = size - self._held
        if more <= 0 or self._without_room:
            return
        if self.room.take(more):
            self._held += more
        else:
            self._without_room = True
            self._drop()

    def _refuse_without_room(self) -> None:
        """Raises: ApiError"""
        if self._without_room:
            raise ApiError(self.codes.overloaded, "too much is being received; come again", retry_after=FULL_SECONDS)

    def _drop(self) -> None:
        self._body.clear()
        self.room.give_back(self._held)
        self._held = 0

    def data_received(self, chunk: bytes) -> None:
        if self._finished:
            return
        self._hold(len(self._body) + len(chunk))
        if not self._without_room:
            self._body += chunk

    @property
    def raw_body(self) -> bytes:
        """What was received.

        Raises:
            ApiError: it is too large, or there is no room for it now.
        """
        self.refuse_what_is_too_large()
        self._refuse_without_room()
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
