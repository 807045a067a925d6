"""Budgets: what may be spent in a period, held against bounds of what is spent and of what will be.

A figure is never taken for more than is known of it: a threshold is crossed where the least that can be is over it, and
not crossed where the most that can be is under it. Between the two it is unknown.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from metroculus.cost_model.rules import CURRENCY_RULE, MAX_AMOUNT, NAME_RULE, UNASSIGNED, is_currency, is_name

MAX_THRESHOLDS = 20
MAX_PERCENT = 1000.0
LEAST_PERCENT = 0.01
LEAST_AMOUNT = 0.01
NEAR = 1e-9
"""Relative: sums that are so near to a limit are at it."""

Period = Literal["week", "month", "quarter", "year"]
On = Literal["actual", "forecast"]
State = Literal["ok", "warning", "exceeded", "unknown"]
Crossing = Literal["crossed", "not_crossed", "unknown"]


class Scope(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What counts: all of it that is given must fit; nothing is the whole organization.

    ``*`` in a namespace or a value stands for any text. ``label`` without ``values`` takes all that has the label. A
    cost center is what its organization's allocation rules make of it, and stands alone.
    """

    cluster_id: str | None = None
    namespace: str | None = None
    label: str | None = None
    values: tuple[str, ...] = ()
    cost_center: str | None = None


class Threshold(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A share of the amount, held against what is spent or against what will be at the period's end."""

    percent: float
    on: On = "actual"


DEFAULT_THRESHOLDS = (
    Threshold(percent=80.0),
    Threshold(percent=100.0),
    Threshold(percent=100.0, on="forecast"),
)


class Budget(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be spent in each period of UTC."""

    name: str
    amount: float
    scope: Scope = Scope()
    period: Period = "month"
    currency: str = "USD"
    thresholds: tuple[Threshold, ...] = DEFAULT_THRESHOLDS


class BudgetError(ValueError):
    """A budget that nothing could be held against; says why."""


def check_budget(budget: Budget, clusters: frozenset[str], cost_centers: Sequence[str]) -> None:
    """Whether an organization of such clusters, whose rules name such cost centers, can have this budget.

    Raises:
        BudgetError
    """
    if not is_name(budget.name):
        raise BudgetError(NAME_RULE)
    if not LEAST_AMOUNT <= budget.amount <= MAX_AMOUNT:
        raise BudgetError(f"amount must be from {LEAST_AMOUNT} to {MAX_AMOUNT:.0f}")
    if not is_currency(budget.currency):
        raise BudgetError(CURRENCY_RULE)
    if not 0 < len(budget.thresholds) <= MAX_THRESHOLDS:
        raise BudgetError(f"thresholds must be 1 to {MAX_THRESHOLDS}")
    if any(not LEAST_PERCENT <= one.percent <= MAX_PERCENT for one in budget.thresholds):
        raise BudgetError(f"percent must be from {LEAST_PERCENT} to {MAX_PERCENT:.0f}")
    if len(set(budget.thresholds)) < len(budget.thresholds):
        raise BudgetError("thresholds must differ")
    _check_scope(budget, clusters, cost_centers)


def same_name(one: str, other: str) -> bool:
    """Whether people would read two names as one."""
    return _read_as(one) == _read_as(other)


def _read_as(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _check_scope(budget: Budget, clusters: frozenset[str], cost_centers: Sequence[str]) -> None:
    scope = budget.scope
    if scope.values and scope.label is None:
        raise BudgetError("scope: values need a label")
    if scope.cluster_id is not None and scope.cluster_id not in clusters:
        raise BudgetError(f"scope: cluster {scope.cluster_id!r} is none of this organization's")
    if any(text is not None and not 0 < len(text) <= 500 for text in (scope.namespace, scope.label, *scope.values)):
        raise BudgetError("scope: a namespace, a label or a value is 1 to 500 characters")
    if scope.cost_center is None:
        return
    if scope.cluster_id is not None or scope.namespace is not None or scope.label is not None:
        raise BudgetError("scope: a cost center stands alone: its allocation rules say what belongs to it")
    if budget.period == "week":
        raise BudgetError("period: a cost center's budget is of a month, a quarter or a year, as its overhead is")
    known = (*cost_centers, UNASSIGNED)
    if scope.cost_center not in known:
        raise BudgetError(f"scope: the allocation rules name no cost center {scope.cost_center!r}: {', '.join(known)}")


class Bounds(Struct, frozen=True):
    """The least and the most that something can be; ``high`` is None where nothing bounds it."""

    low: float
    high: float | None


class Judged(Struct, frozen=True):
    """A budget's state, and in the order of its thresholds whether each is crossed."""

    state: State
    crossings: tuple[Crossing, ...]


def judge(budget: Budget, spent: Bounds, forecast: Bounds) -> Judged:
    """Hold a budget against what is spent, and against what will be at the period's end."""
    crossings = tuple(
        _crossing(budget.amount * one.percent / 100, spent if one.on == "actual" else forecast)
        for one in budget.thresholds
    )
    if spent.low > budget.amount and not math.isclose(spent.low, budget.amount, rel_tol=NEAR):
        return Judged("exceeded", crossings)
    if "crossed" in crossings:
        return Judged("warning", crossings)
    bounded = spent.high is not None and spent.high <= budget.amount
    return Judged("ok" if bounded and "unknown" not in crossings else "unknown", crossings)


def _crossing(limit: float, bounds: Bounds) -> Crossing:
    if bounds.low >= limit or math.isclose(bounds.low, limit, rel_tol=NEAR):
        return "crossed"
    return "not_crossed" if bounds.high is not None and bounds.high < limit else "unknown"
