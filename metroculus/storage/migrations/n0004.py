"""Number 4: what was found each day that could be saved.

Additive: a program of number 3 goes on beside it, and neither reads nor writes the new table.
"""

from __future__ import annotations

from metroculus.storage.migrations.steps import CreateTable, Migration

MIGRATION = Migration(
    number=4,
    readable_from=2,
    steps=(
        CreateTable(
            "k8s_savings",
            (
                ("account", "LowCardinality(String)"),
                ("day", "DateTime('UTC')"),
                ("sequence", "UInt64"),
                ("fetched_at", "UInt32"),
                ("found", "String"),
            ),
            order="account, day, sequence",
            partition="toYYYYMM(day)",
        ),
    ),
)
