"""A month of 100,000 allocations shared out by 50 rules: from cells to the rows of a chargeback."""

from __future__ import annotations

import random
import time
from statistics import median

from benchmarks.figures import Declared
from metroculus.cost_model.components import CLUSTER_COMPONENTS
from metroculus.cost_model.rules import Cell, CostCenter, Match, Overhead, Rules, Shared, rows_by, share_out

ALLOCATIONS, ROUNDS = 100_000, 5

FIGURES = (
    Declared(
        "share_out_100000_ms", "ms", "100,000 allocations shared out by 50 rules and summed by cost center", at_most=500
    ),
)  # fmt: skip

RULES = Rules(
    valid_from="2026-11",
    cost_centers=tuple(
        CostCenter(
            name=f"center-{n}",
            match=(
                Match(namespace=f"ns-{n}*"),
                Match(label="team", values=(f"team-{n}",)),
                Match(label="env", values=(f"env-{n}*",)),
            ),
        )
        for n in range(40)
    ),
    shared=tuple(Shared(name=f"shared-{n}", match=(Match(namespace=f"ns-{n}9*"),)) for n in range(8)),
    overhead=(Overhead(name="support", amount_month=1e3), Overhead(name="licence", amount_month=1e3, split="even")),
    idle="weighted",
    management="even",
)


def measure() -> dict[str, float]:
    chance = random.Random(1)
    cells = [
        Cell(
            f"cluster-{chance.randrange(10)}",
            "USD",
            f"ns-{chance.randrange(2000)}",
            (f"team-{chance.randrange(100)}", f"env-{chance.randrange(50)}"),
            tuple(chance.random() for _ in CLUSTER_COMPONENTS),
        )
        for _ in range(ALLOCATIONS)
    ]
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        rows_by(share_out(RULES, cells), "cost_center")
        took.append(1000 * (time.perf_counter() - began))
    return {"share_out_100000_ms": median(took)}
