"""Budgets through the REST API over a real store: exact, decided on bounds, of one's own organization alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from uuid import uuid4

import pytest
import requests

from metroculus.sources.registry.protocol import Credentials
from simulator.server import Habits
from simulator.world import make_world
from tests.integration.test_chargeback import RULES
from tests.organizations import NOVEMBER, OCTOBER, Organization, row
from tests.support import END, NOW
from tools.window import DAY, HOUR, parse_rfc3339
from tools.zones import UTC_ZONE

pytestmark = pytest.mark.watch

DECEMBER = int(parse_rfc3339("2026-12-01T00:00:00Z"))
SETTLED = END
"""At NOW every hour before this one is final."""
HOURS_SO_FAR = (SETTLED - NOVEMBER) // HOUR
ROWS = [row("shop-web", 0.5), row("search", 0.25), row("kube-system", 0.125), row("lab", 0.25, "blue")]
"""With 0.0625 of management, an hour of each cluster: 1.1875."""
HOURLY = 1.1875


class Bare(Organization):
    october = range(NOVEMBER - 3 * DAY, NOVEMBER, HOUR)

    def budget(self, status=201, role="manager", **body):
        answer = self.call("POST", "budgets", {"name": str(uuid4()), "amount": 100.0} | body, role)
        assert answer.status_code == status, answer.text
        return answer.json()

    def listed(self):
        answer = self.call("GET", "budgets", role="viewer")
        assert answer.status_code == 200, answer.text
        return answer.json()


class Acme(Bare):
    def build(self):
        super().build()
        for account in self.ids:
            self.store(account, ROWS, range(min(self.october), SETTLED, HOUR))


class Whole(Acme):
    """With all of October."""

    october = range(OCTOBER, NOVEMBER, HOUR)


@pytest.fixture
def acme(stack):
    return Acme(stack)


@pytest.fixture
def whole(stack):
    return Whole(stack)


def test_spent_is_what_is_stored_by_every_scope(acme):
    first, _ = acme.ids
    acme.call("PUT", "allocation_rules", RULES | {"valid_from": "2026-11", "overhead": [], "idle": "separate"})
    for scope, hourly, clusters in (
        ({}, HOURLY, 2),
        ({"cluster_id": first}, HOURLY, 1),
        ({"namespace": "search"}, 0.25, 2),
        ({"namespace": "s*"}, 0.75, 2),
        ({"namespace": "*"}, 1.125, 2),
        ({"namespace": "nothing-here"}, 0.0, 2),
        ({"label": "team"}, 0.25, 2),
        ({"label": "team", "values": ["b*"]}, 0.25, 2),
        ({"label": "team", "values": ["red"]}, 0.0, 2),
        ({"cluster_id": first, "namespace": "lab", "label": "team", "values": ["red", "blue"]}, 0.25, 1),
        # payments is shop-* and team blue; kube-system is shared by what they cost: three quarters to one.
        ({"cost_center": "payments"}, 0.75 + 0.75 * 0.125, 2),
        ({"cost_center": "unassigned"}, 0.0, 2),
    ):
        state = acme.budget(scope=scope, amount=10_000.0)
        exact = clusters * HOURS_SO_FAR * hourly
        assert state["spent"] == pytest.approx(exact, rel=1e-9), scope
        assert state["spent_at_most"] == pytest.approx(exact, rel=1e-9) and state["missing"] == [], scope
        whole = clusters * (DECEMBER - NOVEMBER) // HOUR * hourly
        assert state["forecast"]["expected"] == pytest.approx(whole, rel=1e-9), scope
        assert (state["state"], state["coverage"]) == ("ok", 1.0)
        assert state["as_of"] == UTC_ZONE.iso(SETTLED) and state["percent"] == pytest.approx(exact / 100)


@pytest.mark.parametrize("period", ["week", "month", "quarter", "year"])
def test_a_period_is_the_running_one_of_the_calendar(stack, period):
    whole = (Whole if period == "quarter" else Acme)(stack)
    first = min(whole.october)
    start, end = UTC_ZONE.period(NOW, period)
    state = whole.budget(period=period, amount=100_000.0)
    assert (state["start"], state["end"]) == (UTC_ZONE.iso(start), UTC_ZONE.iso(end))
    exact = 2 * (SETTLED - max(start, first)) // HOUR * HOURLY
    assert state["spent"] == pytest.approx(exact, rel=1e-9)
    # A year of which ten months are missing may have cost anything: that is said, and never taken for nothing.
    assert (state["spent_at_most"] > exact * 1.5) == (period == "year")
    assert bool(state["missing"]) == (period == "year")


def test_over_is_told_though_hours_are_missing_and_under_is_not_told_where_they_may_be_over(acme):
    known = 2 * HOURS_SO_FAR * HOURLY
    for account in acme.ids:
        acme.store(account, ROWS, range(SETTLED - 2 * HOUR, SETTLED, HOUR), unknown=("cpu",))
    assert acme.budget(amount=known / 3)["state"] == "exceeded"
    spent = acme.budget(amount=known * 1.001, thresholds=[{"percent": 100}])
    assert spent["state"] == "ok" and spent["spent_at_most"] == pytest.approx(known)  # no dearer than its like
    acme.store(acme.ids[0], [row("shop-web", 0.25)], range(SETTLED - 5 * HOUR, SETTLED, HOUR), unknown=("cpu",))
    known -= 5 * (HOURLY - 0.25 - 0.0625)
    spent = acme.budget(amount=known * 1.001, thresholds=[{"percent": 100}])
    assert spent["state"] == "unknown" and spent["spent"] == pytest.approx(known)
    assert [one.partition(" has ")[2] for one in spent["missing"]] in (
        ["5 hours with unknown costs", "2 hours with unknown costs"],
        ["2 hours with unknown costs", "5 hours with unknown costs"],
    )
    assert acme.budget(amount=known * 1.5, thresholds=[{"percent": 100}])["state"] == "ok"


def test_money_in_another_currency_is_not_counted_and_bounds_nothing(acme):
    acme.store(acme.ids[0], ROWS, range(SETTLED - 3 * HOUR, SETTLED, HOUR), currency="EUR")
    state = acme.budget(amount=100_000.0)
    assert state["spent"] == pytest.approx((2 * HOURS_SO_FAR - 3) * HOURLY)
    assert state["state"] == "unknown" and "3 hours in EUR" in state["missing"][0]


def test_a_cluster_without_any_history_bounds_nothing(acme):
    acme.link(acme.tenant, "new")
    state = acme.budget(amount=100_000.0)
    assert state["state"] == "unknown" and state["spent_at_most"] is None and state["coverage"] < 1
    assert acme.budget(amount=1.0)["state"] == "exceeded"


def test_a_cluster_that_is_unlinked_is_said(acme):
    state = acme.budget(scope={"cluster_id": acme.ids[1]}, amount=10_000.0)
    assert state["state"] == "ok"
    acme.running.rest_api.directory.delete_cluster(acme.ids[1])
    (state,) = acme.listed()["budgets"]
    assert state["state"] == "unknown" and "any more" in state["missing"][0] and state["spent"] == 0.0


def test_a_cost_centers_overhead_counts_and_the_center_may_be_gone(acme):
    acme.call("PUT", "allocation_rules", RULES | {"valid_from": "2026-11", "idle": "separate"})
    state = acme.budget(scope={"cost_center": "payments"}, amount=10_000.0)
    chargeback = acme.chargeback("2026-11")
    payments = next(one for one in chargeback["rows"] if one["name"] == "payments")
    assert state["spent"] == pytest.approx(payments["total_cost"], rel=1e-12)
    shared_out = 2 * (0.75 + 0.75 * 0.125)
    assert state["forecast"]["expected"] == pytest.approx(720 * shared_out + 200, rel=1e-9)
    acme.call("PUT", "allocation_rules", {"valid_from": "2026-11"})
    (state,) = acme.listed()["budgets"]
    assert state["state"] == "unknown" and "name no cost center payments" in state["missing"][0]


def test_budgets_are_changed_read_and_removed(acme):
    made = acme.budget(name="all of it", amount=1_000_000.0)
    path = f"budgets/{made['id']}"
    assert acme.call("GET", path, role="viewer").json() == made
    assert acme.call("POST", "budgets", {"name": "all of it", "amount": 1.0}).status_code == 409
    changed = acme.call("PATCH", path, {"amount": 10.0}).json()
    assert changed["state"] == "exceeded" and changed["name"] == "all of it" and changed["id"] == made["id"]
    assert acme.call("PATCH", path, {"thresholds": [{"percent": 50, "on": "forecast"}]}).json()["thresholds"] == [
        {"percent": 50.0, "on": "forecast", "state": "crossed"}
    ]
    assert acme.call("PATCH", path, {"scope": {"namespace": "search"}}).json()["scope"]["namespace"] == "search"
    for body, status in (({"amount": -1}, 400), ({"sum": 1}, 400), ({"name": "all of it"}, 200), ({}, 200)):
        assert acme.call("PATCH", path, body).status_code == status, body
    old, new = made["version"], acme.call("GET", path).json()["version"]
    stale = acme.call("PATCH", path, {"amount": 20.0}, version=old)
    assert (stale.status_code, stale.json()["error"]["error_code"]) == (409, "OE0916")
    for version in (new, old):  # the second time as a client does whose answer was lost
        assert acme.call("PATCH", path, {"amount": 20.0}, version=version).json()["amount"] == 20.0
    for role, status in (("viewer", 403), ("manager", 200), ("manager", 404)):
        assert acme.call("DELETE", path, role=role).status_code == status
    assert acme.call("GET", path).status_code == 404 and acme.listed()["budgets"] == []


class Hung:
    """Holds up the first write of a document, after its caller has given up; every other goes on."""

    def __init__(self, acme, monkeypatch):
        self.store = acme.running.metroculus.dependencies.store
        self.put, self.ask = self.store.documents.put, self.store.ask
        self.let, self.first = threading.Event(), True
        monkeypatch.setattr(self.store.documents, "put", self.held)
        monkeypatch.setattr(self.store, "ask", self.impatient)

    def held(self, *args, **more):
        if self.first:
            self.first = False
            self.let.wait(30)
        return self.put(*args, **more)

    async def impatient(self, seconds, function, *args, **more):
        return await self.ask(0.5 if function == self.held and self.first else seconds, function, *args, **more)


def test_a_write_that_comes_late_comes_before_what_is_changed_after_it(acme, monkeypatch):
    """Its caller was told that it is not known what became of it; who comes after it waits, and sees what it did."""
    made = acme.budget(name="b", amount=1000.0)
    path, hung = f"budgets/{made['id']}", Hung(acme, monkeypatch)
    assert acme.call("PATCH", path, {"amount": 111.0}, version=made["version"]).status_code == 503
    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(acme.call, "PATCH", path, {"amount": 222.0}, version=made["version"])
        deleted = pool.submit(acme.call, "DELETE", path)
        assert not wait((second, deleted), timeout=1.0).done, "they wait for what is still being written"
        hung.let.set()
    assert second.result().status_code in (404, 409) and deleted.result().status_code == 200
    assert acme.call("GET", path).status_code == 404


def test_rules_that_come_late_come_before_what_is_decided_after_them(acme, monkeypatch):
    version = acme.call("GET", "allocation_rules").json()["version"]
    hung = Hung(acme, monkeypatch)
    rules = {"valid_from": "2026-10", "cost_centers": [{"name": "late", "match": [{"namespace": "search"}]}]}
    assert acme.call("PUT", "allocation_rules", rules, version=version).status_code == 503
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(acme.call, "PUT", "allocation_rules", rules | {"valid_from": "2026-09"}, version=version)
        closed = pool.submit(acme.call, "POST", "months/2026-10/close", {"accept_incomplete": "x"})
        assert not wait((other, closed), timeout=1.0).done
        hung.let.set()
    assert other.result().status_code == 409 and closed.result().status_code == 200
    assert [one["valid_from"] for one in acme.call("GET", "allocation_rules").json()["versions"]] == ["2026-10"]
    assert acme.chargeback()["rules_valid_from"] == "2026-10", "closed under the rules that came late, not before them"


def test_a_budget_of_another_organization_is_not_there(acme):
    made = acme.budget()
    theirs = f"/restapi/v2/organizations/{acme.other.organization_id}/kubecost/budgets/{made['id']}"
    url = f"{acme.running.rest_api_listener.url}{theirs}"
    for method, body in (("GET", None), ("PATCH", {}), ("DELETE", None)):
        headers = {"Authorization": f"Bearer {acme.other.tokens['admin']}"}
        assert requests.request(method, url, json=body, headers=headers, timeout=30).status_code == 404
    answer = acme.call("POST", "budgets", {"name": "x", "amount": 1.0, "scope": {"cluster_id": acme.foreign}})
    assert answer.status_code == 400 and "none of this organization's" in answer.text
    assert acme.listed()["budgets"] == [made]


def test_what_a_clusters_kubecost_keeps_stands_beside_ours(acme):
    budgets = [{"name": "web", "id": "1", "values": {"namespace": ["web"]}, "interval": "weekly", "spendLimit": 10,
                "currentSpend": 12.5, "window": {"start": "2026-11-15T00:00:00Z", "end": "2026-11-22T00:00:00Z"}}]  # fmt: skip
    days = [{"predictedCost": 2.5, "window": {"start": "2026-11-21T00:00:00Z", "end": "2026-11-22T00:00:00Z"}}]
    forecast = {"arima/type": {"predictions": {"all": days}}}
    habits = Habits(serves=frozenset({"kubecost"}), budgets=budgets, forecast=forecast, currency="EUR")
    _, good = acme.stack.simulate(make_world(seed=1, days=1, end=END), habits)
    _, without = acme.stack.simulate(make_world(seed=1, days=1, end=END), Habits(serves=frozenset({"kubecost"})))
    _, failing = acme.stack.simulate(
        make_world(seed=1, days=1, end=END), Habits(serves=frozenset({"kubecost"}), fail_with=(500, "no"))
    )
    registry = acme.running.metroculus.dependencies.registry
    third = acme.link(acme.tenant, "third")
    for account, url in zip((*acme.ids, third), (good, without, failing), strict=True):
        acme.stack.thread.run(registry.put(account, "kubecost", url, Credentials()))
    body = acme.listed()
    (one,) = body["kubecost_budgets"]
    assert (one["source"], one["cloud_account_id"], one["spent"], one["state"]) == (
        "kubecost", acme.ids[0], 12.5, "exceeded")  # fmt: skip
    assert (one["period"], one["currency"], one["percent"]) == ("week", "EUR", 125.0)
    (expected,) = body["kubecost_forecasts"]
    assert (expected["expected"], expected["low"], expected["currency"]) == (2.5, None, "EUR")
    assert body["budgets"] == [] and set(body["failures"]) == {third}
    assert acme.call("GET", "budgets", role="viewer", upstream="false").json()["failures"] == {}


def test_a_forecast_out_of_a_few_hours_is_shown_and_warns_of_nothing(stack):
    acme = Bare(stack)
    new = acme.link(acme.tenant, "new")
    acme.store(new, [row("a", 1.0)], range(SETTLED - 5 * HOUR, SETTLED, HOUR))
    state = acme.budget(scope={"cluster_id": new}, amount=400.0, thresholds=[{"percent": 100, "on": "forecast"}])
    assert state["forecast"]["expected"] > 200 and state["thresholds"][0]["state"] == "unknown"
    acme.store(new, [row("a", 5.0)], range(SETTLED - 30 * HOUR, SETTLED, HOUR))
    (state,) = acme.listed()["budgets"]
    assert state["thresholds"][0]["state"] == "crossed" and state["state"] == "warning"


def test_bodies_that_are_none_are_refused(acme):
    for body in ({}, {"name": "x"}, {"amount": 1}, {"name": "x", "amount": "1"}, {"name": "x", "amount": None},
                 {"name": "x", "amount": 1, "period": "day"}, {"name": "x", "amount": 1, "period": "century"},
                 {"name": "x", "amount": 1, "thresholds": [{"percent": 1, "on": "never"}]},
                 {"name": "x", "amount": 1, "scope": {"pod": "x"}}, {"name": "x", "amount": 1e13},
                 {"name": "x", "amount": 1, "currency": "EURO"}, {"name": "\x00", "amount": 1}, [], "x", 1):  # fmt: skip
        answer = acme.call("POST", "budgets", body)
        assert answer.status_code == 400, (body, answer.text)
    assert acme.listed()["budgets"] == []


def test_a_cost_center_whose_cluster_is_not_heard_of_may_have_spent_what_it_did_before(acme):
    first = acme.ids[0]
    down = acme.link(acme.tenant, "down")
    acme.store(down, [row("data", 10.0)], range(NOVEMBER - 8 * DAY, NOVEMBER, HOUR))
    centers = [{"name": "data", "match": [{"cluster": down}]}, {"name": "web", "match": [{"cluster": first}]}]
    acme.call("PUT", "allocation_rules", {"valid_from": "2026-10", "cost_centers": centers})
    state = acme.budget(scope={"cost_center": "data"}, amount=1000.0)
    assert state["state"] == "unknown" and state["spent"] == 0.0 and state["spent_at_most"] >= 480 * 10
    state = acme.budget(scope={"cost_center": "web"}, amount=HOURS_SO_FAR)
    assert state["state"] == "exceeded"  # what is matched to it directly is known, whatever others lack


def test_a_month_of_an_hour_shares_nothing_out_that_could_be_gone_by(stack):
    now = NOVEMBER + 80 * 60
    stack.plan["clock"] = lambda: now
    acme = Bare(stack)

    def store(start, end):
        hours = range(start, end, HOUR)
        night = [hour for hour in hours if hour // HOUR % 24 < 2]
        acme.store(acme.ids[1], [row("web", 0.0625)], hours)
        acme.store(acme.ids[0], [row("web", 1.0)], [hour for hour in hours if hour not in night] or night)
        acme.store(acme.ids[0], [row("batch", 4.0), row("web", 1.0)], night)

    store(NOVEMBER - 10 * DAY, NOVEMBER + HOUR)
    rules = {
        "valid_from": "2026-10",
        "cost_centers": [{"name": one, "match": [{"namespace": one}]} for one in ("batch", "web")],
        "overhead": [{"name": "support", "amount_month": 3000, "split": "weighted"}],
    }
    acme.call("PUT", "allocation_rules", rules)
    state = acme.budget(scope={"cost_center": "batch"}, amount=2000.0)
    assert state["state"] == "unknown" and {one["state"] for one in state["thresholds"]} == {"unknown"}
    now += 48 * HOUR
    store(NOVEMBER + HOUR, NOVEMBER + 49 * HOUR)
    (state,) = acme.listed()["budgets"]
    assert state["state"] == "ok", state


def test_late_bills_of_a_closed_month_count(whole):
    acme = whole
    acme.call("PUT", "allocation_rules", {"valid_from": "2026-10", "cost_centers": [
        {"name": "web", "match": [{"namespace": "shop-web"}]}]})  # fmt: skip
    answer = acme.call("POST", "months/2026-10/close", {})
    assert answer.status_code == 200, answer.text
    acme.store(acme.ids[0], [row("shop-web", 5.0)], range(OCTOBER, NOVEMBER, HOUR))
    asked = {"period": "quarter", "amount": 5000.0}
    center = acme.budget(scope={"cost_center": "web"}, **asked)
    namespace = acme.budget(scope={"namespace": "shop-web"}, **asked)
    assert center["spent"] == pytest.approx(namespace["spent"], rel=1e-9) and center["state"] == namespace["state"]


def test_hours_that_are_off_their_sources_own_total_may_be_less_too(acme):
    known = 2 * HOURS_SO_FAR * HOURLY
    acme.store(acme.ids[0], ROWS, range(END - 10 * HOUR, END, HOUR), reconciled=False, residual=-1.0)
    state = acme.budget(amount=known - 5, thresholds=[{"percent": 100}])
    assert (state["state"], state["spent"], state["spent_at_most"]) == ("unknown", known, known + 10)
    assert acme.budget(amount=known - 11, thresholds=[{"percent": 100}])["state"] == "exceeded"


def test_the_example_of_the_docs(acme):
    for missing, amount, state, of_actual in (
        (0, 1500.0, "warning", ["not_crossed", "not_crossed"]),
        (0, 1100.0, "exceeded", ["crossed", "crossed"]),
        (3, 1500.0, "warning", ["not_crossed", "not_crossed"]),
        (3, 1139.0, "warning", ["crossed", "unknown"]),
    ):
        if missing:
            store = acme.running.metroculus.dependencies.store
            hours = ", ".join(f"toDateTime({END - n * HOUR}, 'UTC')" for n in (2, 3, 4))
            gone = f"ALTER TABLE k8s_extractions DELETE WHERE account = '{acme.ids[0]}' AND hour IN ({hours})"
            store.engine.command(gone)
        found = acme.budget(amount=amount)
        assert found["state"] == state and found["forecast"]["expected"] == pytest.approx(
            1710.0 if not missing else 1710.0 - 3 * HOURLY
        )
        assert [one["state"] for one in found["thresholds"][:2]] == of_actual
        assert found["spent"] == pytest.approx(1140.0 - missing * HOURLY) and found["spent_at_most"] == pytest.approx(
            1140.0
        )
