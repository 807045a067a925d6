"""What reaches both services over the wire: headers and tokens, framing, sizes, slow clients, TLS, text for logs."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
import time
from urllib.parse import quote, urlsplit

import pytest
import requests

from optscale_client.metroculus_client import Client, MetroculusError
from simulator.server import Habits
from tests.support import (
    ACCOUNT,
    END,
    SECRET,
    Answer,
    FakeUpstream,
    Stack,
    ask,
    certificate,
    exact_world,
    make_tenant,
    until,
)
from tools.tornado_service import listening, ready
from tools.tornado_service.access import Access
from tools.tornado_service.limits import MAX_BODY_BYTES
from tools.tornado_service.listening import listen

SERVICES = ("metroculus", "rest-api")
WINDOW = f"start_date={END - 86400}&end_date={END}"


class Edge:
    def __init__(self, folder):
        self.stack = Stack(folder)
        self.simulator, url = self.stack.simulate(exact_world(days=1))
        self.running = self.stack.start()
        self.tenant = make_tenant(self.running, "t")
        directory = self.running.rest_api.directory
        directory.create_cluster(self.tenant.organization_id, "c", "kubecost", url, ACCOUNT)
        directory.update_cluster(ACCOUNT, name="c", flavour="kubecost", url=url, state="linked")
        self.token = self.tenant.tokens["viewer"]
        self.bases = {
            "metroculus": self.running.metroculus_listener.url,
            "rest-api": self.running.rest_api_listener.url,
        }
        self.paths = {
            "metroculus": f"/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&{WINDOW}",
            "rest-api": f"/restapi/v2/kubecost/clusters/{ACCOUNT}/costs?{WINDOW}",
        }
        self.credentials = {"metroculus": f"Secret: {SECRET}", "rest-api": f"Authorization: Bearer {self.token}"}
        put = {"flavour": "kubecost", "url": url}
        source = f"{self.bases['metroculus']}/metroculus/v2/kubecost_sources/{ACCOUNT}"
        assert requests.put(source, json=put, headers={"Secret": SECRET}, timeout=20).status_code == 200

    def raw(self, service, data, seconds=20.0):
        """Everything that comes back for these bytes until the service closes, or falls silent."""
        parts = urlsplit(self.bases[service])
        with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as connection:
            for part in data if isinstance(data, list) else [data]:
                try:
                    connection.sendall(part)
                except OSError:
                    break
            received = b""
            try:
                while part := connection.recv(1 << 16):
                    received += part
            except (TimeoutError, ConnectionResetError):
                pass
            return received

    def get(self, service, *headers, path=None, method="GET", body=b"", version="1.1"):
        """``(status, headers and body)`` of one request with the headers as they stand."""
        lines = [f"{method} {path or self.paths[service]} HTTP/{version}", "Host: h", "Connection: close", *headers]
        found = self.raw(service, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return (int(found.split(b" ", 2)[1]) if found.startswith(b"HTTP/") else None), found.decode("latin-1")

    def quiet(self):
        """Whether soon nothing is in flight any more."""
        services = (self.running.metroculus.service, self.running.rest_api.service)
        return until(lambda: not any(service.in_flight for service in services), 10)

    def alive(self, service):
        return requests.get(f"{self.bases[service]}/healthz", timeout=10).status_code == 200


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    made = Edge(tmp_path_factory.mktemp("edge"))
    yield made
    made.stack.close()


R = f"Secret: {SECRET}"
SECRETS = {
    "I01 none": ([], 401),
    "I02 empty": (["Secret:"], 403),
    "I03 wrong": (["Secret: wrong"], 403),
    "I04 one byte more": ([R + "x"], 403),
    "I05 one byte less": ([R[:-1]], 403),
    "I06 in capitals": ([f"Secret: {SECRET.upper()}"], 403),
    "I07 right, then wrong": ([R, "Secret: wrong"], 403),
    "I08 right twice": ([R, R], 403),
    "I09 not ASCII": (["Secret: \xc3\xa9"], 403),
    "I11 a tab behind it": ([R + "\t"], 200),
    "I14 a token": (["Authorization: Bearer {token}"], 401),
    "I25 64 KiB": (["Secret: " + "x" * 60_000], 403),
    "I27 another URL": ([R, "X-Original-URL: /healthz", "X-Rewrite-URL: /healthz"], 200),
    "I28 another tenant": ([R, "Cloud-Account-Id: x", "THANOS-TENANT: x", "X-Scope-OrgID: x"], 200),
    "I29 another method": ([R, "X-HTTP-Method-Override: DELETE"], 200),
    "I31 with underscores": ([R, "Cloud_Account_Id: x"], 200),
}
TOKENS = {
    "I13 the cluster secret": ([R], 401),
    "I15 none": ([], 401),
    "I16 no token behind Bearer": (["Authorization: Bearer "], 401),
    "I17 Basic": (["Authorization: Basic {token}"], 401),
    "I18 in small letters": (["Authorization: bearer {token}"], 200),
    "I19 twice": (["Authorization: Bearer {token}"] * 2, 401),
    "one byte more": (["Authorization: Bearer {token}x"], 401),
    "not ASCII": (["Authorization: Bearer \xc3\xa9"], 401),
    "I25 64 KiB": (["Authorization: Bearer " + "x" * 60_000], 401),
    "I27 another URL": (["Authorization: Bearer {token}", "X-Original-URL: /healthz"], 200),
    "I28 another tenant": (["Authorization: Bearer {token}", "X-Scope-OrgID: x", "Cloud-Account-Id: x"], 200),
    "I29 another method": (["Authorization: Bearer {token}", "X-HTTP-Method-Override: DELETE"], 200),
    "N08 1 MiB": (["Authorization: Bearer " + "x" * (1 << 20)], None),
}
HEADERS = [("metroculus", n, *v) for n, v in SECRETS.items()] + [("rest-api", n, *v) for n, v in TOKENS.items()]


@pytest.mark.bad_input
@pytest.mark.parametrize(("service", "name", "headers", "status"), HEADERS, ids=[f"{s} {n}" for s, n, *_ in HEADERS])
def test_headers_and_tokens(edge, service, name, headers, status):
    before = len(edge.simulator.requests)
    found, text = edge.get(service, *(one.format(token=edge.token) for one in headers))
    assert found == status, text[:300]
    assert SECRET not in text and edge.token not in text
    if status != 200:
        assert len(edge.simulator.requests) == before, "an upstream was asked"


@pytest.mark.bad_input
@pytest.mark.parametrize(("service", "parameter"), [("metroculus", "secret"), ("rest-api", "access_token")])
def test_a_secret_in_the_query_opens_nothing(edge, service, parameter):
    """I10, I20"""
    value = SECRET if service == "metroculus" else edge.token
    status, text = edge.get(service, path=f"{edge.paths[service]}&{parameter}={value}")
    assert status == 401 and value not in text
    status, text = edge.get(service, edge.credentials[service], path=f"{edge.paths[service]}&{parameter}={value}")
    assert status == 400 and value not in text


@pytest.mark.bad_input
@pytest.mark.parametrize("service", SERVICES)
def test_host_and_origin_change_nothing(edge, service):
    """I30, I32"""
    lines = [f"GET {edge.paths[service]} HTTP/1.1", "Host: evil.example", "Origin: https://evil.example",
             edge.credentials[service], "Connection: close", "", ""]  # fmt: skip
    found = edge.raw(service, "\r\n".join(lines).encode()).decode("latin-1")
    assert found.startswith("HTTP/1.1 200") and "evil.example" not in found
    assert "access-control-allow-origin" not in found.lower() and "location:" not in found.lower()


FRAMING = {
    "J01 GET with a body": (b"GET {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", {400}),
    "J02 POST": (b"POST {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", {405}),
    "J02 DELETE": (b"DELETE {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nConnection: close\r\n\r\n", {405}),
    "J02 PATCH": (b"PATCH {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", {405}),
    "J03 TRACE": (b"TRACE {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nConnection: close\r\n\r\n", {405}),
    "J04 FOO": (b"FOO {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nConnection: close\r\n\r\n", {405}),
    "J05 HTTP/0.9": (b"GET {path}\r\n\r\n", {400, None}),
    "J06 both lengths": (b"GET {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", {400}),
    "J07 two lengths": (b"GET {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nContent-Length: 0\r\nContent-Length: 3\r\n\r\nabc", {400}),
    "J08 a signed length": (b"GET {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nContent-Length: +3\r\n\r\nabc", {400}),
    "J08 a negative length": (b"GET {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nContent-Length: -3\r\n\r\n", {400}),
    "J08 an endless length": (b"GET {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nContent-Length: 99999999999999999999999\r\n\r\n", {400, None}),
    "J09 a folded header": (b"GET {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nX-A: b\r\n c\r\nConnection: close\r\n\r\n", {400, 200}),
    "J10 space before the colon": (b"GET {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nX-A : b\r\nConnection: close\r\n\r\n", {400}),
    "J11 a header of 70 KB": (b"GET {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nX-A: " + b"b" * 70_000 + b"\r\nConnection: close\r\n\r\n", {400}),
    "J11 a header of 1 MB": (b"GET {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nX-A: " + b"b" * 1_000_000 + b"\r\n\r\n", {400, None}),
    "J12 8,000 parameters": (b"GET {path}" + b"".join(b"&p%d=1" % n for n in range(5_000)) + b" HTTP/1.1\r\nHost: h\r\n{auth}\r\nConnection: close\r\n\r\n", {400}),
    "bare line feeds": (b"GET {path} HTTP/1.1\nHost: h\n{auth}\nConnection: close\n\n", {200, 400}),
    "NUL in a header": (b"GET {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nX-A: a\x00b\r\nConnection: close\r\n\r\n", {400}),
    "no Host": (b"GET {path} HTTP/1.1\r\n{auth}\r\nConnection: close\r\n\r\n", {400}),
    "two Hosts": (b"GET {path} HTTP/1.1\r\nHost: a\r\nHost: b\r\n{auth}\r\nConnection: close\r\n\r\n", {400}),
    "a bad chunk": (b"POST {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", {400, None}),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), {400, None}),
    "nothing": (b"", {None}),
}  # fmt: skip


@pytest.mark.bad_input
@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("name", sorted(FRAMING))
def test_framing(edge, service, name):
    data, statuses = FRAMING[name]
    data = data.replace(b"{path}", edge.paths[service].encode()).replace(b"{auth}", edge.credentials[service].encode())
    before = len(edge.simulator.requests)
    found = edge.raw(service, data, seconds=1.0 if name in ("nothing", "not HTTP") else 10.0)
    status = int(found.split(b" ", 2)[1]) if found.startswith(b"HTTP/") else None
    assert status in statuses, found[:200]
    if status != 200:
        assert len(edge.simulator.requests) == before
    if status == 405:
        assert b"\r\nAllow: GET, HEAD, OPTIONS\r\n" in found
    assert edge.alive(service)


def error_of(found):
    return json.loads(found.partition("\r\n\r\n")[2])["error"]


@pytest.mark.bad_input
@pytest.mark.parametrize("service", SERVICES)
def test_what_is_too_large_is_told_with_its_limit(edge, service):
    auth = edge.credentials[service]
    path = "/metroculus/v2/backfills" if service == "metroculus" else "/restapi/v2/organizations/x/kubecost/clusters"
    cases = [
        (edge.get(service, auth, path=f"/x?{'y' * 70_000}"), 414, "url: at most 64 KiB"),
        (edge.get(service, auth, path=f"/metroculus/v2/backfills?{'y' * 70_000}"), 414, "url: at most 64 KiB"),
        (edge.get(service, auth, "X-A: " + "b" * 70_000), 400, "headers: at most 64 KiB"),
    ]
    for size in (MAX_BODY_BYTES + 1, 2 << 20):
        body = b"{" + b" " * size
        cases.append(
            (edge.get(service, auth, f"Content-Length: {len(body)}", path=path, method="POST", body=body), 413,
             "body: at most 1024 KiB")
        )  # fmt: skip
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    chunked = edge.get(
        service, auth, "Transfer-Encoding: chunked", path=path, method="POST", body=3 * chunk + b"0\r\n\r\n"
    )
    declared = edge.get(service, auth, "Content-Length: 300000000000", path=path, method="POST")
    cases += [(chunked, 413, "body: at most 1024 KiB"), (declared, 413, "body: at most 1024 KiB")]
    for (status, found), wanted, reason in cases:
        assert status == wanted, found[:200]
        assert error_of(found)["reason"] == reason and error_of(found)["params"] == [reason.partition(":")[0]]
    assert edge.alive(service)
    assert edge.quiet()


def test_half_a_request_and_a_dripping_one_are_closed_and_hold_nobody_up(tmp_path, monkeypatch):
    """J13, J14"""
    monkeypatch.setattr(listening, "IDLE_SECONDS", 1.0)
    monkeypatch.setattr(listening, "BODY_SECONDS", 1.0)
    edge = Edge(tmp_path)
    try:
        for service in SERVICES:
            began = time.monotonic()
            assert edge.raw(service, b"GET / HTTP/1.1\r\nHost: h\r\n", seconds=10) == b""
            head = f"POST {edge.paths[service]} HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n".encode()
            edge.raw(service, head + b"{", seconds=10)
            assert time.monotonic() - began < 6
            parts = urlsplit(edge.bases[service])
            with socket.create_connection((parts.hostname, parts.port)) as dripping:
                dripping.settimeout(0.2)
                with pytest.raises(OSError):
                    for byte in b"GET / HTTP/1.1\r\n" * 20:
                        dripping.sendall(bytes([byte]))
                        time.sleep(0.05)
            assert edge.alive(service)
    finally:
        edge.stack.close()


@pytest.mark.bad_input
@pytest.mark.parametrize("service", SERVICES)
def test_a_client_that_goes_away_leaves_nothing_behind(edge, service):
    """J15: also one that takes half of a large answer and then no more."""
    for read in (0, 100):
        for _ in range(5):
            parts = urlsplit(edge.bases[service])
            with socket.create_connection((parts.hostname, parts.port)) as connection:
                head = f"GET {edge.paths[service]} HTTP/1.1\r\nHost: h\r\n{edge.credentials[service]}\r\n\r\n"
                connection.sendall(head.encode())
                connection.recv(read) if read else None
    assert edge.quiet() and edge.alive(service)


@pytest.mark.bad_input
@pytest.mark.parametrize("service", SERVICES)
def test_a_thousand_requests_in_one_breath(edge, service):
    """J16"""
    one = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert edge.raw(service, one * 999 + last).count(b"HTTP/1.1 200 OK") == 1000


def test_whoever_takes_an_answer_too_slowly_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(ready, "SEND_SECONDS", 0.5)
    stack = Stack(tmp_path)
    try:
        fake = FakeUpstream()
        running = stack.start()
        rows = {
            f"ns-{n}": {"name": f"ns-{n}", "properties": {"namespace": f"ns-{n}"}, "cpuCost": 1, "ramCost": 1,
                        "window": {"start": "2026-11-20T00:00:00Z", "end": "2026-11-21T00:00:00Z"},
                        "start": "2026-11-20T00:00:00Z", "end": "2026-11-21T00:00:00Z"}
            for n in range(60_000)
        }  # fmt: skip
        body = json.dumps({"code": 200, "data": [rows]}).encode()
        fake.answer = lambda request: Answer(body=body if "allocation" in request.path else b'{"code":200,"data":[]}')
        put = {"flavour": "opencost", "url": stack.serve(fake.application)}
        base = running.metroculus_listener.url
        source = f"{base}/metroculus/v2/kubecost_sources/{ACCOUNT}"
        assert requests.put(source, json=put, headers={"Secret": SECRET}, timeout=20).status_code == 200
        parts = urlsplit(base)
        with socket.create_connection((parts.hostname, parts.port)) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            path = f"/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&{WINDOW}&detail_level=namespace"
            slow.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nSecret: {SECRET}\r\n\r\n".encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 200")
            assert running.metroculus.service.in_flight == 1, "an answer that is not taken is still in flight"
            end = time.monotonic() + 10
            while running.metroculus.service.in_flight and time.monotonic() < end:
                time.sleep(0.05)
        assert running.metroculus.service.in_flight == 0
    finally:
        stack.close()


def test_bad_tokens_are_answered_late_and_good_ones_never(tmp_path):
    stack = Stack(tmp_path)
    try:
        running = stack.start(access=Access(bad_tokens_a_minute=5))
        tenant = make_tenant(running, "t")
        path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
        forwarded = {"X-Forwarded-For": "10.0.0.9"}  # I26: nobody's word for where he comes from is taken
        answers = [ask(running, f"guess-{n}", path, headers=forwarded) for n in range(8)]
        assert [one.status_code for one in answers] == [401] * 5 + [429] * 3
        assert all(one.elapsed.total_seconds() > 0.9 for one in answers[5:])
        assert int(answers[-1].headers["Retry-After"]) > 0 and answers[-1].json()["error"]["error_code"] == "OE0913"
        good = ask(running, tenant.tokens["viewer"], path)
        assert good.status_code == 200 and good.elapsed.total_seconds() < 0.9
        base = running.metroculus_listener.url + f"/metroculus/v2/kubecost_sources/{ACCOUNT}"
        wrong = [requests.get(base, headers={"Secret": f"guess-{n}"}, timeout=20).status_code for n in range(7)]
        assert wrong == [403] * 5 + [429] * 2
        assert requests.get(base, headers={"Secret": SECRET}, timeout=20).status_code == 404
    finally:
        stack.close()


def test_one_token_has_so_many_requests_at_once_and_no_more(tmp_path):
    stack = Stack(tmp_path)
    try:
        silent = socket.create_server(("127.0.0.1", 0), backlog=200)
        running = stack.start(kubecost_timeout=2.0)
        tenant = make_tenant(running, "t")
        directory = running.rest_api.directory
        directory.create_cluster(tenant.organization_id, "c", "kubecost", "", ACCOUNT)
        put = {"flavour": "kubecost", "url": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        source = f"{running.metroculus_listener.url}/metroculus/v2/kubecost_sources/{ACCOUNT}"
        assert requests.put(source, json=put, headers={"Secret": SECRET}, timeout=20).status_code == 200
        path = f"/restapi/v2/kubecost/clusters/{ACCOUNT}/costs?{WINDOW}"
        statuses = []

        def once():
            statuses.append(ask(running, tenant.tokens["viewer"], path).status_code)

        threads = [threading.Thread(target=once) for _ in range(40)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        mine = ask(running, tenant.tokens["viewer"], path)
        assert mine.status_code == 429 and "32" in mine.json()["error"]["reason"] and mine.headers["Retry-After"] == "1"
        health = ask(
            running,
            tenant.tokens["manager"],
            f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters/{ACCOUNT}",
        )
        assert health.status_code == 200, "another token has places of its own"
        for thread in threads:
            thread.join(30)
        assert statuses.count(429) == 8 and set(statuses) <= {429, 503, 504}
        silent.close()
        assert ask(running, tenant.tokens["viewer"], path).status_code in (503, 504), "every place is free again"
    finally:
        stack.close()


def test_hanging_up_gives_no_place_back_before_the_work_is_done(tmp_path):
    stack = Stack(tmp_path)
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=200) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            running = stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT, kubecost_timeout=1.5)
            tenant = make_tenant(running, "t")
            running.rest_api.directory.create_cluster(tenant.organization_id, "c", "kubecost", url, ACCOUNT)
            parts = urlsplit(running.rest_api_listener.url)
            path = f"/restapi/v2/kubecost/clusters/{ACCOUNT}/costs?{WINDOW}"
            head = f"GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {tenant.tokens['viewer']}\r\n\r\n"
            for _ in range(32):
                with socket.create_connection((parts.hostname, parts.port)) as connection:
                    connection.sendall(head.encode())
                    time.sleep(0.01)
            assert ask(running, tenant.tokens["viewer"], path).status_code == 429
            given_back = until(lambda: ask(running, tenant.tokens["viewer"], path).status_code != 429, 15)
            assert given_back, "the places were never given back"
            assert until(lambda: not running.rest_api.service.in_flight and not running.metroculus.service.in_flight, 5)
    finally:
        stack.close()


HOSTILE_NAMES = {
    "N01": "shop\r\n2026-11-21 ERROR forged line",
    "N02": "=cmd|' /C calc'!A0",
    "N03": "<img src=x onerror=alert(1)>",
    "N04": "%s %d %n %(x)s",
    "N05": "{0} {x.__class__}",
    "N06": "l" * (1 << 20),
    "N07": "\x1b[2J\x1b[31m",
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", sorted(HOSTILE_NAMES))
def test_text_of_an_upstream_is_data_and_one_line_of_any_log(stack, name, caplog):
    text = HOSTILE_NAMES[name]

    def rewrite(path, answer):
        for one in answer["data"] if isinstance(answer["data"], list) else []:
            for row in one.values():
                if row.get("properties", {}).get("namespace") == "shop":
                    row["properties"]["labels"] = {"team": text}
        return answer

    _, url = stack.simulate(exact_world(days=1), Habits(rewrite=rewrite))
    running = stack.start()
    tenant = make_tenant(running, "t")
    links = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    body = {"name": "c", "flavour": "opencost", "url": url}
    cluster = ask(running, tenant.tokens["admin"], links, "POST", json=body).json()["cluster_id"]
    with caplog.at_level(logging.DEBUG):
        found = ask(
            running,
            tenant.tokens["viewer"],
            f"/restapi/v2/kubecost/clusters/{cluster}/costs?{WINDOW}&aggregate=label:team",
        )
        quoted = quote(text[:60], safe="")
        ask(running, tenant.tokens["viewer"], f"/restapi/v2/kubecost/clusters/{cluster}/namespaces/{quoted}/workloads")
        ask(
            running, text[:60].encode("latin-1", "replace").decode("latin-1").replace("\r", "").replace("\n", ""), links
        )
    assert found.status_code == 200, found.text[:300]
    assert found.headers["Content-Type"] == "application/json; charset=utf-8"
    assert found.headers["X-Content-Type-Options"] == "nosniff"
    if name != "N06":
        assert text in [row["name"] for row in found.json()["costs"]]
    lines = [record.getMessage() for record in caplog.records if not record.name.startswith("urllib3")]
    assert all("\n" not in line and "\r" not in line and "\x1b" not in line and len(line) < 1000 for line in lines)
    for line in (stack.folder / "data0" / "audit.jsonl").read_bytes().splitlines():
        assert json.loads(line) and line.isascii() and len(line) < 2000 and b"\x1b" not in line


def test_our_own_listeners_speak_tls_and_take_a_renewed_certificate(edge, tmp_path):
    tls = certificate(tmp_path, "first")
    metroculus = edge.running.metroculus
    over = edge.stack.thread.call(listen, metroculus.application, metroculus.service, "127.0.0.1", 0, tls)
    try:
        assert over.url.startswith("https://")
        with Client(url=over.url, secret=SECRET, verify=tls[0]) as client:
            assert client.get_kubecost_source(ACCOUNT)[0] == 200
        with Client(url=over.url, secret=SECRET) as stranger, pytest.raises(MetroculusError):
            stranger.get_kubecost_source(ACCOUNT)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, OSError)), socket.create_connection(("127.0.0.1", over.port)) as plain:
            old.wrap_socket(plain)
        with pytest.raises(requests.RequestException):
            requests.get(f"http://127.0.0.1:{over.port}/healthz", timeout=5)
        renewed = certificate(tmp_path, "second")
        for old_file, new_file in zip(tls, renewed, strict=True):
            with open(new_file, "rb") as new, open(old_file, "wb") as written:
                written.write(new.read())
        edge.stack.thread.call(over.certificate.refresh)
        with Client(url=over.url, secret=SECRET, verify=renewed[0]) as client:
            assert client.get_kubecost_source(ACCOUNT)[0] == 200
        with open(tls[0], "w") as broken:
            broken.write("half written")
        edge.stack.thread.call(over.certificate.refresh)
        assert requests.get(f"{over.url}/healthz", verify=renewed[0], timeout=5).status_code == 200
    finally:
        edge.stack.thread.run(over.stop(1.0))
        metroculus.service.stopping = False


def test_a_certificate_that_cannot_be_used_stops_the_start(edge, tmp_path):
    (tmp_path / "c").write_text("no certificate")
    metroculus = edge.running.metroculus
    for files in ((str(tmp_path / "c"), str(tmp_path / "c")), (str(tmp_path / "nothing"), str(tmp_path / "c"))):
        with pytest.raises(OSError, match="TLS_CERT"):
            edge.stack.thread.call(listen, metroculus.application, metroculus.service, "127.0.0.1", 0, files)
