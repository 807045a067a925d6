"""What each kind of alert fires and clears on, out of what was observed; nothing here asks anybody."""

from __future__ import annotations

from msgspec import Struct

from metroculus.watch.alerts import Cause, Finding, Verdict
from metroculus.watch.spikes import FoundSpikes
from optscale_client.metroculus_client import structs
from tools.window import DAY, HOUR, iso

FAILING_SHARE, FAILING_LEAST = 0.05, 2
STALE_SECONDS = 4 * HOUR
SILENT_SECONDS = 2 * HOUR
SPIKE_HOURS = 24
ONE_SPIKE_SECONDS = 6 * HOUR
"""Dear hours that are no farther apart are one spike."""
FULL_SHARE, ROOM_SHARE = 0.80, 0.75
DRIFT_SHARE, DRIFT_UNITS, SAME_SHARE = 0.02, 100, 0.01
_WITHOUT_CENTS = frozenset(
    {"BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"}
)
_WITH_THREE_DIGITS = frozenset({"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"})
"""Currencies whose smallest unit is no hundredth (ISO 4217)."""


class Attempts(Struct, frozen=True, kw_only=True):
    """Extractions of one cluster in the last hour."""

    count: int
    failed: int
    observed_seconds: int
    """For how long they have been counted, an hour at most."""


def extraction_failing(account: str, attempts: Attempts) -> Finding:
    share = attempts.failed / attempts.count if attempts.count else 0.0
    verdict: Verdict = "hold"
    if not attempts.count:
        verdict = "unknown"
    elif attempts.failed >= FAILING_LEAST and share > FAILING_SHARE:
        verdict = "firing"
    elif not attempts.failed and attempts.observed_seconds >= HOUR:
        verdict = "clear"
    return Finding(
        kind="extraction_failing",
        subject=account,
        verdict=verdict,
        cloud_account_id=account,
        summary=f"{attempts.failed} of {attempts.count} extractions of the last hour failed",
        figures={"extractions": float(attempts.count), "failed": float(attempts.failed)},
    )


def data_stale(account: str, stored_until: int | None, known_since: int, tried: bool, now: int) -> Finding:
    """Args: known_since: when the account became the organization's, where no hour of it is stored yet."""
    age = now - (known_since if stored_until is None else stored_until)
    told = "no hour is stored" if stored_until is None else f"the newest stored hour ended at {iso(stored_until)}"
    return Finding(
        kind="data_stale",
        subject=account,
        verdict="clear" if age <= STALE_SECONDS else "firing" if tried else "unknown",
        cloud_account_id=account,
        summary=told,
        figures={"hours": round(age / HOUR, 2), "stored_until": None if stored_until is None else iso(stored_until)},
    )


def not_pushed(account: str) -> Finding:
    """Of a cluster whose source is another now."""
    return Finding(
        kind="push_silent",
        subject=account,
        verdict="clear",
        cloud_account_id=account,
        summary="the cluster's costs are not pushed any more",
    )


def push_silent(account: str, heard_at: int, now: int) -> Finding:
    return Finding(
        kind="push_silent",
        subject=account,
        verdict="firing" if now - heard_at > SILENT_SECONDS else "clear",
        cloud_account_id=account,
        summary=f"the cluster's agent was last heard of at {iso(heard_at)}",
        figures={"hours": round((now - heard_at) / HOUR, 2), "heard_at": iso(heard_at)},
    )


def cost_spike(account: str, found: FoundSpikes, settled: int) -> Finding:
    """Spikes that follow each other are one; a later one is another alert.

    Args:
        settled: the end of the newest hour that is settled; spikes were looked for in the two days before it.
    """
    hours = range(settled - SPIKE_HOURS * HOUR, settled, HOUR)
    spikes: list[structs.Anomaly] = []
    for one in sorted(found.anomalies, key=lambda one: one.hour):
        follows = bool(spikes) and one.hour - spikes[-1].hour <= ONE_SPIKE_SECONDS
        spikes = [*spikes, one] if follows else [one]
    if not spikes or spikes[-1].hour not in hours:
        whole = all(hour in found.known for hour in hours)
        return Finding(
            kind="cost_spike", subject=account, verdict="clear" if whole else "unknown", cloud_account_id=account,
            summary="a day without a spike" if whole else "not all of the last day is known",
        )  # fmt: skip
    worst = max(spikes, key=lambda one: (one.total_cost - one.mean_cost_before, one.hour))
    rise = worst.total_cost / worst.mean_cost_before - 1 if worst.mean_cost_before > 0 else None
    more = "more than the day before" if rise is None else f"{rise:.0%} more than the mean of the day before"
    return Finding(
        kind="cost_spike",
        subject=account,
        verdict="firing",
        cloud_account_id=account,
        epoch=iso(spikes[0].hour),
        why_over="another spike came",
        renews=True,
        summary=f"the hour from {iso(worst.hour)} cost {worst.total_cost:.2f} {found.currency}, {more}",
        figures={
            "hour": iso(worst.hour),
            "total_cost": worst.total_cost,
            "typical_cost": worst.typical_cost,
            "mean_cost_before": worst.mean_cost_before,
            "currency": found.currency,
        },
        causes=tuple(Cause(namespace=one.namespace, rise=one.rise, share=one.share) for one in worst.causes),
    )


def budget_findings(state: structs.BudgetState) -> list[Finding]:
    """One for each threshold. Once crossed it stands until its period is over, or the amount is another."""
    found = []
    for one in state.thresholds:
        verdict: Verdict = "firing" if one.state == "crossed" else "unknown" if one.state == "unknown" else "hold"
        reached = state.spent if one.on == "actual" else state.forecast.expected
        what = "is spent" if one.on == "actual" else "is forecast"
        told = "not known" if reached is None else f"{reached:.2f} of {state.amount:.2f} {state.currency} {what}"
        found.append(
            Finding(
                kind="budget",
                subject=threshold_subject(state.id, one.on, one.percent),
                verdict=verdict,
                cloud_account_id=state.scope.cluster_id,
                budget_id=state.id,
                epoch=f"{state.start} {state.end} {state.amount!r} {state.currency} {state.scope}",
                why_over="a new period began, or the budget was changed",
                summary=f"{told}: {one.percent:g} % of the budget for the {state.period} is crossed",
                figures={
                    "name": state.name,
                    "percent": one.percent,
                    "on": one.on,
                    "amount": state.amount,
                    "spent": state.spent,
                    "forecast": state.forecast.expected,
                    "currency": state.currency,
                    "start": state.start,
                    "end": state.end,
                },
            )
        )
    return found


def threshold_subject(budget: str, on: str, percent: float) -> str:
    """What an alert of one threshold is about; two that differ at all are two."""
    return f"{budget}/{on}/{percent!r}"


def store_capacity(share: float | None) -> Finding:
    verdict: Verdict = "hold"
    if share is None:
        verdict = "unknown"
    elif share > FULL_SHARE:
        verdict = "firing"
    elif share < ROOM_SHARE:
        verdict = "clear"
    return Finding(
        kind="store_capacity",
        subject="store",
        verdict=verdict,
        summary="the store's size is not known" if share is None else f"{share:.0%} of the store's room is taken",
        figures={"share": share},
    )


class Compared(Struct, frozen=True, kw_only=True):
    """One day of a cluster as two sources tell it; None where one of them does not tell all of it."""

    day: int
    by_api: float | None
    by_metrics: float | None
    currency: str


def _smallest(currency: str) -> float:
    return 1.0 if currency in _WITHOUT_CENTS else 0.001 if currency in _WITH_THREE_DIGITS else 0.01


def drift(account: str, compared: Compared, day: int) -> Finding:
    """Args: day: the last that has settled; what was compared of an older one than the day before it is no news."""
    by_api, by_metrics = compared.by_api, compared.by_metrics
    figures: dict[str, float | str | None] = {
        "day": iso(compared.day), "by_api": by_api, "by_metrics": by_metrics, "currency": compared.currency
    }  # fmt: skip
    if compared.day < day - DAY:
        return Finding(
            kind="drift", subject=account, verdict="unknown", cloud_account_id=account, figures=figures,
            summary="no day was compared lately",
        )  # fmt: skip
    if by_api is None or by_metrics is None:
        return Finding(
            kind="drift", subject=account, verdict="unknown", cloud_account_id=account, figures=figures,
            summary="one of the two sources does not tell all of the day",
        )  # fmt: skip
    apart = abs(by_api - by_metrics)
    verdict: Verdict = "hold"
    if apart > DRIFT_SHARE * abs(by_api) and apart > DRIFT_UNITS * _smallest(compared.currency):
        verdict = "firing"
    elif apart < SAME_SHARE * abs(by_api) or apart == 0:
        verdict = "clear"
    return Finding(
        kind="drift",
        subject=account,
        verdict=verdict,
        cloud_account_id=account,
        summary=f"the day from {iso(compared.day)} is {by_api:.2f} {compared.currency} by the cost source"
        f" and {by_metrics:.2f} by metrics",
        figures=figures,
    )
