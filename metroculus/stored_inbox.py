"""The store's inbox as ``sources.pushed`` reads it: sources do not know the store, and the store knows no source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from metroculus.sources.errors import BadAnswer
from metroculus.sources.pushed import Pushed
from metroculus.storage.inbox import PiecesLost, PushedAnswer
from metroculus.storage.store import Store

READ_AHEAD_BYTES = 8 << 20
"""Limit of the bodies (gzip) that one query reads."""


class _Bodies:
    """Reads bodies of pushed answers in batches, because an upstream's answers of single hours are small and many.

    Args:
        answers: of two answers to one question, the newer one first.
    """

    def __init__(self, store: Store, answers: Sequence[PushedAnswer]) -> None:
        self._store = store
        self._answers = answers
        self._read: dict[int, bytes] = {}
        self._asked: set[int] = set()

    async def of(self, answer: PushedAnswer) -> bytes:
        """The body of one of the answers (gzip).

        Raises:
            BadAnswer, StoreError
        """
        inbox, run = self._store.inbox, self._store.run
        if answer.answer not in self._read:
            self._read = await run(inbox.packed_of, [answer, *self._read_next(answer)])
        self._asked.add(answer.answer)
        found = self._read.pop(answer.answer, None)
        try:
            return found if found is not None else await run(inbox.packed, answer)
        except PiecesLost as failure:
            raise BadAnswer(str(failure)) from None

    def _read_next(self, answer: PushedAnswer) -> Iterator[PushedAnswer]:
        """Answers to read in the same query: of the same kind and step, not requested before, one per question."""
        seen, size = {answer.question}, answer.bytes
        for one in self._answers:
            alike = (one.kind, one.step) == (answer.kind, answer.step) and bool(one.told)
            known = one.answer in self._asked or one.question in seen
            if not alike or known or size + one.bytes > READ_AHEAD_BYTES:
                continue
            seen.add(one.question)
            size += one.bytes
            yield one


class StoredInbox:
    """The store's inbox, as the source of what was pushed reads it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def answers(self, account: str, start: int, end: int) -> Sequence[Pushed]:
        """Raises: StoreError"""
        found = await self._store.run(self._store.inbox.overlapping, account, start, end)
        bodies = _Bodies(self._store, found)
        return [
            Pushed(
                kind=one.kind,
                step=one.step,
                first=one.first,
                last=one.last,
                told=one.told,
                asked_at=one.asked_at,
                received_at=one.received_at,
                packed=partial(bodies.of, one),
            )
            for one in found
        ]

    async def accounts(self) -> Sequence[str]:
        """Raises: StoreError"""
        return await self._store.run(self._store.inbox.accounts)

    async def assets_form(self, account: str) -> str:
        """Raises: StoreError"""
        return await self._store.run(self._store.inbox.assets_form, account)

    async def assets_forms(self) -> Mapping[str, str]:
        """Raises: StoreError"""
        return await self._store.run(self._store.inbox.assets_forms)

    async def currency(self, account: str) -> str:
        """Raises: StoreError"""
        return await self._store.run(self._store.inbox.currency, account)
