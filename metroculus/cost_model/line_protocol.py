"""Costs as points of InfluxDB's line protocol, by its rules of escaping."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from metroculus.cost_model.allocation import IDLE, MANAGEMENT, SPECIAL_NAMES
from metroculus.cost_model.components import Costs

_ESCAPED = str.maketrans({",": "\\,", "=": "\\=", " ": "\\ ", "\n": "\\n", "\r": "\\r", "\t": "\\t"})

_BEFORE_ESCAPED = re.compile(r"\\(?=[,= \n\r\t\\]|\Z)")
LONGEST_TAG = 1_000
COST_FIELDS = ("cpu_cost", "memory_cost", "network_cost", "storage_cost", "total_cost")


def series_key(measurement: str, tags: Mapping[str, str]) -> str:
    """What makes a point the same: the measurement and its tags, in order of their names; empty ones are left out.

    A line cannot hold a line break, and a backslash cannot stand at a tag's end: a space is put behind it. What is
    longer than ``LONGEST_TAG`` is cut: a key has its limit, and no name that Kubernetes takes is so long.
    """
    values = {name: value[:LONGEST_TAG] for name, value in sorted(tags.items()) if value}
    if any('"' in value for value in values.values()):
        # Behind a backslash of the name's own InfluxDB takes what is escaped for the end of the tags, and a quote there
        # for the beginning of a text that hides the lines that follow.
        values = {name: _BEFORE_ESCAPED.sub("/", value) for name, value in values.items()}
    return measurement + "".join(f",{name}={_tag(value)}" for name, value in values.items())


def _tag(value: str) -> str:
    text = value.translate(_ESCAPED)
    return f"{text}\\ " if text.endswith("\\") else text


def point(of: str, fields: Mapping[str, float], stamp: int) -> str:
    """One point, its time in seconds; a field that is no number is left out.

    Args:
        of: as ``series_key`` gives it.
    """
    told = ",".join(f"{name}={value!r}" for name, value in fields.items() if math.isfinite(value))
    return f"{of} {told} {stamp}"


def zero_point(of: str, names: Iterable[str], stamp: int) -> str:
    """The point of a series that is no more: each of its fields 0."""
    return point(of, dict.fromkeys(names, 0.0), stamp)


def resource_type(namespace: str) -> str:
    """What a row of costs is of."""
    if namespace == IDLE:
        return "idle"
    if namespace == MANAGEMENT:
        return "management"
    return "unallocated" if namespace in SPECIAL_NAMES else "pod"


def cost_fields(costs: Costs, total: float) -> dict[str, float]:
    """The columns of ``cost_allocations``; the total holds what has no column of its own, too."""
    return dict(zip(COST_FIELDS, (costs.cpu, costs.ram, costs.network, costs.pv, total), strict=True))
