"""Find the DICOM files that make up one slide, using the first part of their headers."""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lobule.errors import LobuleError, UnknownFormat, damaged
from lobule.files import is_url
from lobule.slides.dicom_deflate import HEADER_BYTES, FirstBytes, read_file_meta

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset
    from pydicom.uid import UID

# pydicom logs deviations from the standard; the ones that matter become typed errors here.
logging.getLogger("pydicom").addHandler(logging.NullHandler())

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage."""

LAST_HEADER_TAG = 0x0020000E
"""Series Instance UID: the elements needed to sort files into series do not come after it."""

HEADER_PROPERTIES = (
    "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "AcquisitionDateTime",
    "StudyInstanceUID", "SeriesInstanceUID",
)  # fmt: skip


def files_of_slide(path: str) -> list[Header] | None:
    """Headers of the series that a file or folder belongs to, or None if the path is not DICOM.

    A DICOM file that is not a slide, such as a mammogram, is an error that names its kind, because no other
    slide backend could read it.
    """
    if is_url(path):  # a series is searched in a local folder
        return None
    file_or_folder = Path(path)
    if file_or_folder.is_dir():
        headers = _neighbours(file_or_folder)
        if not headers:
            return None
        series = _only_series(path, headers)
    else:
        named_header = _header(file_or_folder)
        if named_header is None:
            return None
        if not named_header.is_slide:
            raise _not_a_slide(path, named_header)
        series = named_header.series
        neighbours = _neighbours(file_or_folder.parent)
        headers = [named_header, *(other for other in neighbours if other.file.name != file_or_folder.name)]
    of_series = [header for header in headers if header.is_slide and header.series == series]
    check_levels(path, of_series)
    return of_series


@dataclass(frozen=True)
class Header:
    """The fields read from the first part of a DICOM file."""

    file: Path
    sop_class: str
    series: str
    image_type: tuple[str, ...]
    header_properties: Mapping[str, str]
    transfer_syntax: str

    @property
    def transfer_syntax_uid(self) -> UID:
        """The transfer syntax as a pydicom UID, which has the name used in the standard."""
        from pydicom.uid import UID

        with no_warnings():
            return UID(self.transfer_syntax)

    @property
    def is_slide(self) -> bool:
        return self.sop_class == WHOLE_SLIDE

    @property
    def is_level(self) -> bool:
        return self.image_type[2:3] == ("VOLUME",)


def _header(file: Path) -> Header | None:
    """The header of a DICOM file, or None if the file is not DICOM."""
    with file.open("rb") as stream:
        meta = read_file_meta(stream)
        if meta is None:
            return None
        if meta.is_deflated:
            raise UnknownFormat(
                "the DICOM file is deflated as a whole, so single tiles cannot be read",
                subject=file,
                expected="a whole-slide image in another transfer syntax",
                remedy="Write it without deflation, for example with: dcmconv +te in.dcm out.dcm",
            )
        from pydicom.filereader import read_partial  # imported here so that other formats do not pay for it

        first_bytes = io.BufferedReader(FirstBytes(stream, HEADER_BYTES))
        try:
            with no_warnings():
                dataset = read_partial(first_bytes, stop_when=lambda tag, vr, length: tag > LAST_HEADER_TAG)
                return header_of(file, dataset, meta.transfer_syntax)
        except Exception as error:  # the parser raises any exception on damaged bytes
            raise damaged(file, "the DICOM header cannot be read", error) from error


def header_of(file: Path, dataset: FileDataset, transfer_syntax: str) -> Header:
    image_type = dataset.get("ImageType") or ""
    return Header(
        file,
        str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", "")),
        str(dataset.get("SeriesInstanceUID", "")),
        tuple(_text(image_type).split("\\")),
        {f"dicom.{key}": _text(dataset[key].value) for key in HEADER_PROPERTIES if key in dataset},
        transfer_syntax,
    )


_quiet_lock = threading.RLock()


@contextmanager
def no_warnings() -> Iterator[None]:
    """Silence pydicom's warnings about values that deviate from the standard; important values are checked.

    The filters of `warnings` are global to the process, so only one thread at a time changes them.
    """
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\\".join(map(str, value))
    return str(value)


def _neighbours(folder: Path) -> list[Header]:
    """Headers of the DICOM files in a folder, sorted by name. Files that cannot be read are left out."""
    headers = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            try:
                if not entry.is_file():
                    continue
                state = entry.stat()
            except OSError:
                continue
            header = _header_of_state(entry.path, state.st_size, state.st_mtime_ns, state.st_ino)
            if header is not None:
                headers.append(header)
    return headers


@lru_cache(maxsize=1 << 14)
def _header_of_state(path: str, size: int, modified_ns: int, inode: int) -> Header | None:
    """The header of a neighbouring file, cached as long as its size, time and inode stay the same."""
    try:
        return _header(Path(path))
    except (LobuleError, OSError):
        return None


def check_levels(path: str, headers: list[Header]) -> None:
    """Refuse a series without a level, and name the value and the file that were expected to mark one."""
    if any(header.is_level for header in headers):
        return
    header = headers[0]
    stated = "\\".join(header.image_type)
    raise UnknownFormat(
        "no DICOM file of this slide contains a level",
        subject=path,
        expected="at least one file whose ImageType has VOLUME as its third value",
        actual=(f"ImageType '{stated}'" if stated else "no ImageType") + f" in {header.file.name}",
        remedy="Name a file of the series that holds a level, or correct ImageType where the file holds one",
    )


def _only_series(path: str, headers: list[Header]) -> str:
    """The only series of a folder that has levels."""
    slides = [header for header in headers if header.is_slide]
    if not slides:
        raise _not_a_slide(path, headers[0])
    first = {header.series: header.file for header in reversed(slides) if header.is_level}
    if len(first) != 1:
        names = ", ".join(sorted(file.name for file in first.values())[:5])
        raise UnknownFormat(
            f"the folder contains {len(first)} DICOM slides",
            subject=path,
            expected="one",
            remedy=f"Give one file of the slide to read, such as {names}" if first else None,
        )
    return next(iter(first))


def _not_a_slide(path: str, header: Header) -> UnknownFormat:
    from pydicom.uid import UID

    kind = UID(header.sop_class).name or "DICOM without a stated class"
    is_breast = "Mammography" in kind or "Tomosynthesis" in kind
    columns = "Mammograms are read as exams: name them in the cohort's l_cc, r_cc, l_mlo and r_mlo columns"
    return UnknownFormat(
        "the DICOM file is not a whole-slide image",
        subject=path,
        expected="VL Whole Slide Microscopy Image Storage",
        actual=kind,
        remedy=columns if is_breast else None,
    )
