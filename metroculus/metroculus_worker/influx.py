"""Sends committed hours and days of assets on to an InfluxDB, from an outbox that knows what was sent."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import fsum

from msgspec.structs import replace

from metroculus.config import InfluxConfig
from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.assets import Asset
from metroculus.cost_model.line_protocol import COST_FIELDS, cost_fields, point, resource_type, series_key, zero_point
from metroculus.metroculus_worker.metrics import WorkerMetrics
from metroculus.metroculus_worker.ownership import Lease, Owners
from metroculus.storage.engine import StoreError, TooManyRows
from metroculus.storage.influx import DAYS, HOURS, SentTime
from metroculus.storage.store import Store
from tools.http_client import CLIENT_FAILURES, HttpClient, TlsContext, post
from tools.window import DAY, HOUR

log = logging.getLogger("influx")

GROUPED_BY = ("namespace", "pod", "label:owner", "label:team")
ASSET_FIELDS = ("cpu_cores", "memory_gb", "storage_gb", "total_cost")
GB = 1e9
LINES_AT_ONCE = 5_000
STARTS_AT_ONCE = 24
"""Hours, or days of assets, of one cluster."""
CALL_SECONDS = 30.0
LEASE = "influx"
"""The name that the one worker owns that sends."""
BEYOND = b"beyond retention policy"
"""What InfluxDB says of points that are too old to be kept there."""

_Points = dict[str, dict[str, float]]
"""Fields by series."""


class NotTaken(Exception):
    """InfluxDB did not take points; says why, and never where it is."""


class InfluxRound:
    """One round sends all that is owed, the newest first; what fails is owed on.

    Args:
        owners: None where one worker leads all others, and alone makes rounds.
    """

    def __init__(
        self,
        store: Store,
        config: InfluxConfig,
        owners: Owners | None,
        metrics: WorkerMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._client = HttpClient(force_instance=True, max_clients=2)
        self._tls = TlsContext(config.ca)
        self._lease = Lease(store, owners, LEASE)
        self._running = asyncio.Lock()
        self._settled: dict[tuple[str, str], int] = {}
        """By measurement and account, as of which change all of it was sent."""

    async def send(self) -> None:
        """One round."""
        if self._config.url is None or self._running.locked():
            return
        async with self._running:
            try:
                if await self._lease.take():
                    await self._send(HOURS)
                    await self._send(DAYS)
                    self._metrics.influx_failing.set(0)
            except NotTaken as failure:
                self._metrics.influx_failing.set(1)
                log.warning("InfluxDB does not take what is sent: %s", failure)
            except (StoreError, OSError) as failure:
                log.warning("what is owed to InfluxDB cannot be read: %s", failure)

    async def close(self) -> None:
        self._client.close()
        await self._lease.release()

    async def _send(self, measurement: str) -> None:
        """Raises: NotTaken, StoreError"""
        changed = await self._store.run(self._store.influx_sent.newest_sequences, measurement)
        for account, sequence in changed.items():
            if self._settled.get((measurement, account)) == sequence:
                continue
            owed = await self._store.run(self._store.influx_sent.owed, measurement, account)
            for part in (owed[first : first + STARTS_AT_ONCE] for first in range(0, len(owed), STARTS_AT_ONCE)):
                await self._send_some(measurement, account, part)
            self._settled[measurement, account] = sequence

    async def _send_some(self, measurement: str, account: str, starts: Sequence[int]) -> None:
        """Some hours or days: their points, and 0 for the series that they had before and have no more."""
        hours = measurement == HOURS
        names, points_of = (COST_FIELDS, self._points_of_hours) if hours else (ASSET_FIELDS, self._points_of_days)
        found = await self._store.run(points_of, account, starts)
        before = await self._store.run(self._store.influx_sent.last, measurement, account, starts)
        lines, sent = [], []
        for start, (batch, points) in found.items():
            if batch == before[start].batch:
                continue
            lines += [point(of, fields, start) for of, fields in points.items()]
            lines += [zero_point(of, names, start) for of in before[start].series if of not in points]
            sent.append(SentTime(start, batch, before[start].version + 1, tuple(sorted(points))))
        for first in range(0, len(lines), LINES_AT_ONCE):
            await self._post("\n".join(lines[first : first + LINES_AT_ONCE]).encode())
        if sent:
            await self._store.run(self._store.influx_sent.note, measurement, account, sent, int(self._clock()))
            self._metrics.influx_sent.labels(measurement).inc(len(sent))

    def _points_of_hours(self, account: str, hours: Sequence[int]) -> dict[int, tuple[int, _Points]]:
        """By hour its batch and its points, of those that are whole. Blocks."""
        committed = self._store.ledger.committed(account, min(hours), max(hours) + HOUR)
        markers = {hour: committed.hours[hour] for hour in hours if hour in committed.hours}
        try:
            sums = self._store.history.sums(replace(committed, hours=markers), ("hour", *GROUPED_BY), Filters())
        except TooManyRows:
            if len(hours) == 1:
                raise
            half = len(hours) // 2
            return self._points_of_hours(account, hours[:half]) | self._points_of_hours(account, hours[half:])
        parts: dict[int, dict[str, list[dict[str, float]]]] = {hour: defaultdict(list) for hour in markers}
        for one in sums:
            hour = int(one.keys[0])
            namespace, pod, owner, team = map(str, one.keys[1:])
            tags = {
                "cluster": account, "namespace": namespace, "pod": pod, "resource_type": resource_type(namespace),
                "owner": owner, "team": team, "currency": markers[hour].currency,
            }  # fmt: skip
            parts[hour][series_key(HOURS, tags)].append(cost_fields(one.costs, one.total))
        return {hour: (marker.batch, _added(parts[hour])) for hour, marker in markers.items()}

    def _points_of_days(self, account: str, days: Sequence[int]) -> dict[int, tuple[int, _Points]]:
        """By day of assets its batch and its points, of those that are whole. Blocks."""
        kept = self._store.assets.days(account, min(days), max(days) + DAY)
        found = {}
        for day in days:
            if day not in kept:
                continue
            parts: dict[str, list[dict[str, float]]] = defaultdict(list)
            for asset in self._store.assets.read(account, [kept[day]]):
                tags = {
                    "cluster": account, "asset_type": asset.type, "asset_name": asset.name, "zone": asset.zone,
                    "node_type": ("spot" if asset.spot else "on-demand") if asset.type == "node" else "",
                    "instance_type": asset.instance_type,
                }  # fmt: skip
                parts[series_key(DAYS, tags)].append(_fields_of(asset))
            found[day] = kept[day].batch, _added(parts)
        return found

    async def _post(self, body: bytes) -> None:
        """Raises: NotTaken"""
        url = self._config.url
        assert url is not None
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        if self._config.token is not None:
            headers["Authorization"] = f"Token {self._config.token}"
        try:
            status, told = await post(self._client, f"{url}&precision=s", body, headers, CALL_SECONDS, self._tls)
        except CLIENT_FAILURES as failure:  # what they say may hold the URL, with a password in it
            raise NotTaken(type(failure).__name__) from None
        if status == 400 and BEYOND in told:
            log.info("some points are older than InfluxDB keeps")
        elif not 200 <= status < 300:
            raise NotTaken(f"status {status}")


def _fields_of(asset: Asset) -> dict[str, float]:
    sizes = (asset.cpu_cores or 0.0, (asset.ram_bytes or 0.0) / GB, (asset.storage_bytes or 0.0) / GB)
    return dict(zip(ASSET_FIELDS, (*sizes, asset.total_cost), strict=True))


def _added(parts: Mapping[str, Sequence[Mapping[str, float]]]) -> _Points:
    """Points of one series are one point: a second one would replace the first."""
    return {of: {name: fsum(one[name] for one in several) for name in several[0]} for of, several in parts.items()}
