"""Assets, metrics and metadata of an account."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from math import ceil

from msgspec import Struct

from metroculus.codes import INVALID
from metroculus.cost_model.assets import Asset, merge, totals
from metroculus.cost_model.reading import SourceReport
from metroculus.metroculus_api.controllers.stored import share_of
from metroculus.sources.accounts import Accounts
from metroculus.sources.errors import NoSource, SourceError
from metroculus.storage.engine import StoreError
from metroculus.storage.store import Store
from metroculus.wire import sources_of, window_of, wired
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError
from tools.window import DAY, Window

log = logging.getLogger("inventory")

MAX_POINTS = 1000
MAX_SERIES = 20_000
MIN_STEP_SECONDS = 60

ALL_METRICS = (
    "kubecost_cluster_management_cost",
    "kubecost_load_balancer_cost",
    "node_total_hourly_cost",
    "node_cpu_hourly_cost",
    "node_ram_hourly_cost",
    "node_gpu_hourly_cost",
    "pv_hourly_cost",
    "container_cpu_allocation",
    "container_memory_allocation_bytes",
    "container_gpu_allocation",
    "kubecost_network_zone_egress_cost",
    "kubecost_network_region_egress_cost",
    "kubecost_network_internet_egress_cost",
    "kubecost_pod_network_egress_bytes_total",
)


class _StoredDays(Struct, frozen=True):
    days: frozenset[int]
    assets: tuple[Asset, ...]
    source: SourceReport


def _without_days(window: Window, days: frozenset[int]) -> list[tuple[int, int]]:
    """The stretches of a window that are not of stored days."""
    return [(start, end) for start, end in window.days() if start not in days]


class InventoryController:
    """What is there, rather than what it adds up to."""

    def __init__(self, accounts: Accounts, store: Store | None, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._store = store
        self._clock = clock

    async def assets(self, account: str, window: Window, kind: str | None, deadline: Deadline) -> structs.Assets:
        """Assets of a window, of one type or all: of stored days out of the store, of the rest live.

        Raises:
            NoSource: nothing is configured or stored that could answer.
            SourceError: the live source failed, and nothing is stored.
        """
        stored = await self._stored(account, window, deadline)
        rest = window.only(_without_days(window, stored.days)) if stored else window
        found, sources = list(stored.assets) if stored else [], [stored.source] if stored else []
        if rest.stretches:
            try:
                live, source = await self._live(account, rest, deadline)
            except (SourceError, NoSource) as failure:
                if stored is None:
                    raise
                live, source = (), SourceReport(name="assets", status="unavailable", error=str(failure))
            found += live
            sources.append(source)
        kept = [asset for asset in merge(found) if kind in (None, asset.type)]

        def of(name: str) -> tuple[structs.Asset, ...]:
            return wired((asset for asset in kept if asset.type == name), structs.Asset)

        known = any(source.status in ("ok", "partial") for source in sources)
        by_type = totals(kept)
        return structs.Assets(
            cloud_account_id=account,
            start_date=window.start,
            end_date=window.end,
            window=window_of(window),
            currency=await (await self._accounts.of(account)).currency(deadline),
            complete=all(source.status == "ok" for source in sources),
            sources=sources_of(sources),
            nodes=of("node"),
            disks=of("disk"),
            load_balancers=of("load_balancer"),
            network=of("network"),
            cluster_management=of("cluster_management"),
            totals=by_type,
            total_cost=sum(by_type.values()) if known else None,
        )

    async def _live(self, account: str, window: Window, deadline: Deadline) -> tuple[Sequence[Asset], SourceReport]:
        """Assets that the account's source tells of.

        Raises:
            NoSource, SourceError
        """
        reading = await (await self._accounts.of(account)).assets(window, deadline)
        return reading.assets, reading.source

    async def _stored(self, account: str, window: Window, deadline: Deadline) -> _StoredDays | None:
        """The stored days that lie in a window; None where there are none, or the store cannot be asked."""
        store = self._store
        if store is None or window.seconds < DAY:
            return None
        try:
            days = await store.ask(share_of(deadline), store.assets.days, account, window.start, window.end)
            assets = await store.ask(share_of(deadline), store.assets.read, account, list(days.values()))
        except StoreError as failure:
            log.warning("the store failed: %s", failure)
            return None
        if not days:
            return None
        share = len(days) * DAY / window.seconds
        fetched = min(day.fetched_at for day in days.values())
        source = SourceReport(name="store", status="ok", fetched_at=fetched, coverage=share)
        return _StoredDays(frozenset(days), tuple(assets), source)

    async def metrics(
        self, account: str, window: Window, names: Sequence[str], step: int | None, deadline: Deadline
    ) -> structs.Metrics:
        """The account's series of some metrics, no series longer than a thousand points.

        Raises:
            NoMetricsSource, SourceError
        """
        sources = await self._accounts.of(account)
        sources.require_metrics()
        chosen = fitting_step(window.seconds, step)
        wanted = tuple(names) or ALL_METRICS
        found = await asyncio.gather(*(sources.series(name, window, chosen, deadline) for name in wanted))
        if sum(len(series) for series, _ in found) > MAX_SERIES:
            raise ApiError(INVALID, f"metrics: more than {MAX_SERIES} series; name fewer", ["metrics"])
        warnings = tuple(dict.fromkeys(text for _, texts in found for text in texts))
        some = any(series for series, _ in found)
        source = SourceReport(
            name="thanos",
            status="partial" if warnings else "ok" if some else "no_data",
            fetched_at=int(self._clock()),
            warnings=warnings,
        )
        return structs.Metrics(
            cloud_account_id=account,
            start_date=window.start,
            end_date=window.end,
            window=window_of(window),
            step=chosen,
            complete=source.status == "ok",
            sources=sources_of((source,)),
            metrics={
                name: wired(series, structs.MetricSeries) for name, (series, _) in zip(wanted, found, strict=True)
            },
        )

    async def metadata(self, account: str, deadline: Deadline) -> structs.Metadata:
        """Quotas, workloads and nodes as they are now.

        Raises:
            NoMetricsSource, SourceError
        """
        now = int(self._clock())
        found = await (await self._accounts.of(account)).metadata(now, deadline)
        status = "ok" if found.nodes or found.workloads else "no_data"
        source = SourceReport(name="thanos", status="ok" if status == "ok" else "no_data", fetched_at=now)
        return structs.Metadata(
            cloud_account_id=account,
            fetched_at=now,
            sources=sources_of((source,)),
            quotas=wired(found.quotas, structs.QuotaRow),
            workloads=wired(found.workloads, structs.WorkloadRow),
            nodes=wired(found.nodes, structs.NodeRow),
        )


def fitting_step(seconds: int, asked: int | None) -> int:
    """The step asked for, made coarser where a series would have more than a thousand points."""
    least = max(MIN_STEP_SECONDS, ceil(seconds / MAX_POINTS))
    if asked is not None and asked >= least:
        return asked
    return least + -least % MIN_STEP_SECONDS
