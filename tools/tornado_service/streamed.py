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
        async with asyncio.timeout(file.seconds):
            first = await anext(file.chunks, b"")
            began = True
            await _send(handler, file, first)
    except StreamClosedError:
        _finish_cut(handler, "the caller went away")
    except TimeoutError:
        if not began:
            raise ApiError(handler.codes.overloaded, "the file was not begun in time", retry_after=5) from None
        _finish_cut(handler, f"it took more than {file.seconds:.0f} s, or nobody read it")
    except Exception as problem:
        if not began:
            raise
        _finish_cut(handler, f"{type(problem).__name__}: {problem}")
    finally:
        await file.chunks.aclose()


async def _send(handler: Any, file: StreamedFile, chunk: bytes) -> None:
    handler.set_header("Content-Type", file.content_type)
    handler.set_header("Content-Disposition", disposition(file.name))
    handler.set_header("Vary", "Accept-Encoding")
    packer = None
    if file.packable and accepts_gzip(handler.request.headers.get("Accept-Encoding", "")):
        packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        handler.set_header("Content-Encoding", "gzip")
    if handler.request.method == "HEAD":
        handler.finish()
        return
    while True:
        handler.write(chunk if packer is None else await asyncio.to_thread(packer.compress, chunk))
        async with asyncio.timeout(SEND_SECONDS):
            await handler.flush()
        following = await anext(file.chunks, None)
        if following is None:
            break
        chunk = following
    handler.finish(packer.flush() if packer is not None else None)


def _finish_cut(handler: Any, why: str) -> None:
    log.warning("request %s: a file was cut: %s", handler.request_id, why)
    handler.set_status(CUT.status)
    handler.cut(CUT)
    disconnect(handler.request.connection)
    handler.finish()


def disposition(name: str) -> str:
    """``Content-Disposition`` of a file to take away, whatever its name holds (RFC 6266)."""
    plain = "".join(one if one.isascii() and (one.isalnum() or one in "._-") else "_" for one in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
