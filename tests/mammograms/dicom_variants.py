"""Generated mammograms as DICOM files that differ from a plain one in chosen attributes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from lobule.phantoms._mammogram_dicom import code_item, dicom_dataset, made_up_uid, write_dicom

Form = Literal[
    "presentation", "processing", "tomosynthesis", "projection", "secondary capture", "computed", "digital"
]
SOP_CLASSES: dict[Form, str] = {
    "presentation": "1.2.840.10008.5.1.4.1.1.1.2",
    "processing": "1.2.840.10008.5.1.4.1.1.1.2.1",
    "tomosynthesis": "1.2.840.10008.5.1.4.1.1.13.1.3",
    "projection": "1.2.840.10008.5.1.4.1.1.13.1.4",
    "secondary capture": "1.2.840.10008.5.1.4.1.1.7",
    "computed": "1.2.840.10008.5.1.4.1.1.1",
    "digital": "1.2.840.10008.5.1.4.1.1.1.1",
}
TRANSFER_SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
}

Code = tuple[str, str, str]
"""Code value, coding scheme and meaning."""


@dataclass(frozen=True)
class Variant:
    """Attributes of the file; the defaults give a valid mammogram For Presentation."""

    seed: int = 0
    patient: str = "PHANTOM"
    horizontal_flip: Literal["NO", "YES"] = "NO"
    form: Form = "presentation"
    photometric: Literal["MONOCHROME2", "MONOCHROME1"] = "MONOCHROME2"
    image_type: tuple[str, ...] = ("DERIVED", "PRIMARY")
    view_code: Code | None = None
    """None writes the standard code of the view."""
    view_position: str | None = None
    laterality: str | None = None
    """None writes the side of the view."""
    modifiers: tuple[Code, ...] = ()
    implant: bool = False
    partial: bool = False
    burned_in: bool = False
    quality_control: bool = False
    frames: int = 1
    window: tuple[float, float] | None = (2048.0, 4096.0)
    voi_function: str | None = None
    padding: int | None = None
    date: str = "20200102"
    time: str = "101112"
    instance: int = 1
    transfer_syntax: Literal["explicit", "implicit", "rle", "jpeg2000"] = "explicit"


def write_variant(
    path: Path, pixels: NDArray[np.uint16], view: str, mm_per_px: float, variant: Variant
) -> None:
    """Write 12-bit pixels (background 0, breast bright) as one DICOM file."""
    dataset = dicom_dataset(
        pixels, view, mm_per_px, seed=variant.seed, patient=variant.patient,
        horizontal_flip=variant.horizontal_flip,
    )  # fmt: skip
    _change_identity(dataset, view, variant)
    _change_view(dataset, variant)
    _change_pixels(dataset, pixels, variant)
    write_dicom(path, dataset)
    if variant.transfer_syntax != "explicit":
        stored = pydicom.dcmread(path)
        _change_syntax(stored, variant.transfer_syntax)
        stored.save_as(path)


def _change_identity(dataset: Dataset, view: str, variant: Variant) -> None:
    study = (variant.seed, variant.patient, variant.date)
    dataset.SOPClassUID = SOP_CLASSES[variant.form]
    dataset.SOPInstanceUID = made_up_uid("image", view, variant)
    dataset.StudyInstanceUID = made_up_uid("study", *study)
    dataset.SeriesInstanceUID = made_up_uid("series", view, variant.form, *study)
    dataset.StudyDate = dataset.ContentDate = dataset.AcquisitionDate = variant.date
    dataset.StudyTime = dataset.ContentTime = dataset.AcquisitionTime = variant.time
    dataset.InstanceNumber = variant.instance
    dataset.Modality = {"secondary capture": "OT", "computed": "CR", "digital": "DX"}.get(variant.form, "MG")
    dataset.PresentationIntentType = "FOR PROCESSING" if variant.form == "processing" else "FOR PRESENTATION"
    if variant.form == "secondary capture":
        dataset.ConversionType = "WSD"


def _change_view(dataset: Dataset, variant: Variant) -> None:
    dataset.ImageType = list(variant.image_type)
    if variant.laterality is not None:
        dataset.ImageLaterality = variant.laterality
    if variant.view_code is not None:
        dataset.ViewCodeSequence = [code_item(*variant.view_code)]
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = [code_item(*each) for each in variant.modifiers]
    if variant.view_position is not None:
        dataset.ViewPosition = variant.view_position
    for name, value in (
        ("BreastImplantPresent", variant.implant),
        ("PartialView", variant.partial),
        ("BurnedInAnnotation", variant.burned_in),
        ("QualityControlImage", variant.quality_control),
    ):
        setattr(dataset, name, "YES" if value else "NO")


def _change_pixels(dataset: Dataset, pixels: NDArray[np.uint16], variant: Variant) -> None:
    if variant.photometric == "MONOCHROME1":
        dataset.PhotometricInterpretation = variant.photometric
        dataset.PixelIntensityRelationshipSign = 1
        dataset.PresentationLUTShape = "INVERSE"
        pixels = (4095 - pixels).astype("<u2")
    if variant.window is None:
        del dataset.WindowCenter, dataset.WindowWidth
    else:
        dataset.WindowCenter, dataset.WindowWidth = variant.window
        if variant.voi_function:
            dataset.VOILUTFunction = variant.voi_function
    if variant.padding is not None:
        dataset.PixelPaddingValue = variant.padding
    if variant.frames > 1 or variant.form == "tomosynthesis":
        dataset.NumberOfFrames = variant.frames
    dataset.PixelData = pixels.astype("<u2").tobytes() * variant.frames


def _change_syntax(dataset: Any, syntax: str) -> None:
    if syntax == "rle":
        dataset.compress(TRANSFER_SYNTAXES[syntax], generate_instance_uid=False)
        return
    if syntax == "jpeg2000":
        frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
        coded = [encode_array(frame, bits_stored=12, photometric_interpretation=2) for frame in frames]
        dataset.PixelData = encapsulate([bytes(frame) for frame in coded])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = TRANSFER_SYNTAXES[syntax]
