"""What every cost source is to the rest of the product: a protocol, with what each can tell as declared capabilities.

A source is one account's: whoever holds it asks without naming the account. ``docs/extending.md`` walks through adding
one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto

from msgspec import Struct

from metroculus.cost_model.allocation import Costs
from metroculus.cost_model.columns import Allocations, by_owner
from metroculus.cost_model.cutting import CutHour
from metroculus.cost_model.live import LivePoint
from metroculus.cost_model.reading import (
    AllocationReading,
    AllocationSet,
    AssetsReading,
    ManagementReading,
    SourceReport,
)
from metroculus.cost_model.savings import ContainerUsage, Recommendation
from metroculus.cost_model.statement import Question
from metroculus.sources.clusters import Clusters
from metroculus.sources.errors import SILENCE, SourceError
from tools.deadline import Deadline
from tools.window import DAY, HOUR, Window, split

METRIC_NAME = re.compile(r"(kubecost|opencost|node|pv|container|kube)_[a-z0-9_]+")
"""The metrics that callers may name."""
LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

HOURS_AT_ONCE = 4
"""Hours of one account that a source is asked for side by side, where it tells them one by one."""

NOTHING_KNOWN = "the source knows nothing of this hour"
NOT_PUSHED = "nothing was pushed of this hour"
NO_CONTAINERS = "the source knows nodes and no containers"


class Capability(Enum):
    """What a source can tell."""

    ALLOCATIONS = auto()
    DAY_SET = auto()
    """What a whole day of its own cost by owner, apart from its hours."""
    ASSETS = auto()
    MANAGEMENT = auto()
    SAVINGS = auto()
    PLACEMENT = auto()
    """Which node each pod ran on."""
    METADATA = auto()
    """Quotas, requests, limits and nodes as they are now."""
    SERIES = auto()
    """Samples of single metrics."""
    LIVE = auto()
    """What it costs an hour at single moments."""
    BUDGETS = auto()
    """Budgets that it keeps itself, and what it expects of the days to come."""


class HourSet(Struct, frozen=True, kw_only=True):
    """What a source said of one hour."""

    set: AllocationSet
    seconds: int
    """Time of the hour that it covers."""
    control: Allocations | None = None
    """The source's own totals of the rows, by cluster; None where it has none."""
    unknown: tuple[str, ...] = ()
    """Components that it should tell and could not."""
    not_covered: tuple[str, ...] = ()
    """Components that it has no means to tell."""
    cut_from: tuple[int, int] | None = None
    """The longer time that it was cut from; None where the source told the hour itself."""
    told_at: int = 0
    """When the upstream was asked (Unix seconds), where that was not just now."""
    gone: bool = False
    """Whether the upstream was asked for it again since, and told it no more."""

    @staticmethod
    def cut(hour: int, of: CutHour, control: Allocations | None = None) -> HourSet:
        """An hour out of longer sets."""
        return HourSet(
            set=of.set, seconds=of.set.covered(hour + HOUR), control=control, cut_from=(of.told_from, of.told_until)
        )


class HourSets(Struct, frozen=True):
    """The hours that a source told, and why the others were not; ``failure`` where that is the source's fault."""

    hours: Mapping[int, HourSet]
    missing: Mapping[int, str] = {}
    failure: str | None = None
    silent: bool = False
    """Whether it did not answer at all, and was asked no further."""


class SavingsReading(Struct, frozen=True):
    """What a source says could be saved; ``by_category`` where it has sums of its own, USD a month."""

    source: SourceReport
    recommendations: tuple[Recommendation, ...] = ()
    by_category: dict[str, float] | None = None
    usages: tuple[ContainerUsage, ...] = ()
    """What the recommendations were worked out of, where they were."""


class UpstreamBudget(Struct, frozen=True, kw_only=True):
    """A budget that a source keeps itself; money in its currency, None where it does not say."""

    id: str
    name: str
    scope: dict[str, tuple[str, ...]]
    """In its own words: names by what they are names of."""
    period: str
    amount: float | None
    spent: float | None
    start: int | None
    end: int | None


class UpstreamForecast(Struct, frozen=True, kw_only=True):
    """What a source expects of the days in ``[start, end)``."""

    start: int
    end: int
    expected: float
    low: float | None
    high: float | None


class UpstreamBudgets(Struct, frozen=True):
    budgets: tuple[UpstreamBudget, ...] = ()
    forecast: UpstreamForecast | None = None


class Quota(Struct, frozen=True):
    """One resource of one namespace's quota; cores, bytes or a count."""

    namespace: str
    name: str
    resource: str
    hard: float | None
    used: float | None


class WorkloadResources(Struct, frozen=True):
    """Requests and limits of a workload's containers together, now; cores and bytes, None where not set."""

    namespace: str
    controller: str
    controller_kind: str
    pods: int
    cpu_request: float | None
    cpu_limit: float | None
    ram_request: float | None
    ram_limit: float | None


class NodeSpecification(Struct, frozen=True):
    name: str
    instance_type: str
    zone: str
    provider_id: str
    spot: bool | None
    cpu_cores: float | None
    ram_bytes: float | None
    gpu_count: float | None


class Metadata(Struct, frozen=True):
    """What a cluster is made of, as kube-state-metrics last said."""

    quotas: tuple[Quota, ...]
    workloads: tuple[WorkloadResources, ...]
    nodes: tuple[NodeSpecification, ...]


class Series(Struct, frozen=True):
    """One series of a metric: labels as stored, ``[[Unix seconds, value], …]``."""

    labels: dict[str, str]
    values: tuple[tuple[float, float], ...]


class CostSource:
    """One account's cost source. A method is called only where ``capabilities`` names what it tells.

    Every method raises SourceError where the source fails; what it could not say is a value of the reading.
    """

    name: str
    """What it is called in a statement's ``sources`` as a source of allocations."""
    assets_name = "assets"
    """What it is called there as a source of assets and management."""
    clusters: Clusters = Clusters()
    """Which of the upstream's clusters is the account's; whoever asks keeps its rows alone."""

    def unsupported(self, properties: Iterable[str]) -> tuple[str, ...]:
        """Of the properties that rows may be grouped by, those that it has no means to tell."""
        return ()

    def not_stored(self, properties: Iterable[str]) -> tuple[str, ...]:
        """Of the properties that it tells, those that its stored hours do not carry."""
        return ()

    async def capabilities(self, deadline: Deadline) -> frozenset[Capability]:
        """What it can tell; may ask the upstream what it is.

        Raises:
            SourceError
        """
        raise NotImplementedError

    @property
    def known_capabilities(self) -> frozenset[Capability]:
        """The capabilities as far as they are known without asking."""
        raise NotImplementedError

    async def allocations(self, question: Question, window: Window, deadline: Deadline) -> AllocationReading:
        """Allocations of a window, at least as fine as the question asks, unfiltered."""
        raise NotImplementedError

    async def hour_sets(self, start: int, end: int, seconds_a_call: float) -> HourSets:
        """Allocations of each hour of a stretch of one UTC day, row by row, for keeping.

        Raises:
            TooLarge, DeadlineExceeded: where a shorter stretch may be asked for.
        """
        return await self.hours_of(start, end, seconds_a_call, ("container",))

    async def hours_of(self, start: int, end: int, seconds_a_call: float, aggregate: tuple[str, ...]) -> HourSets:
        """Each hour out of ``allocations``, some at once; a failure is the reason of its hour."""
        gate = asyncio.Semaphore(HOURS_AT_ONCE)
        question = Question(cloud_account_id="", window=Window.past(start, end), detail="pod", aggregate=aggregate)
        silence: list[SourceError] = []

        async def one(hour: int) -> HourSet | SourceError | None:
            async with gate:
                if silence:
                    return silence[0]
                try:
                    reading = await self.allocations(question, Window.past(hour, hour + HOUR), Deadline(seconds_a_call))
                except SILENCE as failure:
                    silence.append(failure)
                    return failure
                except SourceError as failure:
                    return failure
            return _as_hour(reading) if reading.usable else None

        hours = [hour for hour, _ in split(start, end, HOUR)]
        read = dict(zip(hours, await asyncio.gather(*(one(hour) for hour in hours)), strict=True))
        failures = [str(said) for said in read.values() if isinstance(said, SourceError)]
        return HourSets(
            {hour: said for hour, said in read.items() if isinstance(said, HourSet)},
            {hour: str(said or NOTHING_KNOWN) for hour, said in read.items() if not isinstance(said, HourSet)},
            failures[0] if failures else None,
            bool(silence),
        )

    async def hours_of_days(self, start: int, end: int, seconds_a_call: float) -> Mapping[int, HourSet]:
        """The hours of a stretch cut out of the days that hold them: what a source still keeps when hours are gone.

        None where it has no such thing.
        """
        return {}

    async def day_shift(self, seconds_a_call: float) -> int:
        """Seconds after midnight UTC at which the source's own days begin, in whole hours."""
        return 0

    async def day_set(self, day: int, deadline: Deadline) -> dict[str, Costs] | None:
        """What a complete day of the source cost by owner and component; None where it does not have all of it."""
        question = Question(cloud_account_id="", window=Window.past(day, day + DAY))
        reading = self.clusters.of_reading(await self.allocations(question, question.window, deadline))
        whole = reading.source.status == "ok" and reading.has_idle()
        return by_owner(reading.allocations()) if whole else None

    async def assets(self, window: Window, deadline: Deadline) -> AssetsReading:
        """Assets of a window, one a thing."""
        raise NotImplementedError

    async def asset_hours(self, start: int, end: int, deadline: Deadline) -> Mapping[int, AssetsReading]:
        """Assets of each hour of a stretch of one UTC day, as far as the source tells hours apart."""
        hours = [hour for hour, _ in split(start, end, HOUR)]
        read = await asyncio.gather(*(self.assets(Window.past(hour, hour + HOUR), deadline) for hour in hours))
        return {hour: reading for hour, reading in zip(hours, read, strict=True) if reading.assets}

    async def node_kinds(self, start: int, end: int, deadline: Deadline) -> Mapping[int, AssetsReading]:
        """Assets by hour, good enough to say what each node is; by default those of the hours."""
        return await self.asset_hours(start, end, deadline)

    async def management(self, window: Window, deadline: Deadline) -> ManagementReading:
        """Cluster management of a window; by default out of the assets."""
        return self.clusters.of_assets(await self.assets(window, deadline)).management()

    async def currency(self, deadline: Deadline) -> str | None:
        """What its money is in (ISO 4217); None where it does not say."""
        return None

    async def savings(self, window: Window, utilization: float | None, deadline: Deadline) -> SavingsReading | None:
        """What could be saved; None where the upstream turns out to have no such thing."""
        raise NotImplementedError

    async def budgets(self, deadline: Deadline) -> UpstreamBudgets:
        """The budgets that it keeps itself, and its forecast."""
        raise NotImplementedError

    async def metadata(self, at: int, deadline: Deadline) -> Metadata:
        """Quotas, workloads and nodes as they were shortly before ``at``."""
        raise NotImplementedError

    async def live(self, start: int, end: int, deadline: Deadline) -> list[tuple[LivePoint, ...]]:
        """What it costs an hour at each whole minute of ``[start, end]`` of which anything is known, in order.

        A minute is a point for each of the account's clusters: each has prices of its own, or none.
        """
        raise NotImplementedError

    async def series(self, name: str, window: Window, step: int, deadline: Deadline) -> tuple[list[Series], list[str]]:
        """One metric's series of a window, and what the source warned of."""
        raise NotImplementedError


def _as_hour(reading: AllocationReading) -> HourSet:
    """A reading of one hour as what is kept of it."""
    sets = reading.sets
    joined = AllocationSet(sets[0].start, sets[-1].end, reading.allocations(), sum(one.quarantined for one in sets))
    return HourSet(
        set=joined,
        seconds=int(HOUR * (reading.source.coverage or 0.0)),
        unknown=tuple(sorted({*reading.missing, *joined.columns.unknown_components()})),
        not_covered=reading.not_covered,
    )


def worst(failures: Sequence[SourceError]) -> SourceError:
    """Of several failures the one to tell: a bad answer before silence before no connection."""
    return max(failures, key=lambda failure: failure.rank)
