"""Charts as SVG: drawn here, so that they need no script."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from msgspec import Struct

from optscale_client.metroculus_client.structs import DataPoint
from rest_api.rest_api_server.pages.render import money
from tools.wording import COMPONENTS
from tools.wording import MANAGEMENT as MANAGEMENT_COMPONENT

WIDTH, HEIGHT, GAP = 1000.0, 220.0, 0.12
MAP_HEIGHT = 260.0
PARTS = (*COMPONENTS, MANAGEMENT_COMPONENT)
COLORED = 7
"""Groups that have a color of their own."""
OTHERS, IDLE, MANAGEMENT = COLORED, COLORED + 1, COLORED + 2
LETTER_WIDTH = 8.5
"""Of a letter in a treemap, in its units."""


class Series(Struct, frozen=True):
    """One color of a chart, and what it has in each step; None is not known."""

    color: int
    title: str
    values: tuple[float | None, ...]


class Bar(Struct, frozen=True):
    """One part of one step."""

    x: float
    y: float
    width: float
    height: float
    color: int
    title: str


class Step(Struct, frozen=True):
    """A step as a line of the table behind the chart."""

    start: str
    end: str
    costs: tuple[float | None, ...]
    total: float | None
    complete: bool


class Chart(Struct, frozen=True):
    """Cost over time, stacked; credits hang below the line at ``zero``.

    ``top`` is what the highest point stands for, None where nothing is known.
    """

    bars: tuple[Bar, ...]
    unknown: tuple[tuple[float, float], ...]
    """Where and how wide steps are of which something is not known."""
    legend: tuple[tuple[int, str], ...]
    steps: tuple[Step, ...]
    top: float | None
    zero: float


def by_component(points: Sequence[DataPoint]) -> list[Series]:
    """A series for each component of which there is any."""
    return [
        Series(color, title, tuple(getattr(point, name) for point in points))
        for color, (name, title) in enumerate(PARTS)
        if any(getattr(point, name) for point in points)
    ]


def by_group(points: Sequence[DataPoint], names: Sequence[str]) -> list[Series]:
    """A series for each of the dearest rows, one for what else there is, and for what belongs to no row."""
    groups = [point.groups or {} for point in points]
    found = [
        Series(color, name, tuple(_there(point, group.get(name)) for point, group in zip(points, groups, strict=True)))
        for color, name in enumerate(names[:COLORED])
    ]

    def rest(point: DataPoint, group: dict[str, float]) -> float | None:
        if point.known_cost is None:
            return None
        listed = (group.get(name, 0.0) for name in names[:COLORED])
        return point.known_cost - fsum((*listed, point.idle_cost or 0.0, point.management_cost or 0.0))

    others = tuple(rest(point, group) for point, group in zip(points, groups, strict=True))
    more = (
        Series(OTHERS, "everything else", others),
        Series(IDLE, "idle", tuple(point.idle_cost for point in points)),
        Series(MANAGEMENT, "cluster management", tuple(point.management_cost for point in points)),
    )
    smallest = 1e-9 * max((abs(point.known_cost or 0.0) for point in points), default=0.0)
    return found + [one for one in more if any(abs(value) > smallest for value in one.values if value is not None)]


def _there(point: DataPoint, usd: float | None) -> float | None:
    """What a group cost in a step; nothing where it is not listed, not known where nothing is."""
    return usd if usd is not None else None if point.known_cost is None else 0.0


def stacked(points: Sequence[DataPoint], series: Sequence[Series]) -> Chart:
    """A chart of a statement's steps."""
    places = range(len(points))
    top = max((fsum(max(one.values[n] or 0.0, 0.0) for one in series) for n in places), default=0.0)
    bottom = min((fsum(min(one.values[n] or 0.0, 0.0) for one in series) for n in places), default=0.0)
    scale = HEIGHT / (top - bottom) if top > bottom else 0.0
    slot = WIDTH / len(points) if points else WIDTH
    zero = top * scale if scale else HEIGHT
    bars, unknown, steps = [], [], []
    for place, point in enumerate(points):
        x, width, above, below = (place + GAP / 2) * slot, slot * (1 - GAP), zero, zero
        for one in series:
            usd = one.values[place]
            if not usd:
                continue
            height = abs(usd) * scale
            above, below = (above - height, below) if usd > 0 else (above, below + height)
            y = above if usd > 0 else below - height
            bars.append(Bar(x, y, width, height, one.color, f"{point.start}: {one.title} {money(usd)}"))
        costs = tuple(one.values[place] for one in series)
        if not point.complete or None in costs:
            unknown.append((x, width))
        steps.append(Step(point.start, point.end, costs, point.total_cost, point.complete))
    known = any(value is not None for one in series for value in one.values)
    legend = tuple((one.color, one.title) for one in series)
    return Chart(tuple(bars), tuple(unknown), legend, tuple(steps), top if known else None, zero)


class Tile(Struct, frozen=True):
    """One rectangle of a treemap."""

    x: float
    y: float
    width: float
    height: float
    color: int
    name: str
    cost: float
    label: str
    """As much of the name as has room; empty where none has."""


def treemap(costs: Sequence[tuple[str, float, int]]) -> tuple[Tile, ...]:
    """Areas like costs, dearest first, each as near to a square as it gets.

    What costs nothing, or less than a millionth of the dearest, has none.

    Args:
        costs: name, cost and color of each.
    """
    least = 1e-6 * max((one[1] for one in costs), default=0.0)
    left = [one for one in sorted(costs, key=lambda one: (-one[1], one[0])) if one[1] > max(least, 1e-9)]
    total = fsum(usd for _, usd, _ in left)
    tiles: list[Tile] = []
    x, y, width, height = 0.0, 0.0, WIDTH, MAP_HEIGHT
    scale = WIDTH * MAP_HEIGHT / total if total else 0.0
    while left:
        count = _squarest([usd * scale for _, usd, _ in left], min(width, height))
        row, left = left[:count], left[count:]
        area = fsum(usd for _, usd, _ in row) * scale
        across = width >= height
        depth = area / (height if across else width)
        place = y if across else x
        for name, usd, color in row:
            length = usd * scale / depth
            box = (x, place, depth, length) if across else (place, y, length, depth)
            tiles.append(_tile(box, color, name, usd))
            place += length
        if across:
            x, width = x + depth, max(width - depth, 1e-9)
        else:
            y, height = y + depth, max(height - depth, 1e-9)
    return tuple(tiles)


def _squarest(areas: Sequence[float], side: float) -> int:
    """How many of the first areas in a row along a side have the best worst shape."""

    def worst(count: int) -> float:
        row = areas[:count]
        depth = fsum(row) / side
        return max(max(depth * depth / area, area / (depth * depth)) for area in (row[0], row[-1]))

    count = 1
    while count < len(areas) and worst(count + 1) <= worst(count):
        count += 1
    return count


def _tile(box: tuple[float, float, float, float], color: int, name: str, usd: float) -> Tile:
    letters = int((box[2] - 12) / LETTER_WIDTH) if box[3] >= 22 else 0
    label = name if len(name) <= letters else f"{name[: letters - 1]}…" if letters >= 4 else ""
    return Tile(*box, color, name, usd, label)
