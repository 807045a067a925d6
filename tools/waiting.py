"""A hook around calls to upstreams, for code that runs many tasks and needs to know which of them are waiting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

while_asking: ContextVar[Callable[[], AbstractContextManager[None]]] = ContextVar("while_asking", default=nullcontext)
"""Makes the context manager that is entered for each call of the current task; by default it does nothing."""
