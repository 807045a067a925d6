"""Restarts under load, outages that end by themselves, and tenants that do not wait for each other."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
import requests

from metroculus.sources.outbound import http as source_http
from simulator.server import Habits
from tests.conftest import free_port
from tests.faults.test_faults import (  # noqa: F401
    HEALED_WITHIN,
    OfClickHouse,
    OfEtcd,
    OfKubecost,
    OfMongo,
    asked,
    stored,
)
from tests.support import (
    ACCOUNT,
    BIN,
    DAY,
    END,
    HOUR,
    SECRET,
    Metroculus,
    ask,
    command,
    cpu_seconds,
    exact_world,
    make_tenant,
    open_descriptors,
    until,
)

OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "5"))
"""The suite's are short; the two minutes of the promise are asked for by this variable."""


@pytest.mark.parametrize(
    ("situation", "server", "declared"),
    [(OfMongo, "asked", "503"), (OfClickHouse, "stored", "without"), (OfEtcd, "etcd_of_module", "served")],
    ids=["MongoDB", "ClickHouse", "etcd"],
)
def test_an_outage_is_served_through_and_ends_without_a_restart(request, stack, situation, server, declared):
    stack.plan["cache_ttl"] = 0.0
    made = situation(stack, request.getfixturevalue(server))
    try:
        assert until(made.right, HEALED_WITHIN)
        made.become("refuse")
        end = time.monotonic() + OUTAGE_SECONDS
        outcomes = set()
        while time.monotonic() < end:
            outcomes.add(made.outcome())
        assert outcomes == {declared}
        ready = requests.get(f"{made.running.metroculus_listener.url}/readyz", timeout=10)
        assert ready.status_code == 200, "an instance that can serve something stays in the rotation"
        made.become(None)
        assert until(made.right, HEALED_WITHIN), f"it did not heal within {HEALED_WITHIN:.0f} s"
    finally:
        made.close()


def test_no_request_is_cut_by_sigterm_under_load(stack, tmp_path):
    """Every request that was begun is answered whole: the audit log and the clients count the same."""
    _, upstream = stack.simulate(exact_world(days=1))
    environment = {
        "CLUSTER_SECRET": SECRET,
        "DATA_DIR": str(tmp_path / "data"),
        "KUBECOST_API_URL": upstream,
        "KUBECOST_ACCOUNT_ID": ACCOUNT,
        "AUDIT_LOG": str(tmp_path / "audit.jsonl"),
    }
    listen = f"127.0.0.1:{free_port()}"
    window = f"start_date={END - DAY}&end_date={END}"
    with command(tmp_path, "metroculus", "serve", "--metroculus-listen", listen, **environment) as (url, process):
        path = f"{url}/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&detail_level=pod&{window}"

        def hammer(_):
            whole = 0
            with requests.Session() as session:
                while True:
                    try:
                        answer = session.get(path, headers={"Secret": SECRET}, timeout=30)
                    except requests.ConnectionError:
                        return whole  # nobody listens any more
                    assert answer.status_code == 200 and answer.json()["complete"]
                    whole += 1

        with ThreadPoolExecutor(16) as threads:
            hammering = threads.map(hammer, range(16))
            time.sleep(2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0
            answered = sum(hammering)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert answered > 30 and {line["status"] for line in lines} == {200}
    assert len(lines) == answered, f"{len(lines) - answered} of {len(lines)} answers never arrived"


def test_a_tenant_that_hangs_takes_no_place_of_anothers(stack):
    """Twenty clusters of one organization hang, each asked many times over; another organization's is answered."""
    silent = socket.create_server(("127.0.0.1", 0), backlog=500)
    _, url = stack.simulate(exact_world(days=1))
    running = stack.start(kubecost_timeout=6.0, cache_ttl=0.0)
    directory, client = running.rest_api.directory, running.rest_api.metroculus.client
    hanging, healthy = make_tenant(running, "hanging"), make_tenant(running, "healthy")

    def link(tenant, number, where):
        made = directory.create_cluster(tenant.organization_id, f"c{number}", "kubecost", where)
        client.put_kubecost_source(made.id, "kubecost", where)
        return f"/restapi/v2/kubecost/clusters/{made.id}/costs?end_date={END}&start_date="

    stuck = [link(hanging, number, f"http://127.0.0.1:{silent.getsockname()[1]}") for number in range(20)]
    well = f"{link(healthy, 0, url)}{END - DAY}"
    assert ask(running, healthy.tokens["viewer"], well).status_code == 200

    def hang(number):
        token = hanging.tokens[("viewer", "manager", "admin")[number % 3]]
        # Each a question of its own: the same at once would be one.
        return ask(running, token, f"{stuck[number % 20]}{END - DAY - number * HOUR}").status_code

    try:
        with ThreadPoolExecutor(90) as threads:
            hung = [threads.submit(hang, number) for number in range(90)]
            time.sleep(1.0)
            for _ in range(10):
                began = time.monotonic()
                assert ask(running, healthy.tokens["viewer"], well).status_code == 200
                assert time.monotonic() - began < 3.0, "it waited for another tenant"
            assert not any(one.done() for one in hung[:32])
            assert {one.result() for one in hung} <= {429, 503, 504}
    finally:
        silent.close()


def test_an_instance_that_is_killed_leaves_nothing_that_the_next_trips_over(stack, tmp_path):
    _, upstream = stack.simulate(exact_world(days=1))
    environment = {"CLUSTER_SECRET": SECRET, "DATA_DIR": str(tmp_path / "data"), "KUBECOST_API_URL": upstream}
    path = f"/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&start_date={END - DAY}&end_date={END}"
    for _ in range(3):
        listen = f"127.0.0.1:{free_port()}"
        with command(tmp_path, "metroculus", "serve", "--metroculus-listen", listen, **environment) as (url, process):
            assert requests.get(url + path, headers={"Secret": SECRET}, timeout=30).status_code == 200
            process.kill()
            process.wait(20)


def test_connections_without_end_take_no_descriptor_that_is_needed(tmp_path):
    """Who holds more connections than there may be loses those that are idle; everybody else is answered."""
    environment = {"CLUSTER_SECRET": SECRET, "DATA_DIR": str(tmp_path / "data")}
    limited = ("/bin/sh", "-c", 'ulimit -n 200; exec "$@"', "sh", str(BIN / "metroculus"), "serve")
    listen = ("--metroculus-listen", f"127.0.0.1:{free_port()}")
    with command(tmp_path, *limited, *listen, **environment) as (url, process), ExitStack() as connections:
        where = (urlsplit(url).hostname, urlsplit(url).port)
        for _ in range(5):
            for _ in range(100):
                connections.enter_context(socket.create_connection(where, timeout=10))
            assert requests.get(f"{url}/healthz", timeout=10).status_code == 200
        assert open_descriptors(process) < 150
        idle = cpu_seconds(process)
        time.sleep(1)
        assert cpu_seconds(process) - idle < 0.3
        assert requests.get(f"{url}/readyz", timeout=10).status_code == 200
    log = (tmp_path / "sh.log").read_text()
    assert "Traceback" not in log and log.count("connections are taken") == 1


def test_an_upstream_that_flaps_is_never_half_answered_and_right_when_it_is_well(stack, monkeypatch):
    """Two seconds away and two seconds there, three times over, under load."""
    stack.plan["cache_ttl"] = 0.0
    situation = OfKubecost(stack, None)
    monkeypatch.setattr(source_http, "PROBE_SECONDS", 0.5)
    over = threading.Event()
    answers = []

    def load(_):
        while not over.is_set():
            answers.append(situation.ask())

    try:
        assert until(situation.right, HEALED_WITHIN)
        with ThreadPoolExecutor(8) as clients:
            loading = clients.map(load, range(8))
            for fault in ("refuse", None, "500", None, "refuse", None):
                situation.become(fault)
                over.wait(2.0)
            over.set()
            list(loading)
        assert {answer.status_code for answer in answers} <= {200, 502, 503, 504}
        told = {(a.json()["complete"], a.json()["total_cost"]) for a in answers if a.status_code == 200}
        assert (True, situation.true) in told and told <= {(True, situation.true), (False, None)}
        assert until(lambda: all(situation.right() for _ in range(20)), HEALED_WITHIN), "it did not stay well"
    finally:
        situation.close()


def test_a_cluster_that_is_removed_while_it_is_extracted_is_asked_no_more(stack):
    simulator, url = stack.simulate(exact_world(days=4), Habits(serves=frozenset({"kubecost"})))
    running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}")
    worker = running.worker.worker
    running.rest_api.metroculus.client.put_kubecost_source(ACCOUNT, "kubecost", url)
    window = (END - 4 * DAY, END)

    def remove(path, answer):
        if simulator.asked.total() >= 12:  # by another instance, in the middle of it
            with sqlite3.connect(stack.folder / "data0" / "sources.sqlite") as database:
                database.execute("DELETE FROM kubecost_sources")
            database.close()
        return answer

    simulator.habits.rewrite = remove
    progress = stack.thread.run(worker.fill(ACCOUNT, window, 1, lambda progress: None))
    assert 0 < progress.missing < progress.total == 96 and progress.last_reason == "no cost source is configured"
    before = simulator.asked.total()
    stack.thread.run(worker.extract_all())
    assert not worker.failing
    assert simulator.asked.total() == before
    answer = Metroculus(running).get("k8s_expenses", cloud_account_id=ACCOUNT, start_date=window[0], end_date=window[1])
    assert answer.json()["coverage"] == pytest.approx(progress.done / 96) and answer.json()["complete"] is False
