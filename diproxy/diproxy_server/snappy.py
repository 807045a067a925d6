"""Snappy's block format; what a body unpacks to is known before any of it is unpacked."""

from __future__ import annotations

import cramjam


class NotSnappy(Exception):
    """A body that cannot be unpacked."""


def unpacked_size(body: bytes) -> int:
    """The size that a body's preamble promises.

    Raises:
        NotSnappy
    """
    if not body:
        raise NotSnappy("is empty")
    try:
        size: int = cramjam.snappy.decompress_raw_len(body)
    except cramjam.DecompressionError:
        raise NotSnappy("is not in snappy's block format") from None
    return size


def unpack(body: bytes) -> bytes:
    """What a body holds, exactly as much as its preamble promises.

    Raises:
        NotSnappy
    """
    try:
        return bytes(cramjam.snappy.decompress_raw(body))
    except cramjam.DecompressionError:
        raise NotSnappy("is not in snappy's block format, or cut short") from None
