"""Recognise the kind of a DICOM file from a few tags: a slide, a mammogram, or something else."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from lobule.slides.dicom_deflate import HEADER_BYTES, FirstBytes, inflate, read_file_meta

VL_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""Storage class of whole-slide microscopy."""
MAMMOGRAPHY = "1.2.840.10008.5.1.4.1.1.1.2"
"""Prefix of the storage classes of mammograms: for presentation, and for processing (`.1`)."""
TAGS = ("SOPClassUID", "PatientID", "SeriesInstanceUID", "ImageType")


@dataclass(frozen=True)
class FileFacts:
    """The kind of one DICOM file, and what it belongs to."""

    file: Path
    sop_class: str
    patient: str
    series: str
    is_level: bool
    """Whether it is a level of a slide and not a label, overview or thumbnail."""

    @property
    def is_slide(self) -> bool:
        return self.sop_class == VL_WHOLE_SLIDE

    @property
    def is_mammogram(self) -> bool:
        return self.sop_class.startswith(MAMMOGRAPHY)


def look(file: Path) -> FileFacts | None:
    """The header of a DICOM file; None for any other file."""
    from pydicom import dcmread

    try:
        with file.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meta = read_file_meta(stream)
            if meta is None:
                return None
            if meta.is_deflated:
                header_file = inflate(stream, meta, file, HEADER_BYTES, cut=True)
            else:
                header_file = io.BufferedReader(FirstBytes(stream, HEADER_BYTES))
            header = dcmread(header_file, stop_before_pixels=True, specific_tags=list(TAGS))
    except Exception:  # the parser raises any exception on damaged bytes
        return None
    image_type = list(header.get("ImageType") or ())
    return FileFacts(
        file,
        str(header.get("SOPClassUID", "")),
        str(header.get("PatientID", "")).strip(),
        str(header.get("SeriesInstanceUID", "")),
        image_type[2:3] == ["VOLUME"],
    )
