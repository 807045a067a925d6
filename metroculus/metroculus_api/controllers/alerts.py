"""Alerts as they stand, with their history; the worker makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from metroculus.codes import NO_ALERT, NOT_FIRING
from metroculus.metroculus_api.errors import history_of
from metroculus.storage.store import Store
from metroculus.watch.alerts import SEVERITIES, Alert, acknowledged
from metroculus.wire import wired
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError
from tools.window import iso

HISTORY = 50
"""Transitions of one alert that are listed."""

_ALERT = msgspec.json.Decoder(Alert)


class AlertsController:
    def __init__(self, store: Store | None, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def alerts(self, organization: str, state: str | None, deadline: Deadline) -> structs.Alerts:
        """An organization's alerts, in one state or in any.

        Raises:
            NoHistory, StoreError
        """
        store = history_of(self._store)
        versions = await store.ask(deadline.left(), store.documents.versions, organization, "alert")
        by_alert: dict[str, list[Alert]] = {}
        for one in versions:
            by_alert.setdefault(one.name, []).append(_ALERT.decode(one.body))
        told = [_told(several) for several in by_alert.values() if state in (None, several[-1].state)]
        told.sort(key=lambda one: (one.state == "firing", one.changed_at, one.id), reverse=True)
        return structs.Alerts(organization_id=organization, alerts=tuple(told))

    async def acknowledge(
        self, organization: str, alert: str, who: str, note: str | None, deadline: Deadline
    ) -> structs.Alert:
        """Note that somebody has seen an alert.

        Raises:
            ApiError: 404; 409 where it does not fire any more.
            NoHistory, StoreError
        """
        store = history_of(self._store)

        def write() -> structs.Alert:
            versions = [_ALERT.decode(one.body) for one in store.documents.versions(organization, "alert", (alert,))]
            if not versions:
                raise ApiError(NO_ALERT)
            if versions[-1].state != "firing":
                raise ApiError(NOT_FIRING)
            seen = acknowledged(versions[-1], who, note, int(self._clock()))
            store.documents.put(organization, "alert", alert, msgspec.json.encode(seen).decode())
            return _told([*versions, seen])

        return await store.ask(deadline.left(), write)


def _told(versions: Sequence[Alert]) -> structs.Alert:
    """Args: versions: of one alert, the oldest first."""
    newest = versions[-1]
    history = [one for before, one in zip((None, *versions), versions, strict=False) if _is_news(before, one)]
    return structs.Alert(
        id=newest.id,
        kind=newest.kind,
        severity=SEVERITIES[newest.kind],
        state=newest.state,
        cloud_account_id=newest.cloud_account_id,
        budget_id=newest.budget_id,
        fired_at=iso(newest.fired_at),
        changed_at=iso(newest.changed_at),
        summary=newest.summary,
        resolved_because=newest.resolved_because,
        unknown_since=_iso(newest.unknown_since),
        figures=newest.figures,
        causes=wired(newest.causes, structs.AlertCause),
        acknowledged_at=_iso(newest.acknowledged_at),
        acknowledged_by=newest.acknowledged_by,
        note=newest.note,
        history=tuple(
            structs.AlertTransition(
                state="acknowledged" if one.acknowledged_at is not None and one.state == "firing" else one.state,
                at=iso(max(one.changed_at, one.acknowledged_at or 0)),
                key=one.key,
                summary=one.summary,
                resolved_because=one.resolved_because,
                acknowledged_by=one.acknowledged_by,
            )
            for one in reversed(history[-HISTORY:])
        ),
    )


def _is_news(before: Alert | None, one: Alert) -> bool:
    """Whether a version is more than that something became unknown."""
    return before is None or (before.transition, before.acknowledged_at) != (one.transition, one.acknowledged_at)


def _iso(stamp: int | None) -> str | None:
    return None if stamp is None else iso(stamp)
