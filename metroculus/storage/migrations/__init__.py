"""Every migration of the store, in order: each is frozen as the statements that it was, the next one follows it."""

from __future__ import annotations

from metroculus.storage.migrations import n0001, n0002, n0003, n0004, n0005, n0006, n0007, n0008
from metroculus.storage.migrations.steps import Migration

MIGRATIONS: tuple[Migration, ...] = (
    n0001.MIGRATION,
    n0002.MIGRATION,
    n0003.MIGRATION,
    n0004.MIGRATION,
    n0005.MIGRATION,
    n0006.MIGRATION,
    n0007.MIGRATION,
    n0008.MIGRATION,
)
