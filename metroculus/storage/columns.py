"""The store's tables as this program reads and writes them; those of costs come from the table of components.

A store has what its migrations made (``storage/migrations``); ``tests/unit/test_migrations.py`` holds the two together.
"""

from __future__ import annotations

from msgspec import Struct

from metroculus.cost_model.components import CLUSTER_COMPONENTS, MEASURES, of_kind
from metroculus.cost_model.live import NamespaceRate

COST_COLUMNS = CLUSTER_COMPONENTS
USAGE_COLUMNS = tuple(one.name for one in of_kind("usage"))
COSTS_AND_USAGE = (*COST_COLUMNS, *USAGE_COLUMNS)
MEASURE_COLUMNS = (*COSTS_AND_USAGE, *(one.name for one in MEASURES if one.name not in COSTS_AND_USAGE))
"""Every number of a row: cost components with management, then usage, then the rest."""


class Table(Struct, frozen=True):
    """A table's name and its columns."""

    name: str
    names: tuple[str, ...]
    partitioned: bool = True


def _table(name: str, columns: str, partitioned: bool = True) -> Table:
    return Table(name, tuple(columns.split()), partitioned)


ALLOCATIONS = Table(
    "k8s_allocations",
    (
        "account", "hour", "batch", "owned", "cluster", "namespace", "controller", "controller_kind", "pod",
        "container", "node", "instance_type", "zone", "services", "label_names", "label_values", "annotation_names",
        "annotation_values", "ran_from", "ran_until", *MEASURE_COLUMNS, "unknown", "covered_seconds",
    ),
)  # fmt: skip
EXTRACTIONS = _table(
    "k8s_extractions",
    "account hour batch sequence rows total components residual spread reconciled seconds quarantined unknown"
    " not_covered fetched_at digest currency partly_covered partly_covered_seconds residual_bound"
    " verified checked_at source told_from told_until",
)
GAPS = _table("k8s_gaps", "account hour asked_at reason")
ASSETS = _table("k8s_assets", "account day batch type name total_cost asset")
ASSET_DAYS = _table("k8s_asset_days", "account day batch sequence rows total fetched_at")
SUMMARIES = Table(
    "k8s_cost_summaries",
    (
        "account", "granularity", "start", "version", "owned", "namespace", "cluster", *MEASURE_COLUMNS, "unknown",
        "total_cost", "cpu_efficiency", "ram_efficiency", "total_efficiency", "pod_count",
    ),
)  # fmt: skip
SUMMARY_BUILDS = _table("k8s_summary_builds", "account granularity start version sequence rows built_from currency")
SAVINGS = _table("k8s_savings", "account day sequence fetched_at found")
DAY_RESIDUALS = _table("k8s_day_residuals", "account day sequence owner component usd fetched_at")
BACKFILLS = _table(
    "k8s_backfills",
    "id sequence account first last state repair parallel hours_total hours_done hours_missing reason asked_at"
    " updated_at",
    partitioned=False,
)
PUSH_ANSWERS = _table(
    "k8s_push_answers",
    "account first last kind step answer asked_at received_at digest pieces bytes form told currency clusters",
)
PUSH_PIECES = _table("k8s_push_pieces", "account first answer number body")
PUSH_TAKEN = _table("k8s_push_taken", "account first answer asked_at taken_at")
DOCUMENTS = _table("k8s_documents", "organization kind name sequence changed_at body", partitioned=False)
INFLUX_SENT = _table("k8s_influx_sent", "account measurement start version batch sent_at series")
LIVE = Table("k8s_live", ("account", "at", "told_at", "point", *NamespaceRate.__struct_fields__), partitioned=False)
AUDIT = _table("k8s_repairs", "account hour repair who why before after before_batch repaired_at", partitioned=False)

TABLES = (
    ALLOCATIONS, EXTRACTIONS, GAPS, ASSETS, ASSET_DAYS, SUMMARIES, SUMMARY_BUILDS, DAY_RESIDUALS, SAVINGS, BACKFILLS,
    AUDIT, PUSH_ANSWERS, PUSH_PIECES, PUSH_TAKEN, DOCUMENTS, INFLUX_SENT, LIVE,
)  # fmt: skip
FENCED = (EXTRACTIONS, ASSET_DAYS, SUMMARY_BUILDS, DAY_RESIDUALS, SAVINGS)
"""Tables of which the row with the highest sequence counts; a sequence begins with its writer's fence."""
ACCOUNTED = tuple(table for table in TABLES if "account" in table.names and table is not INFLUX_SENT)
"""What is purged with an account. Documents are an organization's; what was sent is written as 0 first."""
PARTITIONED = tuple(table for table in TABLES if table.partitioned)
"""What retention drops month by month."""
