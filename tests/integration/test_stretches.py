"""What the first source keeps no longer: told by its days, or by the metrics behind it, each for its part."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tornado.web import Application, RequestHandler

from metroculus.metroculus_worker.extract import RepairOrder
from simulator.costs import truth
from simulator.field import make_field_world
from simulator.server import Habits
from simulator.world import World
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, Metroculus, Stack
from tools.window import parse_rfc3339

WORLD: World = make_field_world(["sidecars", "replaced_node"], seed=9, days=6, end=END, prime=7)
SHORT = Habits(hours_kept=49, days_kept=91, serves=frozenset({"kubecost"}))


@pytest.fixture(scope="module")
def metrics_url(prometheus_factory: Any) -> str:
    """A Prometheus that has all of the world."""
    prometheus = prometheus_factory()
    prometheus.load_world(WORLD, ACCOUNT)
    prometheus.start()
    return str(prometheus.url)


def true(start: int, end: int, adjusted: bool = True) -> Any:
    return truth(WORLD, start, end, now=NOW, adjusted=adjusted)


def source(body: Any, name: str) -> Any:
    return next(one for one in body["sources"] if one["name"] == name)


def test_each_source_is_asked_for_its_part_of_a_window(stack: Stack, metrics_url: str) -> None:
    # Kubecost knows the last two days alone: it was installed then.
    late = Habits(serves=frozenset({"kubecost"}), days_kept=2, hours_kept=48)
    _, url = stack.simulate(WORLD, late)
    running = stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT, thanos_query_url=metrics_url)
    start, end = END - 4 * DAY, END
    dates = {"cloud_account_id": ACCOUNT, "start_date": start, "end_date": end}
    body = Metroculus(running).get("kubecost_cluster_costs", **dates, detail_level="namespace").json()
    own = source(body, "allocation")
    kept = true(END - 2 * DAY, END)["allocation_total"] + true(start, END - 2 * DAY, False)["allocation_total"]
    assert own["status"] == "ok" and "48 hours are not kept here and are told by thanos" in own["warnings"]
    assert source(body, "thanos")["coverage"] == pytest.approx(1.0)
    management = true(start, end)["management_cost"]
    assert body["summary"]["management_cost"] == pytest.approx(management, rel=5e-3)
    summed = sum(usd for name, usd in body["summary"].items() if name.endswith("_cost") and usd is not None)
    summed -= body["summary"]["total_cost"] or 0.0
    summed -= body["summary"]["known_cost"]
    assert summed - body["summary"]["management_cost"] == pytest.approx(kept, rel=5e-3)
    rows = {row["namespace"]: row["total_cost"] for row in body["breakdown_by_namespace"]}
    assert sum(rows.values()) + body["idle_cost"] + body["unallocated_cost"] == pytest.approx(kept, rel=5e-3)


def test_a_worker_that_was_away_falls_back_to_days_and_says_so(stack: Stack) -> None:
    _, url = stack.simulate(WORLD, SHORT)
    running = stack.start(
        clickhouse_url=f"embedded:{stack.folder / 'store'}", kubecost_api_url=url, kubecost_account_id=ACCOUNT
    )
    done = stack.fill(running, WORLD.start, END)
    assert done.complete, done.last_reason
    asked = Metroculus(running)
    old = {"cloud_account_id": ACCOUNT, "start_date": END - 5 * DAY, "end_date": END - 4 * DAY}
    body = asked.get("kubecost_cluster_costs", **old, detail_level="namespace").json()
    exact = true(END - 5 * DAY, END - 4 * DAY)
    assert body["complete"], body["sources"]
    assert body["total_cost"] == pytest.approx(exact["total_cost"], abs=2e-3)
    rows = {row["namespace"]: row["total_cost"] for row in body["breakdown_by_namespace"]}
    assert rows == {name: pytest.approx(usd, abs=2e-3) for name, usd in exact["namespaces"].items()}
    assert "24 hours were told by allocation by the day" in str(source(body, "store")["warnings"])
    part = old | {"end_date": END - 4 * DAY - 6 * HOUR}
    body = asked.get("kubecost_cluster_costs", **part).json()
    assert not body["complete"], "a part of a day that was told as one is an estimate"
    points = asked.get("kubecost_cluster_costs", **old, step="hour").json()["data_points"]
    assert len(points) == 24 and not any(point["complete"] for point in points)
    assert sum(point["known_cost"] for point in points) == pytest.approx(exact["total_cost"], abs=2e-3)


def test_hours_that_were_told_by_the_hour_stay_when_only_days_are_left(stack: Stack) -> None:
    habits = Habits(serves=frozenset({"kubecost"}))
    simulator, url = stack.simulate(WORLD, habits)
    running = stack.start(
        clickhouse_url=f"embedded:{stack.folder / 'store'}", kubecost_api_url=url, kubecost_account_id=ACCOUNT
    )
    stack.fill(running, END - 4 * DAY, END - 3 * DAY)
    hours = {"cloud_account_id": ACCOUNT, "start_date": END - 4 * DAY, "end_date": END - 3 * DAY, "step": "hour"}
    asked = Metroculus(running)
    before = asked.get("kubecost_cluster_costs", **hours).json()["data_points"]
    assert all(point["complete"] for point in before)
    simulator.habits = SHORT
    stack.fill(running, END - 4 * DAY, END - 3 * DAY)
    assert asked.get("kubecost_cluster_costs", **hours).json()["data_points"] == before


def test_history_falls_back_to_metrics_where_there_are_no_days_either(stack: Stack, metrics_url: str) -> None:
    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"}), days_kept=2, hours_kept=48))
    running = stack.start(
        clickhouse_url=f"embedded:{stack.folder / 'store'}", kubecost_api_url=url, kubecost_account_id=ACCOUNT,
        thanos_query_url=metrics_url,
    )  # fmt: skip
    stretch = (END - 4 * DAY, END - 4 * DAY + 6 * HOUR)
    done = stack.fill(running, *stretch)
    assert done.complete, done.last_reason
    dates = {"cloud_account_id": ACCOUNT, "start_date": stretch[0], "end_date": stretch[1]}
    body = Metroculus(running).get("kubecost_cluster_costs", **dates, detail_level="namespace").json()
    rows = {row["namespace"]: row["total_cost"] for row in body["breakdown_by_namespace"]}
    exact = true(*stretch, adjusted=False)["namespaces"]
    assert rows == {name: pytest.approx(usd, rel=5e-3, abs=2e-3) for name, usd in exact.items()}
    assert "6 hours were told by thanos" in str(source(body, "store")["warnings"])


HOLE = range(END - DAY + 5 * HOUR, END - DAY + 7 * HOUR, HOUR)


def with_a_hole(path: str, answer: Any) -> Any:
    """Kubecost was down for two hours: it has none of them, and its day is of the others."""
    for one in answer["data"] if path in ("/model/allocation", "/model/assets") else []:
        for name, row in list(one.items()):
            start, end = (parse_rfc3339(row["window"][edge]) or 0 for edge in ("start", "end"))
            if end - start == HOUR and start in HOLE:
                del one[name]
            elif end - start == DAY and start <= HOLE.start < end:
                row.update({key: usd * 22 / 24 for key, usd in row.items() if key.endswith(("Cost", "Adjustment"))})
    return answer


def test_a_hole_in_a_day_is_seen_while_its_hours_are_kept(stack: Stack) -> None:
    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"}), rewrite=with_a_hole))
    running = stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT)
    dates = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": END}
    body = Metroculus(running).get("kubecost_cluster_costs", **dates).json()
    assert not body["complete"] and source(body, "allocation")["coverage"] == pytest.approx(22 / 24)


def test_a_day_is_no_control_of_hours_that_another_source_told(stack: Stack, metrics_url: str) -> None:
    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"}), rewrite=with_a_hole))
    running = stack.start(
        clickhouse_url=f"embedded:{stack.folder / 'store'}", kubecost_api_url=url, kubecost_account_id=ACCOUNT,
        thanos_query_url=metrics_url,
    )  # fmt: skip
    done = stack.fill(running, END - DAY, END)
    assert done.complete, done.last_reason
    dates = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": END}
    body = Metroculus(running).get("kubecost_cluster_costs", **dates).json()
    by_kubecost = true(END - DAY, END)["total_cost"]
    assert body["total_cost"] == pytest.approx(by_kubecost, rel=0.02), "its day lacks two hours of money"
    assert "2 hours were told by thanos" in str(body["sources"])


def test_what_the_metrics_told_gives_way_when_kubecost_has_caught_up(stack: Stack, metrics_url: str) -> None:
    still: dict[str, Any] = {"stands": True}

    def rewrite(path: str, answer: Any) -> Any:
        return {"code": 200, "data": [{} for _ in answer["data"]]} if still["stands"] and "alloc" in path else answer

    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"}), rewrite=rewrite))
    running = stack.start(
        clickhouse_url=f"embedded:{stack.folder / 'store'}", kubecost_api_url=url, kubecost_account_id=ACCOUNT,
        thanos_query_url=metrics_url,
    )  # fmt: skip
    stretch = (END - 2 * DAY, END)
    assert stack.fill(running, *stretch).complete
    dates = {"cloud_account_id": ACCOUNT, "start_date": stretch[0], "end_date": stretch[1]}
    body = Metroculus(running).get("kubecost_cluster_costs", **dates).json()
    assert body["total_cost"] == pytest.approx(true(*stretch, adjusted=False)["total_cost"], rel=5e-3)
    still["stands"] = False
    assert stack.fill(running, *stretch).complete
    body = Metroculus(running).get("kubecost_cluster_costs", **dates).json()
    assert body["total_cost"] == pytest.approx(true(*stretch)["total_cost"], abs=1e-2)
    assert "told by" not in str(body["sources"])


def test_a_window_that_metrics_alone_still_have_is_whole(stack: Stack, metrics_url: str) -> None:
    """As whole as the same time is inside a longer window, and in points."""
    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"}), days_kept=2, hours_kept=48))
    running = stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT, thanos_query_url=metrics_url)
    dates = {"cloud_account_id": ACCOUNT, "start_date": END - 4 * DAY, "end_date": END - 3 * DAY}
    body = Metroculus(running).get("kubecost_cluster_costs", **dates).json()
    exact = true(END - 4 * DAY, END - 3 * DAY, adjusted=False)["total_cost"]
    assert body["complete"], body["sources"]
    assert body["total_cost"] == pytest.approx(exact, rel=5e-3)
    points = Metroculus(running).get(
        "kubecost_cluster_costs", cloud_account_id=ACCOUNT, start_date=END - 4 * DAY, end_date=END, step="day"
    )
    first = points.json()["data_points"][0]
    assert first["complete"] and first["total_cost"] == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize("fault", ["hangs", "fails"])
def test_metrics_that_fail_or_hang_leave_what_the_first_source_told(stack: Stack, fault: str) -> None:
    class Faulty(RequestHandler):
        async def prepare(self) -> None:
            if fault == "hangs":
                await asyncio.sleep(3600)
            self.set_status(500)
            self.finish("{}")

    metrics = stack.serve(Application([("/.*", Faulty)]))
    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"}), days_kept=2, hours_kept=48))
    running = stack.start(
        kubecost_api_url=url, kubecost_account_id=ACCOUNT, thanos_query_url=metrics, kubecost_timeout=6.0
    )
    dates = {"cloud_account_id": ACCOUNT, "start_date": END - 4 * DAY, "end_date": END}
    answer = Metroculus(running).get("kubecost_cluster_costs", **dates)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    kept = true(END - 2 * DAY, END)["allocation_total"]
    assert not body["complete"] and source(body, "thanos")["status"] == "unavailable"
    parts = [
        usd for name, usd in body["summary"].items() if name.endswith("_cost") and name[:5] not in ("total", "known")
    ]
    assert sum(usd or 0.0 for usd in parts) - body["summary"]["management_cost"] == pytest.approx(kept, abs=1e-2)


def test_a_repair_that_changed_nothing_does_not_say_that_it_is_done(stack: Stack) -> None:
    simulator, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"})))
    running = stack.start(
        clickhouse_url=f"embedded:{stack.folder / 'store'}", kubecost_api_url=url, kubecost_account_id=ACCOUNT
    )
    stretch = (END - 4 * DAY, END - 3 * DAY)
    assert stack.fill(running, *stretch).complete
    simulator.habits = SHORT
    order = RepairOrder("id", "who", "why")
    done = stack.fill(running, *stretch, order=order)
    assert not done.complete and "keeps this hour no longer" in done.last_reason


@pytest.mark.parametrize("minutes", [3, 14, 20])
def test_the_last_hour_of_a_day_may_be_late(stack: Stack, minutes: int) -> None:
    """Kubecost's day has the money of an hour that it has not made yet: that is no hole."""
    now = END - DAY + minutes * 60

    def rewrite(path: str, answer: Any) -> Any:
        for one in answer["data"] if path == "/model/allocation" else []:
            for name, row in list(one.items()):
                start, end = (parse_rfc3339(row["window"][edge]) or 0 for edge in ("start", "end"))
                if end - start == HOUR and end > now - 40 * 60:
                    del one[name]
        return answer

    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"}), rewrite=rewrite), clock=lambda: now)
    running = stack.start(clock=lambda: now, kubecost_api_url=url, kubecost_account_id=ACCOUNT)
    dates = {"cloud_account_id": ACCOUNT, "start_date": END - 2 * DAY, "end_date": END - DAY}
    body = Metroculus(running).get("kubecost_cluster_costs", **dates).json()
    exact: Any = truth(WORLD, END - 2 * DAY, END - DAY, now=now, adjusted=True)["total_cost"]
    assert body["complete"], body["sources"]
    assert body["total_cost"] == pytest.approx(exact, abs=1e-2)
