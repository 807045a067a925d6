"""Charts as SVG: drawn here, so that they need no script."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from optscale_client.metroculus_client.structs import DataPoint

WIDTH, HEIGHT, GAP = 1000.0, 220.0, 0.12
PARTS = (
    ("cpu_cost", "CPU"),
    ("ram_cost", "RAM"),
    ("gpu_cost", "GPU"),
    ("pv_cost", "volumes"),
    ("network_cost", "network"),
    ("load_balancer_cost", "balancers"),
    ("shared_cost", "shared"),
    ("external_cost", "external"),
    ("management_cost", "management"),
)


class Bar(Struct, frozen=True):
    """One part of one step."""

    x: float
    y: float
    width: float
    height: float
    part: int
    title: str


class Step(Struct, frozen=True):
    """A step as a line of the table behind the chart."""

    start: str
    costs: tuple[float | None, ...]
    total: float | None
    complete: bool


class Chart(Struct, frozen=True):
    """Cost over time, stacked by component; ``top`` is what the highest point stands for."""

    bars: tuple[Bar, ...]
    unknown: tuple[tuple[float, float], ...]
    """Where and how wide steps are of which something is not known."""
    parts: tuple[tuple[int, str], ...]
    steps: tuple[Step, ...]
    top: float


def stacked(points: Sequence[DataPoint]) -> Chart:
    """A chart of a statement's steps; negative parts (credits) are in the table alone."""
    shown = [(n, name, title) for n, (name, title) in enumerate(PARTS) if any(getattr(p, name) for p in points)]
    heights = [sum(max(getattr(point, name) or 0.0, 0.0) for _, name, _ in shown) for point in points]
    top = max(heights, default=0.0)
    slot = WIDTH / len(points) if points else WIDTH
    bars, unknown, steps = [], [], []
    for place, point in enumerate(points):
        x, width, y = (place + GAP / 2) * slot, slot * (1 - GAP), HEIGHT
        for part, name, title in shown:
            usd = getattr(point, name)
            if usd is not None and usd > 0 and top > 0:
                height = HEIGHT * usd / top
                y -= height
                bars.append(Bar(x, y, width, height, part, f"{point.start}: {title} {usd:,.2f}"))
        if not point.complete or any(getattr(point, name) is None for _, name, _ in shown):
            unknown.append((x, width))
        costs = tuple(getattr(point, name) for _, name, _ in shown)
        steps.append(Step(point.start, costs, point.total_cost, point.complete))
    return Chart(tuple(bars), tuple(unknown), tuple((n, title) for n, _, title in shown), tuple(steps), top)
