"""From what the cost model, the sources and the store say to what is answered: the SDK's shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from metroculus.cost_model.reading import SourceReport
from metroculus.cost_model.statement import StatementWindow
from optscale_client.metroculus_client import structs
from tools.window import Window

T = TypeVar("T")


def wire(value: Any, shape: type[T]) -> T:
    """One value in the SDK's shape of it; the two name their fields alike."""
    return msgspec.convert(value, shape, from_attributes=True)


def wired(values: Iterable[Any], shape: type[T]) -> tuple[T, ...]:
    """Many values in the SDK's shape of them."""
    return tuple(wire(value, shape) for value in values)


def sources_of(reports: Iterable[SourceReport]) -> tuple[structs.SourceState, ...]:
    return wired(reports, structs.SourceState)


def window_of(window: Window) -> structs.TimeWindow:
    return wire(StatementWindow.of(window), structs.TimeWindow)
