"""Number 3: of an hour, which source told it where that was not the first one, and out of which longer time.

Additive: a program of number 2 goes on reading and writing beside it, and what it writes takes the defaults, which say
what it meant (told by the first source, hour by hour).
"""

from __future__ import annotations

from metroculus.storage.migrations.steps import AddColumns, Migration

MIGRATION = Migration(
    number=3,
    readable_from=2,
    steps=(
        AddColumns(
            "k8s_extractions",
            (
                ("source", "String", "''"),
                ("told_from", "UInt32", "0"),
                ("told_until", "UInt32", "0"),
            ),
        ),
    ),
)
