"""One account is one cluster, also where an upstream knows two with the same names; money is in the source's currency."""

from __future__ import annotations

from dataclasses import replace
from math import fsum
from typing import Any

import pytest

from optscale_client.metroculus_client import Client
from simulator.costs import truth
from simulator.field import make_field_world
from simulator.server import Habits
from simulator.world import World
from tests.support import ACCOUNT, DAY, END, NOW, SECRET, Metroculus, Stack, ask, make_tenant

OURS: World = make_field_world(["short_jobs", "sidecars"], seed=3, days=2, end=END, prime=7, cluster_id="cluster-one")
THEIRS: World = make_field_world(["spot_nodes"], seed=3, days=2, end=END, prime=11, cluster_id="cluster-two")
DATES = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": END}
TWO = ["cluster-one", "cluster-two"]


def two_in_one(stack: Stack, **habits: Any) -> str:
    simulator, url = stack.simulate(OURS, Habits(**habits))
    simulator.others = (THEIRS,)
    return url


def put(running: Any, url: str | None, **more: Any) -> None:
    flavour = more.pop("flavour", "kubecost")
    status, _ = running.rest_api.metroculus.client.put_kubecost_source(ACCOUNT, flavour, url, **more)
    assert status == 200


def total_of(world: World) -> float:
    return float(truth(world, END - DAY, END, now=NOW, adjusted=True)["total_cost"])


@pytest.mark.parametrize("query", [{}, {"detail_level": "pod"}, {"aggregate": "node"}, {"step": "day"}])
def test_several_clusters_and_none_named_is_refused_by_their_names(stack: Stack, query: dict[str, str]) -> None:
    running = stack.start()
    put(running, two_in_one(stack))
    answer = Metroculus(running).get("kubecost_cluster_costs", **DATES, **query)
    assert answer.status_code == 409, answer.text
    error = answer.json()["error"]
    assert (error["error_code"], error["params"]) == ("OM0030", TWO)
    assets = Metroculus(running).get("kubecost_assets", **DATES)
    assert assets.status_code == 409 and assets.json()["error"]["params"] == TWO


@pytest.mark.parametrize(("name", "world"), [("cluster-one", OURS), ("cluster-two", THEIRS)])
def test_the_named_cluster_is_counted_and_no_other(stack: Stack, name: str, world: World) -> None:
    running = stack.start()
    put(running, two_in_one(stack), cluster=name)
    asked = Metroculus(running)
    body = asked.get("kubecost_cluster_costs", **DATES, detail_level="namespace").json()
    true: Any = truth(world, END - DAY, END, now=NOW, adjusted=True)
    assert body["complete"], body["sources"]
    assert body["total_cost"] == pytest.approx(true["total_cost"], abs=1e-3)
    rows = {row["namespace"]: row["total_cost"] for row in body["breakdown_by_namespace"]}
    assert rows == {space: pytest.approx(usd, abs=1e-3) for space, usd in true["namespaces"].items()}
    assert body["idle_cost"] == pytest.approx(true["idle_cost"], abs=1e-3)
    assets = asked.get("kubecost_assets", **DATES).json()
    assert {node["name"]: node["total_cost"] for node in assets["nodes"]} == {
        node: pytest.approx(usd, abs=1e-3) for node, usd in true["nodes"].items()
    }


def test_a_cluster_that_was_renamed_has_both_its_names(stack: Stack) -> None:
    running = stack.start()
    put(running, two_in_one(stack), cluster=["cluster-one", "of-before"])
    body = Metroculus(running).get("kubecost_cluster_costs", **DATES).json()
    assert body["total_cost"] == pytest.approx(total_of(OURS), abs=1e-3)


def test_all_of_them_are_told_apart_where_all_are_meant(stack: Stack) -> None:
    running = stack.start()
    put(running, two_in_one(stack), cluster="*")
    asked = Metroculus(running)
    body = asked.get("kubecost_cluster_costs", **DATES, detail_level="namespace").json()
    assert body["total_cost"] == pytest.approx(total_of(OURS) + total_of(THEIRS), abs=1e-3)
    names = {row["name"] for row in body["breakdown_by_namespace"]}
    assert {"cluster-one/shop", "cluster-two/shop"} <= names
    by = asked.get("kubecost_cluster_costs", **DATES, aggregate="cluster").json()["breakdown_by_aggregate"]
    assert {row["name"] for row in by} == set(TWO)
    nodes = asked.get("kubecost_assets", **DATES).json()["nodes"]
    assert sorted(node["cluster"] for node in nodes if node["name"] == "node-0") == TWO


def test_what_is_stored_of_several_is_a_gap_until_one_is_named(stack: Stack) -> None:
    url = two_in_one(stack)
    running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}")
    put(running, url)
    progress = stack.fill(running, END - DAY, END)
    assert not progress.complete and "cluster-one, cluster-two" in progress.last_reason
    put(running, url, cluster="*")
    assert stack.fill(running, END - DAY, END).complete
    put(running, url, cluster="cluster-two")
    body = Metroculus(running).get("kubecost_cluster_costs", **DATES, detail_level="namespace").json()
    true: Any = truth(THEIRS, END - DAY, END, now=NOW, adjusted=True)
    rows = {row["namespace"]: row["total_cost"] for row in body["breakdown_by_namespace"]}
    assert rows == {space: pytest.approx(usd, abs=1e-3) for space, usd in true["namespaces"].items()}


def test_the_rest_api_says_which_clusters_there_are(stack: Stack) -> None:
    running = stack.start()
    tenant = make_tenant(running, "acme")
    url = two_in_one(stack)
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    made = ask(running, tenant.tokens["admin"], path, "POST", json={"name": "c", "flavour": "kubecost", "url": url})
    cluster = made.json()["cluster_id"]
    dates = {"start_date": END - DAY, "end_date": END}
    costs = f"/restapi/v2/kubecost/clusters/{cluster}/costs"
    refused = ask(running, tenant.tokens["viewer"], costs, params=dates)
    assert refused.status_code == 409 and refused.json()["error"]["error_code"] == "OE0915"
    assert refused.json()["error"]["params"] == TWO
    listed = ask(running, tenant.tokens["viewer"], path, params=dates).json()["clusters"][0]
    assert listed["error"]["error_code"] == "OE0915" and listed["total_cost"] is None
    named = {"cluster": "cluster-one"}
    changed = ask(
        running, tenant.tokens["admin"], f"{path}/{cluster}", "PATCH", json={"flavour": "kubecost", "url": url} | named
    )
    assert changed.status_code == 200, changed.text
    body = ask(running, tenant.tokens["viewer"], costs, params=dates).json()
    assert body["total_cost"] == pytest.approx(total_of(OURS), abs=1e-3)


@pytest.fixture(scope="module")
def two_tenants_in_one(prometheus_factory: Any) -> str:
    server = prometheus_factory()
    for world in (OURS, THEIRS):
        server.load_world(world, ACCOUNT)
    server.start()
    url: str = server.url
    return url


def test_several_clusters_under_one_tenant_of_thanos(stack: Stack, two_tenants_in_one: str) -> None:
    running = stack.start(thanos_query_url=two_tenants_in_one, kubecost_timeout=60.0)
    asked = Metroculus(running)
    put(running, None, flavour="push")
    refused = asked.get("kubecost_cluster_costs", **DATES)
    assert refused.status_code == 409 and refused.json()["error"]["params"] == TWO
    for more in ({"cluster": "cluster-two"}, {"thanos": {"value": "cluster-two"}}):
        put(running, None, flavour="push", **more)
        body = asked.get("kubecost_cluster_costs", **DATES).json()
        true: Any = truth(THEIRS, END - DAY, END, now=NOW)
        assert body["total_cost"] == pytest.approx(true["total_cost"], rel=5e-3), more
    put(running, None, flavour="push", cluster="*")
    both = asked.get("kubecost_cluster_costs", **DATES, aggregate="cluster").json()
    true_total = sum(float(truth(world, END - DAY, END, now=NOW)["total_cost"]) for world in (OURS, THEIRS))
    assert both["total_cost"] == pytest.approx(true_total, rel=5e-3) and both["sources"][0]["coverage"] == 1.0
    assert {row["name"] for row in both["breakdown_by_aggregate"]} == set(TWO)


@pytest.mark.parametrize(
    ("told", "entry", "currency"), [("EUR", None, "EUR"), ("", "CHF", "USD"), (None, "CHF", "CHF"), ("!", None, "USD")]
)
def test_money_is_in_the_currency_that_the_source_says(
    stack: Stack, told: str | None, entry: str | None, currency: str
) -> None:
    _, url = stack.simulate(OURS, Habits(currency=told))
    running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}")
    put(running, url, currency=entry)
    asked = Metroculus(running)
    assert asked.get("kubecost_cluster_costs", **DATES).json()["currency"] == currency
    assert stack.fill(running, END - DAY, END).complete
    assert asked.get("k8s_expenses", **DATES).json()["currency"] == currency
    assert asked.get("k8s_monthly", cloud_account_id=ACCOUNT, months=2).json()["currency"] == currency


def stored_in_two_currencies(stack: Stack) -> Any:
    """A source that said EUR the day before and says CHF now; both days are stored."""
    simulator, url = stack.simulate(OURS, Habits(currency="EUR"))
    running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}")
    for currency, day in (("EUR", END - 2 * DAY), ("CHF", END - DAY)):
        simulator.habits.currency = currency
        put(running, url)
        assert stack.fill(running, day, day + DAY).complete
    return running


def test_money_of_a_source_that_changed_its_currency_is_told_once_and_never_added(stack: Stack) -> None:
    running = stored_in_two_currencies(stack)
    dates = DATES | {"start_date": END - 2 * DAY}
    body = Metroculus(running).get("k8s_expenses", **dates, group_by="namespace").json()
    assert (body["total_cost"], body["complete"], body["currency"]) == (None, False, "CHF, EUR")
    rows = {(row["namespace"], row["currency"]): row["total_cost"] for row in body["expenses"]}
    assert len(rows) == len(body["expenses"]) and {currency for _, currency in rows} == {"CHF", "EUR"}
    for currency, day in (("EUR", END - 2 * DAY), ("CHF", END - DAY)):
        alone = Metroculus(running).get("k8s_expenses", **DATES | {"start_date": day, "end_date": day + DAY}).json()
        assert fsum(usd for (_, of), usd in rows.items() if of == currency) == pytest.approx(alone["total_cost"])
    asked = dates | {"group_by": "cluster,namespace"}
    pages = [Metroculus(running).get("k8s_expenses", **asked, limit=3, offset=n).json() for n in range(0, 18, 3)]
    assert {page["row_count"] for page in pages} == {len(rows)}
    told = [row for page in pages for row in page["expenses"]]
    assert {(row["namespace"], row["currency"]): row["total_cost"] for row in told} == pytest.approx(rows)
    client = Client(url=running.metroculus_listener.url, secret=SECRET)
    for limit in (1, 3, 100):
        listed = list(client.expense_pages(ACCOUNT, dates["start_date"], END, ("cluster", "namespace"), limit=limit))
        told = [row for page in listed for row in page["rows"]]
        assert {(row["namespace"], row["currency"]): row["total_cost"] for row in told} == pytest.approx(rows)
        assert len(told) == len(rows) == listed[0]["whole"]["row_count"]
        alone = [
            row
            for page in client.expense_pages(ACCOUNT, dates["start_date"], END, "cluster", limit=limit)
            for row in page["rows"]
        ]
        assert sorted(row["currency"] for row in alone) == ["CHF", "EUR"]
    client.close()


def test_a_kubecost_that_wants_a_key_in_a_header_of_its_own_gets_it(stack: Stack) -> None:
    _, url = stack.simulate(OURS, Habits(api_key="canary-of-kubecost"))
    running = stack.start()
    put(running, url)
    assert Metroculus(running).get("kubecost_cluster_costs", **DATES).status_code == 502
    put(running, url, auth={"type": "header", "name": "X-API-KEY", "value": "canary-of-kubecost"})
    assert Metroculus(running).get("kubecost_cluster_costs", **DATES).json()["complete"]


def test_money_in_two_currencies_is_never_added_in_a_statement(stack: Stack) -> None:
    """A source that said EUR the day before and says CHF now: what is in the other is not counted, and that is said."""
    running = stored_in_two_currencies(stack)
    of_today = total_of(OURS)
    of_yesterday: Any = truth(OURS, END - 2 * DAY, END - DAY, now=NOW, adjusted=True)["total_cost"]
    both = {"cloud_account_id": ACCOUNT, "start_date": END - 2 * DAY, "end_date": END}
    for query in ({}, {"detail_level": "namespace"}, {"step": "day"}):
        body = Metroculus(running).get("kubecost_cluster_costs", **both, **query).json()
        assert (body["currency"], body["complete"]) == ("CHF", False)
        assert body["total_cost"] == pytest.approx(of_today, abs=1e-3)
        assert "24 hours are in EUR and are not counted" in str(body["sources"])
    (week,) = Metroculus(running).get("kubecost_cluster_costs", **both, step="week").json()["data_points"]
    assert not week["complete"] and week["total_cost"] == pytest.approx(of_today, abs=1e-3)
    alone = both | {"end_date": END - DAY}
    body = Metroculus(running).get("kubecost_cluster_costs", **alone).json()
    assert (body["currency"], body["complete"]) == ("EUR", True), "stored as it was"
    assert body["total_cost"] == pytest.approx(of_yesterday, abs=1e-3)


def test_where_no_hour_can_be_counted_nothing_is_known_and_never_zero(stack: Stack) -> None:
    """All that is stored of a window is in EUR, and the source says CHF since."""
    simulator, url = stack.simulate(OURS, Habits(currency="EUR"))
    running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}")
    put(running, url)
    assert stack.fill(running, END - DAY, END).complete
    simulator.habits.currency = "CHF"
    put(running, url)
    asked = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": NOW}
    body = Metroculus(running).get("kubecost_cluster_costs", **asked, aggregate="namespace").json()
    assert (body["currency"], body["complete"]) == ("CHF", False)
    assert "24 hours are in EUR and are not counted" in str(body["sources"])
    for figure in (body["total_cost"], body["idle_cost"], *body["summary"].values()):
        assert figure is None, body
    assert body["efficiency"] is None and body["breakdown_by_aggregate"] == []


def test_the_list_of_clusters_adds_nothing_in_two_currencies(stack: Stack) -> None:
    running = stack.start()
    tenant = make_tenant(running, "acme")
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    for name, currency in (("one", "EUR"), ("two", "CHF")):
        _, url = stack.simulate(OURS, Habits(currency=currency))
        link = {"name": name, "flavour": "kubecost", "url": url}
        assert ask(running, tenant.tokens["admin"], path, "POST", json=link).status_code == 201
    dates = {"start_date": END - DAY, "end_date": END}
    listed = ask(running, tenant.tokens["viewer"], path, params=dates).json()
    assert set(listed["totals"]) == {"EUR", "CHF"}
    assert listed["total_cost"] is None and listed["known_cost"] is None


def test_a_currency_that_cannot_be_asked_for_is_what_it_was(stack: Stack) -> None:
    """Stored in EUR; then Kubecost is down, or its configuration alone is: nothing is relabelled and nothing vanishes."""
    clock, broken = [float(NOW)], {"is": False}

    def rewrite(path: str, answer: Any) -> Any:
        return "<html>" if broken["is"] and "Configs" in path else answer

    habits = Habits(currency="EUR", serves=frozenset({"kubecost"}), rewrite=rewrite)
    simulator, url = stack.simulate(OURS, habits)
    running = stack.start(
        clickhouse_url=f"embedded:{stack.folder / 'store'}", kubecost_api_url=url, kubecost_account_id=ACCOUNT,
        clock=lambda: clock[0],
    )  # fmt: skip
    assert stack.fill(running, END - 2 * DAY, END - DAY).complete
    broken["is"], clock[0] = True, NOW + 2 * 3600
    assert stack.fill(running, END - DAY, END).complete
    both = {"cloud_account_id": ACCOUNT, "start_date": END - 2 * DAY, "end_date": END}
    true: Any = truth(OURS, END - 2 * DAY, END, now=NOW, adjusted=True)["total_cost"]
    body = Metroculus(running).get("kubecost_cluster_costs", **both).json()
    assert (body["currency"], body["complete"]) == ("EUR", True)
    assert body["total_cost"] == pytest.approx(true, abs=1e-2)
    simulator.habits.fail_with, clock[0] = (503, "down"), NOW + 4 * 3600
    body = Metroculus(running).get("kubecost_cluster_costs", **both | {"end_date": END + DAY}).json()
    assert (body["currency"], body["complete"]) == ("EUR", False)
    assert body["total_cost"] == pytest.approx(true, abs=1e-2), "what is stored is still told"


def test_a_named_cluster_that_stands_still_is_seen_beside_one_that_goes_on(stack: Stack) -> None:
    blind = replace(OURS, blind=((END - 8 * 3600, END - 6 * 3600),))
    simulator, url = stack.simulate(blind, Habits(serves=frozenset({"kubecost"})))
    simulator.others = (THEIRS,)
    running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}")
    put(running, url, cluster="cluster-one")
    known: Any = truth(blind, END - DAY, END, now=NOW, adjusted=True)["summary"]
    for _ in ("live", "stored"):
        body = Metroculus(running).get("kubecost_cluster_costs", **DATES).json()
        assert not body["complete"]
        assert body["summary"]["cpu_cost"] == pytest.approx(known["cpu_cost"], abs=1e-2)
        stack.fill(running, END - DAY, END)
