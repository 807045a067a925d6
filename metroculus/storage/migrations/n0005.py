"""Number 5: what tenants push, until it is stored.

Additive: a program of number 4 goes on beside it, and neither reads nor writes the new tables.
"""

from __future__ import annotations

from metroculus.storage.migrations.steps import CreateTable, Migration

MIGRATION = Migration(
    number=5,
    readable_from=2,
    steps=(
        CreateTable(
            "k8s_push_answers",
            (
                ("account", "LowCardinality(String)"),
                ("first", "DateTime('UTC')"),
                ("last", "DateTime('UTC')"),
                ("kind", "LowCardinality(String)"),
                ("step", "LowCardinality(String)"),
                ("answer", "UInt64"),
                ("asked_at", "UInt32"),
                ("received_at", "UInt32"),
                ("digest", "String"),
                ("pieces", "UInt32"),
                ("bytes", "UInt64"),
                ("form", "LowCardinality(String)"),
                ("told", "Array(UInt32)"),
                ("currency", "LowCardinality(String)"),
            ),
            order="account, first, answer",
            partition="toYYYYMM(first)",
        ),
        CreateTable(
            "k8s_push_pieces",
            (
                ("account", "LowCardinality(String)"),
                ("first", "DateTime('UTC')"),
                ("answer", "UInt64"),
                ("number", "UInt32"),
                ("body", "String"),
            ),
            order="account, first, answer, number",
            partition="toYYYYMM(first)",
        ),
        CreateTable(
            "k8s_push_taken",
            (
                ("account", "LowCardinality(String)"),
                ("first", "DateTime('UTC')"),
                ("answer", "UInt64"),
                ("asked_at", "UInt32"),
                ("taken_at", "UInt32"),
            ),
            order="account, first, answer",
            partition="toYYYYMM(first)",
        ),
    ),
)
