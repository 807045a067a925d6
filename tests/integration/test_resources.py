"""What clusters are made of: refreshed by the REST API itself, kept in its directory, shown with its age."""

from __future__ import annotations

import json
import socket
import time

import pytest
import requests

from metroculus.metroculus_api.controllers import inventory
from metroculus.storage import history
from simulator.world import make_world
from tests.support import ACCOUNT, DAY, END, NOW, SECRET, Metroculus, ask, exact_world, make_tenant

WINDOW = f"start_date={END - DAY}&end_date={END}"


class Pushing:
    """A cluster that only writes metrics, into a Prometheus that can be taken away; a clock that can be set."""

    def __init__(self, stack, prometheus_factory, directory_url):
        world = make_world(seed=8, days=1, end=NOW)
        self.server = prometheus_factory()
        self.server.load_world(world, ACCOUNT, 300)
        self.server.start()
        self.now = NOW
        self.running = stack.start(
            thanos_query_url=self.server.url, clock=lambda: self.now, directory_url=directory_url, kubecost_timeout=5.0
        )
        self.stack = stack
        self.tenant = make_tenant(self.running, "t")
        directory = self.running.rest_api.directory
        directory.create_cluster(self.tenant.organization_id, "c", "push", "", ACCOUNT)
        directory.update_cluster(ACCOUNT, name="c", flavour="push", url="", state="linked")
        self.running.rest_api.metroculus.client.put_kubecost_source(ACCOUNT, "push")

    def refresh(self):
        return self.stack.thread.run(self.running.rest_api.resources.refresh_all())

    def view(self, name):
        path = f"/restapi/v2/kubecost/clusters/{ACCOUNT}/{name}?{WINDOW}"
        answer = ask(self.running, self.tenant.tokens["viewer"], path)
        assert answer.status_code == 200, answer.text
        return answer.json()


def test_what_a_cluster_is_made_of_is_kept_with_its_age(stack, prometheus_factory, directory_url):
    made = Pushing(stack, prometheus_factory, directory_url)
    assert made.refresh() == 1 and made.refresh() == 0, "what has just been refreshed is left alone"
    found = made.view("namespaces")
    assert found["metadata"] == {"status": "ok", "fetched_at": NOW, "age_seconds": 0}
    quotas = {one["resource"]: one["hard"] for row in found["namespaces"] for one in row["quota"]}
    assert quotas["requests.cpu"] in (4.0, 8.0)
    workloads = made.view("namespaces/shop/workloads")["workloads"]
    assert any(row["resources"]["cpu_limit"] for row in workloads)
    nodes = [row for row in made.view("assets")["assets"] if row["type"] == "node"]
    assert nodes and all(row["specification"]["cpu_cores"] for row in nodes)
    made.server.stop()
    made.now += 1200
    assert made.refresh() == 1, "it was due, and could not be had"
    kept = made.running.rest_api.directory.resources(ACCOUNT)
    assert kept.fetched_at == NOW and kept.nodes
    made.now += 3600
    path = f"/restapi/v2/kubecost/clusters/{ACCOUNT}/namespaces?{WINDOW}"
    assert ask(made.running, made.tenant.tokens["viewer"], path).status_code == 503, "costs are not to be had"
    resources, known = made.stack.thread.run(
        made.running.rest_api.resources.known(made.running.rest_api.directory.cluster(ACCOUNT), "r")
    )
    assert (known.status, known.age_seconds) == ("stale", 4800) and resources.quotas


def test_metadata_that_is_not_to_be_had_never_fails_a_view_of_cost(stack):
    _, url = stack.simulate(exact_world(days=1))
    running = stack.start()
    tenant = make_tenant(running, "t")
    directory = running.rest_api.directory
    directory.create_cluster(tenant.organization_id, "c", "kubecost", url, ACCOUNT)
    running.rest_api.metroculus.client.put_kubecost_source(ACCOUNT, "kubecost", url)
    path = f"/restapi/v2/kubecost/clusters/{ACCOUNT}/namespaces?{WINDOW}"
    found = ask(running, tenant.tokens["viewer"], path).json()
    assert found["metadata"] == {"status": "not_configured", "fetched_at": None, "age_seconds": None}
    assert found["complete"] and found["namespaces"]


def test_what_would_be_too_much_for_one_answer_is_refused_with_the_limit(stack, prometheus_factory, monkeypatch):
    world = exact_world(days=1)
    server = prometheus_factory()
    server.load_world(world, ACCOUNT, 300)
    server.start()
    _, url = stack.simulate(world)
    running = stack.start(
        thanos_query_url=server.url, kubecost_api_url=url, kubecost_account_id=ACCOUNT,
        clickhouse_url=f"embedded:{stack.folder / 'store'}",
    )  # fmt: skip
    stack.thread.run(running.worker.worker.fill(ACCOUNT, (END - DAY, END), 1, lambda progress: None))
    window = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": END}
    monkeypatch.setattr(inventory, "MAX_SERIES", 3)
    found = Metroculus(running).get("kubecost_metrics", **window)
    assert found.status_code == 400 and found.json()["error"]["params"] == ["metrics"] and "3" in found.text
    monkeypatch.setattr(history, "MAX_ROWS", 3)
    found = Metroculus(running).get("k8s_expenses", group_by="pod", **window)
    assert found.status_code == 400 and found.json()["error"]["params"] == ["group_by"] and "3 rows" in found.text
    running.metroculus.service.max_in_flight = 0
    found = Metroculus(running).get("k8s_expenses", **window)
    assert (found.status_code, found.json()["error"]["error_code"]) == (503, "OM0029") and found.headers["Retry-After"]
    assert requests.get(f"{running.metroculus_listener.url}/healthz", timeout=10).status_code == 200


@pytest.mark.parametrize("asked", ["0.5", "0", "99999", "soon", "-1", "1e3", "\u0665"])
def test_a_callers_deadline_is_kept_and_never_lengthens_ours(stack, asked):
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        running = stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT, kubecost_timeout=1.0)
        began = time.monotonic()
        base = f"{running.metroculus_listener.url}/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}"
        headers = {"Secret": SECRET, "X-Request-Timeout": asked.encode()}
        answer = requests.get(f"{base}&{WINDOW}", headers=headers, timeout=20)
        assert answer.status_code == 504 and json.loads(answer.text)["error"]["error_code"] == "OM0020"
        assert time.monotonic() - began < (0.5 if asked in ("0.5", "0") else 1.0) + 0.5
