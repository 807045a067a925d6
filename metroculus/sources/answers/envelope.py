"""What every answer of Kubecost and OpenCost is wrapped in."""

from __future__ import annotations

from functools import lru_cache

import msgspec
from msgspec import Raw, Struct

from metroculus.sources.errors import BadAnswer
from tools.window import LONGEST_STAMP, parse_rfc3339

MALFORMED = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)

Span = tuple[int, int]


class Envelope(Struct):
    """What stands beside ``data``."""

    code: int = 200
    warning: str | None = None
    message: str | None = None


class _RawEnvelope(Envelope):
    data: Raw = Raw(b"null")


_ENVELOPE = msgspec.json.Decoder(_RawEnvelope)


def warnings_of(envelope: Envelope) -> tuple[str, ...]:
    """What the upstream says beside its data, each shortened."""
    return tuple(text[:500] for text in (envelope.warning, envelope.message) if text)


def malformed(source: str) -> BadAnswer:
    return BadAnswer(f"{source} answered with something that is not its JSON")


def open_envelope(source: str, body: bytes) -> tuple[Raw, tuple[str, ...]]:
    """``data`` and warnings of an answer whose ``code`` says success.

    Raises:
        BadAnswer: not JSON, or a ``code`` of failure inside an HTTP 200.
    """
    try:
        envelope = _ENVELOPE.decode(body)
    except MALFORMED:
        raise malformed(source) from None
    if envelope.code != 200:
        raise BadAnswer(f"{source} answered with code {envelope.code} inside a 200")
    return envelope.data, warnings_of(envelope)


class Window(Struct):
    """A window as both upstreams write it."""

    start: str
    end: str

    @property
    def span(self) -> Span | None:
        """Unix seconds; None where it is none."""
        return _span(self.start, self.end) if len(self.start) + len(self.end) <= 2 * LONGEST_STAMP else None


@lru_cache(maxsize=4096)
def _span(start: str, end: str) -> Span | None:
    """Kept, because an answer says the same few windows in every row."""
    first, last = parse_rfc3339(start), parse_rfc3339(end)
    return (first, last) if first is not None and last is not None and first < last else None
