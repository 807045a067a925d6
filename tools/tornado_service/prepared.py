"""Answers as they go over the wire: encoded once, and written many times where they are kept."""

from __future__ import annotations

import asyncio
import gzip
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct

GZIP_LEVEL = 1
"""A large answer is packed while somebody waits: level 5 takes 2.5 times as long for an eighth less."""
LEAST_TO_COMPRESS = 1024
SMALL_BYTES = 1 << 16
"""A body of this size or more is hashed and packed on a thread."""
LARGEST_SHARE = 8
"""A cache of answers keeps none that is larger than this part of it."""


def _plain_text(value: Any) -> str:
    """Subclasses of ``str`` (ids, names) are text on the wire."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"cannot be answered: {type(value).__name__}")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain_text)


def encode(value: Any) -> bytes:
    """JSON, without blanks."""
    return _ENCODER.encode(value)


class Prepared(Struct, frozen=True):
    """JSON as bytes, the same packed where that is worth it, and the strong entity tag of the bytes."""

    body: bytes
    packed: bytes | None
    etag: str

    @staticmethod
    def of(body: bytes, pack: bool = True) -> Prepared:
        """Hashes and packs: some milliseconds a megabyte, and the interpreter is free meanwhile."""
        packed = gzip.compress(body, GZIP_LEVEL, mtime=0) if pack and len(body) >= LEAST_TO_COMPRESS else None
        return Prepared(body, packed, f'"{blake2b(body, digest_size=16).hexdigest()}"')

    @property
    def size(self) -> int:
        return len(self.body) + len(self.packed or b"")


async def prepared_of(body: bytes, pack: bool = True) -> Prepared:
    """``Prepared.of``, on a thread where the body is large."""
    return Prepared.of(body, pack) if len(body) < SMALL_BYTES else await asyncio.to_thread(Prepared.of, body, pack)
