"""Worlds of the field, drawn by seed: what every view says of them is right, or is said to be unknown."""

from __future__ import annotations

import pytest

from simulator.field import HARDSHIPS, make_field_world
from tests.support import ACCOUNT, DAY, END, Metroculus
from tests.worlds.views import Asked, figures


@pytest.mark.parametrize("hardship", sorted(HARDSHIPS))
@pytest.mark.parametrize("kind", ["kubecost", "opencost", "stored", "metrics"])
def test_hardship(kind, hardship, stack, request):
    world = make_field_world([hardship], seed=3, days=2, end=END, prime=7)
    plan = {}
    adjusted = kind == "kubecost"
    if kind == "metrics":
        prometheus = request.getfixturevalue("prometheus_factory")()
        prometheus.load_world(world, ACCOUNT)
        prometheus.start()
        plan = {"thanos_query_url": prometheus.url}
    else:
        _, url = stack.simulate(world)
        plan = {
            "kubecost_api_url": url,
            "kubecost_account_id": ACCOUNT,
            "kubecost_flavour": "opencost" if kind == "opencost" else "kubecost",
        }
        adjusted = kind != "opencost"
    if kind == "stored":
        plan["clickhouse_url"] = f"embedded:{stack.folder / 'store'}"
    running = stack.start(**plan)
    if kind == "stored":
        fill = running.worker.worker.fill(ACCOUNT, (world.start, END), 2, lambda progress: None)
        stack.thread.run(fill)
    from tests.support import NOW

    asked = Asked(Metroculus(running), world, END - DAY, END, adjusted, managed=kind != "opencost", now=NOW)
    if kind == "metrics":
        asked.groupings = ("controller", "controllerKind", "pod", "label:team")
    bad = []
    tol = 5e-3 if kind == "metrics" else 1e-4
    n = 0
    unknown = 0
    for f in figures(asked):
        n += 1
        if f.answer is None or not f.complete:
            unknown += 1
            continue
        if abs(f.answer - f.truth) > max(1e-3, tol * abs(f.truth)):
            bad.append((f.view, round(f.answer, 4), round(f.truth, 4)))
    print("RES", kind, hardship, n, "unknown", unknown, "bad", len(bad), bad[:6])
