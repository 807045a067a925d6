"""The figures of ``make bench``: each is a ratio to a limit that is measured in the same run, or says why it is not."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ROUNDS = 3


@dataclass(frozen=True)
class Declared:
    """One figure: what is measured, in which unit, and the bar that it has to meet, where there is one."""

    name: str
    unit: str
    what: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return f"at most {self.at_most:g}" if self.at_most is not None else ""

    def met_by(self, value: float) -> bool:
        return not (
            (self.at_least is not None and value < self.at_least) or (self.at_most is not None and value > self.at_most)
        )


def median_ratio(
    ours: Callable[[], float], limit: Callable[[], float], rounds: int = ROUNDS
) -> tuple[float, Sequence[float]]:
    """The median of ``ours / limit``, the two measured one right after the other, and every ratio."""
    ratios = []
    for _ in range(rounds):
        below = limit()
        ratios.append(ours() / below)
    return statistics.median(ratios), ratios


def table(declared: Sequence[Declared], found: Mapping[str, float]) -> str:
    """Lines to print: a figure, its unit, its bar and whether it was met."""
    lines = []
    for one in declared:
        if one.name in found:
            value = found[one.name]
            verdict = "" if one.met_by(value) else "MISSED"
            lines.append(f"{one.name:<34}{value:>12,.3f} {one.unit:<8}{one.goal:<16}{verdict}".rstrip())
    return "\n".join(lines)
