"""Hours that an agent pushes: to the cent what its cluster cost, whatever came twice, late, or out of order."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from metroculus.metroculus_agent.agent import _RoundEnded
from metroculus.sources.errors import BadAnswer
from metroculus.sources.source import NOT_PUSHED
from simulator.server import Habits
from simulator.world import World
from tests.pushing import Clock, Door, Pusher
from tests.support import DAY, END, HOUR, NOW, Metroculus, Stack, exact_world, until

pytestmark = pytest.mark.push

WORLD: World = exact_world(prime=7, days=9)
STEP_HOURS = int(os.environ.get("PUSH_STEP_HOURS", "8"))
"""Between two looks of an agent and a worker at days that go by."""
MINUTE = 60


@pytest.fixture
def door(stack: Stack) -> Iterator[Door]:
    made = Door(stack)
    yield made
    made.close()


def everything(door: Door, *pushers: Pusher) -> None:
    """Push and store until nothing more is wanted."""
    for _ in range(20):
        if not door.pushed(*pushers):
            break
    else:
        pytest.fail("something is wanted for ever")
    door.worked()


def statement(door: Door, account: str, start: int, end: int) -> Any:
    asked = {"cloud_account_id": account, "start_date": start, "end_date": end, "detail_level": "namespace"}
    return Metroculus(door.running).get("kubecost_cluster_costs", **asked).json()


def failing(pusher: Pusher, fails: Callable[[Any], bool]) -> None:
    """From now on the cluster's upstream answers some questions with status 500."""
    ask = pusher.agent._upstream.ask

    async def some(wanted: Any) -> bytes:
        if fails(wanted):
            raise BadAnswer("status 500", 500)
        return await ask(wanted)

    pusher.agent._upstream.ask = some  # type: ignore[method-assign]


@pytest.mark.parametrize("flavour", ["kubecost", "opencost"])
def test_a_week_is_pushed_and_stored_to_the_cent(door: Door, flavour: Any) -> None:
    one = door.pusher(WORLD, flavour)
    everything(door, one)
    start = END - 7 * DAY
    assert set(range(start, END, HOUR)) <= set(door.hours(one.account))
    exact = one.true(start, END)
    kind = "total_cost" if flavour == "kubecost" else "allocation_total"
    assert door.total(one.account, start, END) == pytest.approx(exact[kind], abs=1e-9)
    body = statement(door, one.account, start, END)
    assert body["complete"], body["sources"]
    rows = {row["namespace"]: row["total_cost"] for row in body["breakdown_by_namespace"]}
    assert rows == {name: pytest.approx(usd, abs=1e-6) for name, usd in exact["namespaces"].items()}
    assert ("management" in body["not_covered"]) == (flavour == "opencost"), "OpenCost has no management to tell"
    assets = Metroculus(door.running).get("kubecost_assets", cloud_account_id=one.account, start_date=END - DAY,
                                          end_date=END).json()  # fmt: skip
    assert assets["total_cost"] == pytest.approx(one.true(END - DAY, END)["total_cost"], rel=0.2), assets
    for late in (20 * MINUTE, 50 * MINUTE):  # of the hour that still runs nothing can have been pushed yet
        door.clock.now = float(END + late)
        body, exact = statement(door, one.account, END - DAY, END + late), one.true(END - DAY, END)
        assert body["total_cost"] == pytest.approx(exact[kind], abs=1e-6)
        management = body["summary"]["management_cost"]
        told = pytest.approx(exact["management_cost"], abs=1e-9) if flavour == "kubecost" else None
        assert management == told


def test_every_answer_twice_and_in_any_order_is_the_same_store(door: Door) -> None:
    one = door.pusher(WORLD)
    kept: list[tuple[Any, bytes]] = []
    deliver = one.agent._gateway.deliver

    async def noted(wanted: Any, body: bytes, currency: Any = None) -> int:
        kept.append((wanted, body))
        return await deliver(wanted, body)

    one.agent._gateway.deliver = noted  # type: ignore[method-assign]
    everything(door, one)
    before = {hour: (marker.batch, marker.digest) for hour, marker in door.hours(one.account).items()}
    rng = random.Random(5)
    for wanted, body in rng.sample(kept, len(kept)) + rng.sample(kept, len(kept)):
        door.stack.thread.run(deliver(wanted, body))
    door.worked()
    after = {hour: (marker.batch, marker.digest) for hour, marker in door.hours(one.account).items()}
    assert after == before and not door.store.inbox.waiting(one.account)


def test_an_answer_that_was_held_up_does_not_replace_a_later_one(door: Door) -> None:
    account, token = door.link()
    world_then, world_now = (exact_world(prime=prime, days=1) for prime in (7, 11))
    bodies = [_hour_body(door, world) for world in (world_then, world_now)]
    path = f"/push/v2/answers/allocation/{END - HOUR}/{END}/hour"
    later = door.push("PUT", f"{path}?asked_at={NOW - 10}", token, data=bodies[1], headers=PACKED)
    held_up = door.push("PUT", f"{path}?asked_at={NOW - 600}", token, data=bodies[0], headers=PACKED)
    assert (later.status_code, held_up.status_code) == (202, 200)
    assert held_up.json()["state"] == "superseded"
    door.worked()
    expected = json.loads(gzip.decompress(bodies[1]))["data"][0]
    assert door.total(account, END - HOUR, END) == pytest.approx(
        sum(row["totalCost"] for row in expected.values()), abs=1e-9
    )


PACKED = {"Content-Encoding": "gzip", "Content-Type": "application/json"}


def _hour_body(door: Door, world: World) -> bytes:
    """A Kubecost's answer about the last hour of its world."""
    import requests

    _, url = door.stack.simulate(world, Habits(serves=frozenset({"kubecost"})), door.clock)
    window = {"window": f"{END - HOUR},{END}", "accumulate": "hour", "idle": "true", "shareIdle": "false"}
    answer = requests.get(f"{url}/model/allocation", params=window, timeout=30)
    assert answer.ok
    return gzip.compress(answer.content)


def test_restatements_are_pushed_at_their_ages(stack: Stack) -> None:
    """Step by step for six days: bills arrive a day late, and every hour ends as the last of them says."""
    clock = Clock(END - 3 * DAY + 10 * MINUTE)
    door = Door(stack, clock)
    one = door.pusher(WORLD)
    rng = random.Random(7)
    while clock.now < END + 3 * DAY + HOUR:
        if rng.random() < 0.8:  # the agent is away now and then
            door.pushed(one)
        if rng.random() < 0.8:
            door.worked()
        clock.now += STEP_HOURS * HOUR
    everything(door, one)
    for day in range(END - 3 * DAY, END, DAY):
        exact = one.true(day, day + DAY, clock.now)["total_cost"]
        assert door.total(one.account, day, day + DAY) == pytest.approx(exact, abs=1e-9), day
    door.close()


def test_two_clusters_with_one_token_are_never_mixed(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """The second one is refused by name, to its agent and to the operator, until the first was silent for a day."""
    one = door.pusher(WORLD)
    other = door.pusher(exact_world(prime=13, days=9, cluster_id="elsewhere"), beside=one)
    door.clock.now = END - 3 * HOUR + 10 * MINUTE
    everything(door, one)
    for _ in range(3):  # the second one is the first to tell each hour that comes
        door.clock.now += HOUR
        with pytest.raises(_RoundEnded):
            door.pushed(other)
        door.worked()
        everything(door, one)
    start = END - 7 * DAY
    exact = one.true(start, END, door.clock.now)["total_cost"]
    assert door.total(one.account, start, END) == pytest.approx(exact, abs=1e-9)
    assert "answers were of cluster-one, and this one is of elsewhere: link each cluster by itself" in caplog.text
    assert f"account {one.account}: two clusters push with one token" in caplog.text
    door.clock.now += 25 * HOUR
    door.pushed(other)
    assert door.store.inbox.clusters(one.account, int(door.clock.now) - DAY) == ("elsewhere",)


def test_what_was_not_pushed_is_not_known_and_says_so(door: Door) -> None:
    account, _ = door.link()
    door.worked()
    body = statement(door, account, END - DAY, END)
    assert not body["complete"] and body["total_cost"] is None
    gaps = door.store.gaps.of(account, END - DAY, END)
    assert {gap.reason for gap in gaps.values()} == {NOT_PUSHED}


def test_an_hour_that_is_still_filling_is_asked_for_again(door: Door) -> None:
    """Its set covers a half of it: the upstream is not done with it, and nothing is stored of it."""
    account, token = door.link()
    door.clock.now = END + 6 * MINUTE
    half = json.loads(gzip.decompress(_hour_body(door, exact_world(prime=7, days=1))))
    for row in half["data"][0].values():
        row["end"] = "2026-11-20T23:20:00Z"
    path = f"/push/v2/answers/allocation/{END - HOUR}/{END}/hour"
    answer = door.push("PUT", path, token, data=gzip.compress(json.dumps(half).encode()), headers=PACKED)
    assert (answer.status_code, answer.json()["hours"]) == (202, 0)
    door.worked()
    assert END - HOUR not in door.hours(account)
    door.clock.now += 5 * MINUTE
    wanted = door.push("GET", "/push/v2/wanted", token).json()
    assert any(one["start"] <= END - HOUR < one["end"] and one["kind"] == "allocation" for one in wanted)


def test_assets_that_come_after_the_hours_complete_them(door: Door) -> None:
    one = door.pusher(WORLD)
    deliver = one.agent._gateway.deliver
    later: list[tuple[Any, bytes]] = []

    async def held(wanted: Any, body: bytes, currency: Any = None) -> int:
        if wanted.kind == "assets":
            later.append((wanted, body))
            return len(body)
        return await deliver(wanted, body)

    one.agent._gateway.deliver = held  # type: ignore[method-assign]
    everything(door, one)
    assert "management" in statement(door, one.account, END - DAY, END)["not_covered"]
    for wanted, body in later:
        door.stack.thread.run(deliver(wanted, body))
    door.worked()
    body = statement(door, one.account, END - DAY, END)
    assert body["complete"] and body["summary"]["management_cost"] == pytest.approx(
        one.true(END - DAY, END)["management_cost"], abs=1e-9
    )


def test_two_agents_of_one_cluster_count_it_once(door: Door) -> None:
    one = door.pusher(WORLD)
    twin = door.stack.thread.call(door._agent, one.account, WORLD, one.simulator, one.url, one.flavour, one.token_file)
    everything(door, one, twin)
    assert door.total(one.account, END - DAY, END) == pytest.approx(one.true(END - DAY, END)["total_cost"], abs=1e-9)


def test_a_backfill_is_asked_of_the_agent(door: Door) -> None:
    one = door.pusher(WORLD)
    everything(door, one)
    start, end = END - 9 * DAY, END - 8 * DAY
    assert not set(range(start, end, HOUR)) & set(door.hours(one.account))
    asked = {"cloud_account_id": one.account, "start_date": start, "end_date": end}
    assert door.metroculus("POST", "backfills", json=asked).status_code == 202
    everything(door, one)
    assert door.total(one.account, start, end) == pytest.approx(one.true(start, end)["total_cost"], abs=1e-9)
    assert door.expenses(one.account, start, end) == pytest.approx(one.true(start, end)["allocation_total"], abs=1e-9)
    assert not door.pushed(one)
    (job,) = door.metroculus("GET", "backfills", params={"cloud_account_id": one.account}).json()["backfills"]
    assert job["state"] in ("queued", "done")
    refused = door.metroculus("POST", "backfills", json=asked | {"repair": "a late bill"})
    assert refused.status_code == 400 and refused.json()["error"]["params"] == ["repair"]


def test_money_is_in_the_currency_that_the_upstream_says(door: Door) -> None:
    one = door.pusher(WORLD, habits=Habits(serves=frozenset({"kubecost"}), currency="EUR"))
    everything(door, one)
    assert statement(door, one.account, END - DAY, END)["currency"] == "EUR"
    assert {marker.currency for marker in door.hours(one.account).values()} == {"EUR"}


@pytest.mark.parametrize("offset", [2, -7, 5.5])
def test_days_of_another_zone_double_no_asset(door: Door, offset: float) -> None:
    one = door.pusher(WORLD, habits=Habits(serves=frozenset({"kubecost"}), utc_offset_hours=offset))
    everything(door, one)
    asked = {"cloud_account_id": one.account, "start_date": END - 2 * DAY, "end_date": END - DAY}
    body = Metroculus(door.running).get("kubecost_assets", **asked).json()
    exact = one.true(END - 2 * DAY, END - DAY)["total_cost"]
    assert body["total_cost"] is None or body["total_cost"] <= exact * 1.01, (body["total_cost"], exact)
    if offset % 1 == 0:  # hours that begin at half past are told as partial
        assert door.total(one.account, END - 2 * DAY, END - DAY) == pytest.approx(exact, abs=1e-3)


def test_an_older_day_does_not_rule_newer_hours(door: Door) -> None:
    """The day is told once and fails from then on; a bill takes something off the hours, which are told again."""
    one = door.pusher(WORLD)
    everything(door, one)

    failing(one, lambda wanted: wanted.step == "day")
    door.clock.now = NOW + 30 * HOUR
    for _ in range(5):
        door.pushed(one)
    door.worked()
    day = (END - DAY, END)
    before, after = one.true(*day)["total_cost"], one.true(*day, door.clock.now)["total_cost"]
    assert before != after
    stored = door.total(one.account, *day)
    assert stored in (pytest.approx(before, abs=1e-9), pytest.approx(after, abs=1e-9)), "never something between"


def test_an_answer_that_comes_back_is_taken_again(door: Door) -> None:
    """X tells a day, Y one hour of it anew, then X comes again, byte for byte: the last question counts."""
    account, token = door.link()
    first, other = (exact_world(prime=prime, days=1) for prime in (7, 11))
    bodies = [_hour_body(door, world) for world in (first, other)]
    path = f"/push/v2/answers/allocation/{END - HOUR}/{END}/hour"
    wide = f"/push/v2/answers/allocation/{END - 2 * HOUR}/{END}/hour"
    totals = []
    for where, body, asked_at in (
        (wide, bodies[0], NOW - 30),
        (path, bodies[1], NOW - 20),
        (wide, bodies[0], NOW - 10),
    ):
        answer = door.push("PUT", f"{where}?asked_at={asked_at}", token, data=body, headers=PACKED)
        assert answer.status_code in (200, 202), answer.text
        door.worked()
        totals.append(door.total(account, END - HOUR, END))
    assert totals[0] == totals[2] != totals[1]


def test_what_was_told_and_could_not_be_stored_is_asked_for_again(door: Door) -> None:
    """An old OpenCost without idle, whose assets fail at first: the hours wait for them, and are not given up."""
    one = door.pusher(WORLD, "opencost", Habits(serves=frozenset({"opencost"}), no_idle=True))
    ask = one.agent._upstream.ask
    failing(one, lambda wanted: wanted.kind == "assets")
    for _ in range(4):
        door.pushed(one)
    door.worked()
    assert not door.hours(one.account)
    one.agent._upstream.ask = ask  # type: ignore[method-assign]
    door.clock.now = NOW + 26 * HOUR
    everything(door, one)
    assert set(range(END - 2 * DAY, END, HOUR)) <= set(door.hours(one.account))


def test_many_small_answers_are_read_with_few_questions(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OpenCost tells assets by the hour; that one of them has lost pieces is said."""
    one = door.pusher(WORLD, "opencost")
    everything(door, one)
    inbox, asked = door.store.inbox, Counter[str]()
    for name in ("overlapping", "packed_of", "packed"):
        method = getattr(inbox, name)

        def counting(*args: Any, method: Any = method, name: str = name) -> Any:
            asked[name] += 1
            return method(*args)

        monkeypatch.setattr(inbox, name, counting)

    def told(hours: int) -> Any:
        asked.clear()
        dates = {
            "cloud_account_id": one.account,
            "start_date": END - DAY - hours * HOUR,
            "end_date": END - hours * HOUR,
        }
        return Metroculus(door.running).get("kubecost_assets", **dates).json()

    assert told(6)["complete"] and asked == {"overlapping": 1, "packed_of": 1}
    hour = END - DAY
    [lost] = [answer for answer in inbox.overlapping(one.account, hour, hour + HOUR) if answer.kind == "assets"
              and (answer.first, answer.step) == (hour, "hour")]  # fmt: skip
    door.store.engine.command(f"ALTER TABLE k8s_push_pieces DELETE WHERE answer = {lost.answer}")
    assert "pieces of a pushed answer are lost" in str(told(5))


def test_pieces_that_are_lost_are_pushed_again(door: Door) -> None:
    one = door.pusher(WORLD)
    everything(door, one)
    door.store.engine.command(f"ALTER TABLE k8s_push_pieces DELETE WHERE account = '{one.account}'")
    assert until(
        lambda: not any(door.store.inbox.whole(a) for a in door.store.inbox.overlapping(one.account, END - DAY, END))
    )
    door.clock.now = NOW + 25 * HOUR
    everything(door, one)
    day = (END - DAY, END)
    assert door.total(one.account, *day) == pytest.approx(one.true(*day, door.clock.now)["total_cost"], abs=1e-9)


def test_the_inbox_of_before_does_not_replace_what_was_asked_directly(door: Door) -> None:
    one = door.pusher(WORLD)
    everything(door, one)
    direct = {"flavour": "kubecost", "url": one.url}
    assert door.metroculus("PUT", f"kubecost_sources/{one.account}", json=direct).status_code == 200
    door.clock.now = NOW + 30 * HOUR
    door.worked()
    day = (END - 2 * DAY, END - DAY)
    told = door.total(one.account, *day)
    assert told == pytest.approx(one.true(*day, door.clock.now)["total_cost"], abs=1e-9)
    assert door.metroculus("PUT", f"kubecost_sources/{one.account}", json={"flavour": "push"}).status_code == 200
    for hours in (1, 20, 30):
        door.clock.now = NOW + (30 + hours) * HOUR
        door.worked()
        assert door.total(one.account, *day) == told


def test_days_are_told_by_the_day_where_hours_are_not_kept(door: Door) -> None:
    """A default Kubecost keeps hours for 49 hours: the days before are cut into hours, and it is said."""
    one = door.pusher(WORLD, habits=Habits(serves=frozenset({"kubecost"}), hours_kept=49, days_kept=91))
    everything(door, one)
    start, end = END - 5 * DAY, END - 4 * DAY
    assert set(range(start, end, HOUR)) <= set(door.hours(one.account))
    assert door.total(one.account, start, end) == pytest.approx(one.true(start, end)["total_cost"], abs=2e-3)
    store = next(one for one in statement(door, one.account, start, end)["sources"] if one["name"] == "store")
    assert "by the day" in str(store["warnings"])


def test_hours_that_the_upstream_keeps_no_longer_stay_as_they_were(door: Door) -> None:
    one = door.pusher(WORLD)
    everything(door, one)
    day = (END - 2 * DAY, END - DAY)
    before = door.total(one.account, *day)
    one.simulator.habits = Habits(serves=frozenset({"kubecost"}), hours_kept=2)
    door.clock.now = NOW + 25 * HOUR
    everything(door, one)
    assert set(range(END - 3 * DAY, END, HOUR)) <= set(door.hours(one.account))
    assert door.total(one.account, *day) in (before, one.true(*day, door.clock.now)["total_cost"])


def test_the_inbox_lets_go_of_what_is_settled(door: Door) -> None:
    one = door.pusher(WORLD)
    everything(door, one)
    inbox = door.store.inbox
    assert inbox.size(one.account) > 0
    assert door.store.run is not None
    swept = inbox.sweep(int(door.clock.now) + 20 * DAY)
    assert swept > 0 and inbox.size(one.account) == 0
    left = list(door.store.engine.rows("SELECT count() AS n FROM k8s_push_pieces"))
    assert left[0]["n"] == 0


def test_a_cluster_that_was_unlinked_is_refused(door: Door) -> None:
    account, token = door.link()
    assert door.push("GET", "/push/v2/wanted", token).status_code == 200
    assert door.metroculus("DELETE", f"kubecost_sources/{account}").status_code == 200
    refused = door.push("GET", "/push/v2/wanted", token)
    assert refused.status_code == 409 and "no longer pushed" in refused.json()["error"]["reason"]
