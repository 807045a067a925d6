"""Tasks, their results, and what executes them: the interface between the worker's rounds and the work itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

from metroculus.config import Role
from metroculus.metroculus_worker.metrics import Freshness

Kind = Literal["extract", "assets", "savings", "backfills", "summaries", "clean", "live"]

KINDS: dict[Role, tuple[Kind, ...]] = {
    "extractor": ("extract", "assets", "savings", "backfills"),
    "aggregator": ("summaries", "clean"),
    "processor": ("live",),
}
"""The kinds of tasks that a worker of each role executes."""


def role_of(kind: Kind) -> Role:
    return next(role for role, kinds in KINDS.items() if kind in kinds)


class Task(Struct, frozen=True, kw_only=True):
    """One unit of work on one cluster; ``clean`` is for all clusters and has no account."""

    kind: Kind
    account: str = ""
    version: int | None = None
    """Version of the input: the source entry of ``extract`` and ``live``, the stored hours of ``summaries``."""
    patience: bool = True
    """Whether to skip hours that the source did not have a short time ago."""
    silent: bool = False
    """Whether the source did not answer the last time."""
    shift: int = 0
    """Seconds after midnight UTC at which the source's days begin, as it said last."""
    pushed: bool = False
    """Whether answers that were pushed wait in the inbox."""
    term: int = 0
    """Leadership term of the worker that submitted the task; 0 where no leader did."""
    everything: bool = False
    """Whether to sum up all that is stored, or only the days that may still change."""


class TaskResult(Struct, frozen=True, kw_only=True):
    """The outcome of a task, failures included."""

    task: Task
    finished_at: int
    """Unix seconds."""
    owned: bool = True
    """False where another worker owns the cluster: nothing was done."""
    failure: str | None = None
    internal: bool = False
    """Whether the failure is of the store, the registry or a lock, not of the source."""
    silent: bool = False
    due_at: int | None = None
    """When hours of the cluster are due next (Unix seconds); None where the task did not look."""
    state: Freshness | None = None
    shift: int | None = None
    savings_day: int | None = None
    """The first second of the day whose savings are stored now."""
    live_until: int | None = None
    """The last moment whose rate is stored now; 0 where there is none."""
    without_metrics: bool = False
    """Whether the cluster has no source of metrics."""


class Executor(Protocol):
    """Executes tasks; passes each result to ``Worker.record``."""

    async def submit(self, tasks: Sequence[Task]) -> None:
        """Execute tasks, or hand them to workers that will; returns when that is done.

        Raises:
            OSError: they cannot be handed over now.
        """
        ...

    def busy(self, kind: Kind, account: str) -> bool:
        """Whether such a task is under way already, or would have to wait for one that is."""
        ...

    async def release(self, account: str) -> None:
        """Drop what is held for a cluster that was unlinked."""
        ...
