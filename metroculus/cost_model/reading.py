"""What one source said of a window, and what became of asking it: sets of allocations, management, stored hours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal

from msgspec import Struct, structs

from metroculus.cost_model.allocation import IDLE, Allocation
from metroculus.cost_model.assets import Asset, AssetType
from metroculus.cost_model.columns import Allocations
from metroculus.cost_model.components import GIB, Amounts
from tools.window import HOUR, Window

Status = Literal["ok", "stale", "partial", "no_data", "unavailable", "not_configured"]

FINE: tuple[Status, ...] = ("ok", "not_configured")
"""The statuses of a source that gave all that it was asked for, or was not to be asked."""

COVERAGE_THRESHOLD = 0.99
"""Below this share of the final time a source is ``partial``."""

DISAGREEMENT_USD = 0.01
"""An upstream total further than this from the sum of its parts is told of."""


LARGE_ROWS = 500
"""Work on more rows than this, some milliseconds, belongs on a thread: on the loop it would hold everybody else up."""


class SourceReport(Struct, frozen=True, kw_only=True):
    """What became of asking one source; ``coverage`` is time with data over time asked."""

    name: str
    status: Status
    fetched_at: int | None = None
    coverage: float | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    residual_bound: float | None = None
    """USD by which its figures may differ from its own totals; None where they do not, or there are none."""

    @property
    def fine(self) -> bool:
        """Whether it gave all that it was asked for, or was not to be asked."""
        return self.status in FINE


@dataclass(frozen=True)
class AllocationSet:
    """What a source said of ``[start, end)``; no allocations at all means that it knows nothing of it.

    ``allocations`` may be given as rows.
    """

    start: int
    end: int
    allocations: Sequence[Allocation] = ()
    quarantined: int = 0
    """Rows that could not be read, and are not in the sums."""
    disagreement: float = 0.0
    """USD by which the source's own totals differ from the sum of their parts."""
    seconds: int | None = None
    """Time that it covers, where that is known apart from the allocations: stored ones are sums of many hours."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "allocations", Allocations.of(self.allocations))

    @property
    def columns(self) -> Allocations:
        return Allocations.of(self.allocations)

    def covered(self, until: int) -> int:
        """Seconds before ``until`` in which anything ran.

        Idle alone says nothing: where an upstream knows nodes and has lost their containers, all of their cost is idle.
        """
        if self.seconds is not None:
            return max(0, min(self.seconds, until - self.start))
        columns = self.columns
        ran = columns.ran if columns.ran.any() else slice(None)
        return sum(b - a for a, b in union(columns.spans(self.start, min(self.end, until), ran)))

    @property
    def without_containers(self) -> bool:
        """Whether nodes are known and nothing that ran on them; nodes may have no price."""
        columns = self.columns
        return bool(columns.is_special(IDLE).any()) and not columns.ran.any()


def union(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The stretches that sorted spans cover together; empty and reversed ones cover nothing."""
    open_start: int | None = None
    open_end = 0
    for start, end in spans:
        if start >= end:
            continue
        if open_start is None or start > open_end:
            if open_start is not None:
                yield open_start, open_end
            open_start, open_end = start, end
        else:
            open_end = max(open_end, end)
    if open_start is not None:
        yield open_start, open_end


def coverage(sets: Iterable[AllocationSet], window: Window) -> float | None:
    """Share of a window's final time that the sets tell of; None where nothing that was asked for is final yet."""
    if not window.final_seconds:
        return None
    covered = sum(one.covered(window.final_until) for one in sets)
    return min(1.0, covered / window.final_seconds)


class AllocationReading(Struct, frozen=True, kw_only=True):
    """What one source said of allocations. ``sets`` is empty unless the status is ``ok`` or ``partial``.

    ``missing`` are components that the source should tell and could not; ``not_covered`` those that it has no means
    to tell.
    """

    source: SourceReport
    sets: tuple[AllocationSet, ...] = ()
    missing: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return self.source.status in ("ok", "partial")

    def allocations(self) -> Allocations:
        """Those of all sets."""
        return Allocations.joined(one.columns for one in self.sets)

    def has_idle(self) -> bool:
        """Whether the source told idle itself."""
        return any(bool(one.columns.is_special(IDLE).any()) for one in self.sets)


class NodeCosts(Struct, frozen=True):
    """What all nodes cost in the window, by resource, adjustments included; USD."""

    cpu: float
    ram: float
    gpu: float


class ManagementReading(Struct, frozen=True, kw_only=True):
    """What one source said of management cost, and of nodes where it knows them.

    ``covers`` is False where the source never has management cost (OpenCost's assets): then ``usd`` is None and
    nothing failed.
    """

    source: SourceReport
    usd: float | None = None
    covers: bool = True
    nodes: NodeCosts | None = None


class AssetsReading(Struct, frozen=True, kw_only=True):
    """Assets of a window, and what became of asking for them.

    ``tells_management`` is False where the source's assets never have cluster management (OpenCost's). ``unreadable``
    are the types of assets that are not counted, None for one that does not say its type.
    """

    source: SourceReport
    assets: tuple[Asset, ...] = ()
    tells_management: bool = True
    unreadable: frozenset[AssetType | None] = frozenset()

    def of_cluster(self, name: str) -> AssetsReading:
        """Those of one cluster, and what does not say whose it is."""
        return structs.replace(self, assets=tuple(asset for asset in self.assets if asset.cluster in (name, "")))

    def node_hours(self) -> Amounts | None:
        """Core, GiB and GPU hours of all nodes; None where there are none or one does not tell its size."""
        nodes = [a for a in self.assets if a.type == "node"]
        if self.unreadable & {"node", None}:
            return None
        if not nodes or any(node.cpu_cores is None or node.ram_bytes is None for node in nodes):
            return None
        return Amounts(
            sum((node.cpu_cores or 0.0) * node.hours for node in nodes),
            sum((node.ram_bytes or 0.0) / GIB * node.hours for node in nodes),
            sum((node.gpu_count or 0.0) * node.hours for node in nodes),
        )

    def node_kinds(self) -> dict[str, tuple[str, str]]:
        """Instance type and zone by node."""
        return {asset.name: (asset.instance_type, asset.zone) for asset in self.assets if asset.type == "node"}

    def management(self) -> ManagementReading:
        """Cluster management and node costs, as far as these assets tell them."""
        covers = self.tells_management
        if self.source.status not in ("ok", "partial"):
            return ManagementReading(source=self.source, covers=covers)
        known = covers and not self.unreadable & {"cluster_management", None}
        usd = sum(a.total_cost for a in self.assets if a.type == "cluster_management") if known else None
        priced = [] if self.unreadable & {"node", None} else [a.priced for a in self.assets if a.type == "node"]
        nodes = NodeCosts(*(sum(column) for column in zip(*priced, strict=True))) if priced else None
        return ManagementReading(source=self.source, usd=usd, covers=covers, nodes=nodes)


class StretchReading(Struct, frozen=True):
    """What another source told of the part of a window that the first one does not have."""

    allocation: AllocationReading
    management: ManagementReading | None


class StoredReading(Struct, frozen=True):
    """What the committed hours of a window say; their source is the store, ``rest`` is what they leave to others."""

    allocation: AllocationReading
    management: ManagementReading
    rest: Window


def judge_sets(
    name: str,
    sets: Sequence[AllocationSet],
    window: Window,
    fetched_at: int,
    warnings: Sequence[str] = (),
    failed: str | None = None,
    residual: float | None = None,
) -> AllocationReading:
    """A reading of the sets that came back, with the status that they earn.

    Args:
        failed: why some of the window could not be read at all.
        residual: USD by which the source's own totals of the same time differ from the rows, where that is too much.
    """
    blind: list[AllocationSet] = []
    readable: list[AllocationSet] = []
    for one in sets:
        if len(one.allocations):
            (blind if one.without_containers else readable).append(one)
    kept = tuple(sorted(readable, key=lambda one: one.start))
    share = coverage(kept, window)
    quarantined = sum(one.quarantined for one in sets)
    notes = list(warnings)
    unknown = sorted({component for one in kept for component in one.columns.unknown_components()})
    disagreement = fsum(one.disagreement for one in kept)
    if quarantined:
        notes.append(f"{quarantined} rows could not be read and are not counted")
    if unknown:
        notes.append(f"rows without a value for: {', '.join(unknown)}")
    if abs(disagreement) > DISAGREEMENT_USD:
        notes.append(f"the source's totals differ from the sum of their parts by {disagreement:.5f}; parts are used")
    if blind:
        notes.append(f"{sum(one.end - one.start for one in blind) / HOUR:.1f} hours have nodes and no containers")
    if residual is not None:
        notes.append(f"the rows differ from the source's own totals of the same time by {residual:.5f}")
    if any(_negative_idle(one.columns) for one in kept):
        notes.append("idle is negative")
    status: Status = "ok"
    if not kept:
        status = "unavailable" if failed else "ok" if window.still_running else "no_data"
    elif blind or not _whole(sets, share, failed, residual):
        status = "partial"
    source = SourceReport(
        name=name, status=status, fetched_at=fetched_at, coverage=share if kept else 0.0, error=failed,
        warnings=tuple(notes), residual_bound=residual,
    )  # fmt: skip
    return AllocationReading(source=source, sets=kept, missing=tuple(unknown))


def _whole(sets: Sequence[AllocationSet], share: float | None, failed: str | None, residual: float | None) -> bool:
    """Whether sets are all of the time that they are of, every row with every cost, and agree with their totals."""
    flawed = any(one.quarantined or one.columns.unknown_components() for one in sets)
    return not (failed or flawed or residual is not None) and (share is None or share >= COVERAGE_THRESHOLD)


def missing_stretches(reading: AllocationReading, window: Window) -> tuple[tuple[int, int], ...]:
    """The stretches of a window's final time of which a source has no set at all, or keeps none any more."""
    if not reading.usable:
        return ()
    told = list(union(sorted((one.start, one.end) for one in reading.sets)))
    gaps = []
    for start, end in window.stretches:
        at, until = start, min(end, window.final_until)
        for first, last in told:
            if first >= until:
                break
            if first > at:
                gaps.append((at, first))
            at = max(at, last)
        if at < until:
            gaps.append((at, until))
    return tuple(gaps)


def judged_by_part(
    reading: AllocationReading, window: Window, gaps: Sequence[tuple[int, int]], by: str
) -> AllocationReading:
    """A reading judged by the part of the window that it tells of, where another source tells of the rest.

    Args:
        gaps: the stretches of which it has no set, from ``missing_stretches``.
        by: the name of the source that tells them.
    """
    part = window.only(without(window.stretches, gaps))
    share = coverage(reading.sets, part)
    whole = _whole(reading.sets, share, reading.source.error, reading.source.residual_bound)
    hours = sum(end - start for start, end in gaps) / HOUR
    note = f"{hours:g} hours are not kept here and are told by {by}"
    source = structs.replace(
        reading.source,
        status="ok" if whole else "partial",
        coverage=share,
        warnings=(*reading.source.warnings, note),
    )
    return structs.replace(reading, source=source)


def without(stretches: Iterable[tuple[int, int]], gaps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of time less others, all in order."""
    left = list(stretches)
    for start, end in gaps:
        cut = [piece for a, b in left for piece in ((a, min(b, start)), (max(a, end), b))]
        left = [(a, b) for a, b in cut if a < b]
    return left


def _negative_idle(allocations: Allocations) -> bool:
    idle = allocations.is_special(IDLE)
    return bool(idle.any() and (allocations.costs[:, idle].sum(axis=0) < 0).any())
