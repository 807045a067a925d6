"""What Thanos may answer that is not what was asked for: each is told, none becomes a number."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support import ACCOUNT, END, Answer, FakeUpstream, Metroculus

DAY = {"start_date": END - 86400, "end_date": END}
OTHER = ACCOUNT.replace("5", "6")


def vector(*series):
    return {"status": "success", "data": {"resultType": "vector", "result": list(series)}}


def sample(value="0.1", **labels):
    return {"metric": labels, "value": [END, value]}


def metrics_of(request):
    return parse_qs(urlsplit(request.uri).query)["query"][0]


def answering(change):
    """An exporter that was alive all day with a management cost of 2.4, as ``change`` makes of it."""

    def answer(request):
        query = metrics_of(request)
        if re.fullmatch(r"kubecost_cluster_management_cost{[^{}]*}\[86400s\]", query):
            stamps = [[END - 86400 + n * 60, "0.1"] for n in range(1440)]
            series = {"metric": {"tenant_id": ACCOUNT}, "values": stamps}
            found = {"status": "success", "data": {"resultType": "matrix", "result": [series]}}
        elif '"metric", "' in query:
            names = re.findall(r'"metric", "([a-z_]+:kubecost_cluster_management_cost)"', query)
            counts = {"hourly": "60", "in_all": "1440", "series": "1"}
            found = vector(*(sample(counts[n.partition(":")[0]], tenant_id=ACCOUNT, metric=n) for n in names))
        elif query.startswith("count_over_time("):
            found = vector(sample("1440", tenant_id=ACCOUNT))
        elif query.startswith("sum_over_time("):
            found = change(vector(sample("2.4", tenant_id=ACCOUNT)))
        else:
            found = vector()
        return Answer(body=found if isinstance(found, bytes) else json.dumps(found).encode())

    return answer


def ask(stack, change):
    thanos, kubecost = FakeUpstream(), FakeUpstream()
    thanos.answer = answering(change)
    window = {"start": "2026-11-20T00:00:00Z", "end": "2026-11-21T00:00:00Z"}
    row = {"window": window, **window, "cpuCost": 1.0, "ramCost": 0.5}
    body = {"code": 200, "data": [{name: row | {"name": name} for name in ("shop", "__idle__")}]}
    kubecost.answer = lambda request: Answer(body=json.dumps(body).encode())
    running = stack.start(
        thanos_query_url=stack.serve(thanos.application),
        kubecost_api_url=stack.serve(kubecost.application),
        kubecost_account_id=ACCOUNT,
        kubecost_flavour="opencost",
    )
    found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **DAY)
    assert found.status_code == 200, found.text
    assert all(f'tenant_id="{ACCOUNT}"' in metrics_of(Request(uri)) for uri in thanos.asked)
    return found.json()


class Request:
    def __init__(self, uri):
        self.uri = uri


def test_as_it_should_be(stack):
    found = ask(stack, lambda whole: whole)
    assert (
        found["summary"]["management_cost"] == 2.4 and found["total_cost"] == pytest.approx(5.4) and found["complete"]
    )


BAD = {
    "K40 scalar": lambda v: {"status": "success", "data": {"resultType": "scalar", "result": [END, "1"]}},
    "K40 string": lambda v: {"status": "success", "data": {"resultType": "string", "result": [END, "x"]}},
    "K40 matrix": lambda v: {"status": "success", "data": {"resultType": "matrix", "result": []}},
    "K41 NaN": lambda v: vector(sample("NaN", tenant_id=ACCOUNT)),
    "K41 +Inf": lambda v: vector(sample("+Inf", tenant_id=ACCOUNT)),
    "K41 text": lambda v: vector(sample("cheap", tenant_id=ACCOUNT)),
    "K43 another's": lambda v: vector(sample("9", tenant_id=OTHER)),
    "K43 another's beside": lambda v: vector(sample("2.4", tenant_id=ACCOUNT), sample("9", tenant_id=OTHER)),
    "K44 nobody's": lambda v: vector(sample("9")),
    "K45 twice": lambda v: vector(sample("2.4", tenant_id=ACCOUNT), sample("2.4", tenant_id=ACCOUNT)),
    "an error inside a 200": lambda v: {"status": "error", "errorType": "x", "error": "y"},
    "html": lambda v: b"<html>",
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_cannot_be_is_unknown_and_named(stack, name):
    found = ask(stack, BAD[name])
    assert found["summary"]["management_cost"] is None and found["total_cost"] is None
    assert found["summary"]["known_cost"] == 3.0 and not found["complete"]
    assert {s["name"]: s["status"] for s in found["sources"]}["thanos"] == "unavailable"


def test_a_warning_makes_the_source_partial(stack):
    found = ask(stack, lambda whole: whole | {"warnings": ["store gone"]})
    assert found["summary"]["management_cost"] == 2.4 and not found["complete"]
    thanos = next(s for s in found["sources"] if s["name"] == "thanos")
    assert thanos["status"] == "partial" and "store gone" in thanos["warnings"]


def test_a_thanos_that_lost_every_store_says_success_and_is_no_data(stack):
    thanos = FakeUpstream()
    thanos.answer = lambda request: Answer(body=json.dumps(vector()).encode())
    running = stack.start(thanos_query_url=stack.serve(thanos.application))
    found = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, **DAY).json()
    assert found["total_cost"] is None and found["summary"]["known_cost"] is None and not found["complete"]
    assert {s["status"] for s in found["sources"]} == {"no_data"}


def test_the_request_id_and_the_tenant_go_along_and_the_secret_does_not(stack):
    thanos, seen = FakeUpstream(), []

    def answer(request):
        seen.append(dict(request.headers))
        return Answer(body=json.dumps(vector()).encode())

    thanos.answer = answer
    running = stack.start(thanos_query_url=stack.serve(thanos.application))
    import requests

    from tests.support import SECRET

    url = f"{running.metroculus_listener.url}/metroculus/v2/k8s_metadata?cloud_account_id={ACCOUNT}"
    requests.get(url, headers={"Secret": SECRET, "X-Request-ID": "follow-me"}, timeout=20)
    assert seen and all(one["X-Request-Id"] == "follow-me" and one["Thanos-Tenant"] == ACCOUNT for one in seen)
    assert not any("Secret" in one for one in seen)
