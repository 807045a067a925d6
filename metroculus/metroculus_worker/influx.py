"""Sends committed hours and days of assets on to an InfluxDB, from an outbox that knows what was sent."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import fsum

from msgspec.structs import replace

from metroculus.config import InfluxConfig
from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.assets import Asset
from metroculus.cost_model.line_protocol import COST_FIELDS, cost_fields, point, resource_type, series_key, zero_point
from metroculus.metroculus_worker.metrics import WorkerMetrics
from metroculus.metroculus_worker.ownership import Lease, Owners
from metroculus.storage.engine import StoreError, TooManyRows
from metroculus.storage.influx import DAYS, GONE, HOURS, UNSURE, SentTime
from metroculus.storage.store import Store
from tools.http_client import CLIENT_FAILURES, HttpClient, TlsContext, post
from tools.window import DAY, HOUR, iso

log = logging.getLogger("influx")

GROUPED_BY = ("namespace", "pod", "label:owner", "label:team")
ASSET_FIELDS = ("cpu_cores", "memory_gb", "storage_gb", "total_cost")
GB = 1e9
BYTES_AT_ONCE = 512 * 2**10
"""Of one post: proxies take a MiB by default."""
STARTS_AT_ONCE = 24
"""Hours, or days of assets, of one cluster, before the next cluster's turn."""
HELD_SECONDS = HOUR
"""An hour of which points are refused is tried again after so long."""
REASON_CHARACTERS = 200
CALL_SECONDS = 30.0
LEASE = "influx"
"""The name that the one worker owns that sends."""
TOO_OLD = (b"beyond retention policy", b"outside retention policy")
"""What InfluxDB 1 and 2 say of points that are too old to be kept there: they drop those, and take the others."""
REFUSALS = frozenset({400, 413, 422})
"""Statuses that are about what was sent, and not about who sends or where to."""

_Key = tuple[str, str]
"""Measurement and account."""
_Points = dict[str, dict[str, float]]
"""Fields by series."""


class NotTaken(Exception):
    """InfluxDB does not take points now, or not from us; says why, and never where it is."""


class Refused(Exception):
    """InfluxDB does not take these points, and may take others."""


class LostLease(Exception):
    """Another worker sends now."""


class InfluxRound:
    """One round sends all that is owed, cluster by cluster in turn, the newest first; what fails is owed on.

    Before points are sent it is noted which series may be there from then on, so that whatever became of a post, the
    next one writes 0 over what is no more.

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
        self._settled: dict[_Key, tuple[int, int]] = {}
        """By measurement and account, as of which change all of it was sent."""
        self._held: dict[tuple[str, str, int], float] = {}
        """Hours and days of which points were refused, and until when they are left alone."""

    async def send(self) -> None:
        """One round."""
        if self._config.url is None or self._running.locked():
            return
        async with self._running:
            failed = True
            try:
                failed = await self._lease.take() and await self._send_owed()
            except NotTaken as failure:
                log.warning("InfluxDB does not take what is sent: %s", failure)
            except LostLease:
                failed = False
                log.info("another worker sends to InfluxDB now")
            except (StoreError, OSError) as failure:
                log.warning("what is owed to InfluxDB cannot be read: %s", failure)
            self._metrics.influx_failing.set(int(failed))
            self._metrics.influx_held.set(len(self._held))

    async def close(self) -> None:
        self._client.close()
        await self._lease.release()

    async def _send_owed(self) -> bool:
        """Whether anything of a cluster could not be read.

        Raises:
            NotTaken, LostLease, StoreError
        """
        owed, failed = await self._owed()
        while owed:
            for key, starts in list(owed.items()):
                part, owed[key] = starts[:STARTS_AT_ONCE], starts[STARTS_AT_ONCE:]
                if not owed[key]:
                    del owed[key]
                try:
                    await self._send_some(*key, part)
                except StoreError as failure:  # the others do not wait for it
                    log.warning("account %s: what is owed to InfluxDB cannot be read: %s", key[1], failure)
                    owed.pop(key, None)
                    failed = True
        return failed

    async def _owed(self) -> tuple[dict[_Key, list[int]], bool]:
        """Hours and days that are to be sent, newest first; and whether those of a cluster could not be read."""
        now, sent = self._clock(), self._store.influx_sent
        self._held = {one: until for one, until in self._held.items() if until > now}
        owed: dict[_Key, list[int]] = {}
        failed = False
        for measurement in (HOURS, DAYS):
            changes = await self._store.run(sent.changes, measurement)
            for account, change in changes.items():
                key = (measurement, account)
                if self._settled.get(key) == change:
                    continue
                try:
                    found = await self._store.run(sent.owed, measurement, account)
                except StoreError as failure:
                    log.warning("account %s: what is owed to InfluxDB cannot be read: %s", account, failure)
                    failed = True
                    continue
                starts = [start for start in found if (*key, start) not in self._held]
                if starts:
                    owed[key] = starts
                elif not found:
                    self._settled[key] = change
        return owed, failed

    async def _send_some(self, measurement: str, account: str, starts: Sequence[int]) -> None:
        """Some hours or days; one of which points are refused is held back for a while, and named.

        Raises:
            NotTaken, LostLease, StoreError
        """
        try:
            await self._send_together(measurement, account, starts)
        except Refused as refusal:
            if len(starts) > 1:
                for start in starts:
                    await self._send_some(measurement, account, (start,))
                return
            self._held[measurement, account, starts[0]] = self._clock() + HELD_SECONDS
            log.warning("account %s: InfluxDB refuses points of %s: %s", account, iso(starts[0]), refusal)

    async def _send_together(self, measurement: str, account: str, starts: Sequence[int]) -> None:
        """Points, and 0 for the series that were there before and are no more.

        Raises:
            Refused, NotTaken, LostLease, StoreError
        """
        hours = measurement == HOURS
        names, points_of = (COST_FIELDS, self._points_of_hours) if hours else (ASSET_FIELDS, self._points_of_days)
        found = await self._store.run(points_of, account, starts)
        before = await self._store.run(self._store.influx_sent.last, measurement, account, starts)
        if len(found) < len(starts) and await self._store.run(self._store.influx_sent.is_purged, measurement, account):
            found = {start: (GONE, {}) for start in starts}
        found = {start: told for start, told in found.items() if told[0] != before[start].batch}
        maybe = {
            start: SentTime(start, UNSURE, before[start].version + 1, _union(before[start].series, points))
            for start, (_, points) in found.items()
        }
        await self._note(
            measurement, account, [one for start, one in maybe.items() if one.series != before[start].series]
        )
        lines = [
            line
            for start, (_, points) in found.items()
            for line in (
                *(point(of, fields, start) for of, fields in points.items()),
                *(zero_point(of, names, start) for of in before[start].series if of not in points),
            )
        ]
        try:
            for body in _bodies(lines):
                await self._post(body)
            self._require_lease()
        except LostLease:  # another worker may have sent other points meanwhile: whoever leads sends them again
            last = await self._store.run(self._store.influx_sent.last, measurement, account, starts)
            await self._note(measurement, account, [
                SentTime(start, UNSURE, last[start].version + 1, _union(last[start].series, one.series))
                for start, one in maybe.items()
            ])  # fmt: skip
            raise
        await self._note(measurement, account, [
            SentTime(start, batch, before[start].version + 2, tuple(sorted(points)))
            for start, (batch, points) in found.items()
        ])  # fmt: skip
        self._metrics.influx_sent.labels(measurement).inc(len(found))

    def _require_lease(self) -> None:
        """Raises: LostLease"""
        if not self._lease.held:
            raise LostLease

    async def _note(self, measurement: str, account: str, sent: Sequence[SentTime]) -> None:
        if sent:
            await self._store.run(self._store.influx_sent.note, measurement, account, sent, int(self._clock()))

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
        """Raises: Refused, NotTaken, LostLease"""
        url = self._config.url
        assert url is not None
        self._require_lease()
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        if self._config.token is not None:
            headers["Authorization"] = f"Token {self._config.token}"
        try:
            status, told = await post(self._client, f"{url}&precision=s", body, headers, CALL_SECONDS, self._tls)
        except CLIENT_FAILURES as failure:  # what they say may hold the URL, with a password in it
            raise NotTaken(type(failure).__name__) from None
        if status in REFUSALS and any(words in told for words in TOO_OLD):
            log.info("some points are older than InfluxDB keeps")
        elif status == 413 and b"\n" in body:
            lines = body.split(b"\n")
            for half in (lines[: len(lines) // 2], lines[len(lines) // 2 :]):
                await self._post(b"\n".join(half))
        elif status in REFUSALS:
            raise Refused(f"status {status}: {told[:REASON_CHARACTERS].decode(errors='replace')!r}")
        elif not 200 <= status < 300:
            raise NotTaken(f"status {status}")


def _bodies(lines: Sequence[str]) -> Iterator[bytes]:
    """Lines as the bodies of posts."""
    body: list[bytes] = []
    size = 0
    for line in map(str.encode, lines):
        if body and size + len(line) > BYTES_AT_ONCE:
            yield b"\n".join(body)
            body, size = [], 0
        body.append(line)
        size += len(line) + 1
    if body:
        yield b"\n".join(body)


def _union(series: Sequence[str], points: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*series, *points}))


def _fields_of(asset: Asset) -> dict[str, float]:
    sizes = (asset.cpu_cores or 0.0, (asset.ram_bytes or 0.0) / GB, (asset.storage_bytes or 0.0) / GB)
    return dict(zip(ASSET_FIELDS, (*sizes, asset.total_cost), strict=True))


def _added(parts: Mapping[str, Sequence[Mapping[str, float]]]) -> _Points:
    """Points of one series are one point: a second one would replace the first."""
    return {of: {name: fsum(one[name] for one in several) for name in several[0]} for of, several in parts.items()}
