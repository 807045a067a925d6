"""A cluster that is known by its metrics alone: what they can tell is told, what they cannot is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.costs import truth
from simulator.field import make_field_world
from simulator.server import Habits
from simulator.world import World
from tests.support import ACCOUNT, DAY, END, HOUR, NOW, Metroculus, Stack, exact_world
from tools.window import parse_rfc3339

PRIME = 7
DATES = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": END}
OWN = {"core_hour": PRIME / 32, "ram_gib_hour": PRIME / 32, "gpu_hour": PRIME / 8, "storage_gib_hour": PRIME / 32}


def without_prices(world: World) -> World:
    """The world on machines that nobody put a price on."""
    free = {"usd_per_core_hour": 0.0, "usd_per_gib_hour": 0.0, "usd_per_gpu_hour": 0.0}
    nodes = {id(node): replace(node, **free) for node in world.nodes}
    containers = tuple(replace(one, node=nodes[id(one.node)]) for one in world.containers)
    volumes = tuple(replace(one, usd_per_gib_hour=0.0) for one in world.volumes)
    return replace(world, nodes=tuple(nodes.values()), containers=containers, volumes=volumes)


def recorded(prometheus_factory: Any, world: World) -> str:
    prometheus = prometheus_factory()
    prometheus.load_world(world, ACCOUNT)
    prometheus.start()
    return str(prometheus.url)


@pytest.fixture(scope="module")
def priced_url(prometheus_factory: Any) -> str:
    return recorded(prometheus_factory, exact_world(PRIME))


@pytest.fixture(scope="module")
def free_url(prometheus_factory: Any) -> str:
    """The same world on machines without a price."""
    return recorded(prometheus_factory, without_prices(exact_world(PRIME)))


def pushing(stack: Stack, url: str, **more: Any) -> Any:
    running = stack.start(thanos_query_url=url, **more.pop("plan", {}))
    status, _ = running.rest_api.metroculus.client.put_kubecost_source(ACCOUNT, "push", **more)
    assert status == 200
    return running


def test_nodes_without_a_price_are_no_free_cluster(stack: Stack, free_url: str) -> None:
    running = pushing(stack, free_url)
    body = Metroculus(running).get("kubecost_cluster_costs", **DATES).json()
    assert body["total_cost"] is None and not body["complete"]
    assert body["summary"]["cpu_cost"] is None and body["summary"]["ram_cost"] is None
    assert "unpriced: cpu, ram" in str(body["sources"])


def test_a_cluster_that_pushes_is_priced_by_its_operator(stack: Stack, free_url: str) -> None:
    priced = exact_world(PRIME)
    running = pushing(stack, free_url, custom_prices=OWN)
    body = Metroculus(running).get("kubecost_cluster_costs", **DATES, detail_level="namespace").json()
    true: Any = truth(priced, END - DAY, END, now=NOW)
    for component in ("cpu_cost", "ram_cost", "gpu_cost", "pv_cost"):
        assert body["summary"][component] == pytest.approx(true["summary"][component], rel=5e-3), component
    assert body["idle_cost"] == pytest.approx(true["idle_cost"], rel=5e-3)
    rows = {row["namespace"]: row["total_cost"] for row in body["breakdown_by_namespace"]}
    assert rows == {name: pytest.approx(usd, rel=5e-3, abs=2e-3) for name, usd in true["namespaces"].items()}
    assert body["complete"], body["sources"]


def test_the_history_of_a_cluster_that_pushes_is_priced_alike(stack: Stack, free_url: str) -> None:
    priced = exact_world(PRIME)
    plan = {"clickhouse_url": f"embedded:{stack.folder / 'store'}"}
    running = pushing(stack, free_url, custom_prices=OWN, plan=plan)
    done = stack.fill(running, END - DAY, END)
    assert done.complete, done.last_reason
    body = Metroculus(running).get("kubecost_cluster_costs", **DATES).json()
    true: Any = truth(priced, END - DAY, END, now=NOW)
    for component in ("cpu_cost", "ram_cost", "gpu_cost", "pv_cost"):
        assert body["summary"][component] == pytest.approx(true["summary"][component], rel=5e-3), component


@pytest.mark.parametrize("aggregate", ["annotation:owner", "namespace,annotation:example.com/cost-center"])
def test_what_metrics_cannot_tell_is_refused_by_name(stack: Stack, priced_url: str, aggregate: str) -> None:
    running = pushing(stack, priced_url)
    answer = Metroculus(running).get("kubecost_cluster_costs", **DATES, aggregate=aggregate)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["params"] == ["aggregate"]
    assert aggregate.split(",")[-1] in answer.json()["error"]["reason"]


def test_a_label_that_stored_hours_do_not_carry_is_asked_of_the_metrics(stack: Stack, priced_url: str) -> None:
    world = exact_world(PRIME)
    plan = {"clickhouse_url": f"embedded:{stack.folder / 'store'}"}
    running = pushing(stack, priced_url, plan=plan)
    done = stack.fill(running, END - DAY, END)
    assert done.complete, done.last_reason
    asked = Metroculus(running)
    label = next(name for one in world.containers for name in one.labels if name not in ("app", "team", "owner"))
    live = Metroculus(pushing(stack, priced_url)).get("kubecost_cluster_costs", **DATES, aggregate=f"label:{label}")
    body = asked.get("kubecost_cluster_costs", **DATES, aggregate=f"label:{label}").json()
    rows = {row["name"]: row["total_cost"] for row in body["breakdown_by_aggregate"]}
    assert set(rows) != {"__unallocated__"}
    assert rows == {row["name"]: pytest.approx(row["total_cost"]) for row in live.json()["breakdown_by_aggregate"]}
    refused = asked.get("k8s_expenses", **DATES, group_by=f"label:{label}")
    assert refused.status_code == 400 and f"label:{label}" in refused.json()["error"]["reason"]
    kept = asked.get("k8s_expenses", **DATES, group_by="label:team").json()
    assert {row["label:team"] for row in kept["expenses"]} - {"__unallocated__", "__idle__"}


def test_an_upstream_that_prices_nothing_is_no_free_cluster(stack: Stack) -> None:
    def unpriced(path: str, answer: Any) -> Any:
        for one in answer["data"] if isinstance(answer["data"], list) else [answer["data"]]:
            for row in one.values():
                row.update({key: 0 for key in row if key.endswith("Cost")})
        return answer

    plan = {"clickhouse_url": f"embedded:{stack.folder / 'store'}"}
    _, url = stack.simulate(exact_world(PRIME), Habits(rewrite=unpriced))
    running = stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT, **plan)
    asked = Metroculus(running)
    body = asked.get("kubecost_cluster_costs", **DATES).json()
    assert body["total_cost"] is None and "unpriced: cpu, ram" in str(body["sources"])
    stack.fill(running, END - DAY, END)
    body = asked.get("kubecost_cluster_costs", **DATES).json()
    assert body["total_cost"] is None and not body["complete"], "stored hours say the same"


def test_prices_that_begin_at_midnight_are_judged_day_by_day(stack: Stack) -> None:
    """Priced from yesterday on: the day before is not free, and the operator's prices hold for it alone."""
    compute = ("cpu", "ram", "gpu")

    def rewrite(path: str, answer: Any) -> Any:
        for one in answer["data"] if path == "/model/allocation" else []:
            for row in one.values():
                if (parse_rfc3339(row["window"]["end"]) or 0) <= END - DAY:
                    row.update({key: 0 for key in row if key[:3] in compute and key.endswith(("Cost", "Adjustment"))})
        return answer

    world = replace(exact_world(PRIME), discount=0.0)
    _, url = stack.simulate(world, Habits(serves=frozenset({"kubecost"}), rewrite=rewrite))
    both = DATES | {"start_date": END - 2 * DAY}
    asked = Metroculus(stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT))
    body = asked.get("kubecost_cluster_costs", **both, step="day").json()
    assert body["total_cost"] is None and not body["complete"]
    assert [point["complete"] for point in body["data_points"]] == [False, True]
    running = stack.start()
    client = running.rest_api.metroculus.client
    assert client.put_kubecost_source(ACCOUNT, "kubecost", url, custom_prices=OWN)[0] == 200
    body = Metroculus(running).get("kubecost_cluster_costs", **both).json()
    true: Any = truth(world, END - 2 * DAY, END, now=NOW, adjusted=True)
    for component in ("cpu_cost", "ram_cost", "gpu_cost"):
        assert body["summary"][component] == pytest.approx(true["summary"][component], rel=1e-3), component


@pytest.mark.parametrize(("flavour", "no_idle"), [("opencost", False), ("opencost", True), ("kubecost", False)])
def test_what_nodes_have_and_nobody_asked_for_has_the_operators_price(
    stack: Stack, flavour: str, no_idle: bool
) -> None:
    """A GPU that no pod has is idle, whether its pod runs for six hours, for none, or the upstream tells no idle."""
    world = replace(exact_world(PRIME), discount=0.0)
    short = replace(
        world,
        containers=tuple(
            replace(one, start=max(one.start, END - DAY), end=min(one.end, END - DAY + 6 * HOUR)) if one.gpus else one
            for one in world.containers
        ),
    )
    gpu = {"usd_per_gpu_hour": 0.0}
    nodes = {id(node): replace(node, **gpu) for node in short.nodes}
    told = replace(
        short,
        nodes=tuple(nodes.values()),
        containers=tuple(replace(one, node=nodes[id(one.node)]) for one in short.containers),
    )
    _, url = stack.simulate(told, Habits(serves=frozenset({flavour}), no_idle=no_idle))
    running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}")
    client = running.rest_api.metroculus.client
    assert client.put_kubecost_source(ACCOUNT, flavour, url, custom_prices={"gpu_hour": PRIME / 8})[0] == 200
    windows = [(END - DAY, END), (END - 18 * HOUR, END), (END - 2 * DAY, END - DAY)]

    def held() -> None:
        for start, end in windows:
            dates = {"cloud_account_id": ACCOUNT, "start_date": start, "end_date": end}
            body = Metroculus(running).get("kubecost_cluster_costs", **dates).json()
            true: Any = truth(short, start, end, now=NOW)
            assert body["summary"]["gpu_cost"] == pytest.approx(true["summary"]["gpu_cost"], abs=1e-3)
            assert body["idle_cost"] == pytest.approx(true["idle_cost"], abs=2e-3)

    held()
    assert stack.fill(running, END - 2 * DAY, END, 2).complete
    held()


def test_every_cluster_of_an_account_must_have_a_price(stack: Stack) -> None:
    """One of two is priced: the other is not free, and the operator's prices hold for it alone."""
    one = replace(exact_world(PRIME, days=2), discount=0.0)
    two = make_field_world([], seed=5, days=2, end=END, prime=PRIME, cluster_id="cluster-two")
    two = replace(two, discount=0.0)
    simulator, url = stack.simulate(one, Habits(serves=frozenset({"kubecost"})))
    simulator.others = (without_prices(two),)
    running = stack.start()
    client = running.rest_api.metroculus.client
    assert client.put_kubecost_source(ACCOUNT, "kubecost", url, cluster="*")[0] == 200
    body = Metroculus(running).get("kubecost_cluster_costs", **DATES).json()
    assert body["total_cost"] is None and "unpriced: cpu, ram" in str(body["sources"])
    assert client.put_kubecost_source(ACCOUNT, "kubecost", url, cluster="*", custom_prices=OWN)[0] == 200
    body = Metroculus(running).get("kubecost_cluster_costs", **DATES).json()
    both = [truth(world, END - DAY, END, now=NOW, adjusted=True) for world in (one, two)]
    assert body["total_cost"] == pytest.approx(sum(float(true["total_cost"]) for true in both), rel=1e-4)  # type: ignore[arg-type]
