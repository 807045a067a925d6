"""URLs that tenants supply: refused when written and again when used; a decoy that listens is never reached."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
import requests

from metroculus.sources.errors import Unreachable
from metroculus.sources.outbound import addresses
from metroculus.sources.outbound.addresses import AllowedAddresses
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.registry.protocol import Credentials
from tests.support import ACCOUNT, END, SECRET, Answer, FakeUpstream, Metroculus, Stack, ask, make_tenant
from tools.deadline import Deadline

WINDOW = {"start_date": END - 86400, "end_date": END}
M = {
    "M01": "http://127.0.0.1:{port}",
    "M02": "http://localhost:{port}",
    "M03": "http://127.1:{port}",
    "M04": "http://0x7f.1:{port}",
    "M05": "http://2130706433:{port}",
    "M06": "http://0177.0.0.1:{port}",
    "M07": "http://0:{port}",
    "M08": "http://[::1]:{port}",
    "M09": "http://[::ffff:127.0.0.1]:{port}",
    "M10": "http://[::ffff:169.254.169.254]",
    "M11": "http://169.254.169.254/latest/meta-data/",
    "M12": "http://[fd00:ec2::254]/",
    "M13": "http://100.100.100.200/",
    "M14": "http://192.0.0.192/",
    "M15": "http://[64:ff9b::a9fe:a9fe]/",
    "M16": "http://100.64.0.1",
    "M17": "http://10.96.0.1:443",
    "M18": "http://etcd:2379/v3/kv/range",
    "M19": "http://clickhouse:8123/?query=SELECT",
    "M20": "http://thanos-query:10902/",
    "M21": "http://metroculus/",
    "M22": "http://restapi.default.svc.cluster.local",
    "M23": "https://user:pass@127.0.0.1:{port}/",
    "M24": "http://good.example.com@127.0.0.1:{port}/",
    "M25": "http://127.0.0.1:{port}#@good.example.com/",
    "M26": "http://good.example.com\\@127.0.0.1:{port}/",
    "M27": "http://good.example.com%2f@127.0.0.1:{port}/",
    "M28": "file:///etc/passwd",
    "M29": "gopher://127.0.0.1:{port}/_x",
    "M30": "http+unix://%2fvar%2frun%2fdocker.sock",
    "M31": "//127.0.0.1:{port}/path",
    "M32": "http://127.0.0.2:22",
    "M33": "http://127.0.0.1:{port}/%0d%0aSecret:x",
    "M34": "http://127。0。0。1:{port}",
    "M34 punycode": "http://xn--80ak6aa92e.com",
    "M35": "http://127.0.0.1:{port}/" + "a" * 256,
    "a name for it": "http://inside.good.example.com:{port}",
    "6to4": "http://[2002:7f00:1::]:{port}",
    "with a zone": "http://[fe80::1%25eth0]:{port}",
}


class Decoy:
    """Listens on every address of this machine, and counts who comes."""

    def __init__(self):
        self.server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.port = self.server.getsockname()[1]
        self.reached = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.reached += 1
            connection.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("urls"))
    decoy = Decoy()
    running = stack.start(
        upstream_allow=AllowedAddresses(["good.example.com", "198.51.100.0/24"]), kubecost_timeout=2.0
    )
    yield running, make_tenant(running, "t"), decoy, stack
    decoy.server.close()
    stack.close()


@pytest.fixture
def resolved(monkeypatch):
    """Names of this file's own are answered here; every other one as ever."""
    asked = addresses.resolve
    answers = {"inside.good.example.com": [["127.0.0.1"]]}
    turns = {}

    async def resolve(host, port):
        if host not in answers:
            return await asked(host, port)
        turn = turns[host] = turns.get(host, -1) + 1
        chosen = answers[host][min(turn, len(answers[host]) - 1)]
        return [(socket.AF_INET, (address, port)) for address in chosen]

    monkeypatch.setattr(addresses, "resolve", resolve)
    return answers


@pytest.mark.bad_input
@pytest.mark.parametrize("name", sorted(M))
def test_a_hostile_url_is_refused_when_written_and_when_used(world, resolved, name):
    running, tenant, decoy, stack = world
    url = M[name].format(port=decoy.port)
    links = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    before = decoy.reached
    written = requests.put(
        f"{running.metroculus_listener.url}/metroculus/v2/kubecost_sources/{ACCOUNT}",
        json={"flavour": "kubecost", "url": url}, headers={"Secret": SECRET}, timeout=20,
    )  # fmt: skip
    assert written.status_code == 400 and written.json()["error"]["params"] == ["url"], written.text
    linked = ask(running, tenant.tokens["admin"], links, "POST", json={"name": name, "flavour": "kubecost", "url": url})
    assert linked.status_code == 400 and linked.json()["error"]["params"] == ["url"], linked.text
    directory = running.rest_api.directory
    assert name not in [one.name for one in directory.clusters(tenant.organization_id)]
    # As if it had got past the writing: an older file, or a name that has come to mean something else.
    registry = running.metroculus.dependencies.registry
    stack.thread.run(registry.put(ACCOUNT, "kubecost", url, Credentials()))
    used = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **WINDOW)
    stack.thread.run(registry.delete(ACCOUNT))
    assert used.status_code in (502, 503, 504), used.text
    assert str(decoy.port) not in used.text and "127.0.0.1" not in used.text
    assert decoy.reached == before, "the decoy was reached"


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["M36", "M37"])
def test_a_name_that_turns_is_followed_nowhere(world, resolved, name):
    """M36: it resolves to what is allowed when written, and to loopback when used. M37: to both at once."""
    running, _, decoy, stack = world
    host = f"{name.lower()}.example.org"
    both = ["198.51.100.7", "127.0.0.1"]
    resolved[host] = [["198.51.100.7"], ["127.0.0.1"]] if name == "M36" else [both]
    before = decoy.reached
    written = requests.put(
        f"{running.metroculus_listener.url}/metroculus/v2/kubecost_sources/{ACCOUNT}",
        json={"flavour": "kubecost", "url": f"http://{host}:{decoy.port}"}, headers={"Secret": SECRET}, timeout=20,
    )  # fmt: skip
    assert written.status_code == (200 if name == "M36" else 400)
    if name == "M37":
        registry = running.metroculus.dependencies.registry
        stack.thread.run(registry.put(ACCOUNT, "kubecost", f"http://{host}:{decoy.port}", Credentials()))
    used = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **WINDOW)
    assert used.status_code == 503 and decoy.reached == before


@pytest.mark.bad_input
def test_a_proxy_of_the_environment_is_not_used(monkeypatch, tmp_path):
    """M38"""
    decoy, stack = Decoy(), Stack(tmp_path)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{decoy.port}")
    try:
        fake = FakeUpstream()
        running = stack.start(kubecost_api_url=stack.serve(fake.application), kubecost_account_id=ACCOUNT)
        with requests.Session() as session:
            session.trust_env = False
            url = f"{running.metroculus_listener.url}/metroculus/v2/kubecost_cluster_costs"
            session.get(url, params={"cloud_account_id": ACCOUNT} | WINDOW, headers={"Secret": SECRET}, timeout=20)
        assert fake.asked and not decoy.reached
    finally:
        decoy.server.close()
        stack.close()


def test_credentials_go_to_the_host_that_they_were_given_for_and_to_no_other(stack):
    seen = {"first": [], "second": []}
    urls = {}
    for name in seen:
        fake = FakeUpstream()

        def answer(request, name=name):
            seen[name].append((request.headers.get("Authorization"), request.headers.get("Secret")))
            return Answer(302, b"", {"Location": urls["second"]}) if name == "first" else Answer()

        fake.answer = answer
        urls[name] = stack.serve(fake.application)
    running = stack.start()
    tenant = make_tenant(running, "t")
    links = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    auth = {"type": "bearer", "token": "canary-of-the-upstream"}
    body = {"name": "c", "flavour": "kubecost", "url": urls["first"], "auth": auth}
    cluster = ask(running, tenant.tokens["admin"], links, "POST", json=body).json()["cluster_id"]
    path = f"/restapi/v2/kubecost/clusters/{cluster}/costs?start_date={WINDOW['start_date']}&end_date={END}"
    assert ask(running, tenant.tokens["viewer"], path).status_code == 502, "a redirect is no answer"
    assert {one for one in seen["first"]} == {("Bearer canary-of-the-upstream", None)} and not seen["second"]
    moved = ask(running, tenant.tokens["admin"], f"{links}/{cluster}", "PATCH", json={"url": urls["second"]})
    assert moved.status_code == 200 and "canary" not in moved.text
    ask(running, tenant.tokens["viewer"], path)
    assert {one for one in seen["second"]} == {(None, None)}


def test_how_a_name_resolves_is_asked_once_for_the_check_and_the_connection(monkeypatch):
    """What was checked is what is connected to."""
    asked = []

    async def resolve(host, port):
        asked.append(host)
        return [(socket.AF_INET, ("127.0.0.1", port))]

    monkeypatch.setattr(addresses, "resolve", resolve)

    async def work():
        http = SourceHttp(AllowedAddresses(["127.0.0.0/8"]))
        decoy = Decoy()
        try:
            with pytest.raises(Unreachable):
                await http.get(Upstream("s", f"http://once.example.org:{decoy.port}"), "/", {}, Deadline(2))
            return decoy.reached
        finally:
            decoy.server.close()
            http.close()

    assert asyncio.run(work()) == len(asked) > 0


@pytest.mark.parametrize(
    "ca", ["", "no certificate", "\u00b4\u00d7", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_an_authority_that_is_none_is_refused_by_name(world, ca):
    running, *_ = world
    body = {"flavour": "kubecost", "url": "http://198.51.100.7", "ca": ca}
    address = f"{running.metroculus_listener.url}/metroculus/v2/kubecost_sources/{ACCOUNT}"
    refused = requests.put(address, json=body, headers={"Secret": SECRET}, timeout=20)
    assert refused.status_code == 400 and refused.json()["error"]["params"] == ["ca"], refused.text
