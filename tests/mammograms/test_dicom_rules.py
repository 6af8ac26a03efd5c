"""Every rule for DICOM mammograms, with a file that triggers it and the expected decision."""

from __future__ import annotations

import numpy as np
import pytest

from lobule.errors import (
    CaseError,
    DamagedFile,
    MissingExtra,
    NotAMammogram,
    NotReadable,
    TooLarge,
    UnknownFormat,
)
from lobule.mammograms import dicom_codes
from lobule.mammograms.dicom import examine_dicom, read_dicom
from lobule.mammograms.views import VIEWS
from tests.mammograms.sample_files import blob, pixels_of, write_view

pydicom = pytest.importorskip("pydicom")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "view.dcm"


def outcomes(heading):
    return {decision.rule: decision.outcome for decision in heading.decisions}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("flip", ["NO", "YES"])
def test_valid_mammogram_is_accepted(path, view, flip):
    mammogram = read_dicom(write_view(path, view, horizontal_flip=flip))
    assert np.array_equal(mammogram.pixels, pixels_of(view, flip))
    assert (mammogram.view, mammogram.horizontal_flip) == (view, flip)
    assert {decision.outcome for decision in mammogram.decisions} == {"accepted"}
    heading = mammogram.heading
    assert (heading.patient, heading.height, heading.width) == ("P1", 208, 152)
    assert heading.mm_per_px == pytest.approx(1.15)
    assert heading.acquired == "20200102101112"
    assert heading.pointing == mammogram.pointing


TYPE_1 = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
    "PresentationIntentType", "ImageType", "SamplesPerPixel", "PhotometricInterpretation", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
    "PixelIntensityRelationship", "PixelIntensityRelationshipSign", "RescaleIntercept", "RescaleSlope",
    "RescaleType", "PresentationLUTShape", "LossyImageCompression", "PatientOrientation",
    "BurnedInAnnotation", "ImagerPixelSpacing", "PositionerType", "ImageLaterality",
    "AnatomicRegionSequence", "ViewCodeSequence", "OrganExposed", "WindowCenter", "WindowWidth",
    "PixelSpacing",
]  # fmt: skip
TYPE_2 = [
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber", "SeriesNumber", "InstanceNumber",
    "Manufacturer", "DetectorType", "AcquisitionContextSequence",
]  # fmt: skip


def test_written_files_have_all_required_attributes(path):
    dataset = pydicom.dcmread(write_view(path))
    for name in TYPE_1:
        assert name in dataset, name
        assert dataset[name].value not in (None, ""), name
    for name in TYPE_2:
        assert name in dataset, name
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert all(
        uid.is_valid and uid.startswith("2.25.") for uid in (dataset.SOPInstanceUID, dataset.StudyInstanceUID)
    )
    code = dataset.ViewCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("399162004", "SCT")
    assert "ViewModifierCodeSequence" in code


REFUSED = [
    ({"form": "processing"}, "class", "raw detector data"),
    ({"form": "tomosynthesis", "frames": 3}, "class", "tomosynthesis"),
    ({"form": "projection"}, "class", "projection"),
    ({"form": "secondary capture"}, "class", "secondary capture.*allowed"),
    ({"form": "computed"}, "class", "computed radiography.*allowed"),
    ({"form": "digital"}, "class", "digital x-ray.*allowed"),
    ({"frames": 2}, "frames", "2 frames"),
    (
        {"image_type": ("DERIVED", "PRIMARY", "TOMO", "GENERATED_2D")},
        "synthesised",
        "made from tomosynthesis",
    ),
    ({"partial": True}, "partial", "a part of the breast"),
    ({"quality_control": True}, "quality control", "quality control"),
    ({"view_code": ("399260004", "SCT", "medio-lateral")}, "view", "medio-lateral, neither"),
    ({"view_code": ("R-102D0", "SRT", "SIO")}, "view", "superolateral"),
    ({"view_code": ("127457009", "SCT", "specimen")}, "view", "specimen"),
    ({"view_position": "MLO"}, "view", "CC, ViewPosition MLO: they conflict"),
    ({"laterality": "B"}, "side", "left or right .laterality is B"),
    *(
        ({"modifiers": ((code, "SCT", name),)}, "modifier", name)
        for code, name in dicom_codes.MODIFIERS.items()
    ),
]


@pytest.mark.parametrize(("options", "rule", "sentence"), REFUSED)
def test_refused_images_have_a_reason(path, options, rule, sentence):
    heading = examine_dicom(write_view(path, **options))
    assert outcomes(heading)[rule] == "refused"
    assert not heading.is_usable
    with pytest.raises(NotAMammogram, match=sentence):
        read_dicom(path)


@pytest.mark.parametrize(
    ("override", "options"),
    [
        ("secondary capture", {"form": "secondary capture"}),
        ("computed radiography", {"form": "computed"}),
        ("digital x-ray", {"form": "digital"}),
        ("synthesised", {"image_type": ("DERIVED", "PRIMARY", "TOMO")}),
    ],
)
def test_overrides_accept_their_kind_and_are_recorded(path, override, options):
    write_view(path, **options)
    assert not examine_dicom(path).is_usable
    other_overrides = {"secondary capture", "computed radiography", "digital x-ray", "synthesised"} - {
        override
    }
    assert not examine_dicom(path, allow=other_overrides).is_usable
    mammogram = read_dicom(path, allow={override})
    assert np.array_equal(mammogram.pixels, pixels_of())
    (allowance,) = mammogram.heading.allowances
    assert allowance.outcome == "allowed" and mammogram.decisions.index(allowance) >= 0


def spoil(**changes):
    def change(dataset):
        for name, value in changes.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "rule", "sentence"),
    [
        (spoil(PresentationIntentType="FOR PROCESSING"), "class", "FOR PROCESSING"),
        (spoil(Modality="US"), "class", "modality is US"),
        (spoil(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), "class", "not a mammogram For Presentation"),
        (spoil(SamplesPerPixel=3), "samples", "3 samples"),
        (spoil(BitsStored=8), "depth", "8 bits"),
        (spoil(Laterality="R"), "side", "ImageLaterality says L, Laterality R: they conflict"),
        (spoil(ImageLaterality=None), "side", "left or right"),
        (spoil(ViewCodeSequence=[]), "view", "CC or MLO .ViewPosition is absent"),
    ],
)
def test_inconsistent_headers_are_refused(path, change, rule, sentence):
    heading = examine_dicom(write_view(path, change=change))
    assert outcomes(heading)[rule] == "refused"
    with pytest.raises(NotAMammogram, match=sentence):
        read_dicom(path)


@pytest.mark.parametrize("code", [("R-10242", "CC"), ("R-10226", "MLO"), ("399368009", "MLO")])
def test_view_codes_old_and_new(path, code):
    value, angle = code
    assert examine_dicom(write_view(path, view_code=(value, "SRT", "view"))).view == f"L-{angle}"


def test_fallbacks_for_view_and_side(path):
    def change(dataset):
        del dataset.ViewCodeSequence
        del dataset.ImageLaterality
        dataset.ViewPosition, dataset.Laterality = "MLO", "R"

    heading = examine_dicom(write_view(path, change=change))
    assert heading.view == "R-MLO"
    assert {d.sentence for d in heading.decisions} >= {"ViewPosition says MLO.", "Laterality says R."}


def test_flags_are_noted_and_not_refused(path):
    heading = examine_dicom(
        write_view(path, implant=True, burned_in=True, modifiers=(("399011111", "SCT", "novel"),))
    )
    assert heading.is_usable
    assert {outcomes(heading)[rule] for rule in ("implant", "annotation", "modifier")} == {"noted"}


def test_monochrome1_is_inverted(path):
    mammogram = read_dicom(write_view(path, photometric="MONOCHROME1"))
    assert np.array_equal(mammogram.pixels, pixels_of())
    assert "MONOCHROME1: values were inverted." in {d.sentence for d in mammogram.decisions}


def test_padding_is_tested_on_stored_values_and_set_to_0(path):
    pixels = pixels_of().copy()
    background = pixels == 0
    pixels[background] = 4095
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        stored_padding = 0 if photometric == "MONOCHROME1" else 4095
        write_view(path, pixels=pixels, photometric=photometric, padding=stored_padding)
        pixels_read = read_dicom(path).pixels
        assert not pixels_read[background].any()
        lit = ~background & (pixels < 4095)
        assert np.array_equal(pixels_read[lit], pixels[lit])


def test_a_padding_range(path):
    pixels = np.minimum(pixels_of(), 4000)
    background = pixels == 0
    pixels[background] = np.where(np.arange(background.sum()) % 2, 4090, 4095)
    write_view(path, pixels=pixels, padding=4090, change=lambda d: d.add_new(0x00280121, "US", 4095))
    pixels_read = read_dicom(path).pixels
    assert np.array_equal(pixels_read, np.where(background, 0, pixels))


def test_windows_are_applied_only_on_request(path):
    pixels = np.where(pixels_of() > 0, 1000 + pixels_of() // 4, 0).astype(np.uint16)
    write_view(path, pixels=pixels, window=(1500.0, 1000.0))
    assert np.array_equal(read_dicom(path).pixels, pixels)
    voi = read_dicom(path, pixels="voi")
    expected = np.clip(((pixels - 1499.5) / 999 + 0.5) * 4095, 0, 4095)
    assert np.abs(voi.pixels - expected).max() <= 0.5001
    assert "The file's first VOI table or window was applied." in {d.sentence for d in voi.decisions}


@pytest.mark.parametrize(
    ("function", "curve"),
    [
        ("LINEAR_EXACT", lambda x: np.clip((x - 1500) / 1000 + 0.5, 0, 1) * 4095),
        ("SIGMOID", lambda x: 4095 / (1 + np.exp(-4 * (x - 1500) / 1000))),
    ],
)
def test_voi_functions(path, function, curve):
    pixels = np.where(pixels_of() > 0, 1000 + pixels_of() // 4, 0).astype(np.uint16)
    write_view(path, pixels=pixels, window=(1500.0, 1000.0), voi_function=function, padding=0)
    pixels_read = read_dicom(path, pixels="voi").pixels
    inside = (pixels > 1100) & (pixels_read > 0)
    assert np.abs(pixels_read[inside] - curve(pixels[inside].astype(float))).max() <= 0.5001


def test_rescale_is_applied(path):
    mammogram = read_dicom(write_view(path, change=spoil(RescaleSlope=2, RescaleIntercept=0)))
    assert np.array_equal(mammogram.pixels, 2 * pixels_of())
    assert "rescale" in {decision.rule for decision in mammogram.decisions}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_background_stays_0_with_signed_pixels_and_negative_intercepts(path, photometric):
    stored = 4095 - pixels_of() if photometric == "MONOCHROME1" else pixels_of()

    def signed(dataset):
        dataset.PixelRepresentation = 1
        dataset.PixelData = (stored.astype(np.int32) - 2048).astype("<i2").tobytes()

    assert np.array_equal(
        read_dicom(write_view(path, photometric=photometric, change=signed)).pixels, pixels_of()
    )
    shifted = spoil(RescaleIntercept=-1024)
    assert np.array_equal(
        read_dicom(write_view(path, photometric=photometric, change=shifted)).pixels, pixels_of()
    )


def test_a_modality_table(path):
    table = (np.arange(4096) // 2).astype(np.uint16)

    def change(dataset):
        del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
        item = pydicom.Dataset()
        item.add_new("LUTDescriptor", "US", [4096, 0, 16])
        item.add_new("ModalityLUTType", "LO", "US")
        item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
        dataset.ModalityLUTSequence = [item]

    assert np.array_equal(read_dicom(write_view(path, change=change)).pixels, table[pixels_of()])


def test_pixels_decide_on_the_direction(path):
    turned = np.ascontiguousarray(pixels_of()[:, ::-1])
    mammogram = read_dicom(write_view(path, pixels=turned))
    assert (mammogram.pointing, mammogram.horizontal_flip) == ("left", "YES")
    noted = [d.sentence for d in mammogram.decisions if d.rule == "direction"]
    assert noted[0] == "The header has the breast point right, the pixels left."
    assert "only YES makes the convention" in noted[1]


def test_a_grey_background_is_made_0_and_recorded(path):
    raised = np.minimum(pixels_of() + 150, 4095).astype(np.uint16)
    mammogram = read_dicom(write_view(path, pixels=raised))
    breast = pixels_of() > 0
    assert (mammogram.pixels[breast] > 0).mean() > 0.97
    assert (mammogram.pixels[~breast] > 0).mean() < 0.02
    assert [d.outcome for d in mammogram.decisions if d.rule == "background"] == ["noted"]


@pytest.mark.parametrize("syntax", ["implicit", "rle", "jpeg2000"])
def test_transfer_syntaxes(path, syntax):
    assert np.array_equal(read_dicom(write_view(path, transfer_syntax=syntax)).pixels, pixels_of())


def test_a_missing_codec_names_the_extra(path, monkeypatch):
    write_view(path, transfer_syntax="jpeg2000")
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(
        MissingExtra, match=r"1\.2\.840\.10008\.1\.2\.4\.90 of view\.dcm.*lobule\[mammography\]"
    ):
        read_dicom(path)


def test_damaged_and_foreign_files(tmp_path, path):
    write_view(path, change=lambda d: setattr(d, "PixelData", d.PixelData[:1000]))
    with pytest.raises(DamagedFile, match="cannot be decoded"):
        read_dicom(path)
    assert examine_dicom(path).is_usable, "the header alone is sound"
    write_view(path, change=spoil(PixelData=None))
    with pytest.raises(DamagedFile, match="no pixels"):
        read_dicom(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises((DamagedFile, UnknownFormat, NotAMammogram)):
        read_dicom(path)
    path.write_bytes(b"plain text")
    with pytest.raises(UnknownFormat, match="not a DICOM file"):
        examine_dicom(path)
    with pytest.raises(NotReadable):
        examine_dicom(tmp_path / "absent.dcm")


def test_invalid_windows_and_tables_are_errors(path):
    write_view(path, window=(100.0, 0.0))
    assert np.array_equal(read_dicom(path).pixels, pixels_of()), "raw pixels need no window"
    with pytest.raises(DamagedFile, match="tables or windows cannot be used"):
        read_dicom(path, pixels="voi")


def test_truncated_header_is_an_error_of_its_case(path):
    complete = write_view(path).read_bytes()
    for length in range(128, 3000, 97):
        path.write_bytes(complete[:length])
        with pytest.raises(CaseError):
            read_dicom(path)


def test_sizes_are_checked_before_decoding(path):
    write_view(path, change=spoil(Rows=60000, Columns=60000))
    with pytest.raises(TooLarge, match="60000 × 60000"):
        read_dicom(path)


def test_an_empty_image(path):
    for value in (0, 777):
        with pytest.raises(NotAMammogram, match=r"view\.dcm: the image is empty"):
            read_dicom(write_view(path, pixels=np.full((50, 40), value, np.uint16)))


def test_eight_bits_are_accepted_only_if_allowed(path):
    def change(dataset):
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        dataset.PixelData = (blob() // 8).astype(np.uint8).tobytes()

    write_view(path, pixels=blob(), change=change)
    with pytest.raises(NotAMammogram, match="8 bits"):
        read_dicom(path)
    assert np.array_equal(read_dicom(path, allow={"8-bit"}).pixels, blob() // 8)
