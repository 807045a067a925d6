"""Packed bodies, unpacked up to a limit."""

from __future__ import annotations

import zlib

UNZIPPED_AT_ONCE = 2**20


def unzip(body: bytes, limit: int) -> bytes | None:
    """A gzip body unpacked, None where that is larger than the limit.

    Raises:
        zlib.error: it is not gzip, or cut short.
    """
    parts, size = [], 0
    while body:
        member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        while not member.eof:
            part = member.decompress(body, UNZIPPED_AT_ONCE)
            body = member.unconsumed_tail
            size += len(part)
            if size > limit:
                return None
            parts.append(part)
            if not part and not body and not member.eof:
                raise zlib.error("cut short")
        body = member.unused_data
    return b"".join(parts)
