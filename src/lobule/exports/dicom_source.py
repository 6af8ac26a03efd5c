"""The headers of the DICOM files of a slide, which objects refer to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lobule.dicomweb import is_dicomweb_url, parse_url
from lobule.dicomweb.server import server_of
from lobule.errors import CaseError, NotReadable
from lobule.slides.dicom_series import WHOLE_SLIDE, no_warnings


@lru_cache(maxsize=4)
def datasets_of(source: Path | str, case: str) -> tuple[Any, ...]:
    """Return the headers of the levels of a slide, finest first.

    Args:
        source: The URL of its series on a DICOMweb server, its folder, or a folder that contains a folder
            with the name of the case.
        case: The name of the case.
    """
    folder: Path | str
    if is_dicomweb_url(str(source)):
        address = parse_url(str(source))
        folder, headers = str(source), server_of(address.root).metadata(address.series_path)
    else:
        folder = Path(source) / case if (Path(source) / case).is_dir() else Path(source)
        headers = _headers_in(folder)
    datasets = [
        header
        for header in headers
        if header.get("SOPClassUID") == WHOLE_SLIDE and "VOLUME" in header.get("ImageType", [])
    ]
    if not datasets:
        raise CaseError(
            "the folder contains no level of a DICOM slide", subject=folder,
            expected=f"VL Whole Slide Microscopy images, or a folder named '{case}' with them",
        )  # fmt: skip
    _require_attributes(datasets, folder)
    return tuple(sorted(datasets, key=lambda dataset: -int(dataset.TotalPixelMatrixColumns)))


def _headers_in(folder: Path) -> list[Any]:
    import pydicom

    if not folder.is_dir():
        raise NotReadable("there is no such folder", subject=folder, expected="DICOM files of the slides")
    headers = []
    for path in sorted(item for item in folder.iterdir() if item.is_file()):
        try:
            with no_warnings():
                headers.append(pydicom.dcmread(path, stop_before_pixels=True))
        except pydicom.errors.InvalidDicomError:
            continue
    return headers


REQUIRED = (
    "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "TotalPixelMatrixOriginSequence",
    "ImageOrientationSlide", "SharedFunctionalGroupsSequence", "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
)  # fmt: skip


def _require_attributes(datasets: Sequence[Any], folder: Path | str) -> None:
    missing = sorted({name for dataset in datasets for name in REQUIRED if name not in dataset})
    if missing:
        raise CaseError(
            "the DICOM slide lacks attributes that objects derived from it need",
            subject=folder,
            expected=", ".join(REQUIRED),
            actual=f"no {', '.join(missing)}",
            remedy="Convert the slide again, or leave --source away to use a generated description",
        )
    if len({dataset.SeriesInstanceUID for dataset in datasets}) > 1:
        raise CaseError(
            "the folder contains several DICOM slides", subject=folder,
            remedy="Put the files of each slide into a folder with the name of its case",
        )  # fmt: skip
