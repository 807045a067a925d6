"""The worked cases of the cost model, and the identities that hold for any input."""

from __future__ import annotations

import json
from math import fsum, isclose, isfinite

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from metroculus.cost_model.allocation import Allocation, Filters
from metroculus.cost_model.columns import Allocations, add, group, share_idle
from metroculus.cost_model.components import Costs, Usage
from metroculus.cost_model.efficiency import efficiency
from metroculus.cost_model.reading import (
    AllocationReading,
    AllocationSet,
    ManagementReading,
    NodeCosts,
    SourceReport,
    StoredReading,
    coverage,
    judge_sets,
)
from metroculus.cost_model.reconcile import reconcile
from metroculus.cost_model.reconcile import rows as lines_of
from metroculus.cost_model.statement import Question
from metroculus.sources.answers.allocation_json import decode_allocation
from metroculus.sources.errors import BadAnswer
from tools.window import DAY, HOUR, Window, iso

START = 1795046400
TWO_DAYS = Window.past(START, START + 2 * DAY)


def row(name, start=START, end=START + DAY, **numbers):
    namespace = name.split("/")[0]
    window = {"start": iso(start), "end": iso(end)}
    return {
        "name": name,
        "properties": {"cluster": "cluster-one", "namespace": namespace},
        "window": window,
        **window,
        "minutes": (end - start) / 60,
        "cpuCost": 0,
        "ramCost": 0,
    } | numbers


def read(*sets, window=TWO_DAYS, aggregate=("namespace",)):
    """A reading of sets as an upstream would answer them."""
    body = json.dumps({"code": 200, "data": [{r["name"]: r for r in rows} for rows in sets]}).encode()
    decoded = decode_allocation("upstream", body, aggregate)
    return judge_sets("allocation", decoded.sets, window, 0, decoded.warnings)


def statement(reading, management=(), window=TWO_DAYS, **more):
    return reconcile(Question(cloud_account_id="a", window=window, **more), reading, None, management)


def test_case_1_a_cost_is_cost_and_adjustment():
    day = {"cpuCost": 2, "cpuCostAdjustment": -0.5}
    found = statement(read([row("shop", **day), row("__idle__")], [row("shop", START + DAY, START + 2 * DAY, **day)]))
    assert found.summary.cpu_cost == 3.0


@pytest.mark.parametrize(
    ("requests", "usages", "cost", "expected"),
    [
        ((1, 3), (1, 0), 1, 0.25),
        ((0,), (0.2,), 1, 1.0),
        ((0,), (0,), 1, 0.0),
        ((0,), (0.2,), 0, 0.0),
        ((2,), (3,), 1, 1.5),
    ],
)
def test_cases_2_and_3_efficiency_of_many_is_usage_over_request_not_a_mean_of_ratios(requests, usages, cost, expected):
    many = [
        Allocation(name="a", namespace="a", costs=Costs(cpu=cost), usage=Usage(cpu_request=r * 60, cpu_usage=u * 60))
        for r, u in zip(requests, usages, strict=True)
    ]
    assert add(many).efficiency.cpu_efficiency == expected
    assert efficiency(sum(usages), sum(requests), cost) == expected


@pytest.mark.parametrize("data", ["null", "[]", "[null]", "[{}]", "[{}, {}]"])
def test_case_4_nothing_is_no_data_and_not_zero(data):
    decoded = decode_allocation("upstream", f'{{"code":200,"data":{data}}}'.encode(), ("namespace",))
    found = statement(judge_sets("allocation", decoded.sets, TWO_DAYS, 0))
    assert found.sources[0].status == "no_data"
    assert not found.complete
    assert found.total_cost is None and found.summary.cpu_cost is None and found.summary.known_cost is None


def test_case_5_every_value_null_is_no_data():
    empty = row("shop") | {key: None for key in ("cpuCost", "ramCost", "gpuCost", "pvCost", "networkCost", "totalCost")}
    found = statement(read([empty]))
    assert found.total_cost is None and not found.complete


def test_case_7_idle_stands_beside_the_namespaces():
    names = {"shop": 10.0, "api": 2.51}
    rows = [row(n, cpuCost=c, end=START + 2 * DAY) for n, c in names.items()]
    rows.append(row("__idle__", cpuCost=4.3, end=START + 2 * DAY))
    found = statement(read(rows), detail="namespace")
    assert isclose(found.total_cost, 16.81)
    assert found.idle_cost == 4.3 and found.special == {"__idle__": 4.3}
    assert {r.namespace for r in found.breakdown_by_namespace} == set(names)


def test_case_13_coverage_is_what_allocations_say_of_themselves():
    one = row("shop", START, START + 2 * DAY, cpuCost=1) | {"end": iso(START + 1500 * 60), "minutes": 1500}
    idle = one | row("__idle__", START, START + 2 * DAY) | {"end": one["end"]}
    found = statement(read([one, idle]))
    assert isclose(found.sources[0].coverage, 1500 / 2880)
    assert found.sources[0].status == "partial" and not found.complete
    assert found.summary.cpu_cost == 1.0


def test_case_14_a_filter_that_upstream_ignored_is_applied_again():
    rows = [row("shop", cpuCost=3), row("api", cpuCost=5), row("__idle__", cpuCost=7)]
    found = statement(read(rows), detail="namespace", filters=Filters(namespaces=("shop",)))
    assert [r.namespace for r in found.breakdown_by_namespace] == ["shop"]
    assert found.total_cost == 3.0


def test_filtering_does_not_change_the_share_of_idle():
    rows = [row("shop", cpuCost=3), row("api", cpuCost=1), row("__idle__", cpuCost=8)]
    whole = statement(read(rows), detail="namespace", idle="share")
    part = statement(read(rows), detail="namespace", idle="share", filters=Filters(namespaces=("shop",)))
    shop = next(r for r in whole.breakdown_by_namespace if r.namespace == "shop")
    assert shop.total_cost == part.breakdown_by_namespace[0].total_cost == 9.0
    assert whole.total_cost == 12.0 and whole.idle_cost == 0.0


def test_idle_of_a_resource_that_nobody_has_stays_idle():
    rows = [row("shop", cpuCost=2), row("__idle__", cpuCost=1, gpuCost=5)]
    found = statement(read(rows), detail="namespace", idle="share")
    assert found.breakdown_by_namespace[0].total_cost == 3.0
    assert found.idle_cost == 5.0 and found.total_cost == 8.0


def test_hidden_idle_is_out_of_the_list_and_in_the_total():
    found = statement(read([row("shop", cpuCost=2), row("__idle__", cpuCost=1)]), idle="hide")
    assert "__idle__" not in found.special and found.total_cost == 3.0


def test_negative_idle_is_reported_as_it_is_and_flagged():
    found = statement(read([row("shop", cpuCost=2), row("__idle__", cpuCost=-0.5)]))
    assert found.idle_cost == -0.5 and found.total_cost == 1.5
    assert "idle is negative" in found.sources[0].warnings


def test_idle_that_was_not_told_is_what_nodes_cost_beyond_what_was_allocated():
    reading = read([row("shop", cpuCost=2, ramCost=1)])
    assets = ManagementReading(
        source=SourceReport(name="assets", status="ok"), covers=False, nodes=NodeCosts(cpu=5.0, ram=2.0, gpu=0.0)
    )
    found = statement(reading, [assets])
    assert found.idle_cost == 4.0 and found.total_cost == 7.0
    unknown = statement(reading)
    assert unknown.idle_cost is None and unknown.total_cost is None and unknown.summary.known_cost == 3.0
    assert unknown.summary.cpu_cost is None


def test_a_total_that_disagrees_with_its_parts_is_told_of_and_parts_are_used():
    found = statement(read([row("shop", cpuCost=2, totalCost=5), row("__idle__")]))
    assert found.total_cost == 2.0
    assert any("differ" in text for text in found.sources[0].warnings)


def test_special_names_are_matched_as_the_last_part_and_kept_apart():
    rows = [
        row("shop", cpuCost=1),
        row("cluster-one/__idle__", cpuCost=2) | {"properties": {"cluster": "cluster-one"}},
        row("__unmounted__", pvCost=3),
        row("", pvCost=4) | {"properties": {"cluster": "cluster-one"}},
        row("__unallocated__", cpuCost=5),
    ]
    found = statement(read(rows), detail="namespace")
    assert found.special == {"": 4.0, "__idle__": 2.0, "__unallocated__": 5.0, "__unmounted__": 3.0}
    assert found.unallocated_cost == 12.0 and found.total_cost == 15.0
    assert [r.namespace for r in found.breakdown_by_namespace] == ["shop"]


def managed(usd, status="ok", covers=True):
    return ManagementReading(source=SourceReport(name="assets", status=status), usd=usd, covers=covers)


def test_management_comes_from_the_first_that_knows_it_and_is_never_counted_twice():
    reading = read([row("shop", cpuCost=1), row("__idle__")])
    assert statement(reading, [managed(2.0), managed(3.0)]).total_cost == 3.0
    assert statement(reading, [managed(None, "unavailable"), managed(3.0)]).summary.management_cost == 3.0


def test_management_that_failed_is_unknown_and_one_that_nobody_covers_is_left_out():
    reading = read([row("shop", cpuCost=1, end=START + 2 * DAY), row("__idle__")])
    failed = statement(reading, [managed(None, "unavailable")])
    assert failed.total_cost is None and failed.summary.known_cost == 1.0 and not failed.complete
    uncovered = statement(reading)
    assert uncovered.total_cost == 1.0 and uncovered.not_covered == ("management",) and uncovered.complete


@pytest.mark.parametrize("stored_cpu", [0.0, 3.0])
def test_stored_hours_without_idle_have_none_and_take_none_of_the_live_hours_nodes(stored_cpu):
    """A cluster that was off for a day, then on: nodes 10 + 5 + 1, of which the workload has 4 of cpu."""
    source = SourceReport(name="store", status="ok")
    rows = Allocations.of([Allocation(name="shop", namespace="shop", costs=Costs(cpu=stored_cpu))] * bool(stored_cpu))
    off = AllocationReading(source=source, sets=(AllocationSet(START, START + DAY, rows),))
    stored = StoredReading(off, ManagementReading(source=source, usd=0.0), Window.past(START + DAY, START + 2 * DAY))
    nodes = ManagementReading(
        source=SourceReport(name="assets", status="ok"), usd=2.0, nodes=NodeCosts(cpu=10.0, ram=5.0, gpu=1.0)
    )
    live = read([row("shop", cpuCost=4, start=START + DAY, end=START + 2 * DAY)])
    found = reconcile(Question(cloud_account_id="a", window=TWO_DAYS), live, None, [nodes], stored)
    assert found.idle_cost == 6 + 5 + 1
    assert found.total_cost == stored_cpu + 10 + 5 + 1 + 2


def test_thanos_stands_in_for_an_allocation_api_that_failed_and_the_failure_is_told():
    failed = AllocationReading(source=SourceReport(name="allocation", status="unavailable", error="gone"))
    found = reconcile(
        Question(cloud_account_id="a", window=TWO_DAYS),
        failed,
        read([row("shop", cpuCost=1), row("__idle__")]),
        [managed(2.0)],
    )
    assert found.total_cost == 3.0 and not found.complete


def test_adding_two_allocations_divides_by_the_minutes_of_their_union():
    def one(start, cores):
        return Allocation(
            name="a", namespace="a", start=start, end=start + HOUR, usage=Usage(cpu_request=cores * 60, cpu_usage=0)
        )

    both = add([one(START, 1), one(START + HOUR, 3)])
    assert both.minutes == 120 and both.average("cpu_request") == 2.0


def _numbers(value):
    """Every number of an answer."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [number for one in value for number in _numbers(one)]
    return [value] if isinstance(value, float) else []


names = st.one_of(
    st.sampled_from(["shop", "api", "__idle__", "c/__idle__", "__unmounted__", "__unallocated__", "", "__proto__"]),
    st.text(max_size=12).filter(lambda text: "/" not in text),
)
number = st.one_of(st.none(), st.floats(-1e6, 1e6), st.integers(-1000, 1000))
fields = st.fixed_dictionaries(
    {},
    optional={
        key: number
        for key in (
            "cpuCost cpuCostAdjustment ramCost ramCostAdjustment gpuCost pvCost networkCost loadBalancerCost sharedCost"
            " externalCost totalCost minutes cpuCoreRequestAverage cpuCoreUsageAverage unknownKey"
        ).split()
    },
)


@st.composite
def answers(draw):
    """Sets of several days, with nulls, negatives, missing and unknown keys."""
    sets = []
    for day in range(draw(st.integers(0, 4))):
        window = {"start": iso(START + day * DAY), "end": iso(START + (day + 1) * DAY)}
        rows = draw(st.dictionaries(names, fields, max_size=8))
        sets.append({name: {"name": name, "window": window, **numbers} for name, numbers in rows.items()})
    return sets


def test_a_request_too_small_to_divide_by_is_none():
    assert efficiency(117.0, 6.4e-307, 1.0) == 1.0 and efficiency(0.0, 5e-324, 1.0) == 0.0
    assert efficiency(1.0, 2.0, 1.0) == 0.5


@given(answers(), st.sampled_from(["separate", "share", "hide"]), st.one_of(st.none(), st.floats(0, 1e6)))
def test_identities_hold_for_any_answer(sets, idle, management):
    window = Window.past(START, START + 4 * DAY)
    body = json.dumps({"code": 200, "data": sets}).encode()
    try:
        decoded = decode_allocation("upstream", body, ("namespace",))
    except BadAnswer:  # no workload's row can be read; of what is made up here only a cost below zero is such
        costs = [cost for one in sets for row in one.values() for key, cost in row.items() if key.endswith("Cost")]
        assert any(cost is not None and cost < 0 for cost in costs)
        return
    reading = judge_sets("allocation", decoded.sets, window, 0)
    nodes = ManagementReading(
        source=SourceReport(name="assets", status="ok"), usd=management, nodes=NodeCosts(cpu=10.0, ram=5.0, gpu=1.0)
    )
    found = reconcile(
        Question(cloud_account_id="a", window=window, detail="pod", idle=idle, aggregate=("node",)),
        reading,
        None,
        [nodes],
    )
    assert all(isfinite(value) for value in _numbers(msgspec.to_builtins(found)))
    if not reading.usable:
        assert found.total_cost is None and found.idle_cost is None
        return
    quarantined = sum(one.quarantined for one in decoded.sets)
    known = sum(len(one.allocations) for one in decoded.sets)
    assert known + quarantined == sum(len(one) for one in sets)
    parts = [getattr(found.summary, f"{name}_cost") for name in (
        "cpu", "ram", "gpu", "pv", "network", "load_balancer", "shared", "external", "management",
    )]  # fmt: skip
    tolerance = 1e-6 * max(1.0, fsum(abs(p) for p in parts if p is not None))
    told = fsum(a.costs.total for one in reading.sets for a in one.allocations)
    if None not in parts[:8] and any(a.special == "__idle__" for a in reading.allocations()):
        assert isclose(found.summary.known_cost, told + (management or 0.0), abs_tol=tolerance)
    if found.total_cost is None:
        assert management is None or reading.missing
        return
    for rows in (
        found.breakdown_by_namespace,
        found.breakdown_by_workload,
        found.breakdown_by_pod,
        found.breakdown_by_aggregate,
    ):
        listed = fsum(r.total_cost for r in rows)
        whole = listed + found.idle_cost + found.unallocated_cost + management
        assert isclose(whole, found.total_cost, abs_tol=tolerance)
    assert isclose(
        found.unallocated_cost, fsum(v for n, v in found.special.items() if n != "__idle__"), abs_tol=tolerance
    )


@given(st.integers(1, 3000), st.integers(1, 50))
def test_grouping_thousands_of_rows_loses_nothing(count, groups):
    many = [
        Allocation(name=str(n), namespace=f"n{n % groups}", pod=str(n), costs=Costs(cpu=n / 32, ram=1 / 32))
        for n in range(count)
    ]
    grouped = dict(group(many, ("namespace",)))
    assert fsum(g.costs.total for g in grouped.values()) == fsum(a.costs.total for a in many)
    assert sum(g.pods for g in grouped.values()) == count


quantity = st.sampled_from([0.0, 1e-12, 1 / 3, 60.0, 2.5e6])
_allocation = st.builds(
    Allocation, name=st.just("a"), namespace=st.sampled_from("xyz"), pod=st.sampled_from("pq"),
    start=st.sampled_from([0, HOUR]), end=st.sampled_from([0, HOUR, 2 * HOUR]),
    costs=st.builds(Costs, quantity, quantity), usage=st.builds(Usage, quantity, quantity, quantity, quantity),
    unknown=st.sampled_from([(), (), ("cpu_usage",), ("ram_request", "ram"), ("gpu", "ram_usage")]),
)  # fmt: skip


@given(st.lists(_allocation, max_size=12), st.sampled_from([(), ("namespace",), ("namespace", "pod")]))
def test_a_line_is_what_its_group_is(many, aggregate):
    lines = {one.name: one for one in lines_of(Allocations.of(many), None, aggregate)}
    groups = {"/".join(key): one for key, one in group(many, aggregate)}
    assert lines.keys() == groups.keys()
    for name, one in groups.items():
        line = lines[name]
        ratios = (line.cpu_efficiency, line.ram_efficiency, line.total_efficiency)
        assert (line.pod_count, ratios) == (one.pods, astuple(one.efficiency))
        assert line.cpu_core_request_average == one.average("cpu_request")
        assert line.cpu_core_usage_average == one.average("cpu_usage")
        assert line.ram_byte_request_average == one.average("ram_request")
        assert line.ram_byte_usage_average == one.average("ram_usage")


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=20), st.floats(-1e4, 1e6))
def test_sharing_idle_changes_rows_never_the_total(costs, idle):
    owned = [Allocation(name=str(n), namespace=str(n), costs=Costs(cpu=c)) for n, c in enumerate(costs)]
    shared, rest = share_idle(owned, Costs(cpu=idle))
    before, after = fsum(costs) + idle, fsum(a.costs.total for a in shared) + rest.total
    assert isclose(before, after, rel_tol=1e-9, abs_tol=1e-6)


def test_coverage_counts_the_union_and_only_what_is_final():
    def ran(start, end):
        return Allocation(name="a", namespace="a", start=start, end=end)

    one = AllocationSet(START, START + DAY, (ran(START, START + 6 * HOUR), ran(START + 3 * HOUR, START + 9 * HOUR)))
    assert coverage([one], Window.past(START, START + DAY)) == 9 / 24
    assert coverage([one], Window.past(START, START + 6 * HOUR)) == 1.0
    assert coverage([one], Window(START, START + HOUR, START)) is None
    assert coverage([], Window.past(START, START + DAY)) == 0.0


NULLS = dict.fromkeys(("cpuCost", "ramCost"))


def test_rows_that_say_nothing_leave_no_idle_to_stand_for_all_of_it():
    for rest in ({}, {"gpuCost": 0, "pvCost": 0, "networkCost": 0, "loadBalancerCost": 0}):
        silent = [row("shop", **NULLS, **rest), row("api", **NULLS, **rest), row("__idle__", cpuCost=5, ramCost=1)]
        reading = read(silent)
        assert reading.source.status == "no_data" and not reading.sets
        assert statement(reading).total_cost is None


def test_rows_without_a_window_are_a_bad_answer_and_never_no_data_or_idle_alone():
    for window in ({"start": "x", "end": "y"}, {"start": iso(START + DAY), "end": iso(START)}):
        lost = {**row("shop", cpuCost=1, ramCost=1), "window": window}
        for rows in ([lost], [lost, row("__idle__", cpuCost=1, ramCost=1)]):
            with pytest.raises(BadAnswer, match="none can be read"):
                read(rows)


@pytest.mark.parametrize("numbers", [{"totalCost": 1e13}, {"minutes": 1e25}, {"cpuCost": 1e13}, {"gpuHours": -1e25}])
def test_a_figure_that_no_sum_can_hold_takes_its_row_and_says_so(numbers):
    reading = read([row("shop", cpuCost=1, ramCost=1), row("api", **{"cpuCost": 1, "ramCost": 1, **numbers})])
    assert reading.source.status == "partial" and [one.quarantined for one in reading.sets] == [1]
    assert reading.allocations().total() == 2.0


def test_stamps_up_to_the_end_of_time_are_covered_as_they_are():
    late = 2**32 - DAY - 2**32 % DAY
    one = AllocationSet(late, late + DAY, (Allocation(name="a", namespace="a", start=late, end=late + 6 * HOUR),))
    assert one.covered(late + DAY) == 6 * HOUR
    never = AllocationSet(START, START + DAY, (Allocation(name="a", namespace="a", start=late, end=START + DAY),))
    assert never.covered(START + DAY) == 0


def test_a_label_that_stands_under_two_spellings_has_one_value_whatever_their_order():
    labels = {"a.b": "2", "a-b": "1"}
    rows = [
        Allocation(name=str(n), namespace="shop", labels=dict(sorted(labels.items(), reverse=bool(n))))
        for n in range(2)
    ]
    assert [key for key, _ in group(rows, ("label:a_b",))] == [("1",)]
    assert [key for key, _ in group(rows, ("label:a.b",))] == [("2",)]
