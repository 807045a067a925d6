"""Services of a benchmark's own, in a folder that is gone after it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import Stack


@contextmanager
def stack_in(folder: Path) -> Iterator[Stack]:
    """A stack in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stack = Stack(folder)
    try:
        yield stack
    finally:
        stack.close()
        shutil.rmtree(folder, ignore_errors=True)
