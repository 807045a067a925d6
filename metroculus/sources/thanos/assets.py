"""Assets out of metrics alone: nodes, disks, load balancers, network and management, each with its integral."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from metroculus.cost_model.assets import Asset, AssetType, merge
from metroculus.cost_model.reading import SourceReport
from metroculus.sources.source import NodeSpecification
from metroculus.sources.thanos import promql
from metroculus.sources.thanos.chunk import Chunk, SeriesCoverage, judged, open_parts
from metroculus.sources.thanos.client import Labels, Querier, Samples
from metroculus.sources.thanos.costs import GIB, volume_prices
from metroculus.sources.thanos.usage import metadata
from tools.deadline import Deadline
from tools.window import Window


async def assets_by_metrics(
    thanos: Querier, account: str, window: Window, deadline: Deadline
) -> tuple[tuple[Asset, ...], SourceReport]:
    """Every asset that the metrics tell of, and what became of asking.

    Raises:
        SourceError
    """
    tenant = thanos.tenant(account)

    async def read(chunk: Chunk) -> tuple[list[Asset], SeriesCoverage]:
        share, enough = await chunk.coverage()
        readers = (_nodes, _disks, _balancers, _management)
        kinds = await asyncio.gather(*(reader(chunk) for reader in readers))
        return [asset for kind in kinds for asset in kind], (
            share * chunk.seconds * chunk.share,
            enough,
            chunk.warnings,
        )

    async def read_day(start: int, end: int) -> list[tuple[list[Asset], SeriesCoverage]]:
        return await asyncio.gather(*(read(one) for one in await open_parts(thanos, tenant, start, end, deadline)))

    specifications, days = await asyncio.gather(
        metadata(thanos, account, window.end - 1, deadline),
        asyncio.gather(*(read_day(start, end) for start, end in window.days())),
    )
    parts = [part for day in days for part in day]
    source = judged(window, [seen for _, seen in parts], thanos.now())
    if source.status == "no_data":
        return (), source
    known = {node.name: node for node in specifications.nodes}
    return merge(_specified(asset, known) for assets, _ in parts for asset in assets), source


async def _hours(chunk: Chunk, rate: str, metric: str) -> Samples:
    """Hours in which each thing was there."""
    step = chunk.step(metric)
    return await chunk.ask(f"count_over_time(({rate})[{chunk.seconds}s:{step}s]) * {step} / 3600")


async def _priced(
    chunk: Chunk, kind: AssetType, rate: str, name: Callable[[Labels], str], *metrics: str, **more: Any
) -> list[Asset]:
    costs, hours = await asyncio.gather(chunk.ask(chunk.integral(rate, *metrics)), _hours(chunk, rate, metrics[0]))
    there = {name(labels): value for labels, value in hours}
    return [
        Asset(
            type=kind,
            cluster=chunk.cluster,
            name=name(labels),
            total_cost=usd,
            hours=there.get(name(labels), 0.0),
            **more,
        )
        for labels, usd in costs
    ]


async def _nodes(chunk: Chunk) -> list[Asset]:
    metric = "node_total_hourly_cost"
    if metric not in chunk.intervals:
        return []
    rate = chunk.now(metric, "node")
    return await _priced(chunk, "node", rate, lambda labels: labels.get("node", ""), metric)


async def _disks(chunk: Chunk) -> list[Asset]:
    capacity, price = "kube_persistentvolume_capacity_bytes", "pv_hourly_cost"
    if capacity not in chunk.intervals or price not in chunk.intervals:
        return []
    tenant = chunk.tenant
    sizes_now = f"({chunk.now(capacity, 'persistentvolume')} / {GIB})"
    rate = promql.priced(sizes_now, volume_prices(chunk), tenant, "persistentvolume")
    claims = promql.selector("kube_persistentvolumeclaim_info", tenant)
    identity = tenant.by("volumename", "namespace", "persistentvolumeclaim", "storageclass")
    sized = promql.selector(capacity, tenant)

    def name(labels: Labels) -> str:
        return labels.get("persistentvolume", "")

    disks, found, sizes = await asyncio.gather(
        _priced(chunk, "disk", rate, name, capacity, price),
        chunk.ask(f"max by ({identity}) (max_over_time({claims}[{chunk.seconds}s]))"),
        chunk.ask(f"max by ({tenant.by('persistentvolume')}) (max_over_time({sized}[{chunk.seconds}s]))"),
    )
    claimed = {labels.get("volumename", ""): labels for labels, _ in found}
    size = {labels.get("persistentvolume", ""): value for labels, value in sizes}
    return [_claimed(disk, claimed.get(disk.name, {}), size.get(disk.name)) for disk in disks]


def _claimed(disk: Asset, claim: Labels, size: float | None) -> Asset:
    claim_name = claim.get("persistentvolumeclaim", "")
    return Asset(
        type="disk",
        cluster=disk.cluster,
        name=disk.name,
        hours=disk.hours,
        total_cost=disk.total_cost,
        storage_bytes=size,
        storage_class=claim.get("storageclass", ""),
        volume_name=disk.name if claim_name else "",
        claim_name=claim_name,
        claim_namespace=claim.get("namespace", ""),
    )


async def _balancers(chunk: Chunk) -> list[Asset]:
    metric = "kubecost_load_balancer_cost"
    if metric not in chunk.intervals:
        return []
    rate = promql.total(
        chunk.now(metric, "namespace", "service_name", "ingress_ip"), chunk.tenant, "namespace", "service_name"
    )

    def name(labels: Labels) -> str:
        return f"{labels.get('namespace', '')}/{labels.get('service_name', '')}"

    return await _priced(chunk, "load_balancer", rate, name, metric)


async def _management(chunk: Chunk) -> list[Asset]:
    metric = "kubecost_cluster_management_cost"
    if metric not in chunk.intervals:
        return []
    rate = chunk.now(metric)
    return await _priced(chunk, "cluster_management", rate, lambda labels: "cluster-management", metric)


def _specified(asset: Asset, nodes: dict[str, NodeSpecification]) -> Asset:
    """A node with what kube-state-metrics last said of it."""
    node = nodes.get(asset.name) if asset.type == "node" else None
    if node is None:
        return asset
    return Asset(
        type="node",
        cluster=asset.cluster,
        name=asset.name,
        hours=asset.hours,
        total_cost=asset.total_cost,
        provider_id=node.provider_id,
        instance_type=node.instance_type,
        zone=node.zone,
        spot=bool(node.spot),
        cpu_cores=node.cpu_cores,
        ram_bytes=node.ram_bytes,
        gpu_count=node.gpu_count,
    )
