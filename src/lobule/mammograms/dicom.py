"""Read mammograms from DICOM files. The header is judged before any pixel is decoded."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from numpy.typing import NDArray

from lobule.dicomweb import is_dicomweb_url
from lobule.dicomweb.images import read_instance
from lobule.errors import CaseError, DamagedFile, MissingExtra, NotAMammogram, UnknownFormat
from lobule.files import open_url
from lobule.mammograms.dicom_codes import Override
from lobule.mammograms.dicom_pixels import Pixels, decoded_values, stored_values
from lobule.mammograms.dicom_rules import judge_header, number, quiet
from lobule.mammograms.mask import with_black_background
from lobule.mammograms.record import Decision, Heading, Mammogram, require_size
from lobule.mammograms.views import View, pointing_of_pixels
from lobule.slides.dicom_deflate import HEADER_BYTES, FileMeta, inflate, read_file_meta

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def examine_dicom(path: str | Path, *, allow: Collection[Override] = ()) -> Heading:
    """Read the header and apply all rules that do not need pixels.

    A refused file does not raise an error: see `Heading.refusals`.
    """
    return judge_header(path, _read(path, pixels=False), frozenset(allow))


def read_dicom(
    path: str | Path,
    *,
    pixels: Pixels = "nyu-raw",
    allow: Collection[Override] = (),
    view: View | None = None,
) -> Mammogram:
    """Read one view.

    Args:
        path: The DICOM file.
        pixels: Whether to use stored values or to apply the file's first window or table.
        allow: Kinds of images to accept although they are refused by default.
        view: The view that the manifest states. It is used if the header states none, and `allow` contains
            "unstated view".

    Raises:
        NotAMammogram: The rules refuse the file; the error gives the reasons.
        DamagedFile: The file cannot be decoded.
    """
    dataset = _read(path, pixels=True)
    heading = judge_header(path, dataset, frozenset(allow), view)
    if heading.refusals:
        raise NotAMammogram(
            "the image cannot be used as a view of an exam",
            subject=path,
            actual=" ".join(decision.sentence for decision in heading.refusals),
        )
    values, pixel_decisions = decoded_values(path, dataset, pixels)
    cleaned = with_black_background(values, path)
    pointing = pointing_of_pixels(cleaned.pixels)
    plain = Mammogram(heading, cleaned.pixels, heading.view, pointing, ())
    decisions = (*heading.decisions, *pixel_decisions, cleaned.decision, *_direction_decisions(plain))
    return replace(plain, decisions=decisions)


def read_header(path: str | Path) -> Dataset:
    """Read the header of any DICOM file, without judging it."""
    return _read(path, pixels=False)


def read_values(path: str | Path) -> NDArray[Any]:
    """Read the stored values of a DICOM image of one frame, such as a mask, without judging its header."""
    dataset = _read(path, pixels=True)
    return stored_values(path, dataset)


def _direction_decisions(mammogram: Mammogram) -> Iterator[Decision]:
    """Decisions that record where the header contradicts the direction in which the breast points."""
    heading = mammogram.heading
    if heading.pointing not in (None, mammogram.pointing):
        sentence = f"The header has the breast point {heading.pointing}, the pixels {mammogram.pointing}."
        yield Decision("direction", "noted", sentence)
    if heading.horizontal_flip not in (None, mammogram.horizontal_flip):
        sentence = (
            f"FieldOfViewHorizontalFlip is {heading.horizontal_flip}, but only {mammogram.horizontal_flip} "
            "makes the convention of exams true of this image, and is used."
        )
        yield Decision("direction", "noted", sentence)


def _read(path: str | Path, *, pixels: bool) -> Dataset:
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtra("mammography", "Reading DICOM mammograms") from error
    if is_dicomweb_url(str(path)):
        return read_instance(str(path), pixels=pixels)
    with open_url(path) as file, quiet():
        try:
            meta = read_file_meta(file)
            if meta is not None and meta.is_deflated:
                file = _inflated(path, file, meta, pixels=pixels)
            return cast("Dataset", pydicom.dcmread(file, stop_before_pixels=not pixels))
        except CaseError:
            raise
        except pydicom.errors.InvalidDicomError as error:
            raise UnknownFormat("the file is not a DICOM file", subject=path) from error
        except Exception as error:  # the parser raises any exception on damaged bytes
            raise DamagedFile(f"the DICOM file cannot be read: {error}", subject=path) from error


def _inflated(path: str | Path, file: IO[bytes], meta: FileMeta, *, pixels: bool) -> IO[bytes]:
    """Inflate a deflated file: only its header, or as many pixels as its header declares."""
    from pydicom import dcmread

    header_file = inflate(file, meta, path, HEADER_BYTES, stop_at_limit=True)
    if not pixels:
        return header_file
    header = dcmread(header_file, stop_before_pixels=True)
    width, height = number(header, "Columns"), number(header, "Rows")
    values_per_pixel = number(header, "SamplesPerPixel", 1) * number(header, "NumberOfFrames", 1)
    require_size(path, width, height, values_per_pixel)
    sample_bytes = 2 if number(header, "BitsAllocated", 16) <= 16 else 4
    return inflate(file, meta, path, HEADER_BYTES + width * height * values_per_pixel * sample_bytes)
