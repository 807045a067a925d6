"""Every fault of a source, times every kind of alert: nothing fires without a cause, and nothing is resolved without one."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from metroculus.config import AlertConfig
from metroculus.metroculus_worker.daily import settled_day
from metroculus.storage.inbox import PushedAnswer
from metroculus.watch.alerts import PLATFORM, SEVERITIES
from metroculus.watch.findings import Compared
from simulator.burst import with_burst
from simulator.server import Habits
from simulator.world import World, make_world
from tests.faults.proxy import FAULTS, Proxy
from tests.support import ACCOUNT, DAY, END, HOUR, LoopThread, Stack, make_tenant, until
from tools.window import MINUTE

pytestmark = pytest.mark.watch

DEADLINE = 0.6
QUIET, DEAR, SILENT = (ACCOUNT.replace("5", digit) for digit in "678")
CHOSEN = FAULTS if os.environ.get("ALERT_FAULTS") == "all" else FAULTS[::3]
HEALED_EVERY = 6
"""A cluster of which no hour was stored for four hours is stale, whatever its source does."""
HEALED_WITHIN = 20.0
"""A breaker that opened lets a probe through every five seconds."""
BEGIN = END - DAY


class Watched:
    """Two organizations behind one proxy: of one nothing is to be told, of the other every kind of alert fires."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.now = stack, BEGIN + 20 * MINUTE
        world = make_world(seed=3, days=16, end=END + DAY, prime=7)
        self.thread = LoopThread()
        self.running: Any = stack.start(
            clickhouse_url=f"embedded:{stack.folder / 'store'}",
            kubecost_timeout=DEADLINE,
            clock=lambda: self.now,
            alerts=AlertConfig(store_bytes=1),
        )
        self.worker = self.running.worker
        self.documents = self.running.metroculus.dependencies.store.documents
        self.proxies: list[Proxy] = []
        self.organizations = {
            "quiet": self._organization("quiet", {QUIET: world}),
            "loud": self._organization("loud", {DEAR: with_burst(world, BEGIN - 3 * HOUR, 2.0)}),
        }
        self._fill(QUIET, DEAR)
        self._make_loud()

    def _organization(self, name: str, worlds: dict[str, World]) -> str:
        directory, tenant = self.running.rest_api.directory, make_tenant(self.running, name)
        for cluster, world in worlds.items():
            _, url = self.stack.simulate(world, Habits(serves=frozenset({"kubecost"})), lambda: self.now)
            port = urlsplit(url).port
            assert port is not None
            proxy = Proxy(port)
            self.thread.run(proxy.start())
            self.proxies.append(proxy)
            self._link(directory, tenant.organization_id, cluster, "kubecost", proxy.url)
        return tenant.organization_id

    def _link(self, directory: Any, organization: str, cluster: str, flavour: str, url: str) -> None:
        directory.create_cluster(organization, cluster, flavour, url, cluster)
        directory.update_cluster(cluster, name=cluster, flavour=flavour, url=url, state="linked")
        status, _ = self.running.rest_api.metroculus.client.put_kubecost_source(cluster, flavour, url)
        assert status == 200

    def _fill(self, *accounts: str) -> None:
        for account in accounts:
            span = (BEGIN - 10 * DAY, BEGIN - HOUR)
            self.stack.thread.run(self.worker.worker.fill(account, span, 2, lambda progress: None))

    def _make_loud(self) -> None:
        """A cause for each kind that the store alone tells of."""
        loud = self.organizations["loud"]
        self._link(self.running.rest_api.directory, loud, SILENT, "push", "")
        self.stack.thread.run(self.running.rest_api.organizations.tell())
        pushed = PushedAnswer(
            account=SILENT, first=BEGIN - 9 * HOUR, last=BEGIN - 8 * HOUR, kind="allocation", step="hour", answer=1,
            asked_at=BEGIN, received_at=BEGIN - 8 * HOUR, digest="d", pieces=1, bytes=1, form="", told=(), currency="",
        )  # fmt: skip
        self.running.metroculus.dependencies.store.inbox.put(pushed, b"x")
        day = Compared(day=settled_day(self.now), by_api=100.0, by_metrics=50.0, currency="USD")
        self.documents.put(loud, "drift", DEAR, msgspec.json.encode(day).decode())
        client = self.running.rest_api.metroculus.client
        for organization, amount in ((loud, 1.0), (self.organizations["quiet"], 1e6)):
            body = {
                "name": "all",
                "amount": amount,
                "thresholds": [{"percent": 100}, {"percent": 100, "on": "forecast"}],
            }
            status, _ = client.create_budget(organization, body)
            assert status == 201

    def become(self, fault: str | None) -> None:
        for proxy in self.proxies:
            self.thread.run(proxy.become(fault))

    def look(self) -> None:
        """Three rounds of extraction, as a worker makes them within the hour, and one of alerts."""
        for _ in range(3):
            self.stack.thread.call(self._due)
            self.stack.thread.run(self.worker.worker.extract_all())
        self.stack.thread.run(self.worker.alerts.evaluate())

    def heal(self) -> None:
        """The sources are well again, and what is due is stored."""
        self.become(None)
        self.now += 10 * MINUTE
        ledger = self.running.metroculus.dependencies.store.ledger

        def stored() -> bool:
            self.look()
            newest = ledger.newest_hours(BEGIN - DAY)
            return all(newest[account].end >= self.now - 2 * HOUR for account in (QUIET, DEAR))

        assert until(stored, HEALED_WITHIN)

    def _due(self) -> None:
        for account in (QUIET, DEAR, SILENT):
            self.worker.worker._due_at[account] = 0

    def firing(self, name: str) -> set[str]:
        documents = self.documents.newest(self.organizations.get(name, PLATFORM), "alert").values()
        alerts = [msgspec.json.decode(document.body) for document in documents]
        return {alert["kind"] for alert in alerts if alert["state"] == "firing"}

    def close(self) -> None:
        for proxy in self.proxies:
            self.thread.run(proxy.stop())
        self.thread.close()


@pytest.fixture
def watched(stack: Stack) -> Any:
    made = Watched(stack)
    yield made
    made.close()


def test_no_fault_fires_an_alert_without_a_cause_or_resolves_one(watched: Watched, capsys: Any) -> None:
    watched.look()
    assert watched.firing("quiet") == set()
    of_loud = {"cost_spike", "budget", "drift", "push_silent"}
    assert watched.firing("loud") >= of_loud and watched.firing("platform") == {"store_capacity"}
    failed = []
    for number, fault in enumerate(CHOSEN):
        watched.now += 20 * MINUTE
        watched.become(fault)
        watched.look()
        quiet, loud = watched.firing("quiet"), watched.firing("loud")
        failed += [f"{fault}: {kind} fired" for kind in quiet - {"extraction_failing"}]
        failed += [f"{fault}: {kind} was resolved" for kind in of_loud - loud]
        failed += [f"{fault}: store_capacity was resolved"] if not watched.firing("platform") else []
        if number % HEALED_EVERY == HEALED_EVERY - 1:
            watched.heal()
            failed += [f"after {fault}: {kind} fired" for kind in watched.firing("quiet") - {"extraction_failing"}]
    assert not failed, failed
    kinds = set(SEVERITIES)
    assert kinds == {*of_loud, "store_capacity", "extraction_failing", "data_stale"}
    with capsys.disabled():
        print(f"\nalerts: {len(CHOSEN)} faults x {len(kinds)} kinds, none fired or resolved without a cause")
    watched.heal()
    watched.become("refuse")
    watched.now += HOUR
    watched.look()
    assert "extraction_failing" in watched.firing("quiet")
    for _ in range(5):
        watched.now += HOUR
        watched.look()
    assert watched.firing("quiet") == {"extraction_failing", "data_stale"}, "silence is what these two are about"
    watched.heal()
    watched.now += 61 * MINUTE
    watched.look()
    assert watched.firing("quiet") == set()
