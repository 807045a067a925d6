"""Answers of real upstreams, through decoder and statement."""

from __future__ import annotations

import json
from math import fsum
from pathlib import Path

import pytest

from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.assets import merge, totals
from metroculus.cost_model.reading import ManagementReading, SourceReport, judge_sets
from metroculus.cost_model.reconcile import reconcile
from metroculus.cost_model.statement import Question
from metroculus.sources.answers.allocation_json import decode_allocation
from metroculus.sources.answers.assets_json import decode_assets
from metroculus.sources.errors import BadAnswer
from metroculus.sources.kubecost.client import upstream_aggregate
from metroculus.sources.kubecost.savings import decode_abandoned, decode_overview, decode_request_sizing
from tools.window import DAY, Window

DATA = Path(__file__).parent.parent / "data" / "upstream"
REAL = DATA / "real_opencost"
TRUTH = json.loads((REAL / "truth.json").read_text())
TWO_DAYS = Window.past(TRUTH["start"], TRUTH["end"])
JOBS = "batch"


def read(name, aggregate=("namespace",), window=TWO_DAYS):
    decoded = decode_allocation("upstream", (REAL / name).read_bytes(), aggregate)
    return judge_sets("allocation", decoded.sets, window, 0, decoded.warnings)


def statement(reading, detail="namespace", window=TWO_DAYS, management=None, aggregate=()):
    readings = [] if management is None else [management]
    return reconcile(
        Question(cloud_account_id="a", window=window, detail=detail, aggregate=aggregate), reading, None, readings
    )


def true_namespace(name):
    return fsum(TRUTH["namespaces"][name].values())


@pytest.mark.parametrize("name", ["alloc_namespace_step1d_idle.json", "alloc_namespace_idle_acc.json"])
def test_the_statement_of_a_real_opencost_is_the_truth(name):
    management = ManagementReading(source=SourceReport(name="thanos", status="ok"), usd=TRUTH["management"])
    found = statement(read(name), management=management)
    assert found.complete
    rows = {row.namespace: row.total_cost for row in found.breakdown_by_namespace}
    for namespace in ("shop", "api", "kube-system"):
        assert rows[namespace] == pytest.approx(true_namespace(namespace), rel=2e-3)
    jobs_too_long = rows[JOBS] - true_namespace(JOBS)
    assert 0 < jobs_too_long < 0.1 * true_namespace(JOBS)
    total = TRUTH["allocation_total"] + TRUTH["management"]
    assert found.total_cost == pytest.approx(total, rel=2e-3)
    assert found.idle_cost + jobs_too_long == pytest.approx(TRUTH["idle"], rel=2e-3)
    assert found.special["__unmounted__"] == pytest.approx(0.1644, rel=2e-3)
    assert found.summary.network_cost == pytest.approx(TRUTH["network"], rel=2e-3)
    parts = fsum(rows.values()) + found.idle_cost + found.unallocated_cost + TRUTH["management"]
    assert parts == pytest.approx(found.total_cost, rel=1e-6)


def test_half_the_data_looks_whole_and_is_not():
    window = Window.past(1794960000, 1795132800)
    found = statement(read("alloc_half_data.json", window=window), window=window)
    assert found.sources[0].coverage == pytest.approx(1500 / 2880)
    assert found.sources[0].status == "partial" and not found.complete


@pytest.mark.parametrize("name", ["alloc_future.json", "alloc_before_data.json"])
def test_a_window_that_nothing_is_known_of_is_no_data(name):
    assert read(name).source.status == "no_data"


@pytest.mark.parametrize(
    "name",
    ["alloc_missing_window.txt", "alloc_bad_window.txt", "alloc_reversed.json", "model_allocation.txt", "savings.txt"],
)
def test_errors_are_not_json_until_proved_so(name):
    with pytest.raises(BadAnswer):
        read(name)


def test_hours_and_minutes_of_it_are_read_too():
    hours = decode_allocation("upstream", (REAL / "alloc_namespace_step1h_idle.json").read_bytes(), ("namespace",))
    assert len(hours.sets) == 6 and all(one.end - one.start == 3600 for one in hours.sets)
    minute = decode_allocation("upstream", (REAL / "alloc_1min.json").read_bytes(), ("namespace",))
    assert minute.sets[0].end - minute.sets[0].start == 60


def test_containers_are_keyed_by_where_they_ran_and_summed_to_workloads():
    day = Window.past(TRUTH["start"], TRUTH["start"] + DAY)
    found = statement(read("alloc_container_all.json", (), day), "workload", day)
    workloads = {f"{r.namespace}/{r.controller_kind}/{r.controller}": r.total_cost for r in found.breakdown_by_workload}
    assert workloads["shop/statefulset/db"] == pytest.approx(1.4904)
    assert {"api/deployment/gateway", "shop/deployment/web", "kube-system/daemonset/kube-proxy"} <= set(workloads)
    by_namespace = {row.namespace: row for row in found.breakdown_by_namespace}
    assert by_namespace["shop"].pod_count == 4


def test_a_filter_that_was_ignored_is_applied_again():
    everything = statement(read("alloc_filter.json", ("pod",)), "pod")
    assert len({row.namespace for row in everything.breakdown_by_pod}) == 4
    question = Question(cloud_account_id="a", window=TWO_DAYS, detail="pod", filters=Filters(namespaces=("shop",)))
    found = reconcile(question, read("alloc_filter.json", ("pod",)), None, [])
    assert {row.namespace for row in found.breakdown_by_pod} == {"shop"}


def test_an_unknown_aggregate_comes_back_without_an_owner():
    found = statement(read("alloc_bad_aggregate.json", ("banana",)))
    assert not found.breakdown_by_namespace and "" in found.special


def test_every_recorded_allocation_is_read_without_losing_a_row():
    for file in sorted(REAL.glob("alloc_*.json")):
        if file.name in ("alloc_reversed.json", "alloc_summary.json"):
            continue
        raw = json.loads(file.read_text())
        decoded = decode_allocation("upstream", file.read_bytes(), ("namespace",))
        assert sum(one.quarantined for one in decoded.sets) == 0, file.name
        assert sum(len(one.allocations) for one in decoded.sets) == sum(len(one) for one in raw["data"]), file.name


def test_assets_of_a_real_opencost():
    assets = merge(decode_assets("upstream", (REAL / "assets.json").read_bytes()).assets)
    assert totals(assets) == pytest.approx({"disk": 0.822, "load_balancer": 1.200417, "node": TRUTH["nodes"]}, rel=1e-6)
    late = next(asset for asset in assets if asset.name == "node-2")
    assert late.spot and late.hours == 36 and late.instance_type == "c5.xlarge"
    assert fsum(late.priced) == pytest.approx(late.total_cost)
    volumes = {asset.name: asset.claim_name for asset in assets if asset.type == "disk"}
    assert volumes == {"pvc-1": "data-db-0", "pvc-2": ""}
    assert decode_assets("upstream", (REAL / "assets_future.json").read_bytes()).assets == ()
    with pytest.raises(BadAnswer):
        decode_assets("upstream", (REAL / "assets_bad_window.txt").read_bytes())


def test_public_assets_as_an_object():
    assets = decode_assets("upstream", (DATA / "04_opencost_assets_7d_node_disk.json").read_bytes()).assets
    assert {asset.type for asset in assets} == {"node", "disk"}


def test_an_asset_holds_its_adjustment_already():
    node = {
        "type": "Node", "properties": {"name": "n"}, "minutes": 1440, "cpuCost": 59000.0, "ramCost": 9600.0, "gpuCost": 0,
        "adjustment": -68570.0, "totalCost": 30.0,
    }  # fmt: skip
    kubecost = json.dumps({"code": 200, "data": [{"Node": node}, None, {}]}).encode()
    (asset,) = decode_assets("upstream", kubecost).assets
    assert totals([asset]) == {"node": 30.0}
    assert fsum(asset.priced) == pytest.approx(30.0)


def test_negative_idle_as_recorded():
    body = (DATA / "01_opencost_allocation_idle_negative_24h.json").read_bytes()
    decoded = decode_allocation("upstream", body, ("namespace",))
    one = decoded.sets[0]
    window = Window.past(one.start, one.end)
    found = statement(judge_sets("allocation", decoded.sets, window, 0), window=window)
    assert found.idle_cost == pytest.approx(-186.571, abs=1e-3)
    assert "idle is negative" in found.sources[0].warnings


def test_a_recorded_total_that_is_not_the_sum_of_its_parts():
    body = (DATA / "kubecost-allocation-adjusted.json").read_bytes()
    decoded = decode_allocation("upstream", body, ("cluster", "namespace"))
    allocation = decoded.sets[0].allocations[0]
    assert allocation.namespace == "fish"
    assert allocation.costs.cpu == pytest.approx(0.0977 - 0.0235)
    assert allocation.costs.total == pytest.approx(0.24547, abs=1e-4)
    assert abs(decoded.sets[0].disagreement) > 0.01


def test_savings_in_both_shapes_and_only_of_the_own_cluster():
    version3 = decode_overview((DATA / "09_kubecost3_savings_overview.json").read_bytes(), "cluster-one")
    assert version3["containerRequestSizing"] == 831.94
    assert sum(version3.values()) == pytest.approx(632.78 + 1888.08 + 118.45 + 218.66 + 22.67 + 831.94)
    by_cluster = {
        "another": {"requestSizing": {"state": "ready", "value": 9999.0}},
        "mine": {
            "requestSizing": {"state": "ready", "value": 10.0},
            "clusterSizing": {"state": "computing", "value": 7.0},
        },
    }
    for body in (by_cluster, {"code": 200, "data": by_cluster}):
        assert decode_overview(json.dumps(body).encode(), "mine") == {"requestSizing": 10.0}
    sizing = decode_request_sizing((DATA / "10_kubecost3_savings_requestSizingV2.json").read_bytes(), "cluster-one")
    assert sum(one.monthly_saving for one in sizing) == 45.5
    assert [one for one in sizing if one.resource == "memory"][0].requested == 512 * 2**20
    abandoned = decode_abandoned((DATA / "11_kubecost3_savings_abandonedWorkloads.json").read_bytes(), "cluster-one")
    assert [one.monthly_saving for one in abandoned] == [42.5, 8.0]
    assert decode_request_sizing((DATA / "10_kubecost3_savings_requestSizingV2.json").read_bytes(), "other") == []


@pytest.mark.parametrize(
    ("asked", "aggregate"),
    [
        ({}, ("cluster", "namespace")),
        ({"filters": Filters(namespaces=("shop",))}, ("cluster", "namespace")),
        ({"detail": "workload"}, ("cluster", "namespace", "pod")),
        ({"aggregate": ("controller",)}, ("cluster", "namespace", "pod")),
        ({"aggregate": ("service",)}, ()),
        ({"aggregate": ("node", "namespace")}, ()),
        ({"aggregate": ("label:team",)}, ()),
        ({"filters": Filters(services=("web",))}, ()),
        ({"filters": Filters(nodes=("node-1",))}, ()),
    ],
)
def test_what_a_sum_loses_is_asked_for_container_by_container(asked, aggregate):
    assert upstream_aggregate(Question(cloud_account_id="a", window=TWO_DAYS, **asked)) == aggregate
