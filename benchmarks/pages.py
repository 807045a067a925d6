"""The page of one cluster with a stored month, in a real Chromium: when its table and chart are there to be read."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Page, sync_playwright

from benchmarks.figures import Declared
from benchmarks.stacks import stack_in
from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.columns import Allocations
from metroculus.cost_model.components import Costs
from metroculus.storage.ledger import FencedWriter, HourBatch
from tests.support import DAY, END, HOUR, NOW, Stack, link_pushed, make_tenant

NAMESPACES, PODS, DAYS, LIFE_DAYS = 200, 10_000, 30, 3
ROUNDS = 5
STORED_DAYS = DAYS + ROUNDS
"""Each round asks for a month that begins a day later: nothing of it was answered before."""
FOLDER = Path("build/bench-pages")
CHROMIUM = "/usr/bin/chromium"
WHEN_PAINTED = """(() => {
  const wanted = %s;
  const seen = () => {
    if (window.paintedAt !== undefined || !document.querySelector(wanted)) return;
    window.paintedAt = null;
    requestAnimationFrame(() => setTimeout(() => { window.paintedAt = performance.now(); }));
  };
  new MutationObserver(seen).observe(document, { childList: true, subtree: true });
})()"""
"""Notes when something of a page has been painted, by the browser's clock, which begins with the request."""
LONGEST_TASK = """() => new Promise(resolve => {
  const found = [0];
  new PerformanceObserver(list => found.push(...list.getEntries().map(one => one.duration)))
    .observe({ type: 'longtask', buffered: true });
  setTimeout(() => resolve(Math.max(...found)), 300);
})"""

FIGURES = (
    Declared(
        "page_of_a_month_ms", "ms",
        f"from the request to table and chart of a month of {NAMESPACES} namespaces and {PODS:,} pods, in Chromium",
        at_most=300,
    ),
    Declared("page_of_a_month_to_static", "ratio", "the same to a page that asks nothing"),
    Declared("page_of_1000_rows_ms", "ms", "the same with 1,000 rows, by pod", at_most=1000),
    Declared("page_longest_task_ms", "ms", "longest task of the browser meanwhile", at_most=200),
)  # fmt: skip


def measure() -> dict[str, float]:
    with stack_in(FOLDER) as stack:
        return _measure(stack)


def _rows(day: int) -> Allocations:
    """The pods that are there on a day: each lives for three."""
    alive = [pod for pod in range(PODS) if 0 <= day - pod * DAYS // PODS < LIFE_DAYS]
    return Allocations.of(
        [
            Allocation(
                name=f"ns-{pod % NAMESPACES}/pod-{pod}", namespace=f"ns-{pod % NAMESPACES}", pod=f"pod-{pod}",
                controller=f"app-{pod % 500}", controller_kind="deployment", node=f"node-{pod % 50}",
                labels={"team": f"team-{pod % 20}"}, costs=Costs(cpu=0.01 + pod % 7 / 1000, ram=0.004),
            )
            for pod in alive
        ]
        + [Allocation(name="__idle__", namespace="", pod="", costs=Costs(cpu=1.5, ram=0.5))]
    )  # fmt: skip


def _measure(stack: Stack) -> dict[str, float]:
    running: Any = stack.start(clickhouse_url=f"embedded:{FOLDER / 'store'}", rounds=False)
    tenant = make_tenant(running, "acme")
    store, directory = running.metroculus.dependencies.store, running.rest_api.directory
    cluster = link_pushed(stack, running, tenant.organization_id, "large")
    writer, start = FencedWriter(1), END - STORED_DAYS * DAY
    for day in range(STORED_DAYS):
        rows, first = _rows(day), start + day * DAY
        hours = range(first, first + DAY, HOUR)
        batches = [HourBatch(account=cluster, hour=hour, allocations=rows, management=0.1) for hour in hours]
        store.ledger.commit(batches, writer)
    store.summaries.rebuild(cluster, start, END, writer)
    base = running.rest_api_listener.url
    token_id = directory.tokens("acme viewer")[0].id
    link = f"{base}/sign-in?code={directory.create_sign_in(token_id, 'code', NOW + 600)}"
    cluster_page = f"{base}/clusters/{cluster}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.add_init_script(WHEN_PAINTED % json.dumps("#rows tfoot, #token"))
        page.goto(link)
        found = {"by namespace": list[float](), "static": list[float](), "by pod": list[float](), "task": list[float]()}
        for number in range(ROUNDS + 1):
            first = start + number * DAY
            month = f"{cluster_page}?window={first},{first + DAYS * DAY}"
            measured = {
                "static": _ready(page, f"{base}/sign-in"),
                "by namespace": _ready(page, month),
                "by pod": _ready(page, f"{month}&by=pod"),
            }
            page.wait_for_load_state("load")
            measured["task"] = float(page.evaluate(LONGEST_TASK))
            if number:  # the first starts what others find running
                for name, value in measured.items():
                    found[name].append(value)
        assert page.locator("#rows tbody tr:not(.special)").count() == 1000
        browser.close()
    middle = {name: median(values) for name, values in found.items()}
    return {
        "page_of_a_month_ms": middle["by namespace"],
        "page_of_a_month_to_static": middle["by namespace"] / middle["static"],
        "page_of_1000_rows_ms": middle["by pod"],
        "page_longest_task_ms": max(found["task"]),
    }


def _ready(page: Page, address: str) -> float:
    """Milliseconds from the request until something of the page has been painted."""
    page.goto(address, wait_until="commit")
    return float(page.wait_for_function("() => window.paintedAt").json_value())
