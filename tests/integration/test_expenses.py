"""Expenses and months as organizations see them: exact, filtered, behind walls, and never failing with a cluster."""

from __future__ import annotations

import base64
import json
from math import fsum

import pytest

from metroculus.sources.registry.protocol import Credentials
from optscale_client.metroculus_client import InvalidRequest
from optscale_client.metroculus_client.structs import AccountCoverage, ExpensesWithoutLabels, SourceState, TimeWindow
from rest_api.rest_api_server.controllers.expenses import joined
from simulator.costs import truth
from simulator.server import Habits
from tests.integration.test_services import link
from tests.support import ACCOUNT, END, NOW, Stack, ask, exact_world, make_tenant

WORLDS = {7: exact_world(7, days=3), 13: exact_world(13, days=3)}
WINDOW = f"window={WORLDS[7].start},{END}"


class Organization:
    """Two clusters, one with history, and a stranger beside."""

    def __init__(self, stack):
        self.thread = stack.thread
        self.simulators, urls = zip(*(stack.simulate(world, Habits()) for world in WORLDS.values()), strict=True)
        self.running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}", rounds=False)
        self.tenant, self.other = make_tenant(self.running, "acme"), make_tenant(self.running, "other")
        self.ids = [link(self.running, self.tenant, f"c{n}", "kubecost", url) for n, url in enumerate(urls)]
        self.foreign = link(self.running, self.other, "theirs", "kubecost", urls[0])
        for account in (*self.ids, self.foreign):
            stack.thread.run(self.running.worker.worker.fill(account, (WORLDS[7].start, END), 2, lambda progress: None))
        self.truths = [truth(world, now=NOW, adjusted=True) for world in WORLDS.values()]

    def get(self, path, role="viewer", tenant=None):
        return ask(self.running, (tenant or self.tenant).tokens[role], path)

    @property
    def path(self):
        return f"/restapi/v2/organizations/{self.tenant.organization_id}"


@pytest.fixture(scope="module")
def acme(tmp_path_factory):
    """One that tests only read."""
    stack = Stack(tmp_path_factory.mktemp("expenses"))
    yield Organization(stack)
    stack.close()


@pytest.fixture
def own(stack):
    """One that a test may change."""
    return Organization(stack)


def test_stored_rows_and_statements_tell_the_same_money(acme):
    body = acme.get(f"{acme.path}/clean_expenses?{WINDOW}&limit=1000").json()
    total = fsum(true["total_cost"] for true in acme.truths)
    assert body["total_cost"] == total == fsum(row["cost"] for row in body["clean_expenses"])
    assert body["k8s_costs"]["k8s_total_cost"] == total
    parts = body["k8s_costs"]["k8s_cost_breakdown"]
    assert [(one["cloud_account_id"], one["cloud_account_name"], one["cost"]) for one in parts] == [
        (id, f"c{n}", true["total_cost"]) for n, (id, true) in enumerate(zip(acme.ids, acme.truths, strict=True))
    ]
    assert body["complete"] is True and body["coverage"] == 1.0
    by_query = acme.get(f"/restapi/v2/clean_expenses?organization_id={acme.tenant.organization_id}&{WINDOW}&limit=1000")
    assert by_query.json() == body


@pytest.mark.parametrize("role", ["viewer", "manager", "admin"])
def test_filters_hold_for_both(acme, role):
    node = WORLDS[7].nodes[0].name
    for asked, cluster in (("k8s_namespace=shop", None), (f"k8s_node={node}", None), ("k8s_service=shop-web", None)):
        body = acme.get(f"{acme.path}/clean_expenses?{WINDOW}&{asked}", role).json()
        assert body["total_cost"] == body["k8s_costs"]["k8s_total_cost"], (asked, cluster)
    shop = acme.get(
        f"{acme.path}/clean_expenses?{WINDOW}&k8s_namespace=shop&cloud_account_id={acme.ids[1]}", role
    ).json()
    assert shop["total_cost"] == acme.truths[1]["namespaces"]["shop"]
    assert shop["total_cost"] * 32 % 13 == 0, "a foreign cent would show"


def test_a_cluster_that_is_down_fails_nothing(own):
    acme = own
    for simulator in acme.simulators:
        simulator.habits.fail_with = (503, "down")
    wider = f"window={WORLDS[7].start - 86400},{END}"
    body = acme.get(f"{acme.path}/clean_expenses?{wider}")
    assert body.status_code == 200
    found = body.json()
    assert found["total_cost"] == fsum(true["total_cost"] for true in acme.truths)
    assert found["complete"] is False and found["coverage"] == 0.75
    for part in found["k8s_costs"]["k8s_cost_breakdown"]:
        assert part["complete"] is False
        assert {source["name"]: source["status"] for source in part["sources"]}["store"] == "stale"


def test_months_of_all_clusters(acme):
    body = acme.get(f"{acme.path}/kubecost/monthly?months=2").json()
    november = body["months"][-1]
    total = fsum(true["total_cost"] for true in acme.truths)
    assert (november["month"], november["total_cost"], november["month_to_date"]) == ("2026-11", total, total)
    assert fsum(one["total_cost"] for one in november["clusters"]) == total
    assert november["projection"]["total_cost"] == pytest.approx(total / 72 * (72 + 240), rel=1e-9)
    assert body["months"][0]["total_cost"] is None and body["unavailable"] == []
    older = acme.get(f"/api/v1/cost/monthly?cluster_id={acme.ids[0]}&months=1").json()
    assert older["months"][0]["total_cost"] == acme.truths[0]["total_cost"]


def test_the_walls_stand_around_history_too(acme):
    nobody = "00000000-0000-4000-8000-000000000000"
    for path in (
        f"{acme.path}/clean_expenses",
        f"{acme.path}/kubecost/monthly",
        f"/restapi/v2/clean_expenses?organization_id={acme.tenant.organization_id}",
        f"/api/v1/cost/monthly?cluster_id={acme.ids[0]}",
    ):
        foreign = acme.get(path, "admin", acme.other)
        absent = acme.get(
            path.replace(acme.tenant.organization_id, nobody).replace(acme.ids[0], nobody), "admin", acme.other
        )
        assert foreign.status_code == absent.status_code == 404 and foreign.content == absent.content
        assert ask(acme.running, None, path).status_code == 401
    other = acme.get(f"{acme.path}/clean_expenses?{WINDOW}&cloud_account_id={acme.foreign}", "admin")
    absent = acme.get(f"{acme.path}/clean_expenses?{WINDOW}&cloud_account_id={nobody}", "admin")
    assert other.status_code == 404 and other.content == absent.content


def test_without_a_store_expenses_say_so_and_statements_stand(stack):
    _, url = stack.simulate(WORLDS[7])
    running = stack.start()
    tenant = make_tenant(running, "acme")
    link(running, tenant, "c", "kubecost", url)
    path = f"/restapi/v2/organizations/{tenant.organization_id}"
    body = ask(running, tenant.tokens["viewer"], f"{path}/clean_expenses?{WINDOW}").json()
    assert (body["clean_expenses"], body["total_cost"], body["complete"]) == ([], None, False)
    assert body["error"]["error_code"] == "OE0911"
    assert body["k8s_costs"]["k8s_total_cost"] == truth(WORLDS[7], now=NOW, adjusted=True)["total_cost"]
    months = ask(running, tenant.tokens["viewer"], f"{path}/kubecost/monthly").json()
    assert months["months"] == [] and months["unavailable"][0]["error"]["error_code"] == "OE0911"


def test_an_organization_without_clusters_has_spent_nothing(stack):
    running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}", rounds=False)
    tenant = make_tenant(running, "empty")
    path = f"/restapi/v2/organizations/{tenant.organization_id}"
    body = ask(running, tenant.tokens["viewer"], f"{path}/clean_expenses?{WINDOW}").json()
    assert (body["total_cost"], body["k8s_costs"]["k8s_total_cost"], body["total_count"]) == (0.0, 0.0, 0)
    assert ask(running, tenant.tokens["viewer"], f"{path}/kubecost/monthly").json()["months"] == []
    assert ACCOUNT not in str(body)


def test_an_organization_of_many_clusters_is_whole(own):
    """More clusters than a parameter may usually have values: none of them is left out, and none fails the others."""
    acme = own
    directory = acme.running.rest_api.directory
    registry = acme.running.metroculus.dependencies.registry
    for number in range(130):
        made = directory.create_cluster(acme.tenant.organization_id, f"silent-{number:03}", "push", "")
        acme.thread.run(registry.put(made.id, "push", "", Credentials()))
    expenses = acme.get(f"{acme.path}/clean_expenses?{WINDOW}&limit=1000").json()
    total = fsum(true["total_cost"] for true in acme.truths)
    assert expenses["error"] is None and len(expenses["accounts"]) == 132 and expenses["total_cost"] == total
    assert expenses["complete"] is False and expenses["coverage"] == pytest.approx(2 / 132)
    months = acme.get(f"{acme.path}/kubecost/monthly?months=1").json()
    assert len(months["months"][0]["clusters"]) == 132 and months["unavailable"] == []
    listed = acme.get(f"{acme.path}/kubecost/clusters?{WINDOW}&limit=1000").json()
    assert len(listed["clusters"]) == 132
    assert sum(one["total_cost"] is not None for one in listed["clusters"]) == 2 and listed["total_cost"] is None


def part(clusters, currency="USD", usd=1.0, coverage=1.0):
    window = {"start_date": 0, "end_date": 3600, "window": TimeWindow(start="", end="", final_until="")}
    covered = [
        AccountCoverage(
            cloud_account_id=f"a{n}",
            coverage=coverage,
            complete=True,
            source=SourceState(name="store", status="ok", fetched_at=None, coverage=None, error=None),
        )
        for n in range(clusters)
    ]
    return ExpensesWithoutLabels(
        **window,
        currency=currency,
        complete=True,
        coverage=coverage,
        total_cost=usd * clusters,
        accounts=tuple(covered),
        expenses=(),
    )


def test_parts_of_an_organization_are_one_and_never_add_two_currencies():
    whole = joined([part(1000), part(3, usd=2.0, coverage=0.0)])
    assert (whole.total_cost, len(whole.accounts), whole.complete) == (1006.0, 1003, True)
    assert whole.coverage == pytest.approx(1000 / 1003)
    mixed = joined([part(1000), part(3, currency="EUR")])
    assert (mixed.currency, mixed.total_cost, mixed.complete) == ("EUR, USD", None, False)


@pytest.mark.parametrize("sort", ["total_cost", "ram_cost", "name"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_are_the_whole_list_and_only_they_are_read(acme, sort: str, order: str) -> None:
    path = f"{acme.path}/clean_expenses?{WINDOW}&sort={sort}&order={order}"
    everything = acme.get(f"{path}&limit=1000").json()
    rows, cursor, pages = [], "", 0
    while cursor is not None:
        page = acme.get(f"{path}&limit=3{cursor and f'&cursor={cursor}'}").json()
        assert page["total_count"] == everything["total_count"] and page["total_cost"] == everything["total_cost"]
        assert page["accounts"] == everything["accounts"] and len(page["clean_expenses"]) <= 3
        rows, cursor, pages = rows + page["clean_expenses"], page["next_cursor"], pages + 1
    assert rows == everything["clean_expenses"] and pages == -(-len(rows) // 3) and len(rows) > 6
    assert fsum(row["cost"] for row in rows) == everything["total_cost"]
    if sort != "name":
        told = [row[sort] for row in rows]
        assert told == sorted(told, reverse=order == "desc")


def test_a_page_beyond_the_last_is_empty_and_one_of_another_order_is_refused(acme) -> None:
    path = f"{acme.path}/clean_expenses?{WINDOW}"

    def cursor(offset: int) -> str:
        return base64.urlsafe_b64encode(json.dumps([offset, "total_cost True"]).encode()).decode()

    beyond = acme.get(f"{path}&cursor={cursor(490_000)}").json()
    assert beyond["clean_expenses"] == [] and beyond["next_cursor"] is None and beyond["total_count"] > 0
    for wrong in (f"cursor={cursor(490_001)}", f"cursor={cursor(5)}&sort=cpu_cost"):
        refused = acme.get(f"{path}&{wrong}")
        assert refused.status_code == 400 and refused.json()["error"]["params"] == ["cursor"]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"limit": 5, "group_by": ["namespace"]}, "group_by"),
        ({"limit": 5, "group_by": ["cluster", "day"]}, "group_by"),
        ({"offset": 5, "group_by": ["cluster"]}, "limit"),
        ({"sort": "cpu_cost", "group_by": ["cluster"]}, "limit"),
        ({"limit": 999_999, "offset": 1, "group_by": ["cluster"]}, "group_by"),
    ],
)
def test_a_page_that_is_none_is_refused_by_name(acme, asked, named) -> None:
    with pytest.raises(InvalidRequest) as refused:
        acme.running.rest_api.metroculus.client.get_k8s_expenses(acme.ids, END - 3600, END, **asked)
    assert named in refused.value.params
