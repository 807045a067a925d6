"""Tables as CSV (RFC 4180): lines about the table begin with ``#``, then the header, the rows, and their number."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncGenerator

from rest_api.rest_api_server.exports.table import Cell, Rows, Table

CSV = "text/csv; charset=utf-8"
FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
"""A spreadsheet takes a text that begins with one of these for a formula, and runs it."""
UNKNOWN = "an empty cell is not known or does not apply; it is never zero"


async def csv_chunks(table: Table) -> AsyncGenerator[bytes, None]:
    """The bytes of a table; the last line says how many rows there are, so that a file that was cut lacks it."""
    about = [(f"# {name}", text) for name, text in (*table.about, ("cells", UNKNOWN))]
    head = [*about, tuple(column.title for column in table.columns)]
    written = 0
    async for rows in table.batches:
        yield await asyncio.to_thread(_lines, [*head, *rows])
        head = []
        written += len(rows)
    yield _lines([*head, ("# rows", written)])


def _lines(rows: Rows) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([tuple(map(_text, row)) for row in rows])
    return buffer.getvalue().encode("utf-8", "replace")


def _text(cell: Cell) -> Cell:
    """A cell as it stands in the file: numbers to their last digit, no text that a spreadsheet would run."""
    if isinstance(cell, str):
        return f"'{cell}" if cell.lstrip(" ")[:1] in _STARTS and cell else cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return cell


_STARTS = frozenset(FORMULA_STARTS)
