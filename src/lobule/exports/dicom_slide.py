"""What DICOM objects of a slide refer to: a generated description of the slide, or its DICOM files.

The description of a slide that is not DICOM has UIDs made from the hash of its content, so all objects of a
slide share a study and a frame of reference, whenever they are written. It names no patient. Its slide
coordinate system has its origin at the centre of level-0 pixel (0, 0), with x and y along the rows and
columns of the image.
"""

from __future__ import annotations

import hashlib
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lobule.dicomweb import is_dicomweb_url
from lobule.errors import CaseError, TooLarge
from lobule.exports.case import ExportCase, ImageFrame
from lobule.exports.dicom_source import datasets_of
from lobule.exports.options import ExportOptions
from lobule.geometry import Size
from lobule.results.result import RESEARCH_USE
from lobule.slides.dicom_series import WHOLE_SLIDE, no_warnings
from lobule.units import Mpp

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

TILE = 512
LONG_STRING = 64
"""Most characters of a value with the representation LO."""
SLICE_MM = 0.001
"""Thickness of the section. It is not known, and DICOM requires a value."""


@dataclass(frozen=True)
class SlideLevel:
    """One resolution of a slide that DICOM objects refer to."""

    dataset: Dataset
    size: Size
    l0_step: tuple[float, float]
    """Level-0 pixels per pixel of this level."""
    l0_offset: tuple[float, float]
    """Level-0 position of the corner of its first pixel."""


def uid(*keys: object) -> str:
    """Return a UID that depends only on the keys."""
    digest = hashlib.sha256("\0".join(map(str, keys)).encode(errors="surrogateescape")).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def identity_of(case: ExportCase, image: str = "slide") -> str:
    """Return what identifies an image of a case: the hash of its content, or else the name of the case."""
    fingerprint = case.frames[image].fingerprint
    return fingerprint or f"case {case.name} image {image}"


def require_mpp(case: ExportCase, frame: ImageFrame) -> Mpp:
    if frame.mpp is None:
        raise CaseError(
            "DICOM objects need the µm/px of the slide, which the result does not state",
            subject=case.name,
            remedy="Scan the slide again with --slide-mpp",
        )
    return frame.mpp


def base_level(case: ExportCase, options: ExportOptions) -> SlideLevel:
    """Return level 0 of the slide."""
    frame = case.frames["slide"]
    mpp = require_mpp(case, frame)
    if _has_dicom_files(case, options):
        return _source_levels(case, options)[0]
    size = frame.size or _size_of_maps(case)
    return described_level(case, size, (1.0, 1.0), mpp, options, 0)


def _size_of_maps(case: ExportCase) -> Size:
    for reader in case.maps.values():
        info = reader.info
        return Size(round(info.columns * info.l0_stride[0]), round(info.rows * info.l0_stride[1]))
    raise CaseError("the result does not state the size of the slide", subject=case.name)


def described_level(
    case: ExportCase,
    size: Size,
    l0_step: tuple[float, float],
    mpp: Mpp,
    options: ExportOptions,
    number: int,
) -> SlideLevel:
    """Describe one resolution of a slide as a DICOM image without pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    identity = identity_of(case)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = WHOLE_SLIDE
    dataset.SOPInstanceUID = uid(identity, "level", number, *size)
    _add_patient_and_study(dataset, case, identity, options)
    dataset.Modality = "SM"
    dataset.SeriesInstanceUID = uid(identity, "series")
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number + 1
    dataset.FrameOfReferenceUID = uid(identity, "frame of reference")
    dataset.PositionReferenceIndicator = "SLIDE_CORNER"
    dataset.PyramidUID = uid(identity, "pyramid")
    dataset.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    dataset.Rows = dataset.Columns = TILE
    dataset.NumberOfFrames = -(-size.width // TILE) * -(-size.height // TILE)
    dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = size
    dataset.TotalPixelMatrixFocalPlanes = 1
    dataset.ImagedVolumeWidth = size.width * l0_step[0] * mpp.x / 1000
    dataset.ImagedVolumeHeight = size.height * l0_step[1] * mpp.y / 1000
    dataset.ImagedVolumeDepth = SLICE_MM
    dataset.DimensionOrganizationType = "TILED_FULL"
    dataset.ImageOrientationSlide = [1, 0, 0, 0, 1, 0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.SpecimenLabelInImage, dataset.FocusMethod, dataset.ExtendedDepthOfField = "NO", "AUTO", "NO"
    dataset.VolumetricProperties = "VOLUME"
    dataset.NumberOfOpticalPaths = 1
    _add_geometry(dataset, l0_step, mpp)
    _add_specimen(dataset, case, identity)
    return SlideLevel(dataset, size, l0_step, (0.0, 0.0))


def _add_patient_and_study(dataset: Dataset, case: ExportCase, identity: str, options: ExportOptions) -> None:
    patient = case.patient if options.show_patients else None
    dataset.SpecificCharacterSet = "ISO_IR 192"
    if patient is not None:
        # Without a caret, highdicom takes a name for a mistake.
        dataset.PatientName = patient if "^" in patient else f"{patient}^"
        dataset.PatientID = patient
    else:
        dataset.PatientName = ""
        dataset.PatientID = hashlib.sha256(identity.encode()).hexdigest()[:16]
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = "Generated for a slide that is not DICOM; names no patient"
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyInstanceUID = uid(identity, "study")
    dataset.StudyDate = dataset.StudyTime = dataset.StudyID = dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.Manufacturer, dataset.ManufacturerModelName = "Lobule", "description of a slide"


def _add_geometry(dataset: Dataset, l0_step: tuple[float, float], mpp: Mpp) -> None:
    from pydicom.dataset import Dataset

    origin = Dataset()
    # The centre of the first pixel, which covers several level-0 pixels.
    origin.XOffsetInSlideCoordinateSystem = (l0_step[0] - 1) / 2 * mpp.x / 1000
    origin.YOffsetInSlideCoordinateSystem = (l0_step[1] - 1) / 2 * mpp.y / 1000
    origin.ZOffsetInSlideCoordinateSystem = 0.0
    dataset.TotalPixelMatrixOriginSequence = [origin]
    measures = Dataset()
    measures.PixelSpacing = [l0_step[1] * mpp.y / 1000, l0_step[0] * mpp.x / 1000]
    measures.SliceThickness = SLICE_MM
    groups = Dataset()
    groups.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [groups]


def _add_specimen(dataset: Dataset, case: ExportCase, identity: str) -> None:
    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset

    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    dataset.ContainerIdentifier = name
    dataset.IssuerOfTheContainerIdentifierSequence = []
    dataset.ContainerTypeCodeSequence = [CodedConcept("433466003", "SCT", "Microscope slide")]
    specimen = Dataset()
    specimen.SpecimenIdentifier = name
    specimen.SpecimenUID = uid(identity, "specimen")
    specimen.IssuerOfTheSpecimenIdentifierSequence = []
    specimen.SpecimenPreparationSequence = []
    specimen.SpecimenTypeCodeSequence = [CodedConcept("119376003", "SCT", "Tissue specimen")]
    dataset.SpecimenDescriptionSequence = [specimen]
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    path.IlluminationTypeCodeSequence = [CodedConcept("111744", "DCM", "Brightfield illumination")]
    path.IlluminationColorCodeSequence = [CodedConcept("414298005", "SCT", "Full Spectrum")]
    dataset.OpticalPathSequence = [path]


# -- levels for maps ----------------------------------------------------------------------------------------

MOST_PIXELS = 1 << 26
"""Largest number of pixels of one object, because they are in memory at once. A map of a slide of 200,000 ×
120,000 px has 24 million cells at a stride of 32, and 6 million at 64."""


def levels_for_map(
    case: ExportCase, shape: tuple[int, int], l0_stride: tuple[float, float], options: ExportOptions
) -> list[SlideLevel]:
    """Return the resolutions for objects with the values of a map, finest first.

    With a generated description, they are the cells of the map and coarser ones. With DICOM files, they are
    the level of the slide that is nearest to the cells, and coarser ones.
    """
    frame = case.frames["slide"]
    mpp = require_mpp(case, frame)
    if _has_dicom_files(case, options):
        levels = _source_levels(case, options)
        distance = [abs(np.log(level.l0_step[0] / l0_stride[0])) for level in levels]
        first = int(np.argmin(distance))
        chosen = [level for level in levels[first:] if level.size.area <= MOST_PIXELS]
        if not chosen:
            raise CaseError(
                "no level of the DICOM slide has a resolution near that of the map",
                subject=case.name, expected=f"about {l0_stride[0] * mpp.x:.3g} µm/px",
            )  # fmt: skip
        return chosen
    if shape[0] * shape[1] > MOST_PIXELS:
        raise TooLarge(
            "the map has too many cells for one DICOM object, whose values are in memory at once",
            subject=case.name, expected=f"at most {MOST_PIXELS:,} cells",
            actual=f"{shape[1]:,} × {shape[0]:,} cells",
            remedy="Choose a coarser map with --map, or a coarser level with --source",
        )  # fmt: skip
    levels, factor = [], 1
    while True:
        size = Size(-(-shape[1] // factor), -(-shape[0] // factor))
        step = (l0_stride[0] * factor, l0_stride[1] * factor)
        levels.append(described_level(case, size, step, mpp, options, len(levels) + 1))
        if max(size) <= TILE:
            return levels
        factor *= 2


# -- DICOM files of the slide -------------------------------------------------------------------------------


def _has_dicom_files(case: ExportCase, options: ExportOptions) -> bool:
    """Whether the objects refer to DICOM files: those of `source`, or those that were scanned on a server."""
    return options.source is not None or is_dicomweb_url(case.frames["slide"].path or "")


def _source_levels(case: ExportCase, options: ExportOptions) -> list[SlideLevel]:
    """Return the levels of the DICOM files of a slide, finest first."""

    frame = case.frames["slide"]
    source = options.source or frame.path
    assert source is not None
    datasets = datasets_of(source, case.name)
    mpp = require_mpp(case, frame)
    size = Size(int(datasets[0].TotalPixelMatrixColumns), int(datasets[0].TotalPixelMatrixRows))
    offset = _l0_offset(case, frame, size, source)
    levels = []
    for dataset in datasets:
        with no_warnings():
            copied: Dataset = deepcopy(dataset)  # A shallow copy shares its values with the original.
        if not options.show_patients:
            copied.PatientName = copied.PatientID = ""
            copied.PatientBirthDate = copied.PatientSex = ""
            copied.AccessionNumber = copied.ReferringPhysicianName = ""
            copied.PatientIdentityRemoved = "YES"
            copied.DeidentificationMethod = "Names removed; export with the patients to keep them"
        spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        step = float(spacing[1]) * 1000 / mpp.x, float(spacing[0]) * 1000 / mpp.y
        level_size = Size(int(dataset.TotalPixelMatrixColumns), int(dataset.TotalPixelMatrixRows))
        levels.append(SlideLevel(copied, level_size, step, offset))
    return levels


def _l0_offset(case: ExportCase, frame: ImageFrame, size: Size, source: Path | str) -> tuple[float, float]:
    """Return the position of the DICOM image on the slide: converters may crop a slide to its bounds."""
    if frame.size is None or size == frame.size:
        return (0.0, 0.0)
    if frame.bounds is not None and size == frame.bounds.size:
        return (float(frame.bounds.x), float(frame.bounds.y))
    expected = [str(frame.size), *([f"{frame.bounds.size} (cropped)"] if frame.bounds else [])]
    raise CaseError(
        "the DICOM files are not of this slide",
        subject=f"{source} for the case {case.name}", expected=" or ".join(expected), actual=str(size),
    )  # fmt: skip


# -- objects ------------------------------------------------------------------------------------------------


def object_arguments(case: ExportCase, name: str, number: int, options: ExportOptions) -> dict[str, Any]:
    """Return the arguments that every highdicom object takes."""
    from lobule import __version__

    key = (identity_of(case), content_identity(case), name, options.to_dict())
    return {
        "series_instance_uid": uid(*key, "series"),
        "series_number": number,
        "sop_instance_uid": uid(*key, "instance"),
        "instance_number": 1,
        "manufacturer": "Lobule",
        "manufacturer_model_name": str((case.result.get("bundle") or {}).get("method", "lobule")),
        "software_versions": __version__,
        "device_serial_number": str((case.result.get("bundle") or {}).get("fingerprint", "0"))[:16],
    }


def content_identity(case: ExportCase) -> str:
    """Hash the result and the findings, so that other content gets other UIDs."""
    digest = hashlib.sha256()
    for name in ("result.json", "findings.parquet"):
        path = case.folder.path / name
        if path.exists():
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    digest.update(repr(sorted(case.reviews.items())).encode(errors="surrogateescape"))
    return digest.hexdigest()


def save(dataset: Any, path: Path, case: ExportCase) -> None:
    """Write a DICOM object. Its times are those of the scan, so that the same result gives the same bytes."""
    seconds = (case.folder.path / "result.json").stat().st_mtime
    moment = time.gmtime(seconds)
    date, clock = time.strftime("%Y%m%d", moment), time.strftime("%H%M%S", moment)
    for prefix in ("Content", "InstanceCreation", "Series", "PresentationCreation"):
        if f"{prefix}Date" in dataset:
            setattr(dataset, f"{prefix}Date", date)
        if f"{prefix}Time" in dataset:
            setattr(dataset, f"{prefix}Time", clock)
    _replace_random_uids(dataset)
    dataset.SeriesDescription = RESEARCH_USE[:LONG_STRING]
    if "SpecificCharacterSet" not in dataset:
        dataset.SpecificCharacterSet = "ISO_IR 192"
    for equipment in dataset.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in equipment:
            equipment.ContributionDateTime = f"{date}{clock}"
    dataset.save_as(path, enforce_file_format=True)


def _replace_random_uids(dataset: Any) -> None:
    """Replace the identifier that highdicom generates for the dimensions by one made from the object's."""
    replacement = uid(dataset.SOPInstanceUID, "dimensions")
    for element in dataset.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = replacement


def algorithm_identification(case: ExportCase) -> Any:
    """Return the bundle as the algorithm that made an object."""
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    bundle = case.result.get("bundle") or {}
    return AlgorithmIdentificationSequence(
        name=f"Lobule {bundle.get('method', '')}".strip(),
        family=codes.DCM.ArtificialIntelligence,
        version=str(bundle.get("fingerprint", "unknown"))[:64],
        source="Lobule, research use only",
    )
