"""The services' own commands over a real etcd: the secret is read there, watched, and rotated without a restart."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import etcd3
import pytest
import requests

from optscale_client.config_client import ConfigError, EtcdConfig
from tests.conftest import free_port
from tests.support import ACCOUNT, BIN, command, cpu_seconds, rest_commands, until


def client_of(etcd):
    return etcd3.client(host="127.0.0.1", port=etcd.port, timeout=5)


def status(url, secret):
    return requests.get(
        f"{url}/metroculus/v2/kubecost_sources/{ACCOUNT}", headers={"Secret": secret}, timeout=10
    ).status_code


def test_the_secret_is_rotated_without_a_restart_also_after_etcd_was_away(etcd, tmp_path):
    client_of(etcd).put("/secret/cluster", "first-secret")
    client_of(etcd).put("/thanos_query/host", "127.0.0.1")
    with command(
        tmp_path, "metroculus", "serve", "--config-url", etcd.url, "--metroculus-listen", f"127.0.0.1:{free_port()}"
    ) as (url, _):
        assert status(url, "first-secret") == 404 and status(url, "wrong-secret") == 403
        client_of(etcd).put("/secret/cluster", "second-secret")
        assert until(lambda: status(url, "second-secret") == 404)
        assert status(url, "first-secret") == 404
        etcd.stop()
        assert status(url, "second-secret") == 404
        assert requests.get(f"{url}/readyz", timeout=10).status_code == 200
        etcd.start()
        client_of(etcd).put("/secret/cluster", "third-secret")
        assert until(lambda: status(url, "third-secret") == 404, 40)
        assert status(url, "second-secret") == 404


def test_while_etcd_is_away_nothing_spins(etcd, tmp_path):
    client_of(etcd).put("/secret/cluster", "secret-number-0")
    listen = f"127.0.0.1:{free_port()}"
    with command(tmp_path, "metroculus", "serve", "--config-url", etcd.url, "--metroculus-listen", listen) as (url, it):
        etcd.stop()
        began, before = time.monotonic(), cpu_seconds(it)
        time.sleep(3)
        assert cpu_seconds(it) - before < 0.3 * (time.monotonic() - began)
        etcd.start()
        client_of(etcd).put("/secret/cluster", "secret-number-1")
        assert until(lambda: status(url, "secret-number-1") == 404)


def test_an_etcd_that_comes_and_goes_leaves_no_threads_behind(etcd):
    told = []
    config = EtcdConfig(etcd.url)
    config.watch("/secret/cluster", told.append, 0.1)
    running = []
    for number in range(4):
        client_of(etcd).put("/secret/cluster", f"secret-number-{number}")
        assert until(lambda: told[-1:] == [f"secret-number-{number}"])  # noqa: B023
        running.append(threading.active_count())
        etcd.stop()
        time.sleep(0.5)
        etcd.start()
    config.stop()
    assert told == [f"secret-number-{number}" for number in range(4)]
    assert max(running) <= running[0] + 3


def test_keys_are_read_with_a_deadline(etcd):
    config = EtcdConfig(etcd.url)
    assert config.get("/nothing") is None and config.thanos_query_url() is None
    client_of(etcd).put("/thanos_query/host", "thanos")
    client_of(etcd).put("/thanos_query/port", "9090")
    assert config.thanos_query_url() == "http://thanos:9090"
    os.kill(etcd.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, etcd.process.pid, os.WSTOPPED | os.WNOWAIT)  # every thread of it, before it is asked
    try:
        began = time.monotonic()
        with pytest.raises(ConfigError):
            config.get("/secret/cluster")
        assert time.monotonic() - began < 6
    finally:
        os.kill(etcd.process.pid, signal.SIGCONT)

    def recovered():
        try:
            return config.get("/thanos_query/host") == "thanos"
        except ConfigError:
            return False

    assert until(recovered)


def test_no_etcd_is_one_clear_line(tmp_path):
    done = subprocess.run(
        [BIN / "metroculus", "serve", "--config-url", f"etcd://127.0.0.1:{free_port()}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "etcd at 127.0.0.1" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_both_services_follow_a_rotation_and_links_go_on(etcd, tmp_path):
    client_of(etcd).put("/secret/cluster", "first-secret")
    environment = {"DATA_DIR": str(tmp_path / "data")}
    rest = rest_commands(tmp_path, environment)
    organization = rest("organization", "create", "acme")
    rest("user", "create", "ann", "--organization", organization, "--role", "admin")
    token = rest("token", "create", "ann")
    listens = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    with (
        command(
            tmp_path, "metroculus", "serve", "--config-url", etcd.url, "--metroculus-listen", listens[0], **environment
        ) as (url, _),
        command(
            tmp_path,
            "rest-api",
            "serve",
            "--config-url",
            etcd.url,
            "--rest-api-listen",
            listens[1],
            "--metroculus-url",
            url,
            **environment,
        ) as (api, _),
    ):

        def link(name):
            return requests.post(
                f"{api}/restapi/v2/organizations/{organization}/kubecost/clusters",
                json={"name": name, "flavour": "push"}, headers={"Authorization": f"Bearer {token}"}, timeout=20,
            ).status_code  # fmt: skip

        assert link("before") == 201
        client_of(etcd).put("/secret/cluster", "second-secret")
        assert link("meanwhile") == 201
        assert until(lambda: status(url, "second-secret") == 404)
        assert link("after") == 201


def test_a_secret_is_good_from_the_moment_that_it_is_in_etcd(etcd, tmp_path):
    """Whoever reads it first may send it first: ten rotations, each used at once, and the one before still good."""
    client_of(etcd).put("/secret/cluster", "secret-number-0")
    listen = f"127.0.0.1:{free_port()}"
    with command(tmp_path, "metroculus", "serve", "--config-url", etcd.url, "--metroculus-listen", listen) as (url, _):
        for number in range(1, 11):
            client_of(etcd).put("/secret/cluster", f"secret-number-{number}")
            assert status(url, f"secret-number-{number}") == 404
            assert status(url, f"secret-number-{number - 1}") == 404
            time.sleep(1.05)  # it is read again at most once a second for the sake of those who guess
        assert status(url, "secret-number-guessed") == 403


def test_no_request_fails_while_the_secret_is_rotated_under_load(etcd, stack, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from tests.support import END, exact_world

    _, upstream = stack.simulate(exact_world(days=1))
    client_of(etcd).put("/secret/cluster", "secret-number-0")
    environment = {"DATA_DIR": str(tmp_path / "data"), "UPSTREAM_ALLOW": "127.0.0.0/8"}
    rest = rest_commands(tmp_path, environment)
    organization = rest("organization", "create", "acme")
    rest("user", "create", "ann", "--organization", organization, "--role", "admin")
    bearer = {"Authorization": f"Bearer {rest('token', 'create', 'ann')}"}
    ports = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    metroculus = ("metroculus", "serve", "--config-url", etcd.url, "--metroculus-listen", ports[0])
    with command(tmp_path, *metroculus, **environment) as (url, _):
        api = ("rest-api", "serve", "--config-url", etcd.url, "--rest-api-listen", ports[1], "--metroculus-url", url)
        with command(tmp_path, *api, **environment) as (base, _):
            links = f"{base}/restapi/v2/organizations/{organization}/kubecost/clusters"
            body = {"name": "c", "flavour": "kubecost", "url": upstream}
            cluster = requests.post(links, json=body, headers=bearer, timeout=20).json()["cluster_id"]
            costs = f"{base}/restapi/v2/kubecost/clusters/{cluster}/costs?start_date={END - 86400}&end_date={END}"
            end = time.monotonic() + 8

            def hammer(_):
                statuses = []
                with requests.Session() as session:
                    while time.monotonic() < end:
                        statuses.append(session.get(costs, headers=bearer, timeout=30).status_code)
                return statuses

            with ThreadPoolExecutor(8) as threads:
                hammering = threads.map(hammer, range(8))
                for number in range(1, 6):
                    time.sleep(1.2)
                    client_of(etcd).put("/secret/cluster", f"secret-number-{number}")
                statuses = [status for some in hammering for status in some]
    assert len(statuses) > 50 and set(statuses) == {200}, sorted(set(statuses))
