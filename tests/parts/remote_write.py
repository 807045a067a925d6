"""Many series into a Prometheus by remote write, faster than any text could be read: constants, in order of time."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import numpy as np
import requests

from simulator.remote_write import field, labels, varint

MILLISECOND_BYTES = 6
"""Of a stamp of our time in milliseconds, as a varint."""


def write(url: str, series: Iterable[tuple[Mapping[str, str], float]], stamps: range) -> None:
    """Send samples of constant series; an error of the receiver is one here."""
    body = b"".join(_series(named, value, stamps) for named, value in series)
    headers = {
        "Content-Encoding": "snappy",
        "Content-Type": "application/x-protobuf",
        "X-Prometheus-Remote-Write-Version": "0.1.0",
    }
    answer = requests.post(f"{url}/api/v1/write", data=_literal(body), headers=headers, timeout=300)
    assert answer.status_code in (200, 204), answer.text


def _series(named: Mapping[str, str], value: float, stamps: range) -> bytes:
    return field(1, labels(named) + _samples(value, stamps))


def _samples(value: float, stamps: range) -> bytes:
    """Each as field 2 of its series: a double, and a stamp whose varint is always as long."""
    count = len(stamps)
    rows = np.zeros((count, 12 + MILLISECOND_BYTES), dtype=np.uint8)
    rows[:, 0], rows[:, 1], rows[:, 2] = 0x12, 10 + MILLISECOND_BYTES, 0x09
    rows[:, 3:11] = np.frombuffer(struct.pack("<d", value), dtype=np.uint8)
    rows[:, 11] = 0x10
    left = np.arange(stamps.start, stamps.stop, stamps.step, dtype=np.int64) * 1000
    for place in range(MILLISECOND_BYTES):
        more = 128 if place < MILLISECOND_BYTES - 1 else 0
        rows[:, 12 + place] = (left & 127) | more
        left >>= 7
    return rows.tobytes()


def _literal(body: bytes) -> bytes:
    """A snappy block that holds its content as it is."""
    parts = [varint(len(body))]
    for first in range(0, len(body), 2**24):
        piece = body[first : first + 2**24]
        parts.append(bytes([62 << 2]) + (len(piece) - 1).to_bytes(3, "little") + piece)
    return b"".join(parts)
