"""Read the few header elements that tell whether a DICOM file is a slide, a mammogram or something else."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from lobule.slides.dicom_deflate import HEADER_BYTES, FirstBytes, inflate, read_file_meta

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""Storage class of whole-slide images."""
MAMMOGRAM_PREFIX = "1.2.840.10008.5.1.4.1.1.1.2"
"""The storage classes of mammograms start with this: for presentation, and for processing (`.1`)."""
TAGS = ("SOPClassUID", "PatientID", "SeriesInstanceUID", "ImageType")
"""The only elements that are read."""


@dataclass(frozen=True)
class DicomHeader:
    """The storage class of a DICOM file, and the patient and series that it belongs to."""

    file: Path
    sop_class: str
    patient: str
    series: str
    is_level: bool
    """Whether it is a level of a slide and not a label, overview or thumbnail."""

    @property
    def is_slide(self) -> bool:
        return self.sop_class == WHOLE_SLIDE

    @property
    def is_mammogram(self) -> bool:
        return self.sop_class.startswith(MAMMOGRAM_PREFIX)


def read_dicom_header(file: Path) -> DicomHeader | None:
    """Read the header of a DICOM file. Return None for a damaged file and for any other file."""
    from pydicom import dcmread

    try:
        with file.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meta = read_file_meta(stream)
            if meta is None:
                return None
            if meta.is_deflated:
                header_file = inflate(stream, meta, file, HEADER_BYTES, stop_at_limit=True)
            else:
                header_file = io.BufferedReader(FirstBytes(stream, HEADER_BYTES))
            header = dcmread(header_file, stop_before_pixels=True, specific_tags=list(TAGS))
    except Exception:  # On damaged bytes, the parser may raise any exception.
        return None
    image_type = list(header.get("ImageType") or ())
    return DicomHeader(
        file,
        sop_class=str(header.get("SOPClassUID", "")),
        patient=str(header.get("PatientID", "")).strip(),
        series=str(header.get("SeriesInstanceUID", "")),
        is_level=image_type[2:3] == ["VOLUME"],
    )
