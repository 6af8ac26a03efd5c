"""Pixels of CMMD (8 bits) and CBIS-DDSM (secondary captures of film): readable, on the right side, noted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from lobule.cohort import Case, Cohort, read_cohort, write_cohort
from lobule.errors import NotAMammogram
from lobule.layouts import read_layout
from lobule.mammograms.dicom_codes import overrides_of
from lobule.mammograms.exam_views import ExamView, ViewOptions, open_views, readable_views
from lobule.mammograms.exams import read_view
from lobule.mammograms.views import VIEWS
from lobule.phantoms._mammogram_dicom import dicom_dataset, write_dicom
from lobule.phantoms.exams import ExamImages, ExamPhantom, render_exam
from tests.layouts.support import write_lines
from tests.methods.four_view.support import bundle_of, result_of, run

OPTIONS = ViewOptions(crop_iterations=4, crop_buffer=6, window=(192, 128))
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@pytest.fixture(scope="module")
def rendered() -> ExamImages:
    return render_exam(ExamPhantom(7, height=300, width=220))


def dataset_of(rendered: ExamImages, view: str, patient: str) -> Dataset:
    return dicom_dataset(
        rendered.images[view], view, rendered.mm_per_px, seed=0, patient=patient, horizontal_flip="NO"
    )


def to_8_bits(dataset: Dataset) -> None:
    pixels = np.frombuffer(dataset.PixelData, "<u2")
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = np.ceil(pixels / 16.06).astype(np.uint8).tobytes()
    dataset.WindowCenter, dataset.WindowWidth = 128.0, 256.0


def write_cmmd(folder: Path, rendered: ExamImages) -> Cohort:
    for number, view in enumerate(VIEWS, 1):
        dataset = dataset_of(rendered, view, "D1-0001")
        to_8_bits(dataset)
        path = folder / f"CMMD/D1-0001/07-18-2010-NA-NA-1/1.000000-NA-2/1-{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_dicom(path, dataset)
    header = "ID1,LeftRight,Age,number,abnormality,classification,subtype"
    write_lines(folder / "CMMD_clinicaldata_revision.csv", header, "D1-0001,L,44,2,mass,Malignant,")
    return read_layout("cmmd", folder)


def write_cbis(folder: Path, rendered: ExamImages, **changes: object) -> Cohort:
    for view in VIEWS:
        side, angle = {"L": "LEFT", "R": "RIGHT"}[view[0]], view[2:]
        name = f"Mass-Training_P_00001_{side}_{angle}"
        dataset = dataset_of(rendered, view, name)
        dataset.SOPClassUID = SECONDARY_CAPTURE
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") * 16).astype("<u2").tobytes()
        for keyword in ("ViewCodeSequence", "ImageLaterality", "PatientOrientation", "ImagerPixelSpacing",
                        "FieldOfViewHorizontalFlip", "WindowCenter", "WindowWidth"):  # fmt: skip
            delattr(dataset, keyword)
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        path = folder / f"CBIS-DDSM/{name}/07-20-2016-DDSM-NA-1/1.000000-full mammogram images-2/1-1.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_dicom(path, dataset)
    write_lines(
        folder / "mass_case_description_train_set.csv",
        "patient_id,left or right breast,image view,abnormality id,pathology,ROI mask file path",
        "P_00001,LEFT,CC,1,MALIGNANT,Mass-Training_P_00001_LEFT_CC_1/1.2/1.3/000000.dcm",
    )
    return read_layout("cbis-ddsm", folder)


def exam_as_acquired(folder: Path, rendered: ExamImages) -> Case:
    """The same exam as mammograms For Presentation of 12 bits."""
    views = {}
    for view in VIEWS:
        write_dicom(folder / f"{view}.dcm", dataset_of(rendered, view, "P1"))
        views[view.lower().replace("-", "_")] = (str(folder / f"{view}.dcm"),)
    return Case("plain", "P1", "exam", views=views)


def opened(case: Case) -> dict[str, ExamView]:
    images = readable_views(open_views(case, OPTIONS, joined=True))
    assert list(images) == list(VIEWS)
    return images


@pytest.mark.parametrize("write", [write_cmmd, write_cbis])
def test_the_exam_is_that_of_the_original_pixels(write, rendered: ExamImages, tmp_path: Path) -> None:
    """Side, projection, direction and crop agree with those of the images For Presentation."""
    manifest = tmp_path / "cohort.csv"
    write_cohort(write(tmp_path / "data", rendered), manifest)
    images = opened(read_cohort(manifest).cases[0])
    expected = opened(exam_as_acquired(tmp_path, rendered))
    for view, image in images.items():
        assert image.mammogram.view == view == image.mammogram.heading.view
        assert image.crop == expected[view].crop and image.centre == expected[view].centre
        assert image.mammogram.horizontal_flip == "NO"
        values, original = image.pixels.astype(float), expected[view].pixels.astype(float)
        standardised = (values - values.mean()) / values.std(), (original - original.mean()) / original.std()
        # A step of 8 bits is 16 steps of 12 bits.
        assert np.abs(standardised[0] - standardised[1]).max() < 17 / original.std()


def test_results_note_that_the_pixels_are_of_another_kind(rendered: ExamImages, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle")
    cmmd, cbis = write_cmmd(tmp_path / "cmmd", rendered), write_cbis(tmp_path / "cbis", rendered)
    plain = exam_as_acquired(tmp_path, rendered)
    run(bundle, Cohort((*cmmd, *cbis, plain)), tmp_path / "results")
    results = {name: result_of(tmp_path / "results", name) for name in ("D1-0001", "P_00001", "plain")}
    assert results["plain"]["notes"] == []
    (depth,) = results["D1-0001"]["notes"]
    assert depth.startswith("L-CC, R-CC, L-MLO, R-MLO: It stores 8 bits") and "trained on" in depth
    notes = results["P_00001"]["notes"]
    assert "secondary capture" in notes[0] and "trained on" in notes[0]
    assert "R-CC, R-MLO: It states no side; the manifest says R, which is used." in notes
    for name in ("D1-0001", "P_00001"):
        assert results[name]["status"] == "complete"
        assert results[name]["scores"] == pytest.approx(results["plain"]["scores"], abs=2e-3)


def test_without_the_column_they_are_refused(rendered: ExamImages, tmp_path: Path) -> None:
    for cohort in (write_cmmd(tmp_path / "cmmd", rendered), write_cbis(tmp_path / "cbis", rendered)):
        (case,) = cohort
        with pytest.raises(NotAMammogram, match=r"8 bits|secondary capture"):
            open_views(Case("x", "p", "exam", views=case.views), OPTIONS, joined=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"ImageLaterality": "R"}, "shows another view"), ({"ViewPosition": "CC"}, "shows another view"),
     ({"ViewPosition": "LM"}, "does not say CC or MLO"), ({"ImageLaterality": "B"}, "left or right")],
)  # fmt: skip
def test_a_header_that_contradicts_the_manifest_is_refused(
    changes, message, rendered, tmp_path: Path
) -> None:
    (case,) = write_cbis(tmp_path, rendered, **changes)
    with pytest.raises(NotAMammogram, match=message):
        read_view(case.views["l_mlo"][0], view="L-MLO", allow=overrides_of(case.value("allow")))


def test_film_that_is_dark_where_the_breast_is_dense_is_inverted(rendered, tmp_path: Path) -> None:
    (bright,) = write_cbis(tmp_path / "bright", rendered)
    stored = 65535 - (rendered.images["L-CC"].astype(np.int64) * 16)
    dark_film = {"PhotometricInterpretation": "MONOCHROME1", "PixelData": stored.astype("<u2").tobytes()}
    (dark,) = write_cbis(tmp_path / "dark", rendered, **dark_film)
    allow = overrides_of(bright.value("allow"))
    values = read_view(bright.views["l_cc"][0], view="L-CC", allow=allow).pixels
    inverted = read_view(dark.views["l_cc"][0], view="L-CC", allow=allow)
    assert np.array_equal(values, inverted.pixels) and (values > 0).any()
    assert "MONOCHROME1" in " ".join(decision.sentence for decision in inverted.decisions)


def test_unknown_words_of_the_column_are_refused() -> None:
    assert overrides_of(" 8-bit;Secondary  Capture ") == {"8-bit", "secondary capture"}
    assert overrides_of(None) == overrides_of("") == frozenset()
    with pytest.raises(NotAMammogram, match="eight bits"):
        overrides_of("eight bits")
