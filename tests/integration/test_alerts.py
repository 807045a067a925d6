"""Alerts from what is stored to who is told: a real Alertmanager, a webhook that checks signatures, kills between."""

from __future__ import annotations

import hmac
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import msgspec
import pytest
import requests

from metroculus.config import AlertConfig
from metroculus.metroculus_api.controllers.alerts import HISTORY
from metroculus.metroculus_worker import notify
from metroculus.metroculus_worker.tasks import Task, TaskResult
from metroculus.sources.registry.protocol import Credentials
from metroculus.storage.engine import StoreError
from metroculus.storage.inbox import PushedAnswer
from metroculus.watch.alerts import Alert
from simulator.server import Habits
from simulator.world import make_world
from tests.conftest import free_port, need, wait_until_ready
from tests.organizations import NOVEMBER, Organization, row
from tests.support import BIN, END, NOW, SECRET, until
from tools.window import DAY, HOUR, iso

pytestmark = pytest.mark.watch

KILLS = int(os.environ.get("ALERT_KILLS", "3"))
WEBHOOK_SECRET = "a-webhook-secret"
ROWS = [row("web", 0.75), row("batch", 0.25)]


def calm(body):
    """Nothing happens while a post is held."""


class Webhook:
    """Takes posts, checks their signatures, and does what it is told to with them."""

    def __init__(self, port=0):
        self.taken, self.status, self.before_answer = [], 200, calm
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.check(self.headers, body)
                outer.taken.append(json.loads(body))
                outer.before_answer(outer.taken[-1])
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?key=of-the-url"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def check(self, headers, body):
        told = dict(part.split("=", 1) for part in headers["X-Metroculus-Signature"].split(","))
        signed = hmac.new(WEBHOOK_SECRET.encode(), f"{told['t']}.".encode() + body, sha256).hexdigest()
        assert hmac.compare_digest(signed, told["v1"])
        assert headers["Idempotency-Key"] == json.loads(body)["idempotency_key"]

    @property
    def events(self):
        return [(one["kind"], one["event"]) for one in self.taken]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def webhook():
    made = Webhook()
    yield made
    made.close()


class Acme(Organization):
    """Two clusters with a steady week and a day, and a clock that is moved by hand."""

    october = range(NOVEMBER - HOUR, NOVEMBER, HOUR)

    def __init__(self, stack, **alerts):
        self.now = NOW
        stack.plan["clock"] = lambda: self.now
        stack.plan["alerts"] = AlertConfig(**alerts)
        super().__init__(stack)
        self.worker = self.running.worker
        self.stack.thread.run(self.running.rest_api.organizations.tell())
        self.extracted(self.ids[0], succeeded=1)

    def build(self):
        super().build()
        for account in self.ids:
            self.store(account, ROWS, range(END - 8 * DAY, END, HOUR))

    def round(self):
        self.stack.thread.run(self.worker.alerts.evaluate())
        self.stack.thread.run(self.worker.notifier.deliver())

    def go_on(self, hours, rows=ROWS, accounts=None):
        """Time passes, and is stored."""
        end = self.now - self.now % HOUR
        for account in self.ids if accounts is None else accounts:
            self.store(account, rows, range(end, end + hours * HOUR, HOUR))
        self.now += hours * HOUR

    def extracted(self, account, failed=0, succeeded=0):
        for n in range(failed + succeeded):
            result = TaskResult(
                task=Task(kind="extract", account=account), finished_at=self.now, failure="no" if n < failed else None
            )
            self.stack.thread.call(self.worker.worker.record, result)

    def alerts(self, **query):
        answer = self.call("GET", "alerts", role="viewer", **query)
        assert answer.status_code == 200, answer.text
        return answer.json()["alerts"]

    def firing(self):
        return {(one["kind"], one["cloud_account_id"] or one["budget_id"]) for one in self.alerts(state="firing")}


@pytest.fixture
def acme(stack):
    return Acme(stack)


def test_a_spike_of_sixty_percent_is_told_within_the_hour_with_its_cause(acme):
    first, second = acme.ids
    acme.round()
    assert acme.alerts() == []
    acme.go_on(1, [row("web", 1.35), row("batch", 0.25)], [first])
    acme.store(second, ROWS, [acme.now - acme.now % HOUR - HOUR])
    acme.round()
    (alert,) = acme.alerts()
    assert (alert["kind"], alert["cloud_account_id"], alert["state"]) == ("cost_spike", first, "firing")
    assert [one["namespace"] for one in alert["causes"]] == ["web"] and alert["causes"][0]["rise"] == pytest.approx(0.6)
    assert alert["figures"]["hour"] == iso(END) and alert["unknown_since"] is None
    acme.go_on(23)
    acme.round()
    assert acme.firing() == {("cost_spike", first)}
    acme.go_on(1)
    acme.round()
    (alert,) = acme.alerts()
    assert alert["state"] == "resolved" and alert["resolved_because"] == "a day without a spike"
    assert [one["state"] for one in alert["history"]] == ["resolved", "firing"]


def test_what_is_missing_late_or_partial_neither_fires_nor_clears(acme):
    first, second = acme.ids
    acme.go_on(1, [row("web", 1.6), row("batch", 0.25)], [first])
    acme.store(second, [row("web", 9.0)], [END], unknown=("cpu",))
    acme.round()
    assert acme.firing() == {("cost_spike", first)}  # the other's hour is not all known
    acme.now += 26 * HOUR  # nothing is stored of them
    acme.round()
    (alert,) = [one for one in acme.alerts() if one["kind"] == "cost_spike"]
    assert alert["state"] == "firing" and alert["unknown_since"] is not None
    acme.now -= 26 * HOUR
    acme.go_on(26)
    acme.round()
    (alert,) = [one for one in acme.alerts() if one["kind"] == "cost_spike"]
    assert alert["state"] == "resolved"


def test_a_budget_fires_once_a_period_and_again_where_its_amount_is_another(acme):
    spent = 2 * 8 * 24 * 1.0625
    made = acme.call("POST", "budgets", {
        "name": "<b>all</b>", "amount": spent * 1.5, "thresholds": [{"percent": 50}, {"percent": 100, "on": "forecast"}]
    }).json()  # fmt: skip
    acme.round()
    fired = acme.alerts()
    assert {(one["kind"], one["state"], one["figures"]["on"]) for one in fired} == {
        ("budget", "firing", "actual"), ("budget", "firing", "forecast")}  # fmt: skip
    assert all(one["budget_id"] == made["id"] for one in fired)
    acme.round()
    assert acme.alerts() == fired
    acme.call("PATCH", f"budgets/{made['id']}", {"amount": spent * 10})
    acme.round()
    assert acme.firing() == set()
    acme.call("PATCH", f"budgets/{made['id']}", {"amount": spent})
    acme.round()
    assert len(acme.firing()) == 1 and {one["state"] for one in acme.alerts()} == {"firing"}
    acme.go_on(11 * 24)  # December
    acme.round()
    assert {(one["state"], one["resolved_because"][:12]) for one in acme.alerts()} == {("resolved", "a new period")}
    assert acme.call("DELETE", f"budgets/{made['id']}").status_code == 200
    acme.round()
    assert {one["state"] for one in acme.alerts()} == {"resolved"}


def test_a_budget_that_is_removed_or_over_by_what_is_known_is_told(acme):
    acme.store(acme.ids[0], ROWS, [END - HOUR], unknown=("cpu",))
    made = acme.call("POST", "budgets", {"name": "x", "amount": 1.0, "thresholds": [{"percent": 100}]}).json()
    acme.round()
    assert acme.firing() == {("budget", made["id"])}
    acme.call("DELETE", f"budgets/{made['id']}")
    acme.round()
    (alert,) = acme.alerts()
    assert alert["state"] == "resolved" and "does not exist any more" in alert["resolved_because"]


def test_a_cluster_that_is_not_extracted_any_more_is_told_and_one_that_was_not_tried_is_not(acme):
    first = acme.ids[0]
    acme.now = END + 4 * HOUR + 1
    acme.extracted(first, failed=2, succeeded=1)
    acme.round()
    assert acme.firing() == {("data_stale", first), ("extraction_failing", first)}
    acme.store(first, ROWS, range(END, END + 4 * HOUR, HOUR))
    acme.now += HOUR
    acme.extracted(first, succeeded=3)
    acme.round()
    assert acme.firing() == set()
    acme.running.rest_api.directory.delete_cluster(first)
    acme.now += 5 * HOUR
    acme.stack.thread.run(acme.running.rest_api.organizations.tell())
    acme.extracted(first, failed=5)
    acme.round()
    assert acme.firing() == set()


def test_a_store_that_is_away_fires_nothing_and_resolves_nothing(acme, monkeypatch):
    acme.now = END + 5 * HOUR
    acme.extracted(acme.ids[0], succeeded=1)
    acme.round()
    before = acme.alerts()
    assert acme.firing() == {("data_stale", acme.ids[0])}
    store = acme.running.metroculus.dependencies.store

    def away(*args):
        raise StoreError("away")

    with monkeypatch.context() as patched:
        patched.setattr(store.ledger, "newest_hours", away)
        acme.now += HOUR
        acme.round()
    assert acme.alerts() == before


def test_the_store_that_runs_full_is_the_operators_alert(stack, webhook):
    acme = Acme(stack, store_bytes=1, webhook_url=webhook.url, webhook_secret=WEBHOOK_SECRET)
    acme.round()
    assert acme.alerts() == [] and webhook.events == [("store_capacity", "fired")]
    url = f"{acme.running.metroculus_listener.url}/metroculus/v2/alerts/00000000-0000-0000-0000-000000000000"
    (alert,) = requests.get(url, headers={"Secret": SECRET}, timeout=20).json()["alerts"]
    assert alert["kind"] == "store_capacity" and alert["figures"]["share"] > 1


def test_who_has_seen_an_alert_is_told(acme):
    acme.call("POST", "budgets", {"name": "x", "amount": 1.0, "thresholds": [{"percent": 100}]})
    acme.round()
    (alert,) = acme.alerts()
    path = f"alerts/{alert['id']}/ack"
    assert acme.call("POST", path, {}, role="viewer").status_code == 403
    assert acme.call("POST", path, {"note": "x" * 1001}).status_code == 400
    seen = acme.call("POST", path, {"note": "we know"}).json()
    assert seen["acknowledged_by"] == "acme manager" and seen["note"] == "we know" and seen["state"] == "firing"
    assert [one["state"] for one in seen["history"]] == ["acknowledged", "firing"]
    acme.round()
    assert acme.alerts()[0] == seen
    assert acme.call("POST", "alerts/00000000-0000-4000-8000-000000000000/ack", {}).status_code == 404
    theirs = requests.post(
        f"{acme.running.rest_api_listener.url}/restapi/v2/organizations/{acme.other.organization_id}/kubecost/{path}",
        json={}, headers={"Authorization": f"Bearer {acme.other.tokens['admin']}"}, timeout=20,
    )  # fmt: skip
    assert theirs.status_code == 404
    acme.call("DELETE", f"budgets/{alert['budget_id']}")
    acme.round()
    assert acme.call("POST", path, {}).status_code == 409


def test_a_webhook_is_told_each_transition_in_order_and_owed_it_while_it_is_away(stack, webhook):
    acme = Acme(stack, webhook_url=webhook.url, webhook_secret=WEBHOOK_SECRET, public_url="https://costs.example")
    webhook.status = 500
    made = acme.call("POST", "budgets", {"name": "x", "amount": 1.0, "thresholds": [{"percent": 100}]}).json()
    acme.round()
    acme.call("PATCH", f"budgets/{made['id']}", {"amount": 2.0})
    acme.round()
    acme.round()
    assert webhook.events == [("budget", "fired")]  # refused once, and not tried again at once
    webhook.status, webhook.taken = 204, []
    acme.now += 600
    acme.round()
    assert webhook.events == [("budget", "fired"), ("budget", "resolved"), ("budget", "fired")]
    assert len({one["idempotency_key"] for one in webhook.taken}) == 3
    assert webhook.taken[0]["figures"]["amount"] == 1.0 and webhook.taken[2]["figures"]["amount"] == 2.0
    assert webhook.taken[0]["link"].endswith(f"/kubecost/budgets/{made['id']}")
    acme.round()
    assert len(webhook.taken) == 3


def test_one_that_hangs_holds_up_no_round(stack, webhook, monkeypatch):
    monkeypatch.setattr(notify, "CALL_SECONDS", 0.3)
    acme = Acme(stack, webhook_url=webhook.url, webhook_secret=WEBHOOK_SECRET)
    released = threading.Event()
    webhook.before_answer = lambda body: released.wait(10)
    acme.call("POST", "budgets", {"name": "x", "amount": 1.0, "thresholds": [{"percent": 100}]})
    began = time.monotonic()
    acme.round()
    assert time.monotonic() - began < 5
    acme.now += 600
    released.set()
    acme.round()
    assert len(webhook.taken) == 2 and len({one["idempotency_key"] for one in webhook.taken}) == 1


class Alertmanager:
    def __init__(self, folder):
        need("prometheus-alertmanager", package="prometheus-alertmanager")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "alertmanager.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
        self.command = [
            shutil.which("prometheus-alertmanager"), f"--config.file={folder / 'alertmanager.yml'}",
            f"--storage.path={folder / 'alertmanager'}", f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]  # fmt: skip
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until_ready(f"{self.url}/-/ready", self.process, 30)

    def alerts(self, **query):
        found = requests.get(f"{self.url}/api/v2/alerts", params=query, timeout=20)
        assert found.ok, found.text
        return found.json()

    def close(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)


@pytest.fixture
def alertmanager(tmp_path):
    made = Alertmanager(tmp_path)
    yield made
    made.close()


def test_a_real_alertmanager_has_each_alert_once_under_one_fingerprint(stack, alertmanager):
    acme = Acme(stack, alertmanager_url=alertmanager.url, public_url="https://costs.example")
    acme.now = int(time.time()) - 3 * HOUR  # it goes by its own clock, which must not be behind
    name = '<script>"} \n{{ .Labels }}'.replace("\n", " ")
    made = acme.call("POST", "budgets", {"name": name, "amount": 0.01, "period": "year"}).json()
    acme.round()
    told = [one for one in alertmanager.alerts() if one["labels"]["kind"] == "budget"]
    assert {one["labels"]["alertname"] for one in told} == {"KubecostBudget"} and len(told) == 3
    assert all(one["labels"]["organization_id"] == acme.tenant.organization_id for one in told)
    assert not any("script" in text for one in told for text in one["labels"].values())
    assert json.loads(told[0]["annotations"]["name"]) == name
    assert told[0]["generatorURL"].startswith("https://costs.example/restapi/v2/organizations/")
    acme.now += 120
    acme.round()
    again = [one for one in alertmanager.alerts() if one["labels"]["kind"] == "budget"]
    assert {one["fingerprint"] for one in again} == {one["fingerprint"] for one in told}
    assert all(one["status"]["state"] == "active" for one in again)

    alertmanager.close()  # while it is away one is resolved
    acme.call("PATCH", f"budgets/{made['id']}", {"amount": 1e9})
    acme.now += 120
    acme.round()
    alertmanager.start()
    acme.now += 600
    acme.round()
    assert until(lambda: not [one for one in alertmanager.alerts() if one["labels"]["kind"] == "budget"], 20)


def test_an_alert_that_a_clock_ahead_fired_is_resolved_and_one_that_is_refused_holds_up_no_other(stack, alertmanager):
    acme = Acme(stack, alertmanager_url=alertmanager.url)
    real = int(time.time())
    acme.now = real + 3 * HOUR
    made = [acme.call("POST", "budgets", {"name": f"b{n}", "amount": 0.01, "period": "year"}).json() for n in range(3)]
    acme.round()
    acme.now = real
    acme.call("DELETE", f"budgets/{made[0]['id']}")
    acme.round()
    of_budgets = {one["labels"]["budget_id"] for one in alertmanager.alerts() if one["labels"]["kind"] == "budget"}
    assert of_budgets == {one["id"] for one in made[1:]}
    odd = Alert(id=str(uuid4()), kind="drift", subject="x", state="firing", transition=1, key="k", changed_at=real,
                fired_at=real, summary="x", cloud_account_id="not\ud800utf".encode("utf-8", "surrogatepass").decode("latin-1") * 4000,
                owed=("alertmanager",))  # fmt: skip
    documents = acme.running.metroculus.dependencies.store.documents
    documents.put(acme.tenant.organization_id, "alert", odd.id, msgspec.json.encode(odd).decode())
    acme.call("POST", "budgets", {"name": "after it", "amount": 0.01, "period": "year"})
    acme.now += 120
    acme.round()
    assert len([one for one in alertmanager.alerts() if one["labels"]["kind"] == "budget"]) == 3 * 3


def test_alerts_that_are_owed_together_are_sent_once_each(stack, webhook):
    acme = Acme(stack, webhook_url=webhook.url, webhook_secret=WEBHOOK_SECRET)
    for number in range(6):
        acme.call("POST", "budgets", {"name": f"b{number}", "amount": 1.0, "thresholds": [{"percent": 100}]})
    acme.round()
    assert len(webhook.taken) == 6 and len({one["alert_id"] for one in webhook.taken}) == 6
    acme.round()
    assert len(webhook.taken) == 6


def test_one_that_is_refused_holds_up_no_other_and_one_that_leads_no_more_sends_nothing(stack, webhook):
    acme = Acme(stack, webhook_url=webhook.url, webhook_secret=WEBHOOK_SECRET)
    refused = acme.call("POST", "budgets", {"name": "a", "amount": 1.0, "thresholds": [{"percent": 100}]}).json()
    for number in range(4):
        acme.call("POST", "budgets", {"name": f"b{number}", "amount": 1.0, "thresholds": [{"percent": 100}]})

    def refuse(body):
        webhook.status = 400 if body["budget_id"] == refused["id"] else 200

    webhook.before_answer = refuse
    stack.thread.run(acme.worker.alerts.evaluate())
    acme.worker.alerts.active = False
    stack.thread.run(acme.worker.notifier.deliver())
    assert webhook.taken == []
    acme.worker.alerts.active = True
    acme.round()
    acme.now += 3600
    acme.round()
    taken = [one["budget_id"] for one in webhook.taken]
    assert len(set(taken)) == 5 and len(taken) == 6 and taken.count(refused["id"]) == 2


def test_budgets_of_one_organization_that_cannot_be_read_leave_the_others_alone(acme, monkeypatch):
    theirs = acme.other.organization_id
    base = f"{acme.running.metroculus_listener.url}/metroculus/v2/budgets"
    for organization in (acme.tenant.organization_id, theirs):
        body = {"name": "b", "amount": 1.0, "period": "year", "thresholds": [{"percent": 100}]}
        assert requests.post(f"{base}/{organization}", json=body, headers={"Secret": SECRET}, timeout=20).ok
    acme.extracted(acme.foreign, succeeded=1)
    states = acme.worker.alerts._budgets.states

    async def failing(organization, *args):
        if organization == acme.tenant.organization_id:
            raise StoreError("it took too long")
        return await states(organization, *args)

    monkeypatch.setattr(acme.worker.alerts._budgets, "states", failing)
    acme.go_on(1, [row("web", 1.35), row("batch", 0.25)], acme.ids)
    acme.round()
    assert {kind for kind, _ in acme.firing()} == {"cost_spike"}
    url = f"{acme.running.metroculus_listener.url}/metroculus/v2/alerts/{theirs}"
    told = requests.get(url, headers={"Secret": SECRET}, timeout=20).json()["alerts"]
    assert [one["kind"] for one in told] == ["budget"]


def test_a_second_spike_is_told_with_its_own_cause(acme):
    first = acme.ids[0]
    acme.go_on(1, [row("web", 1.35), row("batch", 0.25)], [first])
    acme.round()
    acme.go_on(10, accounts=[first])
    acme.go_on(1, [row("web", 0.75), row("batch", 50.0)], [first])
    acme.round()
    acme.round()
    (alert,) = [one for one in acme.alerts() if one["cloud_account_id"] == first and one["kind"] == "cost_spike"]
    assert (alert["state"], alert["causes"][0]["namespace"]) == ("firing", "batch")
    assert [one["state"] for one in alert["history"]] == ["firing", "resolved", "firing"]
    assert alert["history"][1]["resolved_because"] == "another spike came"


def test_hours_that_were_cut_out_of_days_are_no_like_of_office_hours(acme):
    first = acme.ids[0]
    for day in range(END - 8 * DAY, END, DAY):
        cut = {"told_from": day, "told_until": day + DAY}
        acme.store(first, [row("web", 1.0)], range(day, day + DAY, HOUR), **cut)
    for hour in range(24):
        acme.go_on(1, [row("web", 2.2 if 9 <= hour < 17 else 0.4)], [first])
    acme.round()
    assert ("cost_spike", first) not in acme.firing()


def test_a_cluster_that_pushes_no_more_is_silent_no_more(acme):
    first, registry = acme.ids[0], acme.running.metroculus.dependencies.registry
    store = acme.running.metroculus.dependencies.store
    answer = PushedAnswer(
        account=first, first=END - HOUR, last=END, kind="allocation", step="hour", answer=1, asked_at=acme.now,
        received_at=acme.now, digest="d", pieces=1, bytes=1, form="", told=(END - HOUR,), currency="USD",
    )  # fmt: skip
    store.inbox.put(answer, b"x")
    acme.go_on(3)
    acme.round()
    assert ("push_silent", first) in acme.firing()
    acme.stack.thread.run(registry.put(first, "opencost", "http://127.0.0.1:1", Credentials()))
    acme.round()
    assert ("push_silent", first) not in acme.firing()


class Killed:
    """Metroculus and its worker as a process that is killed, over one folder."""

    organization, account = "00000000-0000-4000-8000-00000000abcd", "00000000-0000-4000-8000-0000000000a1"

    def __init__(self, folder, webhook_url):
        port, worker = free_port(), free_port()
        self.folder, self.base = folder, f"http://127.0.0.1:{port}"
        self.worker = f"http://127.0.0.1:{worker}"
        self.environment = {k: v for k, v in os.environ.items() if k not in ("CLUSTER_SECRET", "CONFIG_URL")} | {
            "CLUSTER_SECRET": SECRET, "DATA_DIR": str(folder / "data"), "METROCULUS_LISTEN": f"127.0.0.1:{port}",
            "WORKER_LISTEN": f"127.0.0.1:{worker}", "ALERT_WEBHOOK_URL": webhook_url, "STORE_BYTES": "900TiB",
            "ALERT_WEBHOOK_SECRET": WEBHOOK_SECRET, "LOG_LEVEL": "error", "UPSTREAM_ALLOW": "127.0.0.0/8",
        }  # fmt: skip
        self.start()

    def start(self):
        command = [str(BIN / "metroculus"), "serve", "--worker"]
        self.process = subprocess.Popen(command, cwd=self.folder, env=self.environment)
        wait_until_ready(f"{self.base}/healthz", self.process, 60)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def ask(self, method, path, body=None):
        url = f"{self.base}/metroculus/v2/{path}"
        answer = requests.request(method, url, json=body, headers={"Secret": SECRET}, timeout=30)
        assert answer.ok, answer.text
        return answer.json()

    def owes_nothing(self):
        """Whether all that was sent is noted, as the worker says."""
        lines = requests.get(f"{self.worker}/metrics", timeout=20).text.splitlines()
        owed = [line.rpartition(" ")[2] for line in lines if line.startswith("metroculus_alerts_owed{")]
        return bool(owed) and not any(map(float, owed))

    def fill(self, url):
        """Some hours of a cluster, so that something is spent."""
        self.ask("PUT", f"kubecost_sources/{self.account}", {"flavour": "opencost", "url": url})
        self.ask("PUT", f"organizations/{self.organization}", {"cloud_account_ids": [self.account]})
        end = int(time.time()) // HOUR * HOUR - 2 * HOUR
        body = {"cloud_account_id": self.account, "start_date": end - 3 * HOUR, "end_date": end}
        job = self.ask("POST", "backfills", body)["id"]
        assert until(lambda: self.ask("GET", f"backfills/{job}")["state"] == "done", 60)


def test_every_transition_is_sent_through_kills_and_doubles_are_no_more_than_those(stack, tmp_path, webhook):
    """The worker is killed while the webhook holds its post: between sending and noting."""
    world = make_world(seed=5, days=2, end=int(time.time()) // HOUR * HOUR)
    _, url = stack.simulate(world, Habits(serves=frozenset({"opencost"})), time.time)
    run = Killed(tmp_path, webhook.url)
    rng, kills = random.Random(7), 0
    run.fill(url)
    body = {"name": "b", "amount": 0.01, "period": "year", "thresholds": [{"percent": 100}]}
    budget = run.ask("POST", f"budgets/{run.organization}", body)["id"]
    for number in range(KILLS):
        struck = threading.Event()
        strikes = rng.random() < 0.7
        kills += strikes

        def strike(body, struck=struck):
            if not struck.is_set():
                run.process.send_signal(signal.SIGKILL)
                struck.set()

        assert until(run.owes_nothing, 60), "or this kill were one between sending and noting, too"
        run.ask("PATCH", f"budgets/{run.organization}/{budget}", {"amount": 0.01 + 0.001 * (number + 2)})
        run.kill()
        before = len(webhook.taken)
        if strikes:
            webhook.before_answer = strike
        run.start()  # what starts evaluates at once
        assert until(lambda before=before: len(webhook.taken) > before, 60)
        if strikes:
            assert until(struck.is_set, 20)
            webhook.before_answer = calm
            run.kill()
            run.start()

    def told():
        (alert,) = run.ask("GET", f"alerts/{run.organization}")["alerts"]
        return {one["key"] for one in alert["history"]}

    def taken():
        return set(list(dict.fromkeys(one["idempotency_key"] for one in webhook.taken))[-HISTORY:])

    assert until(lambda: told() == taken(), 30)
    order = [one["transition"] for one in webhook.taken]
    doubles = len(order) - len(set(order))
    assert order == sorted(order) and set(order) == set(range(1, max(order) + 1)) and max(order) >= KILLS
    assert doubles <= kills
    print(f"{len(set(order))} transitions through {kills} kills between sending and noting: {doubles} doubles")
    run.process.terminate()
    assert run.process.wait(40) == 0
