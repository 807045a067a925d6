"""The cache of answers over HTTP: what callers see of it, what upstreams do not, and the walls within it."""

from __future__ import annotations

import gzip
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from metroculus.metroculus_api import cache
from optscale_client.metroculus_client import Client
from rest_api.rest_api_server.auth import REMEMBERED_SECONDS
from simulator.costs import truth
from simulator.server import Habits
from tests.support import (
    ACCOUNT,
    DAY,
    END,
    NOW,
    SECRET,
    Answer,
    FakeUpstream,
    Metroculus,
    ask,
    exact_world,
    make_tenant,
    until,
)

OTHER = ACCOUNT.replace("5", "6")
WINDOW = {"start_date": END - DAY, "end_date": END}
COSTS = {"cloud_account_id": ACCOUNT, "detail_level": "namespace", **WINDOW}


class Counted:
    """A simulated cluster, and how often it was asked."""

    def __init__(self, stack, prime=7):
        self.world = exact_world(prime, days=1)
        self.simulator, self.url = stack.simulate(self.world, Habits(serves=frozenset({"kubecost"})))
        self.true = truth(self.world, now=NOW, adjusted=True)["total_cost"]

    @property
    def asked(self):
        return self.simulator.asked.total()


def link(running, account, url):
    running.rest_api.metroculus.client.put_kubecost_source(account, "kubecost", url)


def later(running, seconds):
    """The cache's clock so much on."""
    running.metroculus.cache.clock = lambda: time.monotonic() + seconds


@pytest.fixture
def linked(stack):
    running, cluster = stack.start(), Counted(stack)
    link(running, ACCOUNT, cluster.url)
    return running, cluster, Metroculus(running)


VIEWS = {
    "kubecost_cluster_costs": COSTS,
    "kubecost_savings": {"cloud_account_id": ACCOUNT, **WINDOW},
    "kubecost_assets": {"cloud_account_id": ACCOUNT, **WINDOW},
}


@pytest.mark.parametrize("view", VIEWS)
def test_what_was_answered_is_answered_again_without_asking_and_says_its_age(linked, view):
    running, cluster, metroculus = linked
    first = metroculus.get(view, **VIEWS[view])
    assert (first.status_code, first.headers["X-Cache"], first.headers["Age"]) == (200, "miss", "0")
    asked = cluster.asked
    later(running, 100)
    again = metroculus.get(view, **VIEWS[view])
    assert again.headers["X-Cache"] == "hit" and 100 <= int(again.headers["Age"]) <= 110
    assert again.content == first.content and again.headers["ETag"] == first.headers["ETag"]
    assert cluster.asked == asked
    later(running, 3 * 300)
    anew = metroculus.get(view, **VIEWS[view])
    assert anew.headers["X-Cache"] == "miss" and cluster.asked > asked
    stats = metroculus.get("cache_stats").json()
    counted = {"hits": 1, "misses": 2, "stale": 0, "coalesced": 0, "renewed": 0, "shared": 0, "items": 1, "bytes": 0}
    assert stats | {"bytes": 0} == counted
    assert stats["bytes"] >= len(first.content)
    told = requests.get(f"{running.metroculus_listener.url}/metrics", timeout=10).text
    assert 'metroculus_cache_answers_total{state="hit"} 1.0' in told and "metroculus_cache_items 1.0" in told


def test_fifty_at_once_are_one_question(linked):
    _, cluster, metroculus = linked
    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda _: metroculus.get("kubecost_cluster_costs", **COSTS), range(50)))
    assert {(a.status_code, a.content) for a in answers} == {(200, answers[0].content)}
    assert answers[0].json()["total_cost"] == cluster.true
    once = cluster.asked
    other = {**COSTS, "idle": "share"}
    metroculus.get("kubecost_cluster_costs", **other)
    assert once <= 2 * (cluster.asked - once), "fifty asked as much as one does"


def test_an_answer_is_packed_where_that_is_asked_for_and_unchanged_where_it_is_known(linked):
    _, _, metroculus = linked
    url = f"{metroculus.url}/metroculus/v2/kubecost_cluster_costs"
    headers = {"Secret": SECRET, "Accept-Encoding": "identity"}
    for state in ("miss", "hit"):
        plain = requests.get(url, params=COSTS, headers=headers, timeout=20)
        assert plain.headers["X-Cache"] == state and "Content-Encoding" not in plain.headers
    packed = requests.get(url, params=COSTS, headers=headers | {"Accept-Encoding": "gzip"}, timeout=20, stream=True)
    assert packed.headers["Content-Encoding"] == "gzip" and "Accept-Encoding" in packed.headers["Vary"]
    assert gzip.decompress(packed.raw.read(decode_content=False)) == plain.content
    known = requests.get(url, params=COSTS, headers=headers | {"If-None-Match": plain.headers["ETag"]}, timeout=20)
    assert known.status_code == 304 and not known.content
    head = requests.head(url, params=COSTS, headers=headers, timeout=20)
    assert head.headers["X-Cache"] == "hit" and head.headers["ETag"] == plain.headers["ETag"] and not head.content


def test_two_accounts_that_ask_the_same_have_each_their_own(stack):
    running, first, second = stack.start(), Counted(stack, 7), Counted(stack, 11)
    link(running, ACCOUNT, first.url)
    link(running, OTHER, second.url)
    metroculus = Metroculus(running)
    for _ in range(2):
        for account, cluster in ((ACCOUNT, first), (OTHER, second)):
            answer = metroculus.get("kubecost_cluster_costs", **COSTS | {"cloud_account_id": account}).json()
            assert (answer["cloud_account_id"], answer["total_cost"]) == (account, cluster.true)
    assert metroculus.get("cache_stats").json()["hits"] == 2


@pytest.mark.parametrize("between", ["replaced", "removed and written again", "removed"])
def test_an_account_with_another_source_meets_nothing_of_the_one_before(stack, between):
    running, first, second = stack.start(), Counted(stack, 7), Counted(stack, 11)
    link(running, ACCOUNT, first.url)
    metroculus = Metroculus(running)
    assert metroculus.get("kubecost_cluster_costs", **COSTS).json()["total_cost"] == first.true
    if between != "replaced":
        running.rest_api.metroculus.client.delete_kubecost_source(ACCOUNT)
    if between == "removed":
        assert metroculus.get("kubecost_cluster_costs", **COSTS).status_code == 409
        return
    link(running, ACCOUNT, second.url)
    assert metroculus.get("kubecost_cluster_costs", **COSTS).json()["total_cost"] == second.true
    second.simulator.habits.fail_with = (503, "down")
    later(running, 3 * 300)
    stale = metroculus.get("kubecost_cluster_costs", **COSTS)
    assert stale.headers["X-Cache"] == "stale" and stale.json()["total_cost"] == second.true


def test_an_upstream_cannot_put_an_answer_where_another_account_looks(stack):
    """It names another cluster, another tenant and another window: all of it is only ever read as its own account's."""
    fake, running, honest = FakeUpstream(), stack.start(), Counted(stack, 11)
    url = stack.serve(fake.application)
    poison = b'{"code":200,"data":[{"p":{"name":"p","properties":{"cluster":"%s"},"totalCost":1e6}}]}' % OTHER.encode()
    fake.answer = lambda request: Answer(
        body=poison, headers={"X-Cache": "hit", "ETag": '"x"', "Age": "1", "X-Account": OTHER, "Vary": "*"}
    )
    link(running, ACCOUNT, url)
    link(running, OTHER, honest.url)
    metroculus = Metroculus(running)
    metroculus.get("kubecost_cluster_costs", **COSTS)
    answer = metroculus.get("kubecost_cluster_costs", **COSTS | {"cloud_account_id": OTHER})
    assert answer.json()["total_cost"] == honest.true and answer.headers["X-Cache"] == "miss"


def test_who_was_shut_out_gets_no_kept_answer(linked):
    """What is kept is given only to who may have it now: the permission is asked of the directory each time."""
    running, cluster, _ = linked
    tenant, stranger = make_tenant(running, "own"), make_tenant(running, "foreign")
    directory = running.rest_api.directory
    directory.create_cluster(tenant.organization_id, "c", "kubecost", cluster.url, ACCOUNT)
    path = f"/restapi/v2/kubecost/clusters/{ACCOUNT}/costs?start_date={END - DAY}&end_date={END}"
    for state in ("miss", "hit", "hit"):
        own = ask(running, tenant.tokens["viewer"], path)
        assert own.json()["total_cost"] == cluster.true and own.headers["X-Cache"] == state
        assert ask(running, stranger.tokens["admin"], path).status_code == 404
        assert ask(running, "no-token", path).status_code == 401
    directory.set_role("own viewer", tenant.organization_id, None)
    assert until(lambda: ask(running, tenant.tokens["viewer"], path).status_code == 404, REMEMBERED_SECONDS + 1)
    assert ask(running, tenant.tokens["manager"], path).status_code == 200
    directory.delete_cluster(ACCOUNT)
    assert until(lambda: ask(running, tenant.tokens["manager"], path).status_code == 404, REMEMBERED_SECONDS + 1)


def test_what_is_stored_anew_is_answered_anew(stack):
    cluster = Counted(stack)
    folder = stack.folder / "store"
    running = stack.start(clickhouse_url=f"embedded:{folder}")
    link(running, ACCOUNT, cluster.url)
    metroculus = Metroculus(running)
    for state in ("miss", "hit"):
        assert metroculus.get("kubecost_cluster_costs", **COSTS).headers["X-Cache"] == state
    stack.thread.run(running.worker.worker.fill(ACCOUNT, (END - DAY, END), 1, lambda progress: None))
    answer = metroculus.get("kubecost_cluster_costs", **COSTS)
    assert answer.headers["X-Cache"] == "miss" and answer.json()["sources"][0]["name"] == "store"
    assert answer.json()["total_cost"] == cluster.true


def test_nothing_is_kept_where_the_time_is_0(stack):
    running, cluster = stack.start(cache_ttl=0.0), Counted(stack)
    link(running, ACCOUNT, cluster.url)
    metroculus = Metroculus(running)
    for turn in range(1, 4):
        before = cluster.asked
        assert metroculus.get("kubecost_cluster_costs", **COSTS).headers["X-Cache"] == "miss" and cluster.asked > before
        assert metroculus.get("cache_stats").json()["misses"] == turn


def test_the_sdk_reads_its_figures(linked):
    running, _, metroculus = linked
    metroculus.get("kubecost_cluster_costs", **COSTS)
    with Client(url=running.metroculus_listener.url, secret=SECRET) as client:
        status, body = client.get_cache_stats()
    assert status == 200 and body["items"] == 1 and set(body) == set(cache.CacheStats.__struct_fields__)
