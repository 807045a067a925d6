"""Exported files as whoever takes them away reads them, without any code of ours."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import openpyxl
import requests


@dataclass
class Exported:
    """A file's lines about it, its columns, and its rows by column; a cell that is empty is None."""

    about: dict[str, str]
    columns: list[str]
    rows: list[dict[str, object]]

    def sum(self, column: str) -> float:
        cells = (row[column] for row in self.rows)
        return sum(float(cell) for cell in cells if cell is not None)


def read_csv(body: bytes) -> Exported:
    lines = list(csv.reader(io.StringIO(body.decode("utf-8"), newline="")))
    about = {line[0].removeprefix("# "): line[1] for line in lines if line[0].startswith("# ")}
    header, *rows = [line for line in lines if not line[0].startswith("# ")]
    assert lines[-1] == ["# rows", str(len(rows))], "the last line says how many rows there are"
    assert all(len(row) == len(header) for row in rows)
    return Exported(about, header, [{k: v or None for k, v in zip(header, row, strict=True)} for row in rows])


def read_workbook(body: bytes) -> Exported:
    book = openpyxl.load_workbook(io.BytesIO(body))
    assert book.sheetnames == ["Rows", "About"]
    assert {cell.data_type for sheet in book for row in sheet.iter_rows() for cell in row} <= {"s", "n", "b"}
    header, *rows = book["Rows"].iter_rows(values_only=True)
    about = {str(name): str(value) for name, value in list(book["About"].iter_rows(values_only=True))[1:]}
    assert about["rows"] == str(len(rows))
    columns = [str(name) for name in header]
    return Exported(about, columns, [dict(zip(columns, row, strict=True)) for row in rows])


def read(answer: requests.Response) -> Exported:
    """Either of them, by what the answer says that it is."""
    assert answer.status_code == 200, answer.text
    kind = answer.headers["Content-Type"]
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="')
    return read_csv(answer.content) if kind.startswith("text/csv") else read_workbook(answer.content)
