"""Tables as files of the format that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
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
AT_ONCE, OF_ONE_ORGANIZATION = 8, 3
"""Files that are being made; each holds a page of rows in memory."""


class Files:
    """Makes files, some at once.

    Args:
        seconds: to make and send one.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._making: Counter[str] = Counter()

    def file(self, name: str, form: Format, organization_id: str, make: Callable[[], Awaitable[Table]]) -> StreamedFile:
        """A table as a file (csv or xlsx), made while it is sent.

        Args:
            name: of the file, without its ending.
            make: reads the table; called when there is a place for it.
        """
        kind = CSV if form == "csv" else XLSX
        chunks = self._chunks(form, organization_id, make)
        return StreamedFile(
            name=f"{name}.{form}", content_type=kind, chunks=chunks, seconds=self._seconds, packable=form == "csv"
        )

    async def _chunks(
        self, form: Format, organization_id: str, make: Callable[[], Awaitable[Table]]
    ) -> AsyncGenerator[bytes, None]:
        of_it = self._making[organization_id]
        if self._making.total() >= AT_ONCE or of_it >= OF_ONE_ORGANIZATION:
            count = of_it if of_it >= OF_ONE_ORGANIZATION else AT_ONCE
            raise ApiError(OVERLOADED, f"{count} files are being made; come again", retry_after=10)
        self._making[organization_id] += 1
        try:
            table = await make()
            chunks = csv_chunks(table) if form == "csv" else workbook_chunks(table)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        finally:
            self._making[organization_id] -= 1
