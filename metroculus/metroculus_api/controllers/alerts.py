"""Alerts as they stand, with their history; the worker makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from metroculus.codes import NO_ALERT, NOT_FIRING
from metroculus.metroculus_api.errors import history_of
from metroculus.storage.store import Store
from metroculus.watch.alerts import SEVERITIES, Acknowledgement, Alert
from metroculus.wire import wired
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError
from tools.window import iso

HISTORY = 50
"""Transitions of one alert that are listed."""

_ALERT = msgspec.json.Decoder(Alert)
_SEEN = msgspec.json.Decoder(Acknowledgement)


class AlertsController:
    def __init__(self, store: Store | None, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def alerts(self, organization: str, state: str | None, deadline: Deadline) -> structs.Alerts:
        """An organization's alerts, in one state or in any.

        Raises:
            NoHistory, StoreError
        """
        told = await history_of(self._store).ask(deadline.left(), self._read, organization, None)
        chosen = [one for one in told if state in (None, one.state)]
        chosen.sort(key=lambda one: (one.state == "firing", one.changed_at, one.id), reverse=True)
        return structs.Alerts(organization_id=organization, alerts=tuple(chosen))

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
            versions = store.documents.versions(organization, "alert", (alert,))
            if not versions:
                raise ApiError(NO_ALERT)
            newest = _ALERT.decode(versions[-1].body)
            if newest.state != "firing":
                raise ApiError(NOT_FIRING)
            seen = Acknowledgement(transition=newest.transition, at=int(self._clock()), by=who, note=note)
            store.documents.put(organization, "alert_ack", alert, msgspec.json.encode(seen).decode())
            return self._read(organization, (alert,))[0]

        return await store.ask(deadline.left(), write)

    def _read(self, organization: str, names: Sequence[str] | None) -> list[structs.Alert]:
        """Alerts with their history; blocks."""
        documents = history_of(self._store).documents
        by_alert: dict[str, list[Alert]] = {}
        for one in documents.versions(organization, "alert", names):
            by_alert.setdefault(one.name, []).append(_ALERT.decode(one.body))
        seen: dict[str, list[Acknowledgement]] = {}
        for one in documents.versions(organization, "alert_ack", names):
            seen.setdefault(one.name, []).append(_SEEN.decode(one.body))
        return [_told(several, seen.get(name, ())) for name, several in by_alert.items()]


def _told(versions: Sequence[Alert], seen: Sequence[Acknowledgement]) -> structs.Alert:
    """Args: versions: of one alert, the oldest first."""
    newest = versions[-1]
    by = next((one for one in reversed(seen) if one.transition == newest.transition and newest.state == "firing"), None)
    transitions = {one.transition: one for one in reversed(versions)}
    history = [_transition(one, one.changed_at, one.state, None) for one in transitions.values()]
    history += [
        _transition(transitions[one.transition], one.at, "acknowledged", one.by)
        for one in seen
        if one.transition in transitions
    ]
    history.sort(key=lambda one: (one.at, one.state == "acknowledged"), reverse=True)
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
        acknowledged_at=_iso(by.at if by else None),
        acknowledged_by=by.by if by else None,
        note=by.note if by else None,
        history=tuple(history[:HISTORY]),
    )


def _transition(one: Alert, at: int, state: str, by: str | None) -> structs.AlertTransition:
    return structs.AlertTransition(
        state=state,
        at=iso(at),
        key=one.key,
        summary=one.summary,
        resolved_because=one.resolved_because,
        acknowledged_by=by,
    )


def _iso(stamp: int | None) -> str | None:
    return None if stamp is None else iso(stamp)
