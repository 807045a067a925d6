"""The world over HTTP, as OpenCost 1.112 and as Kubecost answer, each with its own habits."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.web import Application, RequestHandler

from simulator import answers, openmetrics, savings
from simulator.world import DAY, HOUR, World

FORECAST = "/forecasting/forecast/allocation"
_DURATION_SECONDS = {"s": 1, "m": 60, "h": HOUR, "d": DAY}


@dataclass
class Habits:
    """What differs from one installation to the next."""

    kubecost_version: int = 2
    utc_offset_hours: float = 0
    """The server's time zone, to which Kubecost's precomputed days are aligned; 5.75 is Nepal."""
    balancer_drift: bool = False
    """OpenCost bills a balancer for one resolution more than the window."""
    no_idle: bool = False
    """Older OpenCost: ``includeIdle`` is unknown."""
    fail_with: tuple[int, str] | None = None
    """Answer everything with this status and body."""
    rewrite: Callable[[str, Any], Any] | None = None
    """``(path, answer) -> answer``, for tests that need one odd value."""
    serves: frozenset[str] = frozenset({"opencost", "kubecost"})
    """``opencost-ui`` is an OpenCost behind its own web server: it answers below ``/model``, too."""
    currency: str | None = None
    """What Kubecost says in its configuration; None has no such path."""
    hours_kept: int = 0
    """Kubecost's hours end so long before now, in hours (49 by default there); 0 keeps all."""
    days_kept: int = 0
    """Kubecost's days end so long before now, in days (91 by default there); 0 keeps all."""
    api_key: str | None = None
    """Kubecost 3 wants it in ``X-API-KEY``."""
    collector: bool = False
    """An OpenCost that keeps blocks of its own instead of asking a Prometheus."""
    silent: bool = False
    """It takes connections and requests, and answers none."""
    budgets: Any = None
    """What Kubecost keeps as budgets: the ``data`` of its answer; None has no such path."""
    forecast: Any = None
    """What Kubecost expects of the days to come, likewise."""
    seconds_an_hour: float = 0.0
    """What it takes over each hour that it is asked for."""


@dataclass
class Simulator:
    """A world behind two APIs; counts what it is asked."""

    world: World
    habits: Habits = field(default_factory=Habits)
    clock: Callable[[], float] = time.time
    asked: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)
    others: tuple[World, ...] = ()
    """Clusters that stand behind the same upstream."""

    def now(self) -> int:
        return int(self.clock()) // 60 * 60

    def offset(self) -> int:
        """Seconds that the server's time zone is ahead of UTC."""
        return int(self.habits.utc_offset_hours * HOUR)

    def rows(self, start: int, end: int, **more: Any) -> dict[str, Any]:
        """One allocation set, of all clusters together."""
        now = self.now()
        worlds = (self.world, *self.others)
        return answers.joined_rows([answers.allocation_rows(world, start, end, now, **more) for world in worlds])

    def assets(self, start: int, end: int, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for world in (self.world, *self.others):
            found |= answers.assets(world, start, end, self.now(), **more)
        return found

    def application(self) -> Application:
        routes: list[Any] = [(r"/metrics", Metrics, {"simulator": self}), (r"/healthz", Health, {"simulator": self})]
        if "opencost" in self.habits.serves:
            routes += [
                (r"/allocation", OpenCostAllocation, {"simulator": self}),
                (r"/allocation/compute", OpenCostAllocation, {"simulator": self}),
                (r"/assets", OpenCostAssets, {"simulator": self}),
            ]
        if "opencost-ui" in self.habits.serves:
            routes += [
                (r"/(?:model/)?allocation(?:/compute)?", OpenCostAllocation, {"simulator": self}),
                (r"/(?:model/)?assets", OpenCostAssets, {"simulator": self}),
            ]
        if self.habits.currency is not None:
            routes.append((r"/model/getConfigs", KubecostConfigs, {"simulator": self}))
        for path, data in (("/model/budgets", self.habits.budgets), (FORECAST, self.habits.forecast)):
            if data is not None:
                routes.append((path, KubecostKept, {"simulator": self}))
        if "kubecost" in self.habits.serves:
            routes += [
                (r"/model/allocation", KubecostAllocation, {"simulator": self}),
                (r"/model/assets", KubecostAssets, {"simulator": self}),
                (r"/model/savings(/[A-Za-z0-9]+)?", KubecostSavings, {"simulator": self}),
            ]
        return Application(
            routes,
            default_handler_class=NotFound,
            default_handler_args={"simulator": self},
            log_function=lambda handler: None,  # what a cluster is asked is counted, and nobody's log
        )


def parse_flag(text: str | None, default: bool) -> bool:
    """An unparsable flag is its default (measured on OpenCost 1.112)."""
    return {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}.get(
        (text or "").lower(), default
    )


def parse_step(text: str | None) -> int | None:
    match = re.fullmatch(r"([0-9]+)([smhd])", text or "")
    return int(match[1]) * _DURATION_SECONDS[match[2]] if match and int(match[1]) else None


def parse_window(text: str, now: int, offset: int = 0) -> tuple[int, int] | None:
    today = now - (now + offset) % DAY
    if re.fullmatch(r"[0-9]+[mhd]", text) and int(text[:-1]):
        count, unit = int(text[:-1]), text[-1]
        if unit == "d":
            return today - (count - 1) * DAY, today + DAY
        return now - count * _DURATION_SECONDS[unit], now
    if text in ("today", "yesterday"):
        return (today, today + DAY) if text == "today" else (today - DAY, today)
    if re.fullmatch(r"[0-9]+,[0-9]+", text):
        start, end = text.split(",")
        return int(start), int(end)
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ),(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", text)
    if match:
        from datetime import UTC, datetime

        def seconds(part: str) -> int:
            return int(datetime.strptime(part, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())

        try:
            return seconds(match[1]), seconds(match[2])
        except ValueError:
            return None
    return None


def parse_filter(text: str | None) -> dict[str, str]:
    """Kubecost's ``name:"value"`` terms joined by ``+``."""
    return dict(re.findall(r'([A-Za-z]+):"([^"]*)"', text or ""))


class SimulatedHandler(RequestHandler):
    def initialize(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.hung_up = asyncio.Event()

    def set_default_headers(self) -> None:
        self.set_header("Server", "simulator")

    def on_connection_close(self) -> None:
        self.hung_up.set()

    async def prepare(self) -> None:
        request: HTTPServerRequest = self.request
        self.simulator.asked[request.path] += 1
        self.simulator.requests.append(request.uri or "")
        if self.simulator.habits.silent:
            await self.hung_up.wait()
        window = parse_window(self.get_query_argument("window", ""), self.simulator.now())
        if window is not None and self.simulator.habits.seconds_an_hour:
            await asyncio.sleep(self.simulator.habits.seconds_an_hour * (window[1] - window[0]) / HOUR)
        key = self.simulator.habits.api_key
        if key is not None and request.headers.get("X-API-KEY") != key:
            self.set_status(401)
            self.finish("Unauthorized\n")
            return
        failure = self.simulator.habits.fail_with
        if failure:
            self.set_status(failure[0])
            self.finish(failure[1])

    def plain(self, status: int, body: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(body)

    def answer(self, value: Any) -> None:
        rewrite = self.simulator.habits.rewrite
        if rewrite:
            value = rewrite(self.request.path, value)
        self.set_header("Content-Type", "application/json")
        self.finish(value if isinstance(value, (bytes, str)) else json.dumps(value, separators=(",", ":")))

    def aggregate(self) -> tuple[str, ...]:
        text = self.get_query_argument("aggregate", "")
        return tuple(part for part in text.split(",") if part)


class NotFound(SimulatedHandler):
    def get(self) -> None:
        self.plain(404, "404 page not found\n")


class Health(SimulatedHandler):
    def get(self) -> None:
        self.answer({"status": "ok"})


class Metrics(SimulatedHandler):
    """The world as a Prometheus target: what its exporters say now."""

    def get(self) -> None:
        self.set_header("Content-Type", "text/plain; version=0.0.4")
        self.finish("".join(openmetrics.exposition(self.simulator.world, int(self.simulator.clock()))))


class OpenCostAllocation(SimulatedHandler):
    """OpenCost 1.112: ignores filters, paging and unknown aggregates; errors are plain text before JSON."""

    def get(self) -> None:
        now = self.simulator.now()
        text = self.get_query_argument("window", "")
        window = parse_window(text, now)
        illegal = '{"code":500,"status":"","data":null,"message":"Error: illegal window: [nil, nil)"}'
        if window is None:
            return self.plain(400, f"Invalid 'window' parameter: illegal window: {text}\n{illegal}")
        start, end = window
        if start >= end:
            message = f"Error: illegal window: [{answers.stamp(start)}, {answers.stamp(end)})"
            self.set_status(500)
            return self.answer({"code": 500, "status": "", "data": None, "message": message})
        step = parse_step(self.get_query_argument("step", None)) or end - start
        resolution = parse_step(self.get_query_argument("resolution", None)) or 300
        with_idle = parse_flag(self.get_query_argument("includeIdle", None), False)
        habits = self.simulator.habits
        sets = []
        stepped = start
        while stepped < end:
            edge = min(stepped + step, end)
            first, last = nearest_block(stepped, edge, now) if habits.collector else (stepped, edge)
            rows = self.simulator.rows(
                first,
                last,
                adjusted=False,
                aggregate=self.aggregate(),
                with_idle=with_idle and not habits.no_idle,
                balancer_drift_seconds=resolution if habits.balancer_drift else 0,
            )
            for row in rows.values():  # a block is told as the window that was asked for
                row["window"] = {"start": answers.stamp(stepped), "end": answers.stamp(edge)}
            sets.append(rows)
            stepped = edge
        return self.answer({"code": 200, "status": "success", "data": sets})


class OpenCostAssets(SimulatedHandler):
    def get(self) -> None:
        now = self.simulator.now()
        text = self.get_query_argument("window", "")
        window = parse_window(text, now)
        if window is None:
            return self.plain(400, f"Invalid 'window' parameter: illegal window: {text}\n")
        kinds = set(re.findall(r'assetType:"([a-z]+)"', self.get_query_argument("filter", "")))
        if self.simulator.habits.collector:
            window = nearest_block(*window, now)
        found = {}
        if window[0] < window[1]:
            found = self.simulator.assets(*window, adjusted=False, with_management=False, asset_types=kinds)
        return self.answer({"code": 200, "status": "success", "data": found})


class KubecostAllocation(SimulatedHandler):
    """Kubecost: precomputed days aligned to its own time zone, tenancy costs shared unless told not to."""

    def get(self) -> None:
        simulator, now = self.simulator, self.simulator.now()
        offset = simulator.offset()
        text = self.get_query_argument("window", "")
        window = parse_window(text, now, offset)
        if window is None or window[0] >= window[1]:
            return self.plain(400, f"Invalid 'window' parameter: illegal window: {text}\n")
        accumulate = self.get_query_argument("accumulate", "false").lower()
        step = HOUR if accumulate == "hour" else DAY
        sets_of = precomputed(window, step, offset)
        if re.fullmatch(r"[0-9]+d", text):
            sets_of = precomputed((window[0] - DAY, window[1]), step, offset)
        keep = parse_filter(self.get_query_argument("filter", None))
        tenancy = parse_flag(self.get_query_argument("shareTenancyCosts", None), True)
        more = {"adjusted": True, "aggregate": self.aggregate(), "tenancy_shared": tenancy, "keep_filter": keep}
        with_idle = parse_flag(self.get_query_argument("idle", None), True)
        sets = [
            simulator.rows(start, end, with_idle=with_idle, **more) if self.kept(start, end) else {}
            for start, end in sets_of
        ]
        if parse_flag(accumulate, False):
            start, end = sets_of[0][0], sets_of[-1][1]
            sets = [simulator.rows(start, end, with_idle=False, **more)]
        limit, offset_rows = self.get_query_argument("limit", None), self.get_query_argument("offset", "0")
        if limit and limit.isdigit():
            first = int(offset_rows)
            sets = [dict(list(s.items())[first : first + int(limit)]) for s in sets]
        return self.answer({"code": 200, "data": sets})

    def kept(self, start: int, end: int) -> bool:
        """Whether the upstream still has a set of this length and age."""
        habits, age = self.simulator.habits, self.simulator.now() - start
        if end - start == HOUR:
            return not habits.hours_kept or age <= habits.hours_kept * HOUR
        return not habits.days_kept or age <= (habits.days_kept + 1) * DAY


BLOCKS = ((600, 36), (HOUR, 49), (DAY, 15))
"""Seconds of a collector's blocks, and how many of each are kept."""


def nearest_block(start: int, end: int, now: int) -> tuple[int, int]:
    """The stored block that a collector answers a window from: of the nearest length, empty where that is gone."""
    length, kept = min(BLOCKS, key=lambda block: abs(block[0] - (end - start)))
    first = start - start % length
    return (first, first + length) if first >= now - now % length - kept * length else (0, 0)


class KubecostConfigs(SimulatedHandler):
    def get(self) -> None:
        self.answer({"code": 200, "data": {"clusterName": "", "currencyCode": self.simulator.habits.currency}})


def precomputed(window: tuple[int, int], step: int, offset: int) -> list[tuple[int, int]]:
    """The precomputed stretches that a window touches; days and hours begin as the server's own clock says."""
    shift = offset % step
    start = window[0] - (window[0] + shift) % step
    stretches = []
    while start < window[1]:
        stretches.append((start, start + step))
        start += step
    return stretches


class KubecostAssets(SimulatedHandler):
    def get(self) -> None:
        now = self.simulator.now()
        text = self.get_query_argument("window", "")
        offset = self.simulator.offset()
        window = parse_window(text, now, offset)
        if window is None or window[0] >= window[1]:
            return self.plain(400, f"Invalid 'window' parameter: illegal window: {text}\n")
        kinds = set(re.findall(r'assetType:"([a-z]+)"', self.get_query_argument("filter", "").lower()))
        step = HOUR if self.get_query_argument("accumulate", "") == "hour" else DAY
        stretches = precomputed(window, step, offset)
        if parse_flag(self.get_query_argument("accumulate", None), False):
            stretches = [(stretches[0][0], stretches[-1][1])]
        found = [
            self.simulator.assets(start, end, adjusted=True, with_management=True, asset_types=kinds)
            for start, end in stretches
        ]
        return self.answer({"code": 200, "data": found})


class KubecostKept(SimulatedHandler):
    """Kubecost's own budgets and its forecast, as they were put in."""

    def get(self) -> None:
        habits = self.simulator.habits
        self.answer({"code": 200, "data": habits.forecast if self.request.path == FORECAST else habits.budgets})


class KubecostSavings(SimulatedHandler):
    def get(self, detail: str | None) -> None:
        world = self.simulator.world
        if detail is None:
            return self.answer(savings.overview(world, self.simulator.habits.kubecost_version))
        if detail == "/requestSizingV2":
            return self.answer(savings.request_sizing(world))
        if detail == "/abandonedWorkloads":
            return self.answer(savings.abandoned_workloads(world))
        if detail == "/unclaimedVolumes":
            return self.answer(savings.unclaimed_volumes(world))
        return self.plain(404, "404 page not found\n")
