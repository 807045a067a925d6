"""History end to end: extraction by the worker, answers from the store, over simulated clusters of known cost."""

from __future__ import annotations

from math import fsum
from typing import Any

import pytest

from metroculus.metroculus_worker.backfill import Progress
from simulator.costs import truth
from simulator.server import Habits, Simulator
from standalone.running import Running
from tests.support import ACCOUNT, DAY, END, NOW, Metroculus, Stack, exact_world

WORLD = exact_world()
WINDOW = {"cloud_account_id": ACCOUNT, "start_date": WORLD.start, "end_date": END}


class Clock:
    """A moment that a test moves."""

    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class History:
    """A service with a store over one simulated cluster; rounds are made by the test."""

    def __init__(self, stack: Stack, world: Any = WORLD, flavour: str = "kubecost", **more: Any) -> None:
        self.stack = stack
        self.clock = more.pop("clock", None) or Clock()
        habits = more.pop("habits", None) or Habits(serves=frozenset({flavour}))
        self.simulator: Simulator
        self.simulator, url = stack.simulate(world, habits, self.clock)
        plan = {
            "clickhouse_url": f"embedded:{stack.folder / 'store'}",
            "kubecost_api_url": url,
            "kubecost_account_id": ACCOUNT,
            "clock": self.clock,
            "rounds": False,
        } | more
        self.running: Running = stack.start(**plan)
        assert self.running.worker is not None
        self.worker = self.running.worker.worker
        self.metroculus = Metroculus(self.running)

    def fill(self, start: int = WORLD.start, end: int = END) -> list[Progress]:
        told: list[Progress] = []
        self.stack.thread.run(self.worker.fill(ACCOUNT, (start, end), 2, told.append))
        return told

    def extract(self) -> bool:
        return self.stack.thread.run(self.worker.extract_all())

    def costs(self, **more: Any) -> dict[str, Any]:
        answer = self.metroculus.get("kubecost_cluster_costs", **WINDOW | more)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def history(stack: Stack) -> History:
    return History(stack)


def the_truth(start: int = WORLD.start, end: int = END, now: int = NOW, adjusted: bool = True) -> dict[str, Any]:
    return truth(WORLD, start, end, now=now, adjusted=adjusted)


@pytest.mark.parametrize("flavour", ["kubecost", "opencost"])
def test_every_view_from_the_store_is_what_the_source_said(stack: Stack, flavour: str) -> None:
    history = History(stack, flavour=flavour)
    questions = [
        {"detail_level": detail, **aggregate}
        for detail in ("summary", "namespace", "workload", "pod")
        for aggregate in (
            {},
            {"aggregate": "node"},
            {"aggregate": "label:team"},
            {"aggregate": "namespace,controllerKind"},
            {"aggregate": "container", "idle": "share"},
            {"aggregate": "service", "namespace": "shop"},
        )
    ]
    live = [history.costs(**question) for question in questions]
    progress = history.fill()
    assert progress[-1].complete and progress[0].done == 0
    history.simulator.habits.fail_with = (503, "down")
    exact = {
        "total_cost",
        "summary",
        "idle_cost",
        "unallocated_cost",
        "special",
        "breakdown",
        "complete",
        "not_covered",
    }
    for question, before in zip(questions, live, strict=True):
        after = history.costs(**question)
        assert after["sources"][0]["name"] == "store"
        assert after["sources"][0]["coverage"] == 1.0
        if question["detail_level"] != "summary":  # savings are asked live, and are no cost
            before["complete"] = after["complete"] = None
        for key in exact:
            assert after[key] == before[key], (question, key)
        for key in [name for name in before if name.startswith("breakdown_by")]:
            assert_rows_agree(after[key], before[key])
        for key in ("cpu_efficiency", "ram_efficiency", "total_efficiency"):
            assert after["efficiency"][key] == pytest.approx(before["efficiency"][key], rel=1e-4)


def assert_rows_agree(after: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    assert [row["name"] for row in after] == [row["name"] for row in before]
    for one, other in zip(after, before, strict=True):
        for key, value in one.items():
            if not isinstance(value, float):
                assert value == other[key], key
            else:  # upstream rounds averages to five decimals, by the hour and by the day
                assert value == pytest.approx(other[key], rel=1e-12 if "cost" in key else 1e-3), key


def test_the_store_alone_gives_the_exact_truth(history: History) -> None:
    history.fill()
    history.simulator.habits.fail_with = (503, "down")
    true = the_truth()
    statement = history.costs()
    assert statement["complete"] is True
    assert statement["total_cost"] == true["total_cost"]
    assert statement["summary"]["management_cost"] == true["management_cost"]
    answer = history.metroculus.get("k8s_expenses", **WINDOW, group_by="namespace")
    body = answer.json()
    assert (body["complete"], body["coverage"], body["total_cost"]) == (True, 1.0, true["total_cost"])
    rows = {row["namespace"]: row["total_cost"] for row in body["expenses"]}
    assert rows.pop("__idle__") == true["idle_cost"]
    assert rows.pop("__management__") == true["management_cost"]
    assert rows.pop("__unmounted__") == true["unmounted_cost"]
    assert rows == true["namespaces"]
    by_day = history.metroculus.get("k8s_expenses", **WINDOW, group_by="day").json()["expenses"]
    days = [the_truth(day, day + DAY)["total_cost"] for day in range(WORLD.start, END, DAY)]
    assert [row["total_cost"] for row in by_day] == days
    assert fsum(days) == true["total_cost"]
