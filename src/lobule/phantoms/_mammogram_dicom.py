"""Generated views as DICOM data sets: mammograms For Presentation with all attributes of their class."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import MissingExtra

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
VIEW_CODES = {
    "CC": ("399162004", "SCT", "cranio-caudal"),
    "MLO": ("399368009", "SCT", "medio-lateral oblique"),
}
DATE, TIME = "20200102", "101112"

IMAGE_IDENTITY = (
    "DicomOptions(seed={seed!r}, patient={patient!r}, horizontal_flip={flip!r}, form='presentation', "
    "photometric='MONOCHROME2', image_type=('DERIVED', 'PRIMARY'), view_code=None, view_position=None, "
    "laterality=None, modifiers=(), implant=False, partial=False, burned_in=False, quality_control=False, "
    "frames=1, window=(2048.0, 4096.0), voi_function=None, padding=None, date='20200102', time='101112', "
    "instance=1, transfer_syntax='explicit')"
)
"""The text whose hash identifies an image. It must not change, so that generated files keep their bytes."""


def made_up_uid(*values: object) -> str:
    """A UID under the root for UUIDs; the same values give the same UID."""
    digest = hashlib.sha256("|".join(str(value) for value in values).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


def write_dicom(path: Path, dataset: Dataset) -> None:
    """Write a data set as a DICOM file."""
    import pydicom
    from pydicom.dataset import FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.ImplementationClassUID = made_up_uid("lobule")
    meta.ImplementationVersionName = "LOBULE"
    meta.TransferSyntaxUID = EXPLICIT_LITTLE_ENDIAN
    dataset.file_meta = meta
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def dicom_dataset(
    pixels: NDArray[np.uint16], view: str, mm_per_px: float, *, seed: int, patient: str, horizontal_flip: str
) -> Dataset:
    """The data set of 12-bit pixels with a background of 0 and a bright breast."""
    try:
        from pydicom.dataset import Dataset
    except ImportError as error:
        raise MissingExtra("mammography", "Writing DICOM mammograms") from error
    dataset = Dataset()
    identity = IMAGE_IDENTITY.format(seed=seed, patient=patient, flip=horizontal_flip)
    dataset.SOPInstanceUID = made_up_uid("image", view, identity)
    _identify(dataset, view, seed, patient)
    _describe_acquisition(dataset, view, horizontal_flip, mm_per_px)
    _describe_pixels(dataset, pixels)
    return dataset


def _identify(dataset: Dataset, view: str, seed: int, patient: str) -> None:
    """Patient, study, series and equipment."""
    dataset.SOPClassUID = FOR_PRESENTATION
    dataset.PatientName = f"{patient}^GENERATED"
    dataset.PatientID = patient
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "F"
    dataset.StudyInstanceUID = made_up_uid("study", seed, patient, DATE)
    dataset.SeriesInstanceUID = made_up_uid("series", view, "presentation", seed, patient, DATE)
    dataset.StudyDate = dataset.ContentDate = dataset.AcquisitionDate = DATE
    dataset.StudyTime = dataset.ContentTime = dataset.AcquisitionTime = TIME
    dataset.ReferringPhysicianName = dataset.StudyID = dataset.AccessionNumber = ""
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.Manufacturer = "Lobule phantoms"
    dataset.Modality = "MG"
    dataset.PresentationIntentType = "FOR PRESENTATION"


def _describe_acquisition(dataset: Dataset, view: str, horizontal_flip: str, mm_per_px: float) -> None:
    """Anatomy, view, side, orientation and the detector."""
    side, kind = view.split("-")
    right = (side == "L") == (horizontal_flip == "NO")
    down = {"L": "R", "R": "L"}[side]
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.ImageLaterality = side
    dataset.PatientOrientation = ["A" if right else "P", down if kind == "CC" else f"F{down}"]
    dataset.FieldOfViewRotation = 0
    dataset.FieldOfViewHorizontalFlip = horizontal_flip
    dataset.AnatomicRegionSequence = [code_item("71854001", "SCT", "Breast")]
    view_item = code_item(*VIEW_CODES[kind])
    view_item.ViewModifierCodeSequence = []
    dataset.ViewCodeSequence = [view_item]
    dataset.PositionerType = "MAMMOGRAPHIC"
    dataset.BodyPartExamined = dataset.OrganExposed = "BREAST"
    dataset.BreastImplantPresent = dataset.PartialView = "NO"
    dataset.BurnedInAnnotation = dataset.QualityControlImage = "NO"
    dataset.DetectorType = "DIRECT"
    dataset.ImagerPixelSpacing = dataset.PixelSpacing = [round(mm_per_px, 6)] * 2
    dataset.AcquisitionContextSequence = []


def _describe_pixels(dataset: Dataset, pixels: NDArray[np.uint16]) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.LossyImageCompression = "00"
    dataset.WindowCenter, dataset.WindowWidth = 2048.0, 4096.0
    dataset.PixelData = pixels.astype("<u2").tobytes()


def code_item(value: str, scheme: str, meaning: str) -> Any:
    """An item of a code sequence."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
