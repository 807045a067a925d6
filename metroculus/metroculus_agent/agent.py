"""What the agent does: asks what is wanted, asks its upstream for it, pushes the answers, and keeps nothing.

What was not delivered is still wanted, so that an agent may be stopped at any moment.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol

from msgspec.structs import replace

from metroculus.metroculus_agent.gateway import GatewayError, Wanted
from metroculus.metroculus_agent.metrics import AgentMetrics
from metroculus.sources.errors import BadAnswer, DeadlineExceeded, SourceError, TooLarge
from tools.window import HOUR

log = logging.getLogger("agent")

POLL_SECONDS = 60.0
"""Between two looks at what is wanted, where nothing was."""
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 5.0, 300.0
"""After a failure; the pause doubles each time."""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 30.0, 3600.0
"""Until a question that failed is asked again, doubled with each failure; other questions go on."""
DELIVERED_SECONDS = 30.0
"""Until a question that was answered may be asked again."""
BETWEEN_SECONDS = 0.2
MOST_IN_A_ROW = 3
"""A round ends after so many questions in a row that nobody answered: the other side is away."""
DELIVERIES = 3
"""Of one answer, while the gateway cannot take it."""
BODY_BYTES = 8 << 20
"""What answers are kept below, by asking for fewer hours at once."""
HOURS_A_DAY = 24
SLOW_LINE_SECONDS = 3600.0
"""So long no more is tried than came through, where a delivery broke off."""
MOST_FAILURES = 10_000
FIRST_HOURS = 2
"""That are asked for at once, until it is known how large answers are."""


class Upstream(Protocol):
    """The cluster's Kubecost or OpenCost."""

    one_by_one: bool
    """Whether hours are asked for singly: OpenCost answers longer windows out of other blocks."""

    async def ask(self, wanted: Wanted) -> bytes:
        """Its own answer.

        Raises:
            SourceError
        """
        ...

    async def currency(self) -> str | None:
        """Of its money; None where it has no word on it.

        Raises:
            SourceError: it cannot be asked now, and never said.
        """
        ...


class GatewayProtocol(Protocol):
    async def wanted(self) -> Sequence[Wanted]: ...

    async def deliver(self, wanted: Wanted, body: bytes, currency: str | None = None) -> int: ...


_Question = tuple[str, str, int, int]
"""Kind, step, start and end."""


class _RoundEnded(Exception):
    """This round ends here; the next one begins after so many seconds."""

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__()
        self.seconds = seconds


class Agent:
    """Pushes what is wanted, one answer after the other.

    Args:
        clock: seconds that only rise.
        release_memory: called after each question, to give memory back.
    """

    def __init__(
        self,
        upstream: Upstream,
        gateway: GatewayProtocol,
        metrics: AgentMetrics,
        clock: Callable[[], float],
        poll_seconds: float = POLL_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        release_memory: Callable[[], None] = lambda: None,
    ) -> None:
        self._release_memory = release_memory
        self._upstream = upstream
        self._gateway = gateway
        self._metrics = metrics
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._sleep = sleep
        self._at_once: dict[str, int] = {}
        """Hours that are asked for at once, by the kind of answer: one kind is far larger than the other."""
        self._most: dict[str, tuple[int, float]] = {}
        """The most of them that came through on a slow line, and until when that is believed."""
        self._retry_at: dict[_Question, float] = {}
        """When a question may be asked again."""
        self._failures: Counter[_Question] = Counter()
        self._in_a_row = 0
        """Questions of this round for which the upstream or the gateway did not answer, one after the other."""
        self._asked_to_wait: float | None = None

    async def run(self) -> None:
        """Until it is cancelled; a defect costs a pause, and is told."""
        failures = 0
        while True:
            try:
                pushed = await self.round()
            except _RoundEnded as ended:
                pause = ended.seconds or 0.0
            except Exception:
                log.exception("a round failed")
                pause = 0.0
            else:
                failures = 0
                await self._sleep(BETWEEN_SECONDS if pushed else self._poll_seconds * _jitter())
                continue
            again = min(FIRST_PAUSE_SECONDS * 2**failures, LAST_PAUSE_SECONDS)
            failures = min(failures + 1, 10)
            await self._sleep(max(again, pause) * _jitter())

    async def round(self) -> int:
        """Push everything that is wanted now.

        Returns:
            how many answers were pushed.

        Raises:
            _RoundEnded
        """
        now = self._clock()
        self._retry_at = {question: until for question, until in self._retry_at.items() if until > now}
        if len(self._failures) > MOST_FAILURES:  # of questions that nobody asks any more
            self._failures.clear()
        try:
            wanted = await self._gateway.wanted()
        except GatewayError as failure:
            raise self._round_ended(failure) from None
        self._metrics.gateway_is("ok")
        self._metrics.wanted.set(len(wanted))
        if wanted:
            await self._learn_currency()
        pushed, self._in_a_row = 0, 0
        for one in wanted:
            if _question(one) not in self._retry_at:
                pushed += await self._push(one)
                self._release_memory()
        self._pause_beside_failed(wanted)
        return pushed

    def _pause_beside_failed(self, wanted: Sequence[Wanted]) -> None:
        """Pause every question about the same hours as one that failed for as long as that one.

        The gateway asks for all of them again until the last is answered.
        """
        until: dict[tuple[int, int], float] = {}
        for kind, step, start, end in self._failures:
            at = self._retry_at.get((kind, step, start, end), 0.0)
            until[start, end] = max(until.get((start, end), 0.0), at)
        for question in map(_question, wanted):
            if question not in self._failures and question[2:] in until:
                self._retry_at[question] = max(self._retry_at.get(question, 0.0), until[question[2:]])

    async def _learn_currency(self) -> None:
        """Find out the upstream's currency before anything is pushed: without one, money is taken for US dollars.

        Raises:
            _RoundEnded
        """
        try:
            await self._upstream.currency()
        except SourceError as failure:
            self._failed(failure)
            log.error("the upstream does not say its currency, and nothing is pushed until it does; or set --currency")
            raise _RoundEnded from None

    async def _push(self, wanted: Wanted) -> int:
        """Push the answers to one question, part by part; one that fails is left for later, the others go on."""
        pushed, failed = 0, False
        for part in self._parts(wanted):
            if await self._push_part(part):
                self._in_a_row = 0
                pushed += 1
                continue
            failed = True
            if self._in_a_row >= MOST_IN_A_ROW:
                self._retry_later(_question(wanted))
                raise _RoundEnded(self._asked_to_wait)
        if failed:
            self._retry_later(_question(wanted))
            return pushed
        self._failures.pop(_question(wanted), None)
        self._retry_at[_question(wanted)] = self._clock() + DELIVERED_SECONDS
        return pushed

    def _hours_at_once(self, kind: str) -> int:
        return 1 if self._upstream.one_by_one else self._at_once.get(kind, FIRST_HOURS)

    def _retry_later(self, question: _Question) -> None:
        # Where nobody answered, the other side may be away, and the question may be a good one.
        most = LAST_PAUSE_SECONDS if self._in_a_row else LAST_RETRY_SECONDS
        seconds = min(FIRST_RETRY_SECONDS * 2 ** min(self._failures[question], 10), most)
        self._failures[question] += 1
        self._retry_at[question] = self._clock() + seconds

    def _parts(self, wanted: Wanted) -> Iterator[Wanted]:
        """A question by as many hours as are asked for at once, the newest first."""
        if wanted.step == "day":
            yield wanted
            return
        end = wanted.end
        while end > wanted.start:
            start = max(wanted.start, end - self._hours_at_once(wanted.kind) * HOUR)
            yield replace(wanted, start=start, end=end)
            end = start

    async def _push_part(self, wanted: Wanted) -> bool:
        """Whether an answer was pushed; False where this question is to be left alone for a while.

        Raises:
            _RoundEnded
        """
        try:
            body = await self._upstream.ask(wanted)
            self._metrics.upstream_is("ok")
            await self._deliver(wanted, body)
            self._fit(wanted, len(body))
        except TooLarge as failure:
            return await self._halved(wanted, failure)
        except GatewayError as refusal:
            if refusal.status == 413:
                return await self._halved(wanted, refusal)
            self._in_a_row = 0 if refusal.of_the_answer else self._in_a_row + 1
            if refusal.status is None and wanted.step == "hour":  # perhaps the line is too slow for as much as this
                hours = max(1, (wanted.end - wanted.start) // HOUR // 2)
                self._at_once[wanted.kind] = hours
                self._most[wanted.kind] = (hours, self._clock() + SLOW_LINE_SECONDS)
            self._asked_to_wait = refusal.retry_after
            log.error("an answer was not taken, and is asked for again later: %s", refusal)
            return False
        except BadAnswer as failure:  # it is there, and does not answer this: perhaps for the sake of one hour
            self._failed(failure)
            self._in_a_row = 0
            return await self._halved(wanted, failure)
        except SourceError as failure:
            self._failed(failure)
            self._in_a_row += 1
            self._asked_to_wait = None
            if isinstance(failure, DeadlineExceeded) and wanted.step == "hour":
                self._at_once[wanted.kind] = max(1, self._hours_at_once(wanted.kind) // 2)
            return False
        return True

    async def _halved(self, wanted: Wanted, failure: Exception) -> bool:
        hours = (wanted.end - wanted.start) // HOUR
        if wanted.step == "day" or hours < 2:
            log.error("an answer cannot be read or delivered, and is asked for again later: %s", failure)
            return False
        middle = wanted.start + hours // 2 * HOUR
        if not isinstance(failure, BadAnswer) or isinstance(failure, TooLarge):
            self._at_once[wanted.kind] = max(1, hours // 2)
        halves = (replace(wanted, start=middle), replace(wanted, end=middle))
        return all([await self._push_part(half) for half in halves])

    def _fit(self, wanted: Wanted, size: int) -> None:
        """Ask for as many hours at once as keep answers small."""
        if wanted.step == "hour" and not self._upstream.one_by_one:
            hours = (wanted.end - wanted.start) // HOUR
            most, until = self._most.get(wanted.kind, (HOURS_A_DAY, 0.0))
            most = most if self._clock() < until else HOURS_A_DAY
            fitting = max(1, min(most, hours * BODY_BYTES // max(1, size)))
            self._at_once[wanted.kind] = min(fitting, 2 * self._hours_at_once(wanted.kind))

    async def _deliver(self, wanted: Wanted, body: bytes) -> None:
        """Raises: _RoundEnded; GatewayError: this answer is refused."""
        currency = await self._upstream.currency()
        for attempt in range(DELIVERIES):
            try:
                size = await self._gateway.deliver(wanted, body, currency)
            except GatewayError as failure:
                if failure.of_the_answer:
                    raise
                self._metrics.failed("gateway")
                self._metrics.gateway_is("failing")
                if failure.status in (401, 403, 409):  # the same of every answer
                    raise self._round_ended(failure) from None
                if attempt + 1 == DELIVERIES:
                    raise
                await self._sleep(failure.retry_after or FIRST_PAUSE_SECONDS)
            else:
                self._metrics.delivered(wanted.kind, size)
                return

    def _round_ended(self, failure: GatewayError) -> _RoundEnded:
        self._metrics.failed("gateway")
        self._metrics.gateway_is("failing")
        log.warning("%s", failure)
        return _RoundEnded(failure.retry_after)

    def _failed(self, failure: SourceError) -> None:
        self._metrics.failed("upstream")
        self._metrics.upstream_is("failing")
        log.warning("%s", failure)


def _jitter() -> float:
    return random.uniform(0.8, 1.2)


def _question(wanted: Wanted) -> _Question:
    return wanted.kind, wanted.step, wanted.start, wanted.end
