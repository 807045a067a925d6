"""Usage over request, for one allocation and for many (OpenCost's rule, ``core/pkg/opencost/allocation.go``)."""

from __future__ import annotations

from msgspec import Struct


class Efficiency(Struct, frozen=True):
    """Ratios, 1.0 is all that was requested; above 1 where more was used; None where usage or requests are unknown."""

    cpu_efficiency: float | None
    ram_efficiency: float | None
    total_efficiency: float | None


LEAST_REQUEST = 1e-9
"""Core or byte hours; what is below it asks for nothing, and a ratio to it could be more than a number holds."""


def efficiency(usage: float, request: float, cost: float) -> float:
    """Usage over request; 1.0 for use without a request, 0.0 where nothing is used or paid."""
    if request > LEAST_REQUEST:
        return usage / request
    return 0.0 if usage == 0 or cost == 0 else 1.0


def weighted(
    cpu_efficiency: float | None, cpu_usd: float, ram_efficiency: float | None, ram_usd: float
) -> float | None:
    """The two efficiencies by the cost of each resource; 0.0 where neither costs anything, None for unknown."""
    weight = cpu_usd + ram_usd
    if cpu_efficiency is None or ram_efficiency is None:
        return None
    return (cpu_efficiency * cpu_usd + ram_efficiency * ram_usd) / weight if weight else 0.0
