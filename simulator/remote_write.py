"""Prometheus remote write 1.0, as a sender encodes it: protobuf by hand, packed in snappy's block format."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import cramjam


def varint(number: int) -> bytes:
    """An unsigned number, seven bits a byte."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    """A field with a length: text, bytes or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def label(name: str, value: str) -> bytes:
    """A label, as field 1 of its series."""
    return field(1, field(1, name.encode()) + field(2, value.encode()))


def labels(named: Mapping[str, str]) -> bytes:
    """The labels of a series in the order of their names, as a receiver wants them."""
    return b"".join(label(name, named[name]) for name in sorted(named))


def sample(value: float, milliseconds: int) -> bytes:
    """A sample, as field 2 of its series."""
    return field(2, b"\x09" + struct.pack("<d", value) + b"\x10" + varint(milliseconds))


def packed(body: bytes) -> bytes:
    """A ``WriteRequest`` as it is sent."""
    return bytes(cramjam.snappy.compress_raw(body))
