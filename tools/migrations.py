"""Numbered migrations of small stores: SQLite files, and MongoDB's collections by the same rule.

A migration is frozen once it is released, adds and never takes away, and can be repeated. It names the oldest program
that still reads and writes what it leaves (``readable_from``): such a program goes on beside a newer one.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WAIT_SECONDS = 5.0
"""For a file that others have open."""


class TooNew(Exception):
    """What is stored needs a newer program; the message says what to do."""


@dataclass(frozen=True)
class AddColumn:
    """A column of a table that an older program made without it; nothing where the table is not there yet."""

    table: str
    name: str
    definition: str

    def apply(self, database: sqlite3.Connection) -> None:
        there = {row[1] for row in database.execute(f"PRAGMA table_info({self.table})")}
        if there and self.name not in there:
            database.execute(f"ALTER TABLE {self.table} ADD COLUMN {self.name} {self.definition}")


@dataclass(frozen=True)
class Statement:
    """A statement that can be repeated: ``CREATE … IF NOT EXISTS``."""

    sql: str

    def apply(self, database: sqlite3.Connection) -> None:
        database.execute(self.sql)


@dataclass(frozen=True)
class SqliteMigration:
    number: int
    readable_from: int
    steps: tuple[AddColumn | Statement, ...]


def to_apply(applied: Mapping[int, int], known: Sequence[int]) -> list[int]:
    """The numbers that are still to be applied.

    Args:
        applied: ``readable_from`` of each migration that was applied, by number.
        known: the numbers of this program, rising.

    Raises:
        TooNew
    """
    needed = max(applied.values(), default=0)
    if needed > known[-1]:
        raise TooNew(
            f"its schema is number {max(applied)}, which programs from number {needed} on can use; this one knows"
            f" {known[-1]}: upgrade it"
        )
    return [number for number in known if number not in applied]


def write_ahead(database: sqlite3.Connection) -> None:
    """Switch a file to its write-ahead log; SQLite does not wait for others who do the same, so that it is done here.

    Raises:
        sqlite3.Error
    """
    ends = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as problem:
            if "locked" not in str(problem) or time.monotonic() > ends:
                raise
            time.sleep(0.02)


def migrate_sqlite(database: sqlite3.Connection, series: str, migrations: Sequence[SqliteMigration]) -> None:
    """Bring a file to the schema of this program, whole or not at all, beside whoever else does so.

    Args:
        database: in autocommit mode (``isolation_level=None``).
        series: whose migrations they are; a file may hold the tables of several.

    Raises:
        TooNew, sqlite3.Error
    """
    table = f"{series}_migrations"
    database.execute("BEGIN IMMEDIATE")
    try:
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (number INTEGER PRIMARY KEY, readable_from INTEGER NOT NULL)"
        )
        applied = dict(database.execute(f"SELECT number, readable_from FROM {table}").fetchall())
        wanted = to_apply(applied, [migration.number for migration in migrations])
        for migration in migrations:
            if migration.number in wanted:
                for step in migration.steps:
                    step.apply(database)
                database.execute(f"INSERT INTO {table} VALUES (?, ?)", (migration.number, migration.readable_from))
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
