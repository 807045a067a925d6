"""Logging as text or as one JSON object a line."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from datetime import UTC, datetime
from threading import get_ident
from typing import TextIO

WAIT_SECONDS = 0.2
"""A line of a running service waits no longer for others; a warning is written at once, with what waits before it."""
MOST_WAITING = 256


class TextFormatter(logging.Formatter):
    """``logging``'s own form of a line; the second that it shows is put into words once."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._second = (-1, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        second = int(record.created)
        if self._second[0] != second:
            self._second = (second, time.strftime(self.default_time_format, time.localtime(second)))
        return f"{self._second[1]},{int(record.msecs):03d}"


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class LineHandler(logging.Handler):
    """Writes lines to a stream, those of a moment together: a write for each request is a price of its own.

    ``logging.shutdown``, which the interpreter calls at its end, flushes it.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._awaited_in: asyncio.AbstractEventLoop | None = None
        """The loop that will come back to the lines."""
        self._thread = 0
        """Its thread."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record))
            if record.levelno >= logging.WARNING or len(self._lines) >= MOST_WAITING:
                self.flush()
            else:
                self._flush_later()
        except Exception:  # noqa: BLE001  (a handler of logging never raises)
            self.handleError(record)

    def _flush_later(self) -> None:
        # To ask for the running loop costs a question to the system each time.
        if self._awaited_in is not None and self._thread == get_ident() and self._awaited_in.is_running():
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no loop in this thread
            if self._awaited_in is None or self._awaited_in.is_closed():
                self.flush()
            return
        if self._awaited_in is not loop:
            loop.call_later(WAIT_SECONDS, self.flush)
            self._awaited_in, self._thread = loop, get_ident()

    def flush(self) -> None:
        self.acquire()
        try:
            self._awaited_in = None
            lines, self._lines = self._lines, []
            if lines:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
        finally:
            self.release()


def set_up(level: str, form: str) -> None:
    """Send every record to standard error, ``form`` being ``text`` or ``json``."""
    handler = LineHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What no format of ours shows is not looked up for each record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
