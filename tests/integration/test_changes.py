"""What changed, through the REST API over a real store: every cause by name, and missing time is no fall in cost."""

from __future__ import annotations

from math import fsum

import pytest

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.components import Amounts, Costs, Egress, Usage
from tests.organizations import Organization
from tests.support import NOW, ask
from tools.window import DAY, HOUR

pytestmark = pytest.mark.watch

TODAY = NOW // DAY * DAY
BEFORE, AFTER = TODAY - 3 * DAY, TODAY - 2 * DAY
PRICE = 0.03125


def pods(namespace, count=2, cores=0.5, price=PRICE, internet=0.0, hour=0):
    return [
        Allocation(
            name=f"{namespace}/{n}", namespace=namespace, pod=f"{namespace}-{n}", container="app", start=hour,
            end=hour + HOUR, costs=Costs(cpu=cores * price, network=0.25 + internet), egress=Egress(internet, 0.0, 0.25),
            usage=Usage(cores * 60, cores * 30), amounts=Amounts(cpu=cores),
        )
        for n in range(count)
    ]  # fmt: skip


def idle(rows, nodes=4, price=PRICE):
    free = nodes * 4 - sum(one.amounts.cpu for one in rows)
    return [*rows, Allocation(name="__idle__", costs=Costs(cpu=free * price))]


class History(Organization):
    """One cluster whose two days are written by the test."""

    october = ()

    def write(self, start, made, hours=range(24)):
        self.store_hours(self.ids[0], {start + n * HOUR: made(start + n * HOUR) for n in hours})

    def changes(self, status=200, **asked):
        asked = {"window": f"{AFTER},{AFTER + DAY}"} | asked
        query = "&".join(f"{name}={value}" for name, value in asked.items())
        answer = ask(self.running, self.tenant.tokens["viewer"], f"{self.view}/changes?{query}")
        assert answer.status_code == status, answer.text
        return answer.json()

    @property
    def view(self):
        return f"/restapi/v2/kubecost/clusters/{self.ids[0]}"


@pytest.fixture
def history(stack):
    return History(stack)


def steps_of(body):
    assert fsum(step["amount"] for step in body["steps"]) == pytest.approx(body["difference"], rel=1e-9)
    assert body["difference"] == pytest.approx(body["total_cost"] - body["before_cost"], rel=1e-12)
    return {(one["kind"], one["group"], one["resource"]): one for one in body["steps"] if abs(one["amount"]) > 1e-9}


def test_several_causes_are_found_by_name(history):
    history.write(BEFORE, lambda hour: idle([*pods("shop", hour=hour), *pods("api", hour=hour)]))
    history.write(
        AFTER,
        lambda hour: idle(
            [
                *pods("shop", count=5, hour=hour),
                *pods("api", cores=1.0, internet=0.5, hour=hour),
                *pods("new", hour=hour),
            ],
            nodes=6,
        ),
    )
    body = history.changes()
    found = steps_of(body)
    assert body["complete"] is True and body["missing_hours"] == body["missing_hours_before"] == 0
    assert found["hours", "shop", "cpu"]["amount"] == pytest.approx(3 * 24 * 0.5 * PRICE, rel=0.01)
    assert found["amount", "api", "cpu"]["amount"] == pytest.approx(2 * 24 * 0.5 * PRICE, rel=0.01)
    assert found["amount", "api", "cpu"]["because"] == "requests"
    assert found["network_internet", "api", "network"]["amount"] == pytest.approx(2 * 24 * 0.5, rel=0.01)
    assert found["nodes", None, "cpu"]["amount"] == pytest.approx(2 * 4 * 24 * PRICE, rel=0.01)
    assert ("appeared", "new", None) in found
    by_pod = steps_of(history.changes(aggregate="namespace,pod"))
    assert ("appeared", "shop/shop-4", None) in by_pod
    doubled = history.changes(window=f"{BEFORE},{BEFORE + DAY}", against=f"{AFTER},{AFTER + DAY}")
    assert doubled["difference"] == pytest.approx(-body["difference"], rel=1e-12)


def test_a_price_that_doubled(history):
    history.write(BEFORE, lambda hour: idle(pods("shop", hour=hour)))
    history.write(AFTER, lambda hour: idle(pods("shop", price=2 * PRICE, hour=hour), price=2 * PRICE))
    found = steps_of(history.changes())
    assert {kind for kind, *_ in found} == {"price", "idle_price"}
    assert found["price", "shop", "cpu"]["before"] == pytest.approx(PRICE)
    assert found["price", "shop", "cpu"]["amount"] == pytest.approx(24 * PRICE, rel=0.01)


@pytest.mark.parametrize("lacking", ["before", "after"])
def test_three_hours_that_are_missing_are_not_known_and_no_fall(history, lacking):
    some = [n for n in range(24) if n not in (3, 4, 20)]
    history.write(BEFORE, lambda hour: idle(pods("shop", hour=hour)), some if lacking == "before" else range(24))
    history.write(AFTER, lambda hour: idle(pods("shop", hour=hour)), some if lacking == "after" else range(24))
    body = history.changes()
    found = steps_of(body)
    hourly = 16 * PRICE + 0.5 + 0.0625
    assert list(found) == [("not_known", None, None)]
    assert found["not_known", None, None]["amount"] == pytest.approx(3 * hourly * (1 if lacking == "before" else -1))
    assert body["complete"] is False
    assert (body["missing_hours_before"], body["missing_hours"]) == ((3, 0) if lacking == "before" else (0, 3))


def test_an_hour_of_which_a_third_was_seen_is_not_known(history):
    for start in (BEFORE, AFTER):
        history.write(start, lambda hour: idle(pods("shop", hour=hour)))
    history.store(history.ids[0], pods("shop", count=1), [AFTER + 5 * HOUR], seconds=1200)
    body = history.changes()
    assert list(steps_of(body)) == [("not_known", None, None)]
    assert (body["missing_hours_before"], body["missing_hours"]) == (1, 1)


def test_a_longer_window_is_longer_and_nothing_else(history):
    for start in (BEFORE, AFTER):
        history.write(start, lambda hour: idle(pods("shop", hour=hour)))
    body = history.changes(window=f"{AFTER},{AFTER + DAY}", against=f"{BEFORE},{BEFORE + DAY // 2}")
    assert list(steps_of(body)) == [("length", None, None)]


def test_nothing_stored_is_not_known(history):
    body = history.changes()
    assert body["difference"] is None and body["total_cost"] is None and body["complete"] is False


def test_currencies_are_not_compared(history):
    history.store(history.ids[0], pods("shop"), [BEFORE], "EUR")
    history.store(history.ids[0], pods("shop"), [AFTER])
    assert "currencies" in history.changes(status=400)["error"]["reason"]


@pytest.mark.parametrize(
    "asked", [{"against": "yesteryear"}, {"against": ""}, {"aggregate": "colour"}, {"window": "1x"}]
)
def test_bad_questions_are_refused(history, asked):
    assert history.changes(status=400, **asked)["error"]["error_code"] == "OE0217"


def test_a_spike_is_told_with_its_cause(history):
    hour = TODAY - HOUR
    for day in range(TODAY - 9 * DAY, TODAY, DAY):
        history.store(history.ids[0], idle(pods("shop") + pods("api")), range(day, day + DAY, HOUR))
    history.store(history.ids[0], [*idle(pods("shop") + pods("api")), *pods("api", count=9)], [hour])
    path = f"{history.view}/anomalies?window={TODAY - DAY},{TODAY}"
    body = ask(history.running, history.tenant.tokens["viewer"], path).json()
    (spike,) = body["anomalies"]
    assert spike["hour"] == hour and spike["total_cost"] > 1.5 * spike["mean_cost_before"]
    assert spike["causes"][0]["namespace"] == "api" and spike["causes"][0]["share"] == pytest.approx(1.0)
    assert spike["against_hour"] == hour - DAY and (body["hours"], body["unknown_hours"]) == (24, 0)
    rise = fsum(step["amount"] for step in spike["steps"])
    assert rise == pytest.approx(spike["total_cost"] - spike["mean_cost_before"], rel=1e-9)
