"""What organizations decide, and what is frozen for them: rules, closed months. Kept whatever the retention is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct

from metroculus.storage.columns import DOCUMENTS
from metroculus.storage.engine import Engine, literal

Kind = Literal["accounts", "rules", "closed_month", "budget"]


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

    def put(self, organization: str, kind: Kind, name: str, body: str) -> Document:
        """Write the next version.

        Raises:
            StoreError
        """
        newest = max((one.sequence for one in self._read(organization, kind, name)), default=0)
        now = self._clock()
        written = Document(
            organization=organization, kind=kind, name=name, sequence=max(newest + 1, int(now * 1e6)),
            changed_at=int(now), body=body,
        )  # fmt: skip
        self._engine.insert(DOCUMENTS.name, DOCUMENTS.names, [[getattr(written, one) for one in DOCUMENTS.names]])
        return written

    def newest(self, organization: str, kind: Kind) -> dict[str, Document]:
        """The last version of each by name, in order of name.

        Raises:
            StoreError
        """
        return {one.name: one for one in self._read(organization, kind)}

    def first(self, organization: str, kind: Kind, name: str) -> Document | None:
        """The first version: of what is written once, whatever was written after it.

        Raises:
            StoreError
        """
        return next(iter(self._read(organization, kind, name)), None)

    def names(self, organization: str, kind: Kind) -> tuple[str, ...]:
        """The names of those that there are, in order, without reading them.

        Raises:
            StoreError
        """
        rows = self._engine.rows(
            f"SELECT DISTINCT name FROM {DOCUMENTS.name} WHERE organization = {literal(organization)}"
            f" AND kind = {literal(kind)}"
        )
        return tuple(sorted(str(row["name"]) for row in rows))

    def _read(self, organization: str, kind: Kind, name: str | None = None) -> Sequence[Document]:
        named = "" if name is None else f" AND name = {literal(name)}"
        rows = self._engine.rows(
            f"SELECT {', '.join(DOCUMENTS.names)} FROM {DOCUMENTS.name} WHERE organization = {literal(organization)}"
            f" AND kind = {literal(kind)}{named}"
        )
        return sorted((Document(**row) for row in rows), key=lambda one: (one.name, one.sequence, one.body))
