"""Allocation answers of many sets: what is read once for all of them is what each would say alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metroculus.cost_model.columns import add
from metroculus.sources.answers import allocation_json
from metroculus.sources.answers.allocation_json import decode_allocation
from metroculus.sources.errors import BadAnswer
from tools.window import DAY, iso

COMPACT, SPACED = (",", ":"), (", ", ": ")
NEW_YEAR = 1798761600


def row(start, cpu, name="shop/web", **properties):
    window = {"start": iso(start), "end": iso(start + DAY)}
    return {
        "name": name,
        "properties": {"namespace": "shop", **properties},
        "window": window,
        "cpuCost": cpu,
        "ramCost": 0,
    }


def body(sets, separators=COMPACT):
    return json.dumps({"code": 200, "data": sets}, separators=separators).encode()


def repeated(first, second, separators):
    """A set whose two rows have one key, the second after others or right behind the first."""
    return body([{"a": first, "b": second, "c": first}], separators).replace(b'"b"', b'"a"')


@pytest.mark.parametrize("separators", [COMPACT, SPACED])
@pytest.mark.parametrize("start", [0, NEW_YEAR - DAY])
def test_a_key_that_stands_twice_in_a_set_is_refused(separators, start):
    bad = repeated(row(start, 1), row(start, 2), separators)
    with pytest.raises(BadAnswer, match="same key twice"):
        decode_allocation("x", bad, ("namespace", "pod"))


@pytest.mark.parametrize("separators", [COMPACT, SPACED])
def test_windows_that_begin_unlike_and_names_that_say_window_are_read(separators):
    sets = [{"a": row(NEW_YEAR - DAY, 1, name='"window"')}, {"a": row(NEW_YEAR, 2)}]
    found = decode_allocation("x", body(sets, separators), ("namespace", "pod")).sets
    assert [one.columns.total() for one in found] == [1, 2]


@pytest.mark.parametrize("properties", ['{"namespace": 5}', '"text"', "[1]", '{"labels": {"a": 1}}', '{"services": 7}'])
def test_properties_that_cannot_be_read_leave_their_row_out_and_are_counted(properties):
    text = body([{"a": row(0, 1), "b": row(0, 2, name="shop/db", mark=1)}]).decode()
    bad = text.replace('{"namespace":"shop","mark":1}', properties).encode()
    (found,) = decode_allocation("x", bad, ("namespace", "pod")).sets
    assert (found.columns.total(), found.quarantined) == (1, 1)


def refused(rows, aggregate):
    try:
        decode_allocation("x", body([rows]), aggregate)
    except BadAnswer:
        return True
    return False


names = st.sampled_from(["shop/web", "shop/db", "blog/web", "__idle__", "a/b/c", "x" * 1030, ""])
properties = st.sampled_from(
    [
        None,
        {},
        {"namespace": "shop", "pod": "web"},
        {"namespace": "shop", "pod": "db", "labels": {"team": "a"}, "services": ["s", "t"]},
        {"namespace": "b/ad", "node": "n1"},
        {"controller": "web", "controllerKind": "deployment", "annotations": {"x": "y"}},
    ]
)


figures = st.sampled_from(
    [
        {},
        {"cpuCost": None},
        {"cpuCost": -5.0},
        {"ramCost": 1e300},
        {"cpuCost": 1e308, "ramCost": 1e308, "totalCost": -1e308},
        {"cpuCost": 1e308, "cpuCostAdjustment": 1e308},
        {"cpuCoreRequestAverage": 1e308, "ramByteUsageAverage": 1.7e308},
        {"cpuCost": None, "ramCost": None},
        {"totalCost": 9.0},
        {"minutes": 30.0, "cpuCoreRequestAverage": 2.0},
        {"minutes": None, "ramByteRequestAverage": None},
        {"start": "nonsense", "end": None},
        {"window": None},
        {"cpuCost": "text"},
    ]
)


@pytest.mark.parametrize("rows_together", [0, 3, 1024])
@given(
    st.lists(st.lists(st.tuples(names, properties, figures), min_size=1, max_size=5), min_size=1, max_size=6),
    st.sampled_from([("namespace", "pod"), ("namespace",), ("label:team",), ("service",), ()]),
)
def test_sets_of_one_answer_say_what_each_says_alone(rows_together, drawn, aggregate):
    sets = []
    for day, rows in enumerate(drawn):
        start = day * DAY
        sets.append({})
        for number, (name, told, figure) in enumerate(rows):
            sets[-1][f"k{number}"] = row(start, 2.0**number, name=name) | {"properties": told} | figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation_json, "ROWS_TOGETHER", rows_together)
        compared_with_each_alone(sets, aggregate)


def compared_with_each_alone(sets, aggregate):
    try:
        together = decode_allocation("x", body(sets), aggregate).sets
    except BadAnswer:
        assert any(refused(one, aggregate) for one in sets)
        return
    assert len(together) == len(sets)
    told = {(found.start, found.end): found for found in together if found.end}
    alone = []
    for one in sets:
        try:
            alone += [one for one in decode_allocation("x", body([one]), aggregate).sets if one.end]
        except BadAnswer:  # of its rows none can be read, and idle alone stands for nothing
            continue
    for one in alone:
        found = told.pop((one.start, one.end))
        assert list(found.columns) == list(one.columns)
        assert (found.quarantined, found.disagreement) == (one.quarantined, one.disagreement)
    assert not any(found.columns.owned.any() for found in told.values())


DAY_START = "2026-11-20T00:00:00Z"
ONE_DAY = {"start": DAY_START, "end": "2026-11-21T00:00:00Z"}


def shop_row(cpu, window=ONE_DAY, **more):
    row = {"properties": {"namespace": "shop"}, "cpuCost": cpu, "ramCost": 0, "window": window}
    return json.dumps(row | more, separators=(",", ":"))


@pytest.mark.parametrize(
    "rows",
    [
        f'"shop":{shop_row(100, properties={"namespace": "shop", "labels": {"window": "night"}})},"shop":{shop_row(7)}',
        f'"shop":{shop_row(100)},"shop":{shop_row(7)},"blog":{shop_row(1, window=None)}',
        f'"shop":{shop_row(100)},"shop":{shop_row(7)},"blog":{{"cpuCost":1}}',
        '"shop":' + shop_row(100).replace('"window"', r'"w\u0069ndow"') + f',"shop":{shop_row(7)},'
        + f'"blog":{shop_row(1, properties={"namespace": "b", "labels": {"window": "x"}})}',
    ],
)  # fmt: skip
def test_a_row_that_stands_twice_is_refused_however_the_rest_looks(rows):
    body = f'{{"code":200,"data":[{{{rows}}}]}}'.encode()
    with pytest.raises(BadAnswer, match="same key twice"):
        decode_allocation("source", body, ("namespace",))


def test_a_row_that_cannot_be_read_does_not_widen_its_set():
    two_days = {"start": DAY_START, "end": "2026-11-22T00:00:00Z"}
    broken = shop_row(5, window=two_days, properties={"namespace": 5})
    body = f'{{"code":200,"data":[{{"shop":{shop_row(100)},"broken":{broken}}}]}}'.encode()
    (one,) = decode_allocation("source", body, ("namespace",)).sets
    assert one.end - one.start == 86400 and one.quarantined == 1
    assert one.columns.sum_costs().cpu == 100


def test_a_null_adjustment_makes_its_cost_unknown_and_the_rest_of_it_known():
    body = f'{{"code":200,"data":[{{"shop":{shop_row(100, cpuCostAdjustment=None)}}}]}}'.encode()
    (one,) = decode_allocation("source", body, ("namespace",)).sets
    assert one.columns.unknown_components() == ("cpu",) and one.columns.sum_costs().cpu == 100


def test_usage_that_is_null_is_unknown_and_of_no_time_nothing():
    silent = shop_row(1, minutes=60, cpuCoreUsageAverage=None, cpuCoreRequestAverage=1)
    brief = shop_row(1, minutes=0, cpuCoreUsageAverage=None, cpuCoreRequestAverage=None)
    body = f'{{"code":200,"data":[{{"a":{silent},"b":{brief}}}]}}'.encode()
    (one,) = decode_allocation("source", body, ("namespace",)).sets
    first, second = one.allocations
    assert "cpu_usage" in first.unknown and "cpu_request" not in first.unknown
    assert "cpu_usage" not in second.unknown
    assert add([first]).efficiency.cpu_efficiency is None
