"""What a cluster costs an hour now, and did in the last minutes; as a worker wrote it down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metroculus.cost_model.components import GIB
from metroculus.cost_model.live import COSTS, USAGE, LivePoint, NamespaceRate
from metroculus.cost_model.reading import SourceReport, Status
from metroculus.metroculus_api.errors import history_of
from metroculus.sources.accounts import Accounts
from metroculus.storage.store import Store
from metroculus.wire import wire
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.window import MINUTE

STALE_SECONDS = 5 * MINUTE
"""A rate that is older is told of as old."""


class LiveController:
    def __init__(self, accounts: Accounts, store: Store | None, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._store = store
        self._clock = clock

    async def live(self, account: str, minutes: int, namespace: str | None, deadline: Deadline) -> structs.Live:
        """The rates of the last minutes, of the cluster or of one namespace.

        Raises:
            RegistryError, NoMetricsSource, NoHistory, StoreError
        """
        store = history_of(self._store)
        (await self._accounts.of(account)).require_metrics()
        now = int(self._clock())
        start = now - now % MINUTE - (minutes - 1) * MINUTE

        def read() -> structs.Live:
            points = store.live.of(account, start, now, namespace)
            last = store.live.at(account, points[-1].at) if points and namespace is None else None
            points[-1:] = [last] if last is not None else points[-1:]
            return _answer(account, minutes, namespace, start, now, points)

        return await store.ask(deadline.left(), read)


def _answer(
    account: str, minutes: int, namespace: str | None, start: int, now: int, points: Sequence[LivePoint]
) -> structs.Live:
    currency = points[-1].currency if points else None
    points = [one for one in points if one.currency == currency]
    if namespace is not None and not any(_row(one, namespace) for one in points):
        points = []
    last = points[-1] if points else None
    moments = tuple(_moment(one, namespace) for one in points)
    until = last.at if last is not None else now - now % MINUTE
    expected = (until - start) // MINUTE + 1
    source = _source(last, now, namespace)
    return structs.Live(
        cloud_account_id=account,
        minutes=minutes,
        namespace=namespace,
        currency=currency if points else None,
        as_of=last.at if last is not None else None,
        age_seconds=now - last.at if last is not None else None,
        complete=source.status == "ok",
        source=wire(source, structs.SourceState),
        missing_minutes=max(0, expected - len(points)),
        latest=_now(last, moments[-1], namespace) if last is not None else None,
        points=moments,
    )


def _source(last: LivePoint | None, now: int, namespace: str | None) -> SourceReport:
    status: Status
    if last is None:
        of = f"namespace {namespace}" if namespace is not None else "the cluster"
        note = (
            f"of these minutes nothing is known of {of}: no metrics arrive, or no worker with the role processor runs"
        )
        return SourceReport(name="thanos", status="no_data", warnings=(note,))
    notes = list(last.notes)
    if now - last.at > STALE_SECONDS:
        status = "stale"
        notes.append(f"the last rate is {(now - last.at) // MINUTE} minutes old: no metrics arrive, or no worker runs")
    else:
        status = "ok" if last.complete else "partial"
    return SourceReport(name="thanos", status=status, fetched_at=last.at, warnings=tuple(notes))


def _row(point: LivePoint, namespace: str) -> NamespaceRate | None:
    return next((one for one in point.namespaces if one.namespace == namespace), None)


def _moment(point: LivePoint, namespace: str | None) -> structs.LiveMoment:
    """Of one namespace, where one is named: it costs nothing while nothing of it runs."""
    if namespace is not None:
        row = _row(point, namespace) or NamespaceRate(namespace)
        per_hour = _costs(row, point)
        total, idle, management = per_hour.total, None, None
    else:
        row = point.sums
        per_hour = _costs(row, point)
        total, idle, management = point.total, point.idle, point.management
    return structs.LiveMoment(
        at=point.at,
        complete=point.complete,
        total_per_hour=total,
        per_hour=per_hour,
        idle_per_hour=idle,
        management_per_hour=management,
        usage=_usage(row, point),
    )


def _now(point: LivePoint, moment: structs.LiveMoment, namespace: str | None) -> structs.LiveNow:
    rows = point.namespaces if namespace is None else (_row(point, namespace) or NamespaceRate(namespace),)
    fields = {name: getattr(moment, name) for name in structs.LiveMoment.__struct_fields__}
    named = tuple(
        structs.LiveNamespace(namespace=one.namespace, per_hour=_costs(one, point), usage=_usage(one, point))
        for one in rows
    )
    return structs.LiveNow(**fields, namespaces=named)


def _costs(row: NamespaceRate, point: LivePoint) -> structs.HourlyCosts:
    unknown = point.unknown
    known = {name: None if name in unknown else getattr(row, name) for name in COSTS}
    total = None if {"cpu", "ram"} <= unknown else row.total
    return structs.HourlyCosts(total=total, **known)


def _usage(row: NamespaceRate, point: LivePoint) -> structs.LiveUsage:
    known = {name: None if name in point.unknown else getattr(row, name) for name in USAGE}
    return structs.LiveUsage(
        cpu_request_cores=known["cpu_request"],
        cpu_usage_cores=known["cpu_usage"],
        ram_request_bytes=known["ram_request"],
        ram_usage_bytes=known["ram_usage"],
        network_bytes_per_second=known["network_sent"],
        storage_bytes=row.pv_gib * GIB,
    )
