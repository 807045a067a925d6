"""Kubecost's own budgets and forecasts, which are shown beside ours and never added to anything.

Both from Kubecost's documentation (Budget API, Forecast API).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from math import fsum
from typing import Any

import msgspec
from msgspec import Struct

from metroculus.sources.clusters import Clusters
from metroculus.sources.errors import BadAnswer
from metroculus.sources.numbers import Usd
from metroculus.sources.source import UpstreamBudget, UpstreamForecast

log = logging.getLogger("sources")

PREDICTED_DAYS = 30
MAX_BUDGETS = 1000
LONGEST_NAME = 200
PERIODS = {"weekly": "week", "monthly": "month"}


class _Window(Struct):
    start: str | None = None
    end: str | None = None


class _Budget(Struct):
    name: str | None = None
    id: str | int | None = None
    values: dict[str, list[str] | None] | None = None
    interval: str = ""
    spendLimit: Usd | None = None
    currentSpend: Usd | None = None
    window: _Window | None = None


class _Interval(Struct):
    lowerConfidenceLimit: Usd | None = None
    upperConfidenceLimit: Usd | None = None


class _Day(Struct):
    window: _Window
    predictedCost: Usd | None = None
    confidenceInterval: _Interval | None = None


class _Model(Struct):
    predictions: dict[str, list[_Day]] | None = None


class _Budgets(Struct):
    code: int = 200
    data: list[msgspec.Raw] | None = None


class _Forecasts(Struct):
    code: int = 200
    data: dict[str, _Model] | None = None


_BUDGET = msgspec.json.Decoder(_Budget, strict=False)
_BUDGETS = msgspec.json.Decoder(_Budgets)
_FORECASTS = msgspec.json.Decoder(_Forecasts)


def decode_budgets(body: bytes, clusters: Clusters) -> tuple[UpstreamBudget, ...]:
    """The budgets that are the account's own cluster's: those of others, and of all together, are never shown.

    Raises:
        BadAnswer
        SeveralClusters: they are of several clusters, and none is named.
    """
    raw = _decoded(_BUDGETS, body, "budgets").data or []
    if len(raw) > MAX_BUDGETS:
        raise BadAnswer(f"more than {MAX_BUDGETS} budgets")
    found = []
    for one in raw:
        try:
            found.append(_BUDGET.decode(one))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            log.warning("a budget of Kubecost's own cannot be read, and is not shown")
    if raw and not found:
        raise BadAnswer("none of the budgets can be read")
    clusters.check(name for one in found for name in (one.values or {}).get("cluster") or ())
    return tuple(_budget(one) for one in found if _is_own(one, clusters))


def decode_forecast(body: bytes) -> UpstreamForecast | None:
    """What the days to come will cost together; None where nothing is predicted, or not of every day.

    Raises:
        BadAnswer
    """
    models = (_decoded(_FORECASTS, body, "forecast").data or {}).values()
    several = [days for model in models for days in (model.predictions or {}).values() if days]
    days = several[0] if several else []
    expected = _total([day.predictedCost for day in days])
    start, end = (_stamp(days[0].window.start), _stamp(days[-1].window.end)) if days else (None, None)
    if expected is None or start is None or end is None:
        return None
    limits = [day.confidenceInterval or _Interval() for day in days]
    return UpstreamForecast(
        start=start,
        end=end,
        expected=expected,
        low=_total([one.lowerConfidenceLimit for one in limits]),
        high=_total([one.upperConfidenceLimit for one in limits]),
    )


def _decoded(decoder: msgspec.json.Decoder[Any], body: bytes, what: str) -> Any:
    try:
        answer = decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise BadAnswer(f"the {what} are not what they should be") from None
    if answer.code != 200:
        raise BadAnswer(f"the {what} came with a code of failure inside a 200")
    return answer


def _is_own(one: _Budget, clusters: Clusters) -> bool:
    of = set((one.values or {}).get("cluster") or ())
    return not clusters.named or (bool(of) and of <= set(clusters.named))


def _budget(one: _Budget) -> UpstreamBudget:
    window = one.window or _Window()
    return UpstreamBudget(
        id=str(one.id or "")[:LONGEST_NAME],
        name=(one.name or "")[:LONGEST_NAME],
        scope={
            key[:LONGEST_NAME]: tuple(text[:LONGEST_NAME] for text in texts or ())
            for key, texts in (one.values or {}).items()
        },
        period=PERIODS.get(one.interval, one.interval[:LONGEST_NAME]),
        amount=one.spendLimit,
        spent=one.currentSpend,
        start=_stamp(window.start),
        end=_stamp(window.end),
    )


def _total(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return fsum(known) if parts and len(known) == len(parts) else None


def _stamp(text: str | None) -> int | None:
    """Unix seconds; None where it is no time of these centuries."""
    try:
        moment = datetime.fromisoformat(text or "")
        return int(moment.timestamp()) if moment.tzinfo is not None and 1970 < moment.year < 2100 else None
    except ValueError:
        return None
