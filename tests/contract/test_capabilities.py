"""What a kind of source declares it can tell, it has: no default that raises stands in for it."""

from __future__ import annotations

import pytest

from metroculus.sources.kubecost.client import CAPABILITIES as OF_FLAVOURS
from metroculus.sources.kubecost.client import KubecostSource
from metroculus.sources.pushed import _BASIC as OF_PUSHED
from metroculus.sources.pushed import PushedSource
from metroculus.sources.source import Capability, CostSource
from metroculus.sources.thanos.source import CAPABILITIES as OF_METRICS
from metroculus.sources.thanos.source import MetricsSource

METHODS = {
    Capability.ALLOCATIONS: ("allocations", "hour_sets"),
    Capability.DAY_SET: ("day_set",),
    Capability.ASSETS: ("assets",),
    Capability.SAVINGS: ("savings",),
    Capability.METADATA: ("metadata",),
    Capability.SERIES: ("series",),
    Capability.LIVE: ("live",),
    Capability.BUDGETS: ("budgets",),
}
"""Management follows from assets, placement from allocations."""


@pytest.mark.parametrize(
    ("kind", "declared"),
    [
        *((KubecostSource, capabilities) for capabilities in OF_FLAVOURS.values()),
        (MetricsSource, OF_METRICS),
        (PushedSource, OF_PUSHED | {Capability.MANAGEMENT}),
    ],
)
def test_every_declared_capability_is_implemented(kind: type[CostSource], declared: frozenset[Capability]) -> None:
    for capability in declared:
        for name in METHODS.get(capability, ()):
            assert getattr(kind, name) is not getattr(CostSource, name), f"{kind.__name__} declares {capability.name}"
