"""What the worker tells of itself, per cluster: freshness, rows, failures, residuals, gaps."""

from __future__ import annotations

from collections import Counter as Counted
from collections.abc import Callable, Iterable, Mapping
from math import fsum

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from metroculus.metroculus_worker.extract import Outcome
from metroculus.storage.gaps import Gap
from metroculus.storage.ledger import Marker
from metroculus.watch.alerts import SEVERITIES, Alert
from tools.window import HOUR


class Freshness(Struct, frozen=True, kw_only=True):
    """How a cluster's history stands; money in USD."""

    stored_until: int | None
    """The end of the last committed hour."""
    gaps: int
    by_fallback: int
    """Hours that another source told instead of the first one."""
    unreconciled: int
    residual: float
    passed_over: int


def freshness(hours: Mapping[int, Marker], asked: Mapping[int, Gap], passed_over: int, last_complete: int) -> Freshness:
    """Out of the committed hours of the days that are still open, and those that were asked for in vain.

    Before the first stored hour there may have been no cluster: what lacks there is no gap.
    """
    last = max(hours, default=None)
    first = min(hours or asked, default=last_complete)
    return Freshness(
        stored_until=last + HOUR if last is not None else None,
        gaps=sum(hour not in hours for hour in range(first, last_complete, HOUR)),
        by_fallback=sum(bool(marker.source) for marker in hours.values()),
        unreconciled=sum(not marker.reconciled for marker in hours.values()),
        residual=fsum(abs(marker.residual) for marker in hours.values()),
        passed_over=passed_over,
    )


class WorkerMetrics:
    """Prometheus series; the label is the account.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        self._clock = clock

        def gauge(name: str, description: str, *labels: str) -> Gauge:
            return Gauge(f"metroculus_{name}", description, labels, registry=registry)

        def counter(name: str, description: str, *labels: str) -> Counter:
            return Counter(f"metroculus_{name}", description, labels, registry=registry)

        account = "cloud_account_id"
        self._success = gauge("extraction_last_success_timestamp_seconds", "Last extraction without a failure", account)
        self._lag = gauge("extraction_lag_seconds", "Time since the end of the last stored hour", account)
        self._gaps = gauge("history_gap_hours", "Open hours that are not stored", account)
        self._by_fallback = gauge("history_told_instead_hours", "Open hours that another source told", account)
        self._unreconciled = gauge("history_unreconciled_hours", "Hours apart from their control total", account)
        self._residual = gauge("history_residual_usd", "What control totals have beyond the rows", account)
        self._broken = gauge("history_passed_over_batches", "Batches that are not whole", account)
        self._rows = counter("extraction_rows", "Rows written", account)
        self._hours = counter("extraction_hours", "Hours by what became of them", account, "result")
        self._rounds = counter("extraction_rounds", "Rounds of extraction, failed ones among them", account)
        self._failures = counter("extraction_failures", "Extractions that failed", account)
        self._seconds = Histogram(
            "metroculus_extraction_seconds",
            "Time to read and store one stretch of hours",
            [account],
            buckets=(0.1, 0.5, 1, 5, 15, 60, 300),
            registry=registry,
        )
        self._upstream = Histogram(
            "metroculus_upstream_seconds",
            "Time of each call to an upstream, retries by themselves",
            ["upstream", "result"],
            registry=registry,
        )
        self._live_until = gauge("live_timestamp_seconds", "The last moment whose rate is stored", account)
        self._live_failures = counter("live_failures", "Rates of the moment that could not be had", account)
        self._alerts = gauge("alerts_firing", "Alerts that fire now", "kind")
        self.influx_sent = counter("influx_sent", "Hours and days of assets sent to InfluxDB", "measurement")
        self.influx_held = gauge("influx_held", "Hours and days of which InfluxDB refuses points")
        self.influx_failing = gauge("influx_failing", "1 where InfluxDB did not take what was sent last")
        self._heard = gauge("push_heard_timestamp_seconds", "When a cluster's agent was heard of last", account)
        self._share = gauge("store_share", "How much of the store's room is taken, 0 to 1")
        self._owed = gauge("alerts_owed", "Transitions of alerts that are still to be sent", "target")
        self.store_bytes = gauge("store_bytes", "Size of the store on disk")
        self._waiting = gauge("queue_messages", "Tasks that wait in a queue", "queue")
        self._dead = gauge("queue_dead_letters", "Tasks that failed by a defect, again and again", "queue")
        self.makes_rounds = gauge("worker_makes_rounds", "1 on the one worker that makes the rounds")

    def queued(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Messages that wait and dead letters, by queue."""
        for queue, (waiting, dead) in counts.items():
            self._waiting.labels(queue).set(waiting)
            self._dead.labels(queue).set(dead)

    def alerting(self, firing: Iterable[Alert]) -> None:
        """How many alerts of each kind fire."""
        counts = Counted(alert.kind for alert in firing)
        for kind in SEVERITIES:
            self._alerts.labels(kind).set(counts[kind])

    def observed(self, heard: Mapping[str, int], store_share: float | None) -> None:
        """What a round of alerts saw: when agents were heard of, by account, and how full the store is."""
        self._heard.clear()
        for account, at in heard.items():
            self._heard.labels(account).set(at)
        if store_share is not None:
            self._share.set(store_share)

    def quiet(self) -> None:
        """Say nothing any more of what another worker sees now."""
        for gauge in (self._heard, self._alerts, self._owed, self._live_until):
            gauge.clear()
        self._share.set(0)
        self.influx_failing.set(0)
        self.influx_held.set(0)

    def live(self, account: str, until: int | None, failed: bool) -> None:
        """That the rates of a cluster were asked for; ``until`` is the last moment that is stored."""
        if failed:
            self._live_failures.labels(account).inc()
        if until:
            self._live_until.labels(account).set(until)

    def owes(self, target: str, transitions: int) -> None:
        self._owed.labels(target).set(transitions)

    def called(self, upstream: str, succeeded: bool, seconds: float) -> None:
        self._upstream.labels(upstream.removeprefix("the "), "ok" if succeeded else "failed").observe(seconds)

    def extracted(self, account: str, outcome: Outcome, seconds: float) -> None:
        self._rows.labels(account).inc(outcome.rows)
        self._hours.labels(account, "written").inc(len(outcome.written))
        self._hours.labels(account, "confirmed").inc(len(outcome.confirmed))
        self._hours.labels(account, "missing").inc(len(outcome.missing))
        self._seconds.labels(account).observe(seconds)

    def failed(self, account: str) -> None:
        self._failures.labels(account).inc()

    def stands(self, account: str, state: Freshness, now: int, succeeded: bool) -> None:
        self._rounds.labels(account).inc()
        if succeeded:
            self._success.labels(account).set(now)
        stored_until = state.stored_until
        if stored_until is not None:  # worked out when it is scraped: it grows while nothing is done
            self._lag.labels(account).set_function(lambda: self._clock() - stored_until)
        self._gaps.labels(account).set(state.gaps)
        self._by_fallback.labels(account).set(state.by_fallback)
        self._unreconciled.labels(account).set(state.unreconciled)
        self._residual.labels(account).set(state.residual)
        self._broken.labels(account).set(state.passed_over)

    def forget(self, account: str) -> None:
        """An account that is no longer linked has no freshness."""
        for metric in (
            self._success,
            self._lag,
            self._gaps,
            self._by_fallback,
            self._unreconciled,
            self._residual,
            self._broken,
            self._live_until,
        ):
            metric.remove(account)
