"""Assets: nodes, disks, load balancers, network and cluster management, each with what it cost in a window."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import fsum
from operator import attrgetter
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

AssetType = Literal["node", "disk", "load_balancer", "network", "cluster_management"]

UPSTREAM_TYPES: dict[str, AssetType] = {
    "Node": "node",
    "Disk": "disk",
    "LoadBalancer": "load_balancer",
    "Network": "network",
    "ClusterManagement": "cluster_management",
}


class Asset(Struct, frozen=True, kw_only=True):
    """One asset. ``total_cost`` holds the adjustment already; hours are of the time that it existed.

    Utilisations are shares (1.0 is full), None where the source does not know them.
    """

    type: AssetType
    name: str
    cluster: str = ""
    provider: str = ""
    provider_id: str = ""
    instance_type: str = ""
    zone: str = ""
    spot: bool = False
    cpu_cores: float | None = None
    ram_bytes: float | None = None
    gpu_count: float | None = None
    hours: float = 0.0
    last_seen: int | None = None
    """Unix seconds; None where the source does not say."""
    cpu_cost: float = 0.0
    ram_cost: float = 0.0
    gpu_cost: float = 0.0
    adjustment: float = 0.0
    total_cost: float = 0.0
    cpu_utilization: float | None = None
    ram_utilization: float | None = None
    storage_bytes: float | None = None
    storage_class: str = ""
    volume_name: str = ""
    claim_name: str = ""
    claim_namespace: str = ""
    ip: str = ""

    @property
    def priced(self) -> tuple[float, float, float]:
        """Cpu, ram and gpu cost with discount and adjustment spread over them: they add up to ``total_cost``."""
        listed = self.cpu_cost + self.ram_cost + self.gpu_cost
        if not listed:
            return self.total_cost, 0.0, 0.0
        if not self.adjustment:
            share = self.total_cost / listed
            return self.cpu_cost * share, self.ram_cost * share, self.gpu_cost * share
        compute = self.cpu_cost + self.ram_cost
        gpu = self.gpu_cost if compute else self.total_cost
        share = (self.total_cost - gpu) / compute if compute else 0.0
        return self.cpu_cost * share, self.ram_cost * share, gpu


_AMOUNTS = ("hours", "cpu_cost", "ram_cost", "gpu_cost", "adjustment", "total_cost")
"""What the parts of a thing's time add up to."""
_amounts = attrgetter(*_AMOUNTS)


def merge(assets: Iterable[Asset]) -> tuple[Asset, ...]:
    """One asset a thing, out of what several windows said of it; dearest first."""
    found: dict[tuple[str, str, str, str], list[Asset]] = defaultdict(list)
    for asset in assets:
        found[(asset.cluster, asset.type, asset.provider_id, asset.name)].append(asset)
    merged = [_merged(parts) for parts in found.values()]
    return tuple(sorted(merged, key=lambda asset: (-asset.total_cost, asset.name)))


def _merged(parts: list[Asset]) -> Asset:
    if len(parts) == 1:
        return parts[0]
    last = parts[-1]
    return replace(
        last,
        last_seen=max((p.last_seen for p in parts if p.last_seen is not None), default=None),
        cpu_utilization=_mean([(p.cpu_utilization, p.hours) for p in parts]),
        ram_utilization=_mean([(p.ram_utilization, p.hours) for p in parts]),
        **dict(zip(_AMOUNTS, map(fsum, zip(*map(_amounts, parts), strict=True)), strict=True)),
    )


def scaled(asset: Asset, share: float) -> Asset:
    """The asset for a part of its time."""
    return replace(asset, **{name: getattr(asset, name) * share for name in _AMOUNTS})


def _mean(values: list[tuple[float | None, float]]) -> float | None:
    """Weighted by hours; None where any is unknown."""
    hours = fsum(weight for _, weight in values)
    if not hours or any(value is None for value, _ in values):
        return None
    return fsum(value * weight for value, weight in values if value is not None) / hours


def totals(assets: Iterable[Asset]) -> dict[str, float]:
    """USD by type."""
    by_type: dict[str, list[float]] = defaultdict(list)
    for asset in assets:
        by_type[asset.type].append(asset.total_cost)
    return {kind: fsum(costs) for kind, costs in sorted(by_type.items())}
