"""History end to end: extraction by the worker, answers from the store, over simulated clusters of known cost."""

from __future__ import annotations

import asyncio
from math import fsum
from typing import Any

import pytest
import requests

from metroculus.metroculus_worker.backfill import Progress
from metroculus.sources.registry.protocol import Credentials
from simulator.costs import truth
from simulator.server import Habits, Simulator
from standalone.running import Running
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, Metroculus, Stack, exact_world, until
from tools.window import parse_rfc3339

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

    def extract(self) -> int:
        """A round; the moment at which something is due again."""
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
            assert_equal(after[key], before[key], (question, key))
        for key in [name for name in before if name.startswith("breakdown_by")]:
            assert_rows_agree(after[key], before[key])
        for key in ("cpu_efficiency", "ram_efficiency", "total_efficiency"):
            assert after["efficiency"][key] == pytest.approx(before["efficiency"][key], rel=1e-4)


def assert_equal(after: Any, before: Any, about: object) -> None:
    """The same, but for the last bit of a sum that was added up in another order."""
    if isinstance(before, dict):
        assert after.keys() == before.keys(), about
        for key, value in before.items():
            assert_equal(after[key], value, (about, key))
    else:
        assert after == (pytest.approx(before, rel=1e-14) if isinstance(before, float) else before), about


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


def scaled(factor: float, hour_from: int = 0, hour_to: int = 2**32) -> Any:
    """A rewrite that changes what Kubecost says of cpu in some hours."""

    def rewrite(path: str, answer: Any) -> Any:
        if not path.endswith("allocation"):
            return answer
        for one in answer["data"]:
            for row in one.values():
                if hour_from <= (parse_rfc3339(row["window"]["start"]) or 0) < hour_to:
                    for key in ("cpuCost", "cpuCostAdjustment"):
                        row[key] *= factor
        return answer

    return rewrite


def test_a_restatement_moves_the_month_once(stack: Stack) -> None:
    """Up, down and back, each seen when the day is read again; reading twice changes nothing."""
    history = History(stack, flavour="opencost")
    history.fill()
    true = the_truth(adjusted=False)["allocation_total"]
    last_day = END - DAY
    cpu = the_truth(last_day, END, adjusted=False)["summary"]["cpu_cost"]
    assert history.costs()["total_cost"] == true
    for age, factor in ((1, 1.25), (3, 0.75), (6, 0.0), (12, 1.0)):
        history.simulator.habits.rewrite = scaled(factor, last_day, END)
        history.clock.now = END + age * HOUR + 60
        history.extract()
        history.extract()
        assert history.costs()["total_cost"] == true + (factor - 1.0) * cpu, age


def test_a_day_that_differs_up_to_a_tenth_is_followed_and_told(history: History) -> None:
    """The upstream bills more by the day than by its hours: hours follow, and say by how much."""
    day = END - DAY

    def rewrite(path: str, answer: Any) -> Any:
        if path.endswith("allocation"):
            for one in answer["data"]:
                for row in one.values():
                    if row["window"]["end"][11:13] == "00" and row["window"]["start"][11:13] == "00":
                        row["pvCost"] *= 1.0625
        return answer

    history.simulator.habits.rewrite = rewrite
    history.fill(day, END)
    committed = history.running.metroculus.dependencies.store.ledger.committed(ACCOUNT, day, END)
    true = the_truth(day, END)
    assert fsum(m.spread for m in committed.hours.values()) == pytest.approx(
        0.0625 * true["summary"]["pv_cost"], rel=1e-9
    )
    statement = history.costs(start_date=day)
    assert statement["summary"]["pv_cost"] == pytest.approx(1.0625 * true["summary"]["pv_cost"], rel=1e-12)
    assert statement["complete"] is True


def test_a_day_that_differs_more_is_unreconciled_and_said(history: History) -> None:
    day = END - DAY

    def rewrite(path: str, answer: Any) -> Any:
        if path.endswith("allocation"):
            for one in answer["data"]:
                for row in one.values():
                    if row["window"]["end"][11:13] == "00" and row["window"]["start"][11:13] == "00":
                        row["cpuCost"] *= 1.5
        return answer

    history.simulator.habits.rewrite = rewrite
    history.fill(day, END)
    statement = history.costs(start_date=day)
    assert statement["total_cost"] == the_truth(day, END)["total_cost"]
    assert any("unreconciled" in note for note in statement["sources"][0]["warnings"])


def test_hours_that_do_not_meet_their_control_total_are_shown(history: History) -> None:
    day = END - DAY

    def rewrite(path: str, answer: Any) -> Any:
        if path.endswith("allocation") and any(
            row["properties"].get("pod") is None and row["name"] != "__idle__"
            for one in answer["data"]
            for row in one.values()
        ):
            for one in answer["data"]:
                for row in one.values():
                    row["cpuCost"] += 1.0
        return answer

    history.simulator.habits.rewrite = rewrite
    history.fill(day, day + 6 * HOUR)
    committed = history.running.metroculus.dependencies.store.ledger.committed(ACCOUNT, day, day + 6 * HOUR)
    assert committed.hours and not any(marker.reconciled for marker in committed.hours.values())
    assert all(abs(marker.residual) > 0.5 for marker in committed.hours.values())


def test_what_is_not_stored_is_asked_live_and_joins_without_overlap_or_gap(history: History) -> None:
    middle = (WORLD.start + DAY + 5 * HOUR, WORLD.start + 2 * DAY + 7 * HOUR)
    live = history.costs(aggregate="namespace")
    history.fill(*middle)
    joined = history.costs(aggregate="namespace")
    assert joined["total_cost"] == live["total_cost"] == the_truth()["total_cost"]
    assert joined["complete"] is True
    assert_rows_agree(joined["breakdown_by_aggregate"], live["breakdown_by_aggregate"])
    assert [source["name"] for source in joined["sources"]][:2] == ["store", "allocation"]


def test_live_down_and_some_hours_stored(history: History) -> None:
    """Nine of 24 hours stored: what they cost, a coverage of 0.375, and who failed."""
    day = END - DAY
    history.simulator.habits.rewrite = only_hours(day + 15 * HOUR)
    history.fill(day, END)
    history.simulator.habits.fail_with = (503, "down")
    statement = history.costs(start_date=day)
    store, allocation = statement["sources"][:2]
    assert (store["name"], store["status"], store["coverage"]) == ("store", "stale", 0.375)
    assert allocation["status"] == "unavailable"
    assert statement["complete"] is False
    assert statement["total_cost"] == the_truth(day + 15 * HOUR, END)["total_cost"]


def only_hours(since: int) -> Any:
    def rewrite(path: str, answer: Any) -> Any:
        if path.endswith("allocation"):
            answer["data"] = [
                one if one and (parse_rfc3339(next(iter(one.values()))["window"]["start"]) or 0) >= since else {}
                for one in answer["data"]
            ]
        return answer

    return rewrite


def test_an_hour_that_is_still_empty_is_a_gap_and_not_a_zero_and_is_refilled(history: History) -> None:
    history.clock.now = END + 120
    history.fill(WORLD.start, END - 4 * HOUR)
    history.simulator.habits.rewrite = only_hours(END)
    assert history.extract() == history.clock.now + 60, "the hour that has just ended is to be asked for again soon"
    store = history.running.metroculus.dependencies.store
    assert END - HOUR not in store.ledger.committed(ACCOUNT, END - DAY, END).hours
    assert "knows nothing" in store.gaps.of(ACCOUNT, END - DAY, END)[END - HOUR].reason
    history.simulator.habits.rewrite = None
    history.clock.now += 60
    assert history.extract() > history.clock.now + 60, "from the hour's end to the store in under five minutes"
    assert END - HOUR in store.ledger.committed(ACCOUNT, END - DAY, END).hours
    assert history.clock.now - END < 300
    history.simulator.habits.fail_with = (503, "down")
    assert (
        history.costs(start_date=END - HOUR)["total_cost"]
        == the_truth(END - HOUR, END, history.clock.now)["total_cost"]
    )


def test_closed_hours_change_only_by_a_repair_that_is_audited(stack: Stack) -> None:
    clock = Clock(END + 9 * DAY)
    history = History(stack, clock=clock)
    history.fill()
    true = the_truth(now=clock.now)["total_cost"]
    assert history.costs()["total_cost"] == true
    history.simulator.habits.rewrite = scaled(2.0, WORLD.start, WORLD.start + DAY)
    history.fill()
    history.extract()
    assert history.costs()["total_cost"] == true
    asked = history.metroculus.post(
        "backfills",
        {"cloud_account_id": ACCOUNT, "start_date": WORLD.start, "end_date": END, "repair": "the bill was corrected"},
    )
    assert asked.status_code == 202, asked.text
    history.stack.thread.run(history.worker.work_off())
    job = history.metroculus.get(f"backfills/{asked.json()['id']}").json()
    assert (job["state"], job["hours_done"], job["repair"]) == ("done", 96, True)
    cpu = truth(WORLD, WORLD.start, WORLD.start + DAY, now=clock.now, adjusted=True)["summary"]["cpu_cost"]
    assert history.costs()["total_cost"] == true + cpu
    audited = history.running.metroculus.dependencies.store.jobs.audited(ACCOUNT)
    assert len(audited) == 24 and {one.why for one in audited} == {"the bill was corrected"}
    assert fsum(one.after - one.before for one in audited) == pytest.approx(cpu, rel=1e-12)


def test_a_backfill_over_http_tells_how_far_it_is(history: History) -> None:
    body = {"cloud_account_id": ACCOUNT, "start_date": "2026-11-19T00:00:00Z", "end_date": END}
    asked = history.metroculus.post("backfills", body)
    assert asked.status_code == 202 and asked.json()["state"] == "queued"
    history.stack.thread.run(history.worker.work_off())
    job = history.metroculus.get(f"backfills/{asked.json()['id']}").json()
    assert (job["state"], job["hours_total"], job["hours_done"], job["hours_missing"]) == ("done", 48, 48, 0)


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"cloud_account_id": "nonsense"}, 400, "cloud_account_id"),
        ({"start_date": "2026-02-30T00:00:00Z"}, 400, "start_date"),
        ({"start_date": END, "end_date": END}, 400, "start_date"),
        ({"start_date": END + DAY, "end_date": END + 2 * DAY}, 400, "start_date"),
        ({"parallel": 99}, 400, "parallel"),
        ({"start_date": END - 401 * DAY}, 400, "start_date"),
        ({"repair": "  "}, 400, "repair"),
        ({"unknown": 1}, 400, "unknown"),
    ],
)
def test_a_backfill_that_cannot_be_is_refused(history: History, change: Any, status: int, named: str) -> None:
    body = {"cloud_account_id": ACCOUNT, "start_date": WORLD.start, "end_date": END} | change
    answer = history.metroculus.post("backfills", body)
    assert (answer.status_code, answer.json()["error"]["params"][0]) == (status, named)


def test_a_backfill_that_is_absent_is_not_found(history: History) -> None:
    assert history.metroculus.get(f"backfills/{ACCOUNT}").status_code == 404


def test_back_fills_are_listed_cancelled_and_forgotten(history: History) -> None:
    store = history.running.metroculus.dependencies.store
    client = history.running.rest_api.metroculus.client
    _, first = client.create_backfill(ACCOUNT, WORLD.start, WORLD.start + DAY)
    _, second = client.create_backfill(ACCOUNT, WORLD.start, END, parallel=1)
    other = client.get_backfills("00000000-0000-4000-8000-00000000000b")[1]
    assert other["backfills"] == []
    assert {one["id"] for one in client.get_backfills(ACCOUNT)[1]["backfills"]} == {first["id"], second["id"]}
    assert client.delete_backfill(first["id"])[1]["state"] == "cancelled"
    assert client.delete_backfill(first["id"])[1]["state"] == "cancelled", "again is the same"
    history.simulator.habits.seconds_an_hour = 0.02
    working = asyncio.run_coroutine_threadsafe(history.worker.work_off(), history.stack.thread.loop)
    assert until(lambda: client.get_backfill(second["id"])[1]["hours_done"] > 0)
    assert client.delete_backfill(second["id"])[1]["state"] == "cancelled"
    working.result(20)
    assert client.get_backfill(second["id"])[1]["state"] == "cancelled", "what the worker still said changes nothing"
    assert 0 < client.get_backfill(second["id"])[1]["hours_done"] < 96
    assert store.ledger.committed(ACCOUNT, WORLD.start, END).hours, "what was stored stays"
    assert store.jobs.open() == []
    store.maintenance.clean(NOW + 29 * DAY, 400)
    assert len(client.get_backfills(ACCOUNT)[1]["backfills"]) == 2
    _, third = client.create_backfill(ACCOUNT, WORLD.start, END)
    store.maintenance.clean(NOW + 31 * DAY, 400)
    assert until(lambda: [one["id"] for one in client.get_backfills(ACCOUNT)[1]["backfills"]] == [third["id"]])


def test_a_back_fill_that_can_never_succeed_has_failed(stack: Stack) -> None:
    history = History(stack, kubecost_api_url=None, kubecost_account_id=None)
    store = history.running.metroculus.dependencies.store
    job = store.jobs.ask(ACCOUNT, WORLD.start, END, 1)
    stack.thread.run(history.worker.work_off())
    ended = store.jobs.get(job.id)
    assert (ended.state, ended.reason) == ("failed", "no cost source is configured") and store.jobs.open() == []


def test_one_cluster_that_fails_leaves_the_others_whole(stack: Stack) -> None:
    history = History(stack, kubecost_api_url=None, kubecost_account_id=None)
    other = "00000000-0000-4000-8000-00000000000b"
    _, second_url = stack.simulate(WORLD, Habits(fail_with=(500, "broken")), history.clock)
    first_url = stack.serve(history.simulator.application())
    registry = history.running.metroculus.dependencies.registry
    for account, url in ((ACCOUNT, first_url), (other, second_url)):
        stack.thread.run(registry.put(account, "kubecost", url, Credentials()))
    history.extract()
    store = history.running.metroculus.dependencies.store
    assert len(store.ledger.committed(ACCOUNT, WORLD.start, END).hours) == 96
    assert len(store.ledger.committed(other, WORLD.start, END).hours) == 0
    assert len(store.gaps.of(other, WORLD.start, END)) >= DAY // HOUR
    base = history.running.worker_listener.url
    metrics = requests.get(f"{base}/metrics", timeout=5).text
    assert f'metroculus_extraction_hours_total{{cloud_account_id="{ACCOUNT}",result="written"}} 96.0' in metrics
    assert f'metroculus_extraction_lag_seconds{{cloud_account_id="{ACCOUNT}"}} {float(NOW - END)}' in metrics
    assert f'metroculus_history_gap_hours{{cloud_account_id="{ACCOUNT}"}} 0.0' in metrics
    assert f'metroculus_extraction_failures_total{{cloud_account_id="{other}"}} 1.0' in metrics
    assert f'metroculus_extraction_last_success_timestamp_seconds{{cloud_account_id="{other}"}}' not in metrics
    assert 'metroculus_upstream_seconds_count{result="failed",upstream="cost source"}' in metrics
    assert 'metroculus_upstream_seconds_count{result="ok",upstream="cost source"}' in metrics
    ready = requests.get(f"{base}/readyz", timeout=5).json()
    assert ready["dependencies"] == {"store": "ok", ACCOUNT: "ok", other: "not answering"}


def test_expenses_by_filters_and_over_accounts(history: History) -> None:
    history.fill()
    true = the_truth()

    def total(**asked: Any) -> float:
        answer = history.metroculus.get("k8s_expenses", **WINDOW | asked)
        assert answer.status_code == 200, answer.text
        return answer.json()["total_cost"]

    assert total(k8s_namespace="shop") == true["namespaces"]["shop"]
    assert total(k8s_namespace="shop,api") == true["namespaces"]["shop"] + true["namespaces"]["api"]
    nodes = {node.name for node in WORLD.nodes}
    assert total(k8s_node=",".join(sorted(nodes))) == fsum(true["namespaces"].values())
    assert total(k8s_service="absent") == 0.0
    for one in ("hour", "day", "month", "label:team", "service", "node", "controller", "pod"):
        answer = history.metroculus.get("k8s_expenses", **WINDOW, group_by=one).json()
        assert fsum(row["total_cost"] for row in answer["expenses"]) == true["total_cost"], one
    both = history.metroculus.get(
        "k8s_expenses", **WINDOW | {"cloud_account_id": f"{ACCOUNT},00000000-0000-4000-8000-00000000000b"}
    ).json()
    assert (both["total_cost"], both["complete"], both["coverage"]) == (true["total_cost"], False, 0.5)


def test_statement_filters_are_those_of_expenses(history: History) -> None:
    for stage in ("live", "stored"):
        true = the_truth()
        for asked in ({"k8s_namespace": "shop,api"}, {"k8s_node": WORLD.nodes[0].name}, {"k8s_service": "web"}):
            statement = history.costs(**asked)
            if stage == "stored":
                expenses = history.metroculus.get("k8s_expenses", **WINDOW | asked).json()
                assert statement["total_cost"] == expenses["total_cost"], asked
            if "k8s_namespace" in asked:
                assert statement["total_cost"] == true["namespaces"]["shop"] + true["namespaces"]["api"]
        idle = history.costs(k8s_namespace="__idle__")
        assert idle["total_cost"] == idle["idle_cost"] == true["idle_cost"]
        history.fill()


def test_a_step_whose_source_fails_is_not_known_and_the_others_are(history: History) -> None:
    history.fill()
    history.simulator.habits.fail_with = (500, "down")
    window = {"start_date": END - 2 * DAY, "end_date": NOW}
    body = history.costs(**window, step="day", aggregate="namespace", groups=3)
    *stored, running = body["data_points"]
    assert len(stored) == 2 and all(point["complete"] and point["groups"] for point in stored)
    assert sum(point["total_cost"] for point in stored) == the_truth(END - 2 * DAY)["total_cost"]
    assert not running["complete"] and running["total_cost"] is None
    alone = history.metroculus.get(
        "kubecost_cluster_costs", cloud_account_id=ACCOUNT, start_date=END, end_date=NOW, step="hour"
    )
    assert alone.status_code == 502, "where nothing at all is known the failure is told"


def test_steps_with_shared_idle_and_a_filter_are_refused(history: History) -> None:
    asked = WINDOW | {"step": "day", "idle": "share"}
    refused = history.metroculus.get("kubecost_cluster_costs", **asked, k8s_namespace="shop")
    assert refused.status_code == 400 and refused.json()["error"]["params"] == ["idle", "step"]
    assert history.metroculus.get("kubecost_cluster_costs", **asked).status_code == 200


def test_what_is_asked_for_alone_and_nobody_tells_is_not_known(stack: Stack) -> None:
    """OpenCost has no cluster management: asked for that alone, the answer is not 0."""
    history = History(stack, flavour="opencost")
    for _ in ("live", "stored"):
        body = history.costs(k8s_namespace="__management__")
        assert body["total_cost"] is None and body["summary"]["known_cost"] is None
        assert history.costs(k8s_namespace="__management__,shop")["total_cost"] > 0
        history.fill()


@pytest.mark.parametrize("step", ["hour", "day", "week", "month"])
def test_points_are_the_same_live_and_stored_and_add_up(history: History, step: str) -> None:
    window = {"start_date": END - 2 * DAY} if step == "hour" else {}
    start = window.get("start_date", WORLD.start)
    total = the_truth(start, END)["total_cost"]
    live = history.costs(step=step, **window)["data_points"]
    history.fill()
    history.simulator.habits.fail_with = (503, "down")
    stored = history.costs(step=step, **window)["data_points"]
    assert fsum(point["total_cost"] for point in stored) == total
    assert [(p["start"], p["end"], p["total_cost"], p["idle_cost"], p["cpu_cost"]) for p in stored] == [
        (p["start"], p["end"], p["total_cost"], p["idle_cost"], p["cpu_cost"]) for p in live
    ]
    assert all(point["complete"] for point in stored)


def test_too_many_points_live_are_refused_with_what_to_do(history: History) -> None:
    answer = history.metroculus.get("kubecost_cluster_costs", **WINDOW, step="hour")
    assert answer.status_code == 400
    assert "back-fill" in answer.json()["error"]["reason"]


def test_months_and_where_they_go(history: History) -> None:
    history.fill()
    body = history.metroculus.get("k8s_monthly", cloud_account_id=ACCOUNT, months=2).json()
    october, november = body["months"]
    assert (october["month"], october["costs"], october["complete"]) == ("2026-10", None, False)
    assert november["costs"]["total_cost"] == the_truth()["total_cost"]
    assert november["coverage"] == pytest.approx(96 / (20 * 24))
    projection = november["projection"]
    assert projection["hours_left"] == 240 and projection["method"] == "mean"
    mean = the_truth()["total_cost"] / 96
    assert projection["total_cost"] == pytest.approx(the_truth()["total_cost"] + 240 * mean, rel=1e-9)


def test_without_a_store_history_is_refused_with_how_to_have_one(stack: Stack) -> None:
    running = stack.start()
    metroculus = Metroculus(running)
    for path, asked in (("k8s_expenses", WINDOW), ("k8s_monthly", {"cloud_account_id": ACCOUNT})):
        answer = metroculus.get(path, **asked)
        assert (answer.status_code, answer.json()["error"]["error_code"]) == (409, "OM0023")


def test_a_cluster_that_only_pushes_metrics_has_history_too(stack: Stack, prometheus_factory: Any) -> None:
    world = exact_world(days=1)
    prometheus = prometheus_factory()
    prometheus.load_world(world, ACCOUNT)
    prometheus.start()
    history = History(stack, world, kubecost_api_url=None, kubecost_account_id=None, thanos_query_url=prometheus.url)
    registry = history.running.metroculus.dependencies.registry
    stack.thread.run(registry.put(ACCOUNT, "push", "", Credentials()))
    history.fill(world.start, END)
    prometheus.stop()
    statement = history.costs(start_date=world.start, aggregate="namespace")
    true = truth(world, world.start, END, now=NOW)
    assert statement["sources"][0]["coverage"] == pytest.approx(1.0, abs=0.02)
    assert statement["total_cost"] == pytest.approx(true["total_cost"], rel=0.005)
    rows = {row["namespace"]: row["total_cost"] for row in statement["breakdown_by_aggregate"]}
    for name, usd in true["namespaces"].items():
        assert rows[name] == pytest.approx(usd, rel=0.03), name


def test_assets_of_past_days_are_kept(history: History) -> None:
    history.fill()
    store = history.running.metroculus.dependencies.store
    days = store.assets.days(ACCOUNT, WORLD.start, END)
    assert sorted(days) == list(range(WORLD.start, END, DAY))
    true = the_truth()
    nodes = [asset for asset in store.assets.read(ACCOUNT, list(days.values())) if asset.type == "node"]
    assert fsum(asset.total_cost for asset in nodes) == pytest.approx(fsum(true["nodes"].values()), abs=1e-4)


def test_assets_of_stored_days_answer_when_the_source_is_down(history: History) -> None:
    live = history.metroculus.get("kubecost_assets", **WINDOW).json()
    history.fill()
    history.simulator.habits.fail_with = (503, "down")
    stored = history.metroculus.get("kubecost_assets", **WINDOW).json()
    assert stored["complete"] is True and stored["sources"][0]["name"] == "store"
    assert stored["totals"] == pytest.approx(live["totals"], rel=1e-9)
    for key in ("nodes", "disks", "load_balancers", "cluster_management"):
        assert [one["name"] for one in stored[key]] == [one["name"] for one in live[key]]
    wider = history.metroculus.get("kubecost_assets", **WINDOW | {"start_date": WORLD.start - DAY}).json()
    assert wider["complete"] is False
    assert [source["status"] for source in wider["sources"]] == ["ok", "unavailable"]
    beyond = {"cloud_account_id": ACCOUNT, "start_date": WORLD.start - 2 * DAY, "end_date": WORLD.start}
    assert history.metroculus.get("kubecost_assets", **beyond).status_code in (502, 503)


def test_files_of_the_store_are_its_owners_alone(history: History, stack: Stack) -> None:
    assert (stack.folder / "store").stat().st_mode & 0o077 == 0
    for lock in ("owner.lock", "engine.lock"):
        assert (stack.folder / "store" / lock).stat().st_mode & 0o077 == 0
