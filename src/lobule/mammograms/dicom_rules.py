"""The rules that decide from a DICOM header whether a file is a view of an exam, of which breast and angle.

Every rule records a `Decision` with a sentence. No pixel is decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from lobule.errors import DamagedFile
from lobule.mammograms import dicom_codes as codes
from lobule.mammograms.dicom_codes import Override
from lobule.mammograms.record import Decision, Heading
from lobule.mammograms.views import View

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's warnings: many clinical files deviate from the standard in harmless ways."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


OTHER_PIXELS = "Its pixels differ from those that the published networks were trained on."


def judge_header(
    path: str | Path, dataset: Dataset, allow: frozenset[Override], view: View | None = None
) -> Heading:
    """Apply all rules. The `view` of the manifest is used if the header states none and that is allowed."""
    try:
        with quiet():
            return _apply_rules(path, dataset, allow, view if "unstated view" in allow else None)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise DamagedFile(
            f"the header contains a value that cannot be used: {error}", subject=path
        ) from error


def _apply_rules(
    path: str | Path, dataset: Dataset, allow: frozenset[Override], stated: View | None
) -> Heading:
    (angle, angle_decision), (side, side_decision) = _angle(dataset, stated), _side(dataset, stated)
    decisions = (*_kind_decisions(dataset, allow), *_special_decisions(dataset))
    view = cast(View, f"{side}-{angle}") if side and angle else None
    return Heading(
        path=str(path),
        decisions=(*decisions, angle_decision, side_decision),
        view=view,
        patient=text(dataset, "PatientID") or None,
        study=text(dataset, "StudyInstanceUID") or None,
        instance=text(dataset, "SOPInstanceUID") or None,
        acquired=_acquisition_time(dataset),
        height=number(dataset, "Rows"),
        width=number(dataset, "Columns"),
        mm_per_px=_spacing(dataset),
        pointing=_header_pointing(dataset),
        horizontal_flip=_flip(dataset),
    )


def text(dataset: Dataset, name: str) -> str:
    return str(dataset.get(name, "") or "").strip()


def number(dataset: Dataset, name: str, default: int = 0) -> int:
    value = dataset.get(name)
    return default if value in (None, "") else int(value)


def _refused(rule: str, sentence: str) -> Decision:
    return Decision(rule, "refused", sentence)


def _noted(rule: str, sentence: str) -> Decision:
    return Decision(rule, "noted", sentence)


def _allowed(rule: str, sentence: str) -> Decision:
    return Decision(rule, "allowed", sentence)


def _kind_decisions(dataset: Dataset, allow: frozenset[Override]) -> Iterator[Decision]:
    """Decisions on the kind of image: its class, intent, frames, samples and depth."""
    sop, modality = text(dataset, "SOPClassUID"), text(dataset, "Modality")
    override = codes.ONLY_IF_ALLOWED.get(sop)
    if sop in codes.NEVER:
        yield _refused("class", f"It is {codes.NEVER[sop]}.")
    elif override is not None and override in allow:
        yield _allowed("class", f"It is a {override} image, accepted because that is allowed. {OTHER_PIXELS}")
    elif override is not None:
        yield _refused("class", f"It is a {override} image, accepted only if that is allowed.")
    elif not sop and "unstated class" in allow:
        yield _allowed("class", f"It does not state its class, which is allowed. {OTHER_PIXELS}")
    elif sop != codes.PRESENTATION:
        yield _refused("class", f"Its class {sop or '(none)'} is not a mammogram For Presentation.")
    elif modality != "MG":
        yield _refused("class", f"Its modality is {modality or '(none)'}, not MG.")
    else:
        yield Decision("class", "accepted", "It is a digital mammogram For Presentation.")
    if text(dataset, "PresentationIntentType") == "FOR PROCESSING" and sop not in codes.NEVER:
        yield _refused("class", "It says that it is FOR PROCESSING.")
    frames, samples = number(dataset, "NumberOfFrames", 1), number(dataset, "SamplesPerPixel", 1)
    if frames != 1:
        yield _refused("frames", f"It has {frames} frames, a view has one.")
    if samples != 1:
        yield _refused("samples", f"It has {samples} samples a pixel, a mammogram has one.")
    stated = dataset.get("ImageType") or ()
    image_type = {str(value).upper() for value in ([stated] if isinstance(stated, str) else stated)}
    if made_from := sorted(image_type.intersection(codes.SYNTHESISED)):
        sentence = f"ImageType holds {made_from[0]}: a flat image made from tomosynthesis."
        yield (_allowed if "synthesised" in allow else _refused)("synthesised", sentence)
    if 0 < number(dataset, "BitsStored") <= 8:
        sentence = "It stores 8 bits or fewer, a mammogram has at least 10."
        if "8-bit" in allow:
            yield _allowed("depth", f"{sentence} {OTHER_PIXELS}")
        else:
            yield _refused("depth", sentence)


def _special_decisions(dataset: Dataset) -> Iterator[Decision]:
    """Decisions on special views, and notes that a reader of the image needs."""
    for item in (dataset, *(dataset.get("ViewCodeSequence") or ())):
        for modifier in item.get("ViewModifierCodeSequence") or ():
            value = text(modifier, "CodeValue")
            name = codes.MODIFIERS.get(value) or text(modifier, "CodeMeaning") or value
            if value in codes.MODIFIERS:
                yield _refused("modifier", f"It is a special view: {name}.")
            else:
                yield _noted("modifier", f"It has the view modifier {name}.")
    if text(dataset, "PartialView") == "YES":
        yield _refused("partial", "It shows only a part of the breast.")
    if text(dataset, "QualityControlImage") == "YES":
        yield _refused("quality control", "It is an image for quality control.")
    if text(dataset, "BreastImplantPresent") == "YES":
        yield _noted("implant", "The breast has an implant, which the models have rarely seen.")
    if text(dataset, "BurnedInAnnotation") == "YES":
        yield _noted("annotation", "Annotations are burned into the image.")


def _angle(dataset: Dataset, stated: View | None = None) -> tuple[str | None, Decision]:
    position = text(dataset, "ViewPosition").upper()
    by_position = position if position in ("CC", "MLO") else None
    sequence = dataset.get("ViewCodeSequence") or ()
    if not sequence:
        if by_position:
            return by_position, Decision("view", "accepted", f"ViewPosition says {by_position}.")
        if stated is not None and (not position or position == stated[2:4]):
            # File names of INbreast write ML for MLO, and so may headers.
            header = f"ViewPosition is {position or 'absent'}"
            return stated[2:], _allowed("view", f"{header}; the manifest says {stated[2:]}, which is used.")
        return None, _refused("view", f"It does not say CC or MLO (ViewPosition is {position or 'absent'}).")
    value = text(sequence[0], "CodeValue")
    angle = codes.ANGLES.get(value)
    if angle is None:
        name = codes.OTHER_VIEWS.get(value) or text(sequence[0], "CodeMeaning") or value or "without a code"
        return None, _refused("view", f"Its view is {name}, neither CC nor MLO.")
    if by_position and by_position != angle:
        return None, _refused(
            "view", f"ViewCodeSequence says {angle}, ViewPosition {by_position}: they conflict."
        )
    return angle, Decision("view", "accepted", f"ViewCodeSequence says {angle}.")


def _side(dataset: Dataset, stated: View | None = None) -> tuple[str | None, Decision]:
    image, series = text(dataset, "ImageLaterality").upper(), text(dataset, "Laterality").upper()
    if image and series and image != series:
        return None, _refused("side", f"ImageLaterality says {image}, Laterality {series}: they conflict.")
    side = image or series
    if not side and stated is not None:
        return stated[0], _allowed(
            "side", f"It states no side; the manifest says {stated[0]}, which is used."
        )
    if side not in ("L", "R"):
        return None, _refused("side", f"It does not say left or right (laterality is {side or 'absent'}).")
    source = "ImageLaterality" if image else "Laterality"
    return side, Decision("side", "accepted", f"{source} says {side}.")


def _acquisition_time(dataset: Dataset) -> str:
    for kind in ("Acquisition", "Content", "Series", "Study"):
        date = text(dataset, f"{kind}Date")
        if date:
            return date + text(dataset, f"{kind}Time").partition(".")[0]
    return ""


def _spacing(dataset: Dataset) -> float | None:
    spacing = dataset.get("ImagerPixelSpacing") or dataset.get("PixelSpacing")
    return float(spacing[0]) if spacing else None


def _header_pointing(dataset: Dataset) -> Literal["left", "right"] | None:
    """The breast points right if rows run to the anterior."""
    orientation = dataset.get("PatientOrientation") or [""]
    first = str(orientation[0])[:1].upper()
    return {"A": "right", "P": "left"}.get(first)  # type: ignore[return-value]


def _flip(dataset: Dataset) -> Literal["NO", "YES"] | None:
    value = text(dataset, "FieldOfViewHorizontalFlip")
    return value if value in ("NO", "YES") else None  # type: ignore[return-value]
