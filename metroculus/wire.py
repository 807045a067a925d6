"""From what the cost model, the sources and the store say to what is answered: the SDK's shapes."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from metroculus.cost_model.reading import SourceReport
from metroculus.cost_model.statement import StatementWindow
from metroculus.storage.coverage import source_of, whole
from metroculus.storage.ledger import CommittedHours
from optscale_client.metroculus_client import structs
from tools.window import Window
from tools.zones import Period

T = TypeVar("T")


def wire(value: Any, shape: type[T]) -> T:
    """One value in the SDK's shape of it; the two name their fields alike."""
    return msgspec.convert(value, shape, from_attributes=True)


def wired(values: Iterable[Any], shape: type[T]) -> tuple[T, ...]:
    """Many values in the SDK's shape of them."""
    return tuple(wire(value, shape) for value in values)


def version_of(decided: Any) -> str:
    """A hash of a budget or of rules, which changes when they do."""
    return sha256(msgspec.json.encode(decided, order="sorted")).hexdigest()[:16]


def sources_of(reports: Iterable[SourceReport]) -> tuple[structs.SourceState, ...]:
    return wired(reports, structs.SourceState)


def window_of(window: Window) -> structs.TimeWindow:
    return wire(StatementWindow.of(window), structs.TimeWindow)


def coverage_of(
    account: str, committed: CommittedHours, window: Window, finest: Period | None, unable_sources: frozenset[str]
) -> structs.AccountCoverage:
    """How much of a window is stored of an account; hours whose source cannot tell what is asked are partial."""
    source = source_of(committed, window, finest)
    cannot = sum(marker.source in unable_sources for marker in committed.hours.values())
    if cannot:
        note = f"{cannot} hours were told by a source that cannot tell what is grouped by"
        source = replace(source, status="partial", warnings=(*source.warnings, note))
    return structs.AccountCoverage(
        cloud_account_id=account,
        coverage=source.coverage,
        complete=whole(committed, source),
        source=wire(source, structs.SourceState),
    )
