"""Services of a benchmark's own, in a folder that is gone after it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from metroculus.config import MetroculusConfig, WorkerConfig
from metroculus.dependencies import Dependencies, make_dependencies
from metroculus.metroculus_worker.server import WorkerService, make_worker
from metroculus.sources.outbound.addresses import AllowedAddresses
from tests.support import Stack

SECRET = "a-secret-of-the-bench"


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


@asynccontextmanager
async def worker_in(
    folder: Path, clock: Callable[[], float], deadline: float = 30.0
) -> AsyncIterator[tuple[WorkerService, Dependencies]]:
    """A worker in an empty folder, which makes no round by itself.

    Args:
        deadline: seconds for one call to a source.
    """
    shutil.rmtree(folder, ignore_errors=True)
    config = MetroculusConfig(
        cluster_secret=SECRET,
        data_dir=folder,
        clickhouse_url=f"embedded:{folder / 'store'}",
        kubecost_timeout=deadline,
        upstream_allow=AllowedAddresses(["127.0.0.0/8"]),
        worker=WorkerConfig(listen=("127.0.0.1", 0)),
    )
    dependencies = make_dependencies(config, clock=clock)
    service = make_worker(config, dependencies, clock=clock)
    try:
        yield service, dependencies
    finally:
        await service.stop()
        dependencies.close()
        shutil.rmtree(folder, ignore_errors=True)
