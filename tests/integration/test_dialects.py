"""Every dialect that an upstream may speak: the lines of the table in ``docs/compatibility.md``.

What is told of the world is held against its exact cost; what an upstream cannot tell is said.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tornado.httputil import HTTPServerConnectionDelegate

from simulator.costs import truth
from simulator.field import make_field_world
from simulator.server import Habits, KubecostSavings, SimulatedHandler, Simulator
from simulator.world import World
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, Metroculus, Stack
from tools.window import parse_rfc3339

WORLD: World = make_field_world(["sidecars", "many_services", "boot_disks"], seed=5, days=4, end=END, prime=7)
YESTERDAY = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": END}
BEHIND_ITS_WEB_SERVER = frozenset({"opencost-ui"})


def asked_of(stack: Stack, flavour: str | None, habits: Habits, **more: Any) -> tuple[Any, Metroculus]:
    """A simulator with these habits, and the service that has it as a source."""
    simulator, url = stack.simulate(WORLD, habits)
    running = stack.start()
    status, _ = running.rest_api.metroculus.client.put_kubecost_source(ACCOUNT, flavour or "kubecost", url, **more)
    assert status == 200
    return simulator, Metroculus(running)


def true(start: int, end: int, adjusted: bool) -> Any:
    return truth(WORLD, start, end, now=NOW, adjusted=adjusted)


KUBECOSTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "1": ({"kubecost_version": 1}, {}),
    "2": ({"kubecost_version": 2}, {}),
    "3": ({"kubecost_version": 3, "api_key": "k"}, {"auth": {"type": "header", "name": "X-API-KEY", "value": "k"}}),
}


@pytest.mark.parametrize("version", KUBECOSTS)
def test_kubecost(stack: Stack, version: str) -> None:
    habits, entry = KUBECOSTS[version]
    _, asked = asked_of(stack, "kubecost", Habits(serves=frozenset({"kubecost"}), **habits), **entry)
    body = asked.get("kubecost_cluster_costs", **YESTERDAY, detail_level="namespace").json()
    assert body["complete"], body["sources"]
    assert body["total_cost"] == pytest.approx(true(END - DAY, END, True)["total_cost"], abs=2e-3)
    assert body["potential_savings"] > 0


@pytest.mark.parametrize("flavour", ["opencost", "kubecost"])
def test_opencost_behind_its_web_server_is_an_opencost_whatever_it_is_called(stack: Stack, flavour: str) -> None:
    _, asked = asked_of(stack, flavour, Habits(serves=BEHIND_ITS_WEB_SERVER))
    body = asked.get("kubecost_cluster_costs", **YESTERDAY, aggregate="service").json()
    assert body["complete"], body["sources"]
    assert body["not_covered"] == ["management"], "its assets never have management: 0 would be a lie"
    assert body["summary"]["management_cost"] is None
    assert body["total_cost"] == pytest.approx(true(END - DAY, END, False)["allocation_total"], abs=2e-3)
    assert body["idle_cost"] == pytest.approx(true(END - DAY, END, False)["idle_cost"], abs=2e-3)


@pytest.mark.parametrize("habits", [{}, {"serves": BEHIND_ITS_WEB_SERVER}])
def test_opencost_on_its_collector(stack: Stack, habits: dict[str, Any]) -> None:
    """Whole hours and days, each by itself: a window of both is theirs together, assets too."""
    _, asked = asked_of(stack, "opencost", Habits(collector=True, **habits))
    start, end = END - DAY - 5 * HOUR, END - 7 * HOUR
    dates = {"cloud_account_id": ACCOUNT, "start_date": start, "end_date": end}
    body = asked.get("kubecost_cluster_costs", **dates, detail_level="namespace").json()
    assert body["complete"], body["sources"]
    assert body["total_cost"] == pytest.approx(true(start, end, False)["allocation_total"], abs=5e-3)
    assets = asked.get("kubecost_assets", **dates).json()
    nodes = {node["name"]: node["total_cost"] for node in assets["nodes"]}
    assert nodes == {name: pytest.approx(usd, abs=5e-3) for name, usd in true(start, end, False)["nodes"].items()}


def test_what_a_collector_keeps_no_longer_is_said_and_is_not_0(stack: Stack) -> None:
    _, asked = asked_of(stack, "opencost", Habits(collector=True))
    old = {"cloud_account_id": ACCOUNT, "start_date": END - 3 * DAY - 6 * HOUR, "end_date": END - 3 * DAY + 6 * HOUR}
    body = asked.get("kubecost_cluster_costs", **old).json()
    assert body["total_cost"] is None and not body["complete"]
    assert "12 hours are not kept" in str(body["sources"])


@pytest.mark.parametrize("ahead", [5.5, 5.75, -3.5])
def test_a_kubecost_whose_hours_begin_at_half_past(stack: Stack, ahead: float) -> None:
    """Its inner hours are kept, the rest is said; nothing is counted that lies outside."""
    simulator, asked = asked_of(stack, "kubecost", Habits(utc_offset_hours=ahead, serves=frozenset({"kubecost"})))
    body = asked.get("kubecost_cluster_costs", **YESTERDAY, detail_level="namespace").json()
    shift = int(ahead * HOUR) % HOUR
    inner = true(END - DAY + HOUR - shift, END - shift, True)
    assert body["total_cost"] is not None and not body["complete"]
    (allocation,) = (one for one in body["sources"] if one["name"] == "allocation")
    assert (allocation["status"], allocation["coverage"]) == ("partial", pytest.approx(23 / 24))
    assert body["summary"]["cpu_cost"] == pytest.approx(inner["summary"]["cpu_cost"], abs=1e-2)
    assert simulator.asked["/model/allocation"] <= 12, "the edges alone are asked apart, not hour by hour"


@pytest.mark.parametrize("ahead", [5, -8])
def test_a_kubecost_of_another_zone_by_the_hour(stack: Stack, ahead: float) -> None:
    _, asked = asked_of(stack, "kubecost", Habits(utc_offset_hours=ahead, serves=frozenset({"kubecost"})))
    body = asked.get("kubecost_cluster_costs", **YESTERDAY).json()
    assert body["complete"], body["sources"]
    assert body["total_cost"] == pytest.approx(true(END - DAY, END, True)["total_cost"], abs=2e-3)


@pytest.mark.parametrize("ahead", [5, -8])
def test_hours_follow_the_days_of_their_own_source(stack: Stack, ahead: int) -> None:
    """Where a Kubecost has no UTC day its local day is the control: here it says 5 % more than its hours."""

    def rewrite(path: str, answer: Any) -> Any:
        for one in answer["data"] if path == "/model/allocation" else []:
            for row in one.values():
                begun, over = (parse_rfc3339(row["window"][end]) or 0 for end in ("start", "end"))
                if over - begun == DAY:
                    row.update({name: usd * 1.05 for name, usd in row.items() if name.endswith(("Cost", "Adjustment"))})
        return answer

    habits = Habits(utc_offset_hours=ahead, serves=frozenset({"kubecost"}), rewrite=rewrite)
    _, url = stack.simulate(WORLD, habits)
    running = stack.start(
        clickhouse_url=f"embedded:{stack.folder / 'store'}", kubecost_api_url=url, kubecost_account_id=ACCOUNT
    )
    done = stack.fill(running, END - 3 * DAY, END, 2)
    assert done.complete, done.last_reason
    local = END - DAY - ahead * HOUR - (DAY if ahead < 0 else 0)
    for day in (local, local - DAY):
        dates = {"cloud_account_id": ACCOUNT, "start_date": day, "end_date": day + DAY}
        body = Metroculus(running).get("kubecost_cluster_costs", **dates, detail_level="namespace").json()
        assert body["complete"], body["sources"]
        exact = true(day, day + DAY, True)
        rows = {row["namespace"]: row["total_cost"] for row in body["breakdown_by_namespace"]}
        assert rows == {name: pytest.approx(1.05 * usd, abs=5e-3) for name, usd in exact["namespaces"].items()}
        assert body["idle_cost"] == pytest.approx(1.05 * exact["idle_cost"], abs=5e-3)


@pytest.mark.parametrize("ahead", [5.5, 5.75])
def test_the_history_of_a_kubecost_whose_hours_begin_at_half_past(stack: Stack, ahead: float) -> None:
    """Each UTC hour is cut from the two that hold it; what lies across the edges of a window is said."""
    _, url = stack.simulate(WORLD, Habits(utc_offset_hours=ahead, serves=frozenset({"kubecost"})))
    running = stack.start(
        clickhouse_url=f"embedded:{stack.folder / 'store'}", kubecost_api_url=url, kubecost_account_id=ACCOUNT
    )
    done = stack.fill(running, END - 2 * DAY, END)
    assert done.complete, done.last_reason
    body = Metroculus(running).get("kubecost_cluster_costs", **YESTERDAY, detail_level="namespace").json()
    assert body["total_cost"] == pytest.approx(true(END - DAY, END, True)["total_cost"], rel=0.01)
    assert not body["complete"]
    assert "parts of longer times" in str(body["sources"])


def test_an_upstream_whose_assets_fail_is_what_its_path_says_for_now(stack: Stack) -> None:
    failing = {"now": True}

    def rewrite(path: str, answer: Any) -> Any:
        return "<html>" if failing["now"] and path == "/model/assets" else answer

    _, asked = asked_of(stack, "kubecost", Habits(serves=BEHIND_ITS_WEB_SERVER, rewrite=rewrite))
    body = asked.get("kubecost_cluster_costs", **YESTERDAY).json()
    assert not body["complete"] and body["summary"]["management_cost"] is None


@pytest.mark.parametrize("first", ["<html>", {"code": 200, "data": None}, {"code": 200, "data": []}, {"code": 500}])
def test_a_first_answer_that_tells_nothing_makes_no_zero(stack: Stack, first: Any) -> None:
    """Assets that could not tell what the upstream is: neither now nor later is its management 0."""
    odd = {"left": 1}

    def rewrite(path: str, answer: Any) -> Any:
        if path == "/model/assets" and odd["left"]:
            odd["left"] -= 1
            return first
        return answer

    _, asked = asked_of(stack, "kubecost", Habits(serves=BEHIND_ITS_WEB_SERVER, rewrite=rewrite))
    for days in (1, 2):
        dates = {"cloud_account_id": ACCOUNT, "start_date": END - days * DAY, "end_date": END}
        body = asked.get("kubecost_cluster_costs", **dates).json()
        exact = true(END - days * DAY, END, False)["summary"]
        assert body["summary"]["management_cost"] is None
        assert body["summary"]["cpu_cost"] == pytest.approx(exact["cpu_cost"], abs=1e-2)


def test_an_upstream_that_was_replaced_at_its_address_is_read_as_what_it_is_now(stack: Stack) -> None:
    kubecost = Simulator(WORLD, Habits(serves=frozenset({"kubecost"})), lambda: NOW).application()
    opencost = Simulator(WORLD, Habits(serves=BEHIND_ITS_WEB_SERVER), lambda: NOW).application()
    current = [kubecost]

    class Address(HTTPServerConnectionDelegate):
        def start_request(self, server_conn: object, request_conn: Any) -> Any:
            return current[0].start_request(server_conn, request_conn)

    url = stack.serve(Address())  # type: ignore[arg-type]
    running = stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT, cache_ttl=0.0)
    asked = Metroculus(running)
    before = asked.get("kubecost_cluster_costs", **YESTERDAY).json()
    assert before["total_cost"] == pytest.approx(true(END - DAY, END, True)["total_cost"], abs=2e-3)
    current[0] = opencost
    body = asked.get("kubecost_cluster_costs", **YESTERDAY).json()
    assert body["summary"]["management_cost"] is None, "an object of assets has no management that is 0"
    body = asked.get("kubecost_cluster_costs", **YESTERDAY).json()
    assert body["not_covered"] == ["management"] and body["complete"]
    assert body["total_cost"] == pytest.approx(true(END - DAY, END, False)["allocation_total"], abs=2e-3)


def test_savings_that_hang_hold_up_no_statement(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: Any, detail: str | None) -> None:
        await asyncio.sleep(60)

    stack.plan["kubecost_timeout"] = 6.0
    _, asked = asked_of(stack, "kubecost", Habits(serves=frozenset({"kubecost"})))
    monkeypatch.setattr(KubecostSavings, "get", never)
    body = asked.get("kubecost_cluster_costs", detail_level="namespace", **YESTERDAY).json()
    told = {one["name"]: one["status"] for one in body["sources"]}
    assert (told["allocation"], told["savings"]) == ("ok", "unavailable")
    assert body["total_cost"] == pytest.approx(true(END - DAY, END, True)["total_cost"], abs=2e-3)
    assert body["potential_savings"] is None


def test_a_slow_upstream_is_answered_for_within_the_deadline(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding out what it is takes a bounded part of the time; an OpenCost that is not known is asked hour by hour."""
    original = SimulatedHandler.prepare

    async def prepare(self: Any) -> None:
        await asyncio.sleep(2.0)
        await original(self)

    monkeypatch.setattr(SimulatedHandler, "prepare", prepare)
    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"opencost"}), collector=True))
    running = stack.start(
        kubecost_api_url=url, kubecost_account_id=ACCOUNT, kubecost_flavour="opencost", kubecost_timeout=6.0
    )
    start = END - DAY - 2 * HOUR
    dates = {"cloud_account_id": ACCOUNT, "start_date": start, "end_date": END}
    answer = Metroculus(running).get("kubecost_assets", **dates)
    assert answer.status_code == 200, answer.text
    nodes = {node["name"]: node["total_cost"] for node in answer.json()["nodes"]}
    assert nodes == {name: pytest.approx(usd, abs=5e-3) for name, usd in true(start, END, False)["nodes"].items()}
