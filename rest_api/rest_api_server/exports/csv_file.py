"""Tables as CSV (RFC 4180): lines about the table begin with ``#``, then the header, the rows, and their number."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncGenerator

from rest_api.rest_api_server.exports.table import Cell, Rows, Table

CSV = "text/csv; charset=utf-8"
FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
"""A spreadsheet takes a text that begins with one of these for a formula, and runs it."""
UNKNOWN = "an empty cell is not known or does not apply; it is never zero"
_STARTS = frozenset((*FORMULA_STARTS, "#"))
_AMOUNT = re.compile(r"-[0-9][0-9.]*(e[+-]?[0-9]+)?( [A-Z]{3})?( a month)?")


async def csv_chunks(table: Table) -> AsyncGenerator[bytes, None]:
    """The bytes of a table; the last line says how many rows there are, so that a file that was cut lacks it."""
    about = [(f"# {name}", text) for name, text in (*table.about, ("cells", UNKNOWN))]
    first = ("# lines above the header", len(about) + 1)
    head = _lines([first, *about], marked=True) + _lines([tuple(column.title for column in table.columns)])
    written = 0
    async for rows in table.batches:
        yield head + await asyncio.to_thread(_lines, rows)
        head = b""
        written += len(rows)
    yield head + _lines([("# rows", written)], marked=True)


def _lines(rows: Rows, marked: bool = False) -> bytes:
    """Lines of the file.

    Args:
        marked: whether they are about the table, and their first cell begins with ``#``.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    for row in rows:
        writer.writerow((row[0], *map(_about, row[1:])) if marked else tuple(map(_text, row)))
    return buffer.getvalue().encode("utf-8", "replace")


def _about(cell: Cell) -> Cell:
    """A cell of a line about the table: an amount may be below zero."""
    return cell if isinstance(cell, str) and _AMOUNT.fullmatch(cell) else _text(cell)


def _text(cell: Cell) -> Cell:
    """A cell as it stands in the file: numbers to their last digit, and no text that a spreadsheet would run.

    Nor one that would pass for a line about the table.
    """
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if not isinstance(cell, str) or not cell:
        return cell
    first = cell.lstrip(" ")[:1]
    return f"'{cell}" if first in _STARTS or not first.isprintable() else cell
