"""The true lesions of a slide: its annotation or ground-truth mask, as the evaluation mask of Camelyon16."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lobule.annotations import rasterise, read_annotation, read_class_mask
from lobule.cohort import Case
from lobule.errors import CaseError, TooLarge, UsageError
from lobule.evaluation.options import Options
from lobule.evaluation.sources import CaseResult
from lobule.files import is_url
from lobule.geometry import Box, Size, level_step
from lobule.measures.estimate import Floats
from lobule.measures.lesion_masks import PIXEL_UM, STEP, EvaluationMask, evaluation_mask
from lobule.slides.slide import Slide, open_mask, open_slide
from lobule.units import Mpp

NEAR = 0.1
"""Relative distance to 0.243 µm/px within which the official constants apply, as to all Camelyon16 slides."""
MAX_CELLS = 1 << 28
MUCH_TUMOUR = 0.5
MASK_SUFFIXES = (".tif", ".tiff", ".png")
MASK_NAMES = ("{}_Mask.tif", "{}_mask.tif", "{}.tif", "{}_mask.png", "{}.png")

Steps = tuple[Fraction, Fraction]


@dataclass(frozen=True, eq=False)
class Truth:
    """The lesions of a slide, and the number of its level-0 pixels per mask cell."""

    mask: EvaluationMask | None
    """None for a normal slide."""
    steps: Steps
    notes: tuple[str, ...] = ()

    def on_cells(self, detections: Floats) -> Floats:
        """Scale detections so that a cell has 32 pixels, as the official script expects."""
        if all(step == STEP for step in self.steps):
            return detections
        cells = np.floor(detections[:, 1:] / np.array(self.steps, np.float64))
        return np.column_stack([detections[:, 0], cells * STEP])


def read_truth(case: Case, result: CaseResult, positive: bool | None, options: Options) -> Truth | str:
    """The true lesions of a slide, or the reason why they are not known."""
    mpp = Mpp.square(case.mpp) if case.mpp is not None else result.mpp
    steps, notes = choose_steps(mpp, options)
    path = mask_file(case, options) or case.annotation
    if positive is False:
        return Truth(None, steps, notes)
    if path is None:
        return "positive, but without annotation" if positive else "neither label nor annotation"
    truth, source_path = rasterise_truth(case, path, result.size, steps, options)
    if truth.size and not truth.any():
        notes = (*notes, f"{source_path} contains no tumour, so the slide has no lesions")
    elif truth.size and truth.mean() > MUCH_TUMOUR:
        # A TIFF reader returns white for missing tiles, and white means tumour in a mask.
        notes = (*notes, f"more than half of {source_path} is tumour; check that the file has all its tiles")
    return Truth(evaluation_mask(truth), steps, notes)


def choose_steps(mpp: Mpp | None, options: Options) -> tuple[Steps, tuple[str, ...]]:
    """Level-0 pixels per cell, in x and y: 32 as in the official script, or as many as make 7.776 µm."""
    official = (Fraction(STEP), Fraction(STEP))
    if options.lesion_scale == "official":
        return official, ()
    if mpp is None:
        return official, ("its µm/px is not known; 0.243 is assumed",)
    near = all(abs(axis_um / PIXEL_UM - 1) <= NEAR for axis_um in (mpp.x, mpp.y))
    if near and options.lesion_scale == "auto":
        return official, ()
    x, y = (
        Fraction(PIXEL_UM * STEP).limit_denominator(10**6) / Fraction(axis_um).limit_denominator(10**6)
        for axis_um in (mpp.x, mpp.y)
    )
    return (x, y), ()


def check_masks(options: Options) -> None:
    """Raise `UsageError` if the folder of masks does not exist."""
    if options.masks is not None and not Path(options.masks).is_dir():
        remedy = "Check the path of --masks"
        raise UsageError("there is no folder of masks", subject=options.masks, remedy=remedy)


def mask_file(case: Case, options: Options) -> str | None:
    """The path of a case's mask, named as the organisers of Camelyon16 name it; None if it is missing."""
    if options.masks is None:
        return None
    names = [case.id, *([Path(case.path).stem] if case.path else [])]
    candidates = [Path(options.masks) / pattern.format(name) for name in names for pattern in MASK_NAMES]
    return next((str(candidate) for candidate in candidates if candidate.is_file()), None)


def rasterise_truth(
    case: Case, path: str, size: Size | None, steps: Steps, options: Options
) -> tuple[NDArray[np.bool_] | NDArray[np.uint8], str]:
    """The tumour of a slide on cells of `steps` level-0 pixels, and the path that it was read from."""
    size = size or _size_of_slide(case)
    if Path(path).suffix.lower() in MASK_SUFFIXES:
        return _read_mask(path, size, steps, options, case.mask_tumour), path
    if size is None:
        raise CaseError(
            "the size of the slide is not known, so its outlines cannot be rasterised",
            subject=case.id,
            remedy="Put the slide at the path that the cohort states, or evaluate a results folder",
        )
    columns, rows = (-(-side // step) for side, step in zip(size, steps, strict=True))
    if columns * rows > MAX_CELLS:
        problem = f"the slide is too large: {size} px"
        raise TooLarge(problem, subject=case.id, expected=f"at most {MAX_CELLS} cells")
    return rasterise(read_annotation(path), steps, Box(0, 0, int(columns), int(rows))), path


def _size_of_slide(case: Case) -> Size | None:
    if case.path is None or is_url(case.path) or not Path(case.path).exists():
        return None
    with open_slide(case.path) as slide:
        return slide.size


def _read_mask(
    path: str, size: Size | None, steps: Steps, options: Options, tumour_value: int | None
) -> NDArray[np.bool_]:
    """The mask sampled at the centres of the cells; a level that has exactly these cells is used as it is."""
    if Path(path).suffix.lower() == ".png":
        values, level_0_size = read_class_mask(path).values, None
    else:
        with open_mask(path) as slide:
            values, level_0_size = _read_nearest_level(slide, size, steps, options)
    mask_size = Size(values.shape[1], values.shape[0])
    slide_size = level_0_size or size
    if slide_size is None:
        if options.mask_step is None:
            raise CaseError(
                "the scale of the mask is not known",
                subject=path,
                expected="a pyramid, or a slide of known size",
                remedy="State the number of level-0 pixels per mask pixel with --mask-step",
            )
        slide_size = Size(*(round(side * options.mask_step) for side in mask_size))
    tumour = np.asarray(values == (_tumour_value(values) if tumour_value is None else tumour_value))
    if values.any() and not tumour.any() and tumour_value is None:
        evaluation_mask(values.astype(np.uint8))  # This raises an error that names the values of the mask.
    mask_steps = tuple(map(level_step, slide_size, mask_size))
    if mask_steps == steps:
        return tumour
    columns, rows = (max(1, -(-side // step)) for side, step in zip(slide_size, steps, strict=True))
    at_x, at_y = (
        np.minimum((np.arange(int(count)) + 0.5) * float(step / mask_step), side - 1).astype(np.int64)
        for count, step, mask_step, side in zip((columns, rows), steps, mask_steps, mask_size, strict=True)
    )
    return np.asarray(tumour[at_y[:, None], at_x[None, :]])


def _tumour_value(values: NDArray[np.integer]) -> int:
    """The value that means tumour: 255, or else 2, or else 1, which is then the only value.

    ASAP's script for Camelyon16 writes tumour as 1 into a mask that has no other value. Where 1 and 2 both
    occur, 1 is normal tissue, as in the masks of Camelyon's cloud bucket. The column `mask_tumour` of the
    cohort states another value.
    """
    return next((value for value in (255, 2) if (values == value).any()), 1)


def _read_nearest_level(
    slide: Slide, size: Size | None, steps: Steps, options: Options
) -> tuple[NDArray[np.uint8], Size | None]:
    """The coarsest level that is not coarser than the cells, and the size of level 0 if it is known."""
    has_one_level = len(slide.levels) == 1
    slide_size = size or (None if has_one_level else slide.size)
    if slide_size is None and options.mask_step is None:
        return _first_channel(slide, 0), None
    chosen = 0
    for index, level in enumerate(slide.levels):
        if slide_size is not None and slide_size.width / level.size.width <= float(steps[0]) * 1.01:
            chosen = index
    return _first_channel(slide, chosen), slide_size


def _first_channel(slide: Slide, level: int) -> NDArray[np.uint8]:
    size = slide.levels[level].size
    if size.area > MAX_CELLS:
        raise TooLarge(
            f"level {level} of the mask is too large: {size} px",
            subject=slide.path,
            expected=f"a level of at most {MAX_CELLS} px",
            remedy="Save the mask as a pyramid",
        )
    return np.ascontiguousarray(slide.read_level(level, Box(0, 0, *size))[..., 0])
