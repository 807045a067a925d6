"""Which of an account's sources tells what: authority, fallback, idle, management, hours; for the API and the worker.

The first source that can tell a thing is asked for it, the next one only where that failed or had nothing. Nothing here
knows an upstream: sources are asked by what they declare.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from math import fsum
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, Allocation
from metroculus.cost_model.columns import Allocations, exact
from metroculus.cost_model.components import COMPONENTS, Costs
from metroculus.cost_model.live import LivePoint, joined, priced_point
from metroculus.cost_model.prices import CustomPrices, mark_unpriced, unpriced, unpriced_components, with_prices
from metroculus.cost_model.reading import (
    AllocationReading,
    AllocationSet,
    AssetsReading,
    ManagementReading,
    SourceReport,
    StretchReading,
    judged_by_part,
    missing_stretches,
    union,
    without,
)
from metroculus.cost_model.savings import Recommendation, idle_nodes, requested_by_node, unclaimed_volumes
from metroculus.cost_model.statement import Question
from metroculus.sources.clusters import Clusters
from metroculus.sources.errors import (
    SILENCE,
    BreakerOpen,
    DeadlineExceeded,
    NoMetricsSource,
    NoSource,
    SeveralClusters,
    SourceError,
    TooLarge,
)
from metroculus.sources.source import (
    HOURS_AT_ONCE,
    NO_CONTAINERS,
    NOT_PUSHED,
    NOTHING_KNOWN,
    Capability,
    CostSource,
    HourSet,
    HourSets,
    Metadata,
    SavingsReading,
    Series,
    UpstreamBudgets,
    worst,
)
from tools.deadline import Deadline
from tools.window import DAY, HOUR, Window, split

log = logging.getLogger("sources")

R = TypeVar("R")

DEFAULT_CURRENCY = "USD"
COMPARED = frozenset({"cpu", "ram", "gpu", "pv"})
"""Components by which two sources of an account are held against each other."""
NO_METRICS = SourceReport(name="thanos", status="not_configured")
NO_IDLE = "idle is not told, and what the nodes cost is not known either"


class LiveReadings(Struct, frozen=True):
    """What the live sources said of a window."""

    allocation: AllocationReading | None = None
    """Of the first source; None where the account has only metrics."""
    metrics: AllocationReading | None = None
    """Of the source behind it, where it was needed."""
    management: tuple[ManagementReading, ...] = ()
    """In order of authority."""
    stretch: StretchReading | None = None
    """Of the source behind the first, for the time that the first does not have."""
    failures: tuple[SourceError, ...] = ()
    answered: bool = False

    def raise_if_nobody_answered(self) -> None:
        """Raises: SourceError"""
        if self.failures and not self.answered:
            raise worst(self.failures)


BY_THE_DAY = " by the day"
"""Behind a source's name, where an hour is cut out of what it said of the day."""


class HourReading(Struct, frozen=True, kw_only=True):
    """What is known of one hour, idle among the rows. Money is USD."""

    hour: int
    allocations: Allocations
    seconds: int
    """Time of the hour that the source covers."""
    control: float | None
    """The source's own total of the rows; None where it has none."""
    management: float | None
    quarantined: int = 0
    unknown: tuple[str, ...] = ()
    """Components that the source should tell and could not."""
    not_covered: tuple[str, ...] = ()
    """Components that no configured source can tell."""
    nodes: Mapping[str, tuple[str, str]] = {}
    """Instance type and zone by node."""
    source: str = ""
    """Who told it, where that was not the first source hour by hour."""
    cut_from: tuple[int, int] | None = None
    """The longer time that it is a part of, where it was cut from that."""
    told_at: int = 0
    """When its upstream was asked (Unix seconds), where that was not just now."""
    gone: bool = False
    """Whether its upstream was asked for it again since, and told it no more."""

    @property
    def from_its_day(self) -> bool:
        """Whether it was cut out of a whole day; hours that begin at half past are cut out of two hours."""
        return self.cut_from is not None and self.cut_from[1] - self.cut_from[0] >= DAY


class HoursRead(Struct, frozen=True):
    """The hours that were told, and why the others were not; ``failure`` where that is the source's fault."""

    hours: dict[int, HourReading]
    missing: dict[int, str]
    failure: str | None = None
    silent: bool = False
    """Whether the source did not answer at all, and was asked no further."""
    late: bool = False
    """Whether that is because it did not answer in time, this time or the last ones: less at once it may."""

    def joined(self, other: HoursRead) -> HoursRead:
        return HoursRead(
            self.hours | other.hours,
            self.missing | other.missing,
            self.failure or other.failure,
            self.silent or other.silent,
            self.late or other.late,
        )


class AccountSources:
    """The sources of one account, in order of authority.

    Args:
        custom_prices: the operator's own, for what the first source does not price.
        clusters: which of the clusters that its sources know is the account's.
        currency: what its money is in, where no source says so itself.
    """

    def __init__(
        self,
        sources: Sequence[CostSource],
        custom_prices: CustomPrices | None = None,
        clusters: Clusters | None = None,
        currency: str = "",
    ) -> None:
        self._sources = tuple(sources)
        self._prices = custom_prices
        self._currency = currency
        self.clusters = clusters or Clusters()

    @property
    def any(self) -> bool:
        return bool(self._sources)

    def _first(self, *wanted: Capability) -> CostSource | None:
        """The first source that may have what is wanted, as far as is known without asking."""
        return next((one for one in self._sources if set(wanted) <= one.known_capabilities), None)

    def _after(self, source: CostSource, wanted: Capability) -> CostSource | None:
        """The next source that can tell it."""
        behind = self._sources[self._sources.index(source) + 1 :]
        return next((one for one in behind if wanted in one.known_capabilities), None)

    def unsupported(self, properties: Iterable[str]) -> tuple[str, ...]:
        """Of the properties to group by, those that the first source has no means to tell."""
        return self._sources[0].unsupported(properties) if self._sources else ()

    def sources_without(self, properties: Sequence[str]) -> frozenset[str]:
        """Whose stored hours cannot be grouped by these: names of sources as hours carry them, empty for the first."""
        cannot = {
            "" if number == 0 else source.name
            for number, source in enumerate(self._sources)
            if source.unsupported(properties) or source.not_stored(properties)
        }
        return frozenset(cannot)

    def not_stored(self, properties: Sequence[str]) -> tuple[str, ...]:
        """Of the properties to group by, those that hours stored of the first source do not carry."""
        return self._sources[0].not_stored(properties) if self._sources else ()

    async def cost(self, question: Question, window: Window, deadline: Deadline) -> LiveReadings:
        """What the sources say that a window cost.

        Raises:
            NoSource
        """
        if not self._sources:
            raise NoSource
        if not window.stretches:
            return LiveReadings(answered=True)
        return await _CostQuestion(self, question, window, deadline).readings()

    async def hours(self, start: int, end: int, seconds_a_call: float, hours_a_call: int = 24) -> HoursRead:
        """The hours of a stretch of one UTC day, row by row; a source that fails is a reason for each hour.

        A stretch whose answer is too large is asked for again in halves. One call that is not answered in time ends
        the reading: whatever is asked next would hang as well, for as long again.

        Args:
            hours_a_call: what is asked for at once.

        Raises:
            NoSource
        """
        if not self._sources:
            raise NoSource
        try:
            return await _Hours(self, start, end, seconds_a_call, hours_a_call).read()
        except TooLarge as failure:
            if end - start <= HOUR:
                return _no_hours(start, end, failure)
            middle = start + (end - start) // HOUR // 2 * HOUR
            first = await self.hours(start, middle, seconds_a_call, hours_a_call)
            if first.silent:
                return first.joined(_no_hours(middle, end, failure))
            return first.joined(await self.hours(middle, end, seconds_a_call, hours_a_call))
        except SourceError as failure:
            return _no_hours(start, end, failure)

    async def day_shift(self, seconds_a_call: float) -> int:
        """Seconds after midnight UTC at which days of the first source begin; 0 where it cannot be asked now."""
        source = self._first(Capability.DAY_SET)
        try:
            return await source.day_shift(seconds_a_call) if source is not None else 0
        except SourceError as failure:
            log.info("when days of the source begin is not to be had: %s", failure)
            return 0

    async def day(self, day: int, seconds_a_call: float) -> dict[str, Costs] | None:
        """What the first source says that a complete day of its own cost, by owner; None where it does not say.

        Raises:
            SourceError
        """
        source = self._first(Capability.DAY_SET)
        if source is None or self._prices is not None:
            return None
        return await source.day_set(day, Deadline(seconds_a_call))

    async def assets(self, window: Window, deadline: Deadline) -> AssetsReading:
        """Assets of a window.

        Raises:
            NoSource, SourceError
        """
        source = self._first(Capability.ASSETS)
        if source is None:
            raise NoSource
        return self.clusters.of_assets(await source.assets(window, deadline))

    @property
    def saves(self) -> bool:
        """Whether one of the sources may be able to tell savings, as far as is known without asking."""
        return any(Capability.SAVINGS in source.known_capabilities for source in self._sources)

    async def savings(self, window: Window, utilization: float | None, deadline: Deadline) -> SavingsReading:
        """What could be saved by sizing workloads; a source that fails is told in the reading."""
        try:
            for source in self._sources:
                if Capability.SAVINGS in await source.capabilities(deadline):
                    found = await source.savings(window, utilization, deadline)
                    if found is not None:
                        return found
        except SourceError as failure:
            log.info("savings are not to be had: %s", failure)
            return SavingsReading(_failed("savings", failure))
        return SavingsReading(SourceReport(name="savings", status="not_configured"))

    async def unused(self, window: Window, deadline: Deadline) -> tuple[list[Recommendation], SourceReport | None]:
        """Volumes that nobody claims and nodes that could go; nodes only where it is known what runs on which."""
        source = self._first(Capability.ASSETS)
        if source is None:
            return [], None
        try:
            if Capability.PLACEMENT not in await source.capabilities(deadline):
                reading = self.clusters.of_assets(await source.assets(window, deadline))
                return unclaimed_volumes(reading.assets), reading.source
            question = Question(cloud_account_id="", window=window, detail="pod", aggregate=("node",))
            reading, allocation = await asyncio.gather(
                source.assets(window, deadline), source.allocations(question, window, deadline)
            )
            reading, allocation = self.clusters.of_assets(reading), self.clusters.of_reading(allocation)
        except SourceError as failure:
            return [], _failed(source.assets_name, failure)
        found = await asyncio.to_thread(_unused, reading, allocation)
        return found, reading.source

    async def known_currency(self, deadline: Deadline) -> str | None:
        """What money is in; None where the source that should say so cannot be asked now, and nobody else says it."""
        try:
            told = await self._sources[0].currency(deadline) if self._sources else None
        except SourceError as failure:
            log.info("the currency is not to be had: %s", failure)
            return self._currency or None
        return told or self._currency or DEFAULT_CURRENCY

    async def currency(self, deadline: Deadline) -> str:
        """What money is in: as the first source says, else as the account's entry does, else US dollars."""
        return await self.known_currency(deadline) or DEFAULT_CURRENCY

    async def day_by_two(self, day: int, seconds_a_call: float) -> tuple[float | None, float | None] | None:
        """What ran on a day cost by the first source and by the one behind it; None where there are not two.

        Of the components that both tell: cpu, memory, GPU and volumes. One that does not tell all of the day is None.
        """
        first = self._first(Capability.ALLOCATIONS)
        behind = self._after(first, Capability.ALLOCATIONS) if first is not None else None
        if first is None or behind is None or self._prices is not None:
            return None

        async def told(source: CostSource) -> float | None:
            window = Window.past(day, day + DAY)
            question = Question(cloud_account_id="", window=window, detail="pod", aggregate=("namespace",))
            try:
                reading = await source.allocations(question, window, Deadline(seconds_a_call))
                reading = self.clusters.of_reading(reading)
            except SourceError as failure:
                log.info("a day cannot be compared: %s", failure)
                return None
            if reading.source.status != "ok" or COMPARED.intersection(reading.missing):
                return None
            return await asyncio.to_thread(_cost_of_what_ran, reading.allocations())

        return await told(first), await told(behind)

    async def budgets(self, deadline: Deadline) -> UpstreamBudgets:
        """The budgets and the forecast that a source has of its own; none where no source has any.

        Raises:
            SourceError
        """
        for source in self._sources:
            if Capability.BUDGETS in source.known_capabilities and Capability.BUDGETS in await source.capabilities(
                deadline
            ):
                return await source.budgets(deadline)
        return UpstreamBudgets()

    async def metadata(self, at: int, deadline: Deadline) -> Metadata:
        """Quotas, workloads and nodes.

        Raises:
            NoMetricsSource, SourceError
        """
        return await self._metrics(Capability.METADATA).metadata(at, deadline)

    async def live(self, start: int, end: int, deadline: Deadline) -> list[LivePoint]:
        """What the cluster costs an hour at whole minutes of ``[start, end]``, in order.

        Raises:
            NoMetricsSource, SourceError
        """
        source = self._metrics(Capability.LIVE)
        minutes = await source.live(start, end, deadline)
        currency = await self.currency(deadline) if minutes else DEFAULT_CURRENCY
        points = (joined([priced_point(one, self._prices) for one in clusters]) for clusters in minutes)
        return [replace(one, currency=currency) for one in points]

    async def series(self, name: str, window: Window, step: int, deadline: Deadline) -> tuple[list[Series], list[str]]:
        """One metric's series, and what the source warned of.

        Raises:
            NoMetricsSource, SourceError
        """
        return await self._metrics(Capability.SERIES).series(name, window, step, deadline)

    def require_metrics(self) -> None:
        """Raises: NoMetricsSource"""
        self._metrics(Capability.SERIES)

    def _metrics(self, wanted: Capability) -> CostSource:
        source = self._first(wanted)
        if source is None:
            raise NoMetricsSource
        return source


class _CostQuestion:
    """One question to the sources of one account about a window, and which of them failed."""

    def __init__(self, sources: AccountSources, question: Question, window: Window, deadline: Deadline) -> None:
        self._sources = sources
        self._question = question
        self._window = window
        self._deadline = deadline
        self._failures: list[SourceError] = []
        self._answered = False

    async def readings(self) -> LiveReadings:
        first = self._sources._first(Capability.ALLOCATIONS)
        if first is None:
            raise NoSource
        allocation, own = await self._of_first(first)
        fallback = self._fallback(first)
        gaps = missing_stretches(allocation, self._window) if fallback is not None and allocation.has_idle() else ()
        if fallback is not None and gaps:
            return await self._by_stretch(first, fallback, (allocation, own), gaps)
        management = [own] if own is not None else []
        known_already = any(reading.usd is not None for reading in management)
        manager = self._sources._after(first, Capability.MANAGEMENT)
        metrics, other = await asyncio.gather(
            self._allocations(fallback) if fallback is not None and not allocation.usable else _none(),
            self._management(manager) if manager is not None and not known_already else _none(),
        )
        if fallback is not None and metrics is not None:
            metrics = await self._priced(fallback, metrics)
            if metrics.usable and allocation.source.status == "no_data":
                allocation = judged_by_part(allocation, self._window, self._window.stretches, fallback.name)
        if other is not None:
            management.append(other)
        elif (
            manager is None
            and Capability.SERIES not in first.known_capabilities
            and not (allocation.usable and known_already)
        ):
            management.append(ManagementReading(source=NO_METRICS, covers=False))
        return LiveReadings(
            allocation, metrics, tuple(management), failures=tuple(self._failures), answered=self._answered
        )

    def _fallback(self, first: CostSource) -> CostSource | None:
        """The source behind the first one, where it can tell rows apart as they are asked for."""
        fallback = self._sources._after(first, Capability.ALLOCATIONS)
        return None if fallback is None or fallback.unsupported(self._question.properties) else fallback

    async def _by_stretch(
        self,
        first: CostSource,
        other: CostSource,
        told: tuple[AllocationReading, ManagementReading | None],
        gaps: Sequence[tuple[int, int]],
    ) -> LiveReadings:
        """The time that the first source does not have, told by another; one that fails leaves what the first told.

        The other source takes no more than half of the time that is left, so that what is known is answered.
        """
        allocation, of_first = told
        rest, own = self._window.only(gaps), self._window.only(without(self._window.stretches, gaps))
        manager = first if Capability.MANAGEMENT in first.known_capabilities else other
        half = Deadline(self._deadline.left() / 2, self._deadline.request_id)
        try:
            tells = Capability.MANAGEMENT in other.known_capabilities
            answer, of_rest = await asyncio.gather(
                other.allocations(self._question, rest, half), other.management(rest, half) if tells else _none()
            )
            by_other = await self._priced(other, self._sources.clusters.of_reading(answer))
        except SourceError as failure:
            log.info("a part of a window is not to be had request_id=%s: %s", self._deadline.request_id, failure)
            by_other, of_rest = AllocationReading(source=_failed(other.name, failure)), None
        if not by_other.usable:
            listed = (of_first or ManagementReading(source=_nothing_of(other), covers=True),)
            return LiveReadings(allocation, by_other, listed, failures=tuple(self._failures), answered=self._answered)
        of_own = await self._management(manager, own)
        return LiveReadings(
            judged_by_part(allocation, self._window, gaps, other.name),
            management=(of_own,),
            stretch=StretchReading(by_other, of_rest),
            failures=tuple(self._failures),
            answered=self._answered,
        )

    async def _of_first(self, source: CostSource) -> tuple[AllocationReading, ManagementReading | None]:
        """Allocations and management; assets only where management or idle has to be worked out from them."""
        tells_management = Capability.MANAGEMENT in source.known_capabilities
        allocation, management = await asyncio.gather(
            self._allocations(source), self._management(source) if tells_management else _none()
        )
        allocation = await self._priced(source, allocation)
        if not tells_management and allocation.usable and not allocation.has_idle():
            told = self._window.only(without(self._window.stretches, missing_stretches(allocation, self._window)))
            assets = await self._assets(source, told)
            if isinstance(assets, SourceError):
                return allocation, self._failed_management(source, assets)
            management = assets.management()
        return allocation, management

    async def _priced(self, source: CostSource, reading: AllocationReading) -> AllocationReading:
        """A reading with the operator's prices where the source has none; what nobody prices is missing."""
        prices, apart = self._sources._prices, self._sources.clusters.all
        if prices is None or not reading.usable:
            return mark_unpriced(reading, apart)
        tells_idle = reading.has_idle()
        wanted = [
            (one.start, min(one.end, self._window.end))
            for one in reading.sets
            if not tells_idle or unpriced(one.columns, prices, apart)
        ]
        spans = list(dict.fromkeys(wanted))
        answers = await asyncio.gather(*(self._assets(source, self._window.only([span])) for span in spans))
        by_start = {span[0]: answer for span, answer in zip(spans, answers, strict=True)}
        known = [by_start.get(one.start) for one in reading.sets]
        assets = [None if isinstance(one, SourceError) else one for one in known]
        return mark_unpriced(with_prices(reading, assets, prices, apart), apart)

    async def _allocations(self, source: CostSource, window: Window | None = None) -> AllocationReading:
        answer = await self._answer(source.allocations(self._question, window or self._window, self._deadline))
        if isinstance(answer, SourceError):
            return AllocationReading(source=_failed(source.name, answer))
        return self._sources.clusters.of_reading(answer)

    async def _assets(self, source: CostSource, window: Window) -> AssetsReading | SourceError:
        answer = await self._answer(source.assets(window, self._deadline))
        return answer if isinstance(answer, SourceError) else self._sources.clusters.of_assets(answer)

    async def _management(self, source: CostSource, window: Window | None = None) -> ManagementReading:
        answer = await self._answer(source.management(window or self._window, self._deadline))
        return self._failed_management(source, answer) if isinstance(answer, SourceError) else answer

    @staticmethod
    def _failed_management(source: CostSource, failure: SourceError) -> ManagementReading:
        covers = Capability.MANAGEMENT in source.known_capabilities
        return ManagementReading(source=_failed(source.assets_name, failure), covers=covers)

    async def _answer(self, asked: Coroutine[Any, Any, R]) -> R | SourceError:
        """What a source said, or why it could not."""
        try:
            answer = await asked
        except SeveralClusters:
            raise
        except SourceError as failure:
            log.info("a source failed request_id=%s: %s", self._deadline.request_id, failure)
            self._failures.append(failure)
            return failure
        self._answered = True
        return answer


_Told = tuple[HourSets, CostSource, str]
"""Hours, who told them, and what they say of that."""


class _Hours:
    """Reads a stretch of hours: allocations, what the nodes are, idle where it is not told, management."""

    def __init__(self, sources: AccountSources, start: int, end: int, seconds_a_call: float, hours_a_call: int) -> None:
        self._sources = sources
        self._start = start
        self._end = end
        self._seconds = seconds_a_call
        self._at_once = hours_a_call * HOUR

    def _deadline(self) -> Deadline:
        return Deadline(self._seconds)

    async def read(self) -> HoursRead:
        """Raises: SourceError"""
        source = self._sources._first(Capability.ALLOCATIONS)
        if source is None:
            raise NoSource
        sets, assets = await self._told_by(source)
        behind = await self._behind(source, sets)
        told = [(sets, source, ""), *behind]
        management = await self._management(source, sorted(sets.hours), assets)
        for one, of, _ in behind:
            management |= await self._management_by_time(of, one.hours)
        found: dict[int, HourReading] = {}
        missing: dict[int, str] = {}
        for hour, _ in split(self._start, self._end, HOUR):
            who = next((one for one in told if hour in one[0].hours), None)
            said = self._mine(who[0].hours[hour]) if who is not None else None
            if who is None or said is None:
                missing[hour] = sets.missing.get(hour, NOTHING_KNOWN)
                continue
            whole = await self._with_idle(who[1], said.set, assets.get(hour))
            if whole is None:
                missing[hour] = NO_IDLE
                continue
            control = self._control(said, whole)
            reading = _hour_reading(
                hour, said, whole, management.get(hour), self._management_covered, assets.get(hour), control,
                self._sources.clusters.all,
            )  # fmt: skip
            found[hour] = replace(reading, source=who[2], cut_from=said.cut_from, told_at=said.told_at, gone=said.gone)
        return HoursRead(found, missing, sets.failure, sets.silent, sets.silent)

    async def _told_by(self, source: CostSource) -> tuple[HourSets, Mapping[int, AssetsReading]]:
        """What the first source says, piece by piece, until it does not answer; what it said before is kept.

        Raises:
            SourceError: of the first piece.
        """
        sets, assets = HourSets({}), dict[int, AssetsReading]()
        for first in range(self._start, self._end, self._at_once):
            last = min(first + self._at_once, self._end)
            try:
                told, kinds = await asyncio.gather(
                    source.hour_sets(first, last, self._seconds), self._node_kinds(source, first, last)
                )
            except SILENCE as failure:
                if first == self._start:
                    raise
                told, kinds = HourSets({}, {}, str(failure), silent=True), {}
            sets = HourSets(
                {**sets.hours, **told.hours},
                {**sets.missing, **told.missing},
                sets.failure or told.failure,
                sets.silent or told.silent,
            )
            assets |= kinds
            if sets.silent:
                unread = (hour for hour, _ in split(first, self._end, HOUR) if hour not in sets.hours)
                missing = {**dict.fromkeys(unread, sets.failure or NOTHING_KNOWN), **sets.missing}
                return replace(sets, missing=missing), assets
        return sets, assets

    @property
    def _management_covered(self) -> bool:
        return any(Capability.MANAGEMENT in one.known_capabilities for one in self._sources._sources)

    async def _behind(self, source: CostSource, sets: HourSets) -> list[_Told]:
        """Hours that the first source does not have: of the source behind it, or out of its days."""
        hours = [hour for hour, _ in split(self._start, self._end, HOUR)]
        reasons = {h: sets.missing.get(h, NOTHING_KNOWN) for h in hours if h not in sets.hours}
        unknown = [hour for hour, why in reasons.items() if why in (NOTHING_KNOWN, NOT_PUSHED, NO_CONTAINERS)]
        if not unknown or sets.failure:
            return []
        behind = self._sources._after(source, Capability.ALLOCATIONS)
        if len(unknown) < len(hours) and behind is not None:  # of hours, exact, before what is cut out of a day
            found = await self._hours_by(behind, unknown)
        else:
            found = []
        told = {hour for sets, *_ in found for hour in sets.hours}
        # Hours in which the cluster stood still are not in its day either: its set is of what ran.
        gone = [hour for hour in unknown if hour not in told and reasons[hour] != NO_CONTAINERS]
        days = await self._of_days(source) if gone and self._end - self._start == DAY else {}
        by_the_day = {hour: days[hour] for hour in gone if hour in days}
        if by_the_day:
            return [*found, (HourSets(by_the_day), source, f"{source.name}{BY_THE_DAY}")]
        return found or (await self._hours_by(behind, unknown) if behind is not None else [])

    async def _hours_by(self, other: CostSource, hours: Sequence[int]) -> list[_Told]:
        """Hours as another source tells them, stretch by stretch."""
        found = []
        deadline = Deadline(self._seconds)
        for start, end in union((hour, hour + HOUR) for hour in hours):
            try:
                found.append((await other.hour_sets(start, end, max(0.0, deadline.left())), other, other.name))
            except (TooLarge, DeadlineExceeded, SeveralClusters) as failure:
                log.info("hours that the first source does not have are not to be had: %s", failure)
                break  # what the first one told is kept, and these are gaps
            except SourceError as failure:
                log.info("hours that the first source does not have are not to be had: %s", failure)
        return found

    async def _of_days(self, source: CostSource) -> Mapping[int, HourSet]:
        try:
            return await source.hours_of_days(self._start, self._end, self._seconds)
        except (TooLarge, DeadlineExceeded):
            raise
        except SourceError as failure:
            log.info("the day of hours that are not kept is not to be had: %s", failure)
            return {}

    async def _management_by_time(self, source: CostSource, hours: Mapping[int, HourSet]) -> dict[int, float]:
        """Management of hours as their part of that of the stretches that they lie in."""
        manager: CostSource | None = source
        if Capability.MANAGEMENT not in source.known_capabilities:
            manager = self._sources._after(source, Capability.MANAGEMENT)
        found: dict[int, float] = {}
        for start, end in union((hour, hour + HOUR) for hour in sorted(hours)):
            try:
                told = await manager.management(Window.past(start, end), self._deadline()) if manager else None
            except SourceError as failure:
                log.info("management of hours is not to be had: %s", failure)
                continue
            if told is not None and told.usd is not None and told.source.fine:
                share = told.usd * HOUR / (end - start)
                found |= {hour: share for hour, _ in split(start, end, HOUR)}
        return found

    def _mine(self, said: HourSet | None) -> HourSet | None:
        """An hour as far as it is of the account's cluster.

        Raises:
            SeveralClusters
        """
        if said is None:
            return None
        clusters = self._sources.clusters
        (mine,) = clusters.of_sets([said.set])
        if not len(mine.columns) or mine.without_containers:
            return None
        control = clusters.of_rows(said.control) if said.control is not None else None
        return replace(said, set=mine, control=control)

    def _control(self, said: HourSet, whole: Allocations) -> float | None:
        """The source's own total, with the idle that was worked out beside its rows; None where prices are our own."""
        if said.control is None or self._sources._prices is not None:
            return None
        return said.control.total() + whole.total() - said.set.columns.total()

    async def _node_kinds(self, source: CostSource, start: int, end: int) -> Mapping[int, AssetsReading]:
        """What the nodes were, by hour; nothing where the source cannot say now."""
        try:
            if Capability.PLACEMENT in await source.capabilities(self._deadline()):
                kinds = await source.node_kinds(start, end, self._deadline())
                return {hour: self._sources.clusters.of_assets(reading) for hour, reading in kinds.items()}
        except (TooLarge, DeadlineExceeded, SeveralClusters):
            raise
        except SourceError as failure:
            log.info("what the nodes are is not to be had: %s", failure)
        return {}

    async def _management(
        self, source: CostSource, hours: Sequence[int], assets: Mapping[int, AssetsReading]
    ) -> dict[int, float]:
        """Management by hour: out of the first source's assets, else from the next source that can tell it."""
        hourly = {hour: assets[hour].management().usd for hour in hours if hour in assets}
        known = {hour: usd for hour, usd in hourly.items() if usd is not None}
        asked_by_assets = Capability.PLACEMENT in source.known_capabilities
        manager: CostSource | None = source
        if asked_by_assets or Capability.MANAGEMENT not in source.known_capabilities:
            manager = self._sources._after(source, Capability.MANAGEMENT)
        rest = [hour for hour in hours if hour not in known]
        return known | (await self._management_hours(manager, rest) if manager is not None else {})

    async def _management_hours(self, source: CostSource, hours: Iterable[int]) -> dict[int, float]:
        """Management of each hour as far as the source tells it."""
        gate = asyncio.Semaphore(HOURS_AT_ONCE)

        async def one(hour: int) -> tuple[int, float | None]:
            async with gate:
                try:
                    return hour, (await source.management(Window.past(hour, hour + HOUR), self._deadline())).usd
                except SourceError as failure:
                    log.info("management of an hour is not to be had: %s", failure)
                    return hour, None

        hourly = await asyncio.gather(*(one(hour) for hour in hours))
        return {hour: usd for hour, usd in hourly if usd is not None}

    async def _with_idle(
        self, source: CostSource, hour_set: AllocationSet, assets: AssetsReading | None
    ) -> Allocations | None:
        """An hour with idle and with the operator's prices; None where what that takes is not known."""
        reading = AllocationReading(source=SourceReport(name=source.name, status="ok"), sets=(hour_set,))
        prices, apart = self._sources._prices, self._sources.clusters.all
        rows = hour_set.columns
        lacking = not reading.has_idle() or (prices is not None and bool(unpriced(rows, prices, apart)))
        if not lacking and prices is None:
            return rows
        if lacking and (Capability.MANAGEMENT not in source.known_capabilities or assets is None):
            hours = await source.asset_hours(hour_set.start, hour_set.end, self._deadline())
            assets = hours.get(hour_set.start)
            assets = self._sources.clusters.of_assets(assets) if assets is not None else None
        if prices is not None:
            reading = with_prices(reading, [assets], prices, apart)
            if reading.missing:
                return None
        elif assets is None:
            return None
        priced = reading.sets[0].columns
        if reading.has_idle():
            return priced
        nodes = assets.management().nodes if assets is not None else None
        if nodes is None:
            return None
        used = priced.sum_costs()
        costs = Costs(cpu=nodes.cpu - used.cpu, ram=nodes.ram - used.ram, gpu=nodes.gpu - used.gpu)
        idle = Allocation(name=IDLE, start=hour_set.start, end=hour_set.end, costs=costs)
        return Allocations.joined([priced, Allocations.of([idle])])


def _cost_of_what_ran(rows: Allocations) -> float:
    lines = (line[rows.owned] for name, line in zip(COMPONENTS, rows.costs, strict=True) if name in COMPARED)
    return fsum(float(exact(line)) for line in lines)


def _unused(reading: AssetsReading, allocation: AllocationReading) -> list[Recommendation]:
    requested = requested_by_node(allocation.allocations())
    return [*unclaimed_volumes(reading.assets), *idle_nodes(reading.assets, requested)]


def _hour_reading(
    hour: int,
    said: HourSet,
    whole: Allocations,
    management: float | None,
    covered: bool,
    assets: AssetsReading | None,
    control: float | None,
    apart: bool,
) -> HourReading:
    unknown = {*said.unknown, *whole.unknown_components(), *unpriced_components(whole, apart)}
    if management is None and covered:
        unknown.add("management")
    not_covered = set(said.not_covered)
    if management is None and not covered:
        not_covered.add("management")
    return HourReading(
        hour=hour,
        allocations=whole,
        seconds=said.seconds,
        control=control,
        management=management,
        quarantined=said.set.quarantined,
        unknown=tuple(sorted(unknown)),
        not_covered=tuple(sorted(not_covered)),
        nodes=assets.node_kinds() if assets is not None else {},
    )


def _no_hours(start: int, end: int, failure: SourceError) -> HoursRead:
    missing = {hour: str(failure) for hour, _ in split(start, end, HOUR)}
    silent, late = isinstance(failure, SILENCE), isinstance(failure, (DeadlineExceeded, BreakerOpen))
    return HoursRead({}, missing, str(failure), silent, late)


def _failed(name: str, failure: SourceError) -> SourceReport:
    return SourceReport(name=name, status="unavailable", error=str(failure))


def _nothing_of(source: CostSource) -> SourceReport:
    return SourceReport(name=source.assets_name, status="no_data")


async def _none() -> None:
    return None
