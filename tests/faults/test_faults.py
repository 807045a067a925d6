"""The table of ``docs/faults.md``, cell by cell: each fault between us and each upstream, and what must come of it."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlsplit

import etcd3
import pytest
import requests

from metroculus.metroculus_api import cache
from metroculus.sources.outbound import http as source_http
from optscale_client.config_client import EtcdConfig
from rest_api.rest_api_server.config import RestApiConfig
from rest_api.rest_api_server.errors import NO_DIRECTORY
from rest_api.rest_api_server.server import make_app
from simulator.costs import truth
from simulator.server import Habits
from simulator.world import make_world
from tests.faults.proxy import FAULTS, Proxy
from tests.support import (
    ACCOUNT,
    DAY,
    END,
    NOW,
    SECRET,
    LoopThread,
    Metroculus,
    Stack,
    ask,
    exact_world,
    make_tenant,
    until,
)
from tools.tornado_service.listening import listen

DOCS = Path(__file__).parent.parent.parent / "docs" / "faults.md"
DEADLINE = 0.6
UNHURRIED = 3.0
"""The deadline where an upstream answers, however wrongly: a busy machine is no silence."""
SLACK = 0.5
HEALED_WITHIN = 12.0
"""A breaker that opened lets a probe through every five seconds."""
FRESH = 60.0
WINDOW = {"start_date": END - DAY, "end_date": END}
QUICKLY = "timeoutMS=500&serverSelectionTimeoutMS=400&connectTimeoutMS=400"


def table():
    """``{(fault, upstream): outcomes}`` as the docs declare them."""
    lines = DOCS.read_text().partition("| fault |")[2].partition("\n\n")[0]
    rows = [f"| fault |{lines}".splitlines()[0], *lines.splitlines()[2:]]
    header, *body = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    return {
        (row[0], upstream): set(cell.split(" or "))
        for row in body
        for upstream, cell in zip(header[1:], row[1:], strict=True)
        if cell != "—"
    }


TABLE = table()


def test_the_table_tells_of_every_fault_and_of_enough_of_them():
    assert {fault for fault, _ in TABLE} == set(FAULTS)
    upstreams = {upstream for _, upstream in TABLE}
    assert len(upstreams) == 7 and len(TABLE) >= 105
    assert all(sum(one == upstream for _, one in TABLE) >= 15 for upstream in upstreams)


class Situation:
    """Services with one upstream behind a proxy; ``ask`` gives ``(status, body, right)`` and takes at most ``limit``."""

    limit = DEADLINE

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def behind(self, port: int) -> Proxy:
        # A loop of its own: a service that is made blocks its loop until its store has answered.
        self.thread = LoopThread()
        self.proxy = Proxy(port)
        self.thread.run(self.proxy.start())
        return self.proxy

    def become(self, fault):
        self.thread.run(self.proxy.become(fault))

    def close(self):
        self.thread.run(self.proxy.stop())
        self.thread.close()

    def right(self):
        """Whether everything is answered as it is true."""
        raise NotImplementedError

    def outcome(self):
        """One of the table's words."""
        raise NotImplementedError


class OfCost(Situation):
    """A statement of one cluster; beside it a cluster that is well."""

    flavour: str

    def __init__(self, stack, server, limit=DEADLINE):
        super().__init__(stack)
        self.world = exact_world(days=1)
        _, url = stack.simulate(self.world, Habits(serves=frozenset({self.flavour})))
        self.behind(urlsplit(url).port)
        self.limit = limit
        self.running = stack.start(kubecost_timeout=limit)
        directory = self.running.rest_api.directory
        self.tenant = make_tenant(self.running, "t")
        healthy = ACCOUNT.replace("5", "6")
        for cluster, name, where in ((ACCOUNT, "faulty", self.proxy.url), (healthy, "healthy", url)):
            directory.create_cluster(self.tenant.organization_id, name, self.flavour, where, cluster)
            directory.update_cluster(cluster, name=name, flavour=self.flavour, url=where, state="linked")
            self.running.rest_api.metroculus.client.put_kubecost_source(cluster, self.flavour, where)
        true = truth(self.world, now=NOW, adjusted=self.flavour == "kubecost")
        self.true = true["total_cost" if self.flavour == "kubecost" else "allocation_total"]

    def ask(self):
        asked = {"cloud_account_id": ACCOUNT, "detail_level": "namespace", **WINDOW}
        return Metroculus(self.running).get("kubecost_cluster_costs", **asked)

    def right(self):
        answer = self.ask()
        return answer.status_code == 200 and answer.json()["complete"] and answer.json()["total_cost"] == self.true

    def outcome(self):
        self.overview()
        answer = self.ask()
        return judged(answer, self.true)

    def overview(self):
        """The cluster that is well is whole, whatever becomes of the other; no total leaves that out unsaid."""
        path = f"/restapi/v2/organizations/{self.tenant.organization_id}/kubecost/clusters?" + "&".join(
            f"{key}={value}" for key, value in WINDOW.items()
        )
        found = ask(self.running, self.tenant.tokens["viewer"], path).json()
        rows = {row["name"]: row for row in found["clusters"]}
        assert rows["healthy"]["total_cost"] == self.true and rows["healthy"]["complete"]
        if not rows["faulty"]["complete"]:
            assert found["complete"] is False
            assert rows["faulty"]["total_cost"] is not None or found["total_cost"] is None
        else:
            assert rows["faulty"]["total_cost"] == self.true and found["total_cost"] == 2 * self.true


class OfKubecost(OfCost):
    flavour = "kubecost"


class OfOpenCost(OfCost):
    flavour = "opencost"


def judged(answer, true):
    """The table's word for an answer of cost; nothing that failed may look like a figure."""
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["status_code"] == answer.status_code and error["error_code"] and error["reason"]
        if answer.status_code == 503:
            assert int(answer.headers["Retry-After"]) > 0
        return str(answer.status_code)
    assert "NaN" not in answer.text and "Infinity" not in answer.text
    body = answer.json()
    if body["complete"]:
        assert body["total_cost"] == pytest.approx(true, rel=5e-3), "a wrong figure was passed off as whole"
        return "served"
    troubled = [one for one in body["sources"] if one["status"] not in ("ok", "not_configured")]
    assert troubled, body["sources"]
    if body["total_cost"] is None:
        known = body["summary"]["known_cost"]
        assert known is None or known != 0, "a silent zero"
        return "unknown"
    assert body["total_cost"] != 0 and any(one["status"] == "partial" for one in troubled)
    return "part"


class OfThanos(Situation):
    """A cluster that only writes metrics."""

    world = make_world(seed=8, days=1, end=END)

    def __init__(self, stack, server):
        super().__init__(stack)
        self.behind(urlsplit(server.url).port)
        # Forty queries, eight at a time: an hour of metrics is answered within a deadline of a second.
        self.running = stack.start(thanos_query_url=self.proxy.url, kubecost_timeout=self.limit)
        self.running.rest_api.metroculus.client.put_kubecost_source(ACCOUNT, "push")
        self.true = truth(self.world, END - 3600, END)["total_cost"]

    limit = 1.5

    def ask(self):
        asked = {"cloud_account_id": ACCOUNT, "start_date": END - 3600, "end_date": END}
        return Metroculus(self.running).get("kubecost_cluster_costs", **asked)

    def right(self):
        answer = self.ask()
        found = answer.json()
        return (
            answer.status_code == 200
            and found["complete"]
            and found["total_cost"] == pytest.approx(self.true, rel=5e-3)
        )

    def outcome(self):
        return judged(self.ask(), self.true)


class OfClickHouse(Situation):
    """What is stored, and a statement that it is only a part of."""

    world = exact_world(days=1)
    limit = 1.5

    def __init__(self, stack, server):
        super().__init__(stack)
        server, database = server
        self.behind(server.port)
        url = server.url(database).replace(f":{server.port}/", f":{self.proxy.port}/")
        _, upstream = stack.simulate(self.world, Habits(serves=frozenset({"kubecost"})))
        self.running = stack.start(
            clickhouse_url=url, kubecost_api_url=upstream, kubecost_account_id=ACCOUNT, kubecost_timeout=self.limit
        )
        fill = self.running.worker.worker.fill(ACCOUNT, (END - DAY, END), 1, lambda progress: None)
        stack.thread.run(fill)
        self.true = truth(self.world, now=NOW, adjusted=True)["total_cost"]

    def expenses(self):
        return Metroculus(self.running).get("k8s_expenses", cloud_account_id=ACCOUNT, **WINDOW)

    def statement(self):
        return Metroculus(self.running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **WINDOW)

    def right(self):
        expenses, statement = self.expenses(), self.statement().json()
        assert statement["total_cost"] in (self.true, None)
        return expenses.status_code == 200 and expenses.json()["total_cost"] == self.true and statement["complete"]

    def outcome(self):
        began = time.monotonic()
        statement = self.statement()
        assert time.monotonic() - began < self.limit + SLACK
        assert statement.status_code == 200, statement.text
        body = statement.json()
        assert body["total_cost"] == self.true, "what is live is right"
        expenses = self.expenses()
        if expenses.status_code == 200:
            assert expenses.json()["total_cost"] == self.true and body["complete"]
            return "served"
        assert (expenses.status_code, expenses.json()["error"]["error_code"]) == (503, "OM0025")
        assert expenses.headers["Retry-After"]
        assert not body["complete"] and body["sources"][0] | {"warnings": []} == {
            "name": "store", "status": "unavailable", "fetched_at": None, "coverage": None,
            "error": "the store cannot be used", "warnings": [], "residual_bound": None,
        }  # fmt: skip
        return "without"


class OfMongo(Situation):
    """Who may what is asked of a directory that is away: nobody may anything, and that is said."""

    limit = 1.5

    def __init__(self, stack, server):
        super().__init__(stack)
        server, database = server
        self.behind(server.port)
        self.running = stack.start(directory_url=f"mongodb://127.0.0.1:{self.proxy.port}/{database}?{QUICKLY}")
        directory = self.running.rest_api.directory
        found = [one for one in directory.organizations() if one.name == "t"]
        if found:
            token = directory.create_token("t viewer", None)[1]
            self.organization, self.token = found[0].id, token
        else:
            tenant = make_tenant(self.running, "t")
            self.organization, self.token = tenant.organization_id, tenant.tokens["viewer"]

    def ask(self):
        path = f"/restapi/v2/organizations/{self.organization}/kubecost/clusters?window=7d"
        return ask(self.running, self.token, path)

    def right(self):
        return self.ask().status_code == 200

    def outcome(self):
        answer = self.ask()
        assert ask(self.running, None, "/healthz").status_code == 200
        if answer.status_code == 200:
            return "served"
        assert answer.json()["error"]["error_code"] == NO_DIRECTORY.code and answer.headers["Retry-After"]
        assert "127.0.0.1" not in answer.text
        return str(answer.status_code)


class OfEtcd(Situation):
    """A service that knows its secret goes on, and takes the next one once etcd is there again."""

    number = 0

    def __init__(self, stack, server):
        super().__init__(stack)
        self.client = etcd3.client(host="127.0.0.1", port=server.port, timeout=5)
        self.behind(server.port)
        self.rotate()
        self.known = self.secret
        self.running = stack.start(secret=self.secret)
        self.config = EtcdConfig(f"etcd://127.0.0.1:{self.proxy.port}")
        keeper = self.running.metroculus.secret
        self.config.watch("/secret/cluster", lambda text: stack.thread.call(keeper.rotate, text), 0.2)

    def rotate(self):
        OfEtcd.number += 1
        self.secret = f"secret-number-{OfEtcd.number}"
        self.client.put("/secret/cluster", self.secret)

    def close(self):
        self.config.stop()
        self.client.close()
        super().close()

    def status(self, secret):
        url = f"{self.running.metroculus_listener.url}/metroculus/v2/kubecost_sources/{ACCOUNT}"
        return requests.get(url, headers={"Secret": secret}, timeout=10).status_code

    def right(self):
        return self.status(self.secret) == 404

    def outcome(self):
        began = time.monotonic()
        assert self.status(self.known) == 404 and time.monotonic() - began < DEADLINE
        self.rotate()
        assert self.status(self.known) == 404
        return "served"


class OfMetroculus(Situation):
    """A cluster's costs through the REST API."""

    def __init__(self, stack, server):
        super().__init__(stack)
        self.world = exact_world(days=1)
        _, url = stack.simulate(self.world, Habits(serves=frozenset({"kubecost"})))
        running = stack.start(kubecost_timeout=DEADLINE)
        self.behind(running.metroculus_listener.port)
        config = RestApiConfig(
            cluster_secret=SECRET,
            listen=("127.0.0.1", 0),
            metroculus_url=self.proxy.url,
            directory_url=f"sqlite:{stack.folder / 'directory.sqlite'}",
            call_seconds=DEADLINE,
        )
        self.rest_api = stack.thread.call(make_app, config, lambda: NOW)
        self.listener = stack.thread.call(listen, self.rest_api.application, self.rest_api.service, "127.0.0.1", 0)
        self.running = running
        running.rest_api, running.rest_api_listener, self.kept = self.rest_api, self.listener, running.rest_api
        self.tenant = make_tenant(running, "t")
        directory = self.rest_api.directory
        directory.create_cluster(self.tenant.organization_id, "c", "kubecost", url, ACCOUNT)
        self.kept.metroculus.client.put_kubecost_source(ACCOUNT, "kubecost", url)
        self.true = truth(self.world, now=NOW, adjusted=True)["total_cost"]

    def close(self):
        self.stack.thread.run(self.listener.stop(0.1))
        self.rest_api.close()
        self.running.rest_api = self.kept
        super().close()

    def ask(self):
        query = "&".join(f"{key}={value}" for key, value in WINDOW.items())
        return ask(self.running, self.tenant.tokens["viewer"], f"/restapi/v2/kubecost/clusters/{ACCOUNT}/costs?{query}")

    def right(self):
        answer = self.ask()
        return answer.status_code == 200 and answer.json()["complete"] and answer.json()["total_cost"] == self.true

    def outcome(self):
        return judged(self.ask(), self.true)


SITUATIONS = {
    "Kubecost": OfKubecost,
    "OpenCost": OfOpenCost,
    "Thanos": OfThanos,
    "ClickHouse": OfClickHouse,
    "MongoDB": OfMongo,
    "etcd": OfEtcd,
    "Metroculus": OfMetroculus,
}


@pytest.fixture(scope="module")
def metrics(prometheus_factory):
    one = prometheus_factory()
    one.load_world(OfThanos.world, ACCOUNT)
    one.start()
    return one


@pytest.fixture(scope="module")
def stored(clickhouse):
    with clickhouse.database("faults"):
        yield clickhouse, "faults"


@pytest.fixture(scope="module")
def asked(mongo):
    return mongo, "faults"


SERVERS = {"Thanos": "metrics", "ClickHouse": "stored", "MongoDB": "asked", "etcd": "etcd_of_module"}


def situation_of(request, stack, fault, upstream):
    server = request.getfixturevalue(SERVERS[upstream]) if upstream in SERVERS else None
    made = SITUATIONS[upstream]
    if issubclass(made, OfCost) and "504" not in TABLE[fault, upstream]:
        return made(stack, server, UNHURRIED)
    return made(stack, server)


@pytest.mark.fault
@pytest.mark.parametrize(("fault", "upstream"), list(TABLE), ids=[f"{u}: {f}" for f, u in TABLE])
def test_a_fault_comes_to_what_is_declared_and_heals(request, stack, monkeypatch, fault, upstream):
    stack.plan["cache_ttl"] = 0.0  # what was answered before would stand in
    monkeypatch.setattr(source_http, "PROBE_SECONDS", 0.5)
    situation = situation_of(request, stack, fault, upstream)
    try:
        assert until(situation.right, HEALED_WITHIN), "it was not right before the fault"
        situation.become(fault)
        began = time.monotonic()
        found = situation.outcome()
        took = time.monotonic() - began
        assert found in TABLE[fault, upstream], found
        asked_twice = 2 if isinstance(situation, OfCost | OfClickHouse) else 1
        assert took < asked_twice * (situation.limit + SLACK), f"{took:.1f} s"
        situation.become(None)
        assert until(situation.right, HEALED_WITHIN), "it did not heal"
    finally:
        situation.close()


LIVE = [cell for cell in TABLE if cell[1] in ("Kubecost", "OpenCost", "Thanos")]


@pytest.mark.fault
@pytest.mark.parametrize(("fault", "upstream"), LIVE, ids=[f"{u}: {f}" for f, u in LIVE])
def test_after_a_whole_answer_a_fault_comes_to_that_answer_told_as_stale(request, stack, monkeypatch, fault, upstream):
    monkeypatch.setattr(source_http, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(cache, "RETRY_SECONDS", 0.2)
    stack.plan["cache_ttl"] = FRESH
    situation = situation_of(request, stack, fault, upstream)
    try:
        assert until(situation.right, HEALED_WITHIN), "it was not right before the fault"
        situation.running.metroculus.cache.clock = lambda: time.monotonic() + 2 * FRESH
        situation.become(fault)
        began = time.monotonic()
        answer = situation.ask()
        assert time.monotonic() - began < situation.limit + SLACK
        body = answer.json()
        assert answer.status_code == 200 and body["total_cost"] == pytest.approx(situation.true, rel=5e-3)
        if body["complete"]:
            assert "served" in TABLE[fault, upstream] and answer.headers["X-Cache"] == "miss"
        else:
            assert answer.headers["X-Cache"] == "stale" and int(answer.headers["Age"]) >= 2 * FRESH
            assert [one for one in body["sources"] if one["status"] == "stale" and one["error"] and one["fetched_at"]]
        situation.become(None)
        assert until(situation.right, HEALED_WITHIN), "it did not heal"
    finally:
        situation.close()
