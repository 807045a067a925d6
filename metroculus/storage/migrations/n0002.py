"""Number 2: what is unknown of a row, what it covers, currency and cluster, and what a day has beyond its hours.

Additive: a program of number 1 goes on reading and writing beside it, and what it writes takes the defaults, which say
what it meant (nothing unknown beyond what its marker names, all in USD).
"""

from __future__ import annotations

from metroculus.storage.migrations.steps import AddColumns, CreateTable, CreateView, Migration

TEXT = "LowCardinality(String)"

HOUR_COLUMNS = (
    "account hour batch owned cluster namespace controller controller_kind pod container node"
    " instance_type zone services label_names label_values annotation_names annotation_values ran_from"
    " ran_until cpu ram gpu pv network load_balancer shared external management cpu_request cpu_usage"
    " ram_request ram_usage internet region zone_egress core_hours ram_gib_hours gpu_hours pv_gib_hours"
    " unknown covered_seconds"
)
SUMMARY_COLUMNS = (
    "account granularity start owned namespace cluster cpu ram gpu pv network load_balancer shared"
    " external management cpu_request cpu_usage ram_request ram_usage internet region zone_egress"
    " core_hours ram_gib_hours gpu_hours pv_gib_hours unknown total_cost cpu_efficiency ram_efficiency"
    " total_efficiency pod_count"
)

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
                ("checked_at", "UInt32", "0"),
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
        CreateView(
            "v_hours",
            "k8s_allocations",
            tuple(HOUR_COLUMNS.split()),
            newest=(
                "SELECT account, hour, argMax(batch, latest) AS batch FROM (SELECT account, hour, batch,"
                " max(sequence) AS latest, argMax(verified, checked_at) AS good FROM k8s_extractions"
                " GROUP BY account, hour, batch) WHERE good = 1 GROUP BY account, hour"
            ),
            keys=("account", "hour", "batch"),
        ),
        CreateView(
            "v_summaries",
            "k8s_cost_summaries",
            tuple(SUMMARY_COLUMNS.split()),
            newest=(
                "SELECT account, granularity, start, argMax(version, sequence) AS version FROM k8s_summary_builds"
                " GROUP BY account, granularity, start"
            ),
            keys=("account", "granularity", "start", "version"),
        ),
    ),
)
