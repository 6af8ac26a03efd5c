"""Every code and class that decides on a mammogram, listed independently, with the expected decision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lobule.mammograms.dicom import examine_dicom, read_dicom
from lobule.mammograms.dicom_codes import Override
from tests.mammograms.sample_files import pixels_of, write_view

pydicom = pytest.importorskip("pydicom")

OTHER_VIEWS = {
    "399260004": "R-10224", "399352003": "R-10228", "399099002": "R-10230", "399192008": "R-1024A",
    "399101009": "R-1024B", "399196006": "R-10244", "399188001": "R-102D0", "441555000": "R-40AAA",
}  # fmt: skip
"""ML, LM, LMO, XCCL, XCCM, FB, SIO, ISO: SNOMED CT codes and their older names."""
MODIFIERS = (
    "399163009", "399055006", "399209000", "399197002", "399226006", "415670009", "414493004", "399161006",
    "399110001", "399011000",
)  # fmt: skip
"""Magnified, spot, implant displaced, rolled (four), cleavage, tangential, axillary tail."""
NEVER = {
    "1.2.840.10008.5.1.4.1.1.1.2.1": "For Processing",
    "1.2.840.10008.5.1.4.1.1.13.1.3": "tomosynthesis",
    "1.2.840.10008.5.1.4.1.1.13.1.4": "projection",
    "1.2.840.10008.5.1.4.1.1.13.1.5": "projection",
}
ONLY_IF_ALLOWED: dict[str, Override] = {
    "1.2.840.10008.5.1.4.1.1.7": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.7.1": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.7.2": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.7.3": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.7.4": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.1": "computed radiography",
    "1.2.840.10008.5.1.4.1.1.1.1": "digital x-ray",
}


def refusals(heading) -> dict[str, str]:
    return {decision.rule: decision.sentence for decision in heading.refusals}


@pytest.mark.parametrize(
    ("code", "scheme"),
    [(code, "SCT") for code in OTHER_VIEWS] + [(code, "SRT") for code in OTHER_VIEWS.values()],
)
def test_unsupported_views_are_refused(tmp_path, code, scheme):
    heading = examine_dicom(write_view(tmp_path / "v.dcm", view_code=(code, scheme, "some view")))
    assert set(refusals(heading)) == {"view"}
    assert "neither CC nor MLO" in refusals(heading)["view"]
    assert heading.view is None


def test_unknown_view_code_is_refused(tmp_path):
    heading = examine_dicom(write_view(tmp_path / "v.dcm", view_code=("123", "99VENDOR", "novel view")))
    assert "novel view" in refusals(heading)["view"]


@pytest.mark.parametrize("code", MODIFIERS)
@pytest.mark.parametrize("at_top", [False, True])
def test_special_views(tmp_path, code, at_top):
    """The modifiers belong inside the item of the view, but some systems write them next to it."""

    def move_out(dataset):
        if at_top:
            dataset.ViewModifierCodeSequence = dataset.ViewCodeSequence[0].ViewModifierCodeSequence
            del dataset.ViewCodeSequence[0].ViewModifierCodeSequence

    path = write_view(tmp_path / "v.dcm", modifiers=((code, "SCT", "m"),), change=move_out)
    assert set(refusals(examine_dicom(path))) == {"modifier"}


@pytest.mark.parametrize("sop_class", [*NEVER, *ONLY_IF_ALLOWED])
def test_storage_classes(tmp_path, sop_class):
    def change(dataset):
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class

    path = write_view(tmp_path / "v.dcm", change=change)
    assert "class" in refusals(examine_dicom(path))
    overrides: list[Override] = [
        "secondary capture",
        "computed radiography",
        "digital x-ray",
        "synthesised",
        "8-bit",
    ]
    required_override = ONLY_IF_ALLOWED.get(sop_class)
    assert ("class" in refusals(examine_dicom(path, allow=overrides))) == (sop_class in NEVER)
    if required_override is None:
        assert NEVER[sop_class] in refusals(examine_dicom(path))["class"]
    else:
        assert examine_dicom(path, allow=[required_override]).is_usable


@pytest.mark.parametrize("value", ["TOMO", "GENERATED_2D", "VOLUME"])
def test_images_made_from_tomosynthesis(tmp_path, value):
    path = write_view(tmp_path / "v.dcm", image_type=("DERIVED", "PRIMARY", "", value))
    assert set(refusals(examine_dicom(path))) == {"synthesised"}
    assert examine_dicom(path, allow=["synthesised"]).is_usable


def test_first_voi_table_is_used_before_windows(tmp_path):
    def table(scale: int) -> Any:
        item = pydicom.Dataset()
        item.add_new("LUTDescriptor", "US", [4096, 0, 12])
        item.add_new("LUTData", "OW", np.minimum(np.arange(4096) * scale, 4095).astype("<u2").tobytes())
        return item

    def change(dataset):
        dataset.VOILUTSequence = [table(2), table(1)]

    path = write_view(tmp_path / "v.dcm", change=change)
    expected = np.minimum(pixels_of().astype(int) * 2, 4095)
    assert np.array_equal(read_dicom(path, pixels="voi").pixels, expected)
    assert np.array_equal(read_dicom(path).pixels, pixels_of())

    def two_windows(dataset):
        dataset.WindowCenter, dataset.WindowWidth = [2048.0, 100.0], [4096.0, 10.0]

    path = write_view(tmp_path / "w.dcm", change=two_windows)
    assert np.abs(read_dicom(path, pixels="voi").pixels.astype(int) - pixels_of()).max() <= 1


def test_lossless_jpeg(tmp_path):
    """JPEG Lossless, First-Order Prediction; written by one codec and read by another."""
    ljpeg_encode = pytest.importorskip("imagecodecs").ljpeg_encode
    from pydicom.encaps import encapsulate

    def compress(dataset):
        coded = ljpeg_encode(pixels_of(), bitspersample=12)
        dataset.PixelData = encapsulate([bytes(coded) + b"\0" * (len(coded) % 2)])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1

    assert np.array_equal(read_dicom(write_view(tmp_path / "v.dcm", change=compress)).pixels, pixels_of())


@pytest.mark.parametrize(
    "tag", ["SOPClassUID", "Modality", "ImageLaterality", "ViewCodeSequence", "Rows", "BitsStored"]
)
def test_missing_tag_gives_a_sentence_instead_of_a_guess(tmp_path, tag):
    from lobule.errors import CaseError

    with pytest.raises(CaseError) as caught:
        read_dicom(write_view(tmp_path / "v.dcm", change=lambda dataset: delattr(dataset, tag)))
    assert "v.dcm" in str(caught.value)


def test_tags_that_may_be_missing(tmp_path):
    """Patient, dates, spacing and orientation are not needed to read a view."""

    def change(dataset):
        for name in (
            "PatientID", "AcquisitionDate", "ContentDate", "StudyDate", "ImagerPixelSpacing", "PixelSpacing",
            "PatientOrientation", "FieldOfViewHorizontalFlip", "WindowCenter", "WindowWidth", "ImageType",
        ):  # fmt: skip
            delattr(dataset, name)

    mammogram = read_dicom(write_view(tmp_path / "v.dcm", change=change))
    assert np.array_equal(mammogram.pixels, pixels_of())
    heading = mammogram.heading
    assert (heading.patient, heading.acquired, heading.mm_per_px, heading.pointing) == (None, "", None, None)
    assert mammogram.pointing == "right"
