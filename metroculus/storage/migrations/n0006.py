"""Number 6: what organizations decide, and the months that they have closed.

Additive: a program of number 5 goes on beside it, and neither reads nor writes the new table.
"""

from __future__ import annotations

from metroculus.storage.migrations.steps import CreateTable, Migration

MIGRATION = Migration(
    number=6,
    readable_from=2,
    steps=(
        CreateTable(
            "k8s_documents",
            (
                ("organization", "String"),
                ("kind", "LowCardinality(String)"),
                ("name", "String"),
                ("sequence", "UInt64"),
                ("changed_at", "UInt32"),
                ("body", "String"),
            ),
            order="organization, kind, name, sequence",
            shard="cityHash64(organization)",
        ),
    ),
)
