"""Who runs many tasks may want to know which of them wait for an upstream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

while_asking: ContextVar[Callable[[], AbstractContextManager[None]]] = ContextVar("while_asking", default=nullcontext)
"""What is held around each call to an upstream."""
