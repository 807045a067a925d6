"""What was tried on the pages: other sites, other programs, proxies, many at once, clocks, and parts that fail."""

from __future__ import annotations

import html
import json
import re
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import pytest
import requests

from optscale_client.metroculus_client import ServiceUnavailable
from rest_api.rest_api_server.directory.model import (
    LONGEST_SESSION_SECONDS,
    SIGN_INS_OF_A_TOKEN,
    DirectoryError,
    Role,
)
from rest_api.rest_api_server.directory.sqlite import SqliteDirectory
from rest_api.rest_api_server.pages.assets import _files
from rest_api.rest_api_server.pages.base import LONGEST_ADDRESS, safe_target
from standalone.demo import MARK, _made_anew
from tests.integration.test_pages import WINDOW, Acme, csrf_of, figure, text_of
from tests.support import END, NOW, until
from tools.tornado_service.proxies import TrustedProxies


@pytest.fixture(scope="module")
def acme(tmp_path_factory):
    made = Acme(tmp_path_factory.mktemp("attacks"))
    yield made
    made.stack.close()


def new_code(acme: Acme, role: str = "viewer", expires_at: int = NOW + 600) -> str:
    return acme.directory.create_sign_in(acme.directory.tokens(f"acme {role}")[0].id, "code", expires_at)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document", "Sec-Purpose": "prefetch"},
        {"Purpose": "prefetch"},
    ],
)
def test_a_link_that_no_person_opened_signs_nobody_in_and_is_not_used_up(acme: Acme, headers: dict[str, str]) -> None:
    code, browser = new_code(acme), acme.browser(None)
    answer = browser.open(f"/sign-in?code={code}&next=/clusters/{acme.cluster}", headers=headers)
    assert answer.status_code == 200 and "Set-Cookie" not in answer.headers and "Sign in by this link" in answer.text
    went = browser.submit("/sign-in", code=code, next=f"/clusters/{acme.cluster}")
    assert went.status_code == 303 and went.headers["Location"] == f"/clusters/{acme.cluster}"
    assert browser.open("/", allow_redirects=False).headers["Location"].startswith("/organizations/")


def test_who_is_signed_in_is_asked_before_a_link_makes_them_somebody_else(acme: Acme) -> None:
    browser = acme.browser("viewer")
    page = browser.open(f"/sign-in?code={new_code(acme, 'admin')}").text
    assert "You are signed in as acme viewer" in text_of(page)
    assert "acme viewer" in browser.open(f"/clusters/{acme.cluster}").text


@pytest.mark.parametrize("target", ["/€", "/🦊", "/x?a=€", "/\u2028", "/\x7f", "/é", "/\x85x", "/\xa0", "/a b", "/%"])
def test_any_target_is_a_header_that_can_be_sent(acme: Acme, target: str) -> None:
    answer = acme.browser(None).sign_in(acme.tenant.tokens["viewer"], target)
    assert answer.status_code == 303 and answer.headers["Location"].isascii()
    assert safe_target(target) in ("/", quote(target, safe="/?=%"))


def test_a_long_address_is_told_so_and_signing_in_works_from_it(acme: Acme) -> None:
    path = f"/clusters/{acme.cluster}?k8s_namespace=" + ",".join(f"n{number:059d}" for number in range(65))
    assert LONGEST_ADDRESS < 4200 and len(path) < LONGEST_ADDRESS
    assert acme.browser().open(path).status_code == 200
    browser = acme.browser(None)
    form = browser.open(path)
    assert form.status_code == 200 and html.unescape(re.search(r'name="next" value="([^"]*)"', form.text)[1]) == path
    longer = acme.browser().open(path + "&timezone=UTC" * 30)
    assert longer.status_code == 414 and "fewer filters" in longer.text
    assert browser.open(path + "&timezone=UTC" * 30).status_code in (200, 414)


def test_over_plain_http_from_elsewhere_there_is_not_even_a_form(acme: Acme) -> None:
    token = acme.tenant.tokens["viewer"]
    proxied = {"X-Forwarded-Proto": "http", "X-Forwarded-For": "203.0.113.9", "Host": "127.0.0.1:8999"}
    for headers in (
        proxied,
        {"Host": "costs.example.com"},
        {"Host": "127.999.0.1.example"},
        {"Host": "localhost:999999"},
    ):
        answer = requests.post(
            f"{acme.base}/sign-in", data={"token": token}, headers=headers, timeout=30, allow_redirects=False
        )
        assert answer.status_code in (400, 403) and "Set-Cookie" not in answer.headers, headers
        if answer.status_code == 403:
            assert "HTTPS" in answer.text and 'name="token"' not in answer.text
    code = new_code(acme)
    refused = requests.get(f"{acme.base}/sign-in?code={code}", headers=proxied, timeout=30)
    assert "HTTPS" in refused.text and acme.directory.use_code(code.encode(), NOW) is not None, "it is not used up"


def test_over_tls_only_the_cookie_of_this_host_is_taken(stack) -> None:
    acme = Acme(stack.folder / "tls")
    try:
        acme.running.rest_api.service.proxies = TrustedProxies(["127.0.0.0/8"])
        tls = {"Host": "costs.example.com", "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}
        sent = {
            "data": {"token": acme.tenant.tokens["viewer"]},
            "headers": tls,
            "timeout": 30,
            "allow_redirects": False,
        }
        answer = requests.post(f"{acme.base}/sign-in", **sent)
        secret = re.search(r"__Host-metroculus_session=([^;]+)", answer.headers["Set-Cookie"])[1]
        for name, location in (("__Host-metroculus_session", "/organizations/"), ("metroculus_session", "/sign-in")):
            got = requests.get(f"{acme.base}/", headers=tls | {"Accept": "text/html", "Cookie": f"{name}={secret}"}, timeout=30, allow_redirects=False)  # fmt: skip
            assert got.headers["Location"].startswith(location), name
        page = requests.get(f"{acme.base}/clusters/{acme.cluster}", headers=tls | {"Accept": "text/html", "Cookie": f"__Host-metroculus_session={secret}"}, timeout=30)  # fmt: skip
        out = requests.post(
            f"{acme.base}/sign-out", data={"csrf": csrf_of(page.text)}, timeout=30, allow_redirects=False,
            headers=tls | {"Cookie": f"__Host-metroculus_session={secret}"},
        )  # fmt: skip
        assert out.status_code == 303
        assert re.search(
            r'__Host-metroculus_session="?"?;[^,]*expires=Fri, 02 Jan 1970[^,]*,?[^,]*Secure|__Host-metroculus_session=[^,]*Secure',
            out.headers["Set-Cookie"],
        )
    finally:
        acme.stack.close()


def test_signing_in_stands_in_the_audit_log(acme: Acme) -> None:
    log = next(acme.stack.folder.rglob("audit.jsonl"))
    offers = {
        "wrong": {"token": "wrong"},
        "token": {"token": acme.tenant.tokens["manager"]},
        "code": {"code": new_code(acme)},
    }
    for name, form in offers.items():
        headers = {"X-Request-ID": f"signing-{name}"}
        requests.post(f"{acme.base}/sign-in", data=form, headers=headers, timeout=30, allow_redirects=False)

    def told() -> dict[str, Any]:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return {one["request_id"]: one for one in lines if one["request_id"].startswith("signing-")}

    assert until(lambda: len(told()) == 3)
    wrong, token, code = (told()[f"signing-{name}"] for name in offers)
    assert (wrong["status"], wrong["actor"], wrong["objects"]) == (401, {"kind": "anonymous"}, {"by": "token"})
    assert token["status"] == 303 and token["actor"]["user"] == "acme manager" and token["address"] == "127.0.0.1"
    assert code["objects"] == {"by": "code"} and code["actor"]["token_id"] == acme.directory.tokens("acme viewer")[0].id
    assert all(one["needs"] == "sign_in" for one in (wrong, token, code))


def test_one_token_has_so_many_sessions_and_the_oldest_ends(tmp_path: Path) -> None:
    directory = SqliteDirectory(tmp_path / "directory.sqlite")
    organization = directory.create_organization("o")
    directory.create_user("u")
    directory.set_role("u", organization.id, Role.VIEWER)
    token_id, _ = directory.create_token("u", None)
    made = [directory.create_sign_in(token_id, "session", NOW + 1000 + n) for n in range(SIGN_INS_OF_A_TOKEN + 3)]
    alive = [directory.session(one.encode(), NOW) is not None for one in made]
    assert alive == [False] * 3 + [True] * SIGN_INS_OF_A_TOKEN
    ahead = directory.create_sign_in(token_id, "session", NOW + LONGEST_SESSION_SECONDS + 1)
    assert directory.session(ahead.encode(), NOW) is None, "begun by a clock that was ahead"
    directory.close()


def test_who_guesses_or_waits_to_write_holds_nobody_up_who_reads(tmp_path: Path) -> None:
    file = tmp_path / "directory.sqlite"
    directory = SqliteDirectory(file)
    organization = directory.create_organization("o")
    directory.create_user("u")
    directory.set_role("u", organization.id, Role.VIEWER)
    _, token = directory.create_token("u", None)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # as a shell or a copy holds it
    waiting = threading.Thread(target=directory.create_organization, args=("late",))
    waiting.start()
    assert until(lambda: not directory._writing.acquire(blocking=False) or directory._writing.release())
    began = time.monotonic()
    for _ in range(100):
        assert directory.use_code(b"a guess", NOW) is None
        assert directory.identity(token.encode(), NOW) is not None
    assert time.monotonic() - began < 2, "the lock is held for five seconds"
    other.execute("ROLLBACK")
    other.close()
    waiting.join()
    directory.close()


def test_names_of_files_that_are_not_there_are_not_remembered(acme: Acme) -> None:
    before = len(_files())
    with requests.Session() as session:
        for number in range(200):
            assert session.get(f"{acme.base}/static/x{number}.css", timeout=30).status_code == 404
    assert len(_files()) == before


def test_signing_out_works_where_the_tokens_places_are_taken_and_where_the_directory_fails(acme: Acme) -> None:
    browser = acme.browser()
    csrf = csrf_of(browser.open(f"/clusters/{acme.cluster}").text)
    gate = acme.running.rest_api.application.wildcard_router.rules[0].target_kwargs["gate"]
    token_id = acme.directory.tokens("acme viewer")[0].id
    gate._taken[token_id] += 1000
    try:
        assert browser.open("/").status_code == 429
        assert browser.submit("/sign-out", csrf=csrf).status_code == 303
    finally:
        gate._taken[token_id] -= 1000
    browser = acme.browser()
    csrf = csrf_of(browser.open(f"/clusters/{acme.cluster}").text)
    directory, end_session = gate._directory, gate._directory.end_session
    directory.end_session = lambda secret: (_ for _ in ()).throw(DirectoryError("the disk is full"))
    try:
        answer = browser.submit("/sign-out", csrf=csrf)
    finally:
        directory.end_session = end_session
    assert answer.status_code == 503 and "metroculus_session=" in answer.headers["Set-Cookie"]
    assert browser.open("/", allow_redirects=False).headers["Location"].startswith("/sign-in")


def test_what_is_not_there_is_a_page_for_a_browser_and_an_ended_session_asks_to_sign_in(acme: Acme) -> None:
    for path in ("/nothing", "/clusters/", "/clusters/x/y", "/favicon.ico"):
        answer = acme.browser(None).open(path)
        assert answer.status_code == 404 and "<h1>" in answer.text and "Content-Security-Policy" in answer.headers
        assert requests.get(acme.base + path, timeout=30).json()["error"]["status_code"] == 404
    assert acme.browser(None).submit("/sign-out", csrf="x").headers["Location"] == "/sign-in"
    answer = acme.browser(None).submit(f"/organizations/{acme.tenant.organization_id}/budgets", name="x", amount="1")
    assert answer.status_code == 401 and "your session has ended" in answer.text.lower()


def test_a_page_asks_two_things_at_once_and_none_when_nobody_waits(acme: Acme) -> None:
    pool = acme.running.rest_api.metroculus
    real, now, most, begun = pool.call, [0], [0], []
    go_on = threading.Event()

    async def slow(about: Any, method: Any, *args: Any, **more: Any) -> Any:
        import asyncio

        now[0] += 1
        most[0] = max(most[0], now[0])
        begun.append(method.__name__)
        try:
            await asyncio.to_thread(go_on.wait)
            return await real(about, method, *args, **more)
        finally:
            now[0] -= 1

    browser = acme.browser()
    pool.call = slow
    try:
        with pytest.raises(requests.Timeout):
            browser.get(f"{acme.base}/clusters/{acme.cluster}?{WINDOW}", timeout=1.5)
        assert until(lambda: len(begun) >= 2)
        browser.close()
        go_on.set()
        assert until(lambda: now[0] == 0)
        assert most[0] == 2 and len(begun) <= 3, begun
        assert browser.open(f"/clusters/{acme.cluster}?{WINDOW}").status_code == 200
    finally:
        pool.call = real


@pytest.mark.parametrize("step", [True, False])
def test_a_part_that_cannot_be_had_leaves_the_others_whole(acme: Acme, step: bool) -> None:
    """Steps alone fail: then the rows are there. Nothing of cost can be had: then changes and savings are."""
    pool = acme.running.rest_api.metroculus
    real = pool.call

    async def without_costs(about: Any, method: Any, *args: Any, **more: Any) -> Any:
        if method.__name__ == "get_kubecost_cluster_costs" and (more.get("step") or not step):
            raise ServiceUnavailable("the costs are away")
        return await real(about, method, *args, **more)

    pool.call = without_costs
    try:
        page = acme.browser().open(f"/clusters/{acme.cluster}?{WINDOW}").text
    finally:
        pool.call = real
    assert page.count("<section") == 4 and "right sizing" in page and '<svg class="chart"' not in page
    assert (
        ("The cost is not known" not in page and figure(page, "total") == "2,223.38 USD")
        if step
        else ("The cost is not known" in page and "0.00" not in text_of(page.split("<section")[0]))
    )
    cannot = acme.browser().open(f"/clusters/{acme.cluster}?{WINDOW}&by=annotation:x").text
    assert 'data-figure="total"' in cannot


def test_what_a_form_does_not_show_it_carries_along(acme: Acme) -> None:
    browser = acme.browser()
    page = browser.open(
        f"/clusters/{acme.cluster}?start_date={END - 86400}&end_date={END}&sort=cpu_cost&against=2d&order=asc"
    ).text
    form = re.search(r'<form method="get".*?</form>', page, re.S)[0]
    fields = {m[1]: html.unescape(m[2]) for m in re.finditer(r'name="(\w+)"[^>]*?value="([^"]*)"', form)}
    assert fields["window"] == f"{END - 86400},{END}"
    assert (fields["sort"], fields["against"], fields["order"]) == ("cpu_cost", "2d", "asc")
    typed = browser.open(
        f"/clusters/{acme.cluster}?window=7d&first_day=2026-11-19&last_day=2026-11-20&only=controller&value=web,db&timezone=America/New_York",
        allow_redirects=False,
    )
    assert typed.status_code == 303
    target = typed.headers["Location"]
    assert "window=2026-11-19T00%3A00%3A00-05%3A00%2C2026-11-21T00%3A00%3A00-05%3A00" in target
    assert "filter=controller%3Dweb%2Cdb" in target and "first_day" not in target and "=7d" not in target
    assert browser.open(target).status_code == 200
    for wrong in (
        "first_day=9999-12-31",
        "only=namespace&value=",
        "first_day=2026-02-30",
        "first_day=2026-11-20&last_day=2026-11-19",
    ):
        assert browser.open(f"/clusters/{acme.cluster}?{wrong}").status_code == 400


def test_every_link_of_every_page_leads_somewhere(acme: Acme) -> None:
    browser = acme.browser("admin")
    left, seen = [f"/organizations/{acme.tenant.organization_id}", f"/clusters/{acme.cluster}?{WINDOW}"], set[str]()
    while left and len(seen) < 150:
        path = left.pop(0)
        if path in seen:
            continue
        seen.add(path)
        answer = browser.open(path)
        assert answer.status_code == 200, (path, text_of(answer.text)[:300])
        if answer.headers["Content-Type"].startswith("text/html"):
            left += [html.unescape(one) for one in re.findall(r'href="(/[^"#]+)"', answer.text) if acme.gone not in one]
    assert len(seen) > 100


def test_a_demo_deletes_nothing_that_it_has_not_made(tmp_path: Path) -> None:
    thesis = tmp_path / "sub" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("important")
    with pytest.raises(click.ClickException, match="no demo has made"):
        _made_anew(tmp_path)
    assert thesis.read_text() == "important"
    (tmp_path / "connection.json").write_text("{}")
    with pytest.raises(click.ClickException, match="no demo has made"):
        _made_anew(tmp_path)
    with pytest.raises(click.ClickException, match="cannot be the demo's folder"):
        _made_anew(thesis)
    earlier = tmp_path / "earlier"
    (earlier / "data").mkdir(parents=True)
    (earlier / "connection.json").write_text('{"simulator_url": "http://127.0.0.1:1"}')
    (earlier / "notes.txt").write_text("1")
    with pytest.raises(click.ClickException, match=r"no demo has made \(notes.txt\)"):
        _made_anew(earlier)
    (earlier / "notes.txt").unlink()
    (earlier / "token").write_text("1")
    _made_anew(earlier)
    assert [one.name for one in earlier.iterdir()] == [MARK], "a demo of before there was a mark is one, too"
    own = tmp_path / "new" / "demo"
    own.mkdir(parents=True)
    (own / MARK).touch()
    for name in ("data", "notes"):
        (own / name).mkdir()
        (own / name / "x").write_text("1")
    _made_anew(own)
    assert not (own / "data").exists() and (own / "notes" / "x").exists(), "what is no demo's stays"
    (own / "data").mkdir()
    (own / "data" / "x").write_text("1")
    with pytest.raises(click.ClickException, match="a demo is running"):
        _made_anew(own)
    assert (own / "data" / "x").exists() and (own / MARK).exists()
