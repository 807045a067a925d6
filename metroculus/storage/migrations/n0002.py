"""Number 2: what is unknown of a row, what it covers, currency and cluster, and what a day has beyond its hours.

Additive: a program of number 1 goes on reading and writing beside it, and what it writes takes the defaults, which say
what it meant (nothing unknown beyond what its marker names, all in USD).
"""

from __future__ import annotations

from metroculus.storage.migrations.steps import AddColumns, CreateTable, Migration

TEXT = "LowCardinality(String)"

MIGRATION = Migration(
    number=2,
    readable_from=1,
    steps=(
        AddColumns(
            "k8s_allocations",
            (
                ("unknown", "UInt64", "0"),
                ("covered_seconds", "UInt32", "3600"),
            ),
        ),
        AddColumns(
            "k8s_extractions",
            (
                ("currency", "String", "'USD'"),
                ("partly_covered", "Array(String)", "[]"),
                ("partly_covered_seconds", "Array(UInt32)", "[]"),
                ("residual_bound", "Float64", "0"),
                ("verified", "UInt8", "1"),
            ),
        ),
        AddColumns(
            "k8s_cost_summaries",
            (
                ("cluster", TEXT, "''"),
                ("unknown", "UInt64", "0"),
            ),
        ),
        AddColumns("k8s_summary_builds", (("currency", "String", "'USD'"),)),
        CreateTable(
            "k8s_day_residuals",
            (
                ("account", TEXT),
                ("day", "DateTime('UTC')"),
                ("sequence", "UInt64"),
                ("owner", TEXT),
                ("component", TEXT),
                ("usd", "Float64"),
                ("fetched_at", "UInt32"),
            ),
            order="account, day, sequence, owner, component",
            partition="toYYYYMM(day)",
        ),
    ),
)
