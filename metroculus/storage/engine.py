"""What the store needs of a ClickHouse: commands, inserts, queries; and what the versions of it differ in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from msgspec import Struct

from metroculus.cost_model.columns import Coded

Value = Any
"""Text, a number, or a list of either."""
Column = Any
"""An array of numbers, or ``Coded`` texts or lists of texts."""
Block = dict[str, Column]
"""Rows as columns of equal length, by name."""


def values_of(column: Column) -> list[Value]:
    """The value of each row."""
    values: list[Value] = column.list() if isinstance(column, Coded) else column.tolist()
    return values


class StoreError(Exception):
    """The store cannot be used now: down, full, slow, or what it holds cannot be read. The text holds no secret.

    Args:
        code: ClickHouse's own number of the error, where it answered with one.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


ALREADY_THERE = frozenset({15, 44})
"""ClickHouse's numbers for a column that is there already, on new servers and on the oldest."""


class TooManyRows(StoreError):
    """More is asked for than is answered at once."""


class StoreOwned(StoreError):
    """Another process has the folder of the embedded store."""


class StoreTooNew(StoreError):
    """Only a newer program can use the store; the text says so."""


class StoreUrlError(ValueError):
    """``CLICKHOUSE_URL`` is none."""


class Dialect(Struct, frozen=True):
    """What DDL may say: the oldest server that anyone runs is 18.16, the newest is the embedded engine."""

    version: tuple[int, int]
    cluster: str | None = None
    """Name of the cluster whose tables are Replicated and Distributed."""

    def type_of(self, wanted: str) -> str:
        """A column's type; before 19 repetitive text is plain text."""
        return wanted.replace("LowCardinality(String)", "String") if self.version < (19, 0) else wanted

    def altered(self, table: str) -> str:
        """What stands behind ``ALTER TABLE`` for a table; of a cluster its local tables everywhere."""
        return f"{table}_local ON CLUSTER {self.cluster}" if self.cluster else table

    @property
    def in_order(self) -> str:
        """Rows lie in the order of their batches: counting them needs no table of all batches."""
        return " SETTINGS optimize_aggregation_in_order = 1" if self.version >= (20, 3) else ""

    @property
    def wants_aliases(self) -> bool:
        """Whether both sides of a join must have a name."""
        return self.version >= (20, 3)

    @property
    def part_settings(self) -> str:
        """A block that was just inserted is one file, not one a column: it is merged with others soon enough."""
        return " SETTINGS min_bytes_for_wide_part = 67108864" if self.version >= (20, 3) else ""


FAILED_SECONDS = 300.0
"""So long an insert that failed is told of, if none is made after it."""


class Writes:
    """Whether an engine takes rows: one whose disk is full still answers questions."""

    def __init__(self) -> None:
        self._failure, self._failed_at = "", 0.0

    @property
    def failure(self) -> str | None:
        """Why the last insert failed, if that was a short time ago; None where it did not."""
        return self._failure if self._failure and time.monotonic() - self._failed_at < FAILED_SECONDS else None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Around an insert."""
        try:
            yield
        except StoreError as problem:
            self._failure, self._failed_at = str(problem), time.monotonic()
            raise
        self._failure = ""


class Engine(Protocol):
    """A ClickHouse; methods block, may be called from any thread, and raise StoreError."""

    writes: Writes

    @property
    def dialect(self) -> Dialect:
        """What it is; asks it the first time."""
        ...

    @property
    def alone(self) -> bool:
        """Whether nobody else can change what it holds: rows that were there once are still there."""
        ...

    @property
    def one_place(self) -> bool:
        """Whether every question is answered from the same data, and none by a replica that lags behind."""
        ...

    def require_room(self) -> None:
        """Refuse a change of the schema if the disk has no room for it.

        Raises:
            StoreError
        """
        ...

    def command(self, sql: str) -> None:
        """Run a statement without an answer."""
        ...

    def query(self, sql: str) -> Iterator[Sequence[Value]]:
        """Rows of an answer as they come, read in blocks; for questions by hand."""
        ...

    def rows(self, sql: str) -> Iterator[dict[str, Value]]:
        """Rows of an answer by the names of its columns, read in blocks; for small answers."""
        ...

    def columns(self, sql: str) -> dict[str, Column]:
        """A whole answer as columns by their names: arrays of numbers, ``Coded`` texts and lists of texts."""
        ...

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        """Some rows, in one block; acknowledged when it returns."""
        ...

    def insert_blocks(self, table: str, blocks: Sequence[Block]) -> None:
        """The rows of at least one block, all of the same columns, in one insert; acknowledged when it returns."""
        ...

    def close(self) -> None: ...


def literal(text: str) -> str:
    """A string literal of ClickHouse's SQL; what stands in it is never read as SQL."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\0", "\\0")
    return f"'{escaped}'"


def moment(stamp: int) -> str:
    """A DateTime literal, UTC."""
    return f"toDateTime({int(stamp)}, 'UTC')"


def alter(engine: Engine, table: str, what: str) -> None:
    """Run ``ALTER TABLE``; in a cluster, on the local tables of every server.

    Args:
        what: what follows the table's name, as ``DROP PARTITION 202611``.

    Raises:
        StoreError
    """
    engine.command(f"ALTER TABLE {engine.dialect.altered(table)} {what}")


def partitions(engine: Engine, table: str) -> list[int]:
    """The partitions of a table that hold rows, as their numbers (``202611``), in order.

    Raises:
        StoreError
    """
    name = f"{table}_local" if engine.dialect.cluster else table
    rows = engine.rows(
        "SELECT DISTINCT partition FROM system.parts WHERE active = 1 AND database = currentDatabase()"
        f" AND table = {literal(name)}"
    )
    return sorted(int(row["partition"]) for row in rows)


def numbers(values: Sequence[int]) -> str:
    """A list for ``IN``; never empty."""
    return ",".join(str(int(value)) for value in values) or "0"
