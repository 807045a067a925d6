"""Tables as files of the format that was asked for."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal

from rest_api.rest_api_server.errors import OVERLOADED
from rest_api.rest_api_server.exports.csv_file import CSV, csv_chunks
from rest_api.rest_api_server.exports.table import Table
from rest_api.rest_api_server.exports.workbook import XLSX, workbook_chunks
from tools.tornado_service.errors import ApiError
from tools.tornado_service.streamed import StreamedFile

Format = Literal["json", "csv", "xlsx"]
"""Of an answer; the last two are files."""
MEDIA_TYPES = ("text/csv", XLSX)
AT_ONCE = 8
"""Files that are being made; each holds a page of rows in memory."""


class Files:
    """Makes files, some at once.

    Args:
        seconds: to make and send one.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._making = 0

    def file(self, table: Table, form: Format) -> StreamedFile:
        """A table as a file (csv or xlsx), made while it is sent."""
        packable = form == "csv"
        chunks = csv_chunks(table) if packable else workbook_chunks(table)
        kind = CSV if packable else XLSX
        return StreamedFile(f"{table.name}.{form}", kind, self._counted(chunks), self._seconds, packable)

    async def _counted(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        if self._making >= AT_ONCE:
            raise ApiError(OVERLOADED, f"{AT_ONCE} files are being made; come again", retry_after=10)
        self._making += 1
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            self._making -= 1
            await chunks.aclose()
