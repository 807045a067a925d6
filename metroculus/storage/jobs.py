"""Back-fills and repairs that were asked for, how far each is; and who repaired what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal
from uuid import uuid4

from msgspec import Struct
from msgspec.structs import replace

from metroculus.storage.columns import AUDIT, BACKFILLS
from metroculus.storage.engine import Engine, alter, literal
from tools.window import DAY

State = Literal["queued", "running", "done", "incomplete", "failed", "cancelled"]
DEFAULT_PARALLEL, MAX_PARALLEL = 2, 8
"""Days that a source is asked for side by side."""

OPEN: tuple[State, ...] = ("queued", "running")
KEPT_SECONDS = 30 * DAY
"""Those that are at their end are kept so long."""
FINAL_SEQUENCE = 1 << 30
"""Of a cancellation: above every sequence number that a worker still writes."""


_OPEN = ", ".join(literal(state) for state in OPEN)


def _ids_in_state(state: str) -> str:
    """SQL of the ids whose newest state is such."""
    return f"SELECT id FROM {BACKFILLS.name} GROUP BY id HAVING argMax(state, sequence) {state}"


class Backfill(Struct, frozen=True, kw_only=True):
    """A back-fill of ``[first, last)``; ``incomplete`` is one that ended with hours that could not be had."""

    id: str
    sequence: int
    account: str
    first: int
    last: int
    state: State
    repair: bool
    parallel: int
    hours_total: int
    hours_done: int
    hours_missing: int
    reason: str
    asked_at: int
    updated_at: int


class Repair(Struct, frozen=True, kw_only=True):
    """What a repair was to change of one hour, USD; written before it does."""

    account: str
    hour: int
    repair: str
    who: str
    why: str
    before: float
    after: float
    before_batch: int
    repaired_at: int


class Jobs:
    """A queue that outlives the process: a state is a row, the newest row of an id is its state."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock

    def ask(self, account: str, first: int, last: int, parallel: int, repair: str | None = None) -> Backfill:
        """Queue one; ``repair`` is why closed hours are to be read again.

        Raises:
            StoreError
        """
        now = int(self._clock())
        job = Backfill(
            id=str(uuid4()), sequence=1, account=account, first=first, last=last, state="queued",
            repair=repair is not None, parallel=parallel, hours_total=(last - first) // 3600, hours_done=0,
            hours_missing=0, reason=repair or "", asked_at=now, updated_at=now,
        )  # fmt: skip
        self._write(job)
        return job

    def advance(
        self, job: Backfill, state: State, total: int, done: int, missing: int, reason: str | None = None
    ) -> Backfill:
        """Say how far one is, in hours.

        Raises:
            StoreError
        """
        next_one = replace(
            job, sequence=job.sequence + 1, state=state, hours_total=total, hours_done=done, hours_missing=missing,
            reason=job.reason if reason is None else reason[:500], updated_at=int(self._clock()),
        )  # fmt: skip
        self._write(next_one)
        return next_one

    def _write(self, job: Backfill) -> None:
        values = {name: getattr(job, name) for name in BACKFILLS.names} | {"repair": int(job.repair)}
        self._engine.insert(BACKFILLS.name, BACKFILLS.names, [list(values.values())])

    def get(self, id: str) -> Backfill | None:
        found = self._read(f"WHERE id = {literal(id)}")
        return found[0] if found else None

    def open(self) -> list[Backfill]:
        """Those that are not at their end, in the order in which they were asked for."""
        return self._read(f"WHERE id IN ({_ids_in_state(f'IN ({_OPEN})')})")

    def of(self, account: str) -> list[Backfill]:
        """Those of an account that are kept, in the order in which they were asked for."""
        return self._read(f"WHERE account = {literal(account)}")

    def cancel(self, job: Backfill) -> Backfill:
        """End one that is not at its end; a worker that is at it leaves off.

        Raises:
            StoreError
        """
        if job.state not in OPEN:
            return job
        ended = replace(job, sequence=FINAL_SEQUENCE, state="cancelled", updated_at=int(self._clock()))
        self._write(ended)
        return ended

    def forget(self, before: int) -> None:
        """Remove those that came to their end before a moment.

        Raises:
            StoreError
        """
        ended = f"NOT IN ({_OPEN}) AND max(updated_at) < {before}"
        ids = ", ".join(literal(job.id) for job in self._read(f"WHERE id IN ({_ids_in_state(ended)})"))
        if ids:
            alter(self._engine, BACKFILLS.name, f"DELETE WHERE id IN ({ids})")

    def _read(self, where: str) -> list[Backfill]:
        newest: dict[str, Backfill] = {}
        columns = ", ".join(BACKFILLS.names)
        for fields in self._engine.rows(f"SELECT {columns} FROM {BACKFILLS.name} {where}"):
            job = Backfill(**fields | {"repair": bool(fields["repair"])})
            if job.id not in newest or job.sequence > newest[job.id].sequence:
                newest[job.id] = job
        return sorted(newest.values(), key=lambda job: (job.asked_at, job.id))

    def audit(self, repairs: Sequence[Repair]) -> None:
        """Keep who changed which closed hour, and why.

        Raises:
            StoreError
        """
        rows = [[getattr(repair, name) for name in AUDIT.names] for repair in repairs]
        self._engine.insert(AUDIT.name, AUDIT.names, rows)

    def audited(self, account: str) -> list[Repair]:
        """Every repair of an account, oldest first.

        Raises:
            StoreError
        """
        columns = ", ".join("toUInt32(hour) AS stamp" if name == "hour" else name for name in AUDIT.names)
        rows = self._engine.rows(
            f"SELECT {columns} FROM {AUDIT.name} WHERE account = {literal(account)} ORDER BY repaired_at, stamp"
        )
        return [Repair(hour=row.pop("stamp"), **row) for row in rows]
