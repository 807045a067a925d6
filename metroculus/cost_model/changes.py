"""What changed between two stretches of time, and why: steps that add up to the difference.

What a group costs of a resource is price x amount, and its amount is what each of its containers has x the hours that
they run. A difference is divided between two factors at their midpoints, so that it does not matter which of them is
looked at first: ``pa - qb = (p - q)(a + b)/2 + (a - b)(p + q)/2``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import fsum
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, MANAGEMENT
from metroculus.cost_model.components import COMPONENTS, Amounts, Costs, Egress, Usage

Kind = Literal[
    "appeared", "vanished", "price", "amount", "hours", "cost", "network_internet", "network_region", "network_zone",
    "network_other", "nodes", "idle_price", "idle_taken_up", "idle", "management", "not_known", "length",
]  # fmt: skip
SAME = 0.01
"""Averages that differ by less than this share are called the same."""
UNITS = {"cpu": "core", "ram": "GiB", "gpu": "GPU", "pv": "GiB"}
ON_NODES = ("cpu", "ram", "gpu")
"""Resources that nodes have, and that are idle where nobody has them."""
MOST_APART = 1e6
GROUP_SEPARATOR = "\x1f"
"""Between the parts of a group's name, so that no two groups have one name; shown as a slash."""


class Measured(Struct, frozen=True, kw_only=True):
    """What one group came to in a stretch of time."""

    costs: Costs = Costs()
    management: float = 0.0
    amounts: Amounts = Amounts()
    egress: Egress = Egress()
    usage: Usage = Usage()
    run_hours: float = 0.0
    """Hours that its containers ran, added up."""

    @property
    def total(self) -> float:
        return fsum((*self.costs.by_component(), self.management))


class Step(Struct, frozen=True, kw_only=True):
    """One part of a difference.

    ``before`` and ``after`` are of what changed, in ``unit``: a price, what one container has, hours; None where the
    change is in money alone. ``because`` says what decided an amount: ``requests`` or ``usage``.
    """

    kind: Kind
    amount: float
    group: str | None = None
    resource: str | None = None
    before: float | None = None
    after: float | None = None
    unit: str | None = None
    because: str | None = None


def changes(before: Mapping[str, Measured], after: Mapping[str, Measured]) -> list[Step]:
    """Every step from the one to the other, the largest first; groups by name, idle and management among them."""
    steps: list[Step] = []
    for group in sorted({*before, *after}):
        old, new = before.get(group), after.get(group)
        if group == IDLE:
            steps += _idle(before, after)
            steps.append(Step(kind="management", amount=_management(new) - _management(old), group=group))
        elif group == MANAGEMENT:
            steps.append(Step(kind="management", amount=(new.total if new else 0.0) - (old.total if old else 0.0)))
        elif old is None and new is not None:
            steps.append(Step(kind="appeared", amount=new.total, group=group))
        elif new is None and old is not None:
            steps.append(Step(kind="vanished", amount=-old.total, group=group))
        elif old is not None and new is not None:
            steps += _group(group, old, new)
    return in_order(steps)


def _management(side: Measured | None) -> float:
    return side.management if side is not None else 0.0


def _shown(step: Step) -> Step:
    return step if step.group is None else replace(step, group=step.group.replace(GROUP_SEPARATOR, "/"))


def in_order(steps: Sequence[Step]) -> list[Step]:
    """Without those that are nothing, the largest first."""
    return sorted(
        (_shown(step) for step in steps if step.amount),
        key=lambda step: (-abs(step.amount), step.kind, step.group or "", step.resource or ""),
    )


def _group(group: str, old: Measured, new: Measured) -> Iterator[Step]:
    for resource in COMPONENTS:
        cost, was = getattr(new.costs, resource), getattr(old.costs, resource)
        if resource == "network":
            yield from _network(group, old, new)
        elif resource in UNITS:
            amounts = getattr(old.amounts, resource), getattr(new.amounts, resource)
            yield from _resource(group, resource, (was, cost), amounts, old, new)
        else:
            yield Step(kind="cost", amount=cost - was, group=group, resource=resource)
    if new.management or old.management:
        yield Step(kind="management", amount=new.management - old.management, group=group)


def _resource(
    group: str,
    resource: str,
    costs: tuple[float, float],
    amounts: tuple[float, float],
    old: Measured,
    new: Measured,
) -> Iterator[Step]:
    (was, cost), (had, has) = costs, amounts
    if not _comparable(had, has):  # the source does not tell how much, or only one of the two has any
        yield Step(kind="cost", amount=cost - was, group=group, resource=resource)
        return
    unit = UNITS[resource]
    prices = was / had, cost / has
    yield Step(
        kind="price", amount=(prices[1] - prices[0]) * (had + has) / 2, group=group, resource=resource,
        before=prices[0], after=prices[1], unit=f"per {unit} and hour",
    )  # fmt: skip
    price = (prices[0] + prices[1]) / 2
    if resource == "pv" or not _comparable(old.run_hours, new.run_hours):
        yield Step(
            kind="amount", amount=(has - had) * price, group=group, resource=resource, before=had, after=has,
            unit=f"{unit} hours",
        )  # fmt: skip
        return
    sizes, hours = (had / old.run_hours, has / new.run_hours), (old.run_hours, new.run_hours)
    yield Step(
        kind="amount", amount=price * (sizes[1] - sizes[0]) * (hours[0] + hours[1]) / 2, group=group,
        resource=resource, before=sizes[0], after=sizes[1], unit=f"{unit} a container",
        because=_because(resource, old, new),
    )  # fmt: skip
    yield Step(
        kind="hours", amount=price * (hours[1] - hours[0]) * (sizes[0] + sizes[1]) / 2, group=group,
        resource=resource, before=hours[0], after=hours[1], unit="container hours",
    )  # fmt: skip


def _because(resource: str, old: Measured, new: Measured) -> str | None:
    """What decided how much a container has: its request, where that changed; its usage, where that did."""
    if resource not in ("cpu", "ram"):
        return None

    def changed(name: str) -> bool:
        was, now = (float(getattr(one.usage, f"{resource}_{name}")) / one.run_hours for one in (old, new))
        return abs(now - was) > SAME * max(abs(now), abs(was))

    return "requests" if changed("request") else "usage" if changed("usage") else None


def _network(group: str, old: Measured, new: Measured) -> Iterator[Step]:
    """By how far traffic went; what the source does not divide is ``network_other``."""
    parts = []
    kinds: tuple[tuple[Kind, str], ...] = (
        ("network_internet", "internet"), ("network_region", "region"), ("network_zone", "zone"),
    )  # fmt: skip
    for kind, reach in kinds:
        parts.append(getattr(new.egress, reach) - getattr(old.egress, reach))
        yield Step(kind=kind, amount=parts[-1], group=group, resource="network")
    rest = fsum((new.costs.network, -old.costs.network, *(-usd for usd in parts)))
    if abs(rest) > 1e-12 * max(abs(new.costs.network), abs(old.costs.network)):
        yield Step(kind="network_other", amount=rest, group=group, resource="network")


def _idle(before: Mapping[str, Measured], after: Mapping[str, Measured]) -> Iterator[Step]:
    """Idle changes with prices, with what nodes there are, and with what workloads take of them.

    Sources tell no hours of idle: they are reckoned at the price of what is allocated.
    """
    old, new = before.get(IDLE, Measured()), after.get(IDLE, Measured())
    for resource in COMPONENTS:
        was, cost = getattr(old.costs, resource), getattr(new.costs, resource)
        if resource not in ON_NODES:
            yield Step(kind="idle", amount=cost - was, resource=resource)
            continue
        (had, paid), (has, pays) = _allocated(before, resource), _allocated(after, resource)
        if not (_comparable(had, has) and _comparable(paid, pays)):
            yield Step(kind="idle", amount=cost - was, resource=resource)
            continue
        prices = paid / had, pays / has
        idle_hours = was / prices[0], cost / prices[1]
        price = (prices[0] + prices[1]) / 2
        capacity = idle_hours[0] + had, idle_hours[1] + has
        unit = UNITS[resource]
        yield Step(
            kind="idle_price", amount=(prices[1] - prices[0]) * (idle_hours[0] + idle_hours[1]) / 2, resource=resource,
            before=prices[0], after=prices[1], unit=f"per {unit} and hour",
        )  # fmt: skip
        yield Step(
            kind="nodes", amount=price * (capacity[1] - capacity[0]), resource=resource, before=capacity[0],
            after=capacity[1], unit=f"{unit} hours",
        )  # fmt: skip
        yield Step(
            kind="idle_taken_up", amount=-price * (has - had), resource=resource, before=had, after=has,
            unit=f"{unit} hours",
        )  # fmt: skip


def _allocated(groups: Mapping[str, Measured], resource: str) -> tuple[float, float]:
    """Hours of a resource that all groups have, and what they cost."""
    owned = [one for name, one in groups.items() if name not in (IDLE, MANAGEMENT)]
    hours = fsum(getattr(one.amounts, resource) for one in owned)
    costs = [getattr(one.costs, resource) for one in owned]
    usd, gross = fsum(costs), fsum(map(abs, costs))
    return hours, usd if usd > gross / MOST_APART else 0.0  # where credits take it away there is no price


def _comparable(one: float, other: float) -> bool:
    """Whether both are there, and near enough to each other to be divided by."""
    return min(one, other) > 0 and max(one, other) <= MOST_APART * min(one, other)
