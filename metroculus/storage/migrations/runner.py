"""Brings a store to the schema of this program, beside whoever else does so."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from metroculus.storage.columns import Table
from metroculus.storage.engine import Engine, StoreError, StoreTooNew
from metroculus.storage.migrations.steps import AddColumns, CreateTable, Migration, columns_of

log = logging.getLogger("storage")

_VERSIONS = CreateTable(
    "schema_migrations", (("version", "UInt32"), ("applied_at", "UInt32")), order="version", shard="version"
)
_READABLE = AddColumns("schema_migrations", (("readable_from", "UInt32", "1"),), shard="version")


ATTEMPTS = 6
IN_EACH_OTHERS_WAY = frozenset({10, 16, 44, 47, 57, 60, 253})
"""Codes of a table or column that is there already, or not yet: another program is at the same step."""


def migrate(engine: Engine, migrations: Sequence[Migration]) -> int:
    """``_migrate``, again where other programs that do the same were in the way.

    Returns:
        the number of the store's schema, which is higher than this program's beside a newer one.

    Raises:
        StoreError: the store is too new for this program, or cannot be written.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return _migrate(engine, migrations)
        except StoreError as failure:
            if engine.alone or failure.code not in IN_EACH_OTHERS_WAY:
                raise
            log.info("another program is bringing the store to its schema: %s", failure)
            time.sleep(0.1 * 2**attempt)
    return _migrate(engine, migrations)


def _migrate(engine: Engine, migrations: Sequence[Migration]) -> int:
    """Apply what a store lacks; repeating it, or several processes at once, does no harm: every step is idempotent.

    Returns:
        the number of the store's schema, which is higher than this program's beside a newer one.

    Raises:
        StoreError: the store is too new for this program, or cannot be written.
    """
    known = migrations[-1].number
    _VERSIONS.apply(engine)
    _READABLE.apply(engine)
    applied = {
        int(row["version"]): int(row["readable_from"])
        for row in engine.rows("SELECT version, readable_from FROM schema_migrations")
    }
    newest = max(applied, default=0)
    if newest > known and max(applied.values()) > known:
        needed = max(applied.values())
        raise StoreTooNew(
            f"the store's schema is number {newest}, which programs from number {needed} on can use; this one knows"
            f" {known}: upgrade it"
        )
    for migration in migrations:
        if migration.number in applied:
            continue
        engine.require_room()
        log.info("bringing the store to schema %d", migration.number)
        for step in migration.steps:
            step.apply(engine)
        engine.insert(
            _VERSIONS.name,
            ("version", "applied_at", "readable_from"),
            [(migration.number, int(time.time()), migration.readable_from)],
        )
    return max(newest, known)


def require_columns(engine: Engine, tables: Sequence[Table]) -> None:
    """Hold a store that was migrated to what this program reads and writes.

    Raises:
        StoreError: names each column that no migration made.
    """
    missing = [
        f"{table.name}.{name}"
        for table in tables
        for name in sorted(set(table.names) - columns_of(engine, table.name).keys())
    ]
    if missing:
        raise StoreError(f"no migration adds {', '.join(missing)}")
