"""Number 8: what clusters cost an hour, minute by minute.

Additive: a program of number 7 goes on beside it, and neither reads nor writes the new table.
"""

from __future__ import annotations

from metroculus.storage.migrations.steps import CreateTable, Migration

MIGRATION = Migration(
    number=8,
    readable_from=2,
    steps=(
        CreateTable(
            "k8s_live",
            (
                ("account", "LowCardinality(String)"),
                ("at", "DateTime('UTC')"),
                ("told_at", "UInt32"),
                ("point", "String"),
                ("namespaces", "String"),
            ),
            order="account, at, told_at",
            partition="toYYYYMMDD(at)",
        ),
    ),
)
