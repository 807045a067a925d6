"""Sets that are longer than an hour, or lie across two, as hours: by the time that each thing ran.

Upstreams keep days for longer than hours, and some keep hours that begin at half past. What such a set says of its own
time is exact; how much of it was in which hour is an estimate, and whoever keeps the hours keeps that with them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from msgspec import Struct

from metroculus.cost_model.allocation import IDLE
from metroculus.cost_model.columns import Allocations
from metroculus.cost_model.reading import AllocationSet
from tools.window import HOUR, split


class CutHour(Struct, frozen=True):
    """One hour out of longer sets; ``told_from`` to ``told_until`` is the time of the sets that it was cut from."""

    set: AllocationSet
    told_from: int
    told_until: int


def cut_into_hours(sets: Iterable[AllocationSet], start: int, end: int) -> dict[int, CutHour]:
    """The hours in ``[start, end)`` that sets cover together, by their first second.

    Each row's numbers are spread evenly over the time that it ran within its set, idle over the time that anything ran.
    An hour is left out in which nothing ran (its cost is in the hours that the set tells of), or of which a set knows a
    part with no other beside it.
    """
    pieces: dict[int, list[tuple[AllocationSet, Allocations]]] = {}
    for one in sets:
        for hour, _ in split(max(one.start, start), min(one.end, end), HOUR):
            first = hour - hour % HOUR
            pieces.setdefault(first, []).append((one, _between(one, first, first + HOUR)))
    found = {}
    for hour, parts in pieces.items():
        known = sum(min(one.end, hour + HOUR) - max(one.start, hour) for one, _ in parts)
        rows = Allocations.joined(part for _, part in parts)
        if known < HOUR or not rows.ran.any():
            continue
        quarantined = sum(one.quarantined for one, _ in parts)
        found[hour] = CutHour(
            AllocationSet(hour, hour + HOUR, rows, quarantined),
            min(one.start for one, _ in parts),
            max(one.end for one, _ in parts),
        )
    return found


def _between(one: AllocationSet, start: int, end: int) -> Allocations:
    """The rows of a set that ran in ``[start, end)``, with their share of what they cost, used and were given."""
    rows = one.columns
    since, until = np.maximum(rows.start, one.start), np.minimum(rows.end, one.end)
    ran = rows.ran & (until > since)
    first, last = (int(since[ran].min()), int(until[ran].max())) if ran.any() else (one.start, one.end)
    elsewhere = rows.is_special(IDLE) | (until <= since)  # such a row says nothing of when it ran
    since, until = np.where(elsewhere, first, since), np.where(elsewhere, last, until)
    begun, over = np.maximum(since, start), np.minimum(until, end)
    there = over > begun
    shares = ((over - begun) / (until - since))[there]
    kept = rows.take(there)
    return Allocations(
        kept.measures * shares, kept.unknown, begun[there].astype(np.int64), over[there].astype(np.int64), kept.texts,
        kept.special,
    )  # fmt: skip
