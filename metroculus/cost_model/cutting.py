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
from metroculus.cost_model.reading import AllocationSet, union
from tools.window import HOUR, split


class CutHour(Struct, frozen=True):
    """One hour out of longer sets; ``told_from`` to ``told_until`` is the time of the sets that it was cut from."""

    set: AllocationSet
    told_from: int
    told_until: int


def cut_into_hours(sets: Iterable[AllocationSet], start: int, end: int) -> dict[int, CutHour]:
    """The hours in ``[start, end)`` that sets cover together, by their first second.

    Each row's numbers are spread evenly over the time that it ran within its set, idle over the hours in which anything
    ran. An hour is left out in which nothing ran (its cost is in the hours that the set tells of), or of which a set
    knows a part with no other beside it.
    """
    pieces: dict[int, list[tuple[AllocationSet, Allocations]]] = {}
    for one in sets:
        cut = _Cut(one)
        for hour in cut.hours:
            if start <= hour and hour + HOUR <= end:
                pieces.setdefault(hour, []).append((one, cut.between(hour, hour + HOUR)))
    found = {}
    for hour, parts in pieces.items():
        known = sum(min(one.end, hour + HOUR) - max(one.start, hour) for one, _ in parts)
        rows = Allocations.joined(part for _, part in parts)
        if known < HOUR:
            continue
        quarantined = sum(one.quarantined for one, _ in parts)
        found[hour] = CutHour(
            AllocationSet(hour, hour + HOUR, rows, quarantined),
            min(one.start for one, _ in parts),
            max(one.end for one, _ in parts),
        )
    return found


class _Cut:
    """One set, and the hours of it in which anything ran."""

    def __init__(self, one: AllocationSet) -> None:
        rows = one.columns
        self._rows = rows
        self._since, self._until = np.maximum(rows.start, one.start), np.minimum(rows.end, one.end)
        ran = rows.ran & (self._until > self._since)
        # What says nothing of when it ran, or is there all the time (volumes), is told with what ran.
        always = ~rows.ran & (self._until - self._since >= one.end - one.start)
        self._idle = rows.is_special(IDLE) | (self._until <= self._since) | always
        spans = union(sorted(set(zip(self._since[ran].tolist(), self._until[ran].tolist(), strict=True))))
        stretches = [(a, b) for span in spans for a, b in split(*span, HOUR)]
        self.hours = sorted({a - a % HOUR for a, _ in stretches})
        told = [(max(one.start, hour), min(one.end, hour + HOUR)) for hour in self.hours]
        self._told = dict(zip(self.hours, told, strict=True))
        self._seconds = sum(b - a for a, b in told)

    def between(self, start: int, end: int) -> Allocations:
        """What ran in ``[start, end)``, with its share of what it cost, used and was given."""
        begun, over = np.maximum(self._since, start), np.minimum(self._until, end)
        first, last = self._told[start]
        begun, over = np.where(self._idle, first, begun), np.where(self._idle, last, over)
        whole = np.where(self._idle, self._seconds, self._until - self._since)
        there = over > begun
        shares = ((over - begun) / whole)[there]
        kept = self._rows.take(there)
        return Allocations(
            kept.measures * shares, kept.unknown, begun[there].astype(np.int64), over[there].astype(np.int64),
            kept.texts, kept.special,
        )  # fmt: skip
