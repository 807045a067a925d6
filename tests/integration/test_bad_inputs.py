"""Groups A to H of the hostile inputs, on every parameter that they fit: refused by name, and no upstream asked."""

from __future__ import annotations

import http.client
import json
import time
from urllib.parse import quote, urlsplit

import pytest

from tests.data import bad_inputs as bad
from tests.support import ACCOUNT, END, SECRET, Stack, exact_world, make_tenant

pytestmark = pytest.mark.bad_input

WINDOW = f"start_date={END - 86400}&end_date={END}"
METROCULUS = {
    "kubecost_metrics": WINDOW,
    "kubecost_cluster_costs": WINDOW,
    "kubecost_savings": WINDOW,
    "kubecost_assets": WINDOW,
    "k8s_metadata": "",
}
VIEWS = ("costs", "namespaces", "namespaces/shop/workloads", "assets", "metrics", "optimization")
FILES = ("costs", "assets", "optimization")
"""Views that are files, too."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Both services before a simulator that counts, with one linked cluster."""
    stack = Stack(tmp_path_factory.mktemp("bad"))
    simulator, url = stack.simulate(exact_world(days=2))
    running = stack.start(thanos_query_url=url)
    tenant = make_tenant(running, "mine")
    directory = running.rest_api.directory
    cluster = directory.create_cluster(tenant.organization_id, "c", "kubecost", url)
    directory.update_cluster(cluster.id, name="c", flavour="kubecost", url=url, state="linked")
    for account in (cluster.id, ACCOUNT):
        send(running.metroculus_listener.url, "PUT", f"/metroculus/v2/kubecost_sources/{account}", secret(),
             json.dumps({"flavour": "kubecost", "url": url}))  # fmt: skip
    yield running, tenant, cluster, simulator
    stack.close()


def settled(simulator):
    """Wait until what was sent beside a question that failed has arrived: an answer does not wait for it."""
    quiet, count = 0, len(simulator.requests)
    while quiet < 4:
        time.sleep(0.01)
        quiet = quiet + 1 if len(simulator.requests) == count else 0
        count = len(simulator.requests)


def secret():
    return {"Secret": SECRET}


def send(base, method, target, headers, body=None):
    """The target as it stands: nothing between here and the wire may repair it."""
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    connection._validate_path = lambda url: None  # type: ignore[attr-defined]
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body.encode() if body is not None else None)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def refused(world, service, target, statuses, param=None):
    """Refused with the declared shape, naming the parameter, and nobody upstream was asked."""
    running, tenant, _, simulator = world
    before = len(simulator.requests)
    if service == "metroculus":
        status, content = send(running.metroculus_listener.url, "GET", target, secret())
    else:
        bearer = {"Authorization": f"Bearer {tenant.tokens['admin']}"}
        status, content = send(running.rest_api_listener.url, "GET", target, bearer)
    assert status in statuses, (status, content[:300])
    error = json.loads(content)["error"]
    assert error["status_code"] == status and error["error_code"][:2] in ("OM", "OE") and error["reason"]
    if param is not None and status == 400:
        assert param in error["params"], error
    assert len(simulator.requests) == before, simulator.requests[before:]


@pytest.mark.parametrize("endpoint", sorted(METROCULUS))
@pytest.mark.parametrize("name", sorted(bad.IDS))
def test_ids_of_metroculus(world, endpoint, name):
    target = f"/metroculus/v2/{endpoint}?cloud_account_id={bad.IDS[name]}&{METROCULUS[endpoint]}"
    refused(world, "metroculus", target, bad.BAD, "cloud_account_id")


@pytest.mark.parametrize("endpoint", sorted(METROCULUS))
@pytest.mark.parametrize("query", ["", f"cloud_account_id={ACCOUNT}&cloud_account_id={ACCOUNT}"])
def test_an_id_that_is_missing_or_there_twice(world, endpoint, query):
    refused(
        world, "metroculus", f"/metroculus/v2/{endpoint}?{query}&{METROCULUS[endpoint]}", bad.BAD, "cloud_account_id"
    )


@pytest.mark.parametrize("name", sorted(set(bad.IDS) - {"A02", "A26"}))
def test_ids_in_paths(world, name):
    text = bad.IDS[name].replace("#", "%23").replace("?", "%3F")
    account, organization, cluster = (
        ("path",) * 3 if name == "A32" else ("cloud_account_id", "organization_id", "cluster_id")
    )  # what is not UTF-8 is refused before it is known which part of the path it is
    refused(world, "metroculus", f"/metroculus/v2/kubecost_sources/{text}", bad.BAD, account)
    refused(world, "rest", f"/restapi/v2/organizations/{text}/kubecost/clusters", bad.BAD, organization)
    for view in VIEWS:
        refused(world, "rest", f"/restapi/v2/kubecost/clusters/{text}/{view}", bad.BAD, cluster)


@pytest.mark.parametrize("name", sorted(bad.IDS))
def test_ids_of_the_older_paths(world, name):
    for path in ("cost/namespaces", "cost/pods", "savings/recommendations"):
        refused(world, "rest", f"/api/v1/{path}?cluster_id={bad.IDS[name]}", bad.BAD, "cluster_id")


@pytest.mark.parametrize("nobody", ["00000000-0000-0000-0000-000000000000", "c232ab00-9414-11ec-b3c8-9f68deced846"])
def test_ids_that_nobody_owns_are_not_there(world, nobody):
    refused(world, "rest", f"/restapi/v2/organizations/{nobody}/kubecost/clusters", bad.NOT_FOUND)
    refused(world, "rest", f"/api/v1/cost/namespaces?cluster_id={nobody}", bad.NOT_FOUND)
    for view in VIEWS:
        refused(world, "rest", f"/restapi/v2/kubecost/clusters/{nobody}/{view}?metric=cpu", bad.NOT_FOUND)


def test_a_body_on_a_get_is_refused(world):
    running, _, _, simulator = world
    before = len(simulator.requests)
    target = f"/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&{WINDOW}"
    headers = secret() | {"Content-Type": "application/x-www-form-urlencoded"}
    status, content = send(running.metroculus_listener.url, "GET", target, headers, "cloud_account_id=B")
    assert status == 400 and json.loads(content)["error"]["params"] == ["body"]
    assert len(simulator.requests) == before, simulator.requests[before:]


@pytest.mark.parametrize("name", sorted(bad.METRICS))
def test_metric_names(world, name):
    text = quote(bad.METRICS[name], safe="")
    target = f"/metroculus/v2/kubecost_metrics?cloud_account_id={ACCOUNT}&{WINDOW}&metrics={text}"
    refused(world, "metroculus", target, bad.BAD, "metrics")


@pytest.mark.parametrize("name", sorted(bad.NAMESPACES))
def test_what_is_filtered_by_is_compared_and_never_interpreted(world, name):
    running, _, _, simulator = world
    text = quote(bad.NAMESPACES[name], safe="")
    target = f"/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&{WINDOW}&detail_level=namespace&namespace={text}"
    before = len(simulator.requests)
    status, content = send(running.metroculus_listener.url, "GET", target, secret())
    found = json.loads(content)
    assert status == 200 and found["breakdown_by_namespace"] == [] and found["total_cost"] == 0
    settled(simulator)
    asked = simulator.requests[before:]
    assert asked and not any("filter" in uri or text in uri for uri in asked)


@pytest.mark.parametrize("name", sorted(bad.NAMESPACES_REFUSED))
def test_namespaces_that_cannot_be(world, name):
    text = quote(bad.NAMESPACES_REFUSED[name], safe="")
    target = f"/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&{WINDOW}&namespace={text}"
    refused(world, "metroculus", target, bad.BAD, "namespace")
    refused(world, "rest", f"/api/v1/cost/pods?namespace={text}", bad.BAD, "namespace")


@pytest.mark.parametrize("name", sorted(bad.AGGREGATES))
def test_aggregates(world, name):
    text = quote(bad.AGGREGATES[name], safe="")
    target = f"/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&{WINDOW}&aggregate={text}"
    refused(world, "metroculus", target, bad.BAD, "aggregate")
    refused(world, "rest", f"/restapi/v2/kubecost/clusters/{world[2].id}/costs?aggregate={text}", bad.BAD, "aggregate")


@pytest.mark.parametrize("name", sorted(bad.WINDOWS))
def test_windows(world, name):
    text = quote(bad.WINDOWS[name], safe="")
    for endpoint in set(METROCULUS) - {"k8s_metadata"}:
        target = f"/metroculus/v2/{endpoint}?cloud_account_id={ACCOUNT}&window={text}"
        refused(world, "metroculus", target, bad.BAD, "window")
    refused(
        world,
        "rest",
        f"/restapi/v2/organizations/{world[1].organization_id}/kubecost/clusters?window={text}",
        bad.BAD,
        "window",
    )
    for view in VIEWS:
        refused(world, "rest", f"/restapi/v2/kubecost/clusters/{world[2].id}/{view}?metric=cpu&window={text}"
                if view == "metrics" else f"/restapi/v2/kubecost/clusters/{world[2].id}/{view}?window={text}", bad.BAD, "window")  # fmt: skip
    for path in (
        "cost/namespaces",
        "cost/pods",
        "savings/recommendations",
        "costs/kubernetes/c",
        "costs/kubernetes/c/workloads",
    ):
        refused(world, "rest", f"/api/v1/{path}?window={text}", bad.BAD, "window")


@pytest.mark.parametrize(("start", "end"), [("start_date", "end_date"), ("start_time", "end_time")])
@pytest.mark.parametrize("name", sorted(bad.STAMPS))
def test_stamps(world, name, start, end):
    text = quote(bad.STAMPS[name], safe="")
    for endpoint in set(METROCULUS) - {"k8s_metadata"}:
        base = f"/metroculus/v2/{endpoint}?cloud_account_id={ACCOUNT}"
        refused(world, "metroculus", f"{base}&{start}={text}&{end}={END}", bad.BAD, start)
        if name != "F28":  # eight plain digits are a stamp in 1970, and only a span too long as a start
            refused(world, "metroculus", f"{base}&{start}=0&{end}={text}", bad.BAD, end)


@pytest.mark.parametrize(
    ("name", "query", "params"),
    [
        ("F01", f"start_date={END}", ["end_date"]),
        ("F01", f"end_date={END}", ["start_date"]),
        ("F22", f"start_date={END}&end_date={END - 1}", ["start_date", "end_date"]),
        ("F23", f"start_date={END - 9}&end_date={END - 9}", ["start_date", "end_date"]),
        ("F24", f"start_date={END + 9 * 86400}&end_date={END + 10 * 86400}", ["start_date"]),
        ("F26", f"start_date=0&end_date={END}", ["start_date", "end_date"]),
        ("F34", f"start_date=1&start_date=2&end_date={END}", ["start_date"]),
        ("E31", f"window=7d&start_date={END - 9}", ["window", "start_date"]),
        ("E31", f"window=7d&{WINDOW}", ["window", "start_date", "end_date"]),
        ("both", f"{WINDOW}&start_time=1&end_time=2", ["start_date", "start_time"]),
        ("none", "", ["start_date", "end_date"]),
    ],
)
def test_pairs_of_stamps(world, name, query, params):
    for endpoint in set(METROCULUS) - {"k8s_metadata"}:
        for param in params:
            refused(
                world, "metroculus", f"/metroculus/v2/{endpoint}?cloud_account_id={ACCOUNT}&{query}", bad.BAD, param
            )


@pytest.mark.parametrize("query", [f"start_date={END - 86400}&end_date=2147483648", "start_date=0&end_date=86400"])
def test_stamps_that_are_legal(world, query):
    running = world[0]
    target = f"/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&{query}"
    status, content = send(running.metroculus_listener.url, "GET", target, secret())
    found = json.loads(content)
    settled(world[3])
    assert status == 200
    if "start_date=0" in query:
        assert found["total_cost"] is None and not found["complete"] and found["sources"][0]["status"] == "no_data"


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_an_hour_is_an_hour_whatever_the_machines_zone(world, zone, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    windows = []
    for start in (1793509200, 1793512800):
        target = f"/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&start_date={start}&end_date={start + 3600}"
        status, content = send(world[0].metroculus_listener.url, "GET", target, secret())
        assert status == 200
        windows.append(json.loads(content)["window"]["start"])
    monkeypatch.delenv("TZ")
    time.tzset()
    settled(world[3])
    assert windows == ["2026-11-01T05:00:00Z", "2026-11-01T06:00:00Z"]


@pytest.mark.parametrize("name", sorted(bad.SMUGGLED))
def test_what_is_smuggled_along_is_refused_by_name(world, name):
    query = bad.SMUGGLED[name]
    param = query.partition("=")[0]
    for endpoint, window in METROCULUS.items():
        target = f"/metroculus/v2/{endpoint}?cloud_account_id={ACCOUNT}&{window}&{query}"
        refused(world, "metroculus", target, bad.BAD, param)
    for view in VIEWS:
        metric = "metric=cpu&" if view == "metrics" else ""
        smuggled = "format=ods" if param == "format" and view in FILES else query  # which is a file of ours there
        refused(world, "rest", f"/restapi/v2/kubecost/clusters/{world[2].id}/{view}?{metric}{smuggled}", bad.BAD, param)


def test_a_foreign_id_beside_the_one_in_the_path_is_refused(world):
    for name in ("cluster_id", "organization_id", "cloud_account_id"):
        refused(world, "rest", f"/restapi/v2/kubecost/clusters/{world[2].id}/costs?{name}={ACCOUNT}", bad.BAD, name)


@pytest.mark.parametrize(
    ("endpoint", "query", "param"),
    [
        ("kubecost_cluster_costs", "detail_level=Summary", "detail_level"),
        ("kubecost_cluster_costs", "detail_level=everything", "detail_level"),
        ("kubecost_cluster_costs", "detail_level=", "detail_level"),
        ("kubecost_cluster_costs", "detail_level=summary&detail_level=workload", "detail_level"),
        ("kubecost_cluster_costs", "idle=Share", "idle"),
        ("kubecost_assets", "asset_type=NODE", "asset_type"),
        ("kubecost_assets", "asset_type=*", "asset_type"),
        ("kubecost_savings", "target_utilization=0", "target_utilization"),
        ("kubecost_savings", "target_utilization=1.1", "target_utilization"),
        ("kubecost_savings", "target_utilization=NaN", "target_utilization"),
        ("kubecost_savings", "target_utilization=1e-1", "target_utilization"),
        ("kubecost_metrics", "step=0", "step"),
        ("kubecost_metrics", "step=-5m", "step"),
        ("kubecost_metrics", "step=1w", "step"),
    ],
)
def test_choices_of_metroculus(world, endpoint, query, param):
    refused(
        world, "metroculus", f"/metroculus/v2/{endpoint}?cloud_account_id={ACCOUNT}&{WINDOW}&{query}", bad.BAD, param
    )


@pytest.mark.parametrize(
    ("view", "query", "param"),
    [("metrics", "metric=cpu%0a", "metric"), ("metrics", "", "metric"), ("metrics", "metric=cpu&step=1y", "step"),
     ("assets", "asset_type=NODE", "asset_type"), ("costs", "idle=no", "idle"), ("costs", "sort=drop", "sort"),
     ("costs", "order=up", "order"), ("costs", "cursor=AAAA", "cursor"), ("costs", "cursor=", "cursor")]
    + [(view, f"limit={quote(text)}", "limit") for text in bad.LIMITS for view in ("costs", "namespaces", "assets")],
)  # fmt: skip
def test_choices_and_pages_of_the_rest_api(world, view, query, param):
    refused(world, "rest", f"/restapi/v2/kubecost/clusters/{world[2].id}/{view}?{query}", bad.BAD, param)


@pytest.mark.parametrize("name", sorted(bad.PATHS))
def test_paths_of_the_rest_api(world, name):
    refused(world, "rest", bad.PATHS[name].format(id=world[2].id), bad.EITHER)


@pytest.mark.parametrize("name", sorted(bad.METROCULUS_PATHS))
def test_paths_of_metroculus(world, name):
    target = f"{bad.METROCULUS_PATHS[name]}?cloud_account_id={ACCOUNT}&{WINDOW}"
    refused(world, "metroculus", target, bad.EITHER)


def test_an_absolute_target_reaches_nothing_else(world):
    refused(world, "rest", f"http://evil/restapi/v2/kubecost/clusters/{world[2].id}/costs", {200, 400, 404})
