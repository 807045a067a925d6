"""Tables as XLSX workbooks: a sheet of rows, and one that says what they are."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import xlsxwriter
from xlsxwriter.exceptions import FileCreateError

from rest_api.rest_api_server.errors import INVALID, OVERLOADED
from rest_api.rest_api_server.exports.csv_file import UNKNOWN
from rest_api.rest_api_server.exports.table import Cell, Column, Rows, Table
from tools.tornado_service.errors import ApiError

log = logging.getLogger("exports")

XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
MOST_ROWS = 100_000
"""Of one workbook: a spreadsheet holds a million, and takes minutes to open them."""
LONGEST_TEXT = 32_767
"""Characters of a cell, by the format."""
CHUNK_BYTES = 1 << 18
WIDEST = 48


async def workbook_chunks(table: Table) -> AsyncGenerator[bytes, None]:
    """The bytes of a table; it is made whole in a temporary file first, as the format has its index at the end.

    Raises:
        ApiError: it has too many rows.
    """
    if table.row_count > MOST_ROWS:
        raise _too_many()
    try:
        with tempfile.TemporaryDirectory(prefix="metroculus-") as folder:
            path = Path(folder) / "table.xlsx"
            book = _Book(path, folder, table)
            try:
                async for rows in table.batches:
                    await asyncio.to_thread(book.add, rows)
            finally:
                await asyncio.to_thread(book.close)
            with path.open("rb") as file:
                while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                    yield chunk
    except (OSError, FileCreateError) as problem:
        log.warning("a workbook could not be written: %s", problem)
        raise ApiError(OVERLOADED, "there is no room to make a workbook in: ask for format=csv") from None


class _Book:
    """A workbook that is written row by row: no more than one row of it is in memory."""

    def __init__(self, path: Path, folder: str, table: Table) -> None:
        self._book: Any = xlsxwriter.Workbook(path, {"constant_memory": True, "tmpdir": folder})
        self._formats = {
            "title": self._book.add_format({"bold": True, "bottom": 1}),
            "money": self._book.add_format({"num_format": "#,##0.00####"}),
            "ratio": self._book.add_format({"num_format": "0.0%"}),
        }
        self._styles = [self._formats.get(_style_of(column)) for column in table.columns]
        self._about = table.about
        self._rows = self._sheet("Rows", [column.title for column in table.columns])
        self._written = 0

    def _sheet(self, name: str, titles: list[str]) -> Any:
        sheet = self._book.add_worksheet(name)
        for place, title in enumerate(titles):
            sheet.set_column(place, place, min(WIDEST, max(10, len(title) + 2)))
            sheet.write_string(0, place, title, self._formats["title"])
        sheet.freeze_panes(1, 0)
        return sheet

    def add(self, rows: Rows) -> None:
        """Raises: ApiError: there are too many rows."""
        if self._written + len(rows) > MOST_ROWS:
            raise _too_many()
        for row in rows:
            self._written += 1
            _write(self._rows, self._written, row, self._styles)

    def close(self) -> None:
        about = self._sheet("About", ["about", "value"])
        about.set_column(1, 1, 2 * WIDEST)
        lines = (*self._about, ("cells", UNKNOWN), ("rows", str(self._written)))
        for number, line in enumerate(lines, start=1):
            _write(about, number, line, [None, None])
        self._book.close()


def _write(sheet: Any, number: int, row: tuple[Cell, ...], styles: list[Any]) -> None:
    for place, (cell, style) in enumerate(zip(row, styles, strict=True)):
        if cell is None:
            continue
        if isinstance(cell, str):
            sheet.write_string(number, place, cell[:LONGEST_TEXT])  # as text: never a formula, never a link
        elif isinstance(cell, bool):
            sheet.write_boolean(number, place, cell)
        else:
            sheet.write_number(number, place, cell, style)


def _style_of(column: Column) -> str:
    if column.unit == "ratio":
        return "ratio"
    return "money" if column.name.endswith(("_cost", "_saving", "_amount")) else ""


def _too_many() -> ApiError:
    reason = f"a workbook holds at most {MOST_ROWS:,} rows: ask for format=csv, or for fewer rows"
    return ApiError(INVALID, reason, ["format"])
