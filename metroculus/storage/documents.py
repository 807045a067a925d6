"""What organizations decide, and what is frozen for them: rules, closed months. Kept whatever the retention is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from metroculus.storage.columns import DOCUMENTS
from metroculus.storage.engine import Engine, alter, literal

Kind = Literal[
    "accounts", "rules", "closed_month", "budget", "alert", "alert_ack", "webhook_sent", "alertmanager_sent", "drift"
]
PASSING: tuple[Kind, ...] = ("accounts", "alert", "alert_ack", "webhook_sent", "alertmanager_sent", "drift")
"""Of which old versions are forgotten."""
FORGOTTEN_AT_ONCE = 1_000
LAST_VERSIONS = " ORDER BY sequence DESC, body DESC LIMIT 1 BY organization, kind, name"
"""What is put behind a condition to read the last version of each document alone."""


class DocumentChanged(Exception):
    """A document is no longer in the version that a change was made from."""


class Document(Struct, frozen=True, kw_only=True):
    """One version of a document."""

    organization: str
    kind: str
    name: str
    sequence: int
    changed_at: int
    body: str


class Documents:
    """Documents by organization, kind and name; a version is a row, and none is ever changed."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock

    def put(self, organization: str, kind: Kind, name: str, body: str, after: int | None = None) -> Document:
        """Write the next version.

        Args:
            after: sequence of the version that this one was made from, 0 where there was none: it must still be the
                last. None to skip that check.

        Raises:
            DocumentChanged, StoreError
        """
        return self.put_all(organization, kind, {name: body}, {} if after is None else {name: after})[0]

    def put_all(
        self, organization: str, kind: Kind, bodies: Mapping[str, str], after: Mapping[str, int] | None = None
    ) -> list[Document]:
        """Write the next version of several, by name, at once.

        Args:
            after: as of ``put``, by name.

        Raises:
            DocumentChanged, StoreError
        """
        now = self._clock()  # before the store is asked: a delayed write must not be newer than one made meanwhile
        newest = {
            row["name"]: row["newest"]
            for row in self._engine.rows(
                f"SELECT name, max(sequence) AS newest FROM {DOCUMENTS.name}"
                f" WHERE {_named(organization, kind, bodies)} GROUP BY name"
            )
        }
        if any(newest.get(name, 0) != sequence for name, sequence in (after or {}).items()):
            raise DocumentChanged
        written = [
            Document(
                organization=organization, kind=kind, name=name, body=body, changed_at=int(now),
                sequence=max(newest.get(name, 0) + 1, int(now * 1e6)),
            )
            for name, body in bodies.items()
        ]  # fmt: skip
        rows = [[getattr(one, column) for column in DOCUMENTS.names] for one in written]
        self._engine.insert(DOCUMENTS.name, DOCUMENTS.names, rows)
        return written

    def newest(self, organization: str, kind: Kind) -> dict[str, Document]:
        """The last version of each by name, in order of name.

        Raises:
            StoreError
        """
        return {one.name: one for one in self._found(f"{_named(organization, kind)}{LAST_VERSIONS}")}

    def first(self, organization: str, kind: Kind, name: str) -> Document | None:
        """The first version: of what is written once, whatever was written after it.

        Raises:
            StoreError
        """
        return next(iter(self.versions(organization, kind, (name,))), None)

    def names(self, organization: str, kind: Kind) -> tuple[str, ...]:
        """The names of those that there are, in order, without reading them.

        Raises:
            StoreError
        """
        rows = self._engine.rows(f"SELECT DISTINCT name FROM {DOCUMENTS.name} WHERE {_named(organization, kind)}")
        return tuple(sorted(str(row["name"]) for row in rows))

    def versions(self, organization: str, kind: Kind, names: Collection[str] | None = None) -> list[Document]:
        """Every version, by name, the oldest first.

        Raises:
            StoreError
        """
        return self._found(_named(organization, kind, names))

    def of_all(self, kinds: Sequence[Kind], newest: bool = True) -> list[Document]:
        """The last version of each document of every organization, or all of them; by organization, kind and name.

        Raises:
            StoreError
        """
        return self._found(f"kind IN ({', '.join(map(literal, kinds))}){LAST_VERSIONS if newest else ''}")

    def forget(self, before: int, over: Collection[tuple[str, str]] = ()) -> None:
        """Delete versions of what passes that are older than a moment, the last of each apart.

        Args:
            over: organizations and names of which everything that passes is deleted.

        Raises:
            StoreError
        """
        newest: dict[tuple[str, str, str], int] = {}
        versions = [
            (str(row["organization"]), str(row["kind"]), str(row["name"]), int(row["sequence"]), int(row["changed_at"]))
            for row in self._engine.rows(
                f"SELECT organization, kind, name, sequence, changed_at FROM {DOCUMENTS.name} WHERE kind IN"
                f" ({', '.join(map(literal, PASSING))})"
            )
        ]
        for organization, kind, name, sequence, _ in versions:
            newest[organization, kind, name] = max(sequence, newest.get((organization, kind, name), 0))
        gone = frozenset(over)
        old = [
            f"({literal(organization)}, {literal(kind)}, {literal(name)}, {sequence})"
            for organization, kind, name, sequence, changed_at in versions
            if (organization, name) in gone or (changed_at < before and newest[organization, kind, name] != sequence)
        ]
        for part in (old[first : first + FORGOTTEN_AT_ONCE] for first in range(0, len(old), FORGOTTEN_AT_ONCE)):
            named = ", ".join(part)
            where = f"(organization, kind, name, sequence) IN ({named})"
            alter(self._engine, DOCUMENTS.name, f"DELETE WHERE {where}")

    def _found(self, where: str) -> list[Document]:
        rows = self._engine.rows(f"SELECT {', '.join(DOCUMENTS.names)} FROM {DOCUMENTS.name} WHERE {where}")
        found = (Document(**row) for row in rows)
        return sorted(found, key=lambda one: (one.organization, one.kind, one.name, one.sequence, one.body))


def _named(organization: str, kind: Kind, names: Collection[str] | None = None) -> str:
    """The condition that a row is of a document of an organization; of one of some names, where any are given."""
    named = "" if names is None else f" AND name IN ({', '.join(map(literal, names)) or literal('')})"
    return f"organization = {literal(organization)} AND kind = {literal(kind)}{named}"
