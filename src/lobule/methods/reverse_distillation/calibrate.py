"""Calibration at the end of a training: patch scores, the shared form, and slide scores."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.cohort.labels import polarity
from lobule.errors import ConfigError
from lobule.geometry import Box
from lobule.measures.calibration import Platt
from lobule.methods.reverse_distillation.calibration import (
    Calibration,
    Floats,
    FormAgreement,
    SlideFit,
    fit_normal_patches,
    fit_patches,
    fit_slide_score,
    form_agreement,
)
from lobule.methods.reverse_distillation.config import Config, Form
from lobule.methods.reverse_distillation.geometry import field_side, margin_of
from lobule.methods.reverse_distillation.predictor import AnomalyPredictor
from lobule.scanning.contract import ScanOptions
from lobule.stitch import State
from lobule.training.patch_pools import PatchStreams, score_patches
from lobule.training.patch_sampling import NORMAL, TUMOUR, Pool, SlidePositions
from lobule.training.training_scan import TrainingScan

FIELD_COUNT, PATCHES_PER_SIDE = 6, 2
"""Number of fields on which the shared form is compared with the exact one, and patches along a side of a
field."""


@dataclass(frozen=True)
class CalibrationOutcome:
    """A calibration with its quality metrics and notes for the user."""

    calibration: Calibration
    metrics: dict[str, Any]
    notes: tuple[str, ...]


def calibrate(
    slide_scan: TrainingScan[AnomalyPredictor], streams: PatchStreams, learned: Pool, validation: Pool | None
) -> CalibrationOutcome:
    """Calibrate on the validation slides, or on the training patches without a validation pool."""
    predictor, on_device = slide_scan.predictor, streams.job.on_device
    with streams.validation(learned if validation is None else validation) as samples, torch.inference_mode():
        labels, raw = score_patches(
            samples, lambda batch: predictor.model.patch_scores(on_device(batch.pixels))
        )
    patch, notes = _patch_fit(labels, raw, validation is None)
    shared = compare_forms(predictor, learned if validation is None else validation)
    predictor.calibration = Calibration(patch, shared=shared)
    metrics: dict[str, Any] = {}
    if shared is not None:
        metrics |= {"shared_rank": shared.rank, "shared_error": shared.error}
    if validation is None or not predictor.config.val_slides:
        return CalibrationOutcome(predictor.calibration, metrics, notes)
    slides: dict[str, SlideFit | None] = {}
    for form in _forms(predictor.config, shared):
        try:
            slide_fit = _calibrate_slides(slide_scan, form, validation)
        except ConfigError as error:  # such as too little memory; only the configured form may fail
            if form == predictor.config.form:
                raise
            notes += (f"The slide scores of the {form} form are not calibrated: {error}",)
            continue
        if slide_fit is None:
            slides[form] = None
            notes += (
                f"The slide scores of the {form} form are not calibrated: they do not separate the "
                "validation slides by class.",
            )
            continue
        slides[form], slide_metrics = slide_fit
        suffix = "" if form == predictor.config.form else f"_{form}"
        metrics |= {f"{name}{suffix}": value for name, value in slide_metrics.items()}
    return CalibrationOutcome(replace(predictor.calibration, slides=slides), metrics, notes)


def _forms(config: Config, shared: FormAgreement | None) -> tuple[Form, ...]:
    """The forms whose slide scores are calibrated: the configured form, and shared, which is cheap."""
    return ("exact", "shared") if config.form == "exact" and shared is not None else (config.form,)


def _patch_fit(labels: NDArray[np.int64], raw: Floats, of_training: bool) -> tuple[Platt, tuple[str, ...]]:
    fit = fit_patches(labels == TUMOUR, raw)
    if fit is not None:
        note = (
            "Calibrated on the training patches because there are no validation patches: the scores are "
            "overconfident."
        )
        return fit, (note,) if of_training else ()
    reason = (
        "tumour scores no higher than normal tissue"
        if (labels == TUMOUR).any()
        else "there are no tumour patches"
    )
    note = f"Scores are not probabilities, because {reason}; one normal patch in a hundred scores above 1/2."
    return fit_normal_patches(raw[labels == NORMAL]), (note,)


# -- the shared form ----------------------------------------------------------------------------------------


def compare_forms(predictor: AnomalyPredictor, pool: Pool) -> FormAgreement | None:
    """Compare both forms on fields around points of both classes; None if there is no shared form."""
    model, config = predictor.model, replace(predictor.config, form="shared")
    try:
        model.scan_config(ScanOptions(settings={"form": "shared"}))
        margin = margin_of(config)
    except ConfigError:
        return None
    rng = np.random.default_rng(0)
    exact, shared = [], []
    for turn in range(FIELD_COUNT):
        usable = pool.usable(turn % 2) or pool.usable(1 - turn % 2)
        slide = pool.slides[usable[turn // 2 % len(usable)]]
        point = slide.draw(turn % 2, rng) or slide.draw(1 - turn % 2, rng)
        if point is None:
            continue
        pixels, required = _read_field(config, slide, point)
        device = next(predictor.net.parameters()).device
        field = torch.from_numpy(pixels[None]).to(device)
        with torch.inference_mode():
            mask_tensor = torch.from_numpy(required[None]).to(device)
            shared_scores = model.shared(config, field, mask_tensor)[0].cpu().numpy()
            patches = field[:, margin:, margin:]
            for row in range(len(required)):  # one row at a time, to save memory
                mask = np.zeros_like(required)
                mask[row] = required[row]
                exact_scores = model.exact(config, patches, torch.from_numpy(mask[None]).to(device))
                exact.append(exact_scores[0].cpu().numpy()[mask])
                shared.append(shared_scores[mask])
    scores = [np.concatenate([np.empty(0), *chunks]).astype(np.float64) for chunks in (exact, shared)]
    return form_agreement(*scores) if len(scores[0]) > 2 else None


def _read_field(
    config: Config, positions: SlidePositions, point: tuple[float, float]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The pixels of a field around a point, and a mask of its cells on tissue."""
    slide = copy.copy(positions.slide)
    try:
        lattice = slide.lattice(mpp=config.mpp)
        step = np.array([float(lattice.step_x), float(lattice.step_y)])
        cells = PATCHES_PER_SIDE * config.patch // config.stride
        side, margin = field_side(config, cells), margin_of(config)
        corner = np.round(np.array(point) / step - side / 2).astype(np.int64)
        pixels = slide.read_lattice(lattice, Box(int(corner[0]), int(corner[1]), side, side))
    finally:
        slide.close()
    along = margin + config.patch / 2 + config.stride * np.arange(cells)
    columns, rows = (
        np.floor((corner[k] + along) * step[k] / positions.l0_cell[k]).astype(np.int64) for k in (0, 1)
    )
    on_tissue = np.zeros((cells, cells), np.bool_)
    for r, row in enumerate(rows.tolist()):
        for c, column in enumerate(columns.tolist()):
            inside = row >= 0 and 0 <= column < positions.columns
            cell = row * positions.columns + column
            on_tissue[r, c] = inside and (cell in positions.cells[NORMAL] or cell in positions.cells[TUMOUR])
    return pixels, on_tissue


# -- slides -------------------------------------------------------------------------------------------------


def _calibrate_slides(
    slide_scan: TrainingScan[AnomalyPredictor], form: Form, validation: Pool
) -> tuple[SlideFit, dict[str, float]] | None:
    """Fit the slide score on scans of validation slides with and without tumour."""
    chosen = _alternate_classes(validation.slides, slide_scan.predictor.config.val_slides)
    # An interrupted scan is not continued: it may be one in the other form.
    shutil.rmtree(slide_scan.folder, ignore_errors=True)
    settings = {"threshold": "paper", "form": form}
    labels, cells = [], []
    with slide_scan.maps([slide.case for slide in chosen], settings=settings) as scanned:
        for slide in chosen:
            if slide.case.id in scanned.maps:
                scores, states = scanned.maps[slide.case.id].read()
                labels.append(slide.count(TUMOUR) > 0)
                cells.append(scores[-1][states == State.SCORED])
    shutil.rmtree(slide_scan.folder, ignore_errors=True)
    return fit_slide_score(labels, cells)


def _alternate_classes(slides: Sequence[SlidePositions], limit: int) -> list[SlidePositions]:
    """Up to `limit` slides, alternating between tumour slides and completely normal slides."""
    tumour = [slide for slide in slides if slide.count(TUMOUR)]
    normal = [
        slide for slide in slides if not slide.count(TUMOUR) and polarity(slide.case.label or "") is False
    ]
    alternating = chain.from_iterable(zip_longest(tumour, normal))
    return [slide for slide in alternating if slide is not None][:limit]
