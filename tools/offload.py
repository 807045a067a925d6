"""Work that holds the interpreter, done in a process of its own, so that the loop goes on."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

from tools.processes import end_with_parent

P = ParamSpec("P")
R = TypeVar("R")


class OffloadFailed(Exception):
    """The process died with the work; the next one is given a new process."""


class Offload:
    """One process, made when it is first needed; what is given to it and comes back is pickled."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function of a module in the process; what it raises is raised here.

        Raises:
            OffloadFailed
        """
        if self._pool is None:
            # Spawned: a fork would inherit threads' locks and every open socket.
            self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
        pool = self._pool
        try:
            return await asyncio.wrap_future(pool.submit(function, *args, **kwargs))
        except BrokenProcessPool:
            if self._pool is pool:
                self._pool = None
            pool.shutdown(wait=False)
            raise OffloadFailed("the process that decodes large answers died") from None

    def close(self) -> None:
        """End the process; work that has not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _begin() -> None:
    """Ctrl-C reaches the whole group of processes: the parent ends this one when it is done, or is ended itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
