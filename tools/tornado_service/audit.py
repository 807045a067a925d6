"""The audit log: one JSON line for every read and change behind a permission, refused ones too."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import msgspec

log = logging.getLogger("audit")

STANDARD_OUTPUT = "-"
MAX_TEXT_LENGTH = 128
FLUSH_SECONDS = 0.5
"""A line waits no longer for others; what is killed at once loses the lines of this time."""
FLUSH_BYTES = 1 << 16
_ENCODER = msgspec.json.Encoder()


class AuditLog:
    """Appends lines to a file of mode 0600, or to standard output.

    Lines of a running service are written together, twice a second and at its stop; without a loop each is written at
    once. The file is opened for each write, so that it can be moved away at any time; lines of several processes never
    mix. That lines could not be written is logged and counted, and fails no request.

    Args:
        where: a path, or ``-``.
        clock: Unix seconds.
    """

    def __init__(self, where: str, service: str, clock: Callable[[], float]) -> None:
        self._where = where
        self._service = service
        self._clock = clock
        self._lines: list[bytes] = []
        self._size = 0
        self._flushing: asyncio.TimerHandle | None = None
        self._torn = False
        self.stream: TextIO | None = None
        """In place of standard output, where that is for something else."""
        self.failures = 0

    def check(self) -> None:
        """Raises: OSError, where a line could not be written."""
        if self._where != STANDARD_OUTPUT:
            Path(self._where).parent.mkdir(parents=True, exist_ok=True)
            os.close(self._open())

    def _open(self) -> int:
        return os.open(self._where, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, **entry: Any) -> None:
        told = {"time": _moment(self._clock()), "service": self._service, **entry}
        line = _ENCODER.encode(told)
        if not line.isascii():  # what a reader's terminal would make of other letters is its own affair
            line = json.dumps(told).encode()
        self._lines.append(line)
        self._size += len(line)
        if self._size >= FLUSH_BYTES:
            self.flush()
        elif self._flushing is None:
            try:
                self._flushing = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
            except RuntimeError:  # no loop will come back to it
                self.flush()

    def flush(self) -> None:
        """Write the lines that wait."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if not self._lines:
            return
        lines, self._lines, self._size = self._lines, [], 0
        written = 0
        data = b"\n" * self._torn + b"\n".join(lines) + b"\n"
        try:
            if self._where == STANDARD_OUTPUT:
                stream = self.stream or sys.stdout
                stream.write(data.decode())
                stream.flush()
                return
            descriptor = self._open()
            try:
                while written < len(data):
                    written += os.write(descriptor, data[written:])
            finally:
                os.close(descriptor)
            self._torn = False
        except (OSError, ValueError) as problem:
            whole = data[:written].count(b"\n") - self._torn
            self._torn = written > 0 and not data[:written].endswith(b"\n")
            self.failures += len(lines) - max(0, whole)
            log.error("%d audit lines could not be written: %s", len(lines) - max(0, whole), problem)


def _moment(now: float) -> str:
    """RFC 3339 with milliseconds."""
    second = int(now)
    return f"{_second(second)}.{int(1000 * (now - second)):03d}+00:00"


@lru_cache(2)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds").removesuffix("+00:00")


def bounded(values: Mapping[str, str | bytes | None]) -> dict[str, str]:
    """Text of a request as it may stand in a log: of bounded length; JSON escapes whatever is not plain."""
    texts = {
        name: text.decode("utf-8", "replace") if isinstance(text, bytes) else text for name, text in values.items()
    }
    return {name: text[:MAX_TEXT_LENGTH] for name, text in texts.items() if text is not None}
