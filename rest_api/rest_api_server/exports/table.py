"""A table to take away: columns with their units, rows as they come, and what must be known to read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec import UNSET, Struct

Cell: TypeAlias = str | float | int | bool | None
"""None is not known, or there is none of it; a file has an empty cell for it, never a zero."""
Rows: TypeAlias = Sequence[tuple[Cell, ...]]

BATCH_ROWS = 2_000
UNITS = {
    "efficiency": "ratio",
    "utilization": "ratio",
    "coverage": "ratio",
    "cores": "cores",
    "bytes": "bytes",
    "hours": "hours",
}
"""By the end of a column's name."""


class Column(Struct, frozen=True):
    name: str
    unit: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


class Table(Struct, frozen=True):
    """What a file holds."""

    columns: tuple[Column, ...]
    about: tuple[tuple[str, str], ...]
    """Lines above the rows: what was asked, when, how much of it is known, and what it all comes to."""
    batches: AsyncIterator[Rows]
    row_count: int
    """As far as it is known before the rows come."""


def columns_of(names: Iterable[str], currency: str) -> tuple[Column, ...]:
    """Columns with the units that their names say."""
    return tuple(Column(name, unit_of(name, currency)) for name in names)


def unit_of(name: str, currency: str) -> str:
    """The unit of a column; that of money is its currency."""
    if name.endswith(("_cost", "_saving", "_amount")) or name == "adjustment":
        return currency
    if name.startswith("cpu_core_"):
        return "cores"
    if name.startswith("ram_byte_"):
        return "bytes"
    return next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")


def ordered(row: type[Struct], *first: str) -> list[str]:
    """The fields of a row, some of them before the others."""
    return [*first, *(name for name in row.__struct_fields__ if name not in first)]


def present(rows: Sequence[Struct], names: Sequence[str]) -> list[str]:
    """The names that any of the rows has."""
    return [name for name in names if any(getattr(row, name, UNSET) is not UNSET for row in rows)]


def cells_of(row: Struct, names: Sequence[str]) -> tuple[Cell, ...]:
    """The fields of a row as cells, in the order of ``names``."""
    return tuple(_cell(getattr(row, name, None)) for name in names)


def _cell(value: Any) -> Cell:
    return None if value is UNSET else value


async def at_once(rows: Rows) -> AsyncIterator[Rows]:
    """Rows that are all there, some at a time."""
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows[start : start + BATCH_ROWS]


def asked_for(filters: Mapping[str, object]) -> str:
    """Filters in one line; ``none`` where nothing is filtered."""
    given = [f"{name} = {_listed(value)}" for name, value in filters.items() if value not in (None, (), "")]
    return "; ".join(given) or "none"


def _listed(value: object) -> str:
    return " or ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def money(amount: float | None, currency: str | None) -> str:
    """An amount to its last digit; in words where it is not known."""
    return f"{amount!r} {currency or ''}".strip() if amount is not None else "not known"
