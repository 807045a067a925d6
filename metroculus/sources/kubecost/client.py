"""Kubecost and OpenCost over HTTP: allocation, assets and savings; which of the two it is, found out once.

A window is asked for as whole UTC days, and its edges by the hour: what comes back is trusted by the window it says,
and only sets that lie inside what was asked for are summed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from math import fsum
from time import monotonic
from typing import Literal, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.assets import merge
from metroculus.cost_model.columns import by_owner
from metroculus.cost_model.components import Costs
from metroculus.cost_model.cutting import cut_into_hours
from metroculus.cost_model.reading import (
    LARGE_ROWS,
    AllocationReading,
    AllocationSet,
    AssetsReading,
    SourceReport,
    Status,
    judge_sets,
    union,
)
from metroculus.cost_model.settle import CONTROL_SHARE, control_rounding
from metroculus.cost_model.statement import Question
from metroculus.sources.answers.allocation_json import Decoded
from metroculus.sources.answers.assets_json import FORMS, DecodedAssets, by_hour, decode_assets, form_of
from metroculus.sources.answers.envelope import open_envelope
from metroculus.sources.answers.large import decode_allocations, decode_elsewhere
from metroculus.sources.errors import BadAnswer, SourceError
from metroculus.sources.kubecost.budgets import PREDICTED_DAYS, decode_budgets, decode_forecast
from metroculus.sources.kubecost.configuration import decode_currency
from metroculus.sources.kubecost.savings import decode_abandoned, decode_overview, decode_request_sizing
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.source import (
    NO_CONTAINERS,
    Capability,
    CostSource,
    HourSet,
    HourSets,
    SavingsReading,
    UpstreamBudgets,
    worst,
)
from tools.deadline import Deadline
from tools.window import DAY, HOUR, Window, iso, split

log = logging.getLogger("sources")

Flavour = Literal["kubecost", "opencost"]
D = TypeVar("D")
Step = Literal["day", "hour"]


class Dialect(Struct, frozen=True):
    """How one upstream is spoken to.

    ``blocks`` where it answers a window out of the one stored block that is nearest in length (OpenCost on its
    collector): only whole hours and days, each asked by itself, are what they say.
    """

    flavour: Flavour
    allocation: str
    assets: str
    blocks: bool = False


KUBECOST = Dialect("kubecost", "/model/allocation", "/model/assets")
OPENCOST = Dialect("opencost", "/allocation", "/assets")
OLDER_OPENCOST = Dialect("opencost", "/allocation/compute", "/assets")
OPENCOST_BELOW_MODEL = Dialect("opencost", "/model/allocation", "/model/assets")
"""OpenCost behind its own web server, which answers all other paths with a page."""
PATHS: Mapping[Flavour | None, tuple[Dialect, ...]] = {
    None: (KUBECOST, OPENCOST, OLDER_OPENCOST),
    "kubecost": (KUBECOST,),
    "opencost": (OPENCOST, OLDER_OPENCOST, OPENCOST_BELOW_MODEL),
}

PROBE_SECONDS = 5.0
"""To find out what an upstream is; it never takes more than a quarter of what is left."""
ASSUMED_SECONDS = 300.0
"""How long an upstream is taken for what its path says, where it could not be asked what it is."""
KNOWN_SECONDS = 3600.0
"""After which it is asked again: upstreams are replaced and upgraded at one address."""

CONFIGURATIONS = ("/model/getConfigs", "/model/productConfigs")
"""Where Kubecost tells its currency: the older path and the one that takes its place (kubecost issue 4545)."""
CURRENCY_SECONDS = 3600.0
"""How long what was said of the currency is taken as it was."""
BEYOND = "sets that reach beyond what was asked for were left out"
QUICK_SECONDS = 1.0
"""An OpenCost that tells a day in less than this is asked for its hours, too."""
LATE_SECONDS = 4 * HOUR
"""An hour at the end of a day that is younger than this may only be late; the day's own set has it."""
MANY_ASSETS = 500
"""More than these are merged on a thread."""

_BOTH = frozenset({Capability.ALLOCATIONS, Capability.DAY_SET, Capability.ASSETS, Capability.PLACEMENT})
CAPABILITIES: Mapping[Flavour, frozenset[Capability]] = {
    "kubecost": _BOTH | {Capability.MANAGEMENT, Capability.SAVINGS, Capability.BUDGETS},
    "opencost": _BOTH,
}


_KEPT_BY_PODS = frozenset({"namespace", "pod", "cluster", "controller", "controllerKind"})
"""Properties on which all containers of a pod agree: a sum of them still has these."""


def upstream_aggregate(question: Question) -> tuple[str, ...]:
    """The coarsest grouping that answers the question; we group and filter further ourselves.

    An aggregated row keeps only those properties on which all its parts agree, and never its services: what is grouped
    or filtered by services, nodes, containers, labels or annotations is asked for container by container.
    """
    needed = question.grouping.needed(question.filters)
    if not _KEPT_BY_PODS.issuperset(needed):
        return ()
    return ("cluster", "namespace", "pod") if needed else ("cluster", "namespace")


class _Piece(Struct, frozen=True):
    start: int
    end: int
    step: Step


def pieces(window: Window) -> list[_Piece]:
    """Whole days by the day, the rest of each day by the hour."""
    return [_Piece(a, b, "day" if b - a == DAY else "hour") for a, b in window.days()]


def over_midnight(apart: Sequence[_Piece]) -> list[_Piece]:
    """Join the hours before a midnight with the hours after it, if together they are at most 24 hours."""
    found: list[_Piece] = []
    for piece in apart:
        last = found[-1] if found else None
        if last and last.step == piece.step == "hour" and last.end == piece.start and piece.end - last.start <= DAY:
            found[-1] = _Piece(last.start, piece.end, "hour")
        else:
            found.append(piece)
    return found


class KubecostSource(CostSource):
    """One account's Kubecost or OpenCost.

    Args:
        flavour: None finds out by asking.
        clock: Unix seconds, for ``fetched_at``.
    """

    name = "allocation"

    def __init__(
        self, http: SourceHttp, upstream: Upstream, flavour: Flavour | None, clock: Callable[[], float]
    ) -> None:
        self._http = http
        self._upstream = upstream
        self._clock = clock
        self._candidates = PATHS[flavour]
        self._dialect: Dialect | None = None
        self._asked_again_at = 0.0
        self._detecting = asyncio.Lock()
        self._day_shift: int | None = None
        self._day_shift_at = float("-inf")
        """When it was found out: it changes with the clocks of the source's zone."""
        self._currency: str | None = None
        self._currency_asked_at = -CURRENCY_SECONDS

    async def capabilities(self, deadline: Deadline) -> frozenset[Capability]:
        return CAPABILITIES[(await self.dialect(deadline)).flavour]

    @property
    def known_capabilities(self) -> frozenset[Capability]:
        candidates = self._candidates if self._dialect is None else [self._dialect]
        return frozenset().union(*(CAPABILITIES[one.flavour] for one in candidates))

    async def dialect(self, deadline: Deadline) -> Dialect:
        """Which dialect the upstream speaks, by what it does: a path alone tells no flavour.

        It is asked within a bounded time. What cannot be found out is assumed for some minutes; what is known is asked
        again now and then, and at once where an answer does not fit it.

        Raises:
            BadAnswer: it has no allocation API at all.
        """
        async with self._detecting:
            if self._dialect is None or self._asked_again_at < self._clock():
                probe = Deadline(min(PROBE_SECONDS, deadline.left() / 4), deadline.request_id)
                by_path = await self._by_path(probe)
                told = await self._by_answers(by_path, probe)
                wait = ASSUMED_SECONDS if told is None else KNOWN_SECONDS
                self._asked_again_at = self._clock() + wait
                self._dialect = told or self._dialect or self._assumed(by_path)
            return self._dialect

    @staticmethod
    def _assumed(by_path: Dialect) -> Dialect:
        """What to take an upstream for that could not be asked: hours one by one are right for every OpenCost."""
        return by_path if by_path.flavour == "kubecost" else replace(by_path, blocks=True)

    def _doubt(self) -> None:
        """An answer does not fit the dialect: find it out anew before the next question."""
        self._asked_again_at = 0.0

    async def _by_path(self, deadline: Deadline) -> Dialect:
        """The first candidate whose allocation path is one, or may be: that it fails is for the question to say."""
        if len(self._candidates) == 1:
            return self._candidates[0]
        hour = self._last_hours(1)
        unlike: BadAnswer | None = None
        for candidate in self._candidates:
            try:
                params = {"window": hour, "aggregate": "cluster"}
                body = await self._http.get(self._upstream, candidate.allocation, params, deadline)
                await decode_elsewhere(body, partial(open_envelope, self._upstream.name, body))
            except BadAnswer as failure:
                if failure.status not in (None, 404):
                    return candidate
                unlike = unlike or (failure if failure.status is None else None)
            except SourceError:
                return candidate
            else:
                return candidate
        if self._dialect is not None:
            return self._dialect
        raise unlike or BadAnswer(f"{self._upstream.name} is neither Kubecost nor OpenCost: it has no allocation API")

    async def _by_answers(self, by_path: Dialect, deadline: Deadline) -> Dialect | None:
        """What the answers make of it; None where it cannot be asked now, or has nothing to tell them apart by."""
        try:
            if by_path.allocation == KUBECOST.allocation:
                window = {"window": self._last_hours(2)}
                body = await self._http.get(self._upstream, by_path.assets, window, deadline)
                form = form_of(self._upstream.name, body)
                if form == "list":
                    return KUBECOST
                if form is None:
                    return None
                by_path = OPENCOST_BELOW_MODEL
            blocks = await self._answers_blocks(by_path, deadline)
        except SourceError as failure:
            log.info("what %s is could not be found out: %s", self._upstream.name, failure)
            return None
        return None if blocks is None else replace(by_path, blocks=blocks)

    async def _answers_blocks(self, dialect: Dialect, deadline: Deadline) -> bool | None:
        """Whether two hours asked as one are fewer than the same two asked one by one; None where both are not told."""
        window = {"window": self._last_hours(2), "aggregate": "cluster", "includeIdle": "true", "resolution": "1m"}

        async def covered(more: Mapping[str, str]) -> int:
            body = await self._http.get(self._upstream, dialect.allocation, {**window, **more}, deadline)
            decoded = await decode_allocations(self._http.offload, self._upstream.name, body, ("cluster",))
            return sum(b - a for a, b in union(sorted(span for one in decoded.sets for span in _ran(one))))

        together, apart = await asyncio.gather(covered({}), covered({"step": "1h"}))
        return together < apart - HOUR // 2 if apart > HOUR else None

    def _last_hours(self, count: int) -> str:
        """A window of so many hours that are over."""
        end = int(self._clock()) - HOUR // 4
        end -= end % HOUR
        return f"{iso(end - count * HOUR)},{iso(end)}"

    async def allocations(self, question: Question, window: Window, deadline: Deadline) -> AllocationReading:
        """Raises: SourceError: where no part of the window could be read."""
        aggregate = upstream_aggregate(question)
        dialect = await self.dialect(deadline)
        answered = await self._of_each(
            pieces(window), dialect, lambda piece: self._checked_piece(dialect, piece, window, aggregate, deadline)
        )
        answers = [answer for _, answer in answered]
        failures = _failures(answers)
        if len(failures) == len(answers):
            raise worst(failures)
        sets: list[AllocationSet] = []
        warnings: list[str] = []
        residuals: list[float] = []
        for answer in answers:
            if isinstance(answer, tuple):
                sets += answer[0]
                warnings += answer[1]
                residuals += answer[2]
        gone = window.final_seconds - sum(one.end - one.start for one in sets if one.start < window.final_until)
        if dialect.blocks and gone > 0:
            warnings.append(f"{gone / HOUR:g} hours are not kept: a collector keeps 49 hours and 15 days")
        residual = fsum(residuals) if residuals else None
        failed = f"{len(failures)} of {len(answers)} days failed: {failures[0]}" if failures else None
        judge = partial(
            judge_sets, self.name, sets, window, int(self._clock()), tuple(dict.fromkeys(warnings)), failed, residual
        )
        large = sum(len(one.allocations) for one in sets) > LARGE_ROWS
        return await asyncio.to_thread(judge) if large else judge()

    async def _of_each(
        self, apart: Sequence[_Piece], dialect: Dialect, ask: Callable[[_Piece], Awaitable[D]]
    ) -> list[tuple[_Piece, D | BaseException]]:
        """Ask for each piece of a window; with each piece its answer, or the exception.

        Kubecost stores its hours, so hours of two days are one request. If that answer is bad, each day is requested
        separately, because one of the two may be good.
        """
        asked = over_midnight(apart) if dialect.flavour == "kubecost" else apart
        answers = await asyncio.gather(*map(ask, asked), return_exceptions=True)
        answered: list[tuple[_Piece, D | BaseException]] = []
        for piece, answer in zip(asked, answers, strict=True):
            parts = [part for part in apart if piece.start <= part.start and part.end <= piece.end]
            if isinstance(answer, BadAnswer) and len(parts) > 1:
                again = await asyncio.gather(*map(ask, parts), return_exceptions=True)
                answered += zip(parts, again, strict=True)
            else:
                answered.append((piece, answer))
        return answered

    async def _checked_piece(
        self, dialect: Dialect, piece: _Piece, window: Window, aggregate: Sequence[str], deadline: Deadline
    ) -> tuple[list[AllocationSet], list[str], list[float]]:
        """The sets of a piece, held against what the source says of the cluster in the same time.

        A day is held against the cluster's day, and against its hours: one in which hours have no containers is asked
        for by the hour, so that the cost of their nodes does not look idle. Kubecost has its hours ready; an OpenCost
        works them out, and is asked for them where it was quick to tell the day.
        """
        asked = self._allocation_piece(dialect, piece, window.end, aggregate, deadline)
        if piece.step != "day":
            return *await asked, []
        hourly = _Piece(piece.start, piece.end, "hour")
        began = monotonic()
        (sets, warnings), totals, hours = await asyncio.gather(
            asked,
            self._totals(dialect, piece, deadline),
            self._totals(dialect, hourly, deadline) if dialect.flavour == "kubecost" else _no_totals(),
        )
        if dialect.flavour == "opencost" and monotonic() - began < QUICK_SECONDS:
            hours = await self._totals(dialect, hourly, deadline)
        holes = _holes(self._own(hours), piece, int(self._clock()))
        if holes and hours[0].start == piece.start:  # every hour that it has is still kept
            return *await self._allocation_piece(dialect, hourly, window.end, aggregate, deadline), []
        if holes:  # the day has hours that are not kept any more, and these are in its own set alone
            known = piece.end - piece.start - holes
            sets = [dataclasses.replace(one, seconds=min(one.covered(one.end), known)) for one in sets]
            warnings = [*warnings, f"{holes / HOUR:g} hours of a day are not known, and are not told apart in its set"]
        whole = totals and sum(one.end - one.start for one in totals) == sum(one.end - one.start for one in sets)
        if not whole:
            return sets, warnings, []
        expected = fsum(one.columns.total() for one in totals)
        residual = expected - fsum(one.columns.total() for one in sets)
        rounding = control_rounding(sum(one.columns.costs.size for one in (*sets, *totals)))
        too_far = abs(residual) > max(rounding, CONTROL_SHARE * abs(expected))
        return sets, warnings, [residual] if too_far else []

    def _own(self, hours: Sequence[AllocationSet]) -> Sequence[AllocationSet]:
        """Hours with the rows of the named cluster: another one may go on while it stands still."""
        return self.clusters.of_sets(hours) if self.clusters.named else hours

    async def _totals(self, dialect: Dialect, piece: _Piece, deadline: Deadline) -> list[AllocationSet]:
        """The cluster's own sets of a piece; none where they cannot be had, or are not kept for as long."""
        try:
            decoded = await self._ask_allocation(dialect, piece, ("cluster",), deadline)
        except SourceError as failure:
            log.info("control totals could not be had: %s", failure)
            return []
        return [one for one in decoded.sets if piece.start <= one.start and one.end <= piece.end]

    async def _allocation_piece(
        self,
        dialect: Dialect,
        piece: _Piece,
        last: int,
        aggregate: Sequence[str],
        deadline: Deadline,
    ) -> tuple[list[AllocationSet], list[str]]:
        """The sets of one piece; where they come back wider than asked, its hours, one call each.

        Args:
            last: the end of the whole window, which may lie inside an hour.
        """
        limit = piece.end + -piece.end % HOUR if piece.end == last else piece.end
        decoded = await self._ask_allocation(dialect, piece, aggregate, deadline)
        if all(piece.start <= one.start and one.end <= limit for one in decoded.sets):
            return list(decoded.sets), list(decoded.warnings)
        if piece.step == "day":
            hourly = _Piece(piece.start, piece.end, "hour")
            return await self._allocation_piece(dialect, hourly, last, aggregate, deadline)
        inside = [one for one in decoded.sets if piece.start <= one.start and one.end <= limit]
        if inside:
            edges = [(piece.start, min(one.start for one in inside)), (max(one.end for one in inside), piece.end)]
            asked = [
                self._allocation_piece(dialect, _Piece(a, b, "hour"), last, aggregate, deadline)
                for a, b in edges
                if a < b
            ]
            parts = [(inside, list(decoded.warnings)), *await asyncio.gather(*asked)]
            return [one for sets, _ in parts for one in sets], [note for _, notes in parts for note in notes]
        if piece.end - piece.start > HOUR:
            return await self._hour_by_hour(dialect, piece, last, aggregate, deadline)
        return [], [*decoded.warnings, BEYOND]

    async def _hour_by_hour(
        self, dialect: Dialect, piece: _Piece, last: int, aggregate: Sequence[str], deadline: Deadline
    ) -> tuple[list[AllocationSet], list[str]]:
        """The hours of a piece, one call each."""
        hours = [_Piece(a, b, "hour") for a, b in split(piece.start, piece.end, HOUR)]
        asked = [self._allocation_piece(dialect, hour, last, aggregate, deadline) for hour in hours]
        parts = await asyncio.gather(*asked)
        return [one for sets, _ in parts for one in sets], [note for _, notes in parts for note in notes]

    async def hour_sets(self, start: int, end: int, seconds_a_call: float) -> HourSets:
        """One call for the rows of the stretch, one for the totals that they are held against."""
        hours, totals = await asyncio.gather(
            self._allocation_hours(start, end, (), Deadline(seconds_a_call)),
            self._allocation_hours(start, end, ("cluster",), Deadline(seconds_a_call)),
        )
        return HourSets(
            {
                hour: replace(one, control=totals[hour].set.columns if hour in totals else None)
                for hour, one in hours.items()
                if not one.set.without_containers
            },
            {hour: NO_CONTAINERS for hour, one in hours.items() if one.set.without_containers},
        )

    async def day_shift(self, seconds_a_call: float) -> int:
        """As its days say; those that begin at half past hold no whole hours, and count as UTC days that it has not."""
        dialect = await self.dialect(Deadline(seconds_a_call))
        known = self._day_shift is not None and self._clock() - self._day_shift_at < KNOWN_SECONDS
        if not known and dialect.flavour == "kubecost":
            today = int(self._clock()) - int(self._clock()) % DAY
            piece = _Piece(today - DAY, today, "day")
            decoded = await self._ask_allocation(dialect, piece, ("cluster",), Deadline(seconds_a_call))
            begins = {one.start % DAY for one in decoded.sets if one.end - one.start == DAY}
            if len(begins) != 1:
                return self._day_shift or 0
            (shift,) = begins
            self._day_shift = shift if shift % HOUR == 0 else 0
            self._day_shift_at = self._clock()
        return self._day_shift or 0

    async def day_set(self, day: int, deadline: Deadline) -> dict[str, Costs] | None:
        """A UTC day as any; where its days are another zone's, one of those, and nothing of other days."""
        if day % DAY == 0 and not self._day_shift:
            return await super().day_set(day, deadline)
        if day % DAY != self._day_shift:
            return None
        dialect, piece = await self.dialect(deadline), _Piece(day, day + DAY, "day")
        decoded = await self._ask_allocation(dialect, piece, ("cluster", "namespace"), deadline)
        window = Window.past(day, day + DAY)
        reading = self.clusters.of_reading(judge_sets(self.name, decoded.sets, window, int(self._clock())))
        whole = reading.source.status == "ok" and reading.has_idle() and len(decoded.sets) == 1
        return by_owner(reading.allocations()) if whole else None

    async def hours_of_days(self, start: int, end: int, seconds_a_call: float) -> Mapping[int, HourSet]:
        """Kubecost keeps days far longer than hours; where its days are another zone's, two of them hold a UTC day."""
        dialect = await self.dialect(Deadline(seconds_a_call))
        piece = _Piece(start, end, "day")
        decoded = await self._ask_allocation(dialect, piece, (), Deadline(seconds_a_call))
        told = [one for one in decoded.sets if len(one.allocations) and not one.without_containers]
        cut = await asyncio.to_thread(cut_into_hours, told, start, end)
        return {hour: HourSet.cut(hour, one) for hour, one in cut.items()}

    async def _allocation_hours(
        self, start: int, end: int, aggregate: Sequence[str], deadline: Deadline
    ) -> dict[int, HourSet]:
        """The hours of a stretch of one UTC day by their first second; one that the source knows nothing of is absent.

        Those of an upstream whose hours begin at half past are cut from the two that hold each.

        Raises:
            SourceError
        """
        dialect, piece = await self.dialect(deadline), _Piece(start, end, "hour")
        decoded = await self._ask_allocation(dialect, piece, aggregate, deadline)
        sets = decoded.sets
        if any(one.end - one.start == HOUR and one.start % HOUR for one in sets):
            cut = await asyncio.to_thread(cut_into_hours, sets, start, end)
            return {hour: HourSet.cut(hour, one) for hour, one in cut.items()}
        if any(one.start < start or one.end > end for one in sets):
            sets = tuple((await self._hour_by_hour(dialect, piece, end, aggregate, deadline))[0])
        if any(one.end - one.start != HOUR or one.start % HOUR for one in sets):
            self._doubt()
            raise BadAnswer(f"{self._upstream.name} answered with sets that are no hours")
        return {one.start: HourSet(set=one, seconds=one.covered(one.end)) for one in sets}

    async def node_kinds(self, start: int, end: int, deadline: Deadline) -> Mapping[int, AssetsReading]:
        """OpenCost answers assets of one window a call: there one answer for the stretch says what the nodes are."""
        if (await self.dialect(deadline)).flavour == "opencost":
            reading = await self.assets(Window.past(start, end), deadline)
            return {hour: reading for hour, _ in split(start, end, HOUR)}
        return await self.asset_hours(start, end, deadline)

    async def asset_hours(self, start: int, end: int, deadline: Deadline) -> Mapping[int, AssetsReading]:
        dialect = await self.dialect(deadline)
        if dialect.flavour == "opencost":
            hours = [_Piece(a, b, "hour") for a, b in split(start, end, HOUR)]
            answers = await asyncio.gather(*(self._assets_piece(dialect, hour, deadline) for hour in hours))
            tells_management = False
            hours_told = {hour.start: list(one.assets) for hour, one in zip(hours, answers, strict=True)}
            unreadable = {hour.start: frozenset(one.left_out) for hour, one in zip(hours, answers, strict=True)}
        else:
            decoded = await self._ask_assets(dialect, _Piece(start, end, "hour"), deadline)
            unreadable = dict.fromkeys((hour for hour, _ in split(start, end, HOUR)), frozenset(decoded.left_out))
            hours_told = by_hour(decoded, start, end)
            tells_management = decoded.form == FORMS["kubecost"]
        source = SourceReport(name="assets", status="ok", fetched_at=int(self._clock()))
        return {
            hour: AssetsReading(
                source=source,
                assets=tuple(assets),
                tells_management=tells_management,
                unreadable=unreadable[hour],
            )
            for hour, assets in hours_told.items()
            if assets
        }

    async def body(
        self, kind: Literal["allocation", "assets"], start: int, end: int, step: Step, aggregate: Sequence[str],
        deadline: Deadline,
    ) -> bytes:  # fmt: skip
        """The upstream's own answer to one question, as it came: for whoever hands it on.

        Raises:
            SourceError
        """
        dialect, piece = await self.dialect(deadline), _Piece(start, end, step)
        if kind == "assets":
            path, params = dialect.assets, _assets_params(dialect, piece)
        else:
            path, params = dialect.allocation, _allocation_params(dialect, piece, aggregate)
        return await self._http.get(self._upstream, path, params, deadline)

    async def _ask_allocation(
        self, dialect: Dialect, piece: _Piece, aggregate: Sequence[str], deadline: Deadline
    ) -> Decoded:
        params = _allocation_params(dialect, piece, aggregate)
        http, name = self._http, self._upstream.name
        try:
            body = await http.get(self._upstream, dialect.allocation, params, deadline)
        except BadAnswer as failure:
            if failure.status == 404:
                self._doubt()
            raise
        return await decode_allocations(http.offload, name, body, aggregate)

    async def assets(self, window: Window, deadline: Deadline) -> AssetsReading:
        """Raises: SourceError: where no part of the window could be read."""
        dialect = await self.dialect(deadline)
        apart = pieces(window)
        if dialect.blocks:
            apart = [hour for piece in apart for hour in _singly(piece)]
        answered = await self._of_each(apart, dialect, partial(self._assets_piece, dialect, deadline=deadline))
        answers = [answer for _, answer in answered]
        failures = _failures(answers)
        if len(failures) == len(answers):
            raise worst(failures)
        read = [answer for answer in answers if isinstance(answer, DecodedAssets)]
        listed = [asset for one in read for asset in one.assets]
        assets = await asyncio.to_thread(merge, listed) if len(listed) > MANY_ASSETS else merge(listed)
        left_out = [kind for one in read for kind in one.left_out]
        status: Status = "ok" if assets or window.still_running else "no_data"
        lacking = sum(one.lacking for one in read)
        gaps = any(isinstance(one, DecodedAssets) and _has_gaps(one, piece, window) for piece, one in answered)
        if assets and (failures or left_out or lacking or gaps):
            status = "partial"
        warnings = [f"{len(left_out)} assets could not be read and are not counted"] if left_out else []
        if lacking:
            warnings.append(f"{lacking / HOUR:g} hours lie across the edges of hours that the source keeps")
        source = SourceReport(
            name="assets",
            status=status,
            fetched_at=int(self._clock()),
            coverage=1.0 - lacking / window.seconds if lacking else None,
            error=f"{len(failures)} of {len(answers)} days failed: {failures[0]}" if failures else None,
            warnings=tuple(warnings),
        )
        return AssetsReading(
            source=source,
            assets=assets,
            tells_management=dialect.flavour == "kubecost" and all(one.form != FORMS["opencost"] for one in read),
            unreadable=frozenset(left_out),
        )

    async def _ask_assets(self, dialect: Dialect, piece: _Piece, deadline: Deadline) -> DecodedAssets:
        params = _assets_params(dialect, piece)
        body = await self._http.get(self._upstream, dialect.assets, params, deadline)
        decoded = await decode_elsewhere(body, partial(decode_assets, self._upstream.name, body))
        if decoded.form not in (None, FORMS[dialect.flavour]):
            self._doubt()
        return decoded

    async def _assets_piece(self, dialect: Dialect, piece: _Piece, deadline: Deadline) -> DecodedAssets:
        """The assets of a piece; where an upstream keeps another zone's hours, of those that lie inside it."""
        decoded = await self._ask_assets(dialect, piece, deadline)
        limit = piece.end + -piece.end % HOUR
        if all(piece.start <= start and end <= limit for start, end in decoded.spans):
            return decoded
        step = HOUR if piece.step == "hour" else DAY
        if piece.step == "day" and piece.end - piece.start <= DAY:
            return await self._assets_piece(dialect, _Piece(piece.start, piece.end, "hour"), deadline)
        inside = [(a, b) for a, b in decoded.spans if piece.start <= a and b <= limit]
        if inside:
            return decoded.only(inside, piece.end - piece.start)
        if piece.end - piece.start <= HOUR:
            raise BadAnswer(f"{self._upstream.name} answered for another window than asked")
        parts = await asyncio.gather(
            *(
                self._assets_piece(dialect, _Piece(a, b, piece.step), deadline)
                for a, b in split(piece.start, piece.end, step)
            )
        )
        return DecodedAssets(
            tuple(one for part in parts for one in part.found),
            tuple(kind for part in parts for kind in part.left_out),
            sum(part.lacking for part in parts),
            next((part.form for part in parts if part.form is not None), None),
        )

    async def currency(self, deadline: Deadline) -> str | None:
        """As Kubecost's configuration says; None where it has none, or cannot be asked for it now."""
        if self._currency_asked_at + CURRENCY_SECONDS > self._clock():
            return self._currency
        if (await self.dialect(deadline)).flavour == "kubecost":
            try:
                self._currency = await self._configured_currency(deadline)
            except SourceError:
                if self._currency is None:
                    raise
                return self._currency  # what it said before holds until it says something else
        self._currency_asked_at = self._clock()
        return self._currency

    async def _configured_currency(self, deadline: Deadline) -> str | None:
        for path in CONFIGURATIONS:
            try:
                body = await self._http.get(self._upstream, path, {}, deadline)
            except BadAnswer as failure:
                if failure.status == 404:
                    continue
                raise
            return decode_currency(self._upstream.name, body)
        return None

    async def savings(self, window: Window, utilization: float | None, deadline: Deadline) -> SavingsReading | None:
        """Kubecost's own; None where it has no savings API."""
        overview, sizing, abandoned, cluster = await asyncio.gather(
            self._body_if_any("/model/savings", {}, deadline),
            self._body_if_any("/model/savings/requestSizingV2", {"window": "7d"}, deadline),
            self._body_if_any("/model/savings/abandonedWorkloads", {"window": "7d"}, deadline),
            self._cluster_name(window, deadline),
        )
        if overview is None and sizing is None:
            return None
        recommendations = decode_request_sizing(sizing, cluster) if sizing is not None else []
        if abandoned is not None:
            recommendations += decode_abandoned(abandoned, cluster)
        source = SourceReport(name="savings", status="ok")
        categories = None
        if overview is not None:
            categories = decode_overview(overview, cluster)
            if categories is None:
                why = (
                    f"the savings do not have the cluster {cluster!r}" if cluster else "the cluster's name is not known"
                )
                source = SourceReport(name="savings", status="no_data", error=why)
        return SavingsReading(source, tuple(recommendations), categories)

    async def budgets(self, deadline: Deadline) -> UpstreamBudgets:
        """Kubecost's own; its forecast is of all its clusters, and told only where they are all the account's."""
        days = {"predictionWindow": f"{PREDICTED_DAYS}d"}
        budgets = await self._body_if_any("/model/budgets", {}, deadline)
        forecast = None
        if not self.clusters.named:
            forecast = await self._body_if_any("/forecasting/forecast/allocation", days, deadline)
        return UpstreamBudgets(
            decode_budgets(budgets, self.clusters) if budgets is not None else (),
            decode_forecast(forecast) if forecast is not None else None,
        )

    async def _body_if_any(self, path: str, params: Mapping[str, str], deadline: Deadline) -> bytes | None:
        """A raw answer; None where the upstream has no such thing.

        Raises:
            SourceError
        """
        try:
            return await self._http.get(self._upstream, path, params, deadline)
        except BadAnswer as failure:
            if failure.status == 404:
                return None
            raise

    async def _cluster_name(self, window: Window, deadline: Deadline) -> str:
        """The cluster's name: savings are keyed by it, and the first key is anybody's.

        As it is given, else as its own allocations say.
        """
        if self.clusters.named:
            return self.clusters.named[0]
        dialect = await self.dialect(deadline)
        day = max(window.start, window.end - DAY)
        asked = [
            self._allocation_piece(dialect, piece, window.end, ("cluster",), deadline)
            for piece in pieces(Window.past(day, window.end))
        ]
        for sets, _ in await asyncio.gather(*asked):
            for one in sets:
                for name in one.columns.texts["cluster"].values:
                    if name:
                        return str(name)
        return ""


def _holes(hours: Sequence[AllocationSet], piece: _Piece, now: int) -> int:
    """Seconds of a piece that its hours say are not known: without containers, or absent behind the first one.

    Hours that lack before the first one may be kept no longer, and the last ones may be late: they say nothing.
    """
    told = {one.start for one in hours if not one.without_containers}
    if not hours:
        return 0
    first = min(one.start for one in hours)
    last = max(one.start for one in hours)
    settled = max(last, min(piece.end, now - LATE_SECONDS) - HOUR)
    return sum(HOUR for hour in range(first, settled + 1, HOUR) if hour not in told)


def _allocation_params(dialect: Dialect, piece: _Piece, aggregate: Sequence[str]) -> dict[str, str]:
    params = {"window": f"{iso(piece.start)},{iso(piece.end)}", "shareIdle": "false", "external": "false"}
    if aggregate:
        params["aggregate"] = ",".join(aggregate)
    if dialect.flavour == "kubecost":
        params |= {
            "accumulate": piece.step,
            "idle": "true",
            "splitIdle": "false",
            "shareTenancyCosts": "false",
            "reconcile": "true",
        }
    else:
        step = {"day": "1d", "hour": "1h"}[piece.step]
        params |= {
            "accumulate": "false",
            "step": step,
            "resolution": "1m",
            "includeIdle": "true",
            "idleByNode": "false",
        }
    return params


def _assets_params(dialect: Dialect, piece: _Piece) -> dict[str, str]:
    params = {"window": f"{iso(piece.start)},{iso(piece.end)}"}
    if dialect.flavour == "kubecost":
        params |= {"accumulate": piece.step, "aggregate": "", "reconcile": "true"}
    return params


def _has_gaps(decoded: DecodedAssets, piece: _Piece, window: Window) -> bool:
    """Whether assets are missing for a finished part of a day, or for hours between others that have assets.

    If no asset has a window, all of them are taken as assets of the whole piece.
    """
    told = list(union(sorted(decoded.spans)))
    if not told:
        return not decoded.found and piece.start < window.final_until
    parts = [(a, b) for a, b in split(piece.start, piece.end, DAY) if a < window.final_until]
    return len(told) > 1 or any(all(end <= a or b <= start for start, end in told) for a, b in parts)


def _singly(piece: _Piece) -> list[_Piece]:
    """A day as it is, hours one by one."""
    if piece.step == "day":
        return [piece]
    return [_Piece(a, b, "hour") for a, b in split(piece.start, piece.end, HOUR)]


def _ran(one: AllocationSet) -> Iterable[tuple[int, int]]:
    """When the rows of a set ran: a block is told under the window that was asked for."""
    return one.columns.spans(0, one.end)


async def _no_totals() -> list[AllocationSet]:
    return []


def _failures(answers: Sequence[object]) -> list[SourceError]:
    """The source errors among gathered answers; anything else that was raised is a defect, and raised on."""
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, SourceError):
            raise answer
    return [answer for answer in answers if isinstance(answer, SourceError)]
