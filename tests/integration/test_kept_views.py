"""Views that the REST API keeps, and answers of both services that go out without a handler."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from tornado.httputil import HTTPHeaders, RequestStartLine

from rest_api.rest_api_server.auth import REMEMBERED_SECONDS
from rest_api.rest_api_server.controllers.resources import VIEWED_SECONDS
from rest_api.rest_api_server.directory.model import Resources
from rest_api.rest_api_server.kept import EXTENDED_SECONDS, UNSETTLED_SECONDS
from tests.integration.test_cache import COSTS, Counted, later
from tests.support import ACCOUNT, DAY, END, NOW, Metroculus, ask, make_tenant, until

DATES = f"start_date={END - DAY}&end_date={END}"
LINKS = "/restapi/v2/organizations/{}/kubecost/clusters"
FRESH = 300


class Linked:
    """An organization with one cluster, linked through the REST API."""

    def __init__(self, stack, **plan):
        self.stack, self.cluster = stack, Counted(stack)
        self.running = stack.start(**plan)
        self.tenant = make_tenant(self.running, "own")
        self.links = LINKS.format(self.tenant.organization_id)
        body = {"name": "c", "flavour": "kubecost", "url": self.cluster.url}
        self.id = self.ask(self.links, "admin", "POST", json=body).json()["cluster_id"]
        self.costs = f"/restapi/v2/kubecost/clusters/{self.id}/costs?{DATES}"

    def ask(self, path, role="viewer", method="GET", **more):
        return ask(self.running, self.tenant.tokens[role], path, method, **more)

    def later(self, seconds, metroculus=None):
        """The REST API's clock so much on, and Metroculus' own where that is said."""
        self.running.rest_api.answers.clock = lambda: time.monotonic() + seconds
        later(self.running, seconds if metroculus is None else metroculus)


@pytest.fixture
def linked(stack):
    return Linked(stack)


VIEWS = ["costs", "optimization"]
WITH_RESOURCES = ["namespaces", "namespaces/web/workloads", "assets"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_made_once_for_as_long_as_its_parts_are_fresh(linked, view):
    path = f"/restapi/v2/kubecost/clusters/{linked.id}/{view}?{DATES}"
    first = linked.ask(path)
    assert (first.status_code, first.headers["X-Cache"], first.headers["Age"]) == (200, "miss", "0")
    asked, called = linked.cluster.asked, linked.running.metroculus.cache.stats()
    again = linked.ask(path)
    assert again.headers["X-Cache"] == "hit" and again.content == first.content
    assert linked.running.metroculus.cache.stats() == called, "Metroculus is not asked"
    linked.later(FRESH - 20)
    aged = linked.ask(path)
    assert aged.headers["X-Cache"] == "hit" and FRESH - 20 <= int(aged.headers["Age"]) < FRESH
    linked.later(FRESH + 1, metroculus=FRESH - 100)
    still = linked.ask(path)
    assert still.headers["X-Cache"] == "revalidated" and still.content == first.content
    assert FRESH - 100 <= int(still.headers["Age"]) < FRESH - 80, "as old as Metroculus says that its answer is"
    assert linked.cluster.asked == asked, "no upstream is asked"
    linked.later(FRESH + 50, metroculus=FRESH - 51)
    assert linked.ask(path).headers["X-Cache"] == "hit", "fresh for what was left of Metroculus' own time"
    linked.later(3 * FRESH)
    anew = linked.ask(path)
    assert anew.headers["X-Cache"] in ("miss", "revalidated") and linked.cluster.asked > asked


@pytest.mark.parametrize("view", WITH_RESOURCES)
def test_a_view_that_shows_what_a_cluster_is_made_of_is_made_anew_within_a_minute(linked, view):
    directory = linked.running.rest_api.directory
    directory.put_resources(linked.id, Resources(NOW - 500, [quota(4.0)], [], []))
    path = f"/restapi/v2/kubecost/clusters/{linked.id}/{view}?{DATES}"
    first = linked.ask(path)
    assert [linked.ask(path).headers["X-Cache"] for _ in range(2)] == ["hit", "hit"]
    asked = linked.cluster.asked
    assert first.json()["metadata"] == {"status": "ok", "fetched_at": NOW - 500, "age_seconds": 500}
    directory.put_resources(linked.id, Resources(NOW - 100, [quota(8.0)], [], []))
    linked.later(VIEWED_SECONDS + 1, metroculus=0)
    anew = linked.ask(path)
    assert anew.headers["X-Cache"] == "miss" and anew.json()["metadata"]["fetched_at"] == NOW - 100
    assert linked.cluster.asked == asked, "Metroculus has its part still"
    if view == "namespaces":
        (shop,) = [row for row in anew.json()["namespaces"] if row["name"] == "shop"]
        assert [one["hard"] for one in shop["quota"]] == [8.0]


def quota(cores):
    return {"namespace": "shop", "name": "q", "resource": "limits.cpu", "hard": cores, "used": 1.0}


def test_whoever_takes_a_ready_answer_slowly_takes_a_place_of_the_token(linked):
    """A place of the service and of the token, until the answer was taken or its connection is gone."""
    rest = linked.running.rest_api
    gate = rest.resources._gate
    for _ in range(2):
        assert linked.ask(linked.costs).status_code == 200
    answers = linked.running.rest_api_listener.server.answers
    taken = asyncio.Future(loop=linked.stack.thread.loop)

    class Slow:
        context = type("context", (), {"remote_ip": "127.0.0.1"})
        stream = type("stream", (), {"close": staticmethod(lambda: None)})

        def write_headers(self, line, headers, chunk):
            return taken

        def finish(self):
            pass

    asked = HTTPHeaders({
        "Host": linked.running.rest_api_listener.url.partition("//")[2],
        "Authorization": f"Bearer {linked.tenant.tokens['viewer']}",
    })  # fmt: skip
    line = RequestStartLine("GET", linked.costs, "HTTP/1.1")

    async def send():
        answers.find(line, asked, Slow())()
        return rest.service.in_flight, sum(gate._taken.values())

    assert linked.stack.thread.run(send()) == (1, 1)

    async def take():
        taken.set_result(None)
        await asyncio.sleep(0)
        return rest.service.in_flight, sum(gate._taken.values())

    assert linked.stack.thread.run(take()) == (0, 0)


def test_after_a_change_nothing_is_kept_that_another_instance_may_still_tell_of_before(stack, linked):
    second = Counted(stack, 11)
    assert linked.ask(linked.costs).json()["total_cost"] == linked.cluster.true
    linked.ask(f"{linked.links}/{linked.id}", "admin", "PATCH", json={"url": second.url})
    for _ in range(2):
        after = linked.ask(linked.costs)
        assert after.headers["X-Cache"] == "miss" and after.json()["total_cost"] == second.true
    linked.later(UNSETTLED_SECONDS + 1, metroculus=0)
    assert [linked.ask(linked.costs).headers["X-Cache"] for _ in range(2)] == ["miss", "hit"]


def test_a_view_whose_parts_have_changed_is_made_anew(linked):
    assert linked.ask(linked.costs).json()["total_cost"] == linked.cluster.true
    linked.cluster.simulator.world = linked.cluster.world  # the same again is the same
    linked.later(FRESH + EXTENDED_SECONDS + 10)
    assert linked.ask(linked.costs).headers["X-Cache"] == "miss", "too long ago to be asked about"


@pytest.mark.parametrize(
    "change", [{"url": "second"}, {"url": "second", "name": "renamed"}, {"custom_prices": {"gpu_hour": 3.0}}]
)
def test_a_cluster_that_was_changed_meets_no_view_of_before(stack, linked, change):
    second = Counted(stack, 11)
    assert linked.ask(linked.costs).json()["total_cost"] == linked.cluster.true
    assert linked.ask(linked.costs).headers["X-Cache"] == "hit"
    body = {name: second.url if value == "second" else value for name, value in change.items()}
    if "url" not in body:
        body["url"] = linked.cluster.url
    changed = linked.ask(f"{linked.links}/{linked.id}", "admin", "PATCH", json=body)
    assert changed.status_code == 200, changed.text
    after = linked.ask(linked.costs)
    assert after.headers["X-Cache"] == "miss"
    expected = second if "second" in change.values() else linked.cluster
    assert after.json()["total_cost"] == expected.true
    assert after.json()["cluster_name"] == change.get("name", "c")
    assert linked.ask(f"{linked.links}/{linked.id}", "admin", "DELETE").status_code == 200
    assert linked.ask(linked.costs).status_code == 404


def test_what_is_not_whole_is_kept_by_nobody(linked):
    linked.cluster.simulator.habits.fail_with = (503, "down")
    for _ in range(2):
        failed = linked.ask(linked.costs)
        assert failed.status_code in (502, 503)
    linked.cluster.simulator.habits.fail_with = None
    assert until(lambda: linked.ask(linked.costs).status_code == 200)
    whole = linked.ask(linked.costs)
    assert whole.headers["X-Cache"] == "hit" and whole.json()["complete"] is True
    linked.cluster.simulator.habits.fail_with = (503, "down")
    linked.later(3 * FRESH)
    for _ in range(2):
        stale = linked.ask(linked.costs)
        assert stale.headers["X-Cache"] == "miss" and stale.json()["complete"] is False
        assert {source["status"] for source in stale.json()["sources"]} == {"stale"}


def test_fifty_at_once_are_one_view(linked):
    with ThreadPoolExecutor(25) as threads:
        answers = list(threads.map(lambda _: linked.ask(linked.costs), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert linked.running.metroculus.cache.stats().misses == 1


def test_views_are_told_apart_by_all_that_is_asked(linked):
    base = f"/restapi/v2/kubecost/clusters/{linked.id}/costs"
    asked = [
        f"{base}?{DATES}",
        f"{base}?{DATES}&aggregate=pod",
        f"{base}?{DATES}&limit=1",
        f"{base}?{DATES}&limit=1&order=asc",
        f"{base}?{DATES}&idle=share",
        f"{base}?start_date={END - DAY}&end_date={END - 3600}",
        f"{base}?{DATES}&step=day",
    ]
    first = [linked.ask(path) for path in asked]
    assert {answer.status_code for answer in first} == {200}
    again = [linked.ask(path) for path in reversed(asked)][::-1]
    assert [answer.content for answer in again] == [answer.content for answer in first]
    assert {answer.headers["X-Cache"] for answer in again} == {"hit"}
    assert len({answer.content for answer in first}) == len(asked)


def plain(answer):
    """An answer without what differs from one request to the next."""
    ignored = {"date", "x-request-id", "x-cache", "age", "cache-control"}
    return answer.status_code, answer.content, {k: v for k, v in answer.headers.items() if k.lower() not in ignored}


ASKING = {
    "plain": {},
    "packed": {"Accept-Encoding": "gzip"},
    "not packed": {"Accept-Encoding": "gzip;q=0"},
    "anything": {"Accept-Encoding": "*"},
    "an id": {"X-Request-ID": "my-id"},
    "another tag": {"If-None-Match": '"other"'},
}


@pytest.mark.parametrize("headers", ASKING.values(), ids=ASKING)
@pytest.mark.parametrize("service", ["metroculus", "rest-api"])
def test_a_ready_answer_is_what_a_handler_would_send(stack, linked, service, headers):
    if service == "metroculus":
        url = f"{linked.running.metroculus_listener.url}/metroculus/v2/kubecost_cluster_costs"
        url += "?" + "&".join(f"{k}={v}" for k, v in (COSTS | {"cloud_account_id": linked.id}).items())
        known = {"Secret": linked.running.rest_api.metroculus.client.secret}
    else:
        url = linked.running.rest_api_listener.url + linked.costs
        known = {"Authorization": f"Bearer {linked.tenant.tokens['viewer']}"}
    named = {"Accept-Encoding": "identity"} | known | headers

    def fetched(method="GET", **more):
        answer = requests.request(method, url, headers=named | more, timeout=20, stream=True)
        answer._content = answer.raw.read(decode_content=False)
        return answer

    by_handler, ready = fetched(), fetched()
    assert ready.headers["X-Cache"] == "hit" and plain(ready) == plain(by_handler)
    if headers.get("Accept-Encoding") in ("gzip", "*"):
        assert ready.headers["Content-Encoding"] == "gzip" and ready.headers["ETag"].startswith('W/"')
        assert json.loads(gzip.decompress(ready.content))["total_cost"] == linked.cluster.true
    else:
        assert "Content-Encoding" not in ready.headers and ready.headers["ETag"].startswith('"')
    assert ready.headers["X-Request-ID"] == headers.get("X-Request-ID", ready.headers["X-Request-ID"])
    head = fetched("HEAD")
    assert head.content == b"" and head.headers["Content-Length"] == ready.headers["Content-Length"]
    unchanged = fetched(**{"If-None-Match": ready.headers["ETag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["ETag"] == ready.headers["ETag"] and "Content-Type" not in unchanged.headers
    file = next(stack.folder.rglob("audit.jsonl"))
    ids = {ready.headers["X-Request-ID"], head.headers["X-Request-ID"], unchanged.headers["X-Request-ID"]}
    assert until(lambda: ids <= {json.loads(line)["request_id"] for line in file.read_text().splitlines()})


def test_a_ready_answer_is_for_nobody_whom_a_handler_would_refuse(linked):
    stranger = make_tenant(linked.running, "foreign")
    directory = linked.running.rest_api.directory
    metroculus = Metroculus(linked.running)
    asked = COSTS | {"cloud_account_id": linked.id}
    url = f"{metroculus.url}/metroculus/v2/kubecost_cluster_costs"
    for _ in range(3):
        assert linked.ask(linked.costs).status_code == 200
        assert metroculus.get("kubecost_cluster_costs", **asked).status_code == 200
    for token, status in [(stranger.tokens["admin"], 404), ("x" * 43, 401), (None, 401)]:
        refused = ask(linked.running, token, linked.costs)
        assert refused.status_code == status and "X-Cache" not in refused.headers
    for secrets in ({}, {"Secret": "wrong"}):
        assert requests.get(url, params=asked, headers=secrets, timeout=20).status_code in (401, 403)
    body = linked.ask(linked.costs, data=b"{}")
    assert body.status_code == 400, "a body is refused where none is taken"
    assert linked.ask(linked.costs, method="POST").status_code == 405
    expired = directory.create_token("own viewer", None)
    assert ask(linked.running, expired[1], linked.costs).headers["X-Cache"] == "hit"
    directory.revoke_token(expired[0])
    began = time.monotonic()
    assert until(lambda: ask(linked.running, expired[1], linked.costs).status_code == 401)
    assert time.monotonic() - began < REMEMBERED_SECONDS + 1
    assert linked.ask(linked.costs).status_code == 200


def test_what_is_kept_has_a_bound(stack):
    linked = Linked(stack)
    answers = linked.running.rest_api.answers
    for number in range(40):
        assert linked.ask(f"{linked.costs}&limit={number + 1}").status_code == 200
    assert answers.figures()[1] == 40
    told = requests.get(f"{linked.running.rest_api_listener.url}/metrics", timeout=10).text
    assert "rest_api_kept_views 40.0" in told and 'rest_api_views_total{state="miss"} 40.0' in told


def test_the_older_paths_keep_their_views_too(linked):
    for path in (f"/api/v1/cost/namespaces?{DATES}", f"/api/v1/costs/kubernetes/c?{DATES}"):
        first, again = linked.ask(path), linked.ask(path)
        assert (first.headers["X-Cache"], again.headers["X-Cache"]) == ("miss", "hit")
        assert again.content == first.content
    named = f"/api/v1/cost/pods?cluster_id={linked.id}&{DATES}"
    assert [linked.ask(named).headers["X-Cache"] for _ in range(3)] == ["miss", "hit", "hit"]
    assert linked.id != ACCOUNT
