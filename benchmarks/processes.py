"""Servers of a benchmark that run in processes of their own; each prints one line of JSON, and ends with its input."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def process_of(module: str, *arguments: str) -> Iterator[dict[str, Any]]:
    """Run a module until the block ends; yields what it printed. The module calls ``until_closed``."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(30)


async def until_closed(where: dict[str, Any]) -> None:
    """Print where the servers of this process are, and wait until its input is closed."""
    print(json.dumps(where), flush=True)
    await asyncio.to_thread(sys.stdin.read)
