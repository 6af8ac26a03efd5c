"""Manifests: reading, refused input, writing, and the layouts of public data sets."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lobule.cohort import Case, Cohort, cohort_of_paths, read_cohort, write_cohort
from lobule.cohort.columns import _swapped, intended_column
from lobule.cohort.rows import ids_of_paths, resolve
from lobule.errors import CohortError, ConfigError, NotReadable, UsageError
from lobule.geometry import Box


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.svs", "b.svs", "a.xml", "one.png", "l1.dcm", "l2.dcm", "r1.dcm"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def write(folder: Path, text: str, name: str = "cohort.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def problems_of(path: Path) -> list[str]:
    with pytest.raises(CohortError) as caught:
        read_cohort(path)
    return list(caught.value.problems)


SLIDES = """case,patient,split,label,site,slide,mpp,annotation,scanner
one,p1,train,tumour,A,a.svs,0.25,a.xml,Aperio
two,p1,train,,A,b.svs,,,
three,p2,test,normal,B,s3://bucket/c.svs,0.5,,Hamamatsu
"""


def test_slides_are_read(folder: Path) -> None:
    cohort = read_cohort(write(folder, SLIDES))
    assert cohort.cases[0] == Case(
        "one",
        "p1",
        "slide",
        path=str(folder / "a.svs"),
        split="train",
        label="tumour",
        site="A",
        mpp=0.25,
        annotation=str(folder / "a.xml"),
        attributes={"scanner": "Aperio"},
    )
    assert cohort["two"].label is None
    assert cohort["two"].mpp is None
    assert cohort["three"].path == "s3://bucket/c.svs"
    assert cohort.kind == "slide"
    assert cohort.patients() == ("p1", "p2")
    assert cohort.labels() == ("normal", "tumour")
    assert cohort.splits() == ("train", "test")
    assert [case.id for case in cohort.split("train")] == ["one", "two"]
    assert [case.value("scanner") for case in cohort] == ["Aperio", None, "Hamamatsu"]
    with pytest.raises(ConfigError, match="tune"):
        cohort.split("tune")
    with pytest.raises(KeyError):
        cohort["four"]


def test_regions_and_exams_are_read(folder: Path) -> None:
    text = "case,patient,slide,mpp,x,y,w,h\nr1,p,a.svs,0.5,0,10,300,200.0\nr2,p,a.svs,0.5,,,,\n"
    cohort = read_cohort(write(folder, text))
    assert cohort["r1"].l0_box == Box(0, 10, 300, 200)
    assert [case.kind for case in cohort] == ["region", "slide"]
    text = "case,patient,l_cc,r_cc,l_mlo,r_mlo,left_benign,right_malignant\ne,p,l1.dcm;l2.dcm,,,r1.dcm,0,1\n"
    exam = read_cohort(write(folder, text))["e"]
    assert exam.views == {
        "l_cc": (str(folder / "l1.dcm"), str(folder / "l2.dcm")),
        "r_mlo": (str(folder / "r1.dcm"),),
    }
    assert exam.breast_labels == {"left_benign": False, "right_malignant": True}
    assert [Path(path).name for path in exam.paths] == ["l1.dcm", "l2.dcm", "r1.dcm"]
    assert exam.value("right_malignant") == "1"


def test_byte_order_mark_and_windows_line_ends_are_accepted(folder: Path) -> None:
    plain = read_cohort(write(folder, SLIDES, "plain.csv"))
    marked = read_cohort(write(folder, SLIDES.replace("\n", "\r\n"), "marked.csv", "utf-8-sig"))
    assert plain.cases == marked.cases


def test_parquet_gives_the_same_cohort_as_csv(folder: Path) -> None:
    rows = list(csv.DictReader(SLIDES.splitlines()))
    columns: dict[str, list[object]] = {name: [row[name] or None for row in rows] for name in rows[0]}
    columns["mpp"] = [0.25, None, 0.5]
    parquet.write_table(pyarrow.table(columns), folder / "cohort.parquet")
    assert read_cohort(folder / "cohort.parquet").cases == read_cohort(write(folder, SLIDES)).cases


def test_one_error_lists_every_problem_with_its_row(folder: Path) -> None:
    text = """case,patient,slpit,lable,slide,Mpp,x,y,w,h
a,p1,train,1,nope.svs,0.25,,,,
a,p1,test,1,a.svs,"0,25",1,2,,
b,p1,tuning,1,,0.25,,,,
,p2,,,b.svs,nan,1,2,-3,4
c,,,,b.svs,0,1,2,3.5,4
"""
    problems = problems_of(write(folder, text))
    expected = [
        "column 'slpit' is not known; 'split' is meant",
        "column 'lable' is not known; 'label' is meant",
        "column 'Mpp' is not known; 'mpp' is meant",
        "row 2: slide 'nope.svs' does not exist",
        "row 3: case 'a' is there already, in row 2",
        "row 3: a region needs all of x, y, w, h; w, h missing",
        "row 3: mpp = '0,25' is not a positive number",
        "row 4: no split 'tuning'",
        "row 4: no file is given",
        "row 5: the case is blank",
        "row 5: a region must have a positive size, not w = -3, h = 4",
        "row 5: mpp = 'nan'",
        "row 6: the patient is blank",
        "row 6: w = '3.5' is not a whole number",
        "row 6: mpp = '0'",
        "patient 'p1' is in several splits: train (row 2), test (row 3)",
    ]
    assert len(problems) == len(expected), "\n".join(problems)
    for words, sentence in zip(expected, problems, strict=True):
        assert sentence.startswith(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("case,patient,slide\n", "there are no cases"),
        ("case;patient;slide\na;p;a.svs\n", "not separated by commas"),
        ("case,patient\na,p\n", "no column says what the cases are"),
        ("patient,slide\np,a.svs\n", "column 'case' is missing"),
        ("case,slide\na,a.svs\n", "column 'patient' is missing"),
        ("case,patient,slide,slide\na,p,a.svs,a.svs\n", "column 'slide' is there 2 times"),
        ("case,patient,slide\na,p\n", "row 2: 2 cells under 3 columns"),
        ("case,patient,slide\na,p,a.svs,more\n", "row 2: 4 cells under 3 columns"),
        ("case,patient,slide,\na,p,a.svs,more\n", "under a column without a name"),
        ("case,patient,slide,l_cc\na,p,a.svs,\nb,q,,one.png\n", "row 3: mixed kinds"),
        ("case,patient,slide,image\na,p,a.svs,one.png\n", "this row gives slide and image"),
        ("case,patient,image,x,y,w,h\na,p,one.png,1,1,5,5\n", "belong to slides"),
        ("case,patient,slide,x,y,w,h\na,p,a.svs,-1,1,5,5\n", "must begin inside its slide"),
        ("case,patient,slide,x,y,w,h\na,p,a.svs,1e400,1,5,5\n", "x = '1e400'"),
        ("case,patient,l_cc,left_benign\na,p,l1.dcm,2\n", "neither 0 nor 1"),
        ("case,patient,l_cc,r_cc\na,p,,\n", "row 2: no file is given"),
        ("case,patient,l_cc\na,p,l1.dcm;l3.dcm\n", "'l3.dcm' does not exist"),
        ("case,patient,slide\na/b,p,a.svs\n", "no slashes"),
        ("case,patient,slide\n..,p,a.svs\n", "no dot at its start"),
        ("case,patient,slide\n" + "a" * 300 + ",p,a.svs\n", "300 bytes"),
        ("case,patient,slide,annotation\na,p,a.svs,none.xml\n", "annotation 'none.xml' does not exist"),
        ("case,patient,slide,annotation\na,p,a.svs,.\n", "is a folder"),
        ("case,patient,slide\na,p,sub\\a.svs\n", "write / between folders"),
        (
            "case,patient,split,slide\na,p,train,a.svs\nb,q,test,a.svs\n",
            "several splits: train (row 2), test (row 3)",
        ),
        ('case,patient,slide\na,p,"a.svs\n', "not CSV"),
        ("case,patient,slide\na,p,a\0.svs\n", "zero bytes"),
        ("case,patient,slide\na,p," + "a" * 5000 + "\n", "does not exist"),
    ],
)
def test_one_problem_is_one_sentence(folder: Path, text: str, words: str) -> None:
    problems = problems_of(write(folder, text))
    assert len(problems) == 1, problems
    assert words in problems[0]


@pytest.mark.parametrize(
    ("name", "swapped"),
    [
        ("silde", True),
        ("sldie", True),
        ("slide", False),
        ("slied", True),
        ("sldiee", False),
        ("sxyde", False),
    ],
)
def test_swapped_neighbouring_letters_are_a_misspelling(name: str, swapped: bool) -> None:
    assert _swapped(name, "slide") == swapped


def test_invalid_utf8_is_reported_with_its_offset(folder: Path) -> None:
    path = folder / "cohort.csv"
    data = b"case,patient,slide,site\na,p,a.svs,Z\xfcrich\nb,p,b.svs,Bern\nc,p,b.svs,Gen\xe8ve\n"
    path.write_bytes(data)
    assert problems_of(path) == [
        f"line 2: byte 0xFC at offset {data.index(0xFC)} is not UTF-8; save the file as UTF-8",
        f"line 4: byte 0xE8 at offset {data.index(0xE8)} is not UTF-8; save the file as UTF-8",
    ]
    path.write_bytes("case,patient\n".encode("utf-16"))
    assert "UTF-16" in problems_of(path)[0]


def test_other_spellings_of_splits_are_accepted(folder: Path) -> None:
    text = "case,patient,split,slide\na,p,Training,a.svs\nb,q,valid,b.svs\n"
    assert [case.split for case in read_cohort(write(folder, text))] == ["train", "val"]


@pytest.mark.parametrize(
    ("name", "columns", "meant"),
    [
        ("lable", ["case", "slide"], "label"),
        ("slpit", ["case", "slide"], "split"),
        ("Patient ID", ["case", "slide"], "patient"),
        ("case_id", ["patient", "slide"], "case"),
        ("mmp", ["case", "slide"], "mpp"),
        ("L-CC", ["case", "r_cc"], "l_cc"),
        ("left-benign", ["case", "l_cc"], "left_benign"),
        ("X", ["case", "slide", "y"], "x"),
        ("annotations", ["case", "slide"], "annotation"),
        ("Label", ["case", "slide", "label"], "label"),
        ("side", ["case", "slide"], None),
        ("size", ["case", "slide"], None),
        ("grade", ["case", "slide"], None),
        ("stage", ["case", "image"], None),
        ("age", ["case", "image"], None),
        ("slide_id", ["case", "slide"], None),
        ("patient_age", ["case", "patient", "slide"], None),
    ],
)
def test_misspelt_columns_are_distinguished_from_attributes(
    name: str, columns: list[str], meant: str | None
) -> None:
    assert intended_column(name, [*columns, name]) == meant


def test_paths_are_relative_to_the_real_folder_and_keep_their_links(tmp_path: Path) -> None:
    real = tmp_path / "data" / "manifests"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "data" / "blob").write_bytes(b"x")
    (tmp_path / "data" / "a.svs").symlink_to("blob")
    path = write(tmp_path / "link", "case,patient,slide\na,p,../a.svs\n")
    assert read_cohort(path)["a"].path == str(tmp_path / "data" / "a.svs")
    assert resolve("a.svs", "s3://bucket/sets") == "s3://bucket/sets/a.svs"


def test_folder_instead_of_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotReadable, match="--from folder"):
        read_cohort(tmp_path)
    with pytest.raises(NotReadable, match="no such file"):
        read_cohort(tmp_path / "none.csv")


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1, max_size=8
)
NAME = TEXT.filter(
    lambda text: not set(text) & set("/\\") and not text.startswith(".") and text == text.strip()
)


@st.composite
def cohorts(draw: st.DrawFn) -> Cohort:
    ids = draw(st.lists(NAME, min_size=1, max_size=5, unique=True))
    cases = []
    for case_id in ids:
        region = draw(st.booleans())
        number = st.integers(0, 2**40)
        cases.append(
            Case(
                case_id,
                draw(NAME),
                "region" if region else "slide",
                path="s3://bucket/" + draw(NAME).replace("#", ""),
                label=draw(st.none() | NAME),
                site=draw(st.none() | NAME),
                mpp=draw(st.none() | st.floats(1e-3, 1e3)),
                l0_box=Box(draw(number), draw(number), draw(number) + 1, draw(number) + 1)
                if region
                else None,
                attributes={"grade": draw(NAME)} if draw(st.booleans()) else {},
            )
        )
    return Cohort(tuple(cases))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cohort=cohorts(), suffix=st.sampled_from([".csv", ".parquet"]))
def test_written_cohort_is_read_back(tmp_path: Path, cohort: Cohort, suffix: str) -> None:
    path = tmp_path / f"cohort{suffix}"
    write_cohort(cohort, path)
    assert read_cohort(path).cases == cohort.cases


def test_written_exams_are_read_back(folder: Path) -> None:
    text = (
        "case,patient,split,label,l_cc,r_mlo,left_benign,right_malignant\ne,p,val,,l1.dcm;l2.dcm,r1.dcm,0,1\n"
    )
    cohort = read_cohort(write(folder, text))
    (folder / "sub").mkdir()
    write_cohort(cohort, folder / "sub" / "again.csv")
    assert "../l1.dcm;../l2.dcm" in (folder / "sub" / "again.csv").read_text()
    assert read_cohort(folder / "sub" / "again.csv").cases == cohort.cases


def test_a_list_of_paths_is_a_cohort(folder: Path) -> None:
    cohort = cohort_of_paths([folder / "a.svs", folder / "one.png"], mpp=0.5)
    assert [(case.id, case.kind, case.mpp) for case in cohort] == [("a", "slide", 0.5), ("one", "image", 0.5)]
    assert cohort_of_paths([folder]).cases[0].path == str(folder)  # it holds DICOM: one slide
    assert [case.id for case in cohort_of_paths([write(folder, SLIDES)])] == ["one", "two", "three"]
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match="no slides"):
        cohort_of_paths([folder / "empty"])


def test_a_folder_contributes_its_slides_and_images_in_order(tmp_path: Path) -> None:
    for name in ("b.svs", "a.PNG", "c.jpg", "notes.txt", ".hidden.tif"):
        (tmp_path / name).touch()
    cohort = cohort_of_paths([tmp_path])
    assert [(case.id, case.kind) for case in cohort] == [("a", "image"), ("b", "slide"), ("c", "image")]


def test_equal_stems_are_distinguished_by_their_folders() -> None:
    assert ids_of_paths(["/d/x/a.tif", "/d/y/a.tif", "/d/y/b.tif"]) == ["x-a", "y-a", "b"]
    assert ids_of_paths(["/d/a.tif", "/d/a.svs"]) == ["d-a", "d-a-2"]


def test_names_that_become_equal_are_numbered() -> None:
    assert ids_of_paths(["/d/.a.tif", "/d/a.tif"]) == ["a", "a-2"]
    assert ids_of_paths(["/.d/a.tif", "/d/a.tif", "/d/d-a-2.tif"]) == ["d-a", "d-a-2", "d-a-2-3"]
    deep = "/" + "/".join(["a folder with a long name"] * 12)
    first, second = ids_of_paths([f"{deep}/a.tif", f"{deep}/a.svs"])
    assert first != second and first.endswith("-a") and len(first.encode()) <= 200


def test_real_manifests_are_read(kit: Path) -> None:
    counts = {path.stem: len(read_cohort(path)) for path in sorted((kit / "cohorts").glob("*.csv"))}
    assert counts == {
        "camelyon16_patches": 57, "idc_bags": 21, "idc_patches": 4628, "idc_slides": 2, "mias_exams": 54,
        "nyu_exam": 1, "ucsb": 9,
    }  # fmt: skip
