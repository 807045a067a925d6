"""Answers of live sources, kept for a while.

Many who ask the same are one question upstream, what was asked for lately is asked anew before it goes stale, and in an
outage the last whole answer is given, marked ``stale``.

Only whole answers are kept, each for its account and for what the account's answers rest on then: an account that was
removed, given another source, or whose hours were stored anew meets nothing of before.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from weakref import ref

import msgspec
from cachetools import LRUCache
from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from metroculus.cost_model.reading import FINE
from metroculus.sources.errors import DeadlineExceeded, NoSource, SourceError
from tools.deadline import Deadline
from tools.tornado_service.prepared import LARGEST_SHARE, Prepared, encode, prepared_of

log = logging.getLogger("cache")

STALE_SECONDS = 3600.0
"""How long after it was fresh an answer may stand in for sources that fail."""
RETRY_SECONDS = 10.0
"""After a refresh that failed, the sources are left alone for so long."""
RENEWED_WITHIN = (0.7, 0.95)
"""An answer that was asked for lately is asked anew somewhere in this part of its time, so that many do not at once."""
NO_SAVINGS = ("savings", "no_data")
RENEWED_AT_ONCE = 8
"""Of all accounts together, and one of each."""
RENEWED_LATER_SECONDS = 0.5
MOST_ACCOUNTS = 100_000
SHARED_MARGIN_SECONDS = 1.0
"""Ages of shared answers are as exact as this."""

State = Literal["hit", "miss", "stale"]
Key = tuple[Hashable, ...]


class Basis(Protocol):
    """What an account's answers rest on now: the revision of its source, and a version of its stored hours.

    The revision is the same in every instance, the version is this process' own: zeros until it changes something.
    """

    async def of(self, account: str) -> tuple[Hashable, tuple[int, ...]]: ...

    def remembered(self, account: str) -> tuple[Hashable, tuple[int, ...]] | None:
        """The same without asking anybody; None where that cannot be."""
        ...


class Shared(Protocol):
    """Answers that other instances made; an answer's age is in seconds."""

    async def get(self, account: str, revision: Hashable, question: Hashable) -> tuple[Prepared, float] | None: ...

    def put(self, account: str, revision: Hashable, question: Hashable, answer: Prepared, age: float) -> None: ...


class Report(Protocol):
    """What became of asking one source."""

    @property
    def name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def error(self) -> str | None: ...


class Sourced(Protocol):
    """An answer that names its sources, and says whether it is whole unless they say it all."""

    @property
    def sources(self) -> Sequence[Report]: ...


Work = Callable[[Deadline], Awaitable[Sourced]]
AskAgain = Callable[[float], tuple[Key, Work]]
"""The question as it stands so many seconds from now, when its window may have moved on, and its work."""


class Answered(Struct, frozen=True):
    """What to write, how it was come by, and the seconds since its sources answered."""

    prepared: Prepared
    state: State
    age: int
    fresh_for: int = 0
    """Seconds for which it is as good as one that is asked for now."""


class CacheStats(Struct, frozen=True, kw_only=True):
    """Answers since the start; ``coalesced`` are those of them that waited for another's question, ``renewed`` are
    questions that nobody waited for, ``shared`` those that another instance had answered."""

    hits: int
    misses: int
    stale: int
    coalesced: int
    renewed: int
    shared: int
    items: int
    bytes: int


@dataclass(eq=False)
class _Kept:
    prepared: Prepared
    made_at: float
    key_size: int
    asked_for: bool = False
    """Whether somebody has asked for it since it was made."""
    failed_at: float = 0.0
    fallback: Prepared | None = None
    """The same, marked stale: there since a refresh failed."""
    awaits_renewal: bool = False

    @property
    def size(self) -> int:
        return self.prepared.size + self.key_size + (self.fallback.size if self.fallback else 0)


@dataclass(eq=False)
class _Flight:
    """One question on its way. It is given up when nobody waits for it any more, unless it refreshes what is kept."""

    deadline: Deadline
    waiting: set[Deadline] = field(default_factory=set)
    refreshes: bool = False
    given_up: bool = False
    packs: bool = True
    """Whether the answer is packed, too: not what is asked for as a part of another one."""
    task: asyncio.Task[Answered] = field(init=False)


class AnswerCache:
    """Answers by key; the least used make room.

    Args:
        basis: what an account's answers rest on now.
        fresh: seconds; 0 keeps nothing, and the same questions at once are still one.
        patience: seconds that a question may take, whoever asked it first.
        shared: answers of other instances, asked before the sources are.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        basis: Basis,
        fresh: float,
        patience: float,
        max_bytes: int,
        shared: Shared | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._basis = basis
        self._fresh = fresh
        self._patience = patience
        self._largest = max_bytes // LARGEST_SHARE
        self._kept: LRUCache[Key, _Kept] = LRUCache(max_bytes, getsizeof=lambda kept: kept.size)
        self._shared = shared if fresh else None
        self._changes: LRUCache[str, tuple[tuple[int, ...], float]] = LRUCache(MOST_ACCOUNTS)
        """By account, what is stored of it, and since when that is so: what was made before is of something else."""
        self._flights: dict[Key, _Flight] = {}
        self._renewing: set[str] = set()
        self._closed = False
        self._counts: Counter[str] = Counter()

    def hit(self, account: str, question: Key) -> Answered | None:
        """What is kept of a question and fresh, without waiting for anything."""
        basis = self._basis.remembered(account)
        kept = self._fresh_of(account, basis, question) if basis is not None else None
        if kept is None:
            return None
        kept.asked_for = True
        self._counts["hit"] += 1
        return self._fresh_answer(kept, self.clock() - kept.made_at)

    @property
    def keeps(self) -> bool:
        """Whether answers are kept for any time at all."""
        return self._fresh > 0

    async def basis_of(self, account: str) -> Hashable:
        """What an account's answers rest on now."""
        return await self._basis.of(account)

    def has(self, account: str, basis: Hashable, question: Key) -> bool:
        """Whether a fresh answer to a question is kept."""
        return self._fresh_of(account, basis, question) is not None

    def _fresh_of(self, account: str, basis: Hashable, question: Key) -> _Kept | None:
        kept = self._kept.get((account, basis, *question))
        return kept if kept is not None and self.clock() - kept.made_at < self._fresh else None

    def _fresh_answer(self, kept: _Kept, age: float) -> Answered:
        return Answered(kept.prepared, "hit", int(age), int(self._fresh - age))

    async def answer(
        self,
        account: str,
        question: Key,
        work: Work,
        deadline: Deadline,
        anew: AskAgain | None = None,
        packs: bool = True,
    ) -> Answered:
        """What is kept of a question about an account, or what ``work`` comes to.

        Args:
            question: all that tells it from any other about the account.
            deadline: the caller's own; the work has one that it does not share with who waits.
            anew: how to ask again before the answer goes stale; without it nobody does.
            packs: whether it may go out packed; not where it is a part of another answer.

        Raises:
            SourceError: and nothing is kept to stand in.
            Exception: whatever else ``work`` raises.
        """
        basis = await self._basis.of(account)
        self._note_change(account, basis[1])
        key = (account, basis, *question)
        answered = await self._answer(key, work, deadline, packs)
        self._counts[answered.state] += 1
        if answered.state == "miss" and anew is not None:
            self._renew_later(key, anew)
        return answered

    def _note_change(self, account: str, stored: tuple[int, ...]) -> None:
        known = self._changes.get(account)
        if known is None or known[0] != stored:
            # Without a change of its own an instance knows of none: what others change shows after ``fresh``.
            unchanged = known is None and not any(stored)
            self._changes[account] = (stored, float("-inf") if unchanged else self.clock())

    async def _from_others(self, key: Key) -> _Kept | None:
        """An answer that another instance made: younger than what is kept here, and than the last change here."""
        if self._shared is None:
            return None
        account = str(key[0])
        found = await self._shared.get(account, _revision(key), key[2:])
        if found is None:
            return None
        prepared, age = found
        made_at, kept = self.clock() - age, self._kept.get(key)
        oldest = max(self._changes.get(account, (None, float("-inf")))[1], kept.made_at if kept else float("-inf"))
        if age >= self._fresh or made_at <= oldest + SHARED_MARGIN_SECONDS:
            return None
        return _Kept(prepared, made_at, len(repr(key)))

    def _renew_later(self, key: Key, anew: AskAgain) -> None:
        """Ask again before an answer goes stale, if it is asked for until then."""
        kept = self._kept.get(key)
        if kept is not None and not kept.awaits_renewal:
            kept.awaits_renewal = True
            due = random.uniform(*RENEWED_WITHIN) * self._fresh
            asyncio.get_running_loop().call_later(due, self._renew, ref(kept), key, anew)

    def _renew(self, of: ref[_Kept], key: Key, anew: AskAgain) -> None:
        kept = of()
        if kept is None or not kept.asked_for or self._closed or self._kept.get(key) is not kept:
            return
        left = self._fresh - (self.clock() - kept.made_at)
        account, basis = str(key[0]), key[1]
        if left <= 0 or self._basis.remembered(account) not in (None, basis):
            return
        question, work = anew(0.0)
        if question != key[2:] or anew(left)[0] != question:
            return  # its window moves on before it goes stale: the next question is another one
        if account in self._renewing or len(self._renewing) >= RENEWED_AT_ONCE:
            asyncio.get_running_loop().call_later(RENEWED_LATER_SECONDS, self._renew, of, key, anew)
            return
        flight = self._fly(key, work, Deadline(self._patience, "renewal"))
        flight.refreshes = True
        self._counts["renewed"] += 1
        self._renewing.add(account)

        def renewed(_: object) -> None:
            self._renewing.discard(account)
            self._renew_later(key, anew)

        flight.task.add_done_callback(renewed)

    async def _answer(self, key: Key, work: Work, deadline: Deadline, packs: bool) -> Answered:
        kept = self._usable(key)
        if kept is None:
            return await self._wait(key, self._fly(key, work, deadline, packs), deadline)
        age = self.clock() - kept.made_at
        kept.asked_for = True
        if age < self._fresh:
            return self._fresh_answer(kept, age)
        if kept.fallback is not None and self.clock() - kept.failed_at < RETRY_SECONDS:
            return Answered(kept.fallback, "stale", int(age))
        flight = self._fly(key, work, deadline, packs)
        if kept.fallback is None and age < 2 * self._fresh:
            flight.refreshes = True
            return Answered(kept.prepared, "stale", int(age))
        try:
            return await self._wait(key, flight, deadline)
        except DeadlineExceeded as failure:  # of who asked: the question goes on where others wait for it
            return Answered(await _told_as_stale(kept, _everything(failure)), "stale", int(self.clock() - kept.made_at))

    def stats(self) -> CacheStats:
        counts = self._counts
        return CacheStats(
            hits=counts["hit"],
            misses=counts["miss"],
            stale=counts["stale"],
            coalesced=counts["coalesced"],
            renewed=counts["renewed"],
            shared=counts["shared"],
            items=len(self._kept),
            bytes=int(self._kept.currsize),
        )

    def clear(self) -> None:
        self._kept.clear()

    def close(self) -> None:
        """Give up what is on its way."""
        self._closed = True
        for flight in self._flights.values():
            flight.task.cancel()

    def _usable(self, key: Key) -> _Kept | None:
        kept = self._kept.get(key)
        return kept if kept is not None and self.clock() - kept.made_at < self._fresh + STALE_SECONDS else None

    def _fly(self, key: Key, work: Work, deadline: Deadline, packs: bool = True) -> _Flight:
        """The question that is on its way already, or a new one."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(Deadline(self._patience, deadline.request_id), packs=packs)
            flight.task = asyncio.create_task(self._make(key, work, flight))
            flight.task.add_done_callback(lambda task: self._landed(key, flight))
        return flight

    def _landed(self, key: Key, flight: _Flight) -> None:
        self._forget(key, flight)
        failure = None if flight.task.cancelled() else flight.task.exception()
        if flight.refreshes and failure is not None and not isinstance(failure, (SourceError, NoSource)):
            log.error("an answer could not be asked anew", exc_info=failure)

    def _forget(self, key: Key, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _wait(self, key: Key, flight: _Flight, deadline: Deadline) -> Answered:
        """Raises: DeadlineExceeded, and what the work raises."""
        if flight.waiting or flight.refreshes:
            self._counts["coalesced"] += 1

        def leave() -> None:
            flight.waiting.discard(deadline)
            if not flight.waiting and not flight.refreshes and not flight.task.done():
                flight.given_up = True
                flight.deadline.expire()
                self._forget(key, flight)  # who asks now would be told that time is over

        flight.waiting.add(deadline)
        deadline.add_callback(leave)
        try:
            return await asyncio.wait_for(asyncio.shield(flight.task), max(0.0, deadline.left()))
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the source answered") from None
        finally:
            leave()

    async def _make(self, key: Key, work: Work, flight: _Flight) -> Answered:
        asked_at = self.clock()
        others = await self._from_others(key)
        if others is not None:
            self._counts["shared"] += 1
            if others.prepared.size <= self._largest:
                self._kept[key] = others
            return self._fresh_answer(others, self.clock() - others.made_at)
        try:
            value = await work(flight.deadline)
        except SourceError as failure:
            kept = self._usable(key)
            if kept is None or flight.given_up:
                raise
            return await self._fall_back(key, kept, _everything(failure))
        kept = self._usable(key)
        if not _whole(value):
            if kept is not None:
                return await self._fall_back(key, kept, _failing(value.sources))
            return Answered(await prepared_of(encode(value), flight.packs), "miss", 0)
        made_at = self.clock()
        prepared = await prepared_of(encode(value), flight.packs)
        if self._fresh and prepared.size <= self._largest:
            self._kept[key] = _Kept(prepared, made_at, len(repr(key)))
            if self._shared is not None and self._basis.remembered(str(key[0])) in (None, key[1]):
                # As old as the question: what changed since it was asked may not be in the answer.
                self._shared.put(str(key[0]), _revision(key), key[2:], prepared, self.clock() - asked_at)
            return Answered(prepared, "miss", 0, int(self._fresh))
        return Answered(prepared, "miss", 0)

    async def _fall_back(self, key: Key, kept: _Kept, reasons: Mapping[str | None, str]) -> Answered:
        """The last whole answer, its sources marked stale."""
        log.info("a stale answer stands in: %s", "; ".join(reasons.values()))
        kept.fallback = await _told_as_stale(kept, reasons)
        kept.failed_at = self.clock()
        if self._kept.get(key) is kept:
            self._kept[key] = kept  # its size has changed
        return Answered(kept.fallback, "stale", int(self.clock() - kept.made_at))


class CacheCollector(Collector):
    """The cache's figures as Prometheus series."""

    def __init__(self, cache: AnswerCache, registry: CollectorRegistry) -> None:
        self._cache = cache
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        stats = self._cache.stats()
        answers = CounterMetricFamily("metroculus_cache_answers", "Answers by how they were come by", labels=["state"])
        for state, count in (("hit", stats.hits), ("miss", stats.misses), ("stale", stats.stale)):
            answers.add_metric([state], count)
        yield answers
        yield CounterMetricFamily("metroculus_cache_coalesced", "Answers to one question", value=stats.coalesced)
        yield CounterMetricFamily("metroculus_cache_renewed", "Answers asked for anew in time", value=stats.renewed)
        yield CounterMetricFamily("metroculus_cache_shared", "Answers that another instance made", value=stats.shared)
        yield GaugeMetricFamily("metroculus_cache_items", "Answers that are kept", value=stats.items)
        yield GaugeMetricFamily("metroculus_cache_bytes", "Their size", value=stats.bytes)


def _revision(key: Key) -> Hashable:
    """Of the account's source, out of the key of an answer."""
    basis = key[1]
    assert isinstance(basis, tuple)
    revision: Hashable = basis[0]
    return revision


def _whole(value: Any) -> bool:
    """Whether an answer may be kept: savings that are not there yet are no reason against it, they are not cost."""
    fine = all(source.status in FINE or (source.name, source.status) == NO_SAVINGS for source in value.sources)
    return fine and getattr(value, "complete", True)


def _everything(failure: SourceError) -> dict[str | None, str]:
    """Why no source can be had."""
    return {None: str(failure)}


def _failing(sources: Sequence[Report]) -> dict[str | None, str]:
    """Why each source that failed cannot be had; of an answer that is not whole for another reason, all."""
    reasons: dict[str | None, str] = {
        source.name: source.error or f"the source answered {source.status.replace('_', ' ')}"
        for source in sources
        if source.status not in FINE
    }
    return reasons or {None: "the sources' answer is not whole"}


def _as_stale(body: bytes, reasons: Mapping[str | None, str]) -> bytes:
    """An answer whose failing sources are marked stale; all of them, where those have other names in it."""
    answer: dict[str, Any] = msgspec.json.decode(body)
    answered = [source for source in answer["sources"] if source["status"] == "ok"]
    named = [source for source in answered if source["name"] in reasons] or answered
    every = "; ".join(reasons.values())
    for source in named:
        source |= {"status": "stale", "error": reasons.get(source["name"], every)}
    if "complete" in answer:
        answer["complete"] = False
    return msgspec.json.encode(answer)


async def _told_as_stale(kept: _Kept, reasons: Mapping[str | None, str]) -> Prepared:
    return await prepared_of(_as_stale(kept.prepared.body, reasons))
