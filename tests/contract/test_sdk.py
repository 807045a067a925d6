"""The SDK: against the real service, and with recorded responses for what a real service will not do on demand."""

from __future__ import annotations

import inspect
import json
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests
import responses

from optscale_client.metroculus_client import (
    Client,
    DeadlineExceeded,
    InvalidRequest,
    MetroculusError,
    NoSourceConfigured,
    NotFound,
    ServiceUnavailable,
    Unauthorized,
)
from simulator.costs import truth
from tests.support import ACCOUNT, NOW, SECRET, exact_world

BASE = "http://metroculus.test/metroculus/v2"


@pytest.fixture
def served(stack):
    world = exact_world()
    _, url = stack.simulate(world)
    running = stack.start()
    with Client(url=running.metroculus_listener.url, secret=SECRET) as client:
        yield client, world, url


def test_every_endpoint_of_the_real_service(served):
    client, world, url = served
    dates = (world.start, world.end)
    assert client.put_kubecost_source(ACCOUNT, "kubecost", url)[0] == 200
    assert client.get_kubecost_source(ACCOUNT)[1]["flavour"] == "kubecost"
    status, costs = client.get_kubecost_cluster_costs(
        ACCOUNT, *dates, detail_level="namespace", aggregate=["node", "pod"]
    )
    assert status == 200 and costs["total_cost"] == truth(world, now=NOW, adjusted=True)["total_cost"]
    assert costs["breakdown_by_namespace"] and costs["breakdown_by_aggregate"]
    assert client.get_kubecost_savings(ACCOUNT, *dates, target_utilization=0.7)[1]["potential_savings"] > 0
    assert client.get_kubecost_assets(ACCOUNT, *dates, asset_type="node")[1]["nodes"]
    for call in (lambda: client.get_kubecost_metrics(ACCOUNT, *dates), lambda: client.get_k8s_metadata(ACCOUNT)):
        with pytest.raises(NoSourceConfigured) as failure:
            call()
        assert failure.value.error_code == "OM0016"
    assert client.delete_kubecost_source(ACCOUNT) == (200, {"deleted": True})
    with pytest.raises(NotFound):
        client.get_kubecost_source(ACCOUNT)


def test_history_of_the_real_service(stack):
    world = exact_world(days=2)
    _, url = stack.simulate(world)
    running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}", rounds=False)
    dates = (world.start, world.end)
    true = truth(world, now=NOW, adjusted=True)
    with Client(url=running.metroculus_listener.url, secret=SECRET) as client:
        client.put_kubecost_source(ACCOUNT, "kubecost", url)
        status, job = client.create_backfill(ACCOUNT, *dates, parallel=1)
        assert status == 202 and job["state"] == "queued"
        stack.thread.run(running.worker.worker.work_off())
        assert client.get_backfill(job["id"])[1]["state"] == "done"
        assert client.create_backfill(ACCOUNT, *dates, repair="asked for")[1]["repair"] is True
        body = client.get_k8s_expenses([ACCOUNT], *dates, group_by=["namespace", "day"], k8s_namespace=["shop"])[1]
        assert body["total_cost"] == true["namespaces"]["shop"] and len(body["expenses"]) == 2
        assert client.get_k8s_monthly(ACCOUNT, 1)[1]["months"][0]["costs"]["total_cost"] == true["total_cost"]
        points = client.get_kubecost_cluster_costs(ACCOUNT, *dates, step="day")[1]["data_points"]
        assert len(points) == 2
        with pytest.raises(NotFound):
            client.get_backfill(ACCOUNT)


def test_errors_are_http_errors_that_say_what_and_where(served):
    client, _, _ = served
    with pytest.raises(requests.HTTPError) as failure:
        client.get_kubecost_cluster_costs(ACCOUNT, window="7", request_id="find-me")
    error = failure.value
    assert isinstance(error, InvalidRequest) and error.status == 400 and error.error_code == "OM0006"
    assert error.params == ("window",) and error.request_id == "find-me" and error.response.status_code == 400
    client.secret = "wrong-secret"
    with pytest.raises(Unauthorized):
        client.get_kubecost_source(ACCOUNT)


@responses.activate
def test_a_redirect_is_an_error_and_the_secret_does_not_follow_it():
    responses.get(f"{BASE}/k8s_metadata", status=307, headers={"Location": "http://evil.test/"})
    evil = responses.get("http://evil.test/", json={})
    with pytest.raises(MetroculusError) as failure:
        Client(url="http://metroculus.test", secret=SECRET).get_k8s_metadata(ACCOUNT)
    assert failure.value.status == 307 and evil.call_count == 0


@responses.activate
@pytest.mark.parametrize("status", [502, 503, 504])
def test_nothing_but_a_refused_connection_is_tried_again(status):
    body = {"error": {"status_code": status, "error_code": "OM0019", "reason": "no source", "params": []}}
    asked = responses.get(f"{BASE}/k8s_metadata", status=status, json=body, headers={"Retry-After": "7"})
    with pytest.raises(ServiceUnavailable) as failure:
        Client(url="http://metroculus.test").get_k8s_metadata(ACCOUNT)
    assert asked.call_count == 1 and failure.value.retry_after == 7 and failure.value.reason == "no source"


@responses.activate
@pytest.mark.parametrize("body", ["<html>", "", "[]", '{"cut": ', "null"])
def test_a_success_that_is_none_is_an_error(body):
    responses.get(f"{BASE}/k8s_metadata", status=200, body=body)
    with pytest.raises(ServiceUnavailable):
        Client(url="http://metroculus.test").get_k8s_metadata(ACCOUNT)


@responses.activate
def test_what_is_sent():
    asked = responses.get(f"{BASE}/kubecost_metrics", json={})
    client = Client(url="http://metroculus.test", secret=SECRET)
    client.get_kubecost_metrics(ACCOUNT, 1, 2, metrics=["node_x", "pv_y"], step="5m")
    request = asked.calls[0].request
    assert request.headers["Secret"] == SECRET and request.headers["X-Request-ID"]
    assert request.params == {
        "cloud_account_id": ACCOUNT, "start_date": "1", "end_date": "2", "metrics": "node_x,pv_y", "step": "5m",
    }  # fmt: skip


def test_a_refused_connection_is_tried_once_more():
    tried = []

    class Refuses:
        def request(self, *args, **kwargs):
            tried.append(args)
            raise requests.ConnectionError("[Errno 111] Connection refused")

    with pytest.raises(ServiceUnavailable):
        Client(url="http://metroculus.test", http_provider=Refuses()).get_k8s_metadata(ACCOUNT)
    assert len(tried) == 2


@pytest.mark.parametrize("part", ["header", "body"])
def test_a_deadline_holds_against_a_drip(part):
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listener.accept()
        connection.recv(4096)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
        text = head + b" " * 100 if part == "header" else b" " * 100
        if part == "body":
            connection.sendall(head)
        try:
            for byte in text:
                connection.sendall(bytes([byte]))
                time.sleep(0.1)
        except OSError:
            pass
        connection.close()

    threading.Thread(target=drip, daemon=True).start()
    began = time.monotonic()
    client = Client(address="127.0.0.1", port=listener.getsockname()[1], timeout=1.0)
    with pytest.raises(DeadlineExceeded):
        client.get_k8s_metadata(ACCOUNT)
    assert time.monotonic() - began < 1.5
    listener.close()


def test_requests_is_all_that_is_needed_to_import_it():
    code = (
        "import sys, json; import optscale_client.metroculus_client; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout))
    assert "requests" in loaded
    assert not loaded & {"tornado", "msgspec", "click", "metroculus", "tools", "etcd3", "yaml", "cryptography"}


def test_the_constructor_is_optscales():
    parameters = list(inspect.signature(Client).parameters)
    assert parameters == ["address", "port", "api_version", "url", "http_provider", "secret", "verify", "timeout"]
