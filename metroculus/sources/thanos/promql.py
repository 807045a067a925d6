"""The queries that integrate a rate, a price or a counter over a stretch of time, walled to one tenant.

A rate in USD per hour is not summed sample by sample: it is taken every ``step`` seconds, one value a thing, and
each value stands for ``step / 3600`` hours. Queries are evaluated one millisecond before the stretch ends, so that
closed (Prometheus 2) and open (Prometheus 3) range ends see the same samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from metroculus.sources.source import LABEL_NAME, METRIC_NAME
from tools.window import HOUR

_OTHER_METRICS = frozenset({"pod_pvc_allocation", "service_selector_labels"})
"""What is read and that no caller may name."""

HEARTBEATS = ("node_total_hourly_cost", "kubecost_network_internet_egress_cost", "kubecost_cluster_management_cost")
"""Gauges that the cost exporter always writes: where they are, it was alive."""

MIN_STEP_SECONDS = 15
SCRAPE_LABELS = ("job", "endpoint")
"""What tells apart only which scrape of one instance recorded a series."""
OVERWRITTEN_LABELS = ("namespace", "pod", "container")
"""What a scrape without ``honor_labels`` takes for the exporter's own pod."""


class Tenant(Struct, frozen=True):
    """Whose series may be seen. An empty label is a Prometheus of one cluster's own: then there is no wall."""

    label: str
    value: str
    cluster_label: str = ""
    clusters: tuple[str, ...] = ()
    """Of several clusters under one tenant, whose series are meant, by the values of their label."""

    def matcher(self) -> str:
        matchers = [f'{self.label}="{escape(self.value)}"'] if self.label else []
        if self.clusters:
            named = "|".join(re.escape(name) for name in self.clusters)
            matchers.append(f'{self.cluster_label}=~"{escape(named)}"')
        return ",".join(matchers)

    def by(self, *labels: str) -> str:
        """The tenant's label and ``labels``, for ``by (…)`` and ``on (…)``."""
        return ", ".join(filter(None, (self.label, *labels)))


def escape(value: str) -> str:
    """A label's value inside double quotes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def selector(metric: str, tenant: Tenant, **labels: str) -> str:
    """``metric{tenant_id="…",label="…"}``; a label that begins with ``!`` must differ.

    Raises:
        ValueError: for a name that is none.
    """
    if not METRIC_NAME.fullmatch(metric) and metric not in _OTHER_METRICS:
        raise ValueError(f"no metric name: {metric!r}")
    for name in labels:
        if not LABEL_NAME.fullmatch(name):
            raise ValueError(f"no label name: {name!r}")
    matchers = [tenant.matcher()] + [
        f'{name}!="{escape(value[1:])}"' if value.startswith("!") else f'{name}="{escape(value)}"'
        for name, value in labels.items()
    ]
    return f"{metric}{{{','.join(filter(None, matchers))}}}"


def step_for(interval: float) -> int:
    """The largest divisor of an hour that is not above the series' interval; at least 15 seconds, at most an hour."""
    limit = min(max(interval, MIN_STEP_SECONDS), HOUR)
    return max(divisor for divisor in range(1, HOUR + 1) if HOUR % divisor == 0 and divisor <= limit)


def same(expression: str) -> str:
    """The expression as it is."""
    return expression


def own_labels(expression: str) -> str:
    """A vector whose ``exported_…`` labels are back under their own names."""
    for name in OVERWRITTEN_LABELS:
        expression = f'label_replace({expression}, "{name}", "$1", "exported_{name}", "(.+)")'
    return expression


def selector_of(metric: str, labels: Mapping[str, str]) -> str:
    """The one series of a metric that has exactly these labels, as a querier gave them."""
    given = {name: value for name, value in labels.items() if name != "__name__" and LABEL_NAME.fullmatch(name)}
    return f"{metric}{{{','.join(f'{name}={chr(34)}{escape(value)}{chr(34)}' for name, value in given.items())}}}"


def lookback(interval: float) -> str:
    """A range selector of two intervals, less one millisecond."""
    return f"[{max(1, int(2 * interval * 1000) - 1)}ms]"


def current(
    metric: str,
    tenant: Tenant,
    identity: Sequence[str],
    interval: float,
    own: Callable[[str], str] = same,
    **labels: str,
) -> str:
    """One value a thing: a doubled or restarted exporter counts once, one missed scrape is forgiven.

    Looks back two intervals instead of Prometheus' five minutes, so that what has ended is billed for one interval more
    at the most.

    Args:
        own: gives a vector the labels that its exporter meant.
    """
    latest = own(f"last_over_time({selector(metric, tenant, **labels)}{lookback(interval)})")
    return f"max by ({tenant.by(*identity)}) ({latest})"


def integral(rate: str, seconds: int, step: int) -> str:
    """A rate per hour over ``seconds``, in what the rate is of."""
    return f"sum_over_time(({rate})[{seconds}s:{step}s]) * {step} / 3600"


def total(inner: str, tenant: Tenant, *labels: str) -> str:
    return f"sum by ({tenant.by(*labels)}) ({inner})"


def priced(amount: str, price: str, tenant: Tenant, *on: str) -> str:
    """Amounts times the price of where they are; what has no price drops out, which ``unpriced`` tells."""
    return f"{amount} * on ({tenant.by(*on)}) group_left () {price}"


def unpriced(amount: str, price: str, tenant: Tenant, *on: str) -> str:
    return f"{amount} unless on ({tenant.by(*on)}) {price}"


def increase(
    metric: str,
    tenant: Tenant,
    labels: Sequence[str],
    seconds: int,
    replicas: Sequence[str] = (),
    own: Callable[[str], str] = same,
    **matchers: str,
) -> str:
    """What a counter grew by, summed over its instances; ``max`` would halve a restarted exporter.

    Args:
        replicas: labels that tell apart only who recorded it: of those the most counts.
    """
    grown = own(f"increase({selector(metric, tenant, **matchers)}[{seconds}s])")
    once = f"max without ({', '.join((*SCRAPE_LABELS, *replicas))}) ({grown})"
    return f"sum by ({tenant.by(*labels)}) ({once})"


def named(name: str, query: str) -> str:
    """A vector that says which of several it is, so that many can be asked for at once with ``or``."""
    return f'label_replace({query}, "metric", "{name}", "", "")'


def samples_an_hour(metric: str, tenant: Tenant, seconds: int) -> str:
    """Samples an hour of the best series, over the hours in which it was there."""
    counted = f"count_over_time({selector(metric, tenant)}[3599999ms])"
    return f"max by ({tenant.by()}) (avg_over_time({counted}[{seconds}s:1h]))"


def samples(metric: str, tenant: Tenant, seconds: int) -> str:
    """Samples of the best series in the stretch."""
    return f"max by ({tenant.by()}) (count_over_time({selector(metric, tenant)}[{seconds * 1000 - 1}ms]))"


def series_count(metric: str, tenant: Tenant, seconds: int, exported: bool = False) -> str:
    """How many series there are in the stretch; with ``exported``, of those whose labels a scrape has renamed."""
    renamed = {"exported_namespace": "!"} if exported else {}
    there = f"count_over_time({selector(metric, tenant, **renamed)}[{seconds * 1000 - 1}ms])"
    return f"count by ({tenant.by()}) ({there})"


def interval_of(an_hour: float, in_all: float, seconds: int) -> float:
    """Seconds between a series' samples, from how many there were."""
    return HOUR / an_hour if an_hour > 1 else seconds / max(in_all, 1.0)


def seen_steps(there: str, seconds: int, step: int) -> str:
    """In how many steps of the stretch something was there."""
    return f"count_over_time(({there})[{seconds}s:{step}s])"


def coverage_threshold(seconds: int, step: int) -> float:
    """Share of the stretch below which it is ``partial``; the edges of a short one weigh more."""
    return min(0.99, 1 - 2 * step / seconds)
