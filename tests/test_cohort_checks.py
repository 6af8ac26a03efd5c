"""Leaks between splits under different spellings, invalid folder names, and manifests of absurd size."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lobule.cohort import cohort_of_paths, read_cohort
from lobule.errors import CohortError, UsageError
from lobule.files import case_folder_name, make_folder


def manifest(folder: Path, text: str) -> Path:
    path = folder / "cohort.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("P1", "p1"),
        ("Jane Doe", "jane  doe"),
        ("1", "1.0"),
        ("7", "7.00"),
        ("Ärzte", "a\u0308rzte"),
        ("a", "A"),
    ],
)
def test_patient_in_two_splits_under_two_spellings_leaks(one: str, other: str, tmp_path: Path) -> None:
    path = manifest(tmp_path, f"case,patient,split,slide\na,{one},train,a.svs\nb,{other},test,b.svs\n")
    with pytest.raises(CohortError, match=r"(?s)patient .* \(also written .*\) is in several splits"):
        read_cohort(path, check_files=False)


@pytest.mark.parametrize(("one", "other"), [("1", "10"), ("1", "1.5"), ("P1", "P2"), ("01", "1")])
def test_other_patients_are_not_confused(one: str, other: str, tmp_path: Path) -> None:
    path = manifest(tmp_path, f"case,patient,split,slide\na,{one},train,a.svs\nb,{other},test,b.svs\n")
    assert len(read_cohort(path, check_files=False)) == 2


@pytest.mark.parametrize(
    "other", ["link.tif", "sub/../a.tif", "./a.tif", "file://{folder}/a.tif", "folder/a.tif"]
)
def test_file_in_two_splits_under_two_paths_leaks(other: str, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"slide")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.tif").symlink_to("a.tif")
    (tmp_path / "folder").symlink_to(".")
    other = other.format(folder=tmp_path)
    path = manifest(tmp_path, f"case,patient,split,slide\na,p,train,a.tif\nb,q,test,{other}\n")
    with pytest.raises(
        CohortError, match=r"file .*a\.tif' .*is in several splits: train \(row 2\), test \(row 3\)"
    ):
        read_cohort(path)


def test_file_url_is_a_local_path(tmp_path: Path) -> None:
    (tmp_path / "a b.tif").write_bytes(b"slide")
    path = manifest(tmp_path, f"case,patient,slide\na,p,file://{tmp_path}/a%20b.tif\n")
    assert read_cohort(path).cases[0].path == str(tmp_path / "a b.tif")


def test_same_problem_of_many_rows_is_one_sentence(tmp_path: Path) -> None:
    rows = "".join(f"c{index},,a.svs\n" for index in range(40))
    with pytest.raises(CohortError) as raised:
        read_cohort(manifest(tmp_path, f"case,patient,slide\n{rows}"), check_files=False)
    assert raised.value.problems == ("rows 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 30 more: the patient is blank",)
    with pytest.raises(CohortError, match="rows 2, 3 and 4: the patient is blank"):
        read_cohort(manifest(tmp_path, "case,patient,slide\na,,a\nb,,a\nc,,a\n"), check_files=False)


def test_message_with_many_problems_is_capped(tmp_path: Path) -> None:
    rows = "".join(f"c{index},p,s{index},a.svs\n" for index in range(3000))
    with pytest.raises(CohortError) as raised:
        read_cohort(manifest(tmp_path, f"case,patient,split,slide\n{rows}"), check_files=False)
    assert len(raised.value.problems) == 3000
    assert str(raised.value).count("\n") == 101 and "and 2,900 more" in str(raised.value)


def test_slides_and_images_share_a_manifest(tmp_path: Path) -> None:
    text = "case,patient,slide,image,x,y,w,h\na,p,a.svs,,,,,\nb,q,,b.png,,,,\nc,r,a.svs,,1,2,3,4\n"
    cohort = read_cohort(manifest(tmp_path, text), check_files=False)
    assert [case.kind for case in cohort] == ["slide", "image", "region"]


def test_case_name_too_long_for_a_folder_is_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, f"case,patient,slide\n{'#' * 90},p,a.svs\n")
    with pytest.raises(CohortError, match="too long for the name of a folder"):
        read_cohort(path, check_files=False)
    slide = tmp_path / f"{'#' * 90}.tif"
    slide.write_bytes(b"slide")
    (case,) = cohort_of_paths([slide])
    (tmp_path / case_folder_name(case.id)).mkdir()


def test_absurdly_wide_or_long_tables_are_refused(tmp_path: Path) -> None:
    columns = ",".join(f"column{index}" for index in range(10_000))
    with pytest.raises(CohortError, match="10,002 columns; a manifest has at most 2,000"):
        read_cohort(manifest(tmp_path, f"case,patient,{columns}\n"))
    zeros = pa.array([0] * 1_000_001, pa.int8())
    pq.write_table(pa.table({"case": zeros, "patient": zeros, "slide": zeros}), tmp_path / "long.parquet")
    with pytest.raises(CohortError, match="1,000,001 rows; a manifest has at most 1,000,000"):
        read_cohort(tmp_path / "long.parquet")
    pq.write_table(pa.table({"case": zeros[:9], "slides": zeros[:9]}), tmp_path / "columns.parquet")
    with pytest.raises(CohortError, match="column 'patient' is missing"):
        read_cohort(tmp_path / "columns.parquet")


@pytest.mark.parametrize("url", ["memory://results", "s3://bucket/results"])
def test_writing_a_folder_to_a_url_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot write a folder to a URL"):
        make_folder(url)
    assert list(tmp_path.iterdir()) == []
