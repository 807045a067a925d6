"""Two commits by turns on one machine: what disturbs it falls on both, and the medians tell them apart."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median


def against(revision: str, sections: Sequence[str], rounds: int) -> str:
    """A table: each figure there, here, and the ratio of the two medians."""
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder) / "there"
        subprocess.run(["git", "worktree", "add", "--detach", str(there), revision], check=True, capture_output=True)
        try:
            runs: dict[Path, list[dict[str, float]]] = {there: [], Path.cwd(): []}
            for number in range(rounds):
                for checkout, measured in runs.items():
                    print(f"round {number + 1} of {rounds}: {checkout.name}", flush=True)
                    measured.append(_run(checkout, sections))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(there)], check=True, capture_output=True)
    before, after = runs.values()
    lines = [f"{'figure':<34}{'there':>12}{'here':>12}{'ratio':>9}"]
    for name in after[0]:
        if all(name in run for run in before):
            old, new = median(run[name] for run in before), median(run[name] for run in after)
            lines.append(f"{name:<34}{old:>12,.3f}{new:>12,.3f}{new / old if old else 0.0:>9.2f}")
    return "\n".join(lines)


def _run(checkout: Path, sections: Sequence[str]) -> dict[str, float]:
    """One run of a checkout's own benchmark; a missed bar is no failure here."""
    subprocess.run([sys.executable, "-m", "benchmarks", *sections], cwd=checkout, capture_output=True, check=False)
    report = json.loads((checkout / "build/bench.json").read_text())
    return {name: one["value"] for name, one in report.items()}
