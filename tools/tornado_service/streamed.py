"""Files that are sent while they are made: what is sent is whole, or the connection is cut."""

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
from tools.tornado_service.negotiation import accepts_gzip
from tools.tornado_service.ready import SEND_SECONDS, disconnect

log = logging.getLogger("service")

GZIP_LEVEL = 1
"""Of a stream: what takes the time is making it."""
_GZIP_WINDOW = 31
PIECE_BYTES = 1 << 16
"""Of a file: whoever takes one of them within ``SEND_SECONDS`` goes on reading."""
CUT = ErrorCode(500, "cut", "the file could not be made to its end")
"""For the log alone: the caller sees that the connection was cut."""


@dataclass(frozen=True)
class StreamedFile:
    """A file to take away.

    Args:
        chunks: its bytes; what they raise before the first one is an ordinary failure of the request.
        seconds: to make and send all of it.
        packable: whether it is text that gzip makes smaller.
    """

    name: str
    content_type: str
    chunks: AsyncGenerator[bytes, None]
    seconds: float
    packable: bool = False


async def send_file(handler: Any, file: StreamedFile) -> None:
    """Send a file; a failure after its first bytes cuts the connection, so that no part of it passes for all.

    Raises:
        ApiError: it could not be begun in time.
        Exception: whatever making the first bytes raises.
    """
    began = False
    try:
        if handler.request.method == "HEAD":
            _tell(handler, file)
            await handler.flush()
            handler.finish()
            return
        async with asyncio.timeout(file.seconds):
            first = await anext(file.chunks, b"")
            began = True
            await _send(handler, file, first)
    except StreamClosedError:
        log.info("request %s: nobody reads the file any more", handler.request_id)
        _end(handler)
    except TimeoutError:
        if not began:
            raise ApiError(handler.codes.overloaded, "the file was not begun in time", retry_after=5) from None
        _cut(handler, f"it took more than {file.seconds:.0f} s, or nobody read it")
    except Exception as problem:
        if not began:
            raise
        _cut(handler, f"{type(problem).__name__}: {problem}")
    finally:
        await file.chunks.aclose()


def _tell(handler: Any, file: StreamedFile) -> None:
    handler.set_header("Content-Type", file.content_type)
    handler.set_header("Content-Disposition", disposition(file.name))
    handler.set_header("Vary", "Accept-Encoding")


async def _send(handler: Any, file: StreamedFile, chunk: bytes) -> None:
    _tell(handler, file)
    packer = None
    if file.packable and accepts_gzip(handler.request.headers.get("Accept-Encoding", "")):
        packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        handler.set_header("Content-Encoding", "gzip")
    while True:
        packed = chunk if packer is None else await asyncio.to_thread(packer.compress, chunk)
        for start in range(0, max(1, len(packed)), PIECE_BYTES):
            handler.write(packed[start : start + PIECE_BYTES])
            async with asyncio.timeout(SEND_SECONDS):
                await handler.flush()
        following = await anext(file.chunks, None)
        if following is None:
            break
        chunk = following
    sent = handler.finish(packer.flush() if packer is not None else None)
    if handler.request.version == "HTTP/1.0":  # which knows no chunks: the end of the connection is that of the file
        await sent
        handler.request.connection.stream.close()


def _cut(handler: Any, why: str) -> None:
    log.warning("request %s: a file was cut: %s", handler.request_id, why)
    handler.set_status(CUT.status)
    handler.cut(CUT)
    _end(handler)


def _end(handler: Any) -> None:
    disconnect(handler.request.connection)
    handler.finish()


def disposition(name: str) -> str:
    """``Content-Disposition`` of a file to take away, whatever its name holds (RFC 6266)."""
    plain = "".join(one if one.isascii() and (one.isalnum() or one in "._-") else "_" for one in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
