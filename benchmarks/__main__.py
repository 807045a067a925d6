"""``make bench``: figures as ratios to a limit measured in the same run, printed and into ``build/bench.json``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click

from benchmarks import (
    answers,
    chargeback,
    compare,
    document,
    gateway,
    history,
    opencost,
    organizations,
    pages,
    rounds,
    scale,
    service,
    upstreams,
    walls,
)
from benchmarks.figures import Declared, table

OUT = Path("build/bench.json")
SECTIONS: dict[str, tuple[tuple[Declared, ...], Callable[[], dict[str, float]]]] = {
    "answers": (answers.FIGURES, answers.measure),
    "service": (service.FIGURES, service.measure),
    "walls": (walls.FIGURES, walls.measure),
    "history": (history.FIGURES, history.measure),
    "upstreams": (upstreams.FIGURES, upstreams.measure),
    "rounds": (rounds.FIGURES, rounds.measure),
    "scale": (scale.FIGURES, scale.measure),
    "gateway": (gateway.FIGURES, gateway.measure),
    "chargeback": (chargeback.FIGURES, chargeback.measure),
    "organizations": (organizations.FIGURES, organizations.measure),
    "opencost": (opencost.FIGURES, opencost.measure),
    "pages": (pages.FIGURES, pages.measure),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("sections", nargs=-1, type=click.Choice(list(SECTIONS)))
@click.option("--against", metavar="REV", help="Run another commit and this one by turns, and print the ratio of both.")
@click.option("--rounds", default=5, show_default=True, help="Runs of each commit, with --against.")
@click.option("--document", "write", is_flag=True, help="Write docs/benchmarks.md from what was measured.")
def main(sections: tuple[str, ...], against: str | None, rounds: int, write: bool) -> None:
    """Measure SECTIONS (all by default); exit status 1 where a bar is missed."""
    chosen = sections or tuple(SECTIONS)
    if against is not None:
        print(compare.against(against, chosen, rounds))
        return
    found: dict[str, float] = {}
    declared: list[Declared] = []
    # A process for each section: what one leaves in memory would count as the next one's.
    with ProcessPoolExecutor(
        1, get_context("spawn"), logging.disable, (logging.WARNING,), max_tasks_per_child=1
    ) as processes:
        for name in chosen:
            print(f"{name} ...", flush=True)
            figures, measure = SECTIONS[name]
            measured = processes.submit(measure).result()
            print(table(figures, measured) or "  not measured: a part that it needs is not here", flush=True)
            found |= measured
            declared += [one for one in figures if one.name in measured]
    report = {
        one.name: {
            "value": round(found[one.name], 4), "unit": one.unit, "goal": one.goal, "ok": one.met_by(found[one.name])
        }
        for one in declared
    }  # fmt: skip
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(report, indent=1))
    if write:
        document.write([(name, SECTIONS[name][0]) for name in SECTIONS], found)
    if not all(one["ok"] for one in report.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
