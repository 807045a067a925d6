"""What pages are made of: parts that may fail by themselves, what forms say, and what is wrong in words."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable, Mapping
from datetime import date, timedelta
from hashlib import sha256
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import asdict

from optscale_client.metroculus_client import MetroculusError
from optscale_client.metroculus_client.structs import BudgetState, SourceState
from rest_api.rest_api_server import answers
from rest_api.rest_api_server.directory.model import Cluster
from rest_api.rest_api_server.errors import CHANGED, INVALID, map_error
from tools.tornado_service.errors import ApiError
from tools.tornado_service.params import Cell, Text, Uuid
from tools.window import DAY, Window
from tools.wording import not_covered_text, source_trouble, why_incomplete

T = TypeVar("T")
B = TypeVar("B", bound=Struct)
WINDOWS = ("24h", "7d", "2w", "today", "yesterday", "week", "lastweek", "month", "lastmonth")
DATES = ("start_date", "start_time", "end_date", "end_time")
"""Older names of a window's ends, which stand in the address as one window."""
FEW = 10
"""Rows of a list beside the main one."""


class PageNumber(Text):
    """Of a list that is longer than a page."""

    pattern = r"[1-9][0-9]{0,3}"
    what = "a whole number from 1 to 9999"


class Part(Struct, Generic[T], frozen=True):
    """A part of a page: what there is, or why there is nothing."""

    found: T | None
    why: str = ""
    status: int = 200

    @property
    def refused(self) -> bool:
        return self.status >= 400


async def part(asked: Awaitable[T]) -> Part[T]:
    """A part that may fail by itself, and leaves the others whole."""
    try:
        return Part(await asked)
    except ApiError as refused:
        return Part(None, refused.reason, refused.code.status)
    except MetroculusError as problem:
        mapped = map_error(problem)
        if mapped is None:
            return Part(None, "it cannot be asked now", 502)
        return Part(None, mapped.reason, mapped.code.status)


def number(name: str, text: str) -> float:
    """A number out of a form.

    Raises:
        ApiError: it is none.
    """
    if not re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?(e[+-]?[0-9]{1,2})?", text.strip(), re.ASCII):
        raise ApiError(INVALID, f"{name} must be a number such as 1500 or 0.25", [name])
    return float(text)


def number_text(value: float) -> str:
    """A number as a form shows it, to its last digit."""
    return repr(value).removesuffix(".0")


def names_version(clusters: Iterable[Cluster]) -> str:
    """A hash of the clusters' names, by which forms name clusters."""
    return sha256(msgspec.json.encode(sorted((one.name, one.id) for one in clusters))).hexdigest()[:16]


def form_version(version: str, names: str) -> str:
    """What a form was made from: a version of what it changes, empty for something new, and a ``names_version``."""
    return f"{names}.{version}"


def version_in(form: str, clusters: Iterable[Cluster]) -> str | None:
    """The version of what a form changes; None for something new, and where the form says nothing of it.

    Raises:
        ApiError: the names of clusters are no longer those that the form was filled in by.
    """
    version = form.partition(".")[2]
    if form and form != form_version(version, names_version(clusters)):
        reason = "clusters have been renamed, added or removed meanwhile: open the page again, and repeat the change"
        raise ApiError(CHANGED, reason)
    return version or None


def fits_a_field(text: str) -> bool:
    """Whether a text comes back from a form's field as it went in: browsers drop line ends, forms strip spaces."""
    return text == text.strip() and re.fullmatch(Cell.pattern, text) is not None


def names(text: str) -> tuple[str, ...]:
    """What a form lists with commas."""
    return tuple(one for part in text.split(",") if (one := part.strip()))


def body_of(shape: type[B], told: dict[str, Any]) -> B:
    """What a form says, as the body that the API takes for the same.

    Raises:
        ApiError
    """
    try:
        return msgspec.convert(told, shape)
    except msgspec.ValidationError as problem:
        reason, _, place = str(problem).partition(" - at ")
        where = place.strip("`$").lstrip(".")
        if "[A-Z]{3}" in reason:
            reason = "must be three capital letters such as USD"
        raise ApiError(INVALID, f"{where}: {reason}" if where else reason, [where or "form"]) from None


def in_address(query: Struct, default: dict[str, Any], left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """What stands in a page's address, so that links keep it."""
    left_out = (*left_out, *DATES, "organization_id", "cluster_id", "format", "cursor", "page")
    asked = {
        name: value
        for name, value in asdict(query).items()
        if name not in left_out and value not in (None, (), UNSET) and value != default.get(name)
    }
    dates = [text for name in DATES if (text := getattr(query, name, None)) is not None]
    return {"window": ",".join(dates)} | asked if dates else asked


UUID = re.compile(Uuid.pattern)
USAGE_SECONDS = 7 * DAY
"""Of so much usage savings are worked out: older usage says little of what is requested now."""


def usage_part(window: Window) -> Window:
    """The last week of a window, where it is longer."""
    start = max(window.start, window.end - USAGE_SECONDS)
    return Window(start, window.end, max(start, window.final_until), zone=window.zone)


def cluster_id_of(clusters: Iterable[Cluster], text: str) -> str:
    """The id of the cluster that a form names; an id is one already, also of a cluster that is gone.

    Raises:
        ApiError: there is none of that name.
    """
    name = text.strip()
    if not name or UUID.fullmatch(name):
        return name
    found = next((one.id for one in clusters if one.name == name), None)
    if found is None:
        raise ApiError(INVALID, f"there is no cluster named {name}", ["cluster"])
    return found


def named(names_of: Mapping[str, str], text: str) -> str:
    """A message with the names of clusters in place of their ids."""
    return UUID.sub(lambda found: names_of.get(found[0], found[0]), text)


def period_text(budget: BudgetState) -> str:
    """A budget's period by its first and last day."""
    return f"{budget.start[:10]} to {date.fromisoformat(budget.end[:10]) - timedelta(days=1)}"


def troubles_of(answer: answers.ClusterStatement) -> list[str]:
    """Why a statement is not all that happened; empty where it is complete."""
    if answer.complete:
        return []
    return why_incomplete(source_troubles(answer.sources), asdict(answer.summary), answer.not_covered)


def notes_of(answer: answers.ClusterStatement) -> list[str]:
    """What is to be known of a statement whether it is complete or not."""
    told = [warning for source in answer.sources if source.status == "ok" for warning in source.warnings]
    return list(dict.fromkeys(filter(None, (not_covered_text(answer.not_covered), *answer.window.warnings, *told))))


def cluster_trouble(one: answers.ClusterSummary) -> str:
    """The same of a cluster in a list, in one line."""
    if one.error is not None:
        return one.error.reason
    summary = asdict(one.summary) if one.summary is not None else None
    found = [] if one.complete else why_incomplete(source_troubles(one.sources), summary, one.not_covered)
    return "; ".join(filter(None, (*found, not_covered_text(one.not_covered))))


def source_troubles(sources: tuple[SourceState, ...]) -> list[str]:
    """What is wrong with sources, a line each."""
    told = (source_trouble(one.name, one.status, one.coverage, one.error, one.warnings) for one in sources)
    return [one for one in told if one]
