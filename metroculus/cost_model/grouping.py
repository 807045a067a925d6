"""What rows are told apart by: ``detail_level`` and ``aggregate`` of a statement, ``group_by`` of expenses."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from metroculus.cost_model.allocation import Filters

Detail = Literal["summary", "namespace", "workload", "pod"]

PROPERTIES_OF_DETAIL: dict[Detail, tuple[str, ...]] = {
    "summary": (),
    "namespace": ("namespace",),
    "workload": ("namespace", "controller", "controllerKind"),
    "pod": ("namespace", "pod"),
}
TIMES = frozenset({"hour", "day", "month"})
"""Keys of ``group_by`` that are no property of a row but when it ran."""


class Grouping(Struct, frozen=True):
    """The lists that are asked for, and what their rows are told apart by.

    Args:
        detail: every list up to this one: namespaces, then workloads, then pods.
        properties: of one more list, in order: ``namespace``, …, ``label:x``, ``annotation:x``.
        clusters_apart: whether what is of different clusters is told apart in every list.
    """

    detail: Detail = "summary"
    properties: tuple[str, ...] = ()
    clusters_apart: bool = False

    @property
    def breakdowns(self) -> dict[str, tuple[str, ...]]:
        """The lists of a statement, each with the properties of its rows."""
        details = list(PROPERTIES_OF_DETAIL)
        asked = details[1 : details.index(self.detail) + 1]
        wanted = {f"breakdown_by_{detail}": PROPERTIES_OF_DETAIL[detail] for detail in asked}
        wanted |= {"breakdown_by_aggregate": self.properties} if self.properties else {}
        return {name: self._apart(properties) for name, properties in wanted.items()}

    def _apart(self, properties: tuple[str, ...]) -> tuple[str, ...]:
        return ("cluster", *properties) if self.clusters_apart and "cluster" not in properties else properties

    def needed(self, filters: Filters) -> tuple[str, ...]:
        """Each property that what is asked for its rows must still have, to be grouped and filtered by.

        None of them: the sums of owners are enough.
        """
        listed = [name for properties in self.breakdowns.values() for name in properties]
        listed += ["node"] if filters.nodes else []
        listed += ["service"] if filters.services else []
        listed += filters.names
        return tuple(dict.fromkeys(listed))
