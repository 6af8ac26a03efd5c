"""What a DICOM file is, from a few tags: a slide, a mammogram, or another thing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

VL_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""Storage class of whole-slide microscopy."""
MAMMOGRAPHY = "1.2.840.10008.5.1.4.1.1.1.2"
"""Storage classes of mammograms begin so: for presentation, and for processing (`.1`)."""
TAGS = ("SOPClassUID", "PatientID", "SeriesInstanceUID", "ImageType")


@dataclass(frozen=True)
class FileFacts:
    """What one DICOM file is."""

    file: Path
    sop_class: str
    patient: str
    series: str
    is_level: bool
    """Whether it is a level of a slide, not a label, an overview or a thumbnail."""

    @property
    def is_slide(self) -> bool:
        return self.sop_class == VL_WHOLE_SLIDE

    @property
    def is_mammogram(self) -> bool:
        return self.sop_class.startswith(MAMMOGRAPHY)


def look(file: Path) -> FileFacts | None:
    """The header of a DICOM file; None for any other file."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        with file.open("rb") as stream:
            if stream.read(132)[128:] != b"DICM":
                return None
        header = dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS))
    except (InvalidDicomError, OSError, ValueError):
        return None
    image_type = list(header.get("ImageType") or ())
    return FileFacts(
        file,
        str(header.get("SOPClassUID", "")),
        str(header.get("PatientID", "")).strip(),
        str(header.get("SeriesInstanceUID", "")),
        image_type[2:3] == ["VOLUME"],
    )
