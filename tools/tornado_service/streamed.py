"""Answers that are sent while they are made: what is sent is whole, or the connection is cut."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tornado.iostream import StreamClosedError

from tools.tornado_service.errors import ApiError, ErrorCode
from tools.tornado_service.negotiation import takes_gzip
from tools.tornado_service.prepared import GZIP_LEVEL
from tools.tornado_service.ready import SEND_SECONDS, disconnect, reset_on_close

log = logging.getLogger("service")

_GZIP_WINDOW = 31
PIECE_BYTES = 1 << 16
"""Of an answer: whoever takes one of them within ``SEND_SECONDS`` goes on reading."""
CUT = ErrorCode(500, "cut", "the answer could not be made to its end")
"""For the log alone: the caller sees that the connection was cut."""


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """An answer of which each chunk is sent when it is made.

    Args:
        chunks: its bytes; what they raise before the first one is an ordinary failure of the request.
        seconds: to make and send all of it.
        packable: whether it is text that gzip makes smaller.
    """

    content_type: str
    chunks: AsyncGenerator[bytes, None]
    seconds: float
    packable: bool = False


@dataclass(frozen=True, kw_only=True)
class StreamedFile(Streamed):
    """A file to take away."""

    name: str


async def send_streamed(handler: Any, answer: Streamed) -> None:
    """Send an answer; a failure after its first bytes cuts the connection, so that no part of it passes for all.

    Raises:
        ApiError: it could not be begun in time.
        Exception: whatever making the first bytes raises.
    """
    began = False
    try:
        if handler.request.method == "HEAD":
            _tell(handler, answer)
            await handler.flush()
            handler.finish()
            return
        async with asyncio.timeout(answer.seconds):
            first = await anext(answer.chunks, b"")
            began = True
            await _send(handler, answer, first)
    except StreamClosedError:
        log.info("request %s: nobody reads the answer any more", handler.request_id)
        _end(handler)
    except TimeoutError:
        if not began:
            raise ApiError(handler.codes.overloaded, "the answer was not begun in time", retry_after=5) from None
        _cut(handler, f"it took more than {answer.seconds:.0f} s, or nobody read it")
    except (Exception, asyncio.CancelledError) as problem:
        if not began:
            raise
        handler.log_exception(type(problem), problem, problem.__traceback__)
        _cut(handler, f"{type(problem).__name__}: {problem}")
    finally:
        await answer.chunks.aclose()


def _tell(handler: Any, answer: Streamed) -> None:
    handler.set_header("Content-Type", answer.content_type)
    if isinstance(answer, StreamedFile):
        handler.set_header("Content-Disposition", disposition(answer.name))


async def _send(handler: Any, answer: Streamed, chunk: bytes) -> None:
    _tell(handler, answer)
    unmarked = handler.request.version == "HTTP/1.0"  # it knows no chunks: the connection's end is that of the answer
    if unmarked:
        reset_on_close(handler.request.connection.stream, True)
    packer = None
    if answer.packable and takes_gzip(handler.request.headers):
        packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        handler.set_header("Content-Encoding", "gzip")
    while True:
        packed = chunk if packer is None else await asyncio.to_thread(_packed, packer, chunk)
        for start in range(0, max(1, len(packed)), PIECE_BYTES):
            handler.write(packed[start : start + PIECE_BYTES])
            await _flush(handler)
        following = await anext(answer.chunks, None)
        if following is None:
            break
        chunk = following
    if packer is not None:
        handler.write(packer.flush())
    if not unmarked:
        handler.finish()
        return
    stream = handler.request.connection.stream
    await _flush(handler)
    reset_on_close(stream, False)
    handler.finish()
    stream.close()


async def _flush(handler: Any) -> None:
    """Raises: TimeoutError, StreamClosedError: nobody reads."""
    async with asyncio.timeout(SEND_SECONDS):
        await handler.flush()


def _packed(packer: Any, chunk: bytes) -> bytes:
    return bytes(packer.compress(chunk) + packer.flush(zlib.Z_SYNC_FLUSH))


def _cut(handler: Any, why: str) -> None:
    log.warning("request %s: an answer was cut: %s", handler.request_id, why)
    handler.set_status(CUT.status)
    handler.cut(CUT)
    _end(handler)


def _end(handler: Any) -> None:
    disconnect(handler.request.connection)
    if not handler._finished:  # it is, where what was left to send was not taken
        handler.finish()


def disposition(name: str) -> str:
    """``Content-Disposition`` of a file to take away, whatever its name holds (RFC 6266)."""
    plain = "".join(one if one.isascii() and (one.isalnum() or one in "._-") else "_" for one in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
