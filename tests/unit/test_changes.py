"""Steps add up to the difference whatever changed; each cause is found by itself; spikes, and what is none."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from math import fsum
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from metroculus.cost_model.anomalies import LOOK_BACK_SECONDS, spikes
from metroculus.cost_model.changes import GROUP_SEPARATOR, Measured, changes
from metroculus.cost_model.components import Amounts, Costs, Egress, Usage
from tools.window import DAY, HOUR

pytestmark = pytest.mark.watch

IDLE, MANAGEMENT = "__idle__", "__management__"
CPU_PRICE, RAM_PRICE = 0.03, 0.004


def group(containers=2, cores=0.5, gib=1.0, hours=24, price=CPU_PRICE, usage=None, **more):
    run = containers * hours
    core_hours, gib_hours = cores * run, gib * run
    used = cores if usage is None else usage
    return Measured(
        costs=Costs(cpu=core_hours * price, ram=gib_hours * RAM_PRICE, **more.pop("costs", {})),
        amounts=Amounts(cpu=core_hours, ram=gib_hours),
        usage=Usage(cores * run * 60 if usage is None else 0.0, used * run * 60, gib * run * 60, gib * run * 60),
        run_hours=run,
        **more,
    )


def world(nodes=4, price=CPU_PRICE, hours=24, **groups):
    """Groups on nodes of 4 cores and 16 GiB; what they leave is idle."""
    cores = nodes * 4 * hours - fsum(one.amounts.cpu for one in groups.values())
    gib = nodes * 16 * hours - fsum(one.amounts.ram for one in groups.values())
    idle = Measured(costs=Costs(cpu=cores * price, ram=gib * RAM_PRICE))
    return groups | {IDLE: idle, MANAGEMENT: Measured(management=0.1 * hours)}


def total(side):
    return fsum(one.total for one in side.values())


BEFORE = world(shop=group(), api=group(containers=4))


def found(after, before=BEFORE):
    steps = changes(before, after)
    assert fsum(step.amount for step in steps) == pytest.approx(total(after) - total(before), rel=1e-9, abs=1e-12)
    return {(step.kind, step.group, step.resource): step for step in steps if abs(step.amount) > 1e-9}


def test_the_steps_of_the_docs_are_right():
    text = (Path(__file__).parent.parent.parent / "docs" / "changes.md").read_text()
    had, was, has, cost = map(
        float, re.search(r"had (\d+) core hours\s+for ([\d.]+) and has (\d+) for ([\d.]+):", text).groups()
    )
    sides = [
        {"x": Measured(costs=Costs(cpu=usd), amounts=Amounts(cpu=hours), run_hours=hours)}
        for hours, usd in ((had, was), (has, cost))
    ]
    steps = {step.kind: step.amount for step in changes(*sides)}
    told = [float(line.split("|")[3]) for line in text.splitlines() if re.match(r"\| .*\| [\d(].*\| [\d.]+ \|", line)]
    assert told == pytest.approx([steps["price"], steps["hours"], sum(steps.values())])


def test_nothing_changed():
    assert found(BEFORE) == {}


def test_requests_were_raised():
    steps = found(world(shop=group(cores=1.0), api=group(containers=4)))
    step = steps["amount", "shop", "cpu"]
    assert step.amount == pytest.approx(24 * CPU_PRICE) and step.because == "requests"
    assert (step.before, step.after, step.unit) == (0.5, 1.0, "core a container")
    assert steps["idle_taken_up", None, "cpu"].amount == pytest.approx(-24 * CPU_PRICE) and len(steps) == 2


def test_usage_rose():
    before = world(shop=group(usage=0.5))
    (step,) = [one for key, one in found(world(shop=group(cores=0.8, usage=0.8)), before).items() if key[1] == "shop"]
    assert step.kind == "amount" and step.because == "usage"


def test_replicas_were_added():
    steps = found(world(shop=group(containers=5), api=group(containers=4)))
    assert steps["hours", "shop", "cpu"].amount == pytest.approx(3 * 24 * 0.5 * CPU_PRICE)
    assert steps["hours", "shop", "ram"].amount == pytest.approx(3 * 24 * RAM_PRICE)
    assert {kind for kind, *_ in steps} == {"hours", "idle_taken_up"}


def test_a_price_was_doubled():
    steps = found(
        world(price=2 * CPU_PRICE, shop=group(price=2 * CPU_PRICE), api=group(containers=4, price=2 * CPU_PRICE))
    )
    assert {kind for kind, *_ in steps} == {"price", "idle_price"}
    assert steps["price", "shop", "cpu"].amount == pytest.approx(24 * CPU_PRICE)
    assert steps["idle_price", None, "cpu"].amount == pytest.approx(BEFORE[IDLE].costs.cpu)


def test_a_namespace_came_and_another_went():
    steps = found(world(shop=group(), new=group(containers=1)))
    assert steps["appeared", "new", None].amount == pytest.approx(group(containers=1).total)
    assert steps["vanished", "api", None].amount == pytest.approx(-group(containers=4).total)


def test_a_node_pool_grew():
    steps = found(world(nodes=6, shop=group(), api=group(containers=4)))
    assert {kind for kind, *_ in steps} == {"nodes"}
    assert steps["nodes", None, "cpu"].amount == pytest.approx(2 * 4 * 24 * CPU_PRICE)
    assert steps["nodes", None, "ram"].amount == pytest.approx(2 * 16 * 24 * RAM_PRICE)


def test_egress_moved_to_the_internet():
    zone = group(costs={"network": 3.0}, egress=Egress(0.0, 0.0, 2.5))
    internet = group(costs={"network": 9.0}, egress=Egress(8.0, 0.0, 0.5))
    steps = found(world(shop=internet), world(shop=zone))
    assert (
        steps["network_internet", "shop", "network"].amount == 8
        and steps["network_zone", "shop", "network"].amount == -2
    )
    assert len(steps) == 2
    assert found(world(shop=replace(internet, egress=Egress())), world(shop=replace(zone, egress=Egress()))).keys() == {
        ("network_other", "shop", "network")
    }


def test_several_at_once():
    after = world(
        nodes=5, price=1.1 * CPU_PRICE, shop=group(containers=3, cores=0.75, price=1.1 * CPU_PRICE),
        new=group(containers=1, price=1.1 * CPU_PRICE),
    )  # fmt: skip
    kinds = {kind for kind, *_ in found(after)}
    assert {"price", "amount", "hours", "appeared", "vanished", "nodes", "idle_price", "idle_taken_up"} <= kinds


def test_the_order_does_not_matter():
    after = world(nodes=5, price=2 * CPU_PRICE, shop=group(containers=3, price=2 * CPU_PRICE), api=group())
    there, back = found(after), found(BEFORE, after)
    assert there.keys() == back.keys()
    for key, step in there.items():
        assert step.amount == pytest.approx(-back[key].amount, rel=1e-9)


def test_a_source_that_tells_no_amounts_has_money_alone():
    blind = replace(group(), amounts=Amounts(), run_hours=0.0)
    steps = found({"shop": replace(blind, costs=Costs(cpu=5.0)), IDLE: Measured(costs=Costs(cpu=2.0))},
                  {"shop": replace(blind, costs=Costs(cpu=3.0)), IDLE: Measured(costs=Costs(cpu=1.0))})  # fmt: skip
    assert {key: step.amount for key, step in steps.items()} == {
        ("cost", "shop", "cpu"): 2.0,
        ("idle", None, "cpu"): 1.0,
    }


def test_credits_that_cancel_what_is_allocated_leave_no_price():
    def side(parts, idle):
        return {str(n): Measured(costs=Costs(cpu=usd), amounts=Amounts(cpu=1.0)) for n, usd in enumerate(parts)} | {
            IDLE: Measured(costs=Costs(cpu=idle))
        }

    steps = found(side([2.0], 90.0), side([0.1 + 0.2, -0.3], 100.0))
    assert max(abs(step.amount) for step in steps.values()) < 1000


def test_groups_are_told_apart_whatever_their_names_are():
    before = {GROUP_SEPARATOR.join(names): group() for names in (("x/y", "z"), ("x", "y/z"))}
    after = {name: group(containers=3) for name in before}
    steps = changes(before, after)
    shown = [step.group for step in steps if step.kind == "hours" and step.resource == "cpu"]
    assert shown == ["x/y/z", "x/y/z"]


number = st.floats(0, 1e4, allow_nan=False).map(lambda usd: round(usd, 3))
credit = st.floats(-1e3, 1e3, allow_nan=False).map(lambda usd: round(usd, 3))
measured = st.builds(
    Measured,
    costs=st.builds(Costs, number, number, number, number, number, number, credit, credit),
    management=number, amounts=st.builds(Amounts, number, number, number, number),
    egress=st.builds(Egress, number, number, number), usage=st.builds(Usage, number, number, number, number),
    run_hours=number,
)  # fmt: skip
sides = st.dictionaries(st.sampled_from(["a", "b", "c", IDLE, MANAGEMENT, "__unmounted__"]), measured)


@given(sides, sides)
def test_steps_add_up_whatever_changed(before, after):
    steps = changes(before, after)
    gross = fsum(abs(step.amount) for step in steps) + abs(total(before)) + abs(total(after))
    assert fsum(step.amount for step in steps) == pytest.approx(
        total(after) - total(before), abs=1e-9 * max(1.0, gross)
    )


END = int(datetime(2026, 11, 16, tzinfo=UTC).timestamp())  # a Monday
WEEKS = range(END - LOOK_BACK_SECONDS - HOUR, END + DAY, HOUR)


def steady(usd=10.0):
    return dict.fromkeys(WEEKS, usd)


def at(hour, totals):
    return [one.hour for one in spikes(totals, range(END, END + DAY, HOUR))] == [hour]


def test_a_spike_of_sixty_percent_is_told_in_its_hour():
    hour = END + 9 * HOUR
    totals = steady() | {hour: 16.0}
    (spike,) = spikes({h: usd for h, usd in totals.items() if h <= hour}, [hour])
    assert (spike.total, spike.typical, spike.mean_before) == (16.0, 10.0, 10.0)
    assert not spikes(steady() | {hour: 14.9}, [hour])


def test_a_monday_morning_is_none():
    busy = {
        h: 10.0 if datetime.fromtimestamp(h, UTC).weekday() > 4 or not 7 <= h % DAY // HOUR < 18 else 40.0
        for h in WEEKS
    }
    assert spikes(busy, range(END, END + DAY, HOUR)) == []
    assert at(END + 9 * HOUR, busy | {END + 9 * HOUR: 90.0})


@pytest.mark.parametrize("shift", [-HOUR, HOUR])
def test_clocks_that_were_changed_are_none(shift):
    busy = {h: 40.0 if 7 <= h % DAY // HOUR < 18 else 10.0 for h in WEEKS}
    moved = {h: 40.0 if 7 <= (h + shift) % DAY // HOUR < 18 else 10.0 for h in WEEKS if h >= END - DAY}
    assert spikes(busy | moved, range(END - DAY, END + DAY, HOUR)) == []


def test_a_months_first_day_is_none_where_the_last_one_was_alike():
    first, last = (int(datetime(2026, month, 1, tzinfo=UTC).timestamp()) for month in (11, 10))
    totals = dict.fromkeys(range(last - 40 * DAY, first + DAY, HOUR), 10.0)
    bills = {first + 3 * HOUR: 60.0, last + 3 * HOUR: 60.0}
    assert spikes(totals | bills, range(first, first + DAY, HOUR)) == []
    assert spikes(totals | {first + 3 * HOUR: 60.0}, range(first, first + DAY, HOUR))


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Tokyo", "America/New_York", "Pacific/Auckland"])
@pytest.mark.parametrize("local", [0, 2, 3, 23])
def test_a_months_first_day_is_none_in_any_zone_and_when_clocks_were_changed(zone, local):
    bills = {int(datetime(2026, month, 1, local, tzinfo=ZoneInfo(zone)).timestamp()) for month in range(1, 13)}
    for month in (4, 10, 11, 12):
        day = int(datetime(2026, month, 1, tzinfo=UTC).timestamp())
        totals = {h: 21.0 if h in bills else 1.0 for h in range(day - 40 * DAY, day + 2 * DAY, HOUR)}
        assert spikes(totals, range(day - DAY, day + 2 * DAY, HOUR)) == [], month


def test_a_new_cluster_is_none():
    for days in (0, 1, 3, 6):
        new = {h: 1.0 + (h - END + days * DAY) / HOUR for h in range(END - days * DAY, END + DAY, HOUR)}
        assert spikes(new, range(END, END + DAY, HOUR)) == []


def test_what_is_not_known_is_not_judged():
    hour = END + 9 * HOUR
    totals = steady() | {hour: 16.0}
    for lost in range(7, 24):
        lacking = {h: usd for h, usd in totals.items() if not hour - lost * HOUR <= h < hour}
        assert spikes(lacking, [hour]) == []
    assert spikes({h: usd for h, usd in totals.items() if h != hour}, [hour]) == []


def test_a_rise_that_stays_is_a_spike_for_a_day_alone():
    totals = steady() | {h: 20.0 for h in WEEKS if h >= END}
    found_ = spikes(totals, range(END, END + DAY, HOUR))
    assert found_ and found_[0].hour == END and len(found_) < 24
