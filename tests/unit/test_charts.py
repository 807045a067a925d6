"""Charts and treemaps hold for any figures: areas are costs, and nothing lies outside or on something else."""

from __future__ import annotations

from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optscale_client.metroculus_client.structs import Changes, ChangeStep, DataPoint, SourceState, TimeWindow
from rest_api.rest_api_server.pages.charts import (
    COLORED,
    HEIGHT,
    MAP_HEIGHT,
    WIDTH,
    by_component,
    by_group,
    stacked,
    treemap,
)
from rest_api.rest_api_server.pages.cluster import comparable
from rest_api.rest_api_server.pages.render import sort_link

amounts = st.floats(-1e9, 1e9, allow_nan=False).map(lambda x: round(x, 4))
known = st.none() | amounts


def point(
    cpu: float | None = 0.0, idle: float | None = 0.0, groups: dict[str, float] | None = None, **more: float | None
) -> DataPoint:
    columns: dict[str, float | None] = {"ram_cost": 0.0, "management_cost": 0.0} | more
    rest = ("gpu_cost", "pv_cost", "network_cost", "load_balancer_cost", "shared_cost", "external_cost")
    parts = [cpu, *columns.values()]
    total = None if None in parts else fsum(one for one in parts if one is not None)
    given_known = [one for one in parts if one is not None]
    return DataPoint(
        start="2026-11-20T00:00:00Z", end="2026-11-21T00:00:00Z", complete=total is not None, idle_cost=idle, cpu_cost=cpu,
        total_cost=total, known_cost=fsum(given_known) if given_known else None, groups=groups or {},
        **columns, **dict.fromkeys(rest, 0.0),
    )  # fmt: skip


@given(st.lists(st.tuples(known, known, known), max_size=30))
def test_bars_of_a_step_are_as_high_as_what_they_stand_for(given_points: list[tuple[float | None, ...]]) -> None:
    points = [point(cpu, ram_cost=ram, management_cost=fee) for cpu, ram, fee in given_points]
    chart = stacked(points, by_component(points))
    assert len(chart.steps) == len(points)
    spread = max((b.y + b.height for b in chart.bars), default=0.0) - min((b.y for b in chart.bars), default=0.0)
    assert spread <= HEIGHT * (1 + 1e-9)
    for number, one in enumerate(points):
        of_step = [
            bar for bar in chart.bars if number * WIDTH / len(points) <= bar.x < (number + 1) * WIDTH / len(points)
        ]
        up = fsum(bar.height for bar in of_step if bar.y + bar.height <= chart.zero + 1e-6)
        wanted = fsum(max(usd or 0.0, 0.0) for usd in (one.cpu_cost, one.ram_cost, one.management_cost))
        if chart.top:
            assert up * chart.top == pytest.approx(wanted * chart.zero, rel=1e-6, abs=1e-6 * chart.top * HEIGHT)
    unknown = sum(not one.complete for one in points)
    assert len(chart.unknown) == unknown


def test_nothing_known_has_no_highest_and_credits_hang_below() -> None:
    nothing = [point(None, None, ram_cost=None, management_cost=None)] * 2
    assert (
        stacked(nothing, by_component(nothing)).top is None
        and len(stacked(nothing, by_component(nothing)).unknown) == 2
    )
    credit = [point(10.0, ram_cost=-5.0)]
    chart = stacked(credit, by_component(credit))
    assert {round(bar.height / HEIGHT, 6) for bar in chart.bars} == {round(2 / 3, 6), round(1 / 3, 6)}
    assert chart.zero == pytest.approx(HEIGHT * 2 / 3)


@given(st.dictionaries(st.text(max_size=5), st.floats(0.01, 1e6), max_size=12), st.floats(0, 1e6), st.floats(0, 1e6))
def test_groups_and_what_is_of_none_add_up_to_the_step(groups: dict[str, float], idle: float, other: float) -> None:
    names = sorted(groups, key=lambda name: -groups[name])
    one = point(fsum(groups.values()) + other, idle, groups, ram_cost=idle)
    series = by_group([one], names)
    assert fsum(s.values[0] or 0.0 for s in series) == pytest.approx(one.known_cost, rel=1e-9, abs=1e-6)
    assert [s.title for s in series[: len(names[:COLORED])]] == names[:COLORED]


@given(st.lists(st.tuples(st.text(max_size=8), st.floats(-10, 1e6, allow_nan=False)), max_size=45))
def test_a_treemap_fills_its_place_and_no_tile_lies_on_another(costs: list[tuple[str, float]]) -> None:
    tiles = treemap([(name, usd, 0) for name, usd in costs])
    least = max(1e-9, 1e-6 * max((usd for _, usd in costs), default=0.0))
    shown = [usd for _, usd in costs if usd > least]
    total = fsum(shown)
    assert len(tiles) == len(shown)
    for tile in tiles:
        assert tile.width * tile.height == pytest.approx(tile.cost / total * WIDTH * MAP_HEIGHT, rel=1e-6, abs=1e-6)
        assert tile.x >= -1e-6 and tile.x + tile.width <= WIDTH + 1e-3
        assert tile.y >= -1e-6 and tile.y + tile.height <= MAP_HEIGHT + 1e-3
    if len(tiles) < 12:
        for n, a in enumerate(tiles):
            for b in tiles[n + 1 :]:
                across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
                down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
                assert across <= 1e-3 or down <= 1e-3


def changes(difference: float | None, steps: list[tuple[str, float]], before: int = 0, after: int = 0) -> Changes:
    window = TimeWindow(start="a", end="b", final_until="b")
    state = SourceState(name="store", status="ok", fetched_at=None, coverage=1.0, error=None)
    made = [
        ChangeStep(kind=kind, amount=usd, group=None, resource=None, before=None, after=None, unit=None, because=None)
        for kind, usd in steps
    ]
    return Changes(
        cloud_account_id="x", window=window, against=window, aggregate="namespace", currency="USD", before_cost=1.0,
        total_cost=None, difference=difference, complete=True, before_source=state, source=state,
        missing_hours_before=before, missing_hours=after, steps=tuple(made),
    )  # fmt: skip


def test_hours_that_one_window_lacks_are_no_change() -> None:
    assert comparable(changes(10.0, [("price", 4.0), ("not_known", 5.0), ("length", 1.0)], before=3)) == 4.0
    assert comparable(changes(10.0, [("not_known", 10.0)], before=72)) is None, "there is nothing to compare"
    assert comparable(changes(None, [])) is None and comparable(changes(0.0, [])) == 0.0


def test_a_header_turns_the_order_round() -> None:
    target, sorted_by = sort_link("/x", {}, "total_cost", "total_cost")
    assert (target, sorted_by) == ("/x?order=asc", "descending")
    assert sort_link("/x", {"order": "asc"}, "total_cost", "total_cost") == ("/x", "ascending")
    assert sort_link("/x", {}, "name", "total_cost", True) == ("/x?sort=name", "none")
    assert sort_link("/x", {"sort": "name"}, "name", "total_cost", True) == ("/x?sort=name&order=desc", "ascending")
