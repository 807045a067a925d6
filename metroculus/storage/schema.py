"""Tables, and the numbered migrations that make them; whatever differs between versions of ClickHouse is here."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec import Struct

from metroculus.storage.engine import Dialect, Engine, StoreError

TEXT = "LowCardinality(String)"
TEXTS = "Array(LowCardinality(String))"
HOUR_TYPE = "DateTime('UTC')"

COST_COLUMNS = ("cpu", "ram", "gpu", "pv", "network", "load_balancer", "shared", "external", "management")
EGRESS_COLUMNS = ("internet", "region", "zone_egress")
USAGE_COLUMNS = ("cpu_request", "cpu_usage", "ram_request", "ram_usage")
AMOUNT_COLUMNS = ("core_hours", "ram_gib_hours", "gpu_hours", "pv_gib_hours")


class Column(Struct, frozen=True):
    """A column, and the expression that makes it of a line of the embedded engine's input."""

    name: str
    type: str
    line: str = ""


class Table(Struct, frozen=True):
    name: str
    columns: tuple[Column, ...]
    order: str
    partition: str | None = None
    shard: str = "cityHash64(account)"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


def _floats(names: Sequence[str], of: str, parts: Sequence[str]) -> tuple[Column, ...]:
    return tuple(Column(name, "Float64", f"a.{of}.{part}") for name, part in zip(names, parts, strict=True))


_COSTS = ("cpu", "ram", "gpu", "pv", "network", "load_balancer", "shared", "external")

ALLOCATIONS = Table(
    "k8s_allocations",
    (
        Column("account", TEXT),
        Column("hour", HOUR_TYPE, "toDateTime(hour, 'UTC')"),
        Column("batch", "UInt64", "batch"),
        Column("owned", "UInt8", "owned"),
        Column("cluster", TEXT, "a.cluster"),
        Column("namespace", TEXT, "a.namespace"),
        Column("controller", TEXT, "a.controller"),
        Column("controller_kind", TEXT, "a.controller_kind"),
        Column("pod", "String", "a.pod"),
        Column("container", TEXT, "a.container"),
        Column("node", TEXT, "a.node"),
        Column("instance_type", TEXT, "instance_type"),
        Column("zone", TEXT, "zone"),
        Column("services", TEXTS, "a.services"),
        Column("label_names", TEXTS, "mapKeys(a.labels)"),
        Column("label_values", "Array(String)", "mapValues(a.labels)"),
        Column("annotation_names", TEXTS, "mapKeys(a.annotations)"),
        Column("annotation_values", "Array(String)", "mapValues(a.annotations)"),
        Column("ran_from", "UInt32", "a.`start`"),
        Column("ran_until", "UInt32", "a.`end`"),
        *_floats(COST_COLUMNS[:-1], "costs", _COSTS),
        Column("management", "Float64", "management"),
        *_floats(EGRESS_COLUMNS, "egress", ("internet", "region", "zone")),
        *_floats(USAGE_COLUMNS, "usage", USAGE_COLUMNS),
        *_floats(AMOUNT_COLUMNS, "amounts", ("cpu", "ram", "gpu", "pv")),
    ),
    order="account, hour, batch, namespace, pod",
    partition="toYYYYMM(hour)",
)


def _tuple(*names: str) -> str:
    return f"Tuple({', '.join(f'`{name}` Float64' for name in names)})"


LINE_STRUCTURE = (
    "hour UInt32, batch UInt64, owned Bool, management Float64, instance_type String, zone String, a Tuple("
    "name String, namespace String, controller String, controller_kind String, pod String, container String,"
    " node String, cluster String, services Array(String), labels Map(String, String), annotations Map(String, String),"
    f" `start` UInt32, `end` UInt32, costs {_tuple(*_COSTS)}, egress {_tuple('internet', 'region', 'zone')},"
    f" usage {_tuple(*USAGE_COLUMNS)}, amounts {_tuple('cpu', 'ram', 'gpu', 'pv')}, unknown Array(String))"
)
"""``rows.Line`` in the engine's words, the fields in the order of the structs."""

EXTRACTIONS = Table(
    "k8s_extractions",
    (
        Column("account", TEXT),
        Column("hour", HOUR_TYPE),
        Column("batch", "UInt64"),
        Column("sequence", "UInt64"),
        Column("rows", "UInt64"),
        Column("total", "Float64"),
        Column("components", "Array(String)"),
        Column("residual", "Float64"),
        Column("spread", "Float64"),
        Column("reconciled", "UInt8"),
        Column("seconds", "UInt32"),
        Column("quarantined", "UInt32"),
        Column("unknown", "Array(String)"),
        Column("not_covered", "Array(String)"),
        Column("fetched_at", "UInt32"),
        Column("digest", "UInt64"),
    ),
    order="account, hour, sequence",
    partition="toYYYYMM(hour)",
)

GAPS = Table(
    "k8s_gaps",
    (
        Column("account", TEXT),
        Column("hour", HOUR_TYPE),
        Column("asked_at", "UInt32"),
        Column("reason", "String"),
    ),
    order="account, hour, asked_at",
    partition="toYYYYMM(hour)",
)

ASSETS = Table(
    "k8s_assets",
    (
        Column("account", TEXT),
        Column("day", HOUR_TYPE),
        Column("batch", "UInt64"),
        Column("type", TEXT),
        Column("name", "String"),
        Column("total_cost", "Float64"),
        Column("asset", "String"),
    ),
    order="account, day, batch, type, name",
    partition="toYYYYMM(day)",
)

ASSET_DAYS = Table(
    "k8s_asset_days",
    (
        Column("account", TEXT),
        Column("day", HOUR_TYPE),
        Column("batch", "UInt64"),
        Column("sequence", "UInt64"),
        Column("rows", "UInt64"),
        Column("total", "Float64"),
        Column("fetched_at", "UInt32"),
    ),
    order="account, day, sequence",
    partition="toYYYYMM(day)",
)

SUMMARIES = Table(
    "k8s_cost_summaries",
    (
        Column("account", TEXT),
        Column("granularity", TEXT),
        Column("start", HOUR_TYPE),
        Column("version", "UInt64"),
        Column("owned", "UInt8"),
        Column("namespace", TEXT),
        *(Column(name, "Float64") for name in (*COST_COLUMNS, *USAGE_COLUMNS, *EGRESS_COLUMNS, *AMOUNT_COLUMNS)),
        Column("total_cost", "Float64"),
        Column("cpu_efficiency", "Float64"),
        Column("ram_efficiency", "Float64"),
        Column("total_efficiency", "Float64"),
        Column("pod_count", "UInt32"),
    ),
    order="account, granularity, start, version, namespace",
    partition="toYYYYMM(start)",
)

SUMMARY_BUILDS = Table(
    "k8s_summary_builds",
    (
        Column("account", TEXT),
        Column("granularity", TEXT),
        Column("start", HOUR_TYPE),
        Column("version", "UInt64"),
        Column("sequence", "UInt64"),
        Column("rows", "UInt64"),
        Column("built_from", "UInt64"),
    ),
    order="account, granularity, start, sequence",
    partition="toYYYYMM(start)",
)

BACKFILLS = Table(
    "k8s_backfills",
    (
        Column("id", "String"),
        Column("sequence", "UInt64"),
        Column("account", "String"),
        Column("first", "UInt32"),
        Column("last", "UInt32"),
        Column("state", "String"),
        Column("repair", "UInt8"),
        Column("parallel", "UInt32"),
        Column("hours_total", "UInt32"),
        Column("hours_done", "UInt32"),
        Column("hours_missing", "UInt32"),
        Column("reason", "String"),
        Column("asked_at", "UInt32"),
        Column("updated_at", "UInt32"),
    ),
    order="id, sequence",
    shard="cityHash64(id)",
)

AUDIT = Table(
    "k8s_repairs",
    (
        Column("account", "String"),
        Column("hour", HOUR_TYPE),
        Column("repair", "String"),
        Column("who", "String"),
        Column("why", "String"),
        Column("before", "Float64"),
        Column("after", "Float64"),
        Column("before_batch", "UInt64"),
        Column("repaired_at", "UInt32"),
    ),
    order="account, repaired_at, hour",
)

TABLES = (
    ALLOCATIONS, EXTRACTIONS, GAPS, ASSETS, ASSET_DAYS, SUMMARIES, SUMMARY_BUILDS, BACKFILLS, AUDIT,
)  # fmt: skip
PARTITIONED = tuple(table for table in TABLES if table.partition)

_VERSIONS = Table(
    "schema_migrations",
    (Column("version", "UInt32"), Column("applied_at", "UInt32")),
    order="version",
    shard="version",
)


def create(table: Table, dialect: Dialect) -> list[str]:
    """The statements that make a table; on a cluster its replicated part and the distributed whole."""
    columns = ", ".join(f"`{c.name}` {dialect.type_of(c.type)}" for c in table.columns)
    partition = f" PARTITION BY {table.partition}" if table.partition else ""
    order = f"{partition} ORDER BY ({table.order}){dialect.part_settings}"
    if dialect.cluster is None:
        return [f"CREATE TABLE IF NOT EXISTS {table.name} ({columns}) ENGINE = MergeTree(){order}"]
    cluster, local = dialect.cluster, f"{table.name}_local"
    replicated = f"ReplicatedMergeTree('/clickhouse/tables/{{shard}}/metroculus/{table.name}', '{{replica}}')"
    return [
        f"CREATE TABLE IF NOT EXISTS {local} ON CLUSTER {cluster} ({columns}) ENGINE = {replicated}{order}",
        f"CREATE TABLE IF NOT EXISTS {table.name} ON CLUSTER {cluster} ({columns})"
        f" ENGINE = Distributed({cluster}, currentDatabase(), {local}, {table.shard})",
    ]


MIGRATIONS: tuple[tuple[Table, ...], ...] = (TABLES,)
"""Number n is at place n - 1; what has been released is never changed, only followed by the next."""


def migrate(engine: Engine) -> int:
    """Bring a store to the newest schema; repeating it, or two processes at once, does no harm.

    Returns:
        the schema's number.

    Raises:
        StoreError: the store's schema is newer than this program, or it cannot be written.
    """
    for statement in create(_VERSIONS, engine.dialect):
        engine.command(statement)
    applied = max((int(row[0]) for row in engine.query("SELECT version FROM schema_migrations")), default=0)
    if applied > len(MIGRATIONS):
        raise StoreError(f"the store's schema is number {applied}, this program knows {len(MIGRATIONS)}: upgrade it")
    for number in range(applied + 1, len(MIGRATIONS) + 1):
        for table in MIGRATIONS[number - 1]:
            for statement in create(table, engine.dialect):
                engine.command(statement)
        engine.insert("schema_migrations", ("version", "applied_at"), [(number, int(time.time()))])
    return len(MIGRATIONS)
