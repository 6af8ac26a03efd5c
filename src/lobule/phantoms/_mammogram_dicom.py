"""Write one generated view as a DICOM file: complete for its class, or wrong in one chosen way for tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lobule.errors import MissingExtra

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

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
VIEW_CODES = {
    "CC": ("399162004", "SCT", "cranio-caudal"),
    "MLO": ("399368009", "SCT", "medio-lateral oblique"),
}
TRANSFER_SYNTAXES = {
    "explicit": "1.2.840.10008.1.2.1",
    "implicit": "1.2.840.10008.1.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
}

Code = tuple[str, str, str]
"""Code value, coding scheme and meaning."""


@dataclass(frozen=True)
class DicomOptions:
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


def made_up_uid(*values: object) -> str:
    """A UID under the root for UUIDs; the same values give the same UID."""
    digest = hashlib.sha256("|".join(str(value) for value in values).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


def write_dicom(
    path: Path | str, pixels: NDArray[np.uint16], view: str, mm_per_px: float, options: DicomOptions
) -> Path:
    """Write 12-bit pixels (background 0, breast bright) as one DICOM file."""
    try:
        import pydicom
        from pydicom.dataset import Dataset, FileMetaDataset
    except ImportError as error:
        raise MissingExtra("mammography", "Writing DICOM mammograms") from error
    dataset = Dataset()
    _identify(dataset, view, options)
    _describe_acquisition(dataset, view, options, mm_per_px)
    _describe_pixels(dataset, pixels, options)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.ImplementationClassUID = made_up_uid("lobule")
    meta.ImplementationVersionName = "LOBULE"
    syntax = options.transfer_syntax
    meta.TransferSyntaxUID = TRANSFER_SYNTAXES["explicit" if syntax != "implicit" else syntax]
    dataset.file_meta = meta
    if syntax == "rle":
        dataset.compress(TRANSFER_SYNTAXES[syntax], generate_instance_uid=False)
    elif syntax == "jpeg2000":
        _compress_jpeg2000(dataset)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return Path(path)


def _compress_jpeg2000(dataset: Dataset) -> None:
    """Compress losslessly; pydicom could call this codec only through a further package."""
    try:
        from openjpeg.utils import encode_array
    except ImportError as error:
        raise MissingExtra("mammography", "Writing JPEG 2000 mammograms") from error
    from pydicom.encaps import encapsulate

    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    coded = [encode_array(frame, bits_stored=12, photometric_interpretation=2) for frame in frames]
    dataset.PixelData = encapsulate([bytes(frame) for frame in coded])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = TRANSFER_SYNTAXES["jpeg2000"]


def _identify(dataset: Dataset, view: str, options: DicomOptions) -> None:
    """Patient, study, series, equipment and the object itself."""
    study = (options.seed, options.patient, options.date)
    dataset.SOPClassUID = SOP_CLASSES[options.form]
    dataset.SOPInstanceUID = made_up_uid("image", view, options)
    dataset.PatientName = f"{options.patient}^GENERATED"
    dataset.PatientID = options.patient
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "F"
    dataset.StudyInstanceUID = made_up_uid("study", *study)
    dataset.SeriesInstanceUID = made_up_uid("series", view, options.form, *study)
    dataset.StudyDate = dataset.ContentDate = dataset.AcquisitionDate = options.date
    dataset.StudyTime = dataset.ContentTime = dataset.AcquisitionTime = options.time
    dataset.ReferringPhysicianName = dataset.StudyID = dataset.AccessionNumber = ""
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = options.instance
    dataset.Manufacturer = "Lobule phantoms"
    dataset.Modality = {"secondary capture": "OT", "computed": "CR", "digital": "DX"}.get(options.form, "MG")
    dataset.PresentationIntentType = "FOR PROCESSING" if options.form == "processing" else "FOR PRESENTATION"
    if options.form == "secondary capture":
        dataset.ConversionType = "WSD"


def _describe_acquisition(dataset: Dataset, view: str, options: DicomOptions, mm_per_px: float) -> None:
    """Anatomy, view, side, orientation and the detector."""
    side, kind = view.split("-")
    right = (side == "L") == (options.horizontal_flip == "NO")
    down = {"L": "R", "R": "L"}[side]
    dataset.ImageType = list(options.image_type)
    dataset.ImageLaterality = options.laterality or side
    dataset.PatientOrientation = ["A" if right else "P", down if kind == "CC" else f"F{down}"]
    dataset.FieldOfViewRotation = 0
    dataset.FieldOfViewHorizontalFlip = options.horizontal_flip
    dataset.AnatomicRegionSequence = [_code("71854001", "SCT", "Breast")]
    view_item = _code(*(options.view_code or VIEW_CODES[kind]))
    view_item.ViewModifierCodeSequence = [_code(*modifier) for modifier in options.modifiers]
    dataset.ViewCodeSequence = [view_item]
    if options.view_position is not None:
        dataset.ViewPosition = options.view_position
    dataset.PositionerType = "MAMMOGRAPHIC"
    dataset.BodyPartExamined = "BREAST"
    dataset.OrganExposed = "BREAST"
    dataset.BreastImplantPresent = "YES" if options.implant else "NO"
    dataset.PartialView = "YES" if options.partial else "NO"
    dataset.BurnedInAnnotation = "YES" if options.burned_in else "NO"
    dataset.QualityControlImage = "YES" if options.quality_control else "NO"
    dataset.DetectorType = "DIRECT"
    dataset.ImagerPixelSpacing = dataset.PixelSpacing = [round(mm_per_px, 6)] * 2
    dataset.AcquisitionContextSequence = []


def _describe_pixels(dataset: Dataset, pixels: NDArray[np.uint16], options: DicomOptions) -> None:
    inverse = options.photometric == "MONOCHROME1"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = options.photometric
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = 1 if inverse else -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    dataset.LossyImageCompression = "00"
    if options.window is not None:
        dataset.WindowCenter, dataset.WindowWidth = options.window
        if options.voi_function:
            dataset.VOILUTFunction = options.voi_function
    if options.padding is not None:
        dataset.PixelPaddingValue = options.padding
    if options.frames > 1 or options.form == "tomosynthesis":
        dataset.NumberOfFrames = options.frames
    stored = (4095 - pixels if inverse else pixels).astype("<u2")
    dataset.PixelData = stored.tobytes() * options.frames


def _code(value: str, scheme: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
