"""Pieces of work on one cluster, and what became of each: all that rounds and those who do the work tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

from metroculus.config import Role
from metroculus.metroculus_worker.metrics import Freshness

Kind = Literal["extract", "assets", "savings", "backfills", "summaries", "clean"]

KINDS: dict[Role, tuple[Kind, ...]] = {
    "extractor": ("extract", "assets", "savings", "backfills"),
    "aggregator": ("summaries", "clean"),
}
"""Which work a worker of a role takes."""


def role_of(kind: Kind) -> Role:
    return next(role for role, kinds in KINDS.items() if kind in kinds)


class Task(Struct, frozen=True, kw_only=True):
    """One piece of work; ``clean`` is of all clusters, and has no account."""

    kind: Kind
    account: str = ""
    version: int | None = None
    """Of what the work rests on: the source entry, or the hours that are summed up."""
    patience: bool = True
    """Whether to leave hours alone that were asked for in vain a short time ago."""
    silent: bool = False
    """Whether the source did not answer the last time."""
    shift: int = 0
    """Seconds after midnight UTC at which the source's days begin, as it said last."""
    term: int = 0
    """Of who makes the rounds: a result is theirs, and no predecessor's. 0 is of no rounds."""
    everything: bool = False
    """Whether to sum up all that is stored, or only the days that may still change."""


class Done(Struct, frozen=True, kw_only=True):
    """What became of a piece of work; a failure is told, and never lost with whoever did the work."""

    task: Task
    at: int
    """Unix seconds."""
    owned: bool = True
    """False where somebody else is at work on the cluster: nothing was done."""
    failure: str | None = None
    ours: bool = False
    """Whether the store, the registry or a lock failed, and not the source."""
    silent: bool = False
    due_at: int | None = None
    """When hours of the cluster are due next, where they were looked at."""
    state: Freshness | None = None
    shift: int | None = None
    day: int | None = None
    """The first second of the day whose savings are stored now."""


class Hands(Protocol):
    """Those who do the work; what becomes of it is told to the rounds."""

    async def give(self, tasks: Sequence[Task]) -> None:
        """Have tasks done; returns when they are, or when somebody else will do them.

        Raises:
            OSError: they cannot be given now.
        """
        ...

    def busy(self, kind: Kind, account: str) -> bool:
        """Whether a task like this would wait for one that is under way."""
        ...

    async def let_go(self, account: str) -> None:
        """A cluster is gone."""
        ...
