"""What the first source keeps no longer: told by its days, or by the metrics behind it, each for its part."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.costs import truth
from simulator.field import make_field_world
from simulator.server import Habits
from simulator.world import World
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, Metroculus, Stack

WORLD: World = make_field_world(["sidecars", "replaced_node"], seed=9, days=6, end=END, prime=7)
SHORT = Habits(hours_kept=49, days_kept=91, serves=frozenset({"kubecost"}))


def true(start: int, end: int, adjusted: bool = True) -> Any:
    return truth(WORLD, start, end, now=NOW, adjusted=adjusted)


def source(body: Any, name: str) -> Any:
    return next(one for one in body["sources"] if one["name"] == name)


def test_each_source_is_asked_for_its_part_of_a_window(stack: Stack, prometheus_factory: Any) -> None:
    prometheus = prometheus_factory()
    prometheus.load_world(WORLD, ACCOUNT)
    prometheus.start()
    # Kubecost knows the last two days alone: it was installed then.
    late = Habits(serves=frozenset({"kubecost"}), days_kept=2, hours_kept=48)
    _, url = stack.simulate(WORLD, late)
    running = stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT, thanos_query_url=prometheus.url)
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
    fill = running.worker.worker.fill
    done = stack.thread.run(fill(ACCOUNT, (WORLD.start, END), 1, lambda progress: None))
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
    fill = running.worker.worker.fill
    stack.thread.run(fill(ACCOUNT, (END - 4 * DAY, END - 3 * DAY), 1, lambda progress: None))
    hours = {"cloud_account_id": ACCOUNT, "start_date": END - 4 * DAY, "end_date": END - 3 * DAY, "step": "hour"}
    asked = Metroculus(running)
    before = asked.get("kubecost_cluster_costs", **hours).json()["data_points"]
    assert all(point["complete"] for point in before)
    simulator.habits = SHORT
    store = running.worker.worker
    stack.thread.run(store.fill(ACCOUNT, (END - 4 * DAY, END - 3 * DAY), 1, lambda progress: None))
    assert asked.get("kubecost_cluster_costs", **hours).json()["data_points"] == before


def test_history_falls_back_to_metrics_where_there_are_no_days_either(stack: Stack, prometheus_factory: Any) -> None:
    prometheus = prometheus_factory()
    prometheus.load_world(WORLD, ACCOUNT)
    prometheus.start()
    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"}), days_kept=2, hours_kept=48))
    running = stack.start(
        clickhouse_url=f"embedded:{stack.folder / 'store'}", kubecost_api_url=url, kubecost_account_id=ACCOUNT,
        thanos_query_url=prometheus.url,
    )  # fmt: skip
    stretch = (END - 4 * DAY, END - 4 * DAY + 6 * HOUR)
    done = stack.thread.run(running.worker.worker.fill(ACCOUNT, stretch, 1, lambda progress: None))
    assert done.complete, done.last_reason
    dates = {"cloud_account_id": ACCOUNT, "start_date": stretch[0], "end_date": stretch[1]}
    body = Metroculus(running).get("kubecost_cluster_costs", **dates, detail_level="namespace").json()
    rows = {row["namespace"]: row["total_cost"] for row in body["breakdown_by_namespace"]}
    exact = true(*stretch, adjusted=False)["namespaces"]
    assert rows == {name: pytest.approx(usd, rel=5e-3, abs=2e-3) for name, usd in exact.items()}
    assert "6 hours were told by thanos" in str(source(body, "store")["warnings"])
