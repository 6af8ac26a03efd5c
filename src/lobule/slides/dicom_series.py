"""Which DICOM files make up one slide: found by the first part of their headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lobule.errors import CaseError, DamagedFile, UnknownFormat
from lobule.files import is_url

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage."""

LAST_HEADER_TAG = 0x0020000E
"""Series Instance UID: all that is needed to sort files into series stands before it."""

HEADER_FACTS = (
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "AcquisitionDateTime",
    "StudyInstanceUID",
    "SeriesInstanceUID",
)


def files_of_slide(path: str) -> list[Header] | None:
    """Headers of the series that a file or folder belongs to; None where it is no DICOM.

    DICOM that is something else (a mammogram, say) is an error that names what it is: no other backend of
    slides could do better.
    """
    if is_url(path):  # a series is looked for in a folder, and folders are of this machine
        return None
    place = Path(path)
    if place.is_dir():
        headers = [header for file in sorted(place.iterdir()) if (header := _sibling(file))]
        if not headers:
            return None
        series = _only_series(path, headers)
    else:
        own = _header(place)
        if own is None:
            return None
        if not own.is_slide:
            raise _not_a_slide(path, own)
        series = own.series
        others = (_sibling(file) for file in sorted(place.parent.iterdir()) if file.name != place.name)
        headers = [own, *(header for header in others if header)]
    return [header for header in headers if header.is_slide and header.series == series]


@dataclass(frozen=True)
class Header:
    """What the first part of a DICOM file says."""

    file: Path
    sop_class: str
    series: str
    image_type: tuple[str, ...]
    facts: Mapping[str, str]

    @property
    def is_slide(self) -> bool:
        return self.sop_class == WHOLE_SLIDE

    @property
    def is_level(self) -> bool:
        return self.image_type[2:3] == ("VOLUME",)


def _header(file: Path) -> Header | None:
    """The header of a DICOM file; None where it is no DICOM file."""
    with file.open("rb") as stream:
        if stream.read(132)[128:] != b"DICM":
            return None
        from pydicom.filereader import read_partial  # other formats need not wait for it

        stream.seek(0)
        try:
            dataset = read_partial(stream, stop_when=lambda tag, vr, length: tag > LAST_HEADER_TAG)
            image_type = dataset.get("ImageType") or ""
            return Header(
                file,
                str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", "")),
                str(dataset.get("SeriesInstanceUID", "")),
                tuple(_text(image_type).split("\\")),
                {f"dicom.{key}": _text(dataset[key].value) for key in HEADER_FACTS if key in dataset},
            )
        except Exception as error:  # the parser raises anything when fed damaged bytes
            raise damaged(file, "the DICOM header cannot be read", error) from error


def _text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\\".join(map(str, value))
    return str(value)


def _sibling(file: Path) -> Header | None:
    """The header of a neighbour; one that cannot be read is none of ours."""
    try:
        return _header(file) if file.is_file() else None
    except (CaseError, OSError):
        return None


def _only_series(path: str, headers: list[Header]) -> str:
    """The one series of a folder that has levels."""
    slides = [header for header in headers if header.is_slide]
    if not slides:
        raise _not_a_slide(path, headers[0])
    first = {header.series: header.file for header in reversed(slides) if header.is_level}
    if len(first) != 1:
        names = ", ".join(sorted(file.name for file in first.values())[:5])
        raise UnknownFormat(
            f"a folder with {len(first)} DICOM slides",
            subject=path,
            expected="one",
            remedy=f"Name a file of the one that you mean, such as {names}" if first else None,
        )
    return next(iter(first))


def _not_a_slide(path: str, header: Header) -> UnknownFormat:
    from pydicom.uid import UID

    what = UID(header.sop_class).name or "DICOM of no stated kind"
    breast = "Mammography" in what or "Tomosynthesis" in what
    return UnknownFormat(
        "DICOM, but not a whole-slide image",
        subject=path,
        expected="VL Whole Slide Microscopy Image Storage",
        found=what,
        remedy="Mammograms are read as exams: name them in the cohort's l_cc, r_cc, l_mlo and r_mlo columns"
        if breast
        else None,
    )


def damaged(place: object, what: str, cause: object) -> DamagedFile:
    found = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(cause)
    return DamagedFile(what, subject=place, found=found, remedy="Copy the file again from its source")
