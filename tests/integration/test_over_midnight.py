"""Hours before and after midnight are one request; an error in one of the two days is reported and spares the other.

Expected figures are the simulator's exact costs of the same hours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from simulator.costs import truth
from simulator.server import Habits
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, Metroculus, Stack, exact_world
from tools.window import iso

WORLD = exact_world(7, days=4)
START, MIDNIGHT, UNTIL = END - DAY - 5 * HOUR, END - DAY, END - 5 * HOUR
Sets = list[dict[str, Any]]


def begins(one: dict[str, Any]) -> str:
    """When a set of an answer begins; empty where it has no window."""
    return next((row["window"]["start"] for row in one.values() if row["window"]), "")


def statement(stack: Stack, path: str, change: Callable[[Sets], Sets | None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The statement, and its sources by name, where answers of a path are changed; None is a failure of theirs."""

    def rewrite(asked: str, answer: Any) -> Any:
        # What finds out what the upstream is, is asked of the last hours alone.
        if asked != path or not any(START <= _seconds(begins(one)) < UNTIL for one in answer["data"]):
            return answer
        changed = change(answer["data"])
        return answer | {"data": changed} if changed is not None else {"code": 500, "message": "no", "data": None}

    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"kubecost"}), rewrite=rewrite))
    running = stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT, kubecost_flavour="kubecost")
    dates = {"cloud_account_id": ACCOUNT, "start_date": START, "end_date": UNTIL}
    answer = Metroculus(running).get("kubecost_cluster_costs", **dates)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body, {one["name"]: one for one in body["sources"]}


def allocated(body: dict[str, Any]) -> float:
    """The total without what assets tell."""
    return float(body["total_cost"] - body["summary"]["management_cost"])


def _seconds(text: str) -> int:
    hours = {iso(hour): hour for hour in range(START - DAY, END + DAY, HOUR)}
    return hours.get(text, 0)


def old(one: dict[str, Any]) -> bool:
    return begins(one) < iso(MIDNIGHT)


def test_a_whole_answer_is_the_truth(stack: Stack) -> None:
    body, _ = statement(stack, "", lambda sets: sets)
    assert body["complete"] and body["total_cost"] == truth(WORLD, START, UNTIL, NOW, adjusted=True)["total_cost"]


UNDATED = {
    "type": "LoadBalancer",
    "totalCost": 0,
    "window": None,
    "properties": {"name": "lb", "cluster": "cluster-one"},
}


@pytest.mark.parametrize("beside", [{}, {"undated": UNDATED}], ids=["alone", "beside one without a window"])
@pytest.mark.parametrize(
    "lost",
    [old, lambda one: not old(one), lambda one: _seconds(begins(one)) // HOUR % 2 == 1],
    ids=["the older day", "the younger day", "every second hour"],
)
def test_assets_that_are_not_told_make_it_partial(stack: Stack, lost: Callable[[Any], bool], beside: Any) -> None:
    def without(sets: Sets) -> Sets:
        kept = [one for one in sets if not lost(one)]
        return [kept[0] | beside, *kept[1:]] if kept else []

    body, sources = statement(stack, "/model/assets", without)
    assert (sources["allocation"]["status"], sources["assets"]["status"]) == ("ok", "partial")
    assert body["complete"] is False


def test_a_day_whose_hours_fail_costs_the_other_nothing(stack: Stack) -> None:
    body, sources = statement(stack, "/model/allocation", lambda sets: None if any(map(old, sets)) else sets)
    assert sources["allocation"]["status"] == "partial" and body["complete"] is False
    assert allocated(body) == truth(WORLD, MIDNIGHT, UNTIL, NOW, adjusted=True)["allocation_total"]


def test_a_day_whose_assets_fail_costs_the_other_nothing(stack: Stack) -> None:
    body, sources = statement(stack, "/model/assets", lambda sets: None if any(map(old, sets)) else sets)
    assert sources["assets"]["status"] == "partial" and body["complete"] is False
    assert body["summary"]["management_cost"] == truth(WORLD, MIDNIGHT, UNTIL, NOW, adjusted=True)["management_cost"]


def test_an_hour_under_the_window_of_its_day_costs_the_other_day_nothing(stack: Stack) -> None:
    def widened(sets: Sets) -> Sets:
        day = {"start": iso(MIDNIGHT - DAY), "end": iso(MIDNIGHT)}
        wide = {name: row | {"window": day} for name, row in sets[0].items()}
        return [wide, *sets[1:]] if old(sets[0]) else sets

    body, sources = statement(stack, "/model/allocation", widened)
    assert sources["allocation"]["status"] == "partial" and body["complete"] is False
    assert allocated(body) == truth(WORLD, MIDNIGHT, UNTIL, NOW, adjusted=True)["allocation_total"]
