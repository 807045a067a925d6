"""Answers in words, alike on the page, in the command line and wherever else a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NOT_KNOWN = "not known"
COMPONENTS = (
    ("cpu_cost", "CPU"),
    ("ram_cost", "RAM"),
    ("gpu_cost", "GPU"),
    ("pv_cost", "volumes"),
    ("network_cost", "network"),
    ("load_balancer_cost", "load balancers"),
    ("shared_cost", "shared"),
    ("external_cost", "external"),
)
"""The cost columns of a row, and what they are called."""
MANAGEMENT = ("management_cost", "cluster management")
TITLES = {name.removesuffix("_cost"): title for name, title in (*COMPONENTS, MANAGEMENT)}
SPECIAL = {
    "__idle__": "idle",
    "__unmounted__": "volumes that nobody mounts",
    "__management__": MANAGEMENT[1],
    "__unallocated__": "unallocated",
    "": "unallocated",
}
"""What belongs to no namespace, by the names that answers give it."""
SOURCES = {
    "store": "stored history",
    "allocation": "allocation API",
    "assets": "assets API",
    "savings": "savings",
    "thanos": "metrics",
}
STATES = {
    "no_data": "has no data for this time",
    "unavailable": "cannot be reached now",
    "stale": "has only older data",
    "partial": "has only a part of the data",
}


def special_text(name: str) -> str:
    """A group as it is shown: what belongs to no namespace by a name of its own."""
    return SPECIAL.get(name, name)


def source_trouble(
    name: str, status: str, coverage: float | None, error: str | None, warnings: Iterable[str] = ()
) -> str:
    """What is wrong with one source; empty where nothing is."""
    if status in ("ok", "not_configured"):
        return ""
    known = STATES.get(status, status)
    if coverage is not None and 0 < coverage < 1:
        known = f"has data for {coverage:.1%} of the time"
    elif coverage == 0 and status == "partial":
        known = STATES["no_data"]
    return f"{SOURCES.get(name, name)}: {', '.join(filter(None, (known, error, *warnings)))}"


def why_incomplete(troubles: Iterable[str], summary: Mapping[str, Any] | None, not_covered: Iterable[str]) -> list[str]:
    """Why a statement that is not complete is not: its sources, else what is not known of it; each thing once."""
    found = list(dict.fromkeys(one for one in troubles if one))
    if found:
        return found
    apart = set(not_covered)
    unknown = [
        title
        for name, title in TITLES.items()
        if summary is not None and summary.get(f"{name}_cost", 0.0) is None and name not in apart
    ]
    return [f"{', '.join(unknown)}: {NOT_KNOWN}"] if unknown else ["a component is not known"]


def not_covered_text(names: Iterable[str]) -> str:
    """What no source that is configured can tell; empty where there is nothing of that kind."""
    told = ", ".join(TITLES.get(name, name) for name in names)
    return f"no configured source provides {told}: the total does not include it" if told else ""
