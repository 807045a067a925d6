"""The audit log: one JSON line for every read and change behind a permission, refused ones too."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("audit")

STANDARD_OUTPUT = "-"
MAX_TEXT_LENGTH = 128


class AuditLog:
    """Appends lines to a file of mode 0600, or to standard output.

    The file is opened for each line, so that it can be moved away at any time; lines of several processes never mix,
    for each is one write. That a line could not be written is logged and counted, and fails no request.

    Args:
        where: a path, or ``-``.
        clock: Unix seconds.
    """

    def __init__(self, where: str, service: str, clock: Callable[[], float]) -> None:
        self._where = where
        self._service = service
        self._clock = clock
        self.failures = 0

    def check(self) -> None:
        """Raises: OSError, where a line could not be written."""
        if self._where != STANDARD_OUTPUT:
            Path(self._where).parent.mkdir(parents=True, exist_ok=True)
            os.close(self._open())

    def _open(self) -> int:
        return os.open(self._where, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, **entry: Any) -> None:
        moment = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": moment, "service": self._service} | entry) + "\n"
        try:
            if self._where == STANDARD_OUTPUT:
                sys.stdout.write(line)
                sys.stdout.flush()
                return
            descriptor = self._open()
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as problem:
            self.failures += 1
            log.error("an audit line could not be written: %s", problem)


def bounded(values: Mapping[str, str | bytes | None]) -> dict[str, str]:
    """Text of a request as it may stand in a log: of bounded length; JSON escapes whatever is not plain."""
    texts = {
        name: text.decode("utf-8", "replace") if isinstance(text, bytes) else text for name, text in values.items()
    }
    return {name: text[:MAX_TEXT_LENGTH] for name, text in texts.items() if text is not None}
