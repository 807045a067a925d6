"""What the migrations make is what the program reads and writes; one that was released is never changed."""

from __future__ import annotations

from hashlib import sha256

import msgspec
import pytest

from metroculus.storage.columns import TABLES
from metroculus.storage.migrations import MIGRATIONS
from metroculus.storage.migrations.steps import CreateTable, resulting_columns

RELEASED = {
    1: "07097687317fbf28",
    2: "8677bc2a0d06094b",
    3: "d55b942510450a86",
    4: "40b8175bc2670753",
    5: "c0e5f86a8589763f",
    6: "8cf02f81a77c4144",
    7: "f8fb97a94421e860",
    8: "fb679f02f4d0b009",
}
"""SHA-256 of each migration's steps."""


def digest(migration):
    return sha256(msgspec.json.encode(migration.steps)).hexdigest()[:16]


def test_a_released_migration_is_frozen():
    assert {one.number: digest(one) for one in MIGRATIONS} == RELEASED


def test_numbers_follow_each_other_and_name_a_program_that_exists():
    assert [one.number for one in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))
    assert all(1 <= one.readable_from <= one.number for one in MIGRATIONS)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_column_that_the_program_names_is_made_by_a_migration(table):
    made = {name for of, name, _ in resulting_columns(MIGRATIONS) if of == table.name}
    missing = set(table.names) - made
    assert not missing, f"{table.name}: no migration adds {', '.join(sorted(missing))}"


def test_no_migration_adds_a_column_twice_or_to_a_table_that_is_not_there():
    columns = [(of, name) for of, name, _ in resulting_columns(MIGRATIONS)]
    assert len(columns) == len(set(columns))
    tables = {step.name for one in MIGRATIONS for step in one.steps if isinstance(step, CreateTable)}
    assert {of for of, _ in columns} == tables == {table.name for table in TABLES}
