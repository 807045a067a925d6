"""Large answers, decoded where that cannot hold the loop: on a thread, or in a process where it would hold all threads.

A decoder of JSON keeps the interpreter for as long as one call lasts: some milliseconds for some megabytes, which a
thread may take, and half a second for a hundred.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from metroculus.sources.answers.allocation_json import Decoded, decode_allocation
from metroculus.sources.errors import BadAnswer
from tools.offload import Offload, OffloadFailed

log = logging.getLogger("sources")

D = TypeVar("D")

THREAD_BYTES = 2**18
"""From this size on an answer is decoded on a thread."""
PROCESS_BYTES = 8 * 2**20
"""From this size on it is decoded in a process."""


async def decode_elsewhere(body: bytes, decode: Callable[[], D]) -> D:
    """Decode a small answer at once, a larger one on a thread."""
    if len(body) > THREAD_BYTES:
        return await asyncio.get_running_loop().run_in_executor(None, decode)
    return decode()


async def decode_allocations(offload: Offload, source: str, body: bytes, aggregate: Sequence[str]) -> Decoded:
    """The sets of an allocation answer of any size.

    Raises:
        BadAnswer
    """
    if len(body) <= PROCESS_BYTES:
        return await decode_elsewhere(body, partial(decode_allocation, source, body, aggregate))
    # By a file: a pipe would take a copy of the answer at either end.
    try:
        file = await asyncio.to_thread(_written, body)
    except OSError as problem:
        log.warning("no room for a large answer in %s, decoding on a thread: %s", tempfile.gettempdir(), problem)
        return await decode_elsewhere(body, partial(decode_allocation, source, body, aggregate))
    del body  # nobody else holds it, and the process has its own
    try:
        return await offload.run(decode_file, source, file, tuple(aggregate))
    except OffloadFailed as failure:
        raise BadAnswer(f"{source} answered with more than could be decoded: {failure}") from None
    finally:
        await asyncio.to_thread(Path(file).unlink, missing_ok=True)


def _written(body: bytes) -> str:
    """A temporary file with these bytes; its path."""
    descriptor, path = tempfile.mkstemp(prefix="metroculus-answer-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
    except OSError:
        Path(path).unlink(missing_ok=True)
        raise
    return path


def decode_file(source: str, path: str, aggregate: Sequence[str]) -> Decoded:
    """``decode_allocation`` of a file."""
    return decode_allocation(source, Path(path).read_bytes(), aggregate)
