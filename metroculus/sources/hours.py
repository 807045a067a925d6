"""One account's hours as its source tells them, row by row, for keeping: of Kubecost, OpenCost or metrics alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, Allocation, AllocationSet, Costs
from metroculus.cost_model.assets import Asset
from metroculus.cost_model.hours import by_owner
from metroculus.cost_model.prices import CustomPrices, unpriced, with_prices
from metroculus.cost_model.statement import AllocationReading, Source
from metroculus.sources.accounts import AccountSources
from metroculus.sources.errors import DeadlineExceeded, SourceError, TooLarge
from metroculus.sources.kubecost.client import AssetsReading, KubecostSource
from metroculus.sources.thanos.client import ThanosSource
from metroculus.sources.thanos.costs import allocation_by_metrics, management_by_metrics
from tools.deadline import Deadline
from tools.window import DAY, HOUR, Window, split

METRIC_LABELS = ("label_app", "label_app_kubernetes_io_name", "label_owner", "label_team")
"""Pod labels that are kept where metrics are all there is: there they have to be asked for by name."""

NOTHING_KNOWN = "the source knows nothing of this hour"

HOURS_AT_ONCE = 4
"""Hours of one account that metrics are asked for side by side."""


class HourReading(Struct, frozen=True, kw_only=True):
    """What a source said of one hour, idle among the rows. Money is USD."""

    hour: int
    allocations: tuple[Allocation, ...]
    seconds: int
    """Time of the hour that it tells of."""
    control: float | None
    """The source's own total of the rows; None where it has none."""
    management: float | None
    quarantined: int = 0
    unknown: tuple[str, ...] = ()
    """Components that it should tell and could not."""
    not_covered: tuple[str, ...] = ()
    """Components that no configured source can tell."""
    nodes: Mapping[str, tuple[str, str]] = {}
    """Instance type and zone by node."""


class HoursRead(Struct, frozen=True):
    """The hours that were told, and why the others were not; ``failure`` where that is the source's fault."""

    hours: dict[int, HourReading]
    missing: dict[int, str]
    failure: str | None = None


class HourSource(Protocol):
    async def hours(self, start: int, end: int) -> HoursRead:
        """The hours of a stretch of one UTC day; a source that fails is a reason for each hour."""
        ...

    async def day(self, day: int) -> dict[str, Costs] | None:
        """What the source says that a complete UTC day cost, by owner and component; None where it does not say.

        Raises:
            SourceError
        """
        ...


def hour_source(account: str, sources: AccountSources, timeout: float) -> HourSource | None:
    """Where an account's hours come from; None where it has no source at all.

    Args:
        timeout: seconds for one call to an upstream.
    """
    if sources.kubecost is not None:
        return KubecostHours(account, sources.kubecost, sources.thanos, sources.custom_prices, timeout)
    return MetricHours(account, sources.thanos, timeout) if sources.thanos is not None else None


class KubecostHours:
    """Hours of a Kubecost or OpenCost, one call a stretch; management from metrics where the upstream has none."""

    def __init__(
        self,
        account: str,
        kubecost: KubecostSource,
        thanos: ThanosSource | None,
        prices: CustomPrices | None,
        timeout: float,
    ) -> None:
        self._account = account
        self._kubecost = kubecost
        self._thanos = thanos
        self._prices = prices
        self._timeout = timeout

    async def hours(self, start: int, end: int) -> HoursRead:
        try:
            return await self._read(start, end)
        except (TooLarge, DeadlineExceeded) as failure:
            if end - start <= HOUR:
                return _none(start, end, failure)
            middle = start + (end - start) // HOUR // 2 * HOUR
            first, second = await self.hours(start, middle), await self.hours(middle, end)
            failed = first.failure or second.failure
            return HoursRead(first.hours | second.hours, first.missing | second.missing, failed)
        except SourceError as failure:
            return _none(start, end, failure)

    def _deadline(self) -> Deadline:
        return Deadline(self._timeout)

    async def _read(self, start: int, end: int) -> HoursRead:
        sets, totals, assets = await asyncio.gather(
            self._kubecost.allocation_hours(start, end, (), self._deadline()),
            self._kubecost.allocation_hours(start, end, ("cluster",), self._deadline()),
            self._assets(start, end),
        )
        management, covered = await self._management(sorted(sets), assets)
        found: dict[int, HourReading] = {}
        missing: dict[int, str] = {}
        for hour, _ in split(start, end, HOUR):
            if hour not in sets:
                missing[hour] = NOTHING_KNOWN
                continue
            whole = await self._with_idle(sets[hour], assets.get(hour))
            if whole is None:
                missing[hour] = "idle is not told, and what the nodes cost is not known either"
                continue
            told = totals.get(hour)
            usd = management.get(hour)
            unknown = {component for a in whole.allocations for component in a.unknown}
            if usd is None and covered:
                unknown.add("management")
            priced = self._prices is not None and whole.allocations != sets[hour].allocations
            reading = assets.get(hour)
            found[hour] = HourReading(
                hour=hour,
                allocations=whole.allocations,
                seconds=whole.covered(hour + HOUR),
                control=Costs.sum(a.costs for a in told.allocations).total if told and not priced else None,
                management=usd,
                quarantined=whole.quarantined,
                unknown=tuple(sorted(unknown)),
                not_covered=() if covered or usd is not None else ("management",),
                nodes=node_kinds(reading.assets if reading else ()),
            )
        return HoursRead(found, missing)

    async def _assets(self, start: int, end: int) -> dict[int, AssetsReading]:
        """Assets by hour; for OpenCost one answer for the stretch, which tells what the nodes are."""
        try:
            if (await self._kubecost.dialect(self._deadline())).flavour == "opencost":
                window = Window.past(start, end)
                reading = await self._kubecost.assets(window, self._deadline())
                return {hour: reading for hour, _ in split(start, end, HOUR)}
            return await self._kubecost.asset_hours(start, end, self._deadline())
        except (TooLarge, DeadlineExceeded):
            raise
        except SourceError:
            return {}

    async def _management(
        self, hours: Sequence[int], assets: Mapping[int, AssetsReading]
    ) -> tuple[dict[int, float], bool]:
        """Management by hour, and whether any source could have told it."""
        told = {hour: assets[hour].management().usd for hour in hours if hour in assets}
        known = {hour: usd for hour, usd in told.items() if usd is not None}
        covered = self._kubecost.flavour != "opencost" or self._thanos is not None
        rest = [hour for hour in hours if hour not in known]
        if self._thanos is None or not rest:
            return known, covered
        return known | await management_hours(self._thanos, self._account, rest, self._timeout), covered

    async def _with_idle(self, told: AllocationSet, assets: AssetsReading | None) -> AllocationSet | None:
        """The hour with idle and with the operator's prices; None where what that takes is not known."""
        reading = AllocationReading(source=Source(name="allocation", status="ok"), sets=(told,))
        own_prices = self._prices is not None and bool(unpriced(reading, self._prices))
        has_idle = any(a.special == IDLE for a in told.allocations)
        if has_idle and not own_prices:
            return told
        if self._kubecost.flavour == "opencost":
            hours = await self._kubecost.asset_hours(told.start, told.end, self._deadline())
            assets = hours.get(told.start)
        if assets is None:
            return None
        if own_prices and self._prices is not None:
            reading = with_prices(reading, assets.node_hours(), self._prices)
            if reading.missing:
                return None
        priced = reading.sets[0]
        if any(a.special == IDLE for a in priced.allocations):
            return priced
        nodes = assets.management().nodes
        if nodes is None:
            return None
        used = Costs.sum(a.costs for a in priced.allocations)
        costs = Costs(cpu=nodes.cpu - used.cpu, ram=nodes.ram - used.ram, gpu=nodes.gpu - used.gpu)
        bare = Allocation(name=IDLE, start=told.start, end=told.end, costs=costs)
        return replace(priced, allocations=(*priced.allocations, bare))

    async def day(self, day: int) -> dict[str, Costs] | None:
        if self._prices is not None:
            return None
        reading = await self._kubecost.allocation(Window.past(day, day + DAY), ("namespace",), self._deadline())
        whole = reading.source.status == "ok" and any(a.special == IDLE for a in reading.allocations())
        return by_owner(reading.allocations()) if whole else None


class MetricHours:
    """Hours out of metrics alone, for clusters that push them."""

    def __init__(self, account: str, thanos: ThanosSource, timeout: float) -> None:
        self._account = account
        self._thanos = thanos
        self._timeout = timeout

    async def hours(self, start: int, end: int) -> HoursRead:
        hours = [hour for hour, _ in split(start, end, HOUR)]
        gate = asyncio.Semaphore(HOURS_AT_ONCE)

        async def one(hour: int) -> HourReading | SourceError | None:
            async with gate:
                try:
                    return await self._hour(hour)
                except SourceError as failure:
                    return failure

        read = dict(zip(hours, await asyncio.gather(*(one(hour) for hour in hours)), strict=True))
        failures = [str(said) for said in read.values() if isinstance(said, SourceError)]
        return HoursRead(
            {hour: said for hour, said in read.items() if isinstance(said, HourReading)},
            {hour: str(said or NOTHING_KNOWN) for hour, said in read.items() if not isinstance(said, HourReading)},
            failures[0] if failures else None,
        )

    async def _hour(self, hour: int) -> HourReading | None:
        """An hour, None where the metrics know nothing of it.

        Raises:
            SourceError
        """
        window = Window.past(hour, hour + HOUR)
        reading, management = await asyncio.gather(
            allocation_by_metrics(self._thanos, self._account, window, Deadline(self._timeout), METRIC_LABELS),
            management_by_metrics(self._thanos, self._account, window, Deadline(self._timeout)),
        )
        if not reading.usable:
            return None
        unknown = (*reading.missing, *(("management",) if management.usd is None else ()))
        return HourReading(
            hour=hour,
            allocations=tuple(reading.allocations()),
            seconds=int(HOUR * (reading.source.coverage or 0.0)),
            control=None,
            management=management.usd,
            unknown=unknown,
            not_covered=reading.not_covered,
        )

    async def day(self, day: int) -> dict[str, Costs] | None:
        window = Window.past(day, day + DAY)
        reading = await allocation_by_metrics(self._thanos, self._account, window, Deadline(self._timeout))
        return by_owner(reading.allocations()) if reading.source.status == "ok" else None


async def management_hours(
    thanos: ThanosSource, account: str, hours: Sequence[int], seconds_a_call: float
) -> dict[int, float]:
    """Management of each hour as far as metrics tell it."""
    gate = asyncio.Semaphore(HOURS_AT_ONCE)

    async def one(hour: int) -> float | None:
        async with gate:
            try:
                window = Window.past(hour, hour + HOUR)
                return (await management_by_metrics(thanos, account, window, Deadline(seconds_a_call))).usd
            except SourceError:
                return None

    told = zip(hours, await asyncio.gather(*(one(hour) for hour in hours)), strict=True)
    return {hour: usd for hour, usd in told if usd is not None}


def node_kinds(assets: Sequence[Asset]) -> dict[str, tuple[str, str]]:
    """Instance type and zone by node."""
    return {asset.name: (asset.instance_type, asset.zone) for asset in assets if asset.type == "node"}


def _none(start: int, end: int, failure: SourceError) -> HoursRead:
    return HoursRead({}, {hour: str(failure) for hour, _ in split(start, end, HOUR)}, str(failure))
