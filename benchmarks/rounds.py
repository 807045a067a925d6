"""The worker's rounds over a thousand clusters: what one costs in which nothing is due, and one in which an hour is."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.figures import Declared
from benchmarks.stacks import worker_in
from metroculus.sources.registry.protocol import Credentials

CLUSTERS = 1_000
NOW = 1795219200 + 1200
FOLDER = Path("build/bench-rounds")

FIGURES = (
    Declared("idle_round_ms", "ms", "a round over 1,000 clusters of which nothing is due", at_most=2000),
    Declared("idle_round_questions", "", "what it asks of the store and the registry", at_most=10),
)


def measure(clusters: int = CLUSTERS) -> dict[str, float]:
    return asyncio.run(_measure(clusters))


async def _measure(clusters: int) -> dict[str, float]:
    async with worker_in(FOLDER, lambda: NOW) as (service, dependencies):
        store: Any = dependencies.store
        for number in range(clusters):  # they push, and have pushed nothing yet: no upstream is part of the figure
            await dependencies.registry.put(str(UUID(int=number, version=4)), "push", "", Credentials())
        await service.worker.extract_all()
        asked = Counter[str]()
        _count(store.engine, ("rows", "columns", "insert", "insert_blocks"), asked)
        _count(dependencies.registry.entries, ("accounts", "entry_versions", "read", "revision"), asked)
        began = time.perf_counter()
        await service.worker.extract_all()
        took = time.perf_counter() - began
    return {"idle_round_ms": 1000 * took, "idle_round_questions": float(asked.total())}


def _count(part: Any, names: tuple[str, ...], asked: Counter[str]) -> None:
    """Count the calls of a part's methods from now on."""

    def counting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            asked[name] += 1
            return method(*args, **more)

        return call

    for name in names:
        setattr(part, name, counting(name, getattr(part, name)))
