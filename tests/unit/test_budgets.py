"""Budgets are decided on bounds: a property over what may be true, and cases worked by hand."""

from __future__ import annotations

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from metroculus.cost_model.budgets import Bounds, Budget, BudgetError, Scope, Threshold, check_budget, judge, same_name
from metroculus.cost_model.trend import unknown_cost_bound
from metroculus.sources.clusters import Clusters
from metroculus.sources.errors import BadAnswer, SeveralClusters
from metroculus.sources.kubecost.budgets import decode_budgets, decode_forecast
from tools.window import HOUR
from tools.zones import UTC_ZONE, Zone

pytestmark = pytest.mark.watch

BUDGET = Budget(name="b", amount=100.0)
money = st.floats(0, 1e6, allow_nan=False)


@given(low=money, more=money, true=st.floats(0, 1), forecast=money, amount=st.floats(0.01, 1e6))
def test_what_is_decided_holds_whatever_the_truth_between_the_bounds_is(low, more, true, forecast, amount):
    spent = Bounds(low, low + more)
    judged = judge(replace(BUDGET, amount=amount), spent, Bounds(low + forecast, low + forecast + more))
    truth = low + true * more
    if judged.state == "exceeded":
        assert truth > amount
    if judged.state == "ok":
        assert truth <= amount
    for threshold, crossing in zip(BUDGET.thresholds, judged.crossings, strict=True):
        if threshold.on == "actual" and crossing != "unknown":
            assert (truth >= amount * threshold.percent / 100 * (1 - 1e-9)) == (crossing == "crossed")


@pytest.mark.parametrize(
    ("spent", "forecast", "state", "crossings"),
    [
        (Bounds(10, 10), Bounds(30, 30), "ok", ("not_crossed", "not_crossed", "not_crossed")),
        (Bounds(10, 10), Bounds(130, 130), "warning", ("not_crossed", "not_crossed", "crossed")),
        (Bounds(80, 80), Bounds(90, 90), "warning", ("crossed", "not_crossed", "not_crossed")),
        (Bounds(100, 100), Bounds(100, 100), "warning", ("crossed", "crossed", "crossed")),
        (Bounds(100.00000000001, 101), Bounds(101, 102), "warning", ("crossed", "crossed", "crossed")),
        (Bounds(101, 101), Bounds(101, 101), "exceeded", ("crossed", "crossed", "crossed")),
        (Bounds(300, None), Bounds(300, None), "exceeded", ("crossed", "crossed", "crossed")),
        (Bounds(10, 90), Bounds(30, 110), "unknown", ("unknown", "not_crossed", "unknown")),
        (Bounds(85, 105), Bounds(90, 110), "warning", ("crossed", "unknown", "unknown")),
        (Bounds(10, None), Bounds(10, None), "unknown", ("unknown", "unknown", "unknown")),
        (Bounds(0, 0), Bounds(0, None), "unknown", ("not_crossed", "not_crossed", "unknown")),
    ],
)
def test_states_by_hand(spent, forecast, state, crossings):
    judged = judge(BUDGET, spent, forecast)
    assert (judged.state, judged.crossings) == (state, crossings)


@given(
    hours=st.dictionaries(st.integers(0, 28 * 24 - 1).map(lambda n: n * HOUR), money, min_size=1, max_size=200),
    missing=st.dictionaries(st.integers(28 * 24, 35 * 24).map(lambda n: n * HOUR), money, max_size=50),
    share=st.floats(0, 1),
)
def test_what_gaps_may_cost_is_never_less_than_the_like_of_them_did(hours, missing, share):
    bound = unknown_cost_bound(hours, missing)
    dearest = max(hours.values())
    for hour, known in missing.items():
        like = [usd for at, usd in hours.items() if at // HOUR % 168 == hour // HOUR % 168] or [dearest]
        like += [usd for _, usd in sorted(hours.items())[-24:]]
        assert bound is not None and bound >= share * max(0.0, max(like) - known) - 1e-6
    assert unknown_cost_bound({}, missing) == (None if missing else 0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": " "}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"amount": 0.0}, "amount"),
        ({"amount": 5e-324}, "amount"),
        ({"thresholds": (Threshold(percent=1e-9),)}, "percent"),
        ({"amount": -1.0}, "amount"),
        ({"amount": float("nan")}, "amount"),
        ({"amount": float("inf")}, "amount"),
        ({"currency": "usd"}, "currency"),
        ({"thresholds": ()}, "thresholds"),
        ({"thresholds": (Threshold(percent=80.0),) * 2}, "differ"),
        ({"thresholds": (Threshold(percent=0.0),)}, "percent"),
        ({"thresholds": (Threshold(percent=float("nan")),)}, "percent"),
        ({"scope": Scope(values=("x",))}, "values need a label"),
        ({"scope": Scope(cluster_id="theirs")}, "none of this organization's"),
        ({"scope": Scope(namespace="")}, "1 to 500"),
        ({"scope": Scope(label="x" * 501)}, "1 to 500"),
        ({"scope": Scope(cost_center="nobody")}, "no cost center 'nobody'"),
        ({"scope": Scope(cost_center="payments", namespace="x")}, "stands alone"),
        ({"scope": Scope(cost_center="payments"), "period": "week"}, "period"),
    ],
)
def test_a_budget_that_nothing_could_be_held_against_is_refused(change, said):
    with pytest.raises(BudgetError, match=said):
        check_budget(replace(BUDGET, **change), frozenset({"mine"}), ["payments"])


def test_quarters_and_years_are_those_of_the_calendar():
    for day, quarter, year in (
        ("2026-01-01", ("2026-01-01", "2026-04-01"), ("2026-01-01", "2027-01-01")),
        ("2028-02-29", ("2028-01-01", "2028-04-01"), ("2028-01-01", "2029-01-01")),
        ("2026-12-31", ("2026-10-01", "2027-01-01"), ("2026-01-01", "2027-01-01")),
    ):
        for zone in (UTC_ZONE, Zone("Pacific/Auckland")):
            at = zone.first_hour(date.fromisoformat(day))
            for length, expected in (("quarter", quarter), ("year", year)):
                assert zone.period(at, length) == tuple(zone.first_hour(date.fromisoformat(one)) for one in expected)


KEPT = {
    "name": "web", "id": "e59c", "values": {"namespace": ["shop"]}, "kind": "soft", "interval": "monthly",
    "intervalDay": 1, "spendLimit": 100, "actions": [], "currentSpend": 40.5,
    "window": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
}  # fmt: skip


def told(*budgets):
    return json.dumps({"code": 200, "data": list(budgets)}).encode()


def test_names_that_are_read_as_one_are_one():
    assert same_name("All of it", " all  of IT ") and same_name("caf\u00e9", "cafe\u0301")
    assert not same_name("all", "al l")


def test_what_began_lately_bounds_what_is_missing_of_it():
    hours = {n * HOUR: 0.0 for n in range(500)} | {n * HOUR: 50.0 for n in range(500, 503)}
    assert unknown_cost_bound(hours, {n * HOUR: 0.0 for n in range(503, 508)}) == 250.0


def test_kubecosts_own_budgets_are_read():
    (one,) = decode_budgets(told(KEPT), Clusters())
    assert (one.name, one.period, one.amount, one.spent) == ("web", "month", 100.0, 40.5)
    assert one.scope == {"namespace": ("shop",)} and one.end - one.start == 30 * 86400
    (one,) = decode_budgets(told({"name": "x", "values": None, "window": None, "currentSpend": None}), Clusters())
    assert one.spent is None and one.amount is None and one.start is None
    assert decode_budgets(b'{"code": 200, "data": null}', Clusters()) == ()


def test_one_that_cannot_be_read_takes_no_other_with_it():
    odd = [{"spendLimit": "100", "id": 7, "name": None, "values": {"cluster": None}}, {"spendLimit": {}}, KEPT]
    found = decode_budgets(told(*odd), Clusters())
    assert [(one.id, one.name, one.amount) for one in found] == [("7", "", 100.0), ("e59c", "web", 100.0)]


def test_budgets_of_another_cluster_of_the_same_kubecost_are_never_shown():
    several = [KEPT | {"id": name, "values": {"cluster": [name]}} for name in ("mine", "theirs")]
    several += [KEPT | {"id": "both", "values": {"cluster": ["mine", "theirs"]}}, KEPT]
    assert [one.id for one in decode_budgets(told(*several), Clusters(("mine",)))] == ["mine"]
    assert len(decode_budgets(told(*several), Clusters(("*",)))) == 4
    with pytest.raises(SeveralClusters):
        decode_budgets(told(*several), Clusters())


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"<html>", b'{"code": 500, "data": []}', b'{"code": 200, "data": [{"spendLimit": "much"}]}',
     b'{"code": 200, "data": [{"currentSpend": 1e300}]}', b'{"code": 200, "data": [{"values": {"cluster": "x"}}]}',
     told(*[KEPT] * 1001), b"[" * 100_000],
)  # fmt: skip
def test_what_are_no_budgets_is_a_bad_answer(body):
    with pytest.raises(BadAnswer):
        decode_budgets(body, Clusters())


def test_a_forecast_is_the_sum_of_its_days_and_none_where_a_day_is_not_told():
    def day(number, usd):
        return {
            "predictedCost": usd,
            "confidenceInterval": {"lowerConfidenceLimit": 1.0, "upperConfidenceLimit": 5.0},
            "window": {"start": f"2026-11-{number:02}T00:00:00Z", "end": f"2026-11-{number + 1:02}T00:00:00Z"},
        }

    def body(*days):
        return json.dumps({"code": 200, "data": {"arima/type": {"predictions": {"all": list(days)}}}}).encode()

    found = decode_forecast(body(day(1, 2.5), day(2, 3.5)))
    assert (found.expected, found.low, found.high, found.end - found.start) == (6.0, 2.0, 10.0, 2 * 86400)
    assert decode_forecast(body(day(1, 2.5), day(2, None))) is None
    assert decode_forecast(body()) is None and decode_forecast(b'{"code": 200, "data": null}') is None
