"""Expenses page after page, of what was committed when the first page was asked for."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from metroculus.codes import INVALID, LIST_CHANGED
from metroculus.cost_model.allocation import Filters
from metroculus.metroculus_api.controllers.expenses import (
    Stored,
    expenses_of,
    grouped_sources,
    named_clusters,
    properties_of,
    row_of,
    stored_of,
    whole_lists,
)
from metroculus.metroculus_api.errors import history_of
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import AccountSources
from metroculus.storage.coverage import by_clusters, by_currency, currencies_of, silent_in
from metroculus.storage.history import COSTS_AND_USAGE, Keys, Page, Stretch
from metroculus.storage.ledger import CommittedHours, built_from
from metroculus.storage.store import Store
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError
from tools.window import Window

PAGE_SECONDS = 2.0
"""A page that takes longer ends with the rows that it has, which may be none."""
PAGES_AHEAD = 32
"""For so many pages of an account their last keys are asked for at once, and carried in the cursor."""
ENDS_BYTES = 4096
"""Of those keys in a cursor; at least one page's are carried."""

_NO_ROWS = Page("total", descending=True, offset=0, limit=0)


class Pin(Struct, frozen=True, array_like=True):
    """What was committed of an account in one currency: nothing later than a sequence, and which batches."""

    place: int
    """Of the account in the question."""
    sequence: int
    batches: int
    currency: str = ""
    """Where its hours are in several."""

    def stands_for(self, committed: CommittedHours) -> bool:
        """Whether these are the hours that the list began with."""
        return _digest_of(committed) == (self.sequence, self.batches)


def pins_of(place: int, committed: CommittedHours) -> list[Pin]:
    """An account as a list of its hours begins."""
    currencies = currencies_of(committed)
    return [Pin(place, *_digest_of(committed), currency) for currency in (currencies if len(currencies) > 1 else [""])]


def _digest_of(committed: CommittedHours) -> tuple[int, int]:
    markers = committed.hours.values()
    return max((one.sequence for one in markers), default=0), built_from(markers) & 0xFFFFFFFF


class Position(Struct, frozen=True, array_like=True):
    """Where a list goes on: with the first of its pins, after the row with the keys ``after``.

    ``ends`` are the keys of the last rows of the next pages in that account.
    """

    question: int
    as_of: int
    pins: tuple[Pin, ...]
    """What is left of the list."""
    after: Keys = ()
    ends: tuple[Keys, ...] = ()

    @property
    def text(self) -> str:
        return base64.urlsafe_b64encode(_ENCODER.encode(self)).decode().rstrip("=")

    @staticmethod
    def read(text: str) -> Position:
        """Raises: ValueError"""
        try:
            return _DECODER.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
            raise ValueError("is no next_cursor of an earlier answer") from None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Position)


class RowsQuestion(Struct, frozen=True):
    """Which rows: of these accounts in this window, by ``group_by`` without any time in it."""

    accounts: tuple[str, ...]
    window: Window
    group_by: tuple[str, ...]
    filters: Filters

    @property
    def digest(self) -> int:
        window = (self.window.start, self.window.end, self.window.zone.name)
        asked = repr((self.accounts, window, self.group_by, msgspec.structs.astuple(self.filters)))
        return int.from_bytes(blake2b(asked.encode(), digest_size=4).digest(), "big")


class ExpenseRowsController:
    """Rows in the order of accounts and keys.

    A page carries all that the next one needs, so that any instance can answer it.
    """

    def __init__(self, accounts: Accounts, store: Store | None) -> None:
        self._accounts = accounts
        self._store = store

    async def page(
        self, question: RowsQuestion, position: Position | None, limit: int, deadline: Deadline, now: float
    ) -> structs.ExpenseRows:
        """The rows after a position, from the first one on where there is none: then with what all of them come to.

        Raises:
            NoHistory, StoreError
            ApiError: the position is of another list, or what the list began with is not there any more.
        """
        store = history_of(self._store)
        sources = await grouped_sources(self._accounts, question.accounts, question.group_by, question.filters)
        whole = None
        if position is None:
            whole, pins = await self._begun(store, question, sources, deadline)
            position = Position(question.digest, int(now), pins)
        elif position.question != question.digest or not _fits(position, question):
            raise ApiError(INVALID, "cursor belongs to another list", ["cursor"])
        clusters = named_clusters(sources)
        rows, following = await store.ask(deadline.left(), _next_rows, store, question, clusters, position, limit)
        cursor = following.text if following is not None else None
        return structs.ExpenseRows(as_of=position.as_of, whole=whole, rows=tuple(rows), next_cursor=cursor)

    async def _begun(
        self, store: Store, question: RowsQuestion, sources: Mapping[str, AccountSources], deadline: Deadline
    ) -> tuple[structs.ExpensesBase, tuple[Pin, ...]]:
        window, group_by = question.window, question.group_by
        found: dict[str, Stored] = {}
        pins: dict[str, list[Pin]] = {}
        places = {account: place for place, account in enumerate(question.accounts)}

        def read(group: Sequence[str], filters: Filters) -> None:
            answers, lists = whole_lists(store, group, window, properties_of(group_by), filters, None)
            for account, answer in answers.items():
                committed = answer.committed
                pins[account] = pins_of(places[account], committed)
                if len(pins[account]) > 1:
                    asked = (properties_of(group_by), filters)
                    parts = [store.history.count_rows([one], *asked) for one in by_currency(committed).values()]
                    count = sum(rows for part in parts for rows in part.values())
                    lists[account] = replace(lists[account], rows=count)
                found[account] = stored_of(
                    account, committed, window, group_by, sources[account], {}, lists[account], filters.names
                )

        for clusters, group in by_clusters(named_clusters(sources), window.end - window.start):
            await store.ask(deadline.left(), read, group, replace(question.filters, clusters=clusters))
        answered = [(account, found[account]) for account in question.accounts]
        told = await asyncio.to_thread(expenses_of, answered, window, group_by, _NO_ROWS)
        whole = structs.ExpensesBase(**{name: getattr(told, name) for name in structs.ExpensesBase.__struct_fields__})
        return whole, tuple(pin for account in question.accounts for pin in pins[account])


def _fits(position: Position, question: RowsQuestion) -> bool:
    """Whether a position can be one of a question's list; what it says of batches is held against the store."""
    keys = len(properties_of(question.group_by))
    return (
        bool(position.pins)
        and len(position.ends) <= PAGES_AHEAD
        and all(0 <= pin.place < len(question.accounts) and 0 <= pin.sequence < 1 << 64 for pin in position.pins)
        and all(len(one) == keys for one in (position.after, *position.ends) if one)
    )


def _next_rows(
    store: Store, question: RowsQuestion, clusters: Mapping[str, tuple[str, ...]], position: Position, limit: int
) -> tuple[list[dict[str, Any]], Position | None]:
    """Up to ``limit`` rows, and where the list goes on after them; blocks.

    Raises:
        ApiError: what was committed is not there any more.
    """
    late = time.monotonic() + PAGE_SECONDS
    window, group_by, history = question.window, question.group_by, store.history
    properties = properties_of(group_by)
    rows: list[dict[str, Any]] = []
    pins, after, ends = position.pins, position.after, position.ends
    while pins and len(rows) < limit:
        pin = pins[0]
        account = question.accounts[pin.place]
        committed = store.ledger.committed(account, window.start, window.end, pin.sequence)
        everything, parts = committed, by_currency(committed)
        if not pin.stands_for(committed) or (pin.currency and pin.currency not in parts):
            raise ApiError(LIST_CHANGED)
        committed = parts.get(pin.currency, committed)
        asked = (committed, properties, replace(question.filters, clusters=clusters[account]))
        if not ends and properties:
            ends = _short(history.row_ends(*asked, after, limit, PAGES_AHEAD))
        wanted = limit - len(rows)
        sums = history.rows_between(*asked, COSTS_AND_USAGE, Stretch(after, ends[0] if ends else ()), wanted)
        if store.ledger.committed(account, window.start, window.end, pin.sequence) != everything:
            raise ApiError(LIST_CHANGED)  # rows were taken away while they were read
        money, silent = ", ".join(currencies_of(committed)), silent_in(committed)
        rows += [{"currency": money} | row_of(group_by, account, properties, one, silent) for one in sums]
        if len(sums) == wanted and properties:
            after = tuple(map(str, sums[-1].keys))
            ends = ends[1:] if ends and after == ends[0] else ends
        elif ends:
            after, ends = ends[0], ends[1:]
        else:
            pins, after = pins[1:], ()
        if time.monotonic() >= late:
            break
    return rows, replace(position, pins=pins, after=after, ends=ends) if pins else None


def _short(ends: Sequence[Keys]) -> tuple[Keys, ...]:
    """As many of the ends of pages as a cursor has room for."""
    room = ENDS_BYTES
    kept: list[Keys] = []
    for keys in ends:
        room -= sum(len(key.encode()) for key in keys)
        if room < 0 and kept:
            break
        kept.append(keys)
    return tuple(kept)
