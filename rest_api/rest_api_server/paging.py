"""Pages of a list that is there whole: limit, opaque cursor, sort and order."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
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


T = TypeVar("T", bound=Struct)


ROWS_ON_THE_LOOP = 500


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
    sort = query.sort or "total_cost"
    descending = (query.order or ("asc" if sort == "name" else "desc")) == "desc"
    chosen = f"{sort} {descending}"
    offset, ordered = query.cursor.position() if query.cursor else (0, chosen)
    if ordered != chosen:
        raise ApiError(INVALID, "cursor belongs to a list in another order", ["cursor"])
    named = sorted(getattr(answer, key), key=lambda row: row.name)
    known = [row for row in named if getattr(row, sort, None) is not None]
    unknown = [row for row in named if getattr(row, sort, None) is None]
    ranked = sorted(known, key=attrgetter(sort), reverse=descending) + unknown
    end = offset + int(query.limit or DEFAULT_LIMIT)
    more = end < len(ranked)
    cursor = base64.urlsafe_b64encode(json.dumps([end, chosen]).encode()).decode() if more else None
    paging: dict[str, Any] = {key: tuple(ranked[offset:end]), "total_count": len(ranked), "next_cursor": cursor}
    return replace(answer, **paging)
