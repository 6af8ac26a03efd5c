"""Calibration at the end of a training: of patches, of the shared form, and of slides."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.cohort import Cohort
from lobule.cohort.labels import polarity
from lobule.errors import ConfigError
from lobule.geometry import Box
from lobule.measures.calibration import Platt
from lobule.methods.reverse_distillation.calibration import (
    Calibration,
    Floats,
    Shared,
    SlideFit,
    of_normal,
    of_patches,
    of_shared,
    of_slides,
)
from lobule.methods.reverse_distillation.config import Config, Form
from lobule.methods.reverse_distillation.predictor import AnomalyPredictor
from lobule.results.folder import open_results
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from lobule.tissue import TissueConfig
from lobule.training.fitting import TrainMachine
from lobule.training.patch_sampling import NORMAL, TUMOUR, Pool, SlidePositions
from lobule.training.sampling import Samples, SampleStream

FIELDS, PATCHES = 6, 2
"""Fields, and how many patches a side they hold, on which the shared form is compared with the exact one."""


@dataclass(frozen=True)
class Told:
    """A calibration, how good it is, and what there is to say of it."""

    calibration: Calibration
    metrics: dict[str, Any]
    notes: tuple[str, ...]


def calibrate(
    predictor: AnomalyPredictor,
    learned: Pool,
    held: Pool | None,
    stream: Callable[[Pool], SampleStream],
    tissue: TissueConfig | None,
    folder: Path,
    machine: TrainMachine,
) -> Told:
    """Calibrate on what was held out, or where nothing was, on the patches that were learned from."""
    with stream(learned if held is None else held) as samples:
        labels, raw = raw_scores(predictor, samples, torch.device(machine.device))
    patch, notes = _patch_fit(labels, raw, held is None)
    shared = compare_forms(predictor, learned if held is None else held)
    predictor.calibration = Calibration(patch, shared=shared)
    metrics: dict[str, Any] = {}
    if shared is not None:
        metrics |= {"shared_rank": shared.rank, "shared_error": shared.error}
    if held is None or not predictor.config.val_slides:
        return Told(predictor.calibration, metrics, notes)
    slides: dict[str, SlideFit | None] = {}
    for form in _forms(predictor.config, shared):
        try:
            found = _of_scans(predictor, form, held, tissue, folder / "calibration", machine)
        except ConfigError as error:  # such as memory for its fields; what nobody asked for costs no training
            if form == predictor.config.form:
                raise
            notes += (f"slide scores of the {form} form are not calibrated: {error}",)
            continue
        if found is None:
            slides[form] = None
            notes += (f"the validation slides do not tell slides apart ({form} form): not calibrated",)
            continue
        slides[form], told = found
        own = "" if form == predictor.config.form else f"_{form}"
        metrics |= {f"{name}{own}": value for name, value in told.items()}
    return Told(replace(predictor.calibration, slides=slides), metrics, notes)


def _forms(config: Config, shared: Shared | None) -> tuple[Form, ...]:
    """The forms whose slide scores are worth fitting: that of the config, and shared, which costs little."""
    return ("exact", "shared") if config.form == "exact" and shared is not None else (config.form,)


def raw_scores(
    predictor: AnomalyPredictor, samples: Iterable[Samples], device: torch.device
) -> tuple[NDArray[np.int64], Floats]:
    """Labels and raw scores of drawn patches."""
    labels, scores = [], []
    with torch.inference_mode():
        for batch in samples:
            scores.append(predictor.patch_scores(torch.from_numpy(batch.pixels).to(device)).cpu().numpy())
            labels.append(batch.labels)
    return np.concatenate(labels), np.concatenate(scores).astype(np.float64)


def _patch_fit(labels: NDArray[np.int64], raw: Floats, of_training: bool) -> tuple[Platt, tuple[str, ...]]:
    fit = of_patches(labels == TUMOUR, raw)
    if fit is not None:
        note = "calibrated on the training patches themselves, for want of others: scores are too sure"
        return fit, (note,) if of_training else ()
    why = "tumour scores no higher than normal tissue" if (labels == TUMOUR).any() else "no tumour is known"
    note = f"{why}: scores are no probabilities; above 1/2 lies one normal patch in a hundred"
    return of_normal(raw[labels == NORMAL]), (note,)


# -- the shared form ----------------------------------------------------------------------------------------


def compare_forms(predictor: AnomalyPredictor, pool: Pool) -> Shared | None:
    """Both forms of the same cells, on fields around places of either class; None where shared is none."""
    config = replace(predictor.config, form="shared")
    try:
        predictor.stride(ScanOptions(settings={"form": "shared"}))
        margin = predictor.margin(config)
    except ConfigError:
        return None
    rng = np.random.default_rng(0)
    exact, shared = [], []
    for turn in range(FIELDS):
        usable = pool.usable(turn % 2) or pool.usable(1 - turn % 2)
        places = pool.slides[usable[turn // 2 % len(usable)]]
        place = places.draw(turn % 2, rng) or places.draw(1 - turn % 2, rng)
        if place is None:
            continue
        pixels, wanted = _field(predictor, config, places, place)
        device = next(predictor.net.parameters()).device
        one = torch.from_numpy(pixels[None]).to(device)
        with torch.inference_mode():
            asked = torch.from_numpy(wanted[None]).to(device)
            whole = predictor.shared(one, config.stride, asked)[0].cpu().numpy()
            patches = one[:, margin:, margin:]
            for row in range(len(wanted)):  # a row at a time, so that memory stays small
                mask = np.zeros_like(wanted)
                mask[row] = wanted[row]
                found = predictor.exact(patches, config.stride, torch.from_numpy(mask[None]).to(device))
                exact.append(found[0].cpu().numpy()[mask])
                shared.append(whole[mask])
    together = [np.concatenate([np.empty(0), *parts]).astype(np.float64) for parts in (exact, shared)]
    return of_shared(*together) if len(together[0]) > 2 else None


def _field(
    predictor: AnomalyPredictor, config: Config, places: SlidePositions, place: tuple[float, float]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The pixels of a field around a place, and which of its cells lie on tissue."""
    slide = copy.copy(places.slide)
    try:
        lattice = slide.lattice(mpp=config.mpp)
        step = np.array([float(lattice.step_x), float(lattice.step_y)])
        cells = PATCHES * config.patch // config.stride
        side, margin = predictor.field_side(config, config.stride, cells), predictor.margin(config)
        corner = np.round(np.array(place) / step - side / 2).astype(np.int64)
        pixels = slide.read_lattice(lattice, Box(int(corner[0]), int(corner[1]), side, side))
    finally:
        slide.close()
    along = margin + config.patch / 2 + config.stride * np.arange(cells)
    columns, rows = (
        np.floor((corner[k] + along) * step[k] / places.l0_cell[k]).astype(np.int64) for k in (0, 1)
    )
    wanted = np.zeros((cells, cells), np.bool_)
    for r, row in enumerate(rows.tolist()):
        for c, column in enumerate(columns.tolist()):
            inside = row >= 0 and 0 <= column < places.columns
            cell = row * places.columns + column
            wanted[r, c] = inside and (cell in places.cells[NORMAL] or cell in places.cells[TUMOUR])
    return pixels, wanted


# -- slides -------------------------------------------------------------------------------------------------


def _of_scans(
    predictor: AnomalyPredictor,
    form: Form,
    held: Pool,
    tissue: TissueConfig | None,
    folder: Path,
    machine: TrainMachine,
) -> tuple[SlideFit, dict[str, float]] | None:
    """Threshold and fit of the slide score, from scans of validation slides of both kinds."""
    chosen = _of_both_kinds(held.slides, predictor.config.val_slides)
    cohort = Cohort(tuple(places.case for places in chosen))
    shutil.rmtree(folder, ignore_errors=True)
    options = ScanOptions(tissue=tissue, settings={"threshold": "paper", "form": form})
    facts = {"method": "reverse_distillation", "fingerprint": "calibration", "classes": []}
    runs = Machine(machine.device, machine.precision, machine.max_ram, channels_last=True)
    report = scan(predictor, facts, cohort, folder, options, runs)
    results = open_results(folder)
    labels, cells = [], []
    for places in chosen:
        if places.case.id in report.failed:
            continue
        (reader,) = results.case_folder(places.case.id).maps.values()
        scores, states = reader.read()
        labels.append(places.count(TUMOUR) > 0)
        cells.append(scores[-1][states == State.SCORED])
    shutil.rmtree(folder, ignore_errors=True)
    return of_slides(labels, cells)


def _of_both_kinds(slides: Sequence[SlidePositions], most: int) -> list[SlidePositions]:
    """Tumour slides and slides that are wholly normal, in turn, up to so many."""
    tumour = [places for places in slides if places.count(TUMOUR)]
    normal = [
        places for places in slides if not places.count(TUMOUR) and polarity(places.case.label or "") is False
    ]
    mixed = chain.from_iterable(zip_longest(tumour, normal))
    return [places for places in mixed if places is not None][:most]
