"""Tables of public data sets: CSV files in any of their dialects, and sheets of Excel workbooks."""

from __future__ import annotations

import codecs
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


class _TableRow(dict[str, str]):
    """A row of a table. Looking up a column that the table does not have is an error of the table."""

    def __init__(self, cells: Iterable[tuple[str, str]], file: Path) -> None:
        super().__init__(cells)
        self.file = file

    def __missing__(self, column: str) -> str:
        raise DamagedFile(
            f"the table has no column '{column}'",
            subject=self.file,
            expected="the columns of the released table; underscores count as blanks, capitals do not count",
            actual=", ".join(self),
            remedy="Use the table as it was released",
        )


def read_table(file: Path, sheet: str | None = None) -> list[Row]:
    """Read the rows of a CSV file or of a sheet of an `.xlsx` workbook; the first row has the column names.

    Args:
        file: The table. A CSV file may be separated by commas, semicolons or tabs.
        sheet: Name of the sheet of a workbook; by default its first sheet.

    Raises:
        DamagedFile: The table cannot be read or has no rows. Looking up a column that it does not have raises
            the same error.
        NotReadable: The table has the old Excel format.
    """
    if file.suffix.lower() == ".xls":
        raise NotReadable(
            "tables in the old Excel format cannot be read", subject=file, remedy="Save the table as CSV"
        )
    lines = _sheet_cells(file, sheet) if file.suffix.lower() == ".xlsx" else csv_cells(file)
    rows = rows_under_header(lines, file)
    if not rows:
        raise DamagedFile(
            "the table has no rows",
            subject=file,
            actual=f"{file.stat().st_size:,} bytes",
            remedy="Copy the table again from its source",
        )
    return rows


def rows_under_header(lines: Iterable[Sequence[str]], file: Path) -> list[Row]:
    """Rows keyed by the cells of the first line that is not blank. Blank rows are left out."""
    filled = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)]
    if not filled:
        return []
    header = [plain_name(cell) for cell in filled[0]]
    return [_TableRow(zip(header, [*row, *[""] * len(header)], strict=False), file) for row in filled[1:]]


def csv_cells(file: Path) -> list[list[str]]:
    """The cells of a text table in UTF-8, Latin-1 or the UTF-16 of spreadsheets."""
    with open_url(file) as stream:
        data: bytes = stream.read()
    first_line = next(iter(_decoded(data).strip().splitlines()), "")
    separator = max(",;\t", key=first_line.count)
    try:
        return list(csv.reader(io.StringIO(_decoded(data), newline=""), delimiter=separator))
    except csv.Error as error:
        raise DamagedFile(
            f"the table cannot be read: {error}", subject=file, remedy="Copy the table again, or remove it"
        ) from error


def _decoded(data: bytes) -> str:
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # Portuguese notes of INbreast


def path_inside(top: Path, *names: str) -> Path:
    """The path of a file that a table names, which must be below a folder.

    Raises:
        DamagedFile: A name leads out of the folder.
    """
    path = top.joinpath(*names)
    if ".." in Path(*names).parts or not path.is_relative_to(top):
        raise DamagedFile(
            "the table names a file outside of the data set", subject=top, actual="/".join(names)
        )
    return path


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
