"""Chargeback through the REST API over a real store: exact by every view, closed for good, corrected beside."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from math import fsum

import pytest
import requests
from msgspec import structs

from metroculus.sources.registry.protocol import Credentials
from tests.organizations import HOURLY, NOVEMBER, OCTOBER, Organization, row
from tests.support import SECRET, ask
from tools.window import DAY, HOUR, parse_rfc3339

pytestmark = pytest.mark.watch

HOURS = (NOVEMBER - OCTOBER) // HOUR
RULES = {
    "valid_from": "2026-10",
    "cost_centers": [
        {"name": "payments", "match": [{"namespace": "shop-*"}, {"label": "team", "values": ["blue"]}]},
        {"name": "search", "match": [{"namespace": "search"}]},
    ],
    "shared": [{"name": "platform", "match": [{"namespace": "kube-system"}]}],
    "overhead": [{"name": "support", "amount_month": 300, "split": {"weights": {"payments": 2, "search": 1}}}],
    "idle": "weighted",
}


class Acme(Organization):
    def put_rules(self, **change):
        answer = self.call("PUT", "allocation_rules", RULES | change)
        assert answer.status_code == 200, answer.text


@pytest.fixture
def acme(stack):
    return Acme(stack)


def rows_of(body):
    return {one["name"]: one for one in body["rows"]}


def test_every_view_adds_up_to_statements_and_overhead(acme):
    acme.put_rules()
    hourly = sum(one.costs.cpu for rows in HOURLY for one in rows) + 2 * 0.0625
    for by in ("cost_center", "namespace", "cluster", "label:team"):
        body = acme.chargeback(by=by)
        assert body["totals"]["USD"] == fsum(one["total_cost"] for one in body["rows"]) == hourly * HOURS + 300, by
        assert fsum(one["total_cost"] for one in body["statements"]) == hourly * HOURS
        assert body["complete"] is True and body["overhead"] == {"USD": 300.0}
        expenses = ask(
            acme.running,
            acme.tenant.tokens["viewer"],
            f"/restapi/v2/organizations/{acme.tenant.organization_id}/clean_expenses"
            f"?start_date={OCTOBER}&end_date={NOVEMBER}",
        ).json()
        assert expenses["total_cost"] == hourly * HOURS
    rows = rows_of(acme.chargeback())
    assert rows["payments"]["direct_cost"] == 0.75 * HOURS
    assert rows["payments"]["overhead"] == {"support": pytest.approx(200.0, rel=1e-12)}
    assert rows["payments"]["shared"]["platform"] == pytest.approx(0.375 * HOURS * 0.75 / 1.625, rel=1e-12)
    assert rows["payments"]["idle_cost"] == 0.375 * HOURS and rows["search"]["idle_cost"] == 0.125 * HOURS
    assert rows["unassigned"]["direct_cost"] == 0.125 * HOURS
    assert rows["__management__"]["management_cost"] == 0.125 * HOURS
    clusters = rows_of(acme.chargeback(by="cluster"))
    for id, rows in zip(acme.ids, HOURLY, strict=True):
        cost = (sum(one.costs.cpu for one in rows) + 0.0625) * HOURS
        assert clusters[id]["total_cost"] - sum(clusters[id]["overhead"].values()) == pytest.approx(cost, rel=1e-12)


def test_without_rules_all_is_unassigned(acme):
    body = acme.chargeback()
    assert set(rows_of(body)) == {"unassigned", "__idle__", "__management__"} and body["rules_valid_from"] is None
    assert acme.chargeback(month="2026-11")["complete"] is False
    assert acme.chargeback(month="2026-11")["rows"] == []


def test_a_preview_saves_nothing(acme):
    acme.put_rules()
    before = acme.chargeback()
    changed = RULES | {"overhead": [], "idle": "separate"}
    body = acme.call("POST", "allocation_rules/preview", changed, role="viewer", month="2026-10").json()
    rows = {one["name"]: one for one in body["rows"]}
    assert rows["payments"]["current_total_cost"] == rows_of(before)["payments"]["total_cost"]
    assert rows["payments"]["total_cost"] < rows["payments"]["current_total_cost"]
    assert rows["__idle__"]["current_total_cost"] is None and rows["__idle__"]["total_cost"] == 0.5 * HOURS
    assert acme.chargeback() == before


def test_rules_made_from_others_than_there_are_are_refused(acme):
    acme.put_rules()
    first = acme.call("GET", "allocation_rules").json()
    second = acme.call("PUT", "allocation_rules", RULES | {"idle": "even"}, version=first["version"]).json()
    assert second["version"] != first["version"] and second["versions"][0]["idle"] == "even"
    again = acme.call("PUT", "allocation_rules", RULES | {"idle": "even"}, version=first["version"])
    assert again.json() == second, "as a client does whose answer was lost"
    stale = acme.call("PUT", "allocation_rules", RULES | {"overhead": []}, version=first["version"])
    assert (stale.status_code, stale.json()["error"]["error_code"]) == (409, "OE0916")
    assert acme.call("POST", "months/2026-10/close", {}).status_code == 200
    assert acme.call("GET", "allocation_rules").json()["version"] == second["version"], "closing changes no rules"
    again = acme.call("PUT", "allocation_rules", RULES | {"idle": "even"}, version=first["version"])
    assert again.status_code == 200, "nothing is changed in a closed month"


def test_the_order_of_weights_is_no_change(acme):
    acme.put_rules()
    first, overhead = acme.call("GET", "allocation_rules").json(), RULES["overhead"][0]
    weights = dict(reversed(overhead["split"]["weights"].items()))
    turned = RULES | {"overhead": [overhead | {"split": {"weights": weights}}]}
    assert acme.call("PUT", "allocation_rules", turned, version="another").json() == first


def test_a_closed_month_never_changes_and_what_changes_is_an_adjustment(acme):
    acme.put_rules()
    closed = acme.call("POST", "months/2026-10/close", {}).json()
    assert closed["closed_at"] and closed["adjustments"] == []
    frozen = {by: acme.chargeback(by=by) for by in ("cost_center", "namespace", "cluster", "label:team")}
    more = [*HOURLY[0], row("shop-web", 4.0)]
    acme.store(acme.ids[0], more, [OCTOBER + 5 * HOUR])
    acme.store(acme.ids[0], HOURLY[0], [NOVEMBER, NOVEMBER + HOUR])
    assert {by: acme.chargeback(by=by) for by in frozen} == frozen
    for by in frozen:
        found = acme.chargeback("2026-11", by)["adjustments"]
        assert fsum(one["amount"] for one in found) == pytest.approx(4.0, rel=1e-9), by
        assert {one["month"] for one in found} == {"2026-10"}
    november = rows_of(acme.chargeback("2026-11"))
    assert november["payments"]["previous_total_cost"] == rows_of(frozen["cost_center"])["payments"]["total_cost"]
    again = acme.call("POST", "months/2026-10/close", {}).json()
    assert again == frozen["cost_center"]
    refused = acme.call("PUT", "allocation_rules", RULES | {"idle": "even"})
    assert refused.status_code == 409 and refused.json()["error"]["error_code"] == "OE0919"
    assert acme.call("PUT", "allocation_rules", RULES | {"valid_from": "2026-09"}).status_code == 200
    assert acme.call("PUT", "allocation_rules", RULES | {"valid_from": "2026-11", "overhead": []}).status_code == 200
    assert acme.chargeback() == frozen["cost_center"]
    versions = acme.call("GET", "allocation_rules", role="viewer").json()
    assert [one["valid_from"] for one in versions["versions"]] == ["2026-09", "2026-10", "2026-11"]
    assert versions["closed_months"] == ["2026-10"]


def test_hours_that_retention_drops_are_no_correction(acme):
    acme.put_rules()
    assert acme.call("POST", "months/2026-10/close", {}).status_code == 200
    frozen = acme.chargeback()
    acme.running.metroculus.dependencies.store.maintenance.purge(acme.ids[1])
    assert acme.chargeback("2026-11")["adjustments"] == [] and acme.chargeback() == frozen
    acme.store(acme.ids[0], [*HOURLY[0], row("shop-web", 4.0)], [OCTOBER + 5 * HOUR])
    found = acme.chargeback("2026-11")["adjustments"]
    assert fsum(one["amount"] for one in found) == pytest.approx(4.0, rel=1e-9), "the other cluster's is one"
    assert acme.chargeback() == frozen


def test_each_restatement_is_booked_once_whatever_is_closed_after_it(acme):
    """Three months in a row, restated after each closing: closed figures and adjustments come to what is known."""
    acme.put_rules(valid_from="2026-08", overhead=[])
    august, september = (int(parse_rfc3339(f"2026-{month}-01T00:00:00Z")) for month in ("08", "09"))
    for start, end in ((august, september), (september, OCTOBER)):
        for account, rows in zip(acme.ids, HOURLY, strict=True):
            acme.store(account, rows, range(start, end, HOUR))

    def restate(hour, usd):
        acme.store(acme.ids[0], [*HOURLY[0], row("shop-web", usd)], [hour])

    assert acme.call("POST", "months/2026-08/close", {}).status_code == 200
    restate(august, 4.0)
    assert acme.call("POST", "months/2026-09/close", {}).status_code == 200
    restate(august, 6.0)
    restate(september, 1.0)
    assert acme.call("POST", "months/2026-10/close", {}).status_code == 200
    restate(august, 5.0)
    booked = {month: acme.chargeback(month) for month in ("2026-09", "2026-10", "2026-11")}
    found = {
        (month, of): fsum(one["amount"] for one in body["adjustments"] if one["month"] == of)
        for month, body in booked.items()
        for of in ("2026-08", "2026-09")
    }
    assert found == {
        ("2026-09", "2026-08"): pytest.approx(4.0), ("2026-09", "2026-09"): 0.0, ("2026-10", "2026-08"): pytest.approx(2.0),
        ("2026-10", "2026-09"): pytest.approx(1.0), ("2026-11", "2026-08"): pytest.approx(-1.0), ("2026-11", "2026-09"): 0.0,
    }  # fmt: skip


def test_an_account_that_was_limited_to_a_cluster_stays_so_when_it_is_unlinked(stack, acme):
    """Its store holds rows of another organization's cluster, which is in the same Kubecost."""
    registry = acme.running.metroculus.dependencies.registry
    shared = acme.link(acme.tenant, "shared")
    stack.thread.run(registry.put(shared, "push", "", Credentials(clusters=("one",))))

    def rows(usd):
        return [
            structs.replace(row("shop-web", usd), cluster="one"),
            structs.replace(row("secret-project", 10.0), cluster="two"),
        ]

    acme.store(shared, rows(1.0), range(OCTOBER, NOVEMBER, HOUR))
    acme.put_rules()
    assert acme.call("POST", "months/2026-10/close", {}).status_code == 200
    acme.store(shared, rows(5.0), [OCTOBER])
    before = acme.chargeback("2026-11", "namespace")["adjustments"]
    assert fsum(one["amount"] for one in before) == pytest.approx(4.0)
    assert acme.call("DELETE", f"clusters/{shared}", role="admin").status_code == 200
    assert acme.chargeback("2026-11", "namespace")["adjustments"] == before


def test_a_month_of_nothing_is_closed_and_holds_up_no_other(acme):
    assert acme.call("POST", "months/2026-08/close", {"accept_incomplete": "nothing was stored"}).status_code == 200
    for month in ("2026-08", "2026-09"):
        for by in ("cost_center", "cluster", "namespace"):
            assert acme.chargeback(month, by)["rows"] == []


def test_a_month_without_rules_is_closed(acme):
    body = acme.call("POST", "months/2026-10/close", {})
    assert body.status_code == 200 and body.json()["rules_valid_from"] is None
    acme.put_rules(valid_from="2026-11")
    assert acme.chargeback()["rules_valid_from"] is None


def test_hours_that_others_took_the_place_of_are_no_correction(acme):
    """Purged, and filled again with as many other hours."""
    new = acme.link(acme.tenant, "new")
    first, later = range(OCTOBER, OCTOBER + DAY, HOUR), range(OCTOBER + DAY, OCTOBER + 2 * DAY, HOUR)
    acme.store(new, [row("shop-web", 3.0)], first)
    acme.put_rules()
    assert acme.call("POST", "months/2026-10/close", {"accept_incomplete": "linked late"}).status_code == 200
    acme.running.metroculus.dependencies.store.maintenance.purge(new)
    acme.store(new, [row("shop-web", 1.0)], later)
    assert acme.chargeback("2026-11")["adjustments"] == []


def test_a_view_that_a_closed_month_does_not_know_says_so(acme):
    acme.put_rules(cost_centers=[{"name": "payments", "match": [{"namespace": "shop-*"}]}], overhead=[])
    assert acme.call("POST", "months/2026-10/close", {}).status_code == 200
    acme.put_rules(valid_from="2026-11")
    acme.store(acme.ids[0], [*HOURLY[0], row("shop-web", 4.0)], [OCTOBER])
    body = acme.chargeback("2026-11", "label:team")
    assert body["adjustments"] == [] and "corrections of 2026-10" in str(body["notes"])


@pytest.mark.parametrize("month", ["9999-12", "9998-12", "1999-12", "2026-12"])
def test_months_that_are_none_are_refused(acme, month):
    acme.chargeback(month, status=400)
    assert acme.call("POST", f"months/{month}/close", {}).status_code == 400
    assert acme.call("POST", "allocation_rules/preview", RULES, month=month).status_code == 400


def test_rules_that_ask_for_very_much_are_refused(acme):
    for matches in ([{"label": f"l{n}"} for n in range(21)], [{"namespace": f"n{n}"} for n in range(2001)]):
        rules = RULES | {"cost_centers": [{"name": "x", "match": matches}], "overhead": []}
        assert acme.call("POST", "allocation_rules/preview", rules, role="viewer", month="2026-10").status_code == 400


def test_two_who_close_at_once_get_the_same_month(acme):
    acme.put_rules()
    with ThreadPoolExecutor(4) as threads:
        bodies = list(threads.map(lambda _: acme.call("POST", "months/2026-10/close", {}).json(), range(4)))
    assert all(body == bodies[0] for body in bodies) and bodies[0] == acme.chargeback()


@pytest.mark.parametrize("why", [None, "", "   "])
def test_a_month_with_gaps_is_closed_only_with_a_reason(acme, why):
    acme.put_rules()
    late = acme.link(acme.tenant, "late")
    acme.store(late, HOURLY[1], range(OCTOBER + 10 * DAY, NOVEMBER, HOUR))
    refused = acme.call("POST", "months/2026-10/close", {} if why is None else {"accept_incomplete": why})
    assert refused.status_code == 409 and f"cluster {late} lacks 240 hours" in refused.json()["error"]["reason"]
    assert acme.chargeback()["closed_at"] is None
    body = acme.call("POST", "months/2026-10/close", {"accept_incomplete": "linked on the 11th"}).json()
    assert body["closed_at"] and body["accept_incomplete"] == "linked on the 11th" and body["complete"] is False


def test_a_running_month_and_one_to_come_are_not_closed(acme):
    running = acme.call("POST", "months/2026-11/close", {"accept_incomplete": "now"})
    assert running.status_code == 409 and running.json()["error"]["error_code"] == "OE0920"
    assert acme.call("POST", "months/2027-01/close", {}).status_code == 400
    assert acme.call("POST", "months/2026-13/close", {}).status_code == 400


def test_two_currencies_are_shared_out_by_themselves(acme):
    acme.put_rules()
    euros = acme.link(acme.tenant, "euros")
    acme.store(euros, HOURLY[0], range(OCTOBER, NOVEMBER, HOUR), "EUR")
    acme.store(acme.ids[1], HOURLY[1], range(OCTOBER, OCTOBER + DAY, HOUR), "EUR")
    body = acme.chargeback()
    assert set(body["totals"]) == {"EUR", "USD"}
    for currency, total in body["totals"].items():
        rows = [one["total_cost"] for one in body["rows"] if one["currency"] == currency]
        statements = [one["total_cost"] for one in body["statements"] if one["currency"] == currency]
        assert fsum(rows) == pytest.approx(total, rel=1e-12)
        assert total == pytest.approx(fsum(statements) + body["overhead"].get(currency, 0.0), rel=1e-12)
    assert [one["currency"] for one in body["statements"] if one["cloud_account_id"] == acme.ids[1]] == ["EUR", "USD"]


def test_walls_and_roles(acme):
    foreign = RULES | {"cost_centers": [{"name": "x", "match": [{"cluster": acme.foreign}]}], "overhead": []}
    assert acme.call("PUT", "allocation_rules", foreign).status_code == 400
    assert acme.call("PUT", "allocation_rules", RULES, role="viewer").status_code == 403
    assert acme.call("POST", "months/2026-10/close", {}, role="viewer").status_code == 403
    for method, path, body in (
        ("GET", "allocation_rules", None), ("PUT", "allocation_rules", RULES), ("POST", "months/2026-10/close", {}),
        ("POST", "allocation_rules/preview?month=2026-10", RULES), ("GET", "chargeback?month=2026-10", None),
    ):  # fmt: skip
        assert acme.call(method, path, body, role="admin", tenant=acme.other).status_code == 404
    assert acme.foreign not in json.dumps(acme.chargeback(by="cluster"))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"valid_from": "soon"}, "OE0217"), ({"idle": "none"}, "OE0217"), ({"extra": 1}, "OE0212"),
        ({"cost_centers": [{"name": "x"}]}, "OE0216"), ({"overhead": [{"name": "x", "amount_month": 1e13}]}, "OE0217"),
        ({"shared": [{"name": "x", "match": [{"namespace": "a"}], "split": {"weights": {"nobody": 1}}}]}, "OE0217"),
    ],
)  # fmt: skip
def test_bad_rules_are_refused_by_name(acme, change, code):
    answer = acme.call("PUT", "allocation_rules", RULES | change)
    assert answer.status_code == 400 and answer.json()["error"]["error_code"] == code, answer.text
    assert acme.call("GET", "allocation_rules").json()["versions"] == []


def test_a_view_by_a_label_that_no_rule_asks_for_is_refused(acme):
    acme.put_rules()
    assert "label:team" in acme.chargeback(by="label:owner", status=400)["error"]["reason"]


def test_the_service_itself_wants_its_secret(acme):
    url = f"{acme.running.metroculus_listener.url}/metroculus/v2/chargeback/{acme.tenant.organization_id}"
    assert requests.get(url, params={"month": "2026-10"}, timeout=20).status_code == 401
    assert requests.get(url, params={"month": "2026-10"}, headers={"Secret": SECRET}, timeout=20).status_code == 200
