"""Thanos Query (or a Prometheus): instant and range queries for one tenant.

The tenant's label is put into every selector by construction, stands in every ``by``, and every series that comes back
must carry it, or the answer is refused.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct

from metroculus.sources.clusters import Clusters
from metroculus.sources.errors import BadAnswer, DeadlineExceeded
from metroculus.sources.numbers import is_quantity
from metroculus.sources.outbound.http import CALLS_AT_ONCE, SourceHttp, Upstream, seconds_left
from metroculus.sources.source import Series
from metroculus.sources.thanos.promql import Tenant
from tools.deadline import Deadline

MAX_SERIES = 200_000
CALLS_OF_AN_ACCOUNT = CALLS_AT_ONCE - 2
RESOLUTIONS = ("0s", "5m", "1h")
REPLICA_LABELS = ("replica", "prometheus_replica")
"""What Thanos' and the Prometheus operator's set-ups call them."""


class _Sample(Struct, array_like=True):
    at: float
    value: str


class _VectorEntry(Struct):
    metric: dict[str, str]
    value: _Sample


class _MatrixEntry(Struct):
    metric: dict[str, str]
    values: list[_Sample]


class _Vector(Struct, tag_field="resultType", tag="vector"):
    result: list[_VectorEntry]


class _Matrix(Struct, tag_field="resultType", tag="matrix"):
    result: list[_MatrixEntry]


class _VectorAnswer(Struct, tag_field="status", tag="success"):
    data: _Vector
    warnings: list[str] = []


class _MatrixAnswer(Struct, tag_field="status", tag="success"):
    data: _Matrix
    warnings: list[str] = []


_VECTOR = msgspec.json.Decoder(_VectorAnswer)
_MATRIX = msgspec.json.Decoder(_MatrixAnswer)

Labels = Mapping[str, str]
Samples = list[tuple[Labels, float]]
"""Series of an instant query with their values."""
A = TypeVar("A", _VectorAnswer, _MatrixAnswer)


class Querier:
    """One querier, shared by all accounts.

    Args:
        label: the tenant's label; empty for a Prometheus of one cluster's own.
        clock: Unix seconds, for ``fetched_at``.
        replicas: labels that tell apart only which of several recorded a series.
    """

    def __init__(
        self,
        http: SourceHttp,
        upstream: Upstream,
        label: str,
        clock: Callable[[], float],
        replicas: Sequence[str] = REPLICA_LABELS,
    ) -> None:
        self._http = http
        self._upstream = upstream
        self._label = label
        self._clock = clock
        self.replicas = tuple(replicas)
        self.clusters = Clusters()
        self.selected: tuple[str, str] | None = None
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, clusters: Clusters, selected: tuple[str, str] | None) -> Querier:
        """The same querier, asked for an account whose cluster is one of several under its tenant.

        Args:
            selected: the label that says which cluster a series is of, and the account's value of it.
        """
        mine = copy(self)
        mine.clusters, mine.selected = clusters, selected
        return mine

    def now(self) -> int:
        """Unix seconds."""
        return int(self._clock())

    def tenant(self, account: str) -> Tenant:
        tenant = Tenant(self._label, account if self._label else "")
        if self.selected is None:
            return tenant
        return msgspec.structs.replace(tenant, cluster_label=self.selected[0], clusters=(self.selected[1],))

    async def query(
        self, tenant: Tenant, query: str, at: float, deadline: Deadline, resolution: str = RESOLUTIONS[0]
    ) -> tuple[Samples, list[str]]:
        """An instant query: labels and finite values, and what the querier warned of.

        A value that is no quantity is counted out and warned of.

        Raises:
            SourceError: also where a series is another tenant's or stands twice, and where no value can be read.
        """
        params = {"query": query, "time": f"{at:.3f}", **self._flags(resolution)}
        answer = await self._ask("/api/v1/query", params, tenant, deadline, _VECTOR)
        found: dict[tuple[tuple[str, str], ...], tuple[Labels, float]] = {}
        for entry in answer.data.result:
            self._check(tenant, entry.metric)
            key = tuple(sorted(entry.metric.items()))
            if key in found:
                raise BadAnswer("the metrics source answered with the same series twice")
            found[key] = (entry.metric, _quantity(entry.value.value))
        read = [(labels, value) for labels, value in found.values() if not math.isnan(value)]
        warnings = [text[:200] for text in answer.warnings]
        if len(read) < len(found):
            if not read:
                raise BadAnswer("the metrics source answered with a value that is no number")
            warnings.append(f"{len(found) - len(read)} values could not be read and are not counted")
        return read, warnings

    async def stamps(
        self, tenant: Tenant, query: str, at: float, deadline: Deadline, resolution: str
    ) -> list[list[float]]:
        """When each series of a range selector was written, Unix seconds.

        Raises:
            SourceError
        """
        params = {"query": query, "time": f"{at:.3f}", **self._flags(resolution)}
        answer = await self._ask("/api/v1/query", params, tenant, deadline, _MATRIX)
        for entry in answer.data.result:
            self._check(tenant, entry.metric)
        return [[sample.at for sample in entry.values] for entry in answer.data.result]

    async def query_range(
        self, tenant: Tenant, query: str, start: int, end: int, step: int, deadline: Deadline, resolution: str = "0s"
    ) -> tuple[list[Series], list[str]]:
        """A range query; samples that are no quantity are left out, and told of.

        Raises:
            SourceError
        """
        params = {"query": query, "start": str(start), "end": str(end), "step": str(step), **self._flags(resolution)}
        answer = await self._ask("/api/v1/query_range", params, tenant, deadline, _MATRIX)
        series = []
        unread = 0
        for entry in answer.data.result:
            self._check(tenant, entry.metric)
            values = [(sample.at, _quantity(sample.value)) for sample in entry.values]
            kept = tuple(pair for pair in values if not math.isnan(pair[1]))
            unread += len(values) - len(kept)
            series.append(Series(entry.metric, kept))
        warnings = [text[:200] for text in answer.warnings]
        if unread:
            warnings.append(f"{unread} values could not be read and are not counted")
        return series, warnings

    def _flags(self, resolution: str) -> dict[str, str]:
        return {"dedup": "true", "partial_response": "false", "max_source_resolution": resolution}

    async def _ask(
        self, path: str, params: Mapping[str, str], tenant: Tenant, deadline: Deadline, decoder: msgspec.json.Decoder[A]
    ) -> A:
        headers = dict(self._upstream.headers) | ({"THANOS-TENANT": tenant.value} if tenant.label else {})
        body = await self._in_turn(tenant, replace(self._upstream, headers=headers), path, params, deadline)
        try:
            answer = decoder.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise BadAnswer("the metrics source answered with something that is not its JSON") from None
        if len(answer.data.result) > MAX_SERIES:
            raise BadAnswer(f"the metrics source answered with more than {MAX_SERIES} series")
        return answer

    async def _in_turn(
        self, tenant: Tenant, upstream: Upstream, path: str, params: Mapping[str, str], deadline: Deadline
    ) -> bytes:
        """One querier is everybody's: an account that asks much leaves places to the others, where there are any."""
        if not tenant.label:
            return await self._http.get(upstream, path, params, deadline)
        places = self._places.setdefault(tenant.value, asyncio.Semaphore(CALLS_OF_AN_ACCOUNT))
        try:
            async with asyncio.timeout(seconds_left(deadline)):
                await places.acquire()
        except TimeoutError:
            raise DeadlineExceeded(f"{upstream.name} is busy: the deadline passed in the queue") from None
        try:
            return await self._http.get(upstream, path, params, deadline)
        finally:
            places.release()

    def _check(self, tenant: Tenant, labels: Labels) -> None:
        if tenant.label and labels.get(tenant.label) != tenant.value:
            raise BadAnswer("the metrics source answered with a series that is not the account's")


def _quantity(text: str) -> float:
    """A number that sums can hold; NaN for anything else."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if is_quantity(value) else math.nan
