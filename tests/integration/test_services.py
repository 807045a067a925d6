"""Both services over a simulated world of 32nds: exact figures, walls, roles, outcomes."""

from __future__ import annotations

import json
import time
from math import fsum

import pytest
import requests

from rest_api.rest_api_server.auth import REMEMBERED_SECONDS
from simulator.costs import truth
from simulator.server import Habits
from simulator.world import DAY, HOUR, make_world
from tests.support import (
    ACCOUNT,
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
    week,
)

PRIME, FOREIGN = 7, 13


def link(running, tenant, name, flavour, url, **more):
    body = {"name": name, "flavour": flavour, "url": url} | more
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    answer = ask(running, tenant.tokens["admin"], path, "POST", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["cluster_id"]


def source(running, url, flavour, account=ACCOUNT):
    answer = requests.put(
        f"{running.metroculus_listener.url}/metroculus/v2/kubecost_sources/{account}",
        json={"flavour": flavour, "url": url},
        headers={"Secret": SECRET},
        timeout=20,
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("flavour", ["kubecost", "opencost"])
@pytest.mark.parametrize("habits", [{}, {"utc_offset_hours": 5}, {"no_idle": True}, {"kubecost_version": 3}])
def test_in_a_world_of_32nds_every_figure_is_exact(stack, flavour, habits):
    world = exact_world(PRIME)
    _, url = stack.simulate(world, Habits(**habits))
    running = stack.start()
    source(running, url, flavour)
    adjusted = flavour == "kubecost"
    true = truth(world, now=NOW, adjusted=adjusted)
    found = (
        Metroculus(running)
        .get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, detail_level="pod", **week(world))
        .json()
    )
    assert found["complete"], found["sources"]
    for name, value in true["summary"].items():
        assert found["summary"][name] == value, name
    assert found["idle_cost"] == true["idle_cost"]
    assert found["unallocated_cost"] == true["unmounted_cost"]
    assert {r["namespace"]: r["total_cost"] for r in found["breakdown_by_namespace"]} == true["namespaces"]
    workloads = {
        f"{r['namespace']}/{r['controller_kind']}/{r['controller']}": r["total_cost"]
        for r in found["breakdown_by_workload"]
    }
    assert workloads == true["workloads"]
    assert fsum(r["total_cost"] for r in found["breakdown_by_pod"]) == fsum(true["namespaces"].values())
    if adjusted:
        assert (
            found["total_cost"] == true["total_cost"] and found["summary"]["management_cost"] == true["management_cost"]
        )
        assert found["potential_savings"] is not None
    else:
        assert found["total_cost"] == true["allocation_total"] and found["not_covered"] == ["management"]
    assert (found["total_cost"] * 32 / PRIME).is_integer()


def test_three_days_asked_are_three_days_billed(stack):
    world = exact_world()
    simulator, url = stack.simulate(world)
    running = stack.start()
    source(running, url, "kubecost")
    window = {"start_date": END - 3 * DAY, "end_date": END}
    found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **window).json()
    assert found["total_cost"] == truth(world, END - 3 * DAY, END, NOW, adjusted=True)["total_cost"]
    calls = [uri for uri in simulator.requests if uri.startswith("/model/allocation")]
    controls = [uri for uri in calls if "aggregate=cluster&" in uri]
    asked = [uri for uri in calls if uri not in controls]
    assert len(asked) == 3 and len(controls) == 6, "a day is asked for, and held against the cluster's day and hours"
    for flag in (
        "shareTenancyCosts=false",
        "shareIdle=false",
        "splitIdle=false",
        "idle=true",
        "external=false",
        "reconcile=true",
        "accumulate=day",
    ):
        assert all(flag in uri for uri in asked), flag


def test_a_hole_in_the_record_is_partial_and_never_extrapolated(stack):
    day = END - DAY
    world = exact_world(holes=((day, END),))
    _, url = stack.simulate(world)
    running = stack.start()
    source(running, url, "opencost")
    found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **week(world)).json()
    assert found["sources"][0]["status"] == "partial" and found["sources"][0]["coverage"] == 0.75
    assert not found["complete"]
    assert found["total_cost"] == truth(world, now=NOW)["allocation_total"]


def test_a_balancer_that_drifts_drifts_by_a_minute_a_day(stack):
    world = make_world(seed=4, days=2, end=END)
    _, url = stack.simulate(world, Habits(balancer_drift=True))
    running = stack.start()
    source(running, url, "opencost")
    found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **week(world)).json()
    true = truth(world)["summary"]["load_balancer_cost"]
    assert found["summary"]["load_balancer_cost"] == pytest.approx(true * 1441 / 1440, abs=1e-4)


def test_edges_of_a_window_are_asked_by_the_hour(stack):
    world = exact_world()
    _, url = stack.simulate(world)
    running = stack.start()
    for flavour in ("kubecost", "opencost"):
        source(running, url, flavour)
        start, end = END - 2 * DAY - 5 * HOUR, END - 7 * HOUR
        found = (
            Metroculus(running)
            .get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, start_date=start, end_date=end)
            .json()
        )
        true = truth(world, start, end, NOW, adjusted=flavour == "kubecost")
        key = "total_cost" if flavour == "kubecost" else "allocation_total"
        assert found["total_cost"] == true[key] and found["complete"]


def test_the_flavour_is_found_out_once_and_remembered(stack):
    world = exact_world()
    simulator, url = stack.simulate(world, Habits(serves=frozenset({"opencost"})))
    running = stack.start(kubecost_api_url=url)
    for _ in range(2):
        found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **week(world))
        assert found.json()["complete"]
    assert sum(uri.startswith("/model/") for uri in simulator.requests) == 1


def test_any_aggregate_adds_up_to_the_namespaces(stack):
    world = exact_world()
    _, url = stack.simulate(world)
    running = stack.start()
    source(running, url, "kubecost")
    true = truth(world, now=NOW, adjusted=True)
    for aggregate in ("controller", "controllerKind", "pod", "container", "node", "service", "cluster", "label:team",
                      "annotation:owner", "namespace,label:app"):  # fmt: skip
        found = (
            Metroculus(running)
            .get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, aggregate=aggregate, **week(world))
            .json()
        )
        assert fsum(row["total_cost"] for row in found["breakdown_by_aggregate"]) == fsum(true["namespaces"].values())
    found = (
        Metroculus(running)
        .get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, aggregate="container", **week(world))
        .json()
    )
    assert {"web", "db", "backup", "gateway"} <= {row["name"] for row in found["breakdown_by_aggregate"]}


def test_sharing_idle_never_changes_the_total(stack):
    world = exact_world()
    _, url = stack.simulate(world)
    running = stack.start()
    source(running, url, "kubecost")
    asked = {"cloud_account_id": ACCOUNT, "detail_level": "namespace", **week(world)}
    found = {
        mode: Metroculus(running).get("kubecost_cluster_costs", idle=mode, **asked).json()
        for mode in ("separate", "share", "hide")
    }
    assert len({one["total_cost"] for one in found.values()}) == 1
    shared = fsum(row["total_cost"] for row in found["share"]["breakdown_by_namespace"])
    apart = fsum(row["total_cost"] for row in found["separate"]["breakdown_by_namespace"])
    assert shared == pytest.approx(apart + found["separate"]["idle_cost"] - found["share"]["idle_cost"])


def body_of(rows):
    window = {"start": "2026-11-20T00:00:00Z", "end": "2026-11-21T00:00:00Z"}
    filled = {}
    for name, numbers in rows.items():
        filled[name] = {
            "name": name,
            "properties": {"namespace": name},
            "window": window,
            **window,
            "cpuCost": 0,
            "ramCost": 0,
        } | numbers
    return json.dumps({"code": 200, "data": [filled | {"__idle__": filled.get("__idle__") or {
        "name": "__idle__", "window": window, **window, "cpuCost": 1, "ramCost": 1}}]})  # fmt: skip


GOOD = body_of({"shop": {"cpuCost": 2.5}})
DAY_WINDOW = {"start_date": END - DAY, "end_date": END}
ROWS = {
    "K01 NaN": GOOD.replace("2.5", "NaN"),
    "K02 Infinity": GOOD.replace("2.5", "Infinity"),
    "K03 -Infinity": GOOD.replace("2.5", "-Infinity"),
    "K04 1e999": GOOD.replace("2.5", "1e999"),
    "K05 null": GOOD.replace("2.5", "null"),
    "K06 text": GOOD.replace("2.5", '"50"'),
    "K07 true": GOOD.replace("2.5", "true"),
    "K08 negative": GOOD.replace("2.5", "-50"),
    "K10 missing": GOOD.replace('"cpuCost": 2.5, ', "").replace(', "cpuCost": 2.5', ""),
    "K16 null": '{"code":200,"data":null}',
    "K17 [null]": '{"code":200,"data":[null]}',
    "K18 [{}]": '{"code":200,"data":[{}]}',
    "K19 []": '{"code":200,"data":[]}',
    "K20 object": '{"code":200,"data":{}}',
    "K21 list of rows": '{"code":200,"data":[{"name":"shop","cpuCost":1}]}',
    "K22 the same key twice": GOOD.replace(
        '"data": [{',
        '"data": [{"shop": {"name":"shop","cpuCost":9,"ramCost":0,"window":{"start":"2026-11-20T00:00:00Z","end":"2026-11-21T00:00:00Z"}}, ',
    ),
    "K23 code 500": GOOD.replace('"code": 200', '"code": 500'),
    "K24 code as text": GOOD.replace('"code": 200', '"code": "200"'),
    "K25 code 402": GOOD.replace('"code": 200', '"code": 402'),
    "K27 window null": GOOD.replace('"start": "2026-11-20T00:00:00Z"', '"start": null', 1),
    "K28 another day": GOOD.replace("2026-11-20T", "2026-11-10T").replace("2026-11-21T", "2026-11-11T"),
    "K33 long name": body_of({"a" * 300: {"cpuCost": 1}}),
    "K33 name with a slash": body_of({"a/b": {"cpuCost": 1}}),
    "K35 lone surrogate": GOOD.replace("shop", "sh\\ud800op"),
    "K38 deep": '{"code":200,"data":' + "[" * 100_000,
    "K38 nested": GOOD.replace('"cpuCost": 2.5', '"x": ' + "[" * 5000 + "]" * 5000 + ', "cpuCost": 2.5'),
    "K39 5000 digits": GOOD.replace("2.5", "1" * 5000),
    "html": "<html>login</html>",
    "cut": GOOD[:-40],
    "empty": "",
}


def two_faced(fake, body, assets='{"code":200,"data":[]}'):
    def answer(request):
        text = body if "allocation" in request.path else assets
        return Answer(body=text.encode())

    fake.answer = answer


@pytest.mark.bad_input
@pytest.mark.parametrize("name", sorted(ROWS))
def test_an_upstreams_value_is_never_a_wrong_number(stack, name):
    fake = FakeUpstream()
    url = stack.serve(fake.application)
    two_faced(fake, ROWS[name])
    running = stack.start()
    source(running, url, "opencost")
    answer = Metroculus(running).get(
        "kubecost_cluster_costs", cloud_account_id=ACCOUNT, detail_level="namespace", **DAY_WINDOW
    )
    assert answer.status_code in (200, 502), answer.text
    assert "NaN" not in answer.text and "Infinity" not in answer.text
    if answer.status_code == 502:
        assert answer.json()["error"]["error_code"] == "OM0018"
        return
    found = answer.json()
    assert not found["complete"]
    assert any(one["status"] in ("partial", "no_data", "unavailable") for one in found["sources"][:1])
    assert found["total_cost"] is None or found["total_cost"] == 2.0
    if found["sources"][0]["status"] == "no_data":
        assert found["summary"]["known_cost"] is None


def answered(stack, body, flavour="opencost"):
    fake = FakeUpstream()
    url = stack.serve(fake.application)
    two_faced(fake, body)
    running = stack.start()
    source(running, url, flavour)
    answer = Metroculus(running).get(
        "kubecost_cluster_costs", cloud_account_id=ACCOUNT, detail_level="namespace", **DAY_WINDOW
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_values_that_are_legal(stack):
    assert answered(stack, GOOD.replace("2.5", "-0.0"))["total_cost"] == 2.0
    assert answered(stack, GOOD)["total_cost"] == 4.5
    special = body_of(
        {
            "__unallocated__": {"cpuCost": 1},
            "__unmounted__": {"pvCost": 2},
            "__shared__": {"sharedCost": 3},
            "__external__": {"externalCost": 4},
        }
    )
    found = answered(stack, special)
    assert found["unallocated_cost"] == 10.0 and found["total_cost"] == 12.0 and found["complete"]
    proto = answered(stack, body_of({"__proto__": {"cpuCost": 1}}))
    assert [row["namespace"] for row in proto["breakdown_by_namespace"]] == ["__proto__"]
    warned = answered(stack, GOOD.replace('"code": 200', '"code": 200, "warning": "results may be old"'))
    assert "results may be old" in warned["sources"][0]["warnings"] and warned["complete"]
    efficient = answered(stack, body_of({"shop": {"cpuCost": 1, "cpuEfficiency": 7.3}}))
    assert efficient["efficiency"]["cpu_efficiency"] is None  # never the upstream's own figure


def test_a_savings_answer_of_another_cluster_is_not_ours(stack):
    world = exact_world()
    _, url = stack.simulate(world)
    running = stack.start()
    source(running, url, "kubecost")
    found = Metroculus(running).get("kubecost_savings", cloud_account_id=ACCOUNT, **week(world)).json()
    assert 0 < found["potential_savings"] < 77777 and found["complete"]
    kinds = {one["kind"] for one in found["recommendations"]}
    assert {"right_sizing", "abandoned_workload", "unclaimed_volume"} <= kinds


def test_a_hundred_thousand_namespaces_are_served_by_the_page(stack):
    fake = FakeUpstream()
    url = stack.serve(fake.application)
    two_faced(fake, body_of({f"ns-{n}": {"cpuCost": 1 / 32} for n in range(100_000)}))
    running = stack.start()
    tenant = make_tenant(running, "t")
    cluster = link(running, tenant, "big", "opencost", url)
    path = f"/restapi/v2/kubecost/clusters/{cluster}/costs?start_date={END - DAY}&end_date={END}&limit=1000"
    first = ask(running, tenant.tokens["viewer"], path).json()
    assert len(first["costs"]) == 1000 and first["total_count"] == 100_000
    assert first["total_cost"] == 100_000 / 32 + 2
    second = ask(running, tenant.tokens["viewer"], f"{path}&cursor={first['next_cursor']}").json()
    assert not {r["name"] for r in first["costs"]} & {r["name"] for r in second["costs"]}
    assert second["total_cost"] == first["total_cost"]


OUTCOMES = [
    (Answer(503, b""), 502, "OM0018"),
    (Answer(500, b"oops"), 502, "OM0018"),
    (Answer(401, b""), 502, "OM0018"),
    (Answer(302, b"", {"Location": "http://127.0.0.1:1/"}), 502, "OM0018"),
    (Answer(200, b"<html>"), 502, "OM0018"),
]


@pytest.mark.parametrize(("answer", "status", "code"), OUTCOMES)
def test_an_upstream_that_fails_whole_is_an_error_never_a_zero(stack, answer, status, code):
    fake = FakeUpstream()
    url = stack.serve(fake.application)
    fake.answer = lambda request: answer
    running = stack.start()
    source(running, url, "kubecost")
    found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **DAY_WINDOW)
    assert found.status_code == status and found.json()["error"]["error_code"] == code
    assert url not in found.text


def test_nobody_there_is_503_and_silence_is_504(stack):
    running = stack.start(kubecost_timeout=1.0)
    source(running, "http://127.0.0.1:1", "opencost")
    found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **DAY_WINDOW)
    assert found.status_code == 503 and int(found.headers["Retry-After"]) > 0
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        source(running, f"http://127.0.0.1:{silent.getsockname()[1]}", "opencost")
        began = time.monotonic()
        found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **DAY_WINDOW)
        assert found.status_code == 504 and time.monotonic() - began < 1.5


def test_one_of_several_sources_missing_leaves_its_component_unknown(stack):
    fake = FakeUpstream()
    url = stack.serve(fake.application)
    fake.answer = lambda request: Answer(body=GOOD.encode()) if "allocation" in request.path else Answer(500, b"no")
    running = stack.start()
    source(running, url, "kubecost")
    found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **DAY_WINDOW).json()
    assert found["summary"]["management_cost"] is None and found["total_cost"] is None
    assert found["summary"]["known_cost"] == 4.5 and not found["complete"]
    assert {s["name"]: s["status"] for s in found["sources"]} == {
        "allocation": "ok", "assets": "unavailable", "thanos": "not_configured",
    }  # fmt: skip


def test_an_account_without_any_source_is_told_how_to_add_one(stack):
    running = stack.start()
    found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **DAY_WINDOW)
    assert found.status_code == 409 and "kubecost_sources" in found.json()["error"]["reason"]


def test_in_one_cluster_mode_no_source_is_taken(stack):
    running = stack.start(kubecost_api_url="http://127.0.0.1:1")
    answer = requests.put(
        f"{running.metroculus_listener.url}/metroculus/v2/kubecost_sources/{ACCOUNT}",
        json={"flavour": "kubecost", "url": "http://127.0.0.1:2"}, headers={"Secret": SECRET}, timeout=20,
    )  # fmt: skip
    assert answer.status_code == 409 and answer.json()["error"]["error_code"] == "OM0017"


def test_a_default_upstream_answers_its_own_account_alone(stack):
    world = exact_world()
    _, url = stack.simulate(world)
    running = stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT)
    own = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **week(world))
    other = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT.replace("5", "6"), **week(world))
    assert own.status_code == 200 and other.status_code == 409


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [({}, 401, "OM0007"), ({"Secret": ""}, 403, "OM0005"), ({"Secret": SECRET + "x"}, 403, "OM0005"),
     ({"Secret": SECRET[:-1]}, 403, "OM0005"), ({"Secret": SECRET.upper()}, 403, "OM0005"),
     ({"Authorization": f"Bearer {SECRET}"}, 401, "OM0007"), ({"Secret": "\xe9".encode("latin-1")}, 403, "OM0005")],
)  # fmt: skip
def test_the_cluster_secret(stack, headers, status, code):
    running = stack.start()
    url = f"{running.metroculus_listener.url}/metroculus/v2/kubecost_cluster_costs?cloud_account_id=bad"
    found = requests.get(url, headers=headers, timeout=20)
    assert found.status_code == status and found.json()["error"]["error_code"] == code
    assert SECRET not in found.text


def test_credentials_are_written_and_never_read_back(stack):
    fake = FakeUpstream()
    url = stack.serve(fake.application)
    seen = []

    def answer(request):
        seen.append(request.headers.get("Authorization"))
        assert "Secret" not in request.headers
        return Answer(body=GOOD.encode())

    fake.answer = answer
    running = stack.start()
    base = f"{running.metroculus_listener.url}/metroculus/v2/kubecost_sources/{ACCOUNT}"
    canary = "canary-of-the-tests"
    body = {"flavour": "opencost", "url": url, "auth": {"type": "bearer", "token": canary}}
    written = requests.put(base, json=body, headers={"Secret": SECRET}, timeout=20)
    read = requests.get(base, headers={"Secret": SECRET}, timeout=20)
    assert canary not in written.text + read.text and read.json()["has_credentials"]
    Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **DAY_WINDOW)
    assert set(seen) == {f"Bearer {canary}"}
    for file in stack.folder.rglob("*.sqlite*"):
        assert canary.encode() not in file.read_bytes()
    assert (stack.folder / "data0" / "encryption.key").stat().st_mode & 0o777 == 0o600
    assert requests.delete(base, headers={"Secret": SECRET}, timeout=20).status_code == 200
    assert requests.get(base, headers={"Secret": SECRET}, timeout=20).status_code == 404


def test_a_source_that_is_removed_and_written_again_is_another_one(stack):
    """The one before is not asked again, and is sent no credentials of the other's."""
    asked = {"first": [], "second": []}
    urls = {}
    for name, seen in asked.items():
        fake = FakeUpstream()
        fake.answer = lambda request, seen=seen: seen.append(request.headers) or Answer(body=GOOD.encode())
        urls[name] = stack.serve(fake.application)
    running = stack.start()
    entry = f"{running.metroculus_listener.url}/metroculus/v2/kubecost_sources/{ACCOUNT}"
    for name, url in urls.items():
        for seen in asked.values():
            seen.clear()
        requests.delete(entry, headers={"Secret": SECRET}, timeout=20)
        requests.put(entry, json={"flavour": "opencost", "url": url}, headers={"Secret": SECRET}, timeout=20)
        answer = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **DAY_WINDOW)
        assert answer.status_code == 200, answer.text
        assert [name for name, seen in asked.items() if seen] == [name]


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "http://10.96.0.1:443", "http://user:pw@127.0.0.1/", "ftp://127.0.0.1"]
)
def test_an_upstream_that_is_not_allowed_is_refused_when_it_is_written(stack, url):
    running = stack.start()
    answer = requests.put(
        f"{running.metroculus_listener.url}/metroculus/v2/kubecost_sources/{ACCOUNT}",
        json={"flavour": "kubecost", "url": url}, headers={"Secret": SECRET}, timeout=20,
    )  # fmt: skip
    assert answer.status_code == 400 and answer.json()["error"]["params"] == ["url"]


def test_tenants_are_walls(stack):
    mine, theirs = exact_world(PRIME), exact_world(FOREIGN, cluster_id="cluster-two")
    urls = [stack.simulate(world)[1] for world in (mine, theirs)]
    running = stack.start()
    tenants = [make_tenant(running, name) for name in ("mine", "theirs")]
    clusters = [
        link(running, t, f"c-{n}", "kubecost", url) for n, (t, url) in enumerate(zip(tenants, urls, strict=True))
    ]
    window = f"start_date={mine.start}&end_date={mine.end}"
    absent = "11111111-1111-4111-8111-111111111111"
    views = ("costs", "namespaces", "namespaces/shop/workloads", "assets", "metrics?metric=cpu", "optimization")
    for view in views:
        joint = "&" if "?" in view else "?"
        own = ask(
            running, tenants[0].tokens["viewer"], f"/restapi/v2/kubecost/clusters/{clusters[0]}/{view}{joint}{window}"
        )
        assert own.status_code == (409 if "metrics" in view else 200), own.text
        foreign, gone = (
            ask(running, tenants[0].tokens["admin"], f"/restapi/v2/kubecost/clusters/{cluster}/{view}{joint}{window}")
            for cluster in (clusters[1], absent)
        )
        assert (foreign.status_code, foreign.content) == (gone.status_code, gone.content) and foreign.status_code == 404
        nobody = ask(running, None, f"/restapi/v2/kubecost/clusters/{clusters[0]}/{view}{joint}{window}")
        assert nobody.status_code == 401
    for tenant, prime, cluster in zip(tenants, (PRIME, FOREIGN), clusters, strict=True):
        path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters?{window}"
        found = ask(running, tenant.tokens["viewer"], path).json()
        assert [one["cluster_id"] for one in found["clusters"]] == [cluster]
        assert (found["total_cost"] * 32 / prime).is_integer()
    foreign = ask(
        running, tenants[0].tokens["admin"], f"/restapi/v2/organizations/{tenants[1].organization_id}/kubecost/clusters"
    )
    assert foreign.status_code == 404
    for method in ("GET", "PATCH", "DELETE"):
        path = f"/restapi/v2/organizations/{tenants[0].organization_id}/kubecost/clusters/{clusters[1]}"
        body = {"json": {"name": "x"}} if method == "PATCH" else {}
        assert ask(running, tenants[0].tokens["admin"], path, method, **body).status_code == 404


@pytest.mark.parametrize(
    ("role", "method", "status"),
    [("viewer", "GET", 403), ("viewer", "PATCH", 403), ("viewer", "DELETE", 403), ("manager", "GET", 200),
     ("manager", "PATCH", 403), ("admin", "PATCH", 200), ("admin", "DELETE", 200)],
)  # fmt: skip
def test_roles_on_links(stack, role, method, status):
    _, url = stack.simulate(exact_world())
    running = stack.start()
    tenant = make_tenant(running, "t")
    cluster = link(running, tenant, "c", "kubecost", url)
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters/{cluster}"
    body = {"json": {"name": "renamed"}} if method == "PATCH" else {}
    assert ask(running, tenant.tokens[role], path, method, **body).status_code == status


def test_a_link_that_got_half_way_is_finished_by_the_next_try(stack):
    world = exact_world()
    _, url = stack.simulate(world)
    running = stack.start()
    tenant = make_tenant(running, "t")
    directory = running.rest_api.directory
    half = directory.create_cluster(tenant.organization_id, "c", "kubecost", url)
    assert half.state == "linking"
    cluster = link(running, tenant, "c", "kubecost", url)
    assert cluster == half.id and directory.cluster(cluster).state == "linked"
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    again = ask(running, tenant.tokens["admin"], path, "POST", json={"name": "c", "flavour": "kubecost", "url": url})
    assert again.status_code == 409
    refused = ask(
        running,
        tenant.tokens["admin"],
        path,
        "POST",
        json={"name": "d", "flavour": "kubecost", "url": "http://10.0.0.1"},
    )
    assert refused.status_code == 400 and refused.json()["error"]["params"] == ["url"]
    assert [one.name for one in directory.clusters(tenant.organization_id)] == ["c"]


def test_one_cluster_that_fails_leaves_the_others_whole(stack):
    world = exact_world()
    _, url = stack.simulate(world)
    running = stack.start()
    tenant = make_tenant(running, "t")
    link(running, tenant, "good", "kubecost", url)
    link(running, tenant, "dead", "kubecost", "http://127.0.0.1:1")
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters?start_date={world.start}&end_date={world.end}"
    found = ask(running, tenant.tokens["viewer"], path).json()
    rows = {one["name"]: one for one in found["clusters"]}
    true = truth(world, now=NOW, adjusted=True)["total_cost"]
    assert rows["good"]["total_cost"] == true and rows["good"]["complete"]
    assert rows["dead"]["total_cost"] is None and rows["dead"]["error"]["status_code"] == 503
    assert found["total_cost"] is None and found["known_cost"] == true and not found["complete"]


def test_tokens_that_are_no_more(stack):
    _, url = stack.simulate(exact_world())
    running = stack.start()
    tenant = make_tenant(running, "t")
    cluster = link(running, tenant, "c", "kubecost", url)
    directory = running.rest_api.directory
    path = f"/restapi/v2/kubecost/clusters/{cluster}/costs?start_date={END - DAY}&end_date={END}"
    expired = directory.create_token("t viewer", NOW - 1)[1]
    revoked_id, revoked = directory.create_token("t viewer", None)
    directory.revoke_token(revoked_id)
    good = tenant.tokens["viewer"]
    for token in (expired, revoked, "garbage", good + "x", good[:-1]):
        assert ask(running, token, path).status_code == 401
    assert ask(running, good, path).status_code == 200
    lower = ask(running, None, path, headers={"Authorization": f"bearer {good}"})
    assert lower.status_code == 200
    for header in (f"Basic {good}", "Bearer", "Bearer ", good, f"Token {good}"):
        assert ask(running, None, path, headers={"Authorization": header}).status_code == 401
    assert ask(running, None, f"{path}&access_token={good}").status_code == 401
    assert ask(running, None, path, headers={"Secret": SECRET}).status_code == 401
    directory.set_role("t viewer", tenant.organization_id, None)
    assert until(lambda: ask(running, good, path).status_code == 404, REMEMBERED_SECONDS + 1)
    directory.disable_user("t viewer")
    assert until(lambda: ask(running, good, path).status_code == 401, REMEMBERED_SECONDS + 1)
    for file in stack.folder.rglob("directory.sqlite*"):
        assert good.encode() not in file.read_bytes()


def test_older_paths_need_a_cluster_where_there_are_several(stack):
    _, url = stack.simulate(exact_world())
    running = stack.start()
    tenant = make_tenant(running, "t")
    first = link(running, tenant, "one", "kubecost", url)
    viewer = tenant.tokens["viewer"]
    window = f"start_date={END - DAY}&end_date={END}"
    assert ask(running, None, "/api/v1/health").json()["service"] == "rest-api"
    alone = ask(running, viewer, f"/api/v1/cost/namespaces?{window}&idle=true")
    assert alone.status_code == 200 and "__idle__" in [item["name"] for item in alone.json()["namespaces"]]
    link(running, tenant, "two", "kubecost", url)
    several = ask(running, viewer, f"/api/v1/cost/namespaces?{window}")
    assert several.status_code == 400 and first in several.json()["error"]["reason"]
    assert ask(running, viewer, f"/api/v1/cost/pods?{window}&cluster_id={first}&namespace=shop").status_code == 200
    assert ask(running, viewer, f"/api/v1/costs/kubernetes/two/namespaces?{window}").status_code == 200
    assert ask(running, viewer, f"/api/v1/costs/kubernetes/three?{window}").status_code == 404
    assert (
        ask(running, viewer, f"/api/v1/savings/recommendations?{window}&cluster_id={first}&limit=51").status_code == 400
    )


def test_http_is_as_it_should_be(stack):
    running = stack.start()
    base = running.metroculus_listener.url
    made = requests.get(f"{base}/healthz", timeout=10)
    assert made.headers["X-Request-ID"] and made.headers["ETag"] and made.headers["Cache-Control"] == "private"
    assert made.headers["Content-Type"] == "application/json; charset=utf-8"
    echoed = requests.get(f"{base}/healthz", headers={"X-Request-ID": "abc-1"}, timeout=10)
    assert echoed.headers["X-Request-ID"] == "abc-1"
    forged = requests.get(f"{base}/healthz", headers={"X-Request-ID": "a b\tc"}, timeout=10)
    assert forged.headers["X-Request-ID"] != "a b\tc"
    same = requests.get(f"{base}/healthz", headers={"If-None-Match": made.headers["ETag"]}, timeout=10)
    assert same.status_code == 304 and not same.content
    head = requests.head(f"{base}/healthz", timeout=10)
    assert head.status_code == 200 and not head.content
    zipped = requests.get(f"{base}/openapi.json", headers={"Accept-Encoding": "gzip"}, timeout=10)
    assert zipped.headers["Content-Encoding"] == "gzip" and zipped.json()["openapi"] == "3.1.0"
    wrong = requests.delete(f"{base}/healthz", timeout=10)
    assert wrong.status_code == 405 and wrong.headers["Allow"] == "GET, HEAD, OPTIONS" and wrong.json()["error"]
    for method in ("TRACE", "FOO"):
        assert requests.request(method, f"{base}/healthz", timeout=10).status_code == 405
    missing = requests.get(f"{base}/nothing", timeout=10)
    assert missing.status_code == 404 and missing.json()["error"]["error_code"] == "OM0010"
    ready = requests.get(f"{base}/readyz", timeout=10)
    assert ready.status_code == 200 and ready.json()["dependencies"]["secret"] == "ok"
    metrics = requests.get(f"{base}/metrics", timeout=10)
    assert "http_requests_total" in metrics.text and metrics.headers["Content-Type"].startswith("text/plain")


def test_thanos_stands_in_where_kubecost_is_down(stack, prometheus_factory):
    world = make_world(seed=8, days=2, end=END)
    server = prometheus_factory()
    server.load_world(world, ACCOUNT)
    server.start()
    running = stack.start(thanos_query_url=server.url)
    source(running, "http://127.0.0.1:1", "kubecost")
    found = (
        Metroculus(running)
        .get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, detail_level="namespace", **week(world))
        .json()
    )
    true = truth(world)
    assert found["total_cost"] == pytest.approx(true["total_cost"], rel=5e-3)
    statuses = {one["name"]: one["status"] for one in found["sources"]}
    assert statuses["allocation"] == "unavailable" and statuses["thanos"] == "ok" and not found["complete"]
    metrics = Metroculus(running).get("kubecost_metrics", cloud_account_id=ACCOUNT, **week(world)).json()
    series = [s for many in metrics["metrics"].values() for s in many]
    assert series and all(s["labels"]["tenant_id"] == ACCOUNT for s in series)
    assert max(len(s["values"]) for s in series) <= 1000
    other = ACCOUNT.replace("5", "6")
    foreign = Metroculus(running).get("kubecost_metrics", cloud_account_id=other, **week(world)).json()
    assert not any(foreign["metrics"].values()) and foreign["sources"][0]["status"] == "no_data"
    metadata = Metroculus(running).get("k8s_metadata", cloud_account_id=ACCOUNT).json()
    assert metadata["sources"][0]["status"] == "no_data"
    push = stack.start(thanos_query_url=server.url)
    tenant = make_tenant(push, "pushing")
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    made = ask(push, tenant.tokens["admin"], path, "POST", json={"name": "p", "flavour": "push"})
    assert made.status_code == 201
    cluster = made.json()["cluster_id"]
    empty = ask(push, tenant.tokens["viewer"], f"/restapi/v2/kubecost/clusters/{cluster}/costs?window=yesterday").json()
    assert empty["total_cost"] is None and not empty["complete"]


def test_a_cluster_of_ones_own_machines_is_priced_by_its_operator(stack):
    world = exact_world(PRIME)

    def unpriced(path, answer):
        for one in answer["data"] if isinstance(answer["data"], list) else [answer["data"]]:
            for row in one.values():
                row.update({key: 0 for key in row if key.endswith("Cost")})
        return answer

    _, url = stack.simulate(world, Habits(rewrite=unpriced))
    running = stack.start()
    tenant = make_tenant(running, "t")
    price = PRIME / 32
    prices = {"core_hour": price, "ram_gib_hour": price, "gpu_hour": 4 * price, "storage_gib_hour": price}
    cluster = link(running, tenant, "own", "opencost", url, custom_prices=prices)
    found = (
        Metroculus(running)
        .get("kubecost_cluster_costs", cloud_account_id=cluster, detail_level="namespace", **week(world))
        .json()
    )
    true = truth(world, now=NOW)
    for component in ("cpu_cost", "ram_cost", "gpu_cost", "pv_cost"):
        assert found["summary"][component] == pytest.approx(true["summary"][component]), component
    assert found["idle_cost"] == pytest.approx(true["idle_cost"]) and found["complete"]
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    bad = {"name": "b", "flavour": "opencost", "url": url, "custom_prices": {"core_hour": -1}}
    refused = ask(running, tenant.tokens["admin"], path, "POST", json=bad)
    assert refused.status_code == 400 and "custom_prices" in refused.json()["error"]["params"]


def test_stores_that_cannot_be_used_are_told_and_never_a_500(stack):
    running = stack.start()
    tenant = make_tenant(running, "t")
    running.metroculus.dependencies.registry.entries._database.execute("DROP TABLE kubecost_sources")
    found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **DAY_WINDOW)
    assert found.status_code == 503 and found.json()["error"]["error_code"] == "OM0022"
    running.rest_api.directory._writer.execute("DROP TABLE tokens")
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    answer = ask(running, tenant.tokens["viewer"], path)
    assert answer.status_code == 503 and answer.json()["error"]["error_code"] == "OE0910"


def test_an_overcommitted_cluster_has_negative_idle_and_still_adds_up(stack):
    world = exact_world(overcommitted=True)
    _, url = stack.simulate(world)
    running = stack.start()
    source(running, url, "kubecost")
    found = (
        Metroculus(running)
        .get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, detail_level="namespace", **week(world))
        .json()
    )
    true = truth(world, now=NOW, adjusted=True)
    assert found["idle_cost"] == true["idle_cost"] < 0 and found["total_cost"] == true["total_cost"]
    assert "idle is negative" in found["sources"][0]["warnings"] and found["complete"]


@pytest.mark.parametrize("flavour", ["kubecost", "opencost"])
@pytest.mark.parametrize("label", ["app.kubernetes.io/part-of", "app_kubernetes_io_part_of"])
def test_a_label_is_found_by_either_spelling(stack, flavour, label):
    world = exact_world()
    _, url = stack.simulate(world)
    running = stack.start()
    source(running, url, flavour)
    found = (
        Metroculus(running)
        .get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, aggregate=f"label:{label}", **week(world))
        .json()
    )
    rows = {row["name"]: row["total_cost"] for row in found["breakdown_by_aggregate"]}
    true = truth(world, now=NOW, adjusted=flavour == "kubecost")
    assert rows["store"] == true["workloads"]["shop/deployment/web"] and "__unallocated__" in rows


ASSET = '{"code":200,"data":[{"m":{"type":"ClusterManagement","properties":{"name":"m"},"totalCost":%s}}]}'


@pytest.mark.parametrize("value", ["NaN", "1e999", "null", '"5"', "true", "-50"])
def test_a_management_cost_that_cannot_be_is_unknown_and_never_a_number(stack, value):
    fake = FakeUpstream()
    url = stack.serve(fake.application)
    two_faced(fake, GOOD, ASSET % value)
    running = stack.start()
    source(running, url, "kubecost")
    found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **DAY_WINDOW).json()
    assert found["summary"]["management_cost"] is None and found["total_cost"] is None and not found["complete"]
    assets = Metroculus(running).get("kubecost_assets", cloud_account_id=ACCOUNT, **DAY_WINDOW)
    assert assets.status_code == 502 and assets.json()["error"]["error_code"] == "OM0018"


@pytest.mark.parametrize(
    "body",
    ["", "<html>", "[]", '{"code":500,"data":null}', '{"code":200,"data":{"c":{"x":{"state":"ready","value":"9"}}}}'],
)
def test_savings_that_cannot_be_read_never_touch_the_cost(stack, body):
    fake = FakeUpstream()
    url = stack.serve(fake.application)
    rows = body_of({"shop": {"cpuCost": 2.5, "properties": {"namespace": "shop", "cluster": "c"}}})
    fake.answer = lambda request: Answer(
        body=(rows if "allocation" in request.path else ASSET % 1 if "assets" in request.path else body).encode()
    )
    running = stack.start()
    source(running, url, "kubecost")
    found = (
        Metroculus(running)
        .get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, detail_level="namespace", **DAY_WINDOW)
        .json()
    )
    assert (found["complete"] is False and found["total_cost"] == 5.5) or found["complete"]
    assert found["potential_savings"] is None
    statuses = {one["name"]: one["status"] for one in found["sources"]}
    assert statuses["savings"] == "unavailable" and statuses["allocation"] == statuses["assets"] == "ok"


def test_savings_of_a_cluster_that_only_pushes_metrics_are_worked_out(stack, prometheus_factory):
    world = make_world(seed=8, days=8, end=END)
    server = prometheus_factory()
    server.load_world(world, ACCOUNT, 300)
    server.start()
    running = stack.start(thanos_query_url=server.url)
    found = Metroculus(running).get("kubecost_savings", cloud_account_id=ACCOUNT, **week(world)).json()
    assert found["complete"], found["sources"]
    by_kind = {}
    for one in found["recommendations"]:
        by_kind.setdefault(one["kind"], []).append(one)
    (bot,) = by_kind["abandoned_workload"]
    container = next(c for c in world.containers if c.controller == "idlebot")
    node = container.node
    hourly = container.cpu_request * node.usd_per_core_hour + container.ram_request_gib * node.usd_per_gib_hour
    assert bot["controller"] == "idlebot" and bot["monthly_saving"] == pytest.approx(hourly * 730, rel=1e-2)
    volumes = {one["name"]: one["monthly_saving"] for one in by_kind["unclaimed_volume"]}
    assert volumes == pytest.approx(
        {v.name: v.gib * v.usd_per_gib_hour * 730 for v in world.volumes if not v.claim}, rel=1e-2
    )
    assert "idle_node" not in by_kind and by_kind["right_sizing"]
    costs = (
        Metroculus(running)
        .get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, detail_level="namespace", **week(world))
        .json()
    )
    assert costs["potential_savings"] == pytest.approx(found["potential_savings"])
    short = (
        Metroculus(running).get("kubecost_savings", cloud_account_id=ACCOUNT, start_date=END - DAY, end_date=END).json()
    )
    assert short["potential_savings"] is None and short["sources"][0]["status"] == "no_data"
