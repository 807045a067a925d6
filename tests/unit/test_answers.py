"""Shapes of answers are declared once, in the SDK; what the cost model declares for itself names the same fields."""

from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from msgspec import Struct

from metroculus.cost_model import assets, efficiency, reading, savings, statement, trend
from metroculus.sources import source
from optscale_client.metroculus_client import structs

PAIRS = [
    (statement.Statement, structs.Statement),
    (statement.Point, structs.DataPoint),
    (assets.Asset, structs.Asset),
    (efficiency.Efficiency, structs.Efficiency),
    (reading.SourceReport, structs.SourceState),
    (savings.Recommendation, structs.Recommendation),
    (trend.Projection, structs.Projection),
    (source.Quota, structs.QuotaRow),
    (source.WorkloadResources, structs.WorkloadRow),
    (source.NodeSpecification, structs.NodeRow),
    (source.Series, structs.MetricSeries),
]


def structs_in(hint: Any) -> list[type[Struct]]:
    """The structs that an annotation names, in order."""
    if isinstance(hint, type) and issubclass(hint, Struct):
        return [hint]
    if get_origin(hint) in (Union, types.UnionType, tuple, list, dict) or get_args(hint):
        return [one for part in get_args(hint) for one in structs_in(part)]
    return []


def differences(ours: type[Struct], wire: type[Struct], path: str = "") -> list[str]:
    """Fields that one of the two lacks, through everything that they hold."""
    mine, theirs = set(ours.__struct_fields__), set(wire.__struct_fields__)
    found = [f"{path}{wire.__name__}.{name}" for name in sorted(mine ^ theirs)]
    hints, wired = get_type_hints(ours), get_type_hints(wire)
    for name in sorted(mine & theirs):
        for left, right in zip(structs_in(hints[name]), structs_in(wired[name]), strict=False):
            if left is not right:
                found += differences(left, right, f"{path}{name}/")
    return found


@pytest.mark.parametrize(("ours", "wire"), PAIRS, ids=lambda shape: shape.__name__)
def test_what_the_cost_model_says_has_the_fields_that_the_sdk_names(ours, wire):
    assert differences(ours, wire) == []


def test_a_field_that_one_lacks_is_found():
    class Ours(Struct):
        inner: reading.SourceReport

    class Wire(Struct):
        inner: structs.TimeWindow

    assert "inner/TimeWindow.status" in differences(Ours, Wire)
