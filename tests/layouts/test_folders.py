"""Plain folders, whose sub-folders are labels, and tables of public data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from lobule.errors import CohortError, DamagedFile, LobuleError, NotReadable, ResultsError
from lobule.layouts import LAYOUTS, read_layout
from lobule.layouts.tables import read_table
from tests.layouts.support import touch, write_xlsx


def test_folders_are_labels(tmp_path: Path) -> None:
    (tmp_path / "benign" / "none").mkdir(parents=True)
    touch(tmp_path, "benign/1.png", "malignant/1.png", "malignant/deep/2.png", "notes.txt", ".hidden/3.png")
    cohort = read_layout("folder", tmp_path)
    assert {case.id: case.label for case in cohort} == {
        "benign-1": "benign",
        "malignant-1": "malignant",
        "2": "malignant",
    }
    assert cohort.kind == "image"
    with pytest.raises(CohortError, match=r"the folder contains no cases of"):
        read_layout("bach", tmp_path / "benign" / "none")
    touch(tmp_path, "benign/4.svs")
    with pytest.raises(CohortError, match="mixed"):
        read_layout("folder", tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_folder_is_an_error_of_every_layout(layout: str, tmp_path: Path) -> None:
    error: tuple[type[LobuleError], ...] = (CohortError, NotReadable)
    words = r"the folder contains no cases of|is missing"
    if layout == "reviews":  # reviews lie in a results folder
        error, words = (ResultsError,), r"not a results folder.*lobule scan"
    with pytest.raises(error, match=words):
        read_layout(layout, tmp_path)


def test_workbook_is_read_like_the_same_csv(tmp_path: Path) -> None:
    write_xlsx(
        tmp_path / "book.xlsx",
        {
            "first": [["x"], ["y"]],
            "Second": [["Patient Id", "RoI ", "n"], ["7", "", 3.0], ["8", "a & b", 0.5]],
        },
    )
    (tmp_path / "table.csv").write_text("\ufeffpatient_id;RoI ; n\n7;;3\n8;a & b;0.5\n", "utf-8")
    rows = [{"patient id": "7", "roi": "", "n": "3"}, {"patient id": "8", "roi": "a & b", "n": "0.5"}]
    assert read_table(tmp_path / "book.xlsx", "Second") == rows
    assert read_table(tmp_path / "table.csv") == rows
    with pytest.raises(DamagedFile, match="no sheet 'Third', only first, Second"):
        read_table(tmp_path / "book.xlsx", "Third")
    (tmp_path / "broken.xlsx").write_bytes(b"PK no")
    with pytest.raises(DamagedFile, match="Save the table as CSV"):
        read_table(tmp_path / "broken.xlsx")
    (tmp_path / "old.xls").write_bytes(b"x")
    with pytest.raises(NotReadable, match="Save the table as CSV"):
        read_table(tmp_path / "old.xls")
