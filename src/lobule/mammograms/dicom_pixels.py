"""The pixel values of a DICOM mammogram: decoded, through the tables of the file, with a bright breast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lobule.errors import CaseError, DamagedFile, MissingExtra, UnknownFormat
from lobule.mammograms.dicom_rules import number, quiet, text
from lobule.mammograms.record import Decision, require_size
from lobule.slides.tile_codecs import jpeg2000_header

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

JPEG2000_START = b"\xff\x4f\xff\x51"

Pixels = Literal["nyu-raw", "voi"]
"""`nyu-raw` uses stored values like the published exams; `voi` applies the file's first window or table."""


def decoded_values(
    path: str | Path, dataset: Dataset, pixels: Pixels
) -> tuple[NDArray[np.uint16], list[Decision]]:
    """Decoded values with a bright breast and padding 0, and the decisions on how they were obtained."""
    stored = stored_values(path, dataset)
    try:
        values, (low, high), decisions = _through_tables(dataset, stored, pixels)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise DamagedFile(f"the file's tables or windows cannot be used: {error}", subject=path) from error
    if text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        values = high - values
        sentence = "MONOCHROME1: values were inverted."
        decisions.append(Decision("photometric", "noted", sentence, value=high))
    else:
        values = values - low
    if high - low > 65535:
        values *= 65535 / (high - low)
    result = np.clip(np.rint(values), 0, 65535).astype(np.uint16)
    padding = _padding(dataset, stored)
    if padding is not None and padding.any():
        result[padding] = 0
        decisions.append(Decision("padding", "noted", f"{int(padding.sum())} padding pixels were set to 0."))
    return result, decisions


def _through_tables(
    dataset: Dataset, stored: NDArray[Any], pixels: Pixels
) -> tuple[NDArray[np.float64], tuple[float, float], list[Decision]]:
    """Values after the modality's table and, if requested, the first window, and their possible range."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values, limits = stored, _representable(dataset)
    decisions = []
    with quiet():
        if "ModalityLUTSequence" in dataset or _rescale(dataset) != (1, 0):
            values, limits = apply_modality_lut(values, dataset), _after_modality(dataset, *limits)
            sentence = "The file's modality table or rescale was applied."
            decisions.append(Decision("rescale", "noted", sentence))
        if pixels == "voi":
            values = apply_voi_lut(values, dataset, index=0)
            if "VOILUTSequence" in dataset:
                limits = _table_range(dataset.VOILUTSequence[0])
            sentence = "The file's first VOI table or window was applied."
            decisions.append(Decision("window", "noted", sentence))
    return values.astype(np.float64), limits, decisions


def _representable(dataset: Dataset) -> tuple[float, float]:
    """The smallest and the largest value that a stored pixel can have."""
    bits = number(dataset, "BitsStored", 16)
    if number(dataset, "PixelRepresentation"):
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _after_modality(dataset: Dataset, low: float, high: float) -> tuple[float, float]:
    if "ModalityLUTSequence" in dataset:
        return _table_range(dataset.ModalityLUTSequence[0])
    slope, intercept = _rescale(dataset)
    ends = sorted((slope * low + intercept, slope * high + intercept))
    return ends[0], ends[1]


def _table_range(table: Dataset) -> tuple[float, float]:
    return 0.0, 2.0 ** int(table.LUTDescriptor[2]) - 1


def _rescale(dataset: Dataset) -> tuple[float, float]:
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return float(1 if slope in (None, "") else slope), float(intercept or 0)


def _padding(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit", first)
    inside: NDArray[np.bool_] = (stored >= min(first, last)) & (stored <= max(first, last))
    return inside


def stored_values(path: str | Path, dataset: Dataset) -> NDArray[Any]:
    """Decode the frame after checking its size. A missing codec is not reported as a damaged file."""
    from pydicom.pixels import get_decoder

    height, width = number(dataset, "Rows"), number(dataset, "Columns")
    require_size(path, width, height)
    if not dataset.get("PixelData") or height * width == 0:
        raise DamagedFile("the file has no pixels", subject=path)
    meta = getattr(dataset, "file_meta", None)
    syntax = getattr(meta, "TransferSyntaxUID", None)
    try:
        available = get_decoder(syntax).is_available if syntax else True
    except NotImplementedError as error:
        raise UnknownFormat("the compression is not known", subject=path, actual=str(syntax)) from error
    if not available:
        raise MissingExtra("mammography", f"Decoding {syntax} of {Path(str(path)).name}")
    _check_codestream(path, dataset.PixelData, width, height)
    with quiet():
        try:
            return np.asarray(dataset.pixel_array)
        except CaseError:
            raise
        except Exception as error:  # each codec has its own exceptions
            raise DamagedFile(f"the pixels cannot be decoded: {error}", subject=path) from error


def _check_codestream(path: str | Path, data: bytes, width: int, height: int) -> None:
    """Refuse a JPEG 2000 codestream that contradicts the header: decoders trust the codestream."""
    if data[:4096].find(JPEG2000_START) < 0:
        return
    try:
        size, components = jpeg2000_header(data)
    except ValueError as error:
        raise DamagedFile(f"the pixels cannot be decoded: {error}", subject=path) from error
    if (*size, components) != (width, height, 1):
        raise DamagedFile(
            "the compressed pixels do not match the header",
            subject=path,
            expected=f"{width} × {height} px of one component",
            actual=f"{size.width} × {size.height} px of {components}",
        )
