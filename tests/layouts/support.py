"""Folders of small files in the layouts of public data sets, written from their documentation."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from lobule.cohort import Cohort, read_cohort, write_cohort


def touch(folder: Path, *names: str, size: int = 1) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def assert_survives_a_manifest(cohort: Cohort, folder: Path) -> None:
    """Check that the manifest of a cohort is valid and reads back the same cases."""
    write_cohort(cohort, folder / "cohort.csv")
    assert read_cohort(folder / "cohort.csv").cases == cohort.cases


def write_xlsx(path: Path, sheets: dict[str, Sequence[Sequence[str | float]]]) -> None:
    """Write a workbook as Excel does: text in a table of shared strings, and cells with references."""
    texts: list[str] = []

    def cell(value: str | float, row: int, column: int) -> str:
        reference = f"{chr(ord('A') + column)}{row}"
        if not isinstance(value, str):
            return f'<c r="{reference}"><v>{value}</v></c>'
        if value not in texts:
            texts.append(value)
        return f'<c r="{reference}" t="s"><v>{texts.index(value)}</v></c>' if value else ""

    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as book:
        entries, relations = [], []
        for index, (name, rows) in enumerate(sheets.items(), start=1):
            entries.append(f'<sheet name="{name}" sheetId="{index}" r:id="rId{index}"/>')
            target = f"worksheets/sheet{index}.xml"
            relations.append(f'<Relationship Id="rId{index}" Type="{office}/worksheet" Target="{target}"/>')
            lines = [
                f'<row r="{r}">{"".join(cell(value, r, c) for c, value in enumerate(row))}</row>'
                for r, row in enumerate(rows, start=1)
            ]
            sheet = f"<worksheet {main}><sheetData>{''.join(lines)}</sheetData></worksheet>"
            book.writestr(f"xl/worksheets/sheet{index}.xml", sheet)
        book.writestr(
            "xl/workbook.xml",
            f'<workbook {main} xmlns:r="{office}"><sheets>{"".join(entries)}</sheets></workbook>',
        )
        links = f'<Relationships xmlns="{package}">{"".join(relations)}</Relationships>'
        book.writestr("xl/_rels/workbook.xml.rels", links)
        items = "".join(f"<si><t>{escape(text)}</t></si>" for text in texts)
        book.writestr("xl/sharedStrings.xml", f"<sst {main}>{items}</sst>")
