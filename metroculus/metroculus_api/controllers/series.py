"""The points of a statement: steps that are stored come from the database in one go, the others as statements."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from math import fsum

from msgspec import UNSET
from msgspec.structs import replace

from metroculus.codes import TOO_MANY_POINTS
from metroculus.cost_model.allocation import IDLE, UNALLOCATED, Filters
from metroculus.cost_model.components import Costs
from metroculus.cost_model.series import point_of, steps, stored_point, unknown_point
from metroculus.cost_model.statement import Point, Question, Statement
from metroculus.metroculus_api.controllers.stored import share_of
from metroculus.sources.errors import SourceError
from metroculus.storage.columns import COST_COLUMNS
from metroculus.storage.coverage import source_of, whole
from metroculus.storage.engine import StoreError
from metroculus.storage.history import IDLE_ROWS
from metroculus.storage.ledger import CommittedHours
from metroculus.storage.store import Store
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError
from tools.window import HOUR, Window
from tools.zones import Period

MAX_POINTS = 1_000
MAX_LIVE_POINTS = 62
"""Steps that are asked of the live sources one by one."""

_KEYS = {"hour": "hour", "day": "day", "week": "day", "month": "month"}


class SeriesController:
    """Points of any statement.

    Args:
        statement: the statement of one step.
        unable_sources: sources whose stored hours cannot tell what is asked for; they are asked live.
        committed: the hours of the window that are stored, where they were read already.
    """

    def __init__(
        self,
        store: Store | None,
        statement: Callable[[Question], Awaitable[Statement]],
        deadline: Deadline,
        unable_sources: frozenset[str],
        committed: CommittedHours | None = None,
    ) -> None:
        self._store = store
        self._committed = committed
        self._unable_sources = unable_sources
        self._deadline = deadline
        self._statement = statement

    async def points(self, question: Question, step: Period, names: frozenset[str] | None = None) -> tuple[Point, ...]:
        """The steps of a question's window, in order.

        Args:
            names: of the rows by the one property of ``aggregate`` whose cost each step tells.

        Raises:
            ApiError: too many steps, or too many that are not stored.
            SourceError
        """
        cut = steps(question.window, step)
        if len(cut) > MAX_POINTS:
            raise ApiError(
                TOO_MANY_POINTS, f"the window has {len(cut)} steps, at most {MAX_POINTS} are given", ["step"]
            )
        stored = await self._stored(question, cut, _KEYS[step], names)
        live = [one for one in cut if one.start not in stored]
        if len(live) > MAX_LIVE_POINTS:
            raise ApiError(
                TOO_MANY_POINTS,
                f"{len(live)} steps are not stored, at most {MAX_LIVE_POINTS} are asked live: "
                "choose a coarser step, or back-fill the window",
                ["step"],
            )
        asked = (self._live(question, one, names) for one in live)
        told = await asyncio.gather(*asked, return_exceptions=True)
        found = stored | {one.start: _told(one, point) for one, point in zip(live, told, strict=True)}
        failure = next((one for one in told if isinstance(one, SourceError)), None)
        if failure is not None and not stored and all(isinstance(one, SourceError) for one in told):
            raise failure
        return tuple(found[one.start] for one in cut)

    async def _live(self, question: Question, window: Window, names: frozenset[str] | None) -> Point:
        asked = Question(
            cloud_account_id=question.cloud_account_id,
            window=window,
            aggregate=question.aggregate if names is not None else (),
            filters=question.filters,
        )
        statement = await self._statement(asked)
        # A step in another currency than the statement's is not known in that.
        return point_of(window, statement, names) if statement.currency == question.currency else unknown_point(window)

    async def _stored(
        self, question: Question, cut: Sequence[Window], key: str, names: frozenset[str] | None
    ) -> dict[int, Point]:
        """The points whose hours are all stored; none where the store fails."""
        if self._store is None:
            return {}
        account, window, filters = question.cloud_account_id, question.window, question.filters
        by_namespace = names is not None and question.aggregate == ("namespace",) and not filters.any
        keys = (key, IDLE_ROWS, "namespace") if by_namespace else (key, IDLE_ROWS)
        read, more = self._store.summaries.sums, (COST_COLUMNS, window.zone, self._committed)
        groups: Groups | None = None
        try:
            span = (account, window.start, window.end, keys)
            everything = await self._store.ask(share_of(self._deadline), read, *span, filters, *more)
            if names is not None:
                groups = {} if by_namespace else await self._groups(question, key, names)
        except StoreError:
            return {}
        parts: dict[int, list[tuple[Costs, float]]] = {}
        idle_usd: dict[int, float] = {}
        for one in everything.sums:
            first, is_idle = int(one.keys[0]), int(one.keys[1])
            parts.setdefault(first, []).append((one.costs, one.management))
            if is_idle and filters.keep_special(IDLE):
                idle_usd[first] = one.total
            if by_namespace and groups is not None and names is not None and one.keys[2] in names:
                groups.setdefault(first, {})[str(one.keys[2])] = one.total
        return {
            one.start: _point(one, everything.committed, parts, idle_usd, groups)
            for one in cut
            if self._all_stored(one, everything.committed, question.currency)
        }

    def _all_stored(self, window: Window, committed: CommittedHours, currency: str) -> bool:
        """Whether all hours of a step are there, in the statement's currency, of sources that tell what is asked."""
        hours = [committed.hours.get(hour) for hour in range(window.start, window.end, HOUR)]
        return window.end % HOUR == 0 and all(
            one is not None and one.currency == currency and one.source not in self._unable_sources for one in hours
        )

    async def _groups(self, question: Question, key: str, names: frozenset[str]) -> Groups:
        """What rows of these names cost by period; nothing of any other row is read.

        Raises:
            StoreError
        """
        if self._store is None or not names:
            return {}
        (name,) = question.aggregate
        only = with_property(question.filters, name, names)
        span = (question.cloud_account_id, question.window.start, question.window.end, (key, name))
        read, more = self._store.summaries.sums, (COST_COLUMNS, question.window.zone, self._committed)
        answer = await self._store.ask(share_of(self._deadline), read, *span, only, *more)
        found: Groups = {}
        for one in answer.sums:
            found.setdefault(int(one.keys[0]), {})[str(one.keys[1])] = one.total
        return found


Groups = dict[int, dict[str, float]]
"""Cost by the first second of a period and by name."""


def with_property(filters: Filters, name: str, wanted: Collection[str]) -> Filters:
    """Filters of what also has one of these values of a property."""
    values = tuple(sorted({*wanted, ""} if UNALLOCATED in wanted else wanted))
    if name == "namespace":  # which summaries hold
        held = filters.namespaces
        return replace(filters, namespaces=tuple(one for one in values if not held or one in held))
    others = dict(filters.properties)
    if name in others:
        values = tuple(one for one in values if one in others[name])
    return replace(filters, properties=tuple((others | {name: values}).items()))


def _told(window: Window, point: Point | BaseException) -> Point:
    """A step that was asked live; where its source failed, nothing is known of it."""
    if isinstance(point, SourceError):
        return unknown_point(window)
    if isinstance(point, BaseException):
        raise point
    return point


def _point(
    window: Window,
    committed: CommittedHours,
    parts: dict[int, list[tuple[Costs, float]]],
    idle: dict[int, float],
    groups: Groups | None,
) -> Point:
    """Keys are first seconds of periods; the first of a window may have begun before it."""
    inside = [first for first in parts if first < window.end and _ends_after(first, window.start, committed)]
    hours = {hour: committed.hours[hour] for hour in range(window.start, window.end, HOUR)}
    markers = hours.values()
    of_step = CommittedHours(committed.account, window.start, window.end, hours)
    return stored_point(
        window,
        [part for first in inside for part in parts[first]],
        sum(idle.get(first, 0.0) for first in inside),
        {name for marker in markers for name in marker.unknown},
        {name for marker in markers for name in marker.not_covered},
        whole(of_step, source_of(of_step, window)),
        _added([groups.get(first, {}) for first in inside]) if groups is not None else UNSET,
    )


def _added(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    names = {name for one in parts for name in one}
    return {name: fsum(one.get(name, 0.0) for one in parts) for name in sorted(names)}


def _ends_after(first: int, start: int, committed: CommittedHours) -> bool:
    """Whether a period that begins at ``first`` belongs to the step that begins at ``start``."""
    return first >= start or start == committed.start
