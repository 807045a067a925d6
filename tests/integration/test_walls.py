"""Tenants are walls: every kind of caller at every object through every route, and every injection at every parameter.

Two tenants stand behind the same services, the same Prometheus and the same store; all that is the other's is marked,
and costs multiples of a prime of its own, so that a foreign byte or a foreign cent shows wherever it comes out.
"""

from __future__ import annotations

import html
import io
import json
import re
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import quote, quote_plus, urlencode, urlsplit
from uuid import uuid4

import msgspec
import pytest
import requests
from msgspec.structs import fields

from metroculus.watch.alerts import Finding, advance
from rest_api.rest_api_server.directory.model import Role
from simulator.costs import truth
from simulator.world import DAY, HOUR, make_world, marked
from tests.contract.test_declarations import METROCULUS as METROCULUS_ROUTES
from tests.contract.test_declarations import REST as REST_ROUTES
from tests.data import bad_inputs as bad
from tests.support import END, NOW, SECRET, Stack, ask, make_tenant, until
from tools.tornado_service.application import METHODS, OpenHandler

MINE, THEIRS = "mine", "foreigncanary"
MY_PRIME, THEIR_PRIME = 7, 13
MY_CLUSTER = "5635f99d-4dc6-4e31-891f-4e8990925c83"
THEIR_CLUSTER = "0c9f1f6e-95d2-4c0a-8d0c-2f7f1b6a9e11"
ABSENT = "9b2b6c5c-1d5a-4b63-9d0e-2f0f8a9d7c55"
WINDOW = {"start_date": str(END - DAY), "end_date": str(END)}


def operations(routes):
    """``(path with {names}, method, handler)`` of every operation behind a permission."""
    for pattern, handler, _ in routes:
        if issubclass(handler, OpenHandler):
            continue
        path = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"{\1}", pattern)
        for method in METHODS:
            if hasattr(getattr(handler, method.lower(), None), "operation"):
                yield path, method, handler


REST = list(operations(REST_ROUTES))
METROCULUS = list(operations(METROCULUS_ROUTES))
REST_IDS = [f"{method} {path}" for path, method, _ in REST]

WITHOUT_OBJECT = ("/", "/sign-out")
"""Pages about whoever asks."""
SEEN = "/restapi/v2/organizations"
LINKS = "/restapi/v2/organizations/{organization_id}/kubecost/clusters"
OWNER = "/restapi/v2/organizations/{organization_id}/kubecost"
RULES = ("PUT", f"{OWNER}/allocation_rules")
PREVIEW = ("POST", f"{OWNER}/allocation_rules/preview")
CLOSE = ("POST", f"{OWNER}/months/{{month}}/close")
BUDGETS = f"{OWNER}/budgets"
NEW_BUDGET = ("POST", BUDGETS)
CHANGED_BUDGET = ("PATCH", f"{BUDGETS}/{{budget_id}}")
NO_BUDGET = ("DELETE", f"{BUDGETS}/{{budget_id}}")
ACK = ("POST", f"{OWNER}/alerts/{{alert_id}}/ack")
PAGES = "/organizations/{organization_id}"
FORMS = {
    ("POST", f"{PAGES}/chargeback/preview"): {"month": "2026-11", "valid_from": "2026-11"},
    ("POST", f"{PAGES}/chargeback/rules"): {"month": "2026-11", "valid_from": "2026-11"},
    ("POST", f"{PAGES}/chargeback/close"): {"month": "2026-11"},
    ("POST", f"{PAGES}/budgets"): {"name": "of the page", "amount": "100"},
    ("POST", f"{PAGES}/budgets/{{budget_id}}"): {"name": "changed", "amount": "100"},
    ("POST", f"{PAGES}/budgets/{{budget_id}}/delete"): {},
    ("POST", f"{PAGES}/alerts/{{alert_id}}/ack"): {"note": "seen"},
    ("POST", f"{PAGES}/clusters"): {"name": "joined"},
    ("POST", "/clusters/{cluster_id}/push-token"): {},
    ("POST", "/clusters/{cluster_id}/unlink"): {},
    ("POST", "/sign-out"): {},
}
"""What pages' forms say; their answers are pages, whatever came of it."""
PAGE_ADMIN = {
    ("POST", f"{PAGES}/clusters"),
    ("POST", "/clusters/{cluster_id}/push-token"),
    ("POST", "/clusters/{cluster_id}/unlink"),
}
PAGE_PUSH = ("POST", "/clusters/{cluster_id}/push-token")
PAGE_CLOSE = ("POST", f"{PAGES}/chargeback/close")
PAGE_MANAGER = FORMS.keys() - PAGE_ADMIN - {("POST", "/sign-out"), ("POST", f"{PAGES}/chargeback/preview")}
GONE_AFTER = (NO_BUDGET, ("POST", f"{PAGES}/budgets/{{budget_id}}/delete"))
MANAGER_WRITES = {ACK, RULES, CLOSE, NEW_BUDGET, CHANGED_BUDGET, NO_BUDGET} | PAGE_MANAGER
NEEDS_MANAGER = {("GET", f"{LINKS}/{{cluster_id}}"), ("GET", f"{PAGES}/clusters")} | MANAGER_WRITES
BODIES = {
    RULES: {"valid_from": "2026-11"},
    PREVIEW: {"valid_from": "2026-11"},
    CLOSE: {},
    CHANGED_BUDGET: {},
    ACK: {},
}
"""What is sent to those that need a body, beside links."""
PUSH_TOKEN = ("POST", f"{LINKS}/{{cluster_id}}/push_token")
NEEDS_ADMIN = {
    ("POST", LINKS),
    ("PATCH", f"{LINKS}/{{cluster_id}}"),
    ("DELETE", f"{LINKS}/{{cluster_id}}"),
    PUSH_TOKEN,
} | PAGE_ADMIN
"""What more than a viewer is needed for; all that changes anything is in the second, or among what managers write."""


def needed(path, method):
    if (method, path) in NEEDS_ADMIN:
        return Role.ADMIN
    return Role.MANAGER if (method, path) in NEEDS_MANAGER else Role.VIEWER


class World:
    """Two tenants, their clusters, and a caller of each kind."""

    def __init__(self, folder, prometheus_factory):
        self.stack = Stack(folder)
        self.threads = ThreadPoolExecutor(8)
        self._sessions = threading.local()
        self.worlds = {
            MINE: marked(make_world(seed=3, days=1, end=END, prime=MY_PRIME, cluster_id="c"), MINE),
            THEIRS: marked(make_world(seed=3, days=1, end=END, prime=THEIR_PRIME, cluster_id="c"), THEIRS),
        }
        self.prometheus = prometheus_factory()
        self.clusters = {MINE: MY_CLUSTER, THEIRS: THEIR_CLUSTER}
        for name, world in self.worlds.items():
            self.prometheus.load_world(world, self.clusters[name], 300)
        self.prometheus.start()
        self.running = self.stack.start(
            thanos_query_url=self.prometheus.url, clickhouse_url=f"embedded:{self.stack.folder / 'store'}"
        )
        self.directory = self.running.rest_api.directory
        self.simulators, self.tenants = {}, {}
        for name, world in self.worlds.items():
            self.tenants[name] = make_tenant(self.running, name)
            self.simulators[name], url = self.stack.simulate(world)
            self.link(self.tenants[name].organization_id, self.clusters[name], name, "kubecost", url)
            fill = self.running.worker.worker.fill(self.clusters[name], (END - DAY, END), 1, lambda progress: None)
            self.stack.thread.run(fill)
        self.stack.thread.run(self.running.worker.worker.live_all())
        self.organization = self.tenants[MINE].organization_id
        self.alerts = {name: self.new_alert(tenant.organization_id) for name, tenant in self.tenants.items()}
        self.budgets = {name: self.new_budget(tenant.organization_id) for name, tenant in self.tenants.items()}
        self._objects()
        self._callers()

    def link(self, organization_id, cluster_id, name, flavour="push", url=""):
        self.directory.create_cluster(organization_id, name, flavour, url, cluster_id)
        self.directory.update_cluster(cluster_id, name=name, flavour=flavour, url=url, state="linked")
        body = {"flavour": flavour, "url": url}
        address = f"{self.running.metroculus_listener.url}/metroculus/v2/kubecost_sources/{cluster_id}"
        assert requests.put(address, json=body, headers={"Secret": SECRET}, timeout=20).status_code == 200

    def new_alert(self, organization_id):
        alert = advance(organization_id, None, Finding(kind="drift", subject="x", verdict="firing"), NOW)
        documents = self.running.metroculus.dependencies.store.documents
        documents.put(organization_id, "alert", alert.id, msgspec.json.encode(alert).decode())
        return alert.id

    def new_budget(self, organization_id):
        body = {"name": f"{uuid4()}", "amount": 100.0}
        address = f"{self.running.metroculus_listener.url}/metroculus/v2/budgets/{organization_id}"
        answer = requests.post(address, json=body, headers={"Secret": SECRET}, timeout=20)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def _objects(self):
        deleted, other_kind, gone = str(uuid4()), str(uuid4()), self.directory.create_organization("gone")
        self.directory.create_cluster(self.organization, "deleted", "push", "", deleted)
        self.directory.delete_cluster(deleted)
        self.directory.create_cluster(self.organization, "an aws account", "push", "", other_kind, "aws_cnr")
        self.directory.set_role(f"{MINE} admin", gone.id, Role.ADMIN)
        self.directory.delete_organization(gone.id)
        theirs = self.tenants[THEIRS].organization_id
        self.objects = {
            "own": (self.organization, MY_CLUSTER, MINE),
            "foreign": (theirs, THEIR_CLUSTER, THEIRS),
            "deleted": (gone.id, deleted, "deleted"),
            "not a Kubernetes account": (other_kind, other_kind, "an aws account"),
            "absent": (ABSENT, ABSENT, "absent"),
        }

    def _callers(self):
        def bearer(token):
            return {"Authorization": f"Bearer {token}"}

        tokens, theirs = self.tenants[MINE].tokens, self.tenants[THEIRS].tokens
        directory = self.directory
        for name in ("removed", "disabled"):
            directory.create_user(name)
            directory.set_role(name, self.organization, Role.ADMIN)
        removed, disabled = (directory.create_token(name, None)[1] for name in ("removed", "disabled"))
        directory.set_role("removed", self.organization, None)
        directory.disable_user("disabled")
        expired = directory.create_token(f"{MINE} admin", NOW - 1)[1]
        reader = directory.create_token(f"{MINE} admin", None, read_only=True)[1]
        narrow = directory.create_token(f"{MINE} admin", None, [self.tenants[THEIRS].organization_id])[1]
        self.callers = {
            "none": {},
            "garbage": bearer("garbage"),
            "expired": bearer(expired),
            "removed": bearer(removed),
            "disabled": bearer(disabled),
            "viewer": bearer(tokens["viewer"]),
            "manager": bearer(tokens["manager"]),
            "admin": bearer(tokens["admin"]),
            "admin with a token for reading": bearer(reader),
            "admin with a token for elsewhere": bearer(narrow),
            "another organization's manager": bearer(theirs["manager"]),
            "the cluster secret": {"Secret": SECRET},
            "two tokens": [f"Bearer {tokens['admin']}", f"Bearer {theirs['admin']}"],
        }

    def request(self, method, url, headers, body=None, form=None):
        """``requests`` joins headers of one name; two tokens go over the wire as two lines."""
        prepared = requests.Request(method, url, json=body, data=form).prepare()
        if isinstance(headers, list):
            parts = urlsplit(url)
            connection = HTTPConnection(parts.hostname, parts.port, timeout=30)
            connection.putrequest(method, url[len(f"http://{parts.netloc}") :])
            for value in headers:
                connection.putheader("Authorization", value)
            sent = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body or b""
            connection.putheader("Content-Type", prepared.headers.get("Content-Type", "application/json"))
            connection.putheader("Content-Length", str(len(sent)))
            connection.endheaders(sent)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        prepared.headers.update(headers)
        answer = self.session().send(prepared, timeout=60)
        return answer.status_code, answer.text

    def session(self):
        """This thread's own, which keeps its connections and nothing else of an answer."""
        if not hasattr(self._sessions, "one"):
            session = self._sessions.one = requests.Session()
            session.trust_env = False
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        return self._sessions.one

    def close(self):
        self.threads.shutdown()
        self.stack.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory, prometheus_factory):
    made = World(tmp_path_factory.mktemp("walls"), prometheus_factory)
    yield made
    made.close()


CALLERS = ("none", "garbage", "expired", "removed", "disabled", "viewer", "manager", "admin",
           "admin with a token for reading", "admin with a token for elsewhere", "another organization's manager",
           "the cluster secret", "two tokens")  # fmt: skip
OBJECTS = ("own", "foreign", "deleted", "not a Kubernetes account", "absent")
NOBODY = {"none", "garbage", "expired", "disabled", "the cluster secret", "two tokens"}
ROLES = {
    ("viewer", "own"): Role.VIEWER,
    ("manager", "own"): Role.MANAGER,
    ("admin", "own"): Role.ADMIN,
    ("admin with a token for reading", "own"): Role.ADMIN,
    ("another organization's manager", "foreign"): Role.MANAGER,
}


def expected(caller, thing, path, method):
    """The status that the rules give, and nothing of the code."""
    if caller in NOBODY:
        return {401}
    if path in (SEEN, *WITHOUT_OBJECT):
        return {200}
    role = ROLES.get((caller, thing))
    if role is None:
        return {404}
    if role < needed(path, method) or ("reading" in caller and (method, path) in NEEDS_ADMIN | MANAGER_WRITES):
        return {403}
    # This cluster is asked, and has no agent; and the month that the matrix would close is running.
    return {409} if (method, path) in (PUSH_TOKEN, CLOSE, PAGE_CLOSE, PAGE_PUSH) else {200, 201}


def target(world, path, thing):
    """The path of an object, with what else the operation requires; ids that stand in no path go into the query."""
    organization, cluster, name = world.objects[thing]
    filled = path.format(
        organization_id=organization, cluster_id=cluster, namespace=f"{MINE}-shop", cluster=quote(cluster),
        month="2026-11", budget_id=world.budgets.get(name, ABSENT), alert_id=world.alerts.get(name, ABSENT),
    )  # fmt: skip
    query = dict(WINDOW)
    if path == "/restapi/v2/clean_expenses":
        query["organization_id"] = organization
    elif path.startswith("/api/v1/") and "{cluster}" not in path:
        query["cluster_id"] = cluster
    if path.endswith("/metrics"):
        query["metric"] = "cpu"
    if path in (SEEN, f"{SEEN}/{{organization_id}}", *WITHOUT_OBJECT) or path.startswith(f"{PAGES}/"):
        query = {}
    if path.startswith("/clusters/") and path.endswith(("/arrival", "/push-token", "/unlink")):
        query = {}
    if path.endswith(("/live", "/backfills")):
        query = {name: value for name, value in query.items() if name not in WINDOW}
    if path.endswith(("/chargeback", "/preview")) and not path.endswith("/chargeback/preview"):
        query = {"month": "2026-11"}
    elif path.endswith(("/allocation_rules", "/close")) or path.startswith((BUDGETS, f"{OWNER}/alerts")):
        query = {}
    if path.endswith("monthly"):
        query = {key: value for key, value in query.items() if key.endswith("_id")} | {"months": "1"}
    return filled, query


@pytest.mark.matrix
@pytest.mark.parametrize("thing", OBJECTS)
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(("path", "method", "handler"), REST, ids=REST_IDS)
def test_who_may_what_of_the_rest_api(world, path, method, handler, caller, thing):
    filled, query = target(world, path, thing)
    body = None
    if (method, path) in NEEDS_ADMIN | NEEDS_MANAGER:
        query = {}
    form = FORMS.get((method, path))
    if form is not None and "name" in form:
        form = form | {"name": str(uuid4())}
    if (method, path) in GONE_AFTER and thing == "foreign":
        filled = filled.replace(world.budgets[THEIRS], world.new_budget(world.tenants[THEIRS].organization_id))
    elif (method, path) in GONE_AFTER and thing == "own":
        filled = filled.replace(world.budgets[MINE], world.new_budget(world.organization))
    elif (method == "DELETE" or path.endswith("/unlink")) and thing == "own":
        sacrificed = str(uuid4())
        world.link(world.organization, sacrificed, sacrificed)
        filled = filled.replace(MY_CLUSTER, sacrificed)
        form = {"name": sacrificed} if form is not None else None
    if (method, path) in BODIES:
        body = BODIES[method, path]
    elif method in ("POST", "PATCH") and (method, path) != PUSH_TOKEN and form is None:
        body = {"name": str(uuid4()), "flavour": "push"} if method == "POST" else {}
        if (method, path) == NEW_BUDGET:
            body = {"name": str(uuid4()), "amount": 100.0}
    url = world.running.rest_api_listener.url + filled + ("?" + urlencode(query) if query else "")
    counts = {name: len(one.requests) for name, one in world.simulators.items()}
    status, text = world.request(method, url, world.callers[caller], body, form)
    wanted = expected(caller, thing, path, method)
    assert status in wanted, text[:300]
    if (method == "DELETE" or path.endswith("/unlink")) and thing == "own" and (method, path) not in GONE_AFTER:
        world.directory.delete_cluster(sacrificed)
    if (
        status == 201 and (method, path) != NEW_BUDGET
    ):  # it would be asked about by every later question to the organization
        assert world.directory.delete_cluster(json.loads(text)["cluster_id"])
    if (method, path) == ("POST", f"{PAGES}/clusters") and status == 200:
        for cluster in world.directory.clusters(world.organization):
            if cluster.name == form["name"]:
                world.directory.delete_cluster(cluster.id)
    if status >= 400 and not (form is not None and status == 409):
        assert json.loads(text)["error"]["status_code"] == status
        assert {name: len(one.requests) for name, one in world.simulators.items()} == counts, "an upstream was asked"
    if caller != "another organization's manager":
        nothing_foreign(world, text)
    if status == 404 and thing != "absent":
        # What is another's, deleted or of another kind cannot be told from what was never there.
        absent, query = target(world, path, "absent")
        url = world.running.rest_api_listener.url + absent + ("?" + urlencode(query) if query else "")
        assert world.request(method, url, world.callers[caller], body, form) == (status, text)


def nothing_foreign(world, text):
    theirs = world.tenants[THEIRS]
    for canary in (THEIRS, THEIR_CLUSTER, theirs.organization_id, *theirs.tokens.values(), SECRET):
        assert canary not in text, canary
    assert not re.search(rf"\b{re.escape(str(total_of(world, THEIRS)))}\b", text)


@pytest.mark.matrix
@pytest.mark.parametrize("thing", ("own", "foreign", "absent"))
@pytest.mark.parametrize("form", ("csv", "xlsx"))
@pytest.mark.parametrize(
    "path", sorted({path for path, method, handler in REST if method == "GET" and handler.get.operation.files})
)
def test_files_are_behind_the_same_walls(world, path, form, thing):
    filled, query = target(world, path, thing)
    url = f"{world.running.rest_api_listener.url}{filled}?{urlencode(query | {'format': form})}"
    for caller in ("garbage", "viewer", "admin with a token for elsewhere", "another organization's manager"):
        answer = requests.get(url, headers=world.callers[caller], timeout=60)
        assert answer.status_code in expected(caller, thing, path, "GET"), answer.text[:300]
        if caller != "another organization's manager":
            found = answer.text if form == "csv" or answer.status_code != 200 else sheets_of(answer.content)
            nothing_foreign(world, found)
            assert answer.status_code != 200 or "total_cost" in found or "potential_savings" in found


def sheets_of(body):
    with zipfile.ZipFile(io.BytesIO(body)) as book:
        return "".join(book.read(name).decode() for name in book.namelist())


def total_of(world, name):
    known = getattr(world, "totals", None)
    if known is None:
        known = world.totals = {
            one: truth(made, END - DAY, END, NOW, adjusted=True)["total_cost"] for one, made in world.worlds.items()
        }
    return known[name]


@pytest.mark.matrix
@pytest.mark.parametrize("thing", OBJECTS)
@pytest.mark.parametrize("caller", [name for name in CALLERS if name != "the cluster secret"])
@pytest.mark.parametrize(("path", "method", "handler"), METROCULUS, ids=[f"{m} {p}" for p, m, _ in METROCULUS])
def test_no_token_opens_metroculus(world, path, method, handler, caller, thing):
    _, cluster, _ = world.objects[thing]
    stretch = {"kind": "allocation", "start": END - HOUR, "end": END, "step": "hour"}
    url = world.running.metroculus_listener.url + path.format(cloud_account_id=cluster, backfill_id=cluster, organization_id=cluster,
        month="2026-11", budget_id=cluster, alert_id=cluster, **stretch
    )  # fmt: skip
    headers = {"Secret": "garbage"} if caller == "garbage" else world.callers[caller]
    counts = {name: len(one.requests) for name, one in world.simulators.items()}
    status, text = world.request(method, f"{url}?cloud_account_id={cluster}&{urlencode(WINDOW)}", headers)
    assert status == (403 if caller == "garbage" else 401)
    assert json.loads(text)["error"]["error_code"] == ("OM0005" if caller == "garbage" else "OM0007")
    nothing_foreign(world, text)
    assert {name: len(one.requests) for name, one in world.simulators.items()} == counts


def test_own_figures_are_ones_own_to_the_cent(world):
    for name, prime in ((MINE, MY_PRIME), (THEIRS, THEIR_PRIME)):
        path = f"/restapi/v2/kubecost/clusters/{world.clusters[name]}/costs?{urlencode(WINDOW)}"
        found = ask(world.running, world.tenants[name].tokens["viewer"], path).json()
        assert found["total_cost"] == total_of(world, name) and (found["total_cost"] * 32 / prime).is_integer()


INJECTIONS = sorted(
    {text for group in (bad.PROMQL, bad.METRICS.values(), bad.NAMESPACES.values()) for text in group}
    | {text for text in bad.AGGREGATES.values() if text}
    | {f"label:{THEIRS}", THEIR_CLUSTER, f'"}} or kube_pod_labels{{tenant_id="{THEIR_CLUSTER}', f"{THEIRS}-shop"}
    | {
        f"x' OR account = '{THEIR_CLUSTER}",
        f"x' UNION ALL SELECT * FROM k8s_allocations WHERE account='{THEIR_CLUSTER}",
    }
)


def string_parameters(handler):
    """Everything that an operation takes, ids of its path among it."""
    return [field.encode_name for field in fields(handler.get.operation.query)]


def cases(routes):
    return [
        pytest.param(path, handler, name, id=f"{path} {name}")
        for path, method, handler in routes
        if method == "GET"
        for name in string_parameters(handler)
    ]


def fired(world, base, headers, path, name):
    """Every injection at one parameter: declared outcomes and no foreign byte. How many there were."""
    organization, cluster, _ = world.objects["own"]
    values = {"organization_id": organization, "cluster_id": cluster, "cloud_account_id": cluster, "cluster": cluster,
              "namespace": f"{MINE}-shop", "backfill_id": cluster, "budget_id": world.budgets[MINE], "alert_id": world.alerts[MINE]}  # fmt: skip
    query = {"start_date": str(END - HOUR), "end_date": str(END)}
    if path in ("/clusters/{cluster_id}", "/organizations/{organization_id}"):  # an hour: most of them ask upstream
        query = {"window": f"{END - HOUR},{END}"} if name != "window" else {}
    elif path.endswith(("monthly", "k8s_metadata", "/kubecost/clusters/{cluster_id}")) or re.search(
        "backfill|sources|budgets|alerts|live|arrival", path
    ):
        query = {}
    if "/metroculus/" in path and "{" not in path:
        query["cloud_account_id"] = cluster
    if path == "/restapi/v2/clean_expenses":
        query["organization_id"] = organization
    if path.endswith("/{cluster_id}/metrics"):
        query["metric"] = "cpu"
    if name in ("window", "start_time", "end_time"):
        query = {key: value for key, value in query.items() if key not in ("start_date", "end_date")}

    def fire(text):
        in_path = {key: quote(text if key == name else value, safe="") for key, value in values.items()}
        asked = query if f"{{{name}}}" in path else query | {name: text}
        url = base + path.format(**in_path)
        answer = world.session().get(url, params=asked, headers=headers, timeout=60)
        assert answer.status_code in (200, 400, 404), (answer.status_code, text, answer.text[:300])
        # What the caller wrote may come back to it; every name over the wall is longer than the mark in it.
        shown = answer.text
        for own in (text, text.removeprefix("namespace=")):
            for written in (
                json.dumps(own)[1:-1],
                own,
                quote_plus(own),
                html.escape(own),
                html.escape(quote_plus(own)),
            ):
                shown = shown.replace(written, "")
        nothing_foreign(world, shown)

    # Whoever has the cluster secret may name any account there is: that is its caller's wall, not this one's.
    known = {THEIR_CLUSTER} if "/metroculus/" in path and name == "cloud_account_id" else set()
    texts = [text for text in INJECTIONS if text not in known]
    if name == "filter":
        texts += [f"namespace={text}" for text in texts]
    return len(list(world.threads.map(fire, texts)))


@pytest.mark.injection
@pytest.mark.parametrize(("path", "handler", "name"), cases(REST))
def test_no_text_reaches_over_the_wall_of_the_rest_api(world, record_property, path, handler, name):
    headers = world.callers["admin"]
    record_property("cases", fired(world, world.running.rest_api_listener.url, headers, path, name))


@pytest.mark.injection
@pytest.mark.parametrize(("path", "handler", "name"), cases(METROCULUS))
def test_no_text_reaches_over_the_wall_of_metroculus(world, record_property, path, handler, name):
    record_property("cases", fired(world, world.running.metroculus_listener.url, {"Secret": SECRET}, path, name))


@pytest.mark.injection
@pytest.mark.parametrize("name", [None, *sorted(bad.METRICS)])
def test_series_are_the_accounts_own_whatever_is_asked(world, name):
    """On a real Prometheus with both tenants in it: all metrics, and every text that is no metric."""
    asked = {"cloud_account_id": MY_CLUSTER} | WINDOW | ({} if name is None else {"metrics": bad.METRICS[name]})
    url = f"{world.running.metroculus_listener.url}/metroculus/v2/kubecost_metrics"
    answer = requests.get(url, params=asked, headers={"Secret": SECRET}, timeout=60)
    nothing_foreign(world, answer.text)
    if name is not None:
        assert answer.status_code == 400
        return
    series = [one for many in answer.json()["metrics"].values() for one in many]
    assert series and {one["labels"]["tenant_id"] for one in series} == {MY_CLUSTER}


def test_audit_tells_who_asked_what_and_what_became_of_it(world):
    path = f"/restapi/v2/kubecost/clusters/{THEIR_CLUSTER}/costs"
    links = LINKS.format(organization_id=world.organization)
    asked = {
        "none": ("GET", path, 401),
        "viewer": ("GET", path, 404),
        "manager": ("POST", links, 403),
        "admin": ("POST", links, 201),
        "another organization's manager": ("GET", path, 200),
    }
    for number, (caller, (method, where, status)) in enumerate(asked.items()):
        body = {"name": "audited", "flavour": "push"} if method == "POST" else None
        headers = world.callers[caller] | {"X-Request-ID": f"audited-{number}"}
        assert world.request(method, world.running.rest_api_listener.url + where, headers, body)[0] == status
    log = next(world.stack.folder.rglob("audit.jsonl"))
    assert until(lambda: log.read_text().count("audited-4") == 2), "one line of each service"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = {one["request_id"]: one for one in lines if one["service"] == "rest-api"}
    assert [told[f"audited-{n}"]["status"] for n in range(5)] == [status for _, _, status in asked.values()]
    anonymous, viewer, _, linked, theirs = (told[f"audited-{n}"] for n in range(5))
    assert anonymous["actor"] == {"kind": "anonymous"} and anonymous["error_code"] == "OE0235"
    assert viewer["actor"]["user"] == f"{MINE} viewer" and viewer["actor"]["token_id"]
    assert viewer["objects"] == {"cluster_id": THEIR_CLUSTER} and viewer["address"] == "127.0.0.1"
    assert viewer["operation"] == "ClusterCosts" and viewer["needs"] == "read_costs"
    assert viewer["time"].endswith("+00:00") and viewer["error_code"] == "OE0002"
    assert linked["needs"] == "manage_clusters" and linked["objects"].keys() == {"organization_id", "cluster_id"}
    passed_on = [one for one in lines if one["service"] == "metroculus" and one["request_id"] == "audited-4"]
    assert theirs["error_code"] is None and [one["actor"] for one in passed_on] == [{"kind": "cluster secret"}]
    assert log.stat().st_mode & 0o777 == 0o600
