"""A cost source of the smallest kind, as ``docs/extending.md`` builds it: an upstream that lists pods and their price."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec
from msgspec import Struct
from tornado.web import Application, RequestHandler

from metroculus.cost_model.allocation import IDLE, Allocation
from metroculus.cost_model.assets import Asset
from metroculus.cost_model.components import Costs
from metroculus.cost_model.reading import AllocationReading, AllocationSet, AssetsReading, SourceReport, judge_sets
from metroculus.cost_model.savings import Recommendation
from metroculus.cost_model.statement import Question
from metroculus.sources.errors import BadAnswer
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.source import Capability, CostSource, SavingsReading
from tools.deadline import Deadline
from tools.window import HOUR, Window, split


class Pod(Struct):
    namespace: str
    pod: str
    node: str
    usd_per_hour: float


class ToySource(CostSource):
    """Pods that cost the same in every hour, on nodes of 1.00 USD an hour."""

    name = "toy"
    tells = frozenset(
        {Capability.ALLOCATIONS, Capability.DAY_SET, Capability.ASSETS, Capability.MANAGEMENT, Capability.SAVINGS}
    )

    def __init__(self, http: SourceHttp, upstream: Upstream, clock: Callable[[], float]) -> None:
        self._http = http
        self._upstream = upstream
        self._clock = clock

    async def capabilities(self, deadline: Deadline) -> frozenset[Capability]:
        return self.tells

    @property
    def known_capabilities(self) -> frozenset[Capability]:
        return self.tells

    async def allocations(self, question: Question, window: Window, deadline: Deadline) -> AllocationReading:
        pods = await self._pods(deadline)
        sets = [_hour(pods, start, end) for start, end in split(window.start, window.end, HOUR)]
        return judge_sets(self.name, sets, window, int(self._clock()))

    async def assets(self, window: Window, deadline: Deadline) -> AssetsReading:
        hours = window.seconds / HOUR
        nodes = sorted({pod.node for pod in await self._pods(deadline)})
        found = [Asset(type="node", name=name, hours=hours, cpu_cost=hours, total_cost=hours) for name in nodes]
        source = SourceReport(name="assets", status="ok", fetched_at=int(self._clock()))
        return AssetsReading(source=source, assets=tuple(found))

    async def savings(self, window: Window, utilization: float | None, deadline: Deadline) -> SavingsReading:
        dearest = max(await self._pods(deadline), key=lambda pod: pod.usd_per_hour)
        found = Recommendation(
            kind="right_sizing", namespace=dearest.namespace, name=dearest.pod, resource="cpu", monthly_saving=7.0
        )
        return SavingsReading(SourceReport(name="savings", status="ok"), (found,))

    async def _pods(self, deadline: Deadline) -> list[Pod]:
        body = await self._http.get(self._upstream, "/pods", {}, deadline)
        try:
            return msgspec.json.decode(body, type=list[Pod])
        except msgspec.DecodeError:
            raise BadAnswer("the toy answered with something that is not its JSON") from None


def _hour(pods: list[Pod], start: int, end: int) -> AllocationSet:
    """The pods of an hour, and what their nodes cost beyond them."""
    hours = (end - start) / HOUR
    rows = [
        Allocation(
            name=f"{pod.namespace}/{pod.pod}", namespace=pod.namespace, pod=pod.pod, start=start, end=end,
            costs=Costs(cpu=pod.usd_per_hour * hours),
        )
        for pod in pods
    ]  # fmt: skip
    used = sum(pod.usd_per_hour for pod in pods)
    idle = Costs(cpu=(len({pod.node for pod in pods}) - used) * hours)
    return AllocationSet(start, end, [*rows, Allocation(name=IDLE, start=start, end=end, costs=idle)])


class ToyPods(RequestHandler):
    pods: ClassVar[list[Pod]] = [Pod("shop", "web-0", "node-1", 0.25), Pod("api", "api-0", "node-2", 0.5)]

    def get(self) -> None:
        self.finish(msgspec.json.encode(self.pods))


def toy_application() -> Application:
    return Application([("/pods", ToyPods)])
