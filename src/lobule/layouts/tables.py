"""Tables of public data sets: CSV files in any of their dialects, and sheets of Excel workbooks."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from lobule.errors import DamagedFile, NotReadable
from lobule.files import open_url

Row = Mapping[str, str]
"""The cells of one row as text without outer blanks, keyed by the plain names of the columns."""

LARGEST_SHEET = 256 << 20
"""Largest unpacked size of one part of a workbook in bytes."""


def plain_name(column: str) -> str:
    """A column name in lower case, with single blanks, and blanks for underscores."""
    return " ".join(column.replace("_", " ").lower().split())


def read_table(file: Path, sheet: str | None = None) -> list[Row]:
    """Read the rows of a CSV file or of a sheet of an `.xlsx` workbook; the first row has the column names.

    Args:
        file: The table. A CSV file may be separated by commas, semicolons or tabs.
        sheet: Name of the sheet of a workbook; by default its first sheet.
    """
    if file.suffix.lower() == ".xls":
        raise NotReadable(
            "tables in the old Excel format cannot be read", subject=file, remedy="Save the table as CSV"
        )
    lines = _sheet_cells(file, sheet) if file.suffix.lower() == ".xlsx" else _csv_cells(file)
    return rows_under_header(lines)


def rows_under_header(lines: Iterable[Sequence[str]]) -> list[Row]:
    """Rows keyed by the cells of the first line that is not blank. Blank rows are left out."""
    filled = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)]
    if not filled:
        return []
    header = [plain_name(cell) for cell in filled[0]]
    return [dict(zip(header, [*row, *[""] * len(header)], strict=False)) for row in filled[1:]]


def _csv_cells(file: Path) -> list[list[str]]:
    with open_url(file) as stream:
        data: bytes = stream.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # Portuguese notes of INbreast
    first_line = text.partition("\n")[0]
    separator = max(",;\t", key=first_line.count)
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))


def whole_number(cell: str) -> str:
    """A cell that spreadsheets changed into a decimal number, such as `22678622.0`, as a whole number."""
    return re.sub(r"^(\d+)\.0+$", r"\1", cell.strip())


# -- Excel workbooks ----------------------------------------------------------------------------------------

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


def _sheet_cells(file: Path, sheet: str | None) -> list[list[str]]:
    try:
        with zipfile.ZipFile(file) as book:
            shared = [
                "".join(text.text or "" for text in item.iter(f"{_MAIN}t"))
                for item in _xml(book, "xl/sharedStrings.xml").iter(f"{_MAIN}si")
            ]
            rows = _xml(book, _sheet_path(book, sheet, file)).iter(f"{_MAIN}row")
            return [_cells_of_row(row, shared) for row in rows]
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, IndexError, ValueError) as error:
        raise DamagedFile(
            f"the workbook cannot be read: {error}", subject=file, remedy="Save the table as CSV"
        ) from error


def _xml(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if name not in book.namelist():
        return ElementTree.Element("absent")
    if book.getinfo(name).file_size > LARGEST_SHEET:
        raise ValueError(f"{name} is larger than {LARGEST_SHEET} bytes")
    return ElementTree.fromstring(book.read(name))


def _sheet_path(book: zipfile.ZipFile, sheet: str | None, file: Path) -> str:
    sheets = {item.get("name", ""): item for item in _xml(book, "xl/workbook.xml").iter(f"{_MAIN}sheet")}
    if not sheets or (sheet is not None and sheet not in sheets):
        raise ValueError(f"there is no sheet '{sheet}', only {', '.join(sheets) or 'none'}")
    relation = sheets[sheet or next(iter(sheets))].get(_RELATION)
    targets = {item.get("Id"): item.get("Target", "") for item in _xml(book, "xl/_rels/workbook.xml.rels")}
    target = targets[relation]
    return target.lstrip("/") if target.startswith("/") else f"xl/{target}"


def _cells_of_row(row: ElementTree.Element, shared: Sequence[str]) -> list[str]:
    cells: list[str] = []
    for cell in row.iter(f"{_MAIN}c"):
        letters = re.match(r"[A-Z]+", cell.get("r", ""))
        column = _column_index(letters[0]) if letters else len(cells)
        cells += [""] * (column - len(cells))
        value = cell.findtext(f"{_MAIN}v") or ""
        if cell.get("t") == "s":
            value = shared[int(value)]
        elif cell.get("t") == "inlineStr":
            value = "".join(text.text or "" for text in cell.iter(f"{_MAIN}t"))
        cells.append(whole_number(value))
    return cells


def _column_index(letters: str) -> int:
    """Index of a column: A is 0, Z is 25, AA is 26."""
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - ord("A") + 1
    if index > 16_384:
        raise ValueError(f"there is no column {letters}")
    return index - 1
