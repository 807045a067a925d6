"""What a statement costs its upstream is what ``docs/compatibility.md`` says, and every test that it names is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator.server import Habits
from tests.support import ACCOUNT, DAY, END, HOUR, Metroculus, Stack, exact_world

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "compatibility.md").read_text()
WORLD = exact_world(7, days=9)
OVER_MIDNIGHT = (END - DAY - 5 * HOUR, END - 5 * HOUR)
WINDOWS = ((END - DAY, END), (END - DAY - 5 * HOUR, END), (END - 7 * DAY, END), OVER_MIDNIGHT)
ROW = re.compile(r"^\| ([A-Za-z]+): ([a-z]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)
DOCUMENTED = {(source, what): tuple(map(int, figures)) for source, what, *figures in ROW.findall(PAGE)}


def counted(asked: Metroculus, count: Callable[[], int]) -> tuple[int, ...]:
    """What each window's statement costs, after one that finds out what the upstream is."""
    found = []
    for start, end in (WINDOWS[0], *WINDOWS):
        before = count()
        dates = {"cloud_account_id": ACCOUNT, "start_date": start, "end_date": end}
        body = asked.get("kubecost_cluster_costs", **dates)
        assert body.status_code == 200, body.text
        found.append(count() - before)
    return tuple(found[1:])


def test_the_page_has_every_source() -> None:
    assert set(DOCUMENTED) == {
        ("Kubecost", "allocation"), ("Kubecost", "assets"), ("OpenCost", "allocation"), ("metrics", "queries")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flavour", "source", "what", "path"),
    [
        ("kubecost", "Kubecost", "allocation", "/model/allocation"),
        ("kubecost", "Kubecost", "assets", "/model/assets"),
        ("opencost", "OpenCost", "allocation", "/allocation"),
    ],
)
def test_calls_of_an_allocation_api(stack: Stack, flavour: str, source: str, what: str, path: str) -> None:
    simulator, url = stack.simulate(WORLD, Habits(serves=frozenset({flavour})))
    running = stack.start(kubecost_api_url=url, kubecost_account_id=ACCOUNT, kubecost_flavour=flavour, cache_ttl=0.0)
    assert counted(Metroculus(running), lambda: simulator.asked[path]) == DOCUMENTED[source, what]


def test_queries_of_metrics(stack: Stack, prometheus_factory: Any) -> None:
    prometheus = prometheus_factory()
    prometheus.load_world(WORLD, ACCOUNT, interval=300)
    prometheus.start()
    running = stack.start(thanos_query_url=prometheus.url, cache_ttl=0.0, kubecost_timeout=120.0)

    def queries() -> int:
        lines = requests.get(f"{prometheus.url}/metrics", timeout=10).text.splitlines()
        told = (line for line in lines if line.startswith("prometheus_http_requests_total") and "v1/query" in line)
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in told))

    assert counted(Metroculus(running), queries) == DOCUMENTED["metrics", "queries"]


def test_every_test_that_the_page_names_is_there() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", PAGE))
    assert named and not {name for name in named if f"def {name}(" not in sources}
