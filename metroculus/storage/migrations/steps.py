"""What a migration is made of, and the statements that it comes to on each kind of engine.

Steps add and never take away, so that a program of the number before goes on beside a newer one; what nobody reads any
more is removed one release later.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from metroculus.storage.engine import ALREADY_THERE, Dialect, Engine, StoreError, literal


class CreateTable(Struct, frozen=True):
    """A table: its columns as ``(name, type)``."""

    name: str
    columns: tuple[tuple[str, str], ...]
    order: str
    partition: str = ""
    shard: str = "cityHash64(account)"

    def apply(self, engine: Engine) -> None:
        dialect = engine.dialect
        columns = ", ".join(f"`{name}` {dialect.type_of(kind)}" for name, kind in self.columns)
        partition = f" PARTITION BY {self.partition}" if self.partition else ""
        order = f"{partition} ORDER BY ({self.order}){dialect.part_settings}"
        if dialect.cluster is None:
            engine.command(f"CREATE TABLE IF NOT EXISTS {self.name} ({columns}) ENGINE = MergeTree(){order}")
            return
        local = f"{self.name}_local"
        replicated = f"ReplicatedMergeTree('/clickhouse/tables/{{shard}}/metroculus/{self.name}', '{{replica}}')"
        engine.command(
            f"CREATE TABLE IF NOT EXISTS {local} ON CLUSTER {dialect.cluster} ({columns}) ENGINE = {replicated}{order}"
        )
        engine.command(distributed(self.name, columns, self.shard, dialect))


class AddColumns(Struct, frozen=True):
    """Columns at the end of a table, as ``(name, type, default)``; old rows have the default."""

    table: str
    columns: tuple[tuple[str, str, str], ...]
    shard: str = "cityHash64(account)"

    def apply(self, engine: Engine) -> None:
        dialect = engine.dialect
        target = f"{self.table}_local" if dialect.cluster else self.table
        where = f" ON CLUSTER {dialect.cluster}" if dialect.cluster else ""
        for name, kind, default in self.columns:
            if name not in columns_of(engine, target):
                # The oldest servers know no ADD COLUMN IF NOT EXISTS; whoever else was first has done our work.
                try:
                    engine.command(
                        f"ALTER TABLE {target}{where} ADD COLUMN {name} {dialect.type_of(kind)} DEFAULT {default}"
                    )
                except StoreError as failure:
                    if failure.code not in ALREADY_THERE or name not in columns_of(engine, target):
                        raise
        if dialect.cluster is not None:
            self._distribute_anew(engine)

    def _distribute_anew(self, engine: Engine) -> None:
        """The distributed whole of a table whose parts have new columns: such a table cannot be altered itself.

        It holds no rows, so it is dropped and made again. Whoever is killed in between, or does the same at the same
        time, leaves it absent or made; both are brought to an end by the next one.
        """
        dialect = engine.dialect
        known = columns_of(engine, f"{self.table}_local")
        if set(known) <= set(columns_of(engine, self.table)):
            return
        columns = ", ".join(f"`{name}` {kind}" for name, kind in known.items())
        for gone in (self.table, f"{self.table}_new", f"{self.table}_old"):  # the last two of programs before this one
            engine.command(f"DROP TABLE IF EXISTS {gone} ON CLUSTER {dialect.cluster}")
        engine.command(distributed(self.table, columns, self.shard, dialect))


class CreateView(Struct, frozen=True):
    """The rows of a table that belong to the newest of their kind, for people who ask the store by SQL of their own.

    A question with a condition on the account reads that account alone: the condition reaches both sides of the join.
    What it takes for that differs: the oldest servers want no alias in sight, new ones an alias on both sides.
    """

    name: str
    table: str
    columns: tuple[str, ...]
    newest: str
    """The question that says which are the newest."""
    keys: tuple[str, ...]

    def apply(self, engine: Engine) -> None:
        dialect = engine.dialect
        where = f" ON CLUSTER {dialect.cluster}" if dialect.cluster else ""
        left, right = f"(SELECT * FROM {self.table})", f"({self.newest})"
        if dialect.wants_aliases:
            left, right = f"{self.table} AS rows", f"({self.newest}) AS newest"
        engine.command(
            f"CREATE VIEW IF NOT EXISTS {self.name}{where} AS SELECT {', '.join(self.columns)}"
            f" FROM {left} ALL INNER JOIN {right} USING ({', '.join(self.keys)})"
        )


Step = CreateTable | AddColumns | CreateView


class Migration(Struct, frozen=True, kw_only=True):
    """One step of the schema; ``readable_from`` is the oldest number that reads and writes a store which has it."""

    number: int
    readable_from: int
    steps: tuple[Step, ...]


def distributed(name: str, columns: str, shard: str, dialect: Dialect) -> str:
    """The statement that makes the distributed whole of a table."""
    return (
        f"CREATE TABLE IF NOT EXISTS {name} ON CLUSTER {dialect.cluster} ({columns})"
        f" ENGINE = Distributed({dialect.cluster}, currentDatabase(), {name}_local, {shard})"
    )


def columns_of(engine: Engine, table: str) -> dict[str, str]:
    """Types by name of a table's columns, in order; empty where there is no such table."""
    return {
        str(row["name"]): str(row["type"])
        for row in engine.rows(
            f"SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {literal(table)}"
        )
    }


def resulting_columns(migrations: tuple[Migration, ...]) -> Iterator[tuple[str, str, str]]:
    """Table, name and type of every column that the migrations come to."""
    for migration in migrations:
        for step in migration.steps:
            if isinstance(step, CreateTable):
                yield from ((step.name, name, kind) for name, kind in step.columns)
            elif isinstance(step, AddColumns):
                yield from ((step.table, name, kind) for name, kind, _ in step.columns)
