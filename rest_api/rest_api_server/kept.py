"""Views of clusters, kept encoded for as long as what they were made of is fresh.

Metroculus says with each answer for how long it is fresh and under which tag. A view is kept until the first of the
answers that it was made of goes stale. Then they are asked for again by their tags, and where none has changed the view
goes on. Who may see it is asked at every request, by the handler, before anything here is.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from cachetools import LRUCache
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from optscale_client.metroculus_client import MetroculusError
from rest_api.rest_api_server.directory.model import Cluster
from tools.tornado_service.prepared import LARGEST_SHARE, Prepared, encode, prepared_of

UNSETTLED_SECONDS = 10.0
"""After a change of a cluster; twice what Metroculus remembers of a source."""
EXTENDED_SECONDS = 3600.0
"""A view that went stale longer ago is not asked about again, but made anew."""

State = Literal["hit", "miss", "revalidated"]
Key = tuple[str, Cluster, int, *tuple[Hashable, ...]]
"""The view, the cluster as the directory has it, how often it was changed here, what is asked."""
Revalidation = Callable[[], Awaitable[tuple[bool, float, float]]]
"""Whether an answer of Metroculus is what it was; seconds since its sources answered, and for which it is fresh."""


@dataclass(eq=False)
class Validity:
    """How long a view that is being made stays fresh: as long as every part of it."""

    clock: Callable[[], float]
    made_at: float = float("inf")
    fresh_until: float = float("inf")
    extendable: bool = True
    forbidden: bool = False
    """Something in it cannot be asked for again by a tag, or could not be had."""
    parts: list[Revalidation] = field(default_factory=list)

    def add(self, asked_at: float, age: float, fresh_for: float, revalidate: Revalidation) -> None:
        """An answer of Metroculus that is part of it; seconds."""
        self.made_at = min(self.made_at, asked_at - age)
        self.fresh_until = min(self.fresh_until, asked_at + fresh_for)
        self.parts.append(revalidate)

    def limit(self, seconds: float) -> None:
        """Keep it no longer than this, and then make it again without asking whether its parts have changed."""
        self.fresh_until = min(self.fresh_until, self.clock() + seconds)
        self.extendable = False

    def forbid_keeping(self) -> None:
        self.forbidden = True

    @property
    def keepable(self) -> bool:
        return bool(self.parts) and not self.forbidden and self.fresh_until > self.clock()


VALIDITY: ContextVar[Validity | None] = ContextVar("validity", default=None)
"""Of the view that is being made; None where it is not to be kept."""


def limit(seconds: float) -> None:
    """Keep the view that is being made no longer than this."""
    validity = VALIDITY.get()
    if validity is not None:
        validity.limit(seconds)


def forbid_keeping() -> None:
    """Do not keep the view that is being made."""
    validity = VALIDITY.get()
    if validity is not None:
        validity.forbid_keeping()


@contextmanager
def without_validity() -> Iterator[None]:
    """Calls inside do not count for how long the view stays fresh: the view shows their age itself."""
    token = VALIDITY.set(None)
    try:
        yield
    finally:
        VALIDITY.reset(token)


@dataclass(frozen=True)
class KeptAnswer:
    """What to write, how it was come by, and the seconds since its sources answered."""

    prepared: Prepared
    state: State
    age: int

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return (("X-Cache", self.state), ("Age", str(self.age)))


@dataclass(eq=False)
class _Kept:
    prepared: Prepared
    validity: Validity
    key_size: int

    @property
    def size(self) -> int:
        return self.prepared.size + self.key_size


class KeptAnswers:
    """Views by cluster and question; the least used make room.

    Args:
        clock: seconds that only rise.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._largest = max_bytes // LARGEST_SHARE
        self._kept: LRUCache[Key, _Kept] = LRUCache(max_bytes, getsizeof=lambda kept: kept.size)
        self._making: dict[Key, asyncio.Task[KeptAnswer]] = {}
        self._changes: Counter[str] = Counter()
        self._changed_at: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    def forget(self, cluster_id: str, existed: bool = True) -> None:
        """Drop the kept views of a cluster, and those that are being made.

        Args:
            existed: whether it was there before the change. Then another instance of Metroculus may use its old source
                for some seconds more, and views that are made within them are not kept.
        """
        self._changes[cluster_id] += 1
        if existed:
            self._changed_at[cluster_id] = self.clock()

    def _settled(self, cluster_id: str) -> bool:
        return self.clock() - self._changed_at.get(cluster_id, float("-inf")) >= UNSETTLED_SECONDS

    def key(self, view: str, cluster: Cluster, *question: Hashable) -> Key:
        return (view, cluster, self._changes[cluster.id], *question)

    def hit(self, key: Key) -> KeptAnswer | None:
        """What is kept and fresh, without waiting for anything."""
        kept = self._kept.get(key)
        if kept is None or self.clock() >= kept.validity.fresh_until:
            return None
        self._counts["hit"] += 1
        return self._answer(kept, "hit")

    def figures(self) -> tuple[Mapping[str, int], int, int]:
        """Answers by how they were come by; how many are kept, and their bytes."""
        return self._counts, len(self._kept), int(self._kept.currsize)

    def _answer(self, kept: _Kept, state: State) -> KeptAnswer:
        age = self.clock() - kept.validity.made_at if kept.validity.parts else 0.0
        return KeptAnswer(kept.prepared, state, max(0, int(age)))

    async def answer(self, key: Key, work: Callable[[], Awaitable[Any]]) -> KeptAnswer:
        """What is kept, or what ``work`` comes to; many who ask the same at once wait for one of them.

        Raises:
            Exception: whatever ``work`` raises.
        """
        found = self.hit(key)
        if found is not None:
            return found
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = asyncio.create_task(self._make(key, work))
            making.add_done_callback(lambda task: self._made(key, task))
        answer = await asyncio.shield(making)
        self._counts[answer.state] += 1
        return answer

    def _made(self, key: Key, task: asyncio.Task[KeptAnswer]) -> None:
        del self._making[key]
        if not task.cancelled():
            task.exception()  # told to whoever waits; perhaps nobody does any more

    async def _make(self, key: Key, work: Callable[[], Awaitable[Any]]) -> KeptAnswer:
        kept = self._kept.get(key)
        if kept is not None and await self._extended(kept):
            return self._answer(kept, "revalidated")
        validity = Validity(self.clock)
        VALIDITY.set(validity)  # of this task and of those that it starts
        prepared = await prepared_of(encode(await work()))
        made = _Kept(prepared, validity, len(repr(key)))
        if validity.keepable and self._settled(key[1].id) and made.size <= self._largest:
            self._kept[key] = made
        return self._answer(made, "miss")

    async def _extended(self, kept: _Kept) -> bool:
        """Whether nothing that a view is made of has changed since it went stale; then it is fresh again."""
        validity = kept.validity
        if not validity.extendable or self.clock() - validity.fresh_until > EXTENDED_SECONDS:
            return False
        asked_at = self.clock()
        try:
            found = await asyncio.gather(*(revalidate() for revalidate in validity.parts))
        except MetroculusError:
            return False
        if not all(same for same, _, _ in found):
            return False
        validity.made_at = asked_at - max(age for _, age, _ in found)
        validity.fresh_until = asked_at + min(seconds for _, _, seconds in found)
        return True


class KeptCollector(Collector):
    """The figures of what is kept, as Prometheus series."""

    def __init__(self, answers: KeptAnswers, registry: CollectorRegistry) -> None:
        self._answers = answers
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        counts, items, size = self._answers.figures()
        views = CounterMetricFamily("rest_api_views", "Views by how they were come by", labels=["state"])
        for state, count in sorted(counts.items()):
            views.add_metric([state], count)
        yield views
        yield GaugeMetricFamily("rest_api_kept_views", "Views that are kept", value=items)
        yield GaugeMetricFamily("rest_api_kept_bytes", "Their size", value=size)
