"""Kubecost and OpenCost over HTTP: allocation, assets and savings; which of the two it is, found out once.

A window is asked for as whole UTC days, and its edges by the hour: what comes back is trusted by the window it says,
and only sets that lie inside what was asked for are summed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

from msgspec import Struct

from metroculus.cost_model.allocation import AllocationSet, Amounts
from metroculus.cost_model.assets import Asset, merge
from metroculus.cost_model.statement import (
    AllocationReading,
    ManagementReading,
    NodeCosts,
    Source,
    judge_sets,
)
from metroculus.sources.errors import BadAnswer, DeadlineExceeded, SourceError
from metroculus.sources.kubecost.answers import Decoded, DecodedAssets, decode_allocation, decode_assets
from metroculus.sources.outbound.http import SourceHttp, Upstream
from tools.deadline import Deadline
from tools.window import DAY, HOUR, Window, iso, split

Flavour = Literal["kubecost", "opencost"]
D = TypeVar("D")
Step = Literal["day", "hour"]

GIB = 2**30

AGGREGATES = ("namespace", "controller", "controllerKind", "pod", "container", "node", "service", "cluster")
"""What may be grouped by, beside ``label:x`` and ``annotation:x``: an unknown one is not refused upstream."""


class Dialect(Struct, frozen=True):
    """How one upstream is spoken to."""

    flavour: Flavour
    allocation: str
    assets: str


KUBECOST = Dialect("kubecost", "/model/allocation", "/model/assets")
OPENCOST = Dialect("opencost", "/allocation", "/assets")
OLDER_OPENCOST = Dialect("opencost", "/allocation/compute", "/assets")


class AssetsReading(Struct, frozen=True, kw_only=True):
    """Assets of a window, and what became of asking for them."""

    source: Source
    assets: tuple[Asset, ...] = ()
    flavour: Flavour

    def node_hours(self) -> Amounts | None:
        """Core, GiB and GPU hours of all nodes; None where there are none or one does not tell its size."""
        nodes = [a for a in self.assets if a.type == "node"]
        if not nodes or any(node.cpu_cores is None or node.ram_bytes is None for node in nodes):
            return None
        return Amounts(
            sum((node.cpu_cores or 0.0) * node.hours for node in nodes),
            sum((node.ram_bytes or 0.0) / GIB * node.hours for node in nodes),
            sum((node.gpu_count or 0.0) * node.hours for node in nodes),
        )

    def management(self) -> ManagementReading:
        """Cluster management and node costs, as far as these assets tell them."""
        covers = self.flavour == "kubecost"
        if self.source.status not in ("ok", "partial"):
            return ManagementReading(source=self.source, covers=covers)
        usd = sum(a.total_cost for a in self.assets if a.type == "cluster_management") if covers else None
        priced = [a.priced for a in self.assets if a.type == "node"]
        nodes = NodeCosts(*(sum(column) for column in zip(*priced, strict=True))) if priced else None
        return ManagementReading(source=self.source, usd=usd, covers=covers, nodes=nodes)


class _Piece(Struct, frozen=True):
    start: int
    end: int
    step: Step


def pieces(window: Window) -> list[_Piece]:
    """Whole days by the day, the rest of each day by the hour."""
    return [_Piece(a, b, "day" if b - a == DAY else "hour") for a, b in window.days()]


class KubecostSource:
    """One account's Kubecost or OpenCost.

    Args:
        flavour: None finds out by asking.
        clock: Unix seconds, for ``fetched_at``.
    """

    def __init__(
        self, http: SourceHttp, upstream: Upstream, flavour: Flavour | None, clock: Callable[[], float]
    ) -> None:
        self._http = http
        self._upstream = upstream
        self._clock = clock
        self._candidates = [d for d in (KUBECOST, OPENCOST, OLDER_OPENCOST) if flavour in (None, d.flavour)]
        self._dialect: Dialect | None = self._candidates[0] if len(self._candidates) == 1 else None
        self._detecting = asyncio.Lock()

    @property
    def flavour(self) -> Flavour | None:
        """Kubecost or OpenCost; None until it is known."""
        known = {candidate.flavour for candidate in self._candidates}
        return self._dialect.flavour if self._dialect else known.pop() if len(known) == 1 else None

    async def dialect(self, deadline: Deadline) -> Dialect:
        """Which dialect the upstream speaks: the first whose allocation path is not a 404.

        Raises:
            SourceError
        """
        async with self._detecting:
            if self._dialect is None:
                self._dialect = await self._detect(deadline)
            return self._dialect

    async def _detect(self, deadline: Deadline) -> Dialect:
        for candidate in self._candidates:
            now = int(self._clock())
            params = {"window": f"{iso(now - HOUR)},{iso(now)}", "aggregate": "cluster"}
            try:
                await self._http.get(self._upstream, candidate.allocation, params, deadline)
            except BadAnswer as failure:
                if failure.status != 404:
                    raise
            else:
                return candidate
        raise BadAnswer(f"{self._upstream.name} is neither Kubecost nor OpenCost: it has no allocation API")

    async def allocation(self, window: Window, aggregate: Sequence[str], deadline: Deadline) -> AllocationReading:
        """Allocations of a window by ``aggregate``, unfiltered.

        Raises:
            SourceError: where no part of the window could be read.
        """
        dialect = await self.dialect(deadline)
        asked = [self._allocation_piece(dialect, piece, window.end, aggregate, deadline) for piece in pieces(window)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        failures = _failures(answers)
        if len(failures) == len(answers):
            raise worst(failures)
        sets: list[AllocationSet] = []
        warnings: list[str] = []
        for answer in answers:
            if isinstance(answer, tuple):
                sets += answer[0]
                warnings += answer[1]
        failed = f"{len(failures)} of {len(answers)} days failed: {failures[0]}" if failures else None
        return judge_sets("allocation", sets, window, int(self._clock()), tuple(dict.fromkeys(warnings)), failed)

    async def _allocation_piece(
        self,
        dialect: Dialect,
        piece: _Piece,
        last: int,
        aggregate: Sequence[str],
        deadline: Deadline,
    ) -> tuple[list[AllocationSet], list[str]]:
        """The sets of one piece; where they come back wider than asked, its hours, one call each.

        Args:
            last: the end of the whole window, which may lie inside an hour.
        """
        limit = piece.end + -piece.end % HOUR if piece.end == last else piece.end
        decoded = await self._ask_allocation(dialect, piece, aggregate, deadline)
        if all(piece.start <= one.start and one.end <= limit for one in decoded.sets):
            return list(decoded.sets), list(decoded.warnings)
        if piece.step == "day":
            hourly = _Piece(piece.start, piece.end, "hour")
            return await self._allocation_piece(dialect, hourly, last, aggregate, deadline)
        if piece.end - piece.start > HOUR:
            hours = [_Piece(a, b, "hour") for a, b in split(piece.start, piece.end, HOUR)]
            asked = [self._allocation_piece(dialect, h, last, aggregate, deadline) for h in hours]
            parts = await asyncio.gather(*asked)
            return [one for sets, _ in parts for one in sets], [note for _, notes in parts for note in notes]
        inside = [one for one in decoded.sets if piece.start <= one.start and one.end <= limit]
        return inside, [*decoded.warnings, "sets that reach beyond the window were left out"]

    async def allocation_hours(
        self, start: int, end: int, aggregate: Sequence[str], deadline: Deadline
    ) -> dict[int, AllocationSet]:
        """The hours of a stretch of one UTC day by their first second; one that the source knows nothing of is absent.

        Raises:
            SourceError
        """
        dialect = await self.dialect(deadline)
        sets, _ = await self._allocation_piece(dialect, _Piece(start, end, "hour"), end, aggregate, deadline)
        hours = {one.start: one for one in sets if one.end - one.start == HOUR and one.start % HOUR == 0}
        if len(hours) != len(sets):
            raise BadAnswer(f"{self._upstream.name} answered with sets that are no hours")
        return hours

    async def asset_hours(self, start: int, end: int, deadline: Deadline) -> dict[int, AssetsReading]:
        """Assets of each hour of a stretch of one UTC day, as far as the source tells hours apart.

        Raises:
            SourceError
        """
        dialect = await self.dialect(deadline)
        if dialect.flavour == "opencost":
            hours = [_Piece(a, b, "hour") for a, b in split(start, end, HOUR)]
            answers = await asyncio.gather(*(self._assets_piece(dialect, hour, deadline) for hour in hours))
            by_hour = {hour.start: list(one.assets) for hour, one in zip(hours, answers, strict=True)}
        else:
            by_hour = {}
            for span, asset in (await self._assets_piece(dialect, _Piece(start, end, "hour"), deadline)).found:
                if span is not None and span[1] - span[0] == HOUR:
                    by_hour.setdefault(span[0], []).append(asset)
        source = Source(name="assets", status="ok", fetched_at=int(self._clock()))
        return {
            hour: AssetsReading(source=source, assets=tuple(assets), flavour=dialect.flavour)
            for hour, assets in by_hour.items()
            if assets
        }

    async def _ask_allocation(
        self, dialect: Dialect, piece: _Piece, aggregate: Sequence[str], deadline: Deadline
    ) -> Decoded:
        params = {"window": f"{iso(piece.start)},{iso(piece.end)}", "shareIdle": "false", "external": "false"}
        if aggregate:
            params["aggregate"] = ",".join(aggregate)
        if dialect.flavour == "kubecost":
            params |= {
                "accumulate": piece.step,
                "idle": "true",
                "splitIdle": "false",
                "shareTenancyCosts": "false",
                "reconcile": "true",
            }
        else:
            step = {"day": "1d", "hour": "1h"}[piece.step]
            params |= {
                "accumulate": "false",
                "step": step,
                "resolution": "1m",
                "includeIdle": "true",
                "idleByNode": "false",
            }
        body = await self._http.get(self._upstream, dialect.allocation, params, deadline)
        return await _decoded(body, partial(decode_allocation, self._upstream.name, body, aggregate))

    async def assets(self, window: Window, deadline: Deadline) -> AssetsReading:
        """Assets of a window, one a thing.

        Raises:
            SourceError: where no part of the window could be read.
        """
        dialect = await self.dialect(deadline)
        whole = pieces(window)
        if dialect.flavour == "opencost":
            whole = [_Piece(start, end, "day") for start, end in window.stretches]
        answers = await asyncio.gather(
            *(self._assets_piece(dialect, piece, deadline) for piece in whole), return_exceptions=True
        )
        failures = _failures(answers)
        if len(failures) == len(answers):
            raise worst(failures)
        read = [answer for answer in answers if isinstance(answer, DecodedAssets)]
        assets = merge(asset for one in read for asset in one.assets)
        status: Literal["ok", "partial", "no_data"] = "ok" if assets or window.still_running else "no_data"
        if assets and (failures or any(not one.assets for one in read)):
            status = "partial"
        source = Source(
            name="assets",
            status=status,
            fetched_at=int(self._clock()),
            coverage=None,
            error=f"{len(failures)} of {len(answers)} days failed: {failures[0]}" if failures else None,
        )
        return AssetsReading(source=source, assets=assets, flavour=dialect.flavour)

    async def _assets_piece(self, dialect: Dialect, piece: _Piece, deadline: Deadline) -> DecodedAssets:
        params = {"window": f"{iso(piece.start)},{iso(piece.end)}"}
        if dialect.flavour == "kubecost":
            params |= {"accumulate": piece.step, "aggregate": "", "reconcile": "true"}
        body = await self._http.get(self._upstream, dialect.assets, params, deadline)
        decoded = await _decoded(body, partial(decode_assets, self._upstream.name, body))
        limit = piece.end + -piece.end % HOUR
        if all(piece.start <= start and end <= limit for start, end in decoded.spans):
            return decoded
        if piece.end - piece.start <= HOUR:
            raise BadAnswer(f"{self._upstream.name} answered for another window than asked")
        step = HOUR if piece.step == "hour" else DAY
        if piece.step == "day" and piece.end - piece.start <= DAY:
            return await self._assets_piece(dialect, _Piece(piece.start, piece.end, "hour"), deadline)
        parts = await asyncio.gather(
            *(
                self._assets_piece(dialect, _Piece(a, b, piece.step), deadline)
                for a, b in split(piece.start, piece.end, step)
            )
        )
        return DecodedAssets(tuple(one for part in parts for one in part.found))

    async def savings_body(self, detail: str, deadline: Deadline) -> bytes | None:
        """The raw answer of ``/model/savings`` or one of its details; None where the upstream has no such thing.

        Raises:
            SourceError
        """
        dialect = await self.dialect(deadline)
        if dialect.flavour == "opencost":
            return None
        path = f"/model/savings{detail}"
        try:
            return await self._http.get(self._upstream, path, {"window": "7d"} if detail else {}, deadline)
        except BadAnswer as failure:
            if failure.status == 404:
                return None
            raise


LARGE_BODY_BYTES = 2**20


async def _decoded(body: bytes, decode: Callable[[], D]) -> D:
    """Decode on a thread what would hold the loop for longer than some milliseconds."""
    if len(body) > LARGE_BODY_BYTES:
        return await asyncio.get_running_loop().run_in_executor(None, decode)
    return decode()


def _failures(answers: Sequence[object]) -> list[SourceError]:
    """The source errors among gathered answers; anything else that was raised is a defect, and raised on."""
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, SourceError):
            raise answer
    return [answer for answer in answers if isinstance(answer, SourceError)]


def worst(failures: Sequence[SourceError]) -> SourceError:
    """Of several failures the one to tell: nonsense before silence before no connection."""
    order = (BadAnswer, DeadlineExceeded)
    for kind in order:
        for failure in failures:
            if isinstance(failure, kind):
                return failure
    return failures[0]
