"""Hours against their control total, and brought to their day."""

from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.columns import Allocations, by_owner
from metroculus.cost_model.components import COMPONENTS, Costs
from metroculus.cost_model.settle import control, spread
from metroculus.metroculus_worker.extract import Verdict, assemble, beside_its_day
from metroculus.sources.choose import HourReading
from tools.window import DAY, HOUR


def row(namespace="a", **costs):
    return Allocation(name=namespace, namespace=namespace, costs=Costs(**costs))


@pytest.mark.parametrize(
    ("told", "reconciled"),
    [(10.0, True), (10.01, True), (9.99, True), (10.011, False), (9.9, False), (10.2, False), (0.0, False)],
)
def test_an_hour_further_than_a_cent_or_a_hundredth_from_its_control_is_unreconciled(told, reconciled):
    found = control([row(cpu=10.0)], told)
    assert found.residual == pytest.approx(told - 10.0)
    assert found.reconciled is reconciled


def test_what_rounding_explains_is_no_disagreement():
    many = [row(cpu=1e-5)] * 1000
    assert control(many, 0.02).reconciled
    assert not control(many, 0.2).reconciled


def test_a_small_hour_is_held_to_a_hundredth():
    assert control([row(cpu=0.1)], 0.1009).reconciled
    assert not control([row(cpu=0.1)], 0.105).reconciled


def test_a_days_difference_is_spread_in_proportion_over_its_component():
    hours = [[row(cpu=1.0, pv=1.0)], [row(cpu=3.0)]]
    found = spread(hours, {"a": Costs(cpu=4.2, pv=1.0)})
    assert [one[0].costs.cpu for one in found.hours] == pytest.approx([1.05, 3.15])
    assert found.hours[0][0].costs.pv == 1.0
    assert found.usd == pytest.approx((0.05, 0.15))
    assert found.reconciled


def test_each_namespace_follows_what_the_day_says_of_it():
    hours = [[row("a", cpu=1.0), row("b", cpu=1.0)], [row("a", cpu=1.0), row("__idle__", cpu=7.0)]]
    found = spread(hours, {"a": Costs(cpu=2.1), "b": Costs(cpu=0.95), "__idle__": Costs(cpu=7.0)})
    sums = by_owner(a for hour in found.hours for a in hour)
    assert {name: costs.cpu for name, costs in sums.items()} == pytest.approx({"a": 2.1, "b": 0.95, "__idle__": 7.0})
    assert found.reconciled


def test_nothing_of_one_owner_is_charged_to_another():
    hours = [[row("batch", cpu=9.0), row("shop", cpu=1.0)]]
    found = spread(hours, {"batch": Costs(cpu=7.2), "shop": Costs(cpu=1.0), "lost": Costs(cpu=1.5)})
    assert [list(one) for one in found.hours] == hours and not found.reconciled
    assert found.residuals == {("batch", "cpu"): pytest.approx(-1.8), ("lost", "cpu"): 1.5}
    assert found.bound == pytest.approx(3.3)


def test_an_owner_and_component_that_follow_do_so_beside_others_that_cannot():
    hours = [[row("a", cpu=2.0, ram=1.0), row("b", cpu=1.0)]]
    found = spread(hours, {"a": Costs(cpu=2.1, ram=5.0), "b": Costs(cpu=1.0)})
    assert found.hours[0][0].costs == Costs(cpu=pytest.approx(2.1), ram=1.0)
    assert found.hours[0][1] == hours[0][1] and found.residuals == {("a", "ram"): 4.0}


def test_a_day_too_far_from_its_hours_is_left_and_said():
    hours = [[row(cpu=1.0)], [row(cpu=3.0)]]
    for day in (Costs(cpu=4.5), Costs(cpu=3.5), Costs(), Costs(cpu=4.0, ram=1.0)):
        found = spread(hours, {"a": day})
        assert (found.reconciled, found.usd) == (False, (0.0, 0.0))
        assert [list(one) for one in found.hours] == hours


def test_hours_that_cancel_stay_and_their_difference_is_an_amount():
    hours = [[row("__idle__", cpu=usd)] for usd in (0.1, 0.2, -0.3)]
    found = spread(hours, {"__idle__": Costs(cpu=2.4)})
    assert [list(one) for one in found.hours] == hours
    assert found.residuals == {("__idle__", "cpu"): pytest.approx(2.4)}


def test_hours_that_nearly_cancel_move_by_no_more_than_the_difference():
    hours = [[row("__idle__", cpu=5.0)], [row("__idle__", cpu=-4.0)]]
    found = spread(hours, {"__idle__": Costs(cpu=1.09)})
    moved = [new[0].costs.cpu - old[0].costs.cpu for new, old in zip(found.hours, hours, strict=True)]
    assert moved == pytest.approx([0.05, 0.04]) and found.reconciled


signed = st.floats(-100, 100).filter(lambda usd: abs(usd) > 1e-3)
owners = st.sampled_from(["a", "b", "c", "__idle__"])


@given(
    st.lists(st.lists(st.builds(row, owners, cpu=signed, ram=signed), min_size=1, max_size=5), min_size=1, max_size=6),
    st.dictionaries(owners, st.builds(Costs, cpu=signed, ram=signed)),
)
def test_each_owner_and_component_follows_its_day_or_keeps_its_hours_and_the_residual(hours, day):
    found = spread(hours, day)
    before = by_owner(a for hour in hours for a in hour)
    after = by_owner(a for hour in found.hours for a in hour)
    for owner in {*before, *day}:
        for name in COMPONENTS:
            was, now = (getattr(sums.get(owner, Costs()), name) for sums in (before, after))
            told = getattr(day.get(owner, Costs()), name)
            residual = found.residuals.get((owner, name), 0.0)
            assert now + residual == pytest.approx(told, abs=1e-3)
            if residual:
                assert now == was
            assert abs(now - was) <= 0.1 * abs(was) + 1e-9
    moved = [
        abs(new.costs.cpu - old.costs.cpu)
        for after_hour, hour in zip(found.hours, hours, strict=True)
        for new, old in zip(after_hour, hour, strict=True)
    ]
    apart = sum(abs(day.get(o, Costs()).cpu - before[o].cpu) for o in before)
    assert fsum(moved) <= apart + 1e-9


def test_a_day_that_agrees_changes_nothing():
    hours = [[row(cpu=0.1), row(cpu=0.2)]]
    assert spread(hours, {"a": Costs(cpu=fsum((0.1, 0.2)))}).hours[0] == tuple(hours[0])


money = st.floats(0.05, 1e4)


@given(
    st.lists(st.lists(st.builds(row, cpu=money, ram=money, network=money), min_size=1), min_size=1),
    st.floats(0.91, 1.09),
)
def test_hours_add_up_to_their_day_whatever_they_are(hours, factor):
    sums = Costs.sum(a.costs for hour in hours for a in hour)
    day = Costs(*(usd * factor for usd in sums.by_component()))
    found = spread(hours, {"a": day})
    after = Costs.sum(a.costs for hour in found.hours for a in hour)
    for name in COMPONENTS:
        assert getattr(after, name) == pytest.approx(getattr(day, name), rel=1e-12)
    assert fsum(found.usd) == pytest.approx(day.total - sums.total, abs=1e-9 * sums.total)


MIDNIGHT = 1795132800
PAST = 1800


def reading(number, usd, cut_from=None, **more):
    hour = MIDNIGHT + number * HOUR
    allocations = Allocations.of([row(cpu=usd)])
    return HourReading(
        hour=hour, allocations=allocations, seconds=HOUR, control=None, management=None, cut_from=cut_from, **more
    )


def stored(readings, day):
    batches, _ = assemble("account", readings, {"a": Costs(cpu=day)}, MIDNIGHT + 2 * DAY)
    return [batch.allocations.total() for batch in batches], {batch.reconciled for batch in batches}


def test_hours_cut_out_of_their_day_take_all_that_it_says_beyond_the_others():
    day = (MIDNIGHT, MIDNIGHT + DAY)
    totals, reconciled = stored([reading(0, 10.0), reading(1, 1.0, day), reading(2, 3.0, day)], 30.0)
    assert totals == pytest.approx([10.0, 5.0, 15.0]) and reconciled == {True}


def test_hours_that_cannot_be_asked_for_again_follow_their_day_however_far_it_is():
    totals, reconciled = stored([reading(0, 10.0, gone=True), reading(1, 30.0, gone=True)], 20.0)
    assert totals == pytest.approx([5.0, 15.0]) and reconciled == {True}


def test_hours_at_half_past_follow_their_day_no_further_than_others():
    """Each is cut out of two hours of the source, which can be asked for again."""
    readings = [reading(n, 10.0, (MIDNIGHT + n * HOUR - PAST, MIDNIGHT + (n + 1) * HOUR + PAST)) for n in range(2)]
    assert stored(readings, 40.0) == ([10.0, 10.0], {False})
    assert stored(readings, 21.0) == (pytest.approx([10.5, 10.5]), {True})


def test_what_a_day_says_of_the_hours_beside_the_told_ones():
    day = (MIDNIGHT, MIDNIGHT + DAY)

    def verdict(says, told=10.0):
        readings = {one.hour: one for one in (reading(0, 10.0, day), reading(1, 10.0, day))}
        return beside_its_day(readings, {MIDNIGHT}, {"a": Costs(cpu=says)}, {"a": Costs(cpu=told)})

    assert verdict(20.0) == verdict(12.0) == verdict(30.0) == Verdict()
    assert verdict(10.4) == verdict(9.6) == Verdict(empty=frozenset({MIDNIGHT + HOUR}))
    assert verdict(31.0) == verdict(5.0) == Verdict(replaced=frozenset({MIDNIGHT}))
