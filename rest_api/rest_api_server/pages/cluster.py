"""One cluster: what it cost, over time, by whatever it can be grouped by, what changed, what could be saved."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from functools import partial
from math import fsum
from typing import Any, Literal, TypeAlias

from msgspec import UNSET, Struct

from optscale_client.metroculus_client import structs
from optscale_client.metroculus_client.structs import CostRow
from rest_api.rest_api_server import answers
from rest_api.rest_api_server.auth import DEFAULT_WINDOW, Needs
from rest_api.rest_api_server.controllers.backfills import BackfillsController
from rest_api.rest_api_server.controllers.changes import ChangesController
from rest_api.rest_api_server.controllers.costs import CostsController
from rest_api.rest_api_server.controllers.live import LiveController
from rest_api.rest_api_server.errors import CODES, INVALID
from rest_api.rest_api_server.exports.files import MEDIA_TYPES, Format
from rest_api.rest_api_server.exports.table import Table
from rest_api.rest_api_server.exports.tables import MANAGEMENT, costs_table, dates_of
from rest_api.rest_api_server.handlers.v2.clusters import FILTERS, Aggregate, PropertyFilter
from rest_api.rest_api_server.pages.charts import (
    COLORED,
    IDLE,
    OTHERS,
    PARTS,
    Chart,
    by_component,
    by_group,
    stacked,
    treemap,
)
from rest_api.rest_api_server.pages.charts import MANAGEMENT as MANAGEMENT_COLOR
from rest_api.rest_api_server.pages.parts import (
    FEW,
    PageNumber,
    Part,
    in_address,
    notes_of,
    part,
    source_troubles,
    troubles_of,
    usage_part,
)
from rest_api.rest_api_server.pages.render import link
from rest_api.rest_api_server.pages.sections import ClusterSection
from rest_api.rest_api_server.paging import PageQuery, SortColumn, whole_of
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import AgainstQuery, FilterText, RowFilter, Text, Uuid, against_of, resolve_window
from tools.tornado_service.streamed import Streamed, StreamedFile
from tools.window import DAY, Window
from tools.wording import special_text

Step: TypeAlias = Literal["hour", "day", "week", "month"]
GROUPS = ("namespace", "controller", "pod", "container", "node", "service")
BELOW = {"namespace": "controller", "controller": "pod", "pod": "container", "node": "pod", "service": "controller"}
"""What is inside a row, which its name leads to."""
PARAMETER = {"namespace": "k8s_namespace", "node": "k8s_node", "service": "k8s_service"}
"""The filters that have a parameter of their own; others are ``filter=PROPERTY=VALUE``."""
STEPS: tuple[tuple[Step, int], ...] = (("hour", 2 * DAY), ("day", 62 * DAY), ("week", 400 * DAY))
"""Up to how long a window is charted by which step, where none is asked for."""
VISIBLE = ("window", "timezone", "by", "idle")
"""What the form asks for; all else that stands in the address it carries along."""
UNCOUNTED = ("idle_node", "under_provisioned")
"""Recommendations that are no part of what could be saved in all."""
MAPPED = 40
"""Rows of a treemap; the others are one tile."""
DEFAULT = {"by": ("namespace",), "idle": "separate", "sort": "total_cost", "chart": "group"}
SHOWN_ROWS = 1000
LATER = b"<!--later-->"
"""Where the page goes on with what takes longer."""


class Day(Text):
    pattern = r"([0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01]))?"
    what = "a day such as 2026-11-30"


class ClusterPageQuery(AgainstQuery, frozen=True, kw_only=True):
    cluster_id: Uuid
    by: tuple[Aggregate, ...] = (Aggregate("namespace"),)
    k8s_namespace: tuple[FilterText, ...] = ()
    k8s_node: tuple[RowFilter, ...] = ()
    k8s_service: tuple[FilterText, ...] = ()
    filter: tuple[PropertyFilter, ...] = ()
    idle: Literal["separate", "share", "hide"] = "separate"
    chart: Literal["group", "component"] = "group"
    step: Step | None = None
    sort: SortColumn = "total_cost"
    order: Literal["asc", "desc"] | None = None
    page: PageNumber = PageNumber("1")
    format: Format = "json"
    first_day: Day = Day("")
    last_day: Day = Day("")
    only: str = ""
    value: str = ""

    @property
    def filters(self) -> dict[str, Any]:
        return {name: value for name in FILTERS if (value := getattr(self, name))}


class Chip(Struct, frozen=True):
    """A filter that holds: in words, and where one is without it."""

    property: str
    value: str
    without: str


class ClusterPage(ClusterSection):
    """One cluster: total, over time, by namespace or anything else, what changed, what could be saved."""

    costs: CostsController
    changes: ChangesController
    live: LiveController
    backfills: BackfillsController

    @operation(
        needs=Needs.READ_COSTS,
        query=ClusterPageQuery,
        answer=str,
        content="text/html",
        files=MEDIA_TYPES,
        also=(303,),
    )
    async def get(self, query: ClusterPageQuery) -> Streamed | None:
        now = self.service.clock()
        asked, path = in_address(query, DEFAULT, TYPED), f"/clusters/{self.cluster.id}"
        if any(name in self.request.query_arguments for name in TYPED):
            self.go(link(path, asked, **typed_in(query)))
            return None
        window = resolve_window(query, now, CODES, DEFAULT_WINDOW)
        ranked = PageQuery(sort=query.sort, order=query.order)
        if query.format != "json":
            return self._file(query, window, ranked, now)
        step = query.step if query.step is not None else step_of(window)
        settled = settled_part(window)
        before = against_of(query, settled, now, CODES)
        timeline, live, backfills = await self.parts(
            self._timeline(query, window, step),
            self.live.live(self.cluster, 10, None, self.request_id),
            self.backfills.backfills(self.cluster, self.request_id),
        )
        statement = timeline
        if statement.found is None or not steps_tell_rows(query):
            statement = await part(self._statement(query, window, query.by))
        table = statement
        if statement.status == 400:  # what rows are asked by cannot be told here: the rest of the page can
            statement = await part(self._statement(query, window, (Aggregate("namespace"),)))
        about = await self.about(asked, "", window)
        about |= {"query": query, "chips": chips_of(path, asked, query)}
        page = await self.rendered(
            "cluster.html",
            **about,
            carried=carried(asked),
            crumbs=crumbs_of(path, asked, query),
            groups=GROUPS,
            step=step,
            **await asyncio.to_thread(_shown, table, timeline, query, ranked, path, asked),
            statement=statement,
            table=table,
            troubles=troubles_of(statement.found) if statement.found is not None else (),
            notes=notes_of(statement.found) if statement.found is not None else (),
            timeline=timeline,
            live=live,
            filling=filling_of(backfills),
        )
        return self.in_two(page, LATER, partial(self._later, about, settled, before))

    async def _later(self, about: dict[str, Any], settled: Window, before: Window) -> bytes:
        """What changed and what could be saved: asked when what it cost is on its way."""
        changes, savings = await self.parts(
            self.changes.changes(self.cluster, settled, before, ("namespace",), self.request_id),
            self.costs.optimization(self.cluster, usage_part(about["window"]), self.request_id),
        )
        return await self.rendered(
            "cluster_later.html",
            **about,
            changes=changes,
            change_known=comparable(changes.found) if changes.found is not None else None,
            settled=settled,
            savings=savings,
            **_savings(savings),
            few=FEW,
        )

    async def _statement(
        self, query: ClusterPageQuery, window: Window, by: tuple[Aggregate, ...]
    ) -> answers.ClusterCosts:
        asked = {"idle": query.idle, **query.filters}
        return await self.costs.costs(self.cluster, window, by, self.request_id, **asked)

    async def _timeline(self, query: ClusterPageQuery, window: Window, step: str) -> answers.ClusterCosts:
        groups = {"groups": COLORED} if grouped(query) else {}
        idle = {"idle": query.idle} if steps_tell_rows(query) else {}
        asked = {"step": step, **idle, **groups, **query.filters}
        return await self.costs.costs(self.cluster, window, query.by, self.request_id, **asked)

    def _file(self, query: ClusterPageQuery, window: Window, ranked: PageQuery, now: float) -> StreamedFile:
        async def table() -> Table:
            by = (self.cluster, window, query.by, self.request_id)
            told = await self.costs.costs(*by, idle=query.idle, **query.filters)
            asked = {"aggregate": query.by, "idle": query.idle, **query.filters}
            return await asyncio.to_thread(lambda: costs_table(whole_of(told, ranked, "costs"), asked, now))

        name = f"costs-{self.cluster.name}-{dates_of(window)}"
        return self.files.file(name, query.format, self.cluster.organization_id, table)


TYPED = ("first_day", "last_day", "only", "value")
"""What a form says that stands in the address in another way."""


def typed_in(query: ClusterPageQuery) -> dict[str, Any]:
    """How the address changes by what was typed into the form.

    Raises:
        ApiError
    """
    found: dict[str, Any] = {}
    if query.first_day or query.last_day:
        found["window"] = _days(query)
    if query.only or query.value:
        name = query.only or "namespace"
        parameter = PARAMETER.get(name, "filter")
        text = query.value.strip()
        if not text and name in PARAMETER:
            raise ApiError(INVALID, f"give the {name} to filter by", ["value"])
        parameter = "filter" if "," in text else parameter
        value = text if parameter != "filter" else f"{name}={text}"
        found[parameter] = tuple(dict.fromkeys((*getattr(query, parameter), value)))
    return found


def _days(query: ClusterPageQuery) -> str:
    """The window of whole days of the zone, both included.

    Raises:
        ApiError
    """
    try:
        days = (query.first_day or query.last_day, query.last_day or query.first_day)
        first, last = (date.fromisoformat(day) for day in days)
    except ValueError:
        raise ApiError(INVALID, "there is no such day", ["first_day", "last_day"]) from None
    if last < first:
        raise ApiError(INVALID, "the last day is before the first", ["first_day", "last_day"])
    try:
        ends = (query.zone.first_hour(first), query.zone.first_hour(last + timedelta(days=1)))
    except (OverflowError, ValueError):
        raise ApiError(INVALID, "there is no such day", ["first_day", "last_day"]) from None
    return ",".join(map(query.zone.iso, ends))


def carried(asked: dict[str, Any]) -> list[tuple[str, str]]:
    """What the form carries along: a line a value."""
    return [
        (name, one)
        for name, value in asked.items()
        if name not in VISIBLE
        for one in (value if isinstance(value, tuple) else (value,))
    ]


def step_of(window: Window) -> Step:
    """By which step a window is charted where none is asked for."""
    fitting: list[Step] = [name for name, most in STEPS if window.end - window.start <= most]
    return fitting[0] if fitting else "month"


def filling_of(backfills: Part[structs.Backfills]) -> list[structs.Backfill]:
    """The back-fills that are not over."""
    told = backfills.found.backfills if backfills.found is not None else ()
    return [one for one in told if one.state in ("queued", "running")]


def settled_part(window: Window) -> Window:
    """A window without the hours that are still running, which no earlier time is to be compared with."""
    end = window.final_until if window.final_until > window.start else window.end
    return Window(window.start, end, end, zone=window.zone)


def comparable(changes: structs.Changes) -> float | None:
    """The difference over the hours that both windows know; None where there is no such hour, or no total."""
    if changes.difference is None:
        return None
    apart = [step.amount for step in changes.steps if step.kind in ("not_known", "length")]
    if changes.steps and len(apart) == len(changes.steps) and (changes.missing_hours or changes.missing_hours_before):
        return None
    return changes.difference - fsum(apart)


def _savings(savings: Part[answers.Optimization]) -> dict[str, Any]:
    """What the short list shows: what the sum is of, and why the sum is not known."""
    told = savings.found
    if told is None:
        return {"recommendations": (), "savings_why": [savings.why]}
    counted = [one for one in told.recommendations if one.kind not in UNCOUNTED]
    why = source_troubles(told.sources) if told.potential_savings is None or not told.complete else []
    return {"recommendations": sorted(counted, key=lambda one: -one.monthly_saving), "savings_why": why}


def steps_tell_rows(query: ClusterPageQuery) -> bool:
    """Whether one question has both steps and rows: steps do not distribute idle cost, and rows do with ``share``."""
    return query.idle != "share"


def grouped(query: ClusterPageQuery) -> bool:
    """Whether steps are told by the rows of the table: by one property, those of a cluster."""
    return query.chart == "group" and len(query.by) == 1


def _filters(query: ClusterPageQuery) -> list[tuple[str, str, str, str]]:
    """Each value of a filter: its property, the value, the parameter, and what stands there."""
    own = {parameter: name for name, parameter in PARAMETER.items()}
    return [
        (own[parameter], value, parameter, value) if parameter in own else (*value.split("=", 1), parameter, value)
        for parameter in FILTERS
        for value in getattr(query, parameter)
    ]


def chips_of(path: str, asked: dict[str, Any], query: ClusterPageQuery) -> list[Chip]:
    return [
        Chip(
            name,
            value,
            link(path, asked, **{parameter: tuple(one for one in getattr(query, parameter) if one != stands)}),
        )
        for name, value, parameter, stands in _filters(query)
    ]


def crumbs_of(path: str, asked: dict[str, Any], query: ClusterPageQuery) -> list[tuple[str, str]]:
    """The way into the cluster, a crumb a property, each with where it leads back to: its filters and those before."""
    order = {name: place for place, name in enumerate(("namespace", "node", "service", "controller", "pod"))}
    found = sorted(_filters(query), key=lambda one: order.get(one[0], len(order)))
    crumbs: list[tuple[str, str]] = []
    held: dict[str, tuple[str, ...]] = dict.fromkeys(FILTERS, ())
    for name in dict.fromkeys(one[0] for one in found):
        of_name = [one for one in found if one[0] == name]
        for _, _, parameter, stands in of_name:
            held = held | {parameter: (*held[parameter], stands)}
        text = " or ".join(value or f"no {name}" for _, value, _, _ in of_name)
        crumbs.append((text, link(path, asked, **held, by=(inside(name),), sort=None, order=None)))
    return crumbs


def inside(name: str) -> str:
    """What rows of a property are made of."""
    return BELOW.get(name, "namespace")


def into(path: str, asked: dict[str, Any], query: ClusterPageQuery, row: CostRow) -> str | None:
    """Where a row's name leads: to what is inside it; None where that is nothing."""
    if len(query.by) != 1 or query.by[0] in ("container", "cluster"):
        return None
    name = query.by[0]
    cluster, slash, own = row.name.partition("/")
    if slash and not name.startswith("annotation:"):  # no name in Kubernetes has one: the account is several clusters
        return link(path, asked, filter=_added(asked, f"cluster={cluster}", f"{name}={own}"), by=(inside(name),))
    # A comma would make two values of a list; a name without one has a parameter of its own.
    parameter = PARAMETER.get(name, "filter") if "," not in row.name and row.name.strip() else "filter"
    value = row.name if parameter != "filter" else f"{name}={row.name}"
    kinds: dict[str, type[Text]] = {"k8s_namespace": FilterText, "k8s_service": FilterText, "k8s_node": RowFilter}
    try:
        kinds.get(parameter, PropertyFilter).parse(value)
    except ValueError:
        return None
    if value in asked.get(parameter, ()):
        return None
    values = (value,) if parameter != "filter" else _added(asked, value)
    return link(path, asked, **{parameter: values}, by=(inside(name),), sort=None, order=None)


def _added(asked: dict[str, Any], *values: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*asked.get("filter", ()), *values)))


def _shown(
    statement: Part[answers.ClusterCosts],
    timeline: Part[answers.ClusterCosts],
    query: ClusterPageQuery,
    ranked: PageQuery,
    path: str,
    asked: dict[str, Any],
) -> dict[str, Any]:
    """What is drawn and listed; beside the loop, for rows may be many."""
    told = statement.found
    chart = _chart(timeline.found, query) if timeline.found is not None else None
    if told is None:
        return {"chart": chart, "first": 0, "rows": (), "special": (), "parts": (), "tiles": (), "pages": 0}
    first = (int(query.page) - 1) * SHOWN_ROWS
    rows = whole_of(told, ranked, "costs").costs
    special = _special(told, query)
    return {
        "chart": chart,
        "rows": [(row, into(path, asked, query, row)) for row in rows[first : first + SHOWN_ROWS]],
        "first": first,
        "special": special,
        "parts": _parts(told),
        "tiles": treemap(_mapped(told, special)) if len(told.costs) > 1 else (),
        "pages": -(-len(rows) // SHOWN_ROWS),
    }


def _chart(told: answers.ClusterCosts, query: ClusterPageQuery) -> Chart:
    points = told.data_points
    told_by_group = grouped(query) and all(point.groups is not UNSET for point in points)
    series = by_group(points, [row.name for row in told.costs]) if told_by_group else by_component(points)
    return stacked(points, series)


def _mapped(told: answers.ClusterCosts, special: list[tuple[str, float | None]]) -> list[tuple[str, float, int]]:
    """What a treemap is of; rows have the colors that they have in the chart."""
    rows = sorted(told.costs, key=lambda one: -one.total_cost)
    shown = [(special_text(row.name), row.total_cost, min(n, OTHERS)) for n, row in enumerate(rows[:MAPPED])]
    if len(rows) > MAPPED:
        shown.append(("everything else", fsum(row.total_cost for row in rows[MAPPED:]), OTHERS))
    colors = {special_text("__idle__"): IDLE, special_text(MANAGEMENT): MANAGEMENT_COLOR}
    return shown + [(name, usd, colors.get(name, OTHERS)) for name, usd in special if usd is not None]


def _parts(answer: answers.ClusterCosts) -> list[tuple[str, str]]:
    """The components that are a column: all of which there is any, or something is not known."""
    return [
        (name, title)
        for name, title in PARTS
        if name != "management_cost" and any(getattr(row, name) != 0 for row in (*answer.costs, answer.summary))
    ]


def _special(answer: answers.ClusterCosts, query: ClusterPageQuery) -> list[tuple[str, float | None]]:
    """What the total holds beside the rows, by the names that people use; what is hidden is not among it."""
    own: dict[str, float | None] = {**answer.special, MANAGEMENT: answer.summary.management_cost}
    if answer.idle_cost is None and query.idle == "separate" and not query.filters:
        own["__idle__"] = None
    return [(special_text(name), cost) for name, cost in sorted(own.items()) if cost != 0]
