"""Number 8: what clusters cost an hour, minute by minute; and of which clusters pushed answers are.

Additive: a program of number 7 goes on beside it, and neither reads nor writes what is new.
"""

from __future__ import annotations

from metroculus.storage.migrations.steps import AddColumns, CreateTable, Migration

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
                ("namespace", "LowCardinality(String)"),
                ("cpu", "Float64"),
                ("ram", "Float64"),
                ("gpu", "Float64"),
                ("pv", "Float64"),
                ("network", "Float64"),
                ("load_balancer", "Float64"),
                ("cpu_request", "Float64"),
                ("cpu_usage", "Float64"),
                ("ram_request", "Float64"),
                ("ram_usage", "Float64"),
                ("network_sent", "Float64"),
                ("cores", "Float64"),
                ("ram_gib", "Float64"),
                ("gpus", "Float64"),
                ("pv_gib", "Float64"),
            ),
            order="account, namespace, at, told_at",
            partition="toYYYYMMDD(at)",
        ),
        AddColumns("k8s_push_answers", (("clusters", "Array(String)", "[]"),)),
    ),
)
