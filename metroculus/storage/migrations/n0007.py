"""Number 7: which hours and days were sent to an InfluxDB, and as which series.

Additive: a program of number 6 goes on beside it, and neither reads nor writes the new table.
"""

from __future__ import annotations

from metroculus.storage.migrations.steps import CreateTable, Migration

MIGRATION = Migration(
    number=7,
    readable_from=2,
    steps=(
        CreateTable(
            "k8s_influx_sent",
            (
                ("account", "LowCardinality(String)"),
                ("measurement", "LowCardinality(String)"),
                ("start", "DateTime('UTC')"),
                ("version", "UInt64"),
                ("batch", "UInt64"),
                ("sent_at", "UInt32"),
                ("series", "String"),
            ),
            order="account, measurement, start, version",
            partition="toYYYYMM(start)",
        ),
    ),
)
