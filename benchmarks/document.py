"""``docs/benchmarks.md``: what each figure compares, and what it was when the page was last written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.figures import Declared

PAGE = Path("docs/benchmarks.md")
HEAD = """\
# How fast is it?

```sh
make bench
```

`make bench` prints each figure and writes `build/bench.json` as `{name: {value, unit, goal, ok}}`. Most figures are
ratios to a limit that is measured in the same run, because machines differ and are noisy. Each ratio is the median of
three. `wrk` makes the load on one core; the servers use another. `make bench BENCH_ARGS=service` measures one section.
`make bench BENCH_ARGS="--against HEAD~1"` alternates between another commit and this one, five runs each.

The section `opencost` needs Prometheus and a real OpenCost, whose program `OPENCOST_BIN` names; without it the section
measures nothing.

`make bench BENCH_ARGS=--document` writes this page. The column `bar` is the goal; the column `seen` was measured on two
cores.
"""
TAIL = """
`make soak` checks that memory, threads and sockets do not grow in ten minutes of load with upstreams that come and go.
"""


def page(
    sections: Sequence[tuple[str, Sequence[Declared]]], found: Mapping[str, float], seen_before: Mapping[str, str]
) -> str:
    """The whole page, with what was found in its last column, or seen before where it was not measured now."""
    parts = [HEAD]
    for name, figures in sections:
        parts.append(f"\n## {name}\n\n| figure | what | bar | seen |\n|---|---|---|---|")
        for one in figures:
            seen = f"{found[one.name]:,.3g} {one.unit}" if one.name in found else seen_before.get(one.name, "—")
            parts.append(f"| `{one.name}` | {one.what} | {one.goal or '—'} | {seen} |")
    return "\n".join(parts) + "\n" + TAIL


def write(sections: Sequence[tuple[str, Sequence[Declared]]], found: Mapping[str, float]) -> None:
    rows = (line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `"))
    PAGE.write_text(page(sections, found, {name.strip("`"): seen for name, *_, seen in rows}))
