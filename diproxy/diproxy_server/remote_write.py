"""Remote write 1.0: what a body holds, found out without decoding its values.

A ``WriteRequest`` (prometheus/prompb/remote.proto) is walked by the lengths of its fields. Only where the bytes of the
tenant label's name occur somewhere are label names read: protobuf has several spellings of one message, and a walk by
lengths sees through all of them.
"""

from __future__ import annotations

from msgspec import Struct

MOST_LABELS = 256
"""Of one series."""
MOST_LABEL_BYTES = 64 << 10
"""Of one label, name and value."""
MOST_FIELDS = 1_000_000
"""Of one request, labels and all: two bytes may be a field, and each costs time."""
_REQUEST_FIELDS = frozenset({1, 2, 3})
"""Series, what Cortex keeps there, metadata."""
_TIMED = frozenset({2, 4})
"""Samples and histograms, of a series."""
_LAST_FIELD = (1 << 29) - 1
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Refused(Exception):
    """A body that can never be taken.

    Args:
        too_large: whether it is only more than is taken at once.
    """

    def __init__(self, reason: str, too_large: bool = False) -> None:
        super().__init__(reason)
        self.too_large = too_large


class Limits(Struct, frozen=True):
    """What one request may hold."""

    series: int
    samples: int


class Written(Struct, frozen=True):
    """What a request holds; ``samples`` with histograms."""

    series: int
    samples: int


def check(data: bytes, limits: Limits, tenant_label: str) -> Written:
    """What an unpacked body holds.

    Args:
        tenant_label: the label by which the receiver may be told whose series these are: no series may have it.

    Raises:
        Refused
    """
    try:
        return _check(data, limits, tenant_label.encode())
    except IndexError:
        raise Refused("the body is cut short") from None


def _check(data: bytes, limits: Limits, tenant_label: bytes) -> Written:
    suspicious = tenant_label if tenant_label in data else b""
    at, end = 0, len(data)
    series = samples = fields = 0
    while at < end:
        field, wire, at = _key(data, at)
        fields += 1
        if field not in _REQUEST_FIELDS:
            raise Refused("the body is no WriteRequest of remote write 1.0")
        start, at = _content(data, at, end, wire)
        if field == 1:
            if wire != _LENGTH:
                raise Refused("the body is no WriteRequest of remote write 1.0")
            series += 1
            counted, within = _series(data, start, at, suspicious, MOST_FIELDS - fields)
            samples += counted
            fields += within
            if series > limits.series:
                raise Refused(f"more than {limits.series} series", too_large=True)
            if samples > limits.samples:
                raise Refused(f"more than {limits.samples} samples", too_large=True)
        if fields > MOST_FIELDS:
            raise Refused(f"more than {MOST_FIELDS} fields", too_large=True)
    return Written(series, samples)


def _series(data: bytes, at: int, end: int, tenant_label: bytes, most: int) -> tuple[int, int]:
    """How many samples and fields a series has, of at most so many fields."""
    labels = samples = fields = 0
    while at < end and fields <= most:
        fields += 1
        key, size = data[at], data[at + 1]
        if key & 7 == _LENGTH and key < 128 and size < 128:  # nearly every field
            field, start, at = key >> 3, at + 2, at + 2 + size
            if at > end:
                raise Refused("the body is cut short")
        else:
            field, wire, at = _key(data, at)
            start, at = _content(data, at, end, wire)
        if field == 1:
            labels += 1
            if at - start > MOST_LABEL_BYTES:
                raise Refused(f"a label of more than {MOST_LABEL_BYTES >> 10} KiB")
            if tenant_label and tenant_label in _names(data, start, at):
                raise Refused(f"series may not have the label {tenant_label.decode()}")
        elif field in _TIMED:
            samples += 1
    if labels > MOST_LABELS:
        raise Refused(f"a series with more than {MOST_LABELS} labels")
    return samples, fields


def _names(data: bytes, at: int, end: int) -> list[bytes]:
    """Everything that a reader of a label may take for its name."""
    found = []
    while at < end:
        field, wire, at = _key(data, at)
        start, at = _content(data, at, end, wire)
        if field == 1:
            found.append(data[start:at])
    return found


def _key(data: bytes, at: int) -> tuple[int, int, int]:
    """Number and wire type of a field, and where its content begins.

    A number that is too large is refused: other readers cut it down to 32 bits, and take the field for another one.
    """
    key, at = _varint(data, at)
    if key >> 3 > _LAST_FIELD:
        raise Refused("the body is no protobuf")
    return key >> 3, key & 7, at


def _content(data: bytes, at: int, end: int, wire: int) -> tuple[int, int]:
    """Where the content of a field begins and ends."""
    if wire == _LENGTH:
        size, start = _varint(data, at)
        stop = start + size
    elif wire == _VARINT:
        start, (_, stop) = at, _varint(data, at)
    elif wire in (_FIXED64, _FIXED32):
        start, stop = at, at + (8 if wire == _FIXED64 else 4)
    else:
        raise Refused("the body is no protobuf")
    if stop > end:
        raise Refused("the body is cut short")
    return start, stop


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63 or (shift == 63 and data[at] > 1):  # more than 64 bits: others drop those that are too many
            raise Refused("the body is no protobuf")
