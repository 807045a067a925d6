"""Pages of a list that is there whole: limit, opaque cursor, sort and order."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Literal, Self, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from rest_api.rest_api_server.errors import INVALID
from tools.tornado_service.errors import ApiError
from tools.tornado_service.params import Text, WindowQuery

DEFAULT_LIMIT = 100


class Limit(Text):
    pattern = r"[1-9][0-9]{0,2}|1000"
    what = "a whole number from 1 to 1000"


class Cursor(Text):
    """What the last page gave as ``next_cursor``."""

    pattern = r"[A-Za-z0-9_=-]{1,200}"
    what = "the next_cursor of an earlier answer"

    @classmethod
    def parse(cls, text: str) -> Self:
        parsed = super().parse(text)
        parsed.position()
        return parsed

    def position(self) -> tuple[int, str]:
        """``(offset, order)``."""
        try:
            offset, order = json.loads(base64.urlsafe_b64decode(self.encode()))
        except (binascii.Error, ValueError, TypeError):
            raise ValueError(f"must be {self.what}") from None
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0 or not isinstance(order, str):
            raise ValueError(f"must be {self.what}")
        return offset, order


SortColumn = Literal[
    "name", "total_cost", "cpu_cost", "ram_cost", "gpu_cost", "pv_cost", "network_cost", "load_balancer_cost"
]


class PageQuery(WindowQuery, frozen=True, kw_only=True):
    """A window, and which page of what it holds."""

    limit: Limit | None = None
    cursor: Cursor | None = None
    sort: SortColumn | None = None
    order: Literal["asc", "desc"] | None = None


class RowPage(Struct, frozen=True):
    """One page of rows that whoever keeps them ranks, by a cost."""

    sort: str
    order: Literal["asc", "desc"]
    offset: int
    limit: int

    @property
    def end(self) -> int:
        return self.offset + self.limit

    def told(self, total_count: int) -> dict[str, Any]:
        """``total_count`` and ``next_cursor`` of the answer."""
        more = _cursor(self.end, self.sort, self.order == "desc") if self.end < total_count else None
        return {"total_count": total_count, "next_cursor": more}


T = TypeVar("T", bound=Struct)


def row_page(query: PageQuery) -> RowPage | None:
    """The page that a query asks for; None where it is ranked by name, which only the whole list can be.

    Raises:
        ApiError: a cursor of another order, or too far from the first row.
    """
    sort, descending, offset = _asked(query)
    if sort == "name":
        return None
    if offset > LAST_OFFSET:
        reason = f"no page begins after {LAST_OFFSET} rows: name clusters, namespaces or nodes"
        raise ApiError(INVALID, reason, ["cursor"])
    return RowPage(sort, "desc" if descending else "asc", offset, int(query.limit or DEFAULT_LIMIT))


def _asked(query: PageQuery) -> tuple[str, bool, int]:
    """By what a list is ranked, whether the highest comes first, and how many rows come before the page."""
    sort = query.sort or "total_cost"
    descending = (query.order or ("asc" if sort == "name" else "desc")) == "desc"
    chosen = f"{sort} {descending}"
    offset, ordered = query.cursor.position() if query.cursor else (0, chosen)
    if ordered != chosen:
        raise ApiError(INVALID, "cursor belongs to a list in another order", ["cursor"])
    return sort, descending, offset


def _cursor(offset: int, sort: str, descending: bool) -> str:
    return base64.urlsafe_b64encode(json.dumps([offset, f"{sort} {descending}"]).encode()).decode()


ROWS_ON_THE_LOOP = 500
LAST_OFFSET = 490_000
"""Of a page that is ranked where the rows are kept."""


async def paged(answer: T, query: PageQuery, key: str) -> T:
    """``page_of``, on a thread where the rows are many.

    Raises:
        ApiError: a cursor of another order.
    """
    if len(getattr(answer, key)) <= ROWS_ON_THE_LOOP:
        return page_of(answer, query, key)
    return await asyncio.to_thread(page_of, answer, query, key)


def page_of(answer: T, query: PageQuery, key: str) -> T:
    """The answer with one page of its rows under ``key``, their ``total_count`` and the ``next_cursor``.

    Raises:
        ApiError: a cursor of another order.
    """
    sort, descending, offset = _asked(query)
    ranked = _ranked(getattr(answer, key), sort, descending)
    end = offset + int(query.limit or DEFAULT_LIMIT)
    cursor = _cursor(end, sort, descending) if end < len(ranked) else None
    paging: dict[str, Any] = {key: tuple(ranked[offset:end]), "total_count": len(ranked), "next_cursor": cursor}
    return replace(answer, **paging)


def whole_of(answer: T, query: PageQuery, key: str) -> T:
    """The answer with all its rows under ``key`` in the order that is asked for, as a file has them.

    Raises:
        ApiError: a page was asked for.
    """
    refuse_pages(query)
    sort, descending, _ = _asked(query)
    rows: dict[str, Any] = {key: tuple(_ranked(getattr(answer, key), sort, descending))}
    return replace(answer, **rows)


def refuse_pages(query: PageQuery, also: Sequence[str] = ()) -> None:
    """Raises: ApiError: a page was asked for, and a file has all rows; or an order that it does not come in."""
    given = [name for name in ("limit", "cursor", *also) if getattr(query, name) is not None]
    if given:
        raise ApiError(INVALID, f"a file has all rows in an order of its own: leave out {' and '.join(given)}", given)


def _ranked(rows: Sequence[Any], sort: str, descending: bool) -> list[Any]:
    """Rows by what they cost, or by name; what is not known comes last."""
    named = sorted(rows, key=lambda row: row.name)
    known = [row for row in named if getattr(row, sort, None) is not None]
    unknown = [row for row in named if getattr(row, sort, None) is None]
    return sorted(known, key=attrgetter(sort), reverse=descending) + unknown
