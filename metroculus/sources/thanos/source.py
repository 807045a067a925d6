"""One account's metrics as a cost source: everything out of Thanos, or out of a Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from metroculus.cost_model.allocation import as_prometheus_spells
from metroculus.cost_model.columns import by_owner
from metroculus.cost_model.components import Costs
from metroculus.cost_model.live import LivePoint
from metroculus.cost_model.reading import AllocationReading, AssetsReading, ManagementReading, SourceReport
from metroculus.cost_model.savings import MIN_WINDOW_SECONDS, abandoned_workloads, right_sizing
from metroculus.cost_model.statement import Question
from metroculus.sources.clusters import Clusters
from metroculus.sources.source import Capability, CostSource, HourSets, Metadata, SavingsReading, Series
from metroculus.sources.thanos.assets import assets_by_metrics
from metroculus.sources.thanos.client import Querier
from metroculus.sources.thanos.costs import allocation_by_metrics, management_by_metrics
from metroculus.sources.thanos.live import LiveReader
from metroculus.sources.thanos.promql import MIN_STEP_SECONDS, selector
from metroculus.sources.thanos.usage import container_usages, metadata
from tools.deadline import Deadline
from tools.window import DAY, Window

KEPT_LABELS = ("app", "app.kubernetes.io/name", "owner", "team")
"""Pod labels that stored hours carry: metrics give labels only where they are asked for by name."""

CAPABILITIES = frozenset(Capability) - {Capability.PLACEMENT, Capability.BUDGETS}


class MetricsSource(CostSource):
    """What metrics alone tell of one account; they do not tell which node a pod ran on."""

    name = "thanos"
    assets_name = "thanos"

    def __init__(
        self,
        querier: Querier,
        account: str,
        clusters: Clusters | None = None,
        selected: tuple[str, str] | None = None,
    ) -> None:
        self.clusters = clusters or Clusters()
        self._querier = querier.of(self.clusters, selected)
        self._account = account
        self._live = LiveReader(self._querier, account)

    def unsupported(self, properties: Iterable[str]) -> tuple[str, ...]:
        """Annotations: no exporter writes them with the pods that metrics tell of."""
        return tuple(name for name in properties if name.startswith("annotation:"))

    def not_stored(self, properties: Iterable[str]) -> tuple[str, ...]:
        """Labels beyond ``KEPT_LABELS``, in either spelling."""
        kept = {as_prometheus_spells(name) for name in KEPT_LABELS}
        labels = (name for name in properties if name.startswith("label:"))
        return tuple(name for name in labels if as_prometheus_spells(name.partition(":")[2]) not in kept)

    async def capabilities(self, deadline: Deadline) -> frozenset[Capability]:
        return CAPABILITIES

    @property
    def known_capabilities(self) -> frozenset[Capability]:
        return CAPABILITIES

    async def allocations(self, question: Question, window: Window, deadline: Deadline) -> AllocationReading:
        names = [name.partition(":")[2] for name in question.properties if name.startswith("label:")]
        labels = tuple(f"label_{as_prometheus_spells(name)}" for name in names)
        services = "service" in question.grouping.needed(question.filters)
        return await allocation_by_metrics(self._querier, self._account, window, deadline, labels, services)

    async def hour_sets(self, start: int, end: int, seconds_a_call: float) -> HourSets:
        kept = ("container", "node", "service", *(f"label:{name}" for name in KEPT_LABELS))
        return await self.hours_of(start, end, seconds_a_call, kept)

    async def day_set(self, day: int, deadline: Deadline) -> dict[str, Costs] | None:
        window = Window.past(day, day + DAY)
        reading = await allocation_by_metrics(self._querier, self._account, window, deadline)
        return by_owner(reading.allocations()) if reading.source.status == "ok" else None

    async def assets(self, window: Window, deadline: Deadline) -> AssetsReading:
        found, source = await assets_by_metrics(self._querier, self._account, window, deadline)
        return AssetsReading(source=source, assets=found)

    async def management(self, window: Window, deadline: Deadline) -> ManagementReading:
        return await management_by_metrics(self._querier, self._account, window, deadline)

    async def savings(self, window: Window, utilization: float | None, deadline: Deadline) -> SavingsReading | None:
        if window.seconds < MIN_WINDOW_SECONDS:
            return SavingsReading(
                SourceReport(name="savings", status="no_data", error="usage of at least 3 days is needed")
            )
        usages = await container_usages(self._querier, self._account, window, deadline)
        found = [*right_sizing(usages, window.seconds, utilization), *abandoned_workloads(usages, window.seconds)]
        source = SourceReport(name="savings", status="ok" if usages else "no_data")
        return SavingsReading(source, tuple(found), usages=tuple(usages))

    async def metadata(self, at: int, deadline: Deadline) -> Metadata:
        return await metadata(self._querier, self._account, at, deadline)

    async def live(self, start: int, end: int, deadline: Deadline) -> list[tuple[LivePoint, ...]]:
        return await self._live.read(start, end, deadline)

    async def series(self, name: str, window: Window, step: int, deadline: Deadline) -> tuple[list[Series], list[str]]:
        tenant = self._querier.tenant(self._account)
        lookback = max(step, 2 * MIN_STEP_SECONDS)
        query = f"last_over_time({selector(name, tenant)}[{lookback}s])"
        first = window.start + -window.start % step
        return await self._querier.query_range(tenant, query, first, window.end - 1, step, deadline)
