"""Who asks, from where, how often, and what is kept of it: what both services share."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from metroculus.config import SETTINGS as METROCULUS_SETTINGS
from metroculus.config import config_of as metroculus_config
from rest_api.rest_api_server.cli import main as rest_api_main
from rest_api.rest_api_server.config import SETTINGS as REST_SETTINGS
from rest_api.rest_api_server.config import config_of as rest_config
from tests.support import BIN
from tools.settings import SettingsError, load
from tools.tornado_service import slowdown
from tools.tornado_service.access import Access
from tools.tornado_service.audit import AuditLog
from tools.tornado_service.proxies import TrustedProxies
from tools.tornado_service.slowdown import Slowdown

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ([], "10.0.0.1", ["198.51.100.7"], "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        (["10.0.0.0/8"], "10.0.0.1", ["127.0.0.1, 198.51.100.7"], "198.51.100.7"),
        (["10.0.0.0/8"], "10.0.0.1", ["198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        (["10.0.0.0/8"], "10.0.0.1", ["1.1.1.1", "198.51.100.7"], "198.51.100.7"),
        (["10.0.0.0/8"], "10.0.0.1", ["garbage"], "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", [], "10.0.0.1"),
        (["10.0.0.0/8"], "192.0.2.9", ["198.51.100.7"], "192.0.2.9"),
        (["fd00::/8"], "fd00::1", ["2001:db8::1"], "2001:db8::1"),
    ],
)
def test_whose_word_is_taken_for_where_a_request_comes_from(trusted, peer, forwarded, client):
    assert TrustedProxies(trusted).client(peer, forwarded) == client


def test_a_proxy_that_is_no_network_is_named():
    with pytest.raises(SettingsError, match="TRUSTED_PROXIES"):
        load(REST_SETTINGS, {}, {"TRUSTED_PROXIES": "ingress"})


@pytest.mark.parametrize(
    ("settings", "config_of"), [(METROCULUS_SETTINGS, metroculus_config), (REST_SETTINGS, rest_config)]
)
@pytest.mark.parametrize("name", ["TLS_CERT", "TLS_KEY"])
def test_a_certificate_without_its_key_stops_the_start(settings, config_of, name):
    with pytest.raises(SettingsError, match="TLS_CERT and TLS_KEY"):
        config_of(load(settings, {}, {name: "/somewhere"}))


def test_failures_are_counted_by_key_for_a_minute_and_never_without_bound(monkeypatch):
    monkeypatch.setattr(slowdown, "PAUSE_SECONDS", 0.0)
    now = [0.0]
    slow = Slowdown(allowed=2, clock=lambda: now[0])

    async def fail(*keys):
        return await slow.failed(*keys)

    assert [asyncio.run(fail("a", "x")) for _ in range(3)] == [False, False, True]
    assert slow.over("a") and slow.over("b", "x") and not slow.over("b")
    now[0] += 61
    assert not slow.over("a", "x") and asyncio.run(fail("a")) is False
    for number in range(slowdown.MAX_KEYS + 50):
        asyncio.run(fail(f"k{number}")) if number < 50 else slow._failures.__setitem__(f"k{number}", (now[0], 1))
    asyncio.run(fail("last"))
    assert len(slow._failures) <= slowdown.MAX_KEYS


def test_the_audit_log_follows_its_file_and_tells_what_it_loses(tmp_path):
    file = tmp_path / "made" / "audit.jsonl"
    log = Access(audit_log=str(file)).audit("s", lambda: 0.0)
    log.write(objects={"name": "a\nforged\x1b[2J"})
    file.rename(tmp_path / "rotated")
    log.write(n=2)
    (first,), (second,) = ((tmp_path / "rotated").read_bytes().splitlines(), file.read_bytes().splitlines())
    assert json.loads(first)["objects"] == {"name": "a\nforged\x1b[2J"} and b"\x1b" not in first
    assert json.loads(second) == {"time": "1970-01-01T00:00:00.000+00:00", "service": "s", "n": 2}
    lost = AuditLog(str(tmp_path), "s", lambda: 0.0)
    lost.write(n=3)
    assert lost.failures == 1
    with pytest.raises(OSError, match="AUDIT_LOG"):
        Access(audit_log="/proc/nowhere/audit").audit("s", lambda: 0.0)


def test_the_command_line_is_audited_too(tmp_path):
    def rest(*args):
        environment = os.environ | {"DATA_DIR": str(tmp_path)}
        done = subprocess.run([BIN / "rest-api", *args], env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout.strip(), done.stderr

    _, organization, _ = rest("organization", "create", "acme")
    rest("user", "create", "ann", "--organization", organization, "--role", "admin")
    _, token, told = rest("token", "create", "ann", "--read-only", "--organization", organization)
    token_id = re.search(r"token id (\S+),", told)[1]
    assert (
        rest("token", "list", "ann")[1].startswith(f"{token_id}  until ")
        and "read only" in rest("token", "list", "ann")[1]
    )
    assert rest("token", "revoke", token_id)[0] == 0 and "(revoked)" in rest("token", "list", "ann")[1]
    assert rest("user", "remove", "ann", "--organization", organization)[0] == 0
    assert rest("user", "disable", "ann")[0] == 0 and "(disabled)" in rest("user", "list")[1]
    assert rest("organization", "delete", organization)[0] == 0 and rest("organization", "list")[1] == ""
    failed = rest("token", "create", "nobody")
    assert failed[0] == 1 and "there is no user" in failed[2]
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["operation"], line["outcome"]) for line in lines] == [
        ("create organization", "done"), ("create user", "done"), ("create token", "done"), ("revoke token", "done"),
        ("remove user", "done"), ("disable user", "done"), ("delete organization", "done"), ("create token", "failed"),
    ]  # fmt: skip
    assert {line["actor"]["kind"] for line in lines} == {"command line"}
    assert token not in (tmp_path / "audit.jsonl").read_text()


def test_every_test_that_the_security_page_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    there = {
        name
        for file in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert len(named) > 30 and named <= there, named - there


def test_a_user_who_has_a_number_and_no_name_is_told_by_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container: the change is made, its audit line is written, and what is printed is the id alone."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    monkeypatch.setattr("getpass.getuser", nameless)
    for audit_log in ("-", str(tmp_path / "audit.jsonl")):
        environment = {"DATA_DIR": str(tmp_path / "data"), "AUDIT_LOG": audit_log}
        done = CliRunner(env=environment).invoke(rest_api_main, ["organization", "create", f"of {audit_log[-1]}"])
        assert done.exit_code == 0, done.output
        assert re.fullmatch(r"[0-9a-f-]{36}\n", done.stdout)
        told = done.stderr if audit_log == "-" else (tmp_path / "audit.jsonl").read_text()
        assert f'"user":"uid {os.getuid()}"' in told
