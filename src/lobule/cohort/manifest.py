"""Read and write cohort manifests. One error lists all problems with their rows."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lobule.cohort.case import BREAST_LABELS, VIEWS, Case, Cohort, Kind
from lobule.cohort.columns import BOX, STANDARD_COLUMNS, column_problems, intended_column
from lobule.cohort.rows import RowReader, ids_of_paths, used_in_several_splits
from lobule.errors import CohortError, NotReadable, UsageError
from lobule.files import is_url, not_readable, open_url, write_atomic

MOST_COLUMNS = 2_000
MOST_ROWS = 1_000_000


def read_cohort(path: str | Path, *, check_files: bool = True, check_splits: bool = True) -> Cohort:
    """Read a CSV or Parquet manifest.

    Args:
        path: The manifest. Relative paths in it start at its folder.
        check_files: Check that the files of the cases exist. URLs are never checked.
        check_splits: Refuse patients and files that are in several splits.

    Returns:
        The cases in the order of the manifest.

    Raises:
        CohortError: The manifest has problems. The error lists all of them.
        NotReadable: The manifest cannot be read.
    """
    table = _read_table(path)
    problems = [*table.problems, *([] if table.unusable else column_problems(table.columns))]
    table = _with_intended_names(table)
    cases: list[Case] = []
    if "case" in table.columns and not table.unusable:
        reader = RowReader(_folder_of(path), table.columns, check_files)
        for row, cells in table.rows:
            case = reader.read(row, cells)
            if case is not None:
                cases.append(case)
        problems += reader.problems
        if check_splits:
            problems += used_in_several_splits(reader.split_usage)
        if not table.rows and not table.problems:
            problems.append("there are no cases, only the header")
    if problems:
        raise CohortError(path, problems)
    return Cohort(tuple(cases), str(path))


@dataclass(frozen=True)
class Table:
    """The cells of a manifest as text, with row numbers as in a spreadsheet (the header is row 1)."""

    columns: tuple[str, ...]
    rows: tuple[tuple[int, Mapping[str, str]], ...]
    problems: tuple[str, ...] = ()
    unusable: bool = False


def _with_intended_names(table: Table) -> Table:
    """The table with corrected column names, so that cells of misspelt columns are checked as well."""
    intended = {name: intended_column(name, table.columns) or name for name in table.columns}
    if len(set(intended.values())) < len(intended):
        return table
    rows = tuple((row, {intended[name]: cell for name, cell in cells.items()}) for row, cells in table.rows)
    return replace(table, columns=tuple(intended[name] for name in table.columns), rows=rows)


def _read_table(path: str | Path) -> Table:
    name = str(path)
    if not is_url(path) and Path(path).is_dir():
        raise NotReadable(
            "this is a folder, not a manifest",
            subject=path,
            expected="a CSV or Parquet file",
            remedy="Make a manifest of a folder with `lobule cohort DIR --from folder`",
        )
    with open_url(path) as file:
        try:
            data = file.read()
        except OSError as error:
            raise not_readable(error, path) from error
    if data[:4] == b"PAR1":
        return _parquet_table(data, path)
    if name.lower().endswith((".parquet", ".pq")):
        return Table((), (), ("the file is named like a Parquet file, but is not one",), unusable=True)
    return _csv_table(data)


def _csv_table(data: bytes) -> Table:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Table((), (), ("the file is UTF-16, not UTF-8; save it as `CSV UTF-8`",), unusable=True)
    problems = _bad_bytes(data)
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace")
    if "\0" in text:
        return Table((), (), (*problems, "the file contains zero bytes: it is not a CSV file"), unusable=True)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, Mapping[str, str]]] = []
    columns: tuple[str, ...] = ()
    header_seen = False
    try:
        for number, cells in enumerate(reader, start=1):
            stripped = [cell.strip() for cell in cells]
            if not any(stripped):
                continue
            if not header_seen:
                header_seen, columns = True, tuple(stripped)
                if len(columns) > MOST_COLUMNS:
                    problem = f"{len(columns):,} columns; a manifest has at most {MOST_COLUMNS:,}"
                    return Table((), (), (problem,), unusable=True)
                if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
                    return Table((), (), ("the columns are not separated by commas",), unusable=True)
                continue
            if len(cells) < len(columns) or any(stripped[len(columns) :]):
                problems.append(f"row {number}: {len(cells)} cells under {len(columns)} columns")
                continue
            if len(rows) >= MOST_ROWS:
                return Table((), (), (f"more than {MOST_ROWS:,} rows",), unusable=True)
            rows.append((number, {name: cell for name, cell in zip(columns, stripped, strict=False) if name}))
            if any(cell for name, cell in zip(columns, stripped, strict=False) if not name):
                problems.append(f"row {number}: a cell lies under a column without a name")
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: not CSV: {error}")
    if not header_seen:
        return Table((), (), (*problems, "the file is empty"), unusable=True)
    return Table(columns, tuple(rows), tuple(problems))


def _bad_bytes(data: bytes) -> list[str]:
    """One sentence for each line that is not UTF-8, with its first invalid byte."""
    problems = []
    start = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte, offset = line[error.start], start + error.start
            problems.append(
                f"line {number}: byte 0x{byte:02X} at offset {offset} is not UTF-8; save the file as UTF-8"
            )
        start += len(line) + 1
    return problems


def _parquet_table(data: bytes, path: str | Path) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        columns = tuple(map(str, file.schema_arrow.names))
        if problems := _size_problems(len(columns), file.metadata.num_rows) or column_problems(columns):
            return Table(columns, (), tuple(problems), unusable=True)
        table = file.read()
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        return Table((), (), (f"the Parquet file cannot be read: {error}",), unusable=True)
    values = [column.to_pylist() for column in table.columns]
    rows = tuple(
        (number, dict(zip(columns, map(_as_text, cells), strict=True)))
        for number, cells in enumerate(zip(*values, strict=True), start=2)
    )
    return Table(columns, rows)


def _size_problems(columns: int, rows: int) -> list[str]:
    """Sentences about a Parquet file that is too large, before its rows are read."""
    problems = []
    if columns > MOST_COLUMNS:
        problems.append(f"{columns:,} columns; a manifest has at most {MOST_COLUMNS:,}")
    if rows > MOST_ROWS:
        problems.append(f"{rows:,} rows; a manifest has at most {MOST_ROWS:,}")
    return problems


def _as_text(value: object) -> str:
    """A typed cell as text in a CSV: integers without a fraction, empty for null and NaN."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace").strip()
    return str(value).strip()


def _folder_of(path: str | Path) -> str:
    if is_url(path):
        return str(path).rpartition("/")[0]
    return str(Path(path).resolve().parent)


# -- lists of paths -----------------------------------------------------------------------------------------

MANIFEST_SUFFIXES = (".csv", ".parquet", ".pq")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".czi",
)  # fmt: skip


def cohort_of_paths(paths: Sequence[str | Path], *, mpp: float | None = None) -> Cohort:
    """Create a cohort from a list of paths.

    Each file is a case with the name of the file, and a separate patient. A folder with DICOM files is one
    slide; any other folder contributes its slides and images.

    Args:
        paths: One manifest, or any number of slides, images and folders.
        mpp: µm/px of all cases.

    Raises:
        UsageError: The paths contain no slides or images.
    """
    if len(paths) == 1 and str(paths[0]).lower().endswith(MANIFEST_SUFFIXES):
        return read_cohort(paths[0])
    files = [file for path in paths for file in _files_of(path)]
    if not files:
        raise UsageError("no slides or images there", subject=", ".join(map(str, paths)) or None)
    cases = []
    for case_id, file in zip(ids_of_paths(files), files, strict=True):
        kind: Kind = "image" if file.lower().endswith(IMAGE_SUFFIXES) else "slide"
        cases.append(Case(case_id, case_id, kind, path=file, mpp=mpp))
    return Cohort(tuple(cases))


def as_cohort(cases: Cohort | str | Path | Sequence[str | Path]) -> Cohort:
    """Return a cohort for a cohort, the path of a manifest, or the paths of one or several slides."""
    if isinstance(cases, Cohort):
        return cases
    return cohort_of_paths([cases] if isinstance(cases, str | Path) else cases)


def _files_of(path: str | Path) -> list[str]:
    if is_url(path):
        return [str(path)]
    file_or_folder = Path(path).absolute()
    if not file_or_folder.is_dir():
        return [str(file_or_folder)]
    inside = sorted(item for item in file_or_folder.iterdir() if not item.name.startswith("."))
    if any(item.suffix.lower() == ".dcm" for item in inside):
        return [str(file_or_folder)]
    return [str(item) for item in inside if item.suffix.lower() in SLIDE_SUFFIXES + IMAGE_SUFFIXES]


# -- writing ------------------------------------------------------------------------------------------------


def write_cohort(cohort: Cohort, path: str | Path) -> None:
    """Write a manifest as CSV, or as Parquet if its name says so.

    Paths in it are relative to its folder if they are on the same disk.
    """
    rows = [_cells(case, path) for case in cohort]
    used = {name for cells in rows for name, value in cells.items() if value}
    standard = [
        name for name in STANDARD_COLUMNS if name in used or name in ("case", "patient", "split", "label")
    ]
    other_columns = dict.fromkeys(name for cells in rows for name in cells if name not in STANDARD_COLUMNS)
    columns = [*standard, *other_columns]
    with write_atomic(path) as temporary:
        if str(path).lower().endswith((".parquet", ".pq")):
            _write_parquet(temporary, columns, rows)
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([cells.get(name, "") for name in columns] for cells in rows)


def _write_parquet(temporary: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = {
        name: pyarrow.array([cells.get(name, "") for cells in rows], pyarrow.string()) for name in columns
    }
    parquet.write_table(pyarrow.table(texts), str(temporary))


def _cells(case: Case, manifest: str | Path) -> dict[str, str]:
    cells = {"case": case.id, "patient": case.patient}
    cells |= {name: value for name in ("split", "label", "site") if (value := case.value(name)) is not None}
    if case.path is not None:
        cells["image" if case.kind == "image" else "slide"] = _relative(case.path, manifest)
    for view in VIEWS:
        cells[view] = ";".join(_relative(file, manifest) for file in case.views.get(view, ()))
    if case.mpp is not None:
        cells["mpp"] = repr(float(case.mpp))
    if case.annotation is not None:
        cells["annotation"] = _relative(case.annotation, manifest)
    if case.l0_box is not None:
        box = case.l0_box
        cells |= dict(zip(BOX, map(str, (box.x, box.y, box.width, box.height)), strict=True))
    cells |= {name: "01"[case.breast_labels[name]] for name in BREAST_LABELS if name in case.breast_labels}
    return cells | dict(case.attributes)


def _relative(file: str, manifest: str | Path) -> str:
    if is_url(file) or is_url(manifest):
        return file
    folder = Path(manifest).resolve().parent
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # another drive
        return file
