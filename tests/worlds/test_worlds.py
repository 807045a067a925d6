"""Worlds of the field, drawn by seed: what every view says of them is right, or is said not to be known whole.

``WORLDS=200`` draws so many (``make test-long``).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from simulator.field import HARDSHIPS, make_field_world
from simulator.openmetrics import Recording
from simulator.world import World
from tests.support import ACCOUNT, DAY, END, NOW, Metroculus, Stack
from tests.worlds.views import Asked, Figure, figures
from tools.zones import zone_of

WORLDS = int(os.environ.get("WORLDS", "12"))
KINDS = ("kubecost", "opencost", "stored", "metrics", "beside")
"""Who tells: a live upstream, the store, metrics alone, or the store for one half and the upstream for the other."""
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata")
PRIMES = (0, 7, 11)
MINUTE = 60

NOT_TOLD = {
    "kubecost": {"blind_hours": "containers are not known of all of the time"},
    "stored": {"blind_hours": "containers are not known of all of the time"},
    "beside": {"blind_hours": "containers are not known of all of the time"},
    "opencost": {"blind_hours": "containers are not known of all of the time"},
    "metrics": {
        "blind_hours": "containers are not known of all of the time",
        "late_network": "network counters are not there all of the time",
    },
}
"""By kind of source: the hardships under which not all can be known, and why."""
OF_THE_WINDOW = {"statement", "namespace", "pod", "efficiency", "by", "filter"}
"""Views of the whole window: where some of its time is not known, none of them may say that it is whole."""


class Drawn:
    """One world: which hardships it has, how it is recorded, and who answers for it."""

    def __init__(self, seed: int) -> None:
        rng = Random(seed)
        self.kind = KINDS[seed % len(KINDS)]
        possible = sorted(HARDSHIPS)
        drawn = set(rng.sample(possible, rng.randint(3, len(possible))))
        if rng.random() < 0.75:  # under it little is known whole, and little can be held
            drawn.discard("blind_hours")
        self.hardships = tuple(sorted(drawn))
        self.prime = rng.choice(PRIMES)
        self.world: World = make_field_world(self.hardships, seed=seed, days=2, end=END, prime=self.prime)
        self.interval = rng.choice((30, 60))
        self.zone = zone_of(rng.choice(ZONES))
        changes = rng.choice((None, (END - DAY // 3, 60)))
        self.recording = Recording(
            interval=self.interval,
            cost_interval=rng.choice((0, 30)),
            interval_changes=changes,
            replicas=rng.choice((1, 1, 2)),
            kube_state_metrics=rng.choice((0, 2)),
            honor_labels=rng.choice((True, True, False)),
        )

    @property
    def reasons(self) -> list[str]:
        return sorted({why for name, why in NOT_TOLD[self.kind].items() if name in self.hardships})


def asked_of(drawn: Drawn, stack: Stack, request: pytest.FixtureRequest) -> Asked:
    kind, plan = drawn.kind, dict[str, Any]()
    if kind == "metrics":
        prometheus = request.getfixturevalue("prometheus_factory")()
        prometheus.load_world(drawn.world, ACCOUNT, recording=drawn.recording)
        prometheus.start()
        plan = {"thanos_query_url": prometheus.url}
    else:
        _, url = stack.simulate(drawn.world)
        flavour = "opencost" if kind == "opencost" else "kubecost"
        plan = {"kubecost_api_url": url, "kubecost_account_id": ACCOUNT, "kubecost_flavour": flavour}
    stored = {"stored": (drawn.world.start, END), "beside": (drawn.world.start, END - DAY // 2)}.get(kind)
    if stored is not None:
        plan["clickhouse_url"] = f"embedded:{stack.folder / 'store'}"
    running = stack.start(**plan, kubecost_timeout=120.0, cache_ttl=0.0)
    if stored is not None:
        stack.thread.run(running.worker.worker.fill(ACCOUNT, stored, 2, lambda progress: None))
    asked = Asked(
        Metroculus(running), drawn.world, END - DAY, END, adjusted=kind not in ("opencost", "metrics"),
        managed=kind != "opencost", now=NOW, zone=drawn.zone, stored=stored, saves=kind == "kubecost",
    )  # fmt: skip
    if kind == "metrics":
        asked.interval = 2 * MINUTE  # the longest interval, and its share of what stood idle meanwhile
        # What is of a pod as a whole is told with one of its containers, and no metric says with which.
        asked.groupings = tuple(name for name in asked.groupings if name != "container")
    return asked


def tolerance(figure: Figure, kind: str) -> float:
    """USD: exact but for upstream's rounding; by metrics half a hundredth, and an interval of what came or went."""
    if kind == "metrics":
        return max(2e-3, 5e-3 * abs(figure.truth), figure.interval_usd)
    return max(2e-3, 1e-5 * abs(figure.truth))


@pytest.mark.parametrize("seed", range(WORLDS))
def test_every_view_of_a_world_is_right_or_says_what_it_does_not_know(
    seed: int, stack: Stack, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    drawn = Drawn(seed)
    asked = asked_of(drawn, stack, request)
    wrong, counts = [], Counter[str]()
    views, right = set[str](), set[str]()
    for figure in figures(asked):
        view = figure.view.partition(" ")[0]
        views.add(view)
        if figure.answer is None or not figure.complete:
            assert drawn.reasons, (drawn.kind, drawn.hardships, figure, "could be known")
            counts["said not to be known whole"] += 1
            continue
        counts["right"] += 1
        right.add(view)
        if abs(figure.answer - figure.truth) > tolerance(figure, drawn.kind):
            wrong.append((figure.view, figure.answer, figure.truth))
    if "blind_hours" in drawn.hardships:
        assert not right & OF_THE_WINDOW, "passed off as whole"
    assert not wrong, (drawn.kind, drawn.prime, drawn.hardships, drawn.recording, wrong[:10], len(wrong))
    record_property("world", {"kind": drawn.kind, "figures": dict(counts), "views": len(views), "why": drawn.reasons})
