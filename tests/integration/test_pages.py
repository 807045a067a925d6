"""The pages without a browser: who gets in, what is shown, and what no other site can do with it."""

from __future__ import annotations

import asyncio
import gzip
import html
import json
import random
import re
import socket
import struct
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
import requests

from rest_api.rest_api_server.pages.base import PageHandler, safe_target
from rest_api.rest_api_server.pages.cluster import ClusterPage
from rest_api.rest_api_server.pages.render import MINUS, money
from simulator.server import Habits
from tests.exported import read
from tests.integration.test_services import link
from tests.organizations import Organization
from tests.support import END, NOW, Stack, ask, exact_world, make_tenant, until
from tools.tornado_service.streamed import Streamed
from tools.version import VERSION

WORLD = exact_world(7, days=3)
SCRIPT = f'<script src="/static/page.js?v={VERSION}" defer>'
WINDOW = f"window={WORLD.start},{END}"


class Browser(requests.Session):
    """Asks as a browser does, and keeps cookies."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.headers["Accept"] = "text/html,application/xhtml+xml"

    def open(self, path: str, **more: Any) -> requests.Response:
        return self.get(self.base + path, timeout=60, **more)

    def submit(self, path: str, **form: str) -> requests.Response:
        return self.post(self.base + path, data=form, timeout=60, allow_redirects=False)

    def sign_in(self, token: str, target: str = "/") -> requests.Response:
        return self.submit("/sign-in", token=token, next=target)


class Acme:
    """A cluster that is asked live, beside one that cannot be; a clock that can be moved."""

    def __init__(self, folder: Any) -> None:
        self.stack, self.now = Stack(folder), NOW
        _, url = self.stack.simulate(WORLD, Habits())
        self.running = self.stack.start(clock=lambda: self.now)
        self.tenant = make_tenant(self.running, "acme")
        self.cluster = link(self.running, self.tenant, "prod", "kubecost", url)
        self.gone = link(self.running, self.tenant, "gone", "opencost", "http://127.0.0.1:9")
        self.base = self.running.rest_api_listener.url
        self.directory = self.running.rest_api.directory

    def browser(self, role: str | None = "viewer") -> Browser:
        made = Browser(self.base)
        if role is not None:
            assert made.sign_in(self.tenant.tokens[role]).status_code == 303
        return made

    def audited(self, request_id: str) -> list[str]:
        """The error codes of a request, in the services that it came through."""
        lines = next(self.stack.folder.rglob("audit.jsonl")).read_text().splitlines()
        return [line["error_code"] for line in map(json.loads, lines) if line["request_id"] == request_id]

    def api(self, path: str) -> Any:
        return ask(self.running, self.tenant.tokens["viewer"], f"/restapi/v2/{path}").json()


@pytest.fixture(scope="module")
def acme(tmp_path_factory):
    made = Acme(tmp_path_factory.mktemp("pages"))
    yield made
    made.stack.close()


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def csrf_of(page: str) -> str:
    return re.search(r'name="csrf" value="([0-9a-f]{64})"', page)[1]


def figure(page: str, name: str) -> str:
    return html.unescape(re.search(rf'data-figure="{name}">([^<]*)<', page)[1])


def test_figures_of_a_cluster_are_the_apis(acme):
    body = acme.api(f"kubecost/clusters/{acme.cluster}/costs?{WINDOW}&limit=1000")
    page = acme.browser().open(f"/clusters/{acme.cluster}?{WINDOW}").text
    total = f"{body['total_cost']:,.2f}"
    assert figure(page, "total") == f"{total} USD" and figure(page, "table-total") == total
    assert figure(page, "idle") == f"{body['idle_cost']:,.2f} USD"
    saving = acme.api(f"kubecost/clusters/{acme.cluster}/optimization?{WINDOW}")["potential_savings"]
    assert figure(page, "saving") == f"{saving:,.2f} USD"
    rows = re.search(r'<table id="rows">.*?</table>', page, re.S)[0]
    shown = re.findall(r'<th scope="row"><a[^>]*>([^<]*)</a></th>\s*<td class="n"><strong>([^<]*)</strong>', rows)
    assert shown == [(row["name"], f"{row['total_cost']:,.2f}") for row in body["costs"]]
    chart = acme.browser().open(f"/clusters/{acme.cluster}?window={END - 86400},{END}").text
    day = acme.api(f"kubecost/clusters/{acme.cluster}/costs?window={END - 86400},{END}&step=hour")
    highest = max(
        sum(
            point[name] or 0.0
            for name in point
            if name.endswith("_cost") and name not in ("total_cost", "known_cost", "idle_cost")
        )
        for point in day["data_points"]
    )
    assert f"highest: {highest:,.2f} USD" in text_of(chart) and len(re.findall(r">2026-[0-9T:-]+Z</a>", chart)) == 24


def asked_raw(acme: Acme, version: str, request_id: str = "raw", more: str = "") -> socket.socket:
    """A connection on which the cluster's page is asked for, to be kept open."""
    host, port = acme.base.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(
        f"GET /clusters/{acme.cluster}?{WINDOW} HTTP/{version}\r\nHost: {host}\r\nConnection: keep-alive\r\n{more}"
        f"Authorization: Bearer {acme.tenant.tokens['viewer']}\r\nAccept: text/html\r\n"
        f"X-Request-ID: {request_id}\r\n\r\n".encode()
    )
    return connection


def test_over_http_1_0_the_end_of_the_connection_is_that_of_the_page(acme):
    with asked_raw(acme, "1.0") as connection:
        told = b"".join(iter(lambda: connection.recv(65536), b""))
    assert told.rstrip().endswith(b"</html>") and b"Transfer-Encoding" not in told


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_a_large_page_over_http_1_0_arrives_whole(acme, monkeypatch, coding):
    """Also where most of it is still on its way when the service has sent its last byte."""
    large = random.Random(1).randbytes(2_000_000).hex().encode()

    async def later(*asked: Any) -> bytes:
        return large + b"</html>"

    monkeypatch.setattr(ClusterPage, "_later", later)
    with asked_raw(acme, "1.0", "large", f"Accept-Encoding: {coding}\r\n") as connection:
        until(lambda: acme.running.rest_api.service.in_flight == 0, 3)  # as far as buffers take it
        told = rest_of(connection)
    assert told is not None
    body = told.partition(b"\r\n\r\n")[2]
    assert (gzip.decompress(body) if coding == "gzip" else body).count(large + b"</html>") == 1


def test_a_page_whose_second_part_fails_is_cut_and_never_passes_for_whole(acme, monkeypatch, caplog):
    """With and without gzip; the log says why, and the audit log that it was cut."""

    async def fails(*asked: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(ClusterPage, "_later", fails)
    browser = acme.browser()
    for coding in ("identity", "gzip"):
        asked = {"Accept-Encoding": coding, "X-Request-ID": f"cut-{coding}"}
        with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)):
            browser.open(f"/clusters/{acme.cluster}?{WINDOW}", headers=asked)
        assert until(lambda coding=coding: "cut" in acme.audited(f"cut-{coding}"))
    assert "ZeroDivisionError: a defect" in caplog.text


def rest_of(connection: socket.socket) -> bytes | None:
    """What comes until the connection ends; None where it is cut."""
    try:
        return b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionResetError:
        return None


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_page_that_is_given_up_halfway_never_passes_for_whole(acme, monkeypatch, version):
    async def given_up(*asked: Any) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(ClusterPage, "_later", given_up)
    with asked_raw(acme, version, f"given-up-{version}") as connection:
        assert rest_of(connection) is None
    assert until(lambda: "cut" in acme.audited(f"given-up-{version}"))


@pytest.mark.parametrize("how", ["the reader has sent its last byte", "the service stops"])
def test_a_page_over_http_1_0_that_ends_early_is_reset(tmp_path, monkeypatch, how):
    """That version knows the end of an answer by the end of the connection alone."""
    acme, left = Acme(tmp_path), threading.Event()

    async def waits(*asked: Any) -> bytes:
        await asyncio.to_thread(left.wait, 60)
        return b""

    monkeypatch.setattr(ClusterPage, "_later", waits)
    try:
        with asked_raw(acme, "1.0") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            if how == "the service stops":
                acme.stack.thread.run(acme.running.rest_api_listener.stop(0.5))
            else:
                connection.shutdown(socket.SHUT_WR)
            assert rest_of(connection) is None
    finally:
        left.set()
        acme.stack.close()


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_who_leaves_at_the_end_of_a_page_over_http_1_0_is_no_defect(acme, monkeypatch, caplog, coding):
    gate, made, in_two = threading.Event(), threading.Event(), PageHandler.in_two

    def held(self: Any, *asked: Any) -> Streamed:
        whole = in_two(self, *asked)

        async def chunks() -> AsyncGenerator[bytes, None]:
            async for chunk in whole.chunks:
                yield chunk
            made.set()
            await asyncio.to_thread(gate.wait, 30)
            await asyncio.sleep(0.2)  # until the reset of the other side is heard

        return replace(whole, chunks=chunks())

    monkeypatch.setattr(PageHandler, "in_two", held)
    with asked_raw(acme, "1.0", f"at-end-{coding}", f"Accept-Encoding: {coding}\r\n") as connection:
        assert made.wait(30)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gate.set()
    assert until(lambda: acme.audited(f"at-end-{coding}") and acme.running.rest_api.service.in_flight == 0)
    assert "Traceback" not in caplog.text and "failed" not in caplog.text


def test_who_leaves_within_a_page_is_no_defect_and_keeps_no_place(acme, monkeypatch, caplog):
    left, later = threading.Event(), ClusterPage._later

    async def when_left(self: Any, *asked: Any) -> bytes:
        await asyncio.to_thread(left.wait, 30)
        return await later(self, *asked)

    monkeypatch.setattr(ClusterPage, "_later", when_left)
    with asked_raw(acme, "1.1", "leaves") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    left.set()
    until(lambda: acme.running.rest_api.service.in_flight == 0)
    assert "leaves failed" not in caplog.text


def test_what_is_asked_stands_in_the_address_and_links_keep_it(acme):
    path = f"/clusters/{acme.cluster}?{WINDOW}&by=controller&k8s_namespace=shop&idle=share&timezone=Europe%2FBerlin"
    body = acme.api(f"kubecost/{path[1:].replace('?', '/costs?').replace('by=', 'aggregate=')}&limit=1000")
    page = acme.browser().open(path).text
    assert figure(page, "total") == f"{body['total_cost']:,.2f} USD"
    links = [html.unescape(one) for one in re.findall(r'href="(/clusters/[^"]*sort=cpu_cost[^"]*)"', page)]
    assert links and all(part in links[0] for part in ("by=controller", "k8s_namespace=shop", "idle=share", "Berlin"))
    without = next(one for one in re.findall(r'class="chip" href="([^"]*)"', page))
    assert "k8s_namespace" not in without and "idle=share" in without
    found = read(acme.browser().open(html.unescape(re.search(r'href="([^"]*format=csv[^"]*)"', page)[1])))
    assert found.sum("total_cost (USD)") == pytest.approx(body["total_cost"], rel=1e-12)


def test_what_is_not_known_is_said(acme):
    page = acme.browser().open(f"/organizations/{acme.tenant.organization_id}?{WINDOW}").text
    row = text_of(re.search(rf'<tr data-cluster="{acme.gone}">.*?</tr>', page, re.S)[0])
    assert row.count("not known") == 3 and "0.00" not in row
    assert re.search(r'data-total="USD">not known<', page) and "known: 2,223.38 USD" in page
    assert text_of(page).count("Not known: no history is kept") == 2
    page = text_of(acme.browser().open(f"/clusters/{acme.gone}?{WINDOW}").text)
    assert "The cost is not known" in page and "0.00" not in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "not known"),
        (0.0, "0.00"),
        (1234.5, "1,234.50"),
        (-2.5, f"{MINUS}2.50"),
        (0.0041, "0.004"),
        (1e-12, "0.00000000"),
    ],
)
def test_money_is_told_to_the_cent_and_less_to_its_first_digit(value, shown):
    assert money(value) == shown


class Hostile(Organization):
    october = range(0)
    names = ("<script>alert(1)</script>", "a\u202eb", '"onmouseover=x', "🦊" * 15, "{{ 1 }}", "z" * 63)

    def build(self):
        super().build()
        for name in self.names:
            self.link(self.tenant, name)


def test_hostile_names_are_text(stack):
    hostile = Hostile(stack)
    browser = Browser(hostile.running.rest_api_listener.url)
    browser.sign_in(hostile.tenant.tokens["viewer"])
    page = browser.open(f"/organizations/{hostile.tenant.organization_id}").text
    assert re.findall(r"<script[^>]*>", page) == [SCRIPT] and not re.search(r"<[^>]*\sonmouseover=", page)
    assert all(name in html.unescape(page) for name in Hostile.names)
    for cluster in hostile.running.rest_api.directory.clusters(hostile.tenant.organization_id):
        page = browser.open(f"/clusters/{cluster.id}?by=label%3Ateam&k8s_namespace=%3Cscript%3E").text
        assert re.findall(r"<script[^>]*>", page) == [SCRIPT] and cluster.name in html.unescape(page)


def test_a_page_may_load_nothing_from_elsewhere_and_run_nothing(acme):
    browser = acme.browser()
    for path in ("/", f"/clusters/{acme.cluster}", "/sign-in", "/nothing-there"):
        answer = browser.open(path)
        policy = answer.headers.get("Content-Security-Policy", "")
        if answer.headers["Content-Type"].startswith("text/html"):
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", answer.text)
        assert set(re.findall(r"<script[^>]*>", answer.text)) <= {SCRIPT} and not re.search(
            r"\s(style|on[a-z]+)=", answer.text
        )


def test_without_a_session_a_browser_is_asked_to_sign_in_and_comes_back(acme):
    browser = acme.browser(None)
    path = f"/clusters/{acme.cluster}?{WINDOW}&by=pod"
    answer = browser.open(path, allow_redirects=False)
    assert answer.status_code == 303 and answer.headers["Location"].startswith("/sign-in?next=%2Fclusters%2F")
    form = browser.open(path).text
    target = html.unescape(re.search(r'name="next" value="([^"]*)"', form)[1])
    assert target == path
    answer = browser.sign_in(acme.tenant.tokens["viewer"], target)
    assert answer.headers["Location"] == path and browser.open(path).status_code == 200
    plain = requests.get(acme.base + path, timeout=30)
    assert plain.status_code == 401 and plain.json()["error"]["error_code"] == "OE0235"


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        ("/clusters/x?a=b", "/clusters/x?a=b"), ("//evil.example", "/"), ("https://evil.example", "/"), ("/\\evil.example", "/"),
        ("javascript:alert(1)", "/"), ("/\t/evil.example", "/"), ("", "/"), ("evil", "/"), ("/%2f/evil.example", "/%2f/evil.example"),
        ("http:///x", "/"), ("/a\r\nSet-Cookie: x", "/"), ("/[", "/["), ("//[", "/"),
    ],
)  # fmt: skip
def test_nobody_is_sent_elsewhere_after_signing_in(acme, asked, target):
    assert safe_target(asked) == target
    assert acme.browser(None).sign_in(acme.tenant.tokens["viewer"], asked or "/").headers["Location"] == target


def test_the_cookie_is_no_scripts_and_no_other_sites(acme):
    set_cookie = acme.browser(None).sign_in(acme.tenant.tokens["viewer"]).headers["Set-Cookie"]
    session = next(one for one in set_cookie.split(", ") if one.startswith("metroculus_session"))
    assert "HttpOnly" in session and "SameSite=Lax" in session and "Domain" not in session and "Secure" not in session
    assert acme.tenant.tokens["viewer"] not in set_cookie


def test_over_plain_http_nobody_signs_in_but_on_the_machine_itself(acme):
    elsewhere = {"Host": "costs.example.com"}
    answer = requests.post(
        f"{acme.base}/sign-in",
        data={"token": acme.tenant.tokens["viewer"]},
        headers=elsewhere,
        timeout=30,
        allow_redirects=False,
    )
    assert answer.status_code == 403 and "HTTPS" in answer.text and "Set-Cookie" not in answer.headers


def test_behind_a_proxy_with_tls_the_cookie_is_secure(stack):
    running = stack.start()
    proxied = make_tenant(running, "proxied")
    from tools.tornado_service.proxies import TrustedProxies

    running.rest_api.service.proxies = TrustedProxies(["127.0.0.0/8"])
    answer = requests.post(
        f"{running.rest_api_listener.url}/sign-in", data={"token": proxied.tokens["viewer"]}, timeout=30, allow_redirects=False,
        headers={"Host": "costs.example.com", "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"},
    )  # fmt: skip
    assert answer.status_code == 303
    assert re.search(r"__Host-metroculus_session=[^;\"]{20,};[^,]*Secure", answer.headers["Set-Cookie"])
    assert "Domain" not in answer.headers["Set-Cookie"]


def test_a_session_of_before_is_not_taken_over(acme):
    """Whatever cookie a browser brings (of somebody who wants to share the session), signing in makes another one."""
    browser = acme.browser(None)
    browser.cookies.set("metroculus_session", "chosen-by-somebody-else", domain="127.0.0.1", path="/")
    browser.sign_in(acme.tenant.tokens["viewer"])
    values = {cookie.value for cookie in browser.cookies}
    assert values and "chosen-by-somebody-else" not in values
    thief = Browser(acme.base)
    thief.cookies.set("metroculus_session", "chosen-by-somebody-else")
    assert thief.open("/", allow_redirects=False).status_code == 303


def test_signing_out_ends_the_session_for_everybody_who_has_it(acme):
    browser, copy = acme.browser(), Browser(acme.base)
    copy.cookies.update(browser.cookies)
    page = browser.open(f"/clusters/{acme.cluster}").text
    assert copy.open("/", allow_redirects=False).headers["Location"].startswith("/organizations/")
    csrf = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)[1]
    assert browser.submit("/sign-out", csrf=csrf).headers["Location"] == "/sign-in"
    assert copy.open("/", allow_redirects=False).headers["Location"].startswith("/sign-in")
    assert not [one for one in browser.cookies if one.value]


def test_other_sites_sign_nobody_in_or_out(acme):
    browser = acme.browser()
    csrf = re.search(r'name="csrf" value="([0-9a-f]+)"', browser.open(f"/clusters/{acme.cluster}").text)[1]
    other = re.search(r'name="csrf" value="([0-9a-f]+)"', acme.browser("admin").open(f"/clusters/{acme.cluster}").text)[
        1
    ]
    assert csrf != other
    for sent in ("", other, "0" * 64):
        assert browser.submit("/sign-out", csrf=sent).status_code == 403
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ):
        for path, form in (("/sign-out", {"csrf": csrf}), ("/sign-in", {"token": acme.tenant.tokens["admin"]})):
            answer = browser.post(acme.base + path, data=form, headers=headers, timeout=30, allow_redirects=False)
            assert answer.status_code == 403, (headers, path)
    assert browser.open("/", allow_redirects=False).headers["Location"].startswith("/organizations/")
    assert browser.submit("/sign-out", csrf=csrf).status_code == 303


def test_a_session_opens_no_api(acme):
    """Cookies are the pages' alone: no other site can have a browser ask the API."""
    browser = acme.browser("admin")
    for method in ("GET", "POST"):
        answer = browser.request(
            method, f"{acme.base}/restapi/v2/organizations/{acme.tenant.organization_id}/kubecost/clusters"
        )
        assert answer.status_code == 401


def test_a_session_ends_with_its_token_its_user_and_its_time(acme):
    directory = acme.directory
    directory.create_user("short")
    directory.set_role("short", acme.tenant.organization_id, acme_role())
    token_id, token = directory.create_token("short", None)
    browser = Browser(acme.base)
    browser.sign_in(token)
    assert browser.open("/", allow_redirects=False).headers["Location"].startswith("/organizations/")
    gate = acme.running.rest_api.application.wildcard_router.rules[0].target_kwargs["gate"]

    def is_signed_in() -> bool:
        gate._identities._told.clear()  # what is remembered for some seconds
        return browser.open("/", allow_redirects=False).headers["Location"].startswith("/organizations/")

    acme.now = NOW + 12 * 3600 - 1
    assert is_signed_in()
    acme.now = NOW + 12 * 3600
    assert not is_signed_in()
    acme.now = NOW
    assert is_signed_in()
    directory.revoke_token(token_id)
    assert not is_signed_in()


def acme_role():
    from rest_api.rest_api_server.directory.model import Role

    return Role.VIEWER


def test_a_link_signs_in_once_and_its_code_is_nowhere(acme, caplog):
    directory = acme.directory
    token_id = directory.tokens("acme viewer")[0].id
    code = directory.create_sign_in(token_id, "code", NOW + 600)
    assert requests.head(f"{acme.base}/sign-in?code={code}", timeout=30).status_code == 200, "looked at, not used"
    browser = Browser(acme.base)
    answer = browser.open(f"/sign-in?code={code}&next=/clusters/{acme.cluster}", allow_redirects=False)
    assert answer.status_code == 303 and answer.headers["Location"] == f"/clusters/{acme.cluster}"
    assert browser.open(answer.headers["Location"]).status_code == 200
    again = Browser(acme.base).open(f"/sign-in?code={code}")
    assert again.status_code == 401 and "has been used" in again.text and code not in again.text
    late = directory.create_sign_in(token_id, "code", NOW)
    assert Browser(acme.base).open(f"/sign-in?code={late}").status_code == 401
    for secret in (code, late, *(cookie.value for cookie in browser.cookies), acme.tenant.tokens["viewer"]):
        assert secret not in caplog.text
        assert all(secret not in log.read_text() for log in acme.stack.folder.rglob("audit.jsonl"))
    assert b"code=" not in json.dumps(dict(answer.headers)).encode()


def test_wrong_tokens_are_told_so_and_shown_nowhere(acme):
    for token in ("wrong", "x" * 600, "\u202e", "a b"):
        answer = acme.browser(None).sign_in(token)
        assert answer.status_code in (400, 401) and token not in answer.text
    assert acme.browser(None).submit("/sign-in").status_code == 401


def test_pages_are_behind_the_same_wall(acme):
    other = make_tenant(acme.running, "other")
    browser = Browser(acme.base)
    browser.sign_in(other.tokens["admin"])
    for path in (f"/organizations/{acme.tenant.organization_id}", f"/clusters/{acme.cluster}"):
        answer = browser.open(path)
        assert answer.status_code == 404 and "prod" not in answer.text and "acme" not in answer.text
        assert browser.open(f"{path}?format=csv").status_code == 404


def test_a_page_that_is_wrong_says_so_as_a_page(acme):
    browser = acme.browser()
    for path, status in (
        (f"/clusters/{acme.cluster}?window=nonsense", 400),
        ("/clusters/nothing", 400),
        (f"/clusters/{acme.cluster}?by=nothing", 400),
    ):
        answer = browser.open(path)
        assert (
            answer.status_code == status
            and answer.headers["Content-Type"].startswith("text/html")
            and "<h1>" in answer.text
        )
    css = browser.open("/static/page.css")
    assert (
        css.headers["Content-Type"].startswith("text/css")
        and browser.open("/static/page.css", headers={"If-None-Match": css.headers["Etag"]}).status_code == 304
    )
    for wrong in ("/static/nothing.css", "/static/..%2Fbase.py", "/static/base.py", "/static/layout.html"):
        assert browser.open(wrong).status_code in (400, 404)
