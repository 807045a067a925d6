"""What a cluster costs an hour now: against the simulator's own rates, on a real Prometheus."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from math import fsum
from typing import Any
from uuid import uuid4

import pytest

from simulator.costs import UNMOUNTED, truth
from simulator.field import make_field_world
from simulator.openmetrics import PLAIN, Recording
from simulator.server import Habits
from simulator.world import World, make_world
from tests.conftest import free_port
from tests.integration.test_metrics_alone import OWN, PRIME, without_prices
from tests.support import ACCOUNT, DAY, END, HOUR, Metroculus, Stack, ask, exact_world, make_tenant
from tools.window import MINUTE

pytestmark = pytest.mark.watch

HALF_PAST = END - 5 * HOUR + 30 * MINUTE
ACCOUNTS = int(os.environ.get("LIVE_ACCOUNTS", "12"))
ACCOUNTS_A_MINUTE = 200


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Watched:
    """Clusters that push metrics alone, and a worker whose minutes are made by hand."""

    def __init__(self, stack: Stack, url: str, now: float = HALF_PAST, **more: Any) -> None:
        self.stack = stack
        self.clock = Clock(now)
        kept = {"clickhouse_url": f"embedded:{stack.folder / 'store'}", "data_dir": stack.folder / "kept"}
        self.plan = {"thanos_query_url": url, "clock": self.clock, **kept} | more
        self.running = stack.start(**self.plan)
        self.worker: Any = self.running.worker

    def link(self, account: str = ACCOUNT, **more: Any) -> None:
        status, _ = self.running.rest_api.metroculus.client.put_kubecost_source(account, "push", **more)
        assert status == 200

    def minute(self) -> None:
        self.stack.thread.run(self.worker.worker.live_all())

    def get(self, account: str = ACCOUNT, **more: Any) -> dict[str, Any]:
        answer = Metroculus(self.running).get("live", cloud_account_id=account, **more)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body


def rates(world: World, at: int) -> dict[str, Any]:
    """What the simulator says that the minute which begins then cost, as USD an hour."""
    true: Any = truth(world, at, at + MINUTE)
    hourly = {name: true[name] * 60 for name in ("total_cost", "idle_cost", "management_cost", "unmounted_cost")}
    return hourly | {"namespaces": {name: usd * 60 for name, usd in true["namespaces"].items()}}


def held(body: dict[str, Any], true: dict[str, Any], within: float = 0.01) -> None:
    latest = body["latest"]
    rows = {row["namespace"]: row["per_hour"]["total"] for row in latest["namespaces"]}
    assert rows.pop(UNMOUNTED, 0.0) == pytest.approx(true["unmounted_cost"], rel=within, abs=1e-9)
    assert {name: usd for name, usd in rows.items() if usd} == {
        name: pytest.approx(usd, rel=within, abs=1e-6) for name, usd in true["namespaces"].items() if usd
    }
    assert latest["idle_per_hour"] == pytest.approx(true["idle_cost"], rel=within, abs=1e-6)
    assert latest["management_per_hour"] == pytest.approx(true["management_cost"], rel=within)
    assert latest["total_per_hour"] == pytest.approx(true["total_cost"], rel=within)
    parts = [latest["per_hour"]["total"], latest["idle_per_hour"], latest["management_per_hour"]]
    assert latest["total_per_hour"] == pytest.approx(fsum(parts), rel=1e-9)
    for name in ("cpu", "ram", "gpu", "pv", "network", "load_balancer", "total"):
        known = [row["per_hour"][name] for row in latest["namespaces"]]
        if latest["per_hour"][name] is None:
            assert set(known) == {None}
        else:
            assert latest["per_hour"][name] == pytest.approx(fsum(known), rel=1e-9)


def load(prometheus_factory: Any, worlds: dict[str, World], recording: Recording = PLAIN) -> str:
    prometheus = prometheus_factory()
    for tenant, world in worlds.items():
        prometheus.load_world(world, tenant, recording=recording)
    prometheus.start()
    return str(prometheus.url)


@pytest.fixture(scope="module")
def url(prometheus_factory: Any) -> str:
    return load(prometheus_factory, {ACCOUNT: exact_world(PRIME, days=2)})


@pytest.fixture
def watched(stack: Stack, url: str) -> Watched:
    made = Watched(stack, url)
    made.link()
    return made


def test_a_minute_costs_what_the_simulator_says(watched: Watched) -> None:
    world = exact_world(PRIME, days=2)
    for hours in (0, 7, 16, 29):
        watched.clock.now = at = END - 30 * HOUR + hours * HOUR + 30 * MINUTE
        watched.minute()
        body = watched.get(minutes=10)
        assert body["as_of"] == at and body["age_seconds"] == 0
        assert body["complete"] and body["source"]["status"] == "ok", body["source"]
        held(body, rates(world, at))
        assert body["currency"] == "USD"


RECORDINGS = {
    "every 15 s, the cost exporter every 30 s": Recording(interval=15, cost_interval=30),
    "the cost exporter every five minutes": Recording(cost_interval=300),
    "two replicas": Recording(replicas=2),
    "kube-state-metrics 2": Recording(kube_state_metrics=2),
    "labels overwritten by the scrape": Recording(honor_labels=False, kube_state_metrics=1),
}


@pytest.mark.parametrize("recording", RECORDINGS.values(), ids=list(RECORDINGS))
def test_however_it_is_recorded(stack: Stack, prometheus_factory: Any, recording: Recording) -> None:
    world = make_field_world(
        ["sidecars", "twin_pods", "many_services", "spot_nodes", "shared_volume"], days=1, end=END, seed=5
    )
    watched = Watched(stack, load(prometheus_factory, {ACCOUNT: world}, recording))
    watched.link()
    watched.minute()
    held(watched.get(), rates(world, HALF_PAST))


def test_minutes_that_were_missed_are_made_up(watched: Watched) -> None:
    watched.minute()
    assert len(watched.get()["points"]) == 60, "the first round looks back for an hour"
    watched.clock.now += 17 * MINUTE + 12
    watched.minute()
    watched.minute()
    body = watched.get(minutes=90)
    stamps = [point["at"] for point in body["points"]]
    assert stamps == list(range(HALF_PAST - 59 * MINUTE, HALF_PAST + 18 * MINUTE, MINUTE))
    assert body["missing_minutes"] == 90 - len(stamps) and body["age_seconds"] == 12
    assert watched.get(minutes=10)["missing_minutes"] == 0


def test_one_namespace_over_time(watched: Watched) -> None:
    watched.minute()
    every = watched.get(minutes=30)
    name = max(every["latest"]["namespaces"], key=lambda row: row["per_hour"]["total"])["namespace"]
    body = watched.get(minutes=30, namespace=name)
    row = next(row for row in every["latest"]["namespaces"] if row["namespace"] == name)
    assert body["latest"]["namespaces"] == [row] and body["latest"]["total_per_hour"] == row["per_hour"]["total"]
    assert body["latest"]["idle_per_hour"] is None and len(body["points"]) == 30
    unknown = watched.get(namespace="no-such")
    assert unknown["latest"] is None and unknown["points"] == [] and not unknown["complete"]
    assert unknown["source"]["status"] == "no_data" and "no-such" in unknown["source"]["warnings"][0]


def test_what_is_pushed_late_is_made_up_and_silence_has_an_age(stack: Stack, prometheus_factory: Any, url: str) -> None:
    """An exporter that dies is no zero: the last rate stays, with its age."""
    world = exact_world(PRIME, days=2)
    until = HALF_PAST - 20 * MINUTE
    dead = load(prometheus_factory, {ACCOUNT: replace(world, holes=((until, END),))})
    watched = Watched(stack, dead)
    watched.link()
    watched.minute()
    body = watched.get()
    assert body["source"]["status"] == "stale" and not body["complete"]
    assert 18 * MINUTE <= body["age_seconds"] <= 20 * MINUTE and "minutes old" in body["source"]["warnings"][-1]
    held(body, rates(world, until - MINUTE))
    # What was missing arrives.
    stack.thread.run(watched.running.stop())
    later = Watched(stack, url, now=HALF_PAST + MINUTE)
    later.minute()
    body = later.get()
    assert body["source"]["status"] == "ok" and body["missing_minutes"] == 0
    held(body, rates(world, HALF_PAST + MINUTE))


def test_containers_that_nobody_tells_of_any_more_are_no_idle(stack: Stack, prometheus_factory: Any) -> None:
    world = replace(exact_world(PRIME, days=1), blind=((HALF_PAST - 40 * MINUTE, END),))
    watched = Watched(stack, load(prometheus_factory, {ACCOUNT: world}))
    watched.link()
    watched.minute()
    body = watched.get()
    latest = body["latest"]
    assert latest["total_per_hour"] is None and latest["idle_per_hour"] is None and not body["complete"]
    assert latest["per_hour"]["cpu"] is None and "nobody writes what is allocated" in str(body["source"]["warnings"])


def test_machines_without_a_price_are_not_free(stack: Stack, prometheus_factory: Any) -> None:
    world = exact_world(PRIME, days=1)
    url = load(prometheus_factory, {ACCOUNT: without_prices(world)})
    watched = Watched(stack, url)
    watched.link()
    watched.minute()
    body = watched.get()
    assert body["latest"]["total_per_hour"] is None and body["latest"]["per_hour"]["cpu"] is None
    assert not body["complete"] and "unpriced" in str(body["source"]["warnings"])
    watched.link(custom_prices=OWN)
    watched.clock.now += MINUTE
    watched.minute()
    body = watched.get()
    assert body["complete"], body["source"]
    held(body, rates(world, HALF_PAST + MINUTE))


def test_who_has_no_metrics_or_no_history_is_told(stack: Stack, url: str) -> None:
    _, kubecost = stack.simulate(exact_world(PRIME, days=1))
    store = {"clickhouse_url": f"embedded:{stack.folder / 'other'}"}
    alone = stack.start(kubecost_api_url=kubecost, kubecost_account_id=ACCOUNT, **store)
    answer = Metroculus(alone).get("live", cloud_account_id=ACCOUNT)
    assert answer.status_code == 409 and answer.json()["error"]["error_code"] == "OM0016"
    worker: Any = alone.worker
    stack.thread.run(worker.worker.live_all())
    assert worker.worker._without_metrics == {ACCOUNT: 0}
    bare = stack.start(thanos_query_url=url)
    answer = Metroculus(bare).get("live", cloud_account_id=ACCOUNT)
    assert answer.status_code == 409 and answer.json()["error"]["error_code"] == "OM0023"


def test_before_any_worker_looked_nothing_is_known(watched: Watched) -> None:
    body = watched.get()
    assert body["latest"] is None and body["as_of"] is None and not body["complete"]
    assert body["source"]["status"] == "no_data" and body["missing_minutes"] == 60


def test_a_restart_goes_on_where_it_was_and_old_days_go(watched: Watched) -> None:
    watched.clock.now = END - DAY
    watched.minute()
    stack, plan = watched.stack, watched.plan
    stack.thread.run(watched.running.stop())
    again = Watched(stack, plan["thanos_query_url"], now=END - DAY + 3 * MINUTE)
    again.minute()
    store = again.running.metroculus.dependencies.store
    assert store is not None
    rows = list(store.engine.rows("SELECT count() AS rows, uniqExact(at) AS minutes FROM k8s_live WHERE point != ''"))
    assert int(rows[0]["rows"]) == int(rows[0]["minutes"]) == 63
    again.clock.now = END + 3 * DAY
    stack.thread.run(again.worker.worker.sweep_live())
    assert not int(list(store.engine.rows("SELECT count() AS rows FROM k8s_live"))[0]["rows"])


def test_a_querier_that_is_away_is_no_failure_of_history(watched: Watched, prometheus_factory: Any) -> None:
    watched.minute()
    stack = watched.stack
    stack.thread.run(watched.running.stop())
    gone = Watched(stack, f"http://127.0.0.1:{free_port()}", now=HALF_PAST + 6 * MINUTE)
    gone.minute()
    assert gone.worker.worker.cluster_states() == {} and gone.worker.worker._live_failing == {ACCOUNT}
    body = gone.get()
    assert body["source"]["status"] == "stale" and body["age_seconds"] == 6 * MINUTE
    assert body["latest"]["total_per_hour"] is not None


def test_viewers_see_it(stack: Stack, url: str) -> None:
    watched = Watched(stack, url)
    tenant = make_tenant(watched.running, "acme")
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    linked = ask(watched.running, tenant.tokens["manager"], path, "POST", json={"name": "far", "flavour": "push"})
    if linked.status_code == 403:
        linked = ask(watched.running, tenant.tokens["admin"], path, "POST", json={"name": "far", "flavour": "push"})
    assert linked.status_code == 201, linked.text
    cluster = linked.json()["cluster_id"]
    view = f"/restapi/v2/kubecost/clusters/{cluster}/live"
    watched.minute()
    body = ask(watched.running, tenant.tokens["viewer"], view, params={"minutes": 5}).json()
    assert body["source"]["status"] == "no_data", "nobody wrote metrics of it yet"
    assert ask(watched.running, None, view).status_code == 401
    for minutes in ("0", "2881", "1e3", "-5"):
        assert ask(watched.running, tenant.tokens["viewer"], view, params={"minutes": minutes}).status_code == 400


def test_many_accounts_a_minute(stack: Stack, prometheus_factory: Any) -> None:
    """A slice of 200 accounts a minute on one worker (``LIVE_ACCOUNTS=200`` is all of it)."""
    worlds = {str(uuid4()): make_world(seed=n % 7, days=1, end=END) for n in range(ACCOUNTS)}
    url = load(prometheus_factory, {one: _last_hours(world) for one, world in worlds.items()})
    watched = Watched(stack, url, now=END - 30 * MINUTE)
    for account in worlds:
        watched.link(account)
    watched.minute()
    began = time.monotonic()
    watched.clock.now += MINUTE
    watched.minute()
    seconds = time.monotonic() - began
    print(f"rates of {ACCOUNTS} accounts in {seconds:.1f} s")
    for account, world in list(worlds.items())[:12]:
        held(watched.get(account, minutes=2), rates(world, END - 29 * MINUTE))
    assert seconds < max(5.0, 60 * ACCOUNTS / ACCOUNTS_A_MINUTE)


def _last_hours(world: World) -> World:
    return replace(world, holes=((world.start, world.end - 2 * HOUR),))


def test_from_a_scrape_to_an_answer_in_minutes(stack: Stack, prometheus_factory: Any) -> None:
    """A real Prometheus scrapes, remote-writes into another one, and a worker with its own rounds reads that."""
    now = int(time.time())
    # Without what is sent: its rate is taken over five minutes, all of which must have been seen.
    world = replace(make_world(seed=3, days=2, end=now - now % HOUR + DAY), egress=())
    _, exporter = stack.simulate(world, Habits(), time.time)
    receiver, sender = prometheus_factory(), prometheus_factory()
    receiver.start("--web.enable-remote-write-receiver")
    sender.start(
        configuration=f"""
global: {{scrape_interval: 5s, external_labels: {{tenant_id: {ACCOUNT}}}}}
scrape_configs:
  - {{job_name: opencost, honor_labels: true, static_configs: [{{targets: ['{exporter.removeprefix("http://")}']}}]}}
remote_write: [{{url: {receiver.url}/api/v1/write, queue_config: {{batch_send_deadline: 1s}}}}]
"""
    )
    watched = Watched(stack, receiver.url, clock=time.time, rounds=True)
    watched.link()
    began = time.monotonic()
    while True:
        body = watched.get(minutes=5)
        if body["complete"]:
            break
        assert time.monotonic() - began < 300, body
        time.sleep(1)
    assert body["age_seconds"] < 300 and body["latest"]["per_hour"]["network"] is None
    held(body, rates(world, body["as_of"]))
