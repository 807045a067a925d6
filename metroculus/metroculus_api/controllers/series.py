"""The points of a statement: steps that are stored come from the database in one go, the others as statements."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from metroculus.codes import TOO_MANY_POINTS
from metroculus.cost_model.allocation import IDLE, Filters
from metroculus.cost_model.components import Costs
from metroculus.cost_model.series import point_of, steps, stored_point, unknown_point
from metroculus.cost_model.statement import Point, Question, Statement
from metroculus.metroculus_api.controllers.stored import share_of
from metroculus.storage.columns import COST_COLUMNS
from metroculus.storage.coverage import source_of, whole
from metroculus.storage.engine import StoreError
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
    """

    def __init__(
        self, store: Store | None, statement: Callable[[Question], Awaitable[Statement]], deadline: Deadline
    ) -> None:
        self._store = store
        self._deadline = deadline
        self._statement = statement

    async def points(self, question: Question, step: Period) -> tuple[Point, ...]:
        """The steps of a question's window, in order.

        Raises:
            ApiError: too many steps, or too many that are not stored.
            SourceError
        """
        cut = steps(question.window, step)
        if len(cut) > MAX_POINTS:
            raise ApiError(
                TOO_MANY_POINTS, f"the window has {len(cut)} steps, at most {MAX_POINTS} are given", ["step"]
            )
        stored = await self._stored(question, cut, _KEYS[step])
        live = [one for one in cut if one.start not in stored]
        if len(live) > MAX_LIVE_POINTS:
            raise ApiError(
                TOO_MANY_POINTS,
                f"{len(live)} steps are not stored, at most {MAX_LIVE_POINTS} are asked live: "
                "choose a coarser step, or back-fill the window",
                ["step"],
            )
        asked = await asyncio.gather(*(self._live(question, one) for one in live))
        found = stored | {one.start: point for one, point in zip(live, asked, strict=True)}
        return tuple(found[one.start] for one in cut)

    async def _live(self, question: Question, window: Window) -> Point:
        asked = Question(
            cloud_account_id=question.cloud_account_id, window=window, filters=question.filters, idle=question.idle
        )
        statement = await self._statement(asked)
        # A step in another currency than the statement's is not known in that.
        return point_of(window, statement) if statement.currency == question.currency else unknown_point(window)

    async def _stored(self, question: Question, cut: Sequence[Window], key: str) -> dict[int, Point]:
        """The points whose hours are all stored; none where the store fails."""
        if self._store is None:
            return {}
        account, window, filters = question.cloud_account_id, question.window, question.filters
        read, deadline = self._store.summaries.sums, self._deadline
        idle_only = Filters(namespaces=(IDLE,), clusters=filters.clusters)
        try:
            span = (account, window.start, window.end, (key,))
            more = (COST_COLUMNS, window.zone)
            everything = await self._store.ask(share_of(deadline), read, *span, filters, *more)
            idle = await self._store.ask(share_of(deadline), read, *span, idle_only, *more)
        except StoreError:
            return {}
        with_idle = filters.keep_special(IDLE)
        parts = {int(one.keys[0]): (one.costs, one.management) for one in everything.sums}
        idle_usd = {int(one.keys[0]): one.total for one in idle.sums} if with_idle else {}
        return {
            one.start: _point(one, everything.committed, parts, idle_usd)
            for one in cut
            if _all_stored(one, everything.committed, question.currency)
        }


def _all_stored(window: Window, committed: CommittedHours, currency: str) -> bool:
    """Whether all hours of a step are there, in the currency of the statement."""
    hours = [committed.hours.get(hour) for hour in range(window.start, window.end, HOUR)]
    return window.end % HOUR == 0 and all(one is not None and one.currency == currency for one in hours)


def _point(
    window: Window, committed: CommittedHours, parts: dict[int, tuple[Costs, float]], idle: dict[int, float]
) -> Point:
    """Keys are first seconds of periods; the first of a window may have begun before it."""
    inside = [first for first in parts if first < window.end and _ends_after(first, window.start, committed)]
    hours = {hour: committed.hours[hour] for hour in range(window.start, window.end, HOUR)}
    markers = hours.values()
    of_step = CommittedHours(committed.account, window.start, window.end, hours)
    return stored_point(
        window,
        [parts[first] for first in inside],
        sum(idle.get(first, 0.0) for first in inside),
        {name for marker in markers for name in marker.unknown},
        {name for marker in markers for name in marker.not_covered},
        whole(of_step, source_of(of_step, window)),
    )


def _ends_after(first: int, start: int, committed: CommittedHours) -> bool:
    """Whether a period that begins at ``first`` belongs to the step that begins at ``start``."""
    return first >= start or start == committed.start
