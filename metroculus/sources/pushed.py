"""Costs that a tenant's agent pushes: its upstream's own answers, read out of an inbox instead of over HTTP.

Nothing is asked of anybody: what was not pushed is not known, and says so. Bodies were decoded once before they were
kept, so that a tenant hears of one that cannot be read.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, Protocol

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.assets import Asset, merge
from metroculus.cost_model.columns import by_owner
from metroculus.cost_model.components import Costs
from metroculus.cost_model.cutting import cut_into_hours
from metroculus.cost_model.reading import (
    COVERAGE_THRESHOLD,
    AllocationReading,
    AllocationSet,
    AssetsReading,
    SourceReport,
    Status,
    judge_sets,
)
from metroculus.cost_model.statement import Question
from metroculus.sources.answers.allocation_json import Decoded
from metroculus.sources.answers.assets_json import FORMS, DecodedAssets, by_hour, decode_assets
from metroculus.sources.answers.large import decode_allocations, decode_elsewhere
from metroculus.sources.answers.unzip import unzip
from metroculus.sources.errors import BadAnswer, SourceError, TooLarge
from metroculus.sources.source import NO_CONTAINERS, NOT_PUSHED, Capability, CostSource, HourSet, HourSets
from tools.deadline import Deadline
from tools.offload import Offload
from tools.window import DAY, HOUR, SETTLING_SECONDS, Window, split

Kind = Literal["allocation", "assets"]
Step = Literal["hour", "day"]

NAME = "the pushed answer"
MAX_BODY_BYTES = 256 << 20
"""Of an unpacked answer."""

_BASIC = frozenset({Capability.ALLOCATIONS, Capability.DAY_SET, Capability.ASSETS, Capability.PLACEMENT})


class Pushed(Struct, frozen=True, kw_only=True):
    """An answer that was pushed, with what was seen in it, and how to read its body (as gzip)."""

    kind: Kind
    step: Step
    first: int
    last: int
    told: tuple[int, ...]
    asked_at: int
    received_at: int
    packed: Callable[[], Awaitable[bytes]]

    @property
    def tells_hours(self) -> bool:
        """Whether it tells what hours cost, one by one."""
        return (self.kind, self.step) == ("allocation", "hour")


class Inbox(Protocol):
    """Where answers are kept."""

    async def answers(self, account: str, start: int, end: int) -> Sequence[Pushed]:
        """Those about some of ``[start, end)``, the one that counts before the others."""
        ...

    async def accounts(self) -> Sequence[str]:
        """Those of which there are answers."""
        ...

    async def assets_form(self, account: str) -> str:
        """``list`` or ``object``, as the account's last assets were told; empty where there are none."""
        ...

    async def assets_forms(self) -> Mapping[str, str]:
        """``assets_form`` of all accounts that have one."""
        ...

    async def currency(self, account: str) -> str:
        """Of the account's money, as its upstream says; empty where it does not."""
        ...


class Content(Struct, frozen=True):
    """What an answer holds: the hours that it tells, and the form of its assets."""

    digest: str
    """SHA-256 of the unpacked body, hexadecimal."""
    told: tuple[int, ...]
    form: str = ""
    clusters: tuple[str, ...] = ()
    """Whose rows it has, where they say so."""


async def read_content(
    offload: Offload, kind: Kind, step: Step, first: int, last: int, packed: bytes, now: int
) -> Content:
    """What a pushed answer about ``[first, last)`` holds. An hour that its upstream may still be filling is not told.

    Raises:
        TooLarge: it unpacks to more than is read.
        BadAnswer: it is no such answer, or of another time.
    """
    body = await _unpacked(packed)
    digest = await decode_elsewhere(body, lambda: hashlib.sha256(body).hexdigest())
    if kind == "assets":
        assets = await decode_elsewhere(body, partial(decode_assets, NAME, body))
        of_the_day = range(first, last, HOUR) if _all_inside(assets, first, last) else ()
        told = of_the_day if step == "day" else _asset_hours(assets, first, last)
        named = {asset.cluster for _, asset in assets.found} - {""}
        return Content(digest, tuple(told), assets.form or "", tuple(sorted(named)))
    if step == "day":
        decoded = await decode_allocations(offload, NAME, body, ())
        whole = _day_of(decoded, first, last) is not None
        return Content(digest, tuple(range(first, last, HOUR)) if whole else (), clusters=_clusters_of(decoded))
    decoded = await decode_allocations(offload, NAME, body, ())
    hours = _hours_of(decoded, first, last)
    if decoded.sets and not any(first < one.end and one.start < last for one in decoded.sets):
        raise BadAnswer(f"{NAME} is of another time than it says")
    if decoded.sets and not hours and not any(one.end - one.start == HOUR for one in decoded.sets):
        raise BadAnswer(f"{NAME} has no sets of hours: ask the upstream by the hour")
    told_hours = tuple(hour for hour, one in sorted(hours.items()) if not _filling(hour, one, now))
    return Content(digest, told_hours, clusters=_clusters_of(decoded))


def _clusters_of(decoded: Decoded) -> tuple[str, ...]:
    return tuple(sorted({name for one in decoded.sets for name in one.columns.texts["cluster"].list()} - {""}))


async def _unpacked(packed: bytes) -> bytes:
    """Raises: TooLarge, BadAnswer"""
    try:
        body = await decode_elsewhere(packed, partial(unzip, packed, MAX_BODY_BYTES))
    except zlib.error:
        raise BadAnswer(f"{NAME} is not gzip, or cut short") from None
    if body is None:
        raise TooLarge(f"{NAME} unpacks to more than {MAX_BODY_BYTES >> 20} MiB: push fewer hours at once")
    return body


def _filling(hour: int, one: HourSet, now: int) -> bool:
    return one.seconds < COVERAGE_THRESHOLD * HOUR and now < hour + HOUR + SETTLING_SECONDS


def _hours_of(decoded: Decoded, first: int, last: int) -> dict[int, HourSet]:
    """The hours that an allocation answer tells; those of an upstream of another zone are cut from two."""
    sets = [one for one in decoded.sets if len(one.columns)]
    if any(one.end - one.start == HOUR and one.start % HOUR for one in sets):
        return {hour: HourSet.cut(hour, one) for hour, one in cut_into_hours(sets, first, last).items()}
    hours = (one for one in sets if one.end - one.start == HOUR and first <= one.start < last)
    return {one.start: HourSet(set=one, seconds=one.covered(one.end)) for one in hours}


def _day_of(decoded: Decoded, first: int, last: int) -> AllocationSet | None:
    """The one set that is exactly of the time that was asked for."""
    sets = [one for one in decoded.sets if (one.start, one.end) == (first, last)]
    return sets[0] if len(sets) == len(decoded.sets) == 1 else None


def _asset_hours(decoded: DecodedAssets, first: int, last: int) -> Mapping[int, list[Asset]]:
    """Assets by hour, as far as an answer tells hours apart."""
    if decoded.form == FORMS["opencost"]:
        return {first: list(decoded.assets)} if last - first == HOUR else {}
    return by_hour(decoded, first, last)


def _all_inside(decoded: DecodedAssets, first: int, last: int) -> bool:
    """Whether there are assets, and all of them are of the time that was asked for: other zones have other days."""
    return bool(decoded.found) and all(first <= start and end <= last for start, end in decoded.spans)


class PushedSource(CostSource):
    """One account's inbox.

    Args:
        clock: Unix seconds.
    """

    name = "allocation"

    def __init__(self, inbox: Inbox, account: str, offload: Offload, clock: Callable[[], float]) -> None:
        self._inbox = inbox
        self._account = account
        self._offload = offload
        self._clock = clock
        self._form = ""

    async def capabilities(self, deadline: Deadline) -> frozenset[Capability]:
        await self.learn()
        return self.known_capabilities

    @property
    def known_capabilities(self) -> frozenset[Capability]:
        return _BASIC | ({Capability.MANAGEMENT} if self._form == FORMS["kubecost"] else frozenset())

    async def learn(self, form: str = "") -> None:
        """Find out whether the assets are Kubecost's, which have cluster management.

        As long as there are none it is asked each time: hours are stored seconds after the first of them came.

        Args:
            form: what the account's last assets looked like, where that is known.
        """
        self._form = form or self._form or await self._inbox.assets_form(self._account)

    async def allocations(self, question: Question, window: Window, deadline: Deadline) -> AllocationReading:
        """The hours of a window that were pushed, container by container."""
        sets: list[AllocationSet] = []
        failures: list[str] = []
        received: list[int] = []
        answers = await self._inbox.answers(self._account, window.start - window.start % HOUR, window.end)
        for start, end in window.days():
            read = await self._hours(start, end, answers)
            sets += [one.set for hour, one in read.hours.items() if start <= hour]
            failures += [read.failure] if read.failure else []
            received += [read.received_at] if read.received_at else []
        failed = failures[0] if failures else None
        return judge_sets(self.name, sets, window, max(received, default=int(self._clock())), (), failed)

    async def hour_sets(self, start: int, end: int, seconds_a_call: float) -> HourSets:
        answers = await self._inbox.answers(self._account, start - start % HOUR, end)
        read = await self._hours(start, end, answers)
        told = {hour: one for hour, one in read.hours.items() if not one.set.without_containers}
        blind = {hour: NO_CONTAINERS for hour, one in read.hours.items() if one.set.without_containers}
        unread = dict.fromkeys(read.unread, read.failure or "")
        absent = dict.fromkeys(read.absent, NOT_PUSHED)
        return HourSets(told, {**absent, **unread, **blind}, read.failure)

    async def _hours(self, start: int, end: int, answers: Sequence[Pushed]) -> _Hours:
        """The hours that begin in ``[start, end)``, each of the answer that counts."""
        first = start - start % HOUR
        wanted = set(range(first, end, HOUR))
        found: dict[int, HourSet] = {}
        unread, absent, vain = set[int](), set(wanted), set[int]()
        failure, received_at = None, 0
        for answer in _about(first, end, answers):
            hours = wanted.intersection(answer.told) - found.keys()
            if not answer.tells_hours:
                continue
            covered = wanted.intersection(range(answer.first, answer.last, HOUR))
            absent -= covered
            asked_in_vain = covered.difference(answer.told, found)
            if not hours:
                vain |= asked_in_vain
                continue
            try:
                decoded = await decode_allocations(self._offload, NAME, await _unpacked(await answer.packed()), ())
            except SourceError as problem:
                failure, unread = str(problem), unread | hours
                continue
            read = _hours_of(decoded, answer.first, answer.last)
            found |= {
                hour: replace(one, told_at=answer.asked_at, gone=hour in vain)
                for hour, one in read.items()
                if hour in hours
            }
            vain |= asked_in_vain
            received_at = max(received_at, answer.received_at)
        return _Hours(found, unread - found.keys(), absent, failure, received_at)

    async def day_set(self, day: int, deadline: Deadline) -> dict[str, Costs] | None:
        """What was pushed of a day by itself; None where its hours were asked for later, and may say something else."""
        answers = await self._inbox.answers(self._account, day, day + DAY)
        decoded, answer = await self._day(answers, day)
        hours = [one.asked_at for one in answers if one.tells_hours and one.told]
        one = _day_of(decoded, day, day + DAY) if decoded is not None else None
        if answer is None or one is None or answer.asked_at < max(hours, default=0):
            return None
        reading = self.clusters.of_reading(
            judge_sets(self.name, [one], Window.past(day, day + DAY), answer.received_at)
        )
        whole = reading.source.status == "ok" and reading.has_idle()
        return by_owner(reading.allocations()) if whole else None

    async def hours_of_days(self, start: int, end: int, seconds_a_call: float) -> Mapping[int, HourSet]:
        """Kubecost keeps days far longer than hours: a day that was pushed by itself, cut into hours."""
        decoded, answer = await self._day(await self._inbox.answers(self._account, start, end), start)
        if decoded is None or answer is None or end - start != DAY:
            return {}
        told = [one for one in decoded.sets if len(one.columns) and not one.without_containers]
        cut = await asyncio.to_thread(cut_into_hours, told, start, end)
        return {hour: replace(HourSet.cut(hour, one), told_at=answer.asked_at) for hour, one in cut.items()}

    async def _day(self, answers: Sequence[Pushed], day: int) -> tuple[Decoded | None, Pushed | None]:
        """The answer about one UTC day that counts, container by container."""
        wanted = ("allocation", "day", day, day + DAY)
        answer = next((one for one in answers if (one.kind, one.step, one.first, one.last) == wanted), None)
        if answer is None:
            return None, None
        body = await _unpacked(await answer.packed())
        return await decode_allocations(self._offload, NAME, body, ()), answer

    async def currency(self, deadline: Deadline) -> str | None:
        return await self._inbox.currency(self._account) or None

    async def assets(self, window: Window, deadline: Deadline) -> AssetsReading:
        """Assets of a window: of whole days as they were told, of the rest by the hour."""
        listed: list[Asset] = []
        left_out: list[object] = []
        lacking, received, forms = 0, list[int](), set[str]()
        answers = await self._inbox.answers(self._account, window.start, window.end)
        for start, end in window.days():
            parts = await self._asset_parts(start, end, answers)
            covered = 0
            for part in parts:
                listed += part.assets
                left_out += part.decoded.left_out
                covered += part.seconds
                received.append(part.received_at)
                forms |= {part.decoded.form} if part.decoded.form else set()
            lacking += max(0, min(end, window.final_until) - start - covered)
        status: Status = "ok" if listed or window.still_running else "no_data"
        if listed and (lacking or left_out):
            status = "partial"
        warnings = [f"{len(left_out)} assets could not be read and are not counted"] if left_out else []
        if listed and lacking:
            warnings.append(f"{lacking / HOUR:g} hours were not pushed")
        source = SourceReport(
            name=self.assets_name,
            status=status,
            fetched_at=max(received, default=int(self._clock())),
            coverage=1.0 - lacking / window.seconds if listed and lacking else None,
            warnings=tuple(warnings),
        )
        return AssetsReading(
            source=source,
            assets=merge(listed),
            tells_management=(forms or {self._form}) == {FORMS["kubecost"]},
            unreadable=frozenset(left_out),  # type: ignore[arg-type]
        )

    async def asset_hours(self, start: int, end: int, deadline: Deadline) -> Mapping[int, AssetsReading]:
        found = {}
        answers = await self._inbox.answers(self._account, start, end)
        for part in await self._asset_parts(start, end, answers, days=False):
            source = SourceReport(name=self.assets_name, status="ok", fetched_at=part.received_at)
            found[part.hour] = AssetsReading(
                source=source,
                assets=tuple(part.assets),
                tells_management=part.decoded.form == FORMS["kubecost"],
                unreadable=frozenset(part.decoded.left_out),
            )
        return found

    async def _asset_parts(
        self, start: int, end: int, answers: Sequence[Pushed], days: bool = True
    ) -> list[_AssetPart]:
        """The assets of one whole day, else those of each hour that lies in ``[start, end)``."""
        hours = {hour for hour, _ in split(start, end, HOUR) if hour % HOUR == 0 and hour + HOUR <= end}
        found: dict[int, _AssetPart] = {}
        for answer in _about(start, end, answers):
            whole = days and answer.step == "day" and (answer.first, answer.last) == (start, end) and bool(answer.told)
            wanted = hours.intersection(answer.told) - found.keys()
            if answer.kind != "assets" or not (whole or (wanted and answer.step == "hour")):
                continue
            body = await _unpacked(await answer.packed())
            decoded = await decode_elsewhere(body, partial(decode_assets, NAME, body))
            if whole:
                return [_AssetPart(start, list(decoded.assets), end - start, answer.received_at, decoded)]
            read = _asset_hours(decoded, answer.first, answer.last)
            for hour in wanted.intersection(read):
                found[hour] = _AssetPart(hour, read[hour], HOUR, answer.received_at, decoded)
        return [found[hour] for hour in sorted(found)]


def _about(start: int, end: int, answers: Sequence[Pushed]) -> Iterator[Pushed]:
    """The answers about some of ``[start, end)``, in their order."""
    return (one for one in answers if one.first < end and one.last > start)


class _Hours(Struct, frozen=True):
    hours: dict[int, HourSet]
    unread: Iterable[int]
    """Hours of which an answer is there and could not be read."""
    absent: Iterable[int]
    """Hours of which no answer is there."""
    failure: str | None
    received_at: int
    """When the newest of the answers came; 0 where there are none."""


class _AssetPart(Struct, frozen=True):
    """Assets of a day or of an hour, and the answer that they are out of."""

    hour: int
    assets: list[Asset]
    seconds: int
    received_at: int
    decoded: DecodedAssets
