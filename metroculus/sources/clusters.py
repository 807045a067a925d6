"""One account is one cluster: which rows and assets are the account's, where an upstream knows several clusters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from msgspec import Struct, structs

from metroculus.cost_model.columns import Allocations
from metroculus.cost_model.reading import AllocationReading, AllocationSet, AssetsReading, Status
from metroculus.sources.errors import SeveralClusters

ALL = "*"
"""Named instead of a cluster: all that the upstream knows are meant."""


class Clusters(Struct, frozen=True):
    """The names that an account's cluster has or had upstream; none where it was never named."""

    names: tuple[str, ...] = ()

    @property
    def all(self) -> bool:
        """Whether all clusters of the upstream are the account's: then rows are told apart by theirs."""
        return ALL in self.names

    @property
    def named(self) -> tuple[str, ...]:
        return () if self.all else self.names

    def check(self, seen: Iterable[str]) -> None:
        """Raises: SeveralClusters: more than one was seen, and none is named."""
        several = sorted({name for name in seen if name})
        if not self.names and len(several) > 1:
            raise SeveralClusters(several)

    def of_rows(self, rows: Allocations) -> Allocations:
        """The rows of the account's cluster; what does not say whose it is, where there is only one."""
        if self.all or not len(rows):
            return rows
        clusters = rows.texts["cluster"]
        seen = {clusters.values[code] for code in np.unique(clusters.codes).tolist()} - {""}
        self.check({clusters.values[code] for code in np.unique(clusters.codes[rows.owned]).tolist()})
        if not self.names or seen <= set(self.names):
            return rows
        return rows.take(clusters.map(self._wanted(seen).__contains__, bool))

    def of_sets(self, sets: Iterable[AllocationSet]) -> tuple[AllocationSet, ...]:
        """Sets with the rows of the account's cluster.

        Raises:
            SeveralClusters
        """
        many = list(sets)
        everything = Allocations.joined(one.columns for one in many)
        # More than one cluster may show over all sets together.
        if self.of_rows(everything) is everything:
            return tuple(many)
        return tuple(replace(one, allocations=self.of_rows(one.columns)) for one in many)

    def of_reading(self, reading: AllocationReading) -> AllocationReading:
        """A reading of the account's cluster; that another one went on where it was not told makes it no more whole.

        Raises:
            SeveralClusters
        """
        if not reading.sets:
            return reading
        mine = self.of_sets(reading.sets)
        if not self.named:
            return structs.replace(reading, sets=mine)
        kept = tuple(one for one in mine if len(one.columns) and not one.without_containers)
        if len(kept) == len(mine):
            return structs.replace(reading, sets=mine)
        note = f"{len(mine) - len(kept)} sets know nothing that ran in this cluster"
        status: Status = "partial" if kept else "no_data"
        source = structs.replace(reading.source, status=status, warnings=(*reading.source.warnings, note))
        return structs.replace(reading, source=source, sets=kept)

    def of_assets(self, reading: AssetsReading) -> AssetsReading:
        """Raises: SeveralClusters"""
        seen = {asset.cluster for asset in reading.assets} - {""}
        self.check(seen)
        if self.all or not self.names or seen <= set(self.names):
            return reading
        wanted = self._wanted(seen)
        return structs.replace(reading, assets=tuple(a for a in reading.assets if a.cluster in wanted))

    def _wanted(self, seen: set[str]) -> frozenset[str]:
        """The names to keep; no name is one of them where a single cluster was seen."""
        return frozenset(self.names if len(seen) > 1 else (*self.names, ""))
