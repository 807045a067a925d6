"""Alerts as a state machine: what is found makes them fire and clear, and what is not known does neither."""

from __future__ import annotations

from typing import Literal
from uuid import UUID, uuid5

from msgspec import Struct
from msgspec.structs import replace

Kind = Literal["extraction_failing", "data_stale", "cost_spike", "budget", "store_capacity", "drift", "push_silent"]
Verdict = Literal["firing", "clear", "hold", "unknown"]
"""``hold``: neither reason to fire nor to clear; ``unknown``: it cannot be told."""
State = Literal["firing", "resolved"]

PLATFORM = "00000000-0000-0000-0000-000000000000"
"""Stands for the organization of what is no tenant's: the store's own alerts."""
_NAMES = UUID("7f0a2a44-0c6c-4c2f-9d6b-0d5a3c1f6f10")

SEVERITIES: dict[Kind, str] = {
    "extraction_failing": "warning",
    "data_stale": "critical",
    "cost_spike": "warning",
    "budget": "warning",
    "store_capacity": "critical",
    "drift": "warning",
    "push_silent": "critical",
}


class Cause(Struct, frozen=True, kw_only=True):
    """A namespace, and by how much it rose, in the alert's currency an hour."""

    namespace: str
    rise: float
    share: float


class Finding(Struct, frozen=True, kw_only=True):
    """What was found of one thing that an alert may be about."""

    kind: Kind
    subject: str
    """What it is about: the same text each time."""
    verdict: Verdict
    cloud_account_id: str | None = None
    budget_id: str | None = None
    epoch: str = ""
    """Where it is another than the alert's, that one is over; empty where it is not known."""
    why_over: str = ""
    renews: bool = False
    """Whether an alert that fires already is told what was found now."""
    summary: str = ""
    figures: dict[str, float | str | None] = {}
    causes: tuple[Cause, ...] = ()


class Alert(Struct, frozen=True, kw_only=True):
    """One alert as it stands; its versions are its history. Stamps are Unix seconds."""

    id: str
    kind: Kind
    subject: str
    state: State
    transition: int
    """Counts from 1: each time that it fired or was resolved."""
    key: str
    """Of this transition: sent again, it is known as the same."""
    changed_at: int
    fired_at: int
    summary: str
    cloud_account_id: str | None = None
    budget_id: str | None = None
    epoch: str = ""
    figures: dict[str, float | str | None] = {}
    causes: tuple[Cause, ...] = ()
    unknown_since: int | None = None
    """Since when it cannot be told whether it still holds."""
    resolved_because: str | None = None
    owed: tuple[str, ...] = ()
    """Where this transition is to be sent, of what was configured when it happened."""


class Acknowledgement(Struct, frozen=True, kw_only=True):
    """That somebody has seen an alert; it is of one transition, and kept beside the alert."""

    transition: int
    at: int
    by: str
    note: str | None = None


def alert_id(organization: str, kind: Kind, subject: str) -> str:
    """The same for the same thing, whoever works it out."""
    return str(uuid5(_NAMES, f"{organization}/{kind}/{subject}"))


def advance(
    organization: str, alert: Alert | None, finding: Finding, now: int, targets: tuple[str, ...] = ()
) -> Alert | None:
    """An alert after something was found; the same object where nothing changed, None where there is none."""
    if alert is None or alert.state == "resolved":
        if finding.verdict != "firing":
            return alert
        return _fired(organization, alert, finding, now, targets)
    if finding.verdict == "clear":
        return _resolved(alert, finding.summary, now, targets)
    if finding.epoch and finding.epoch != alert.epoch:
        return _resolved(alert, finding.why_over, now, targets)
    if finding.verdict == "unknown":
        return alert if alert.unknown_since is not None else replace(alert, unknown_since=now)
    if finding.renews and finding.verdict == "firing" and finding.summary != alert.summary:
        alert = replace(alert, summary=finding.summary, figures=finding.figures, causes=finding.causes)
    return alert if alert.unknown_since is None else replace(alert, unknown_since=None)


def resolve_gone(alert: Alert, now: int, targets: tuple[str, ...] = ()) -> Alert:
    """An alert whose subject does not exist any more."""
    if alert.state == "resolved":
        return alert
    return _resolved(alert, "what it was about does not exist any more", now, targets)


def _fired(organization: str, before: Alert | None, finding: Finding, now: int, targets: tuple[str, ...]) -> Alert:
    name = alert_id(organization, finding.kind, finding.subject)
    transition = 1 if before is None else before.transition + 1
    return Alert(
        id=name,
        kind=finding.kind,
        subject=finding.subject,
        state="firing",
        transition=transition,
        key=_key(name, transition),
        changed_at=now,
        fired_at=now,
        summary=finding.summary,
        cloud_account_id=finding.cloud_account_id,
        budget_id=finding.budget_id,
        epoch=finding.epoch,
        figures=finding.figures,
        causes=finding.causes,
        owed=targets,
    )


def _resolved(alert: Alert, why: str, now: int, targets: tuple[str, ...]) -> Alert:
    return replace(
        alert,
        state="resolved",
        transition=alert.transition + 1,
        key=_key(alert.id, alert.transition + 1),
        changed_at=now,
        unknown_since=None,
        resolved_because=why,
        owed=targets,
    )


def _key(name: str, transition: int) -> str:
    return str(uuid5(UUID(name), str(transition)))
