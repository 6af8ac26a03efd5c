"""DICOM mammograms: which files are views of an exam, of which breast and angle, and their pixels.

Every rule records a `Decision` with a sentence. The header is judged before any pixel is decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from lobule.errors import CaseError, DamagedFile, MissingExtra, NotAMammogram, TooLarge, UnknownFormat
from lobule.files import open_url
from lobule.mammograms import dicom_codes as codes
from lobule.mammograms.dicom_codes import Override
from lobule.mammograms.mask import with_black_background
from lobule.mammograms.png import MOST_PIXELS
from lobule.mammograms.record import Decision, Heading, Mammogram
from lobule.mammograms.views import View, pointing_of_pixels
from lobule.slides.dicom_deflate import HEADER_BYTES, FileMeta, inflate, read_file_meta
from lobule.slides.tile_codecs import jpeg2000_components, jpeg2000_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.dataset import Dataset

JPEG2000_START = b"\xff\x4f\xff\x51"

Pixels = Literal["nyu-raw", "voi"]
"""`nyu-raw` uses stored values like the published exams; `voi` applies the file's first window or table."""


def examine_dicom(path: str | Path, *, allow: Collection[Override] = ()) -> Heading:
    """Read the header and apply all rules that do not need pixels.

    A refused file does not raise an error: see `Heading.refusals`.
    """
    return _heading(path, _read(path, pixels=False), frozenset(allow))


def read_dicom(
    path: str | Path, *, pixels: Pixels = "nyu-raw", allow: Collection[Override] = ()
) -> Mammogram:
    """Read one view.

    Args:
        path: The DICOM file.
        pixels: Whether to use stored values or to apply the file's first window or table.
        allow: Kinds of images to accept although they are refused by default.

    Raises:
        NotAMammogram: The rules refuse the file; the error gives the reasons.
        DamagedFile: The file cannot be decoded.
    """
    dataset = _read(path, pixels=True)
    heading = _heading(path, dataset, frozenset(allow))
    if heading.refusals:
        raise NotAMammogram(
            "the image cannot be used as a view of an exam",
            subject=path,
            actual=" ".join(decision.sentence for decision in heading.refusals),
        )
    values, pixel_decisions = _values(path, dataset, pixels)
    try:
        cleaned = with_black_background(values)
    except NotAMammogram as error:
        raise type(error)(
            error.problem, subject=path, expected=error.expected, actual=error.actual
        ) from error
    pointing = pointing_of_pixels(cleaned.pixels)
    plain = Mammogram(heading, cleaned.pixels, heading.view, pointing, ())
    decisions = (*heading.decisions, *pixel_decisions, cleaned.decision, *_direction_decisions(plain))
    return replace(plain, decisions=decisions)


def _direction_decisions(mammogram: Mammogram) -> list[Decision]:
    """Decisions that record where the header contradicts the direction in which the breast points."""
    heading, decisions = mammogram.heading, []
    if heading.pointing not in (None, mammogram.pointing):
        sentence = f"The header has the breast point {heading.pointing}, the pixels {mammogram.pointing}."
        decisions.append(Decision("direction", "noted", sentence))
    if heading.horizontal_flip not in (None, mammogram.horizontal_flip):
        sentence = (
            f"FieldOfViewHorizontalFlip is {heading.horizontal_flip}, but only {mammogram.horizontal_flip} "
            "makes the convention of exams true of this image, and is used."
        )
        decisions.append(Decision("direction", "noted", sentence))
    return decisions


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom's warnings: many clinical files deviate from the standard in harmless ways."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(path: str | Path, *, pixels: bool) -> Dataset:
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtra("mammography", "Reading DICOM mammograms") from error
    with open_url(path) as file, _quiet():
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

    header_file = inflate(file, meta, path, HEADER_BYTES, cut=True)
    if not pixels:
        return header_file
    header = dcmread(header_file, stop_before_pixels=True)
    count = _number(header, "Rows") * _number(header, "Columns")
    samples = count * _number(header, "SamplesPerPixel", 1) * _number(header, "NumberOfFrames", 1)
    if samples > MOST_PIXELS:
        raise TooLarge(
            "the image declares too many pixels",
            subject=path,
            expected=f"at most {MOST_PIXELS:,}",
            actual=f"{samples:,}",
        )
    sample_bytes = 2 if _number(header, "BitsAllocated", 16) <= 16 else 4
    return inflate(file, meta, path, HEADER_BYTES + samples * sample_bytes)


def _heading(path: str | Path, dataset: Dataset, allow: frozenset[Override]) -> Heading:
    try:
        with _quiet():
            return _judge_header(path, dataset, allow)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise DamagedFile(
            f"the header contains a value that cannot be used: {error}", subject=path
        ) from error


def _judge_header(path: str | Path, dataset: Dataset, allow: frozenset[Override]) -> Heading:
    kind = _kind_decisions(dataset, allow)
    view, view_decisions = _view(dataset)
    return Heading(
        path=str(path),
        decisions=(*kind, *_special_decisions(dataset), *view_decisions),
        view=view,
        patient=_text(dataset, "PatientID") or None,
        study=_text(dataset, "StudyInstanceUID") or None,
        instance=_text(dataset, "SOPInstanceUID") or None,
        acquired=_acquisition_time(dataset),
        height=_number(dataset, "Rows"),
        width=_number(dataset, "Columns"),
        mm_per_px=_spacing(dataset),
        pointing=_header_pointing(dataset),
        horizontal_flip=_flip(dataset),
    )


def _text(dataset: Dataset, name: str) -> str:
    return str(dataset.get(name, "") or "").strip()


def _number(dataset: Dataset, name: str, default: int = 0) -> int:
    value = dataset.get(name)
    return default if value in (None, "") else int(value)


def _refused(rule: str, sentence: str) -> Decision:
    return Decision(rule, "refused", sentence)


def _kind_decisions(dataset: Dataset, allow: frozenset[Override]) -> list[Decision]:
    """Decisions on the kind of image: its class, intent, frames, samples and depth."""
    sop, modality = _text(dataset, "SOPClassUID"), _text(dataset, "Modality")
    decisions = []
    override = codes.ONLY_IF_ALLOWED.get(sop)
    if sop in codes.NEVER:
        decisions.append(_refused("class", f"It is {codes.NEVER[sop]}."))
    elif override is not None and override in allow:
        decisions.append(
            Decision("class", "noted", f"It is a {override} image, accepted because that is allowed.")
        )
    elif override is not None:
        decisions.append(_refused("class", f"It is a {override} image, accepted only if that is allowed."))
    elif sop != codes.PRESENTATION:
        decisions.append(
            _refused("class", f"Its class {sop or '(none)'} is not a mammogram For Presentation.")
        )
    elif modality != "MG":
        decisions.append(_refused("class", f"Its modality is {modality or '(none)'}, not MG."))
    else:
        decisions.append(Decision("class", "accepted", "It is a digital mammogram For Presentation."))
    if _text(dataset, "PresentationIntentType") == "FOR PROCESSING" and sop not in codes.NEVER:
        decisions.append(_refused("class", "It says that it is FOR PROCESSING."))
    frames, samples = _number(dataset, "NumberOfFrames", 1), _number(dataset, "SamplesPerPixel", 1)
    if frames != 1:
        decisions.append(_refused("frames", f"It has {frames} frames, a view has one."))
    if samples != 1:
        decisions.append(_refused("samples", f"It has {samples} samples a pixel, a mammogram has one."))
    stated = dataset.get("ImageType") or ()
    image_type = {str(value).upper() for value in ([stated] if isinstance(stated, str) else stated)}
    made_from = sorted(image_type.intersection(codes.SYNTHESISED))
    if made_from:
        outcome: Literal["noted", "refused"] = "noted" if "synthesised" in allow else "refused"
        sentence = f"ImageType holds {made_from[0]}: a flat image made from tomosynthesis."
        decisions.append(Decision("synthesised", outcome, sentence))
    if 0 < _number(dataset, "BitsStored") <= 8:
        outcome = "noted" if "8-bit" in allow else "refused"
        decisions.append(
            Decision("depth", outcome, "It stores 8 bits or fewer, a mammogram has at least 10.")
        )
    return decisions


def _special_decisions(dataset: Dataset) -> list[Decision]:
    """Decisions on special views, and notes that a reader of the image needs."""
    decisions = []
    for item in (dataset, *(dataset.get("ViewCodeSequence") or ())):
        for modifier in item.get("ViewModifierCodeSequence") or ():
            value = _text(modifier, "CodeValue")
            name = codes.MODIFIERS.get(value) or _text(modifier, "CodeMeaning") or value
            if value in codes.MODIFIERS:
                decisions.append(_refused("modifier", f"It is a special view: {name}."))
            else:
                decisions.append(Decision("modifier", "noted", f"It has the view modifier {name}."))
    if _text(dataset, "PartialView") == "YES":
        decisions.append(_refused("partial", "It shows only a part of the breast."))
    if _text(dataset, "QualityControlImage") == "YES":
        decisions.append(_refused("quality control", "It is an image for quality control."))
    if _text(dataset, "BreastImplantPresent") == "YES":
        decisions.append(
            Decision("implant", "noted", "The breast has an implant, which the models have rarely seen.")
        )
    if _text(dataset, "BurnedInAnnotation") == "YES":
        decisions.append(Decision("annotation", "noted", "Annotations are burned into the image."))
    return decisions


def _view(dataset: Dataset) -> tuple[View | None, list[Decision]]:
    angle, angle_decision = _angle(dataset)
    side, side_decision = _side(dataset)
    view = cast(View, f"{side}-{angle}") if side and angle else None
    return view, [angle_decision, side_decision]


def _angle(dataset: Dataset) -> tuple[str | None, Decision]:
    position = _text(dataset, "ViewPosition").upper()
    by_position = position if position in ("CC", "MLO") else None
    sequence = dataset.get("ViewCodeSequence") or ()
    if not sequence:
        if by_position:
            return by_position, Decision("view", "accepted", f"ViewPosition says {by_position}.")
        return None, _refused("view", f"It does not say CC or MLO (ViewPosition is {position or 'absent'}).")
    value = _text(sequence[0], "CodeValue")
    angle = codes.ANGLES.get(value)
    if angle is None:
        name = codes.OTHER_VIEWS.get(value) or _text(sequence[0], "CodeMeaning") or value or "without a code"
        return None, _refused("view", f"Its view is {name}, neither CC nor MLO.")
    if by_position and by_position != angle:
        return None, _refused(
            "view", f"ViewCodeSequence says {angle}, ViewPosition {by_position}: they conflict."
        )
    return angle, Decision("view", "accepted", f"ViewCodeSequence says {angle}.")


def _side(dataset: Dataset) -> tuple[str | None, Decision]:
    image, series = _text(dataset, "ImageLaterality").upper(), _text(dataset, "Laterality").upper()
    if image and series and image != series:
        return None, _refused("side", f"ImageLaterality says {image}, Laterality {series}: they conflict.")
    side = image or series
    if side not in ("L", "R"):
        return None, _refused("side", f"It does not say left or right (laterality is {side or 'absent'}).")
    source = "ImageLaterality" if image else "Laterality"
    return side, Decision("side", "accepted", f"{source} says {side}.")


def _acquisition_time(dataset: Dataset) -> str:
    for kind in ("Acquisition", "Content", "Series", "Study"):
        date = _text(dataset, f"{kind}Date")
        if date:
            return date + _text(dataset, f"{kind}Time").partition(".")[0]
    return ""


def _spacing(dataset: Dataset) -> float | None:
    for name in ("ImagerPixelSpacing", "PixelSpacing"):
        value = dataset.get(name)
        if value:
            return float(value[0])
    return None


def _header_pointing(dataset: Dataset) -> Literal["left", "right"] | None:
    """The breast points right if rows run to the anterior."""
    orientation = dataset.get("PatientOrientation") or [""]
    first = str(orientation[0])[:1].upper()
    return {"A": "right", "P": "left"}.get(first)  # type: ignore[return-value]


def _flip(dataset: Dataset) -> Literal["NO", "YES"] | None:
    value = _text(dataset, "FieldOfViewHorizontalFlip")
    return value if value in ("NO", "YES") else None  # type: ignore[return-value]


def _values(path: str | Path, dataset: Dataset, pixels: Pixels) -> tuple[NDArray[np.uint16], list[Decision]]:
    """Decoded values with a bright breast and padding 0, and the decisions on how they were obtained."""
    stored = _stored(path, dataset)
    try:
        values, (low, high), decisions = _through_tables(dataset, stored, pixels)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise DamagedFile(f"the file's tables or windows cannot be used: {error}", subject=path) from error
    if _text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        values = high - values
        decisions.append(Decision("photometric", "noted", "MONOCHROME1: values were inverted."))
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
    with _quiet():
        if "ModalityLUTSequence" in dataset or not _identity_rescale(dataset):
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
    bits = _number(dataset, "BitsStored", 16)
    if _number(dataset, "PixelRepresentation"):
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _after_modality(dataset: Dataset, low: float, high: float) -> tuple[float, float]:
    if "ModalityLUTSequence" in dataset:
        return _table_range(dataset.ModalityLUTSequence[0])
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    ends = sorted((slope * low + intercept, slope * high + intercept))
    return ends[0], ends[1]


def _table_range(table: Dataset) -> tuple[float, float]:
    return 0.0, 2.0 ** int(table.LUTDescriptor[2]) - 1


def _identity_rescale(dataset: Dataset) -> bool:
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return float(1 if slope in (None, "") else slope) == 1 and float(intercept or 0) == 0


def _padding(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit", first)
    inside: NDArray[np.bool_] = (stored >= min(first, last)) & (stored <= max(first, last))
    return inside


def _stored(path: str | Path, dataset: Dataset) -> NDArray[Any]:
    """Decode the frame after checking its size. A missing codec is not reported as a damaged file."""
    from pydicom.pixels import get_decoder

    height, width = _number(dataset, "Rows"), _number(dataset, "Columns")
    if height * width > MOST_PIXELS:
        raise TooLarge(
            "the image declares too many pixels",
            subject=path,
            expected=f"at most {MOST_PIXELS:,}",
            actual=f"{width} × {height}",
        )
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
    with _quiet():
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
        declared = (*jpeg2000_size(data), jpeg2000_components(data))
    except ValueError as error:
        raise DamagedFile(f"the pixels cannot be decoded: {error}", subject=path) from error
    if declared != (width, height, 1):
        raise DamagedFile(
            "the compressed pixels do not match the header",
            subject=path,
            expected=f"{width} × {height} px of one component",
            actual=f"{declared[0]} × {declared[1]} px of {declared[2]}",
        )
