"""The published evaluations of FW-RD on patches: listed patches of slides, and WSSS4LUAD.

Every patch gets the mean and the maximum of its smoothed map. On listed patches, the area under the ROC curve
of both is computed, and the accuracy at the threshold with the best F1. That threshold is chosen on the same
patches, as published, so the accuracy is optimistic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.cohort import Cohort
from lobule.errors import ConfigError
from lobule.geometry import Box
from lobule.methods.reverse_distillation.coords import read_coords
from lobule.methods.reverse_distillation.predictor import AnomalyPredictor
from lobule.methods.reverse_distillation.wsss4luad import LabelledPatch, labelled_patches
from lobule.scanning.contract import EngineSettings, ScanOptions
from lobule.slides.normalised import with_normalisation
from lobule.slides.slide import open_slide
from lobule.training.patch_sampling import NORMAL, TUMOUR

AT_ONCE = 64
Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PatchMaps:
    """Computes the smoothed anomaly maps of patches on one device, in float32."""

    predictor: AnomalyPredictor
    device: str = "cpu"

    def __post_init__(self) -> None:
        model, config = self.predictor.model, self.predictor.config
        cells = 8 * max(1, config.patch // config.stride)
        engine = EngineSettings(device=self.device, precision="float32", cells=cells)
        model.move_to_device(engine, ScanOptions())

    def of(self, patches: Pixels) -> NDArray[np.float32]:
        """Maps (n, input, input) of patches (n, rows, columns, 3)."""
        with torch.inference_mode():
            maps = self.predictor.model.patch_maps(torch.from_numpy(patches).to(self.device))
        return maps.float().cpu().numpy()


def best_f1_threshold(labels: NDArray[np.bool_], scores: Values) -> float:
    """The score with the best F1 if it and all higher scores count as positive; the lowest of equal ones."""
    order = np.argsort(-scores, kind="stable")
    true_positives = np.cumsum(labels[order])
    f1 = 2 * true_positives / (np.arange(1, len(order) + 1) + labels.sum())
    last_of_equal = np.append(np.diff(scores[order]) != 0, True)
    candidates = np.flatnonzero(last_of_equal)
    best = candidates[np.flatnonzero(f1[candidates] == f1[candidates].max())[-1]]
    return float(scores[order][best])


def figures(labels: NDArray[np.bool_], scores: Values) -> dict[str, float]:
    """AUROC of scores, and threshold and accuracy at the best F1."""
    from sklearn.metrics import roc_auc_score

    if labels.all() or not labels.any():
        raise ConfigError("the patches are all of one class", expected="normal and tumour patches")
    threshold = best_f1_threshold(labels, scores)
    accuracy = float(((scores >= threshold) == labels).mean())
    return {"auroc": float(roc_auc_score(labels, scores)), "threshold": threshold, "accuracy": accuracy}


# -- listed patches of slides -------------------------------------------------------------------------------


def evaluate_listed(maps: PatchMaps, cohort: Cohort, coords: tuple[str, ...]) -> dict[str, Any]:
    """Evaluate patches of slides that lists of centres name.

    Args:
        maps: The model.
        cohort: The slides.
        coords: As for a training: the lists of normal and of tumour patches, or one list of both.

    Raises:
        ConfigError: A listed slide is not in the cohort.
    """
    means, maxima, labels = [], [], []
    for label, pixels in _listed_pixels(maps.predictor, cohort, coords):
        computed = maps.of(pixels)
        means.append(computed.mean(axis=(1, 2), dtype=np.float64))
        maxima.append(computed.max(axis=(1, 2)).astype(np.float64))
        labels.append(np.full(len(pixels), label == TUMOUR))
    is_tumour = np.concatenate(labels)
    return {
        "normal_patches": int((~is_tumour).sum()),
        "tumour_patches": int(is_tumour.sum()),
        "mean": figures(is_tumour, np.concatenate(means)),
        "maximum": figures(is_tumour, np.concatenate(maxima)),
    }


def _listed_pixels(
    predictor: AnomalyPredictor, cohort: Cohort, coords: tuple[str, ...]
) -> Iterator[tuple[int, Pixels]]:
    """Yield the patches of each class and slide, at most `AT_ONCE` at once."""
    config, centres = predictor.config, read_coords(coords)
    cases = {case.id.lower(): case for case in cohort}
    missing = sorted({*centres[NORMAL], *centres[TUMOUR]} - set(cases))
    if missing:
        raise ConfigError(
            f"{len(missing)} listed slides are not in the cohort",
            subject=cohort.path,
            actual=", ".join(missing[:5]),
            remedy="Add these slides to the cohort, or shorten the lists",
        )
    for label, of_slides in centres.items():
        for name, points in of_slides.items():
            case = cases[name]
            assert case.path is not None, "patches are listed for slides"
            slide = with_normalisation(open_slide(case.path, mpp=case.mpp), config.stains)
            lattice = slide.lattice(mpp=config.mpp)
            steps = (float(lattice.step_x), float(lattice.step_y))
            corners = np.round(np.array(points) / steps - config.patch / 2).astype(np.int64)
            for start in range(0, len(corners), AT_ONCE):
                boxes = [
                    Box(int(x), int(y), config.patch, config.patch)
                    for x, y in corners[start : start + AT_ONCE]
                ]
                yield label, np.stack([slide.read_lattice(lattice, box) for box in boxes])
            slide.close()


# -- WSSS4LUAD ----------------------------------------------------------------------------------------------


def evaluate_wsss4luad(maps: PatchMaps, folder: str | Path) -> dict[str, Any]:
    """Evaluate the pixels of the anomaly maps of WSSS4LUAD's validation and test images, without background.

    A patch's label is whether any of its pixels is tumour or stroma, and its score is the mean of its map;
    background counts for neither.
    """
    pixel_labels, pixel_scores, labels, scores, left_out = [], [], [], [], 0
    for patches in _in_batches(labelled_patches(folder)):
        computed = maps.of(np.stack([patch.pixels for patch in patches]))
        for patch, anomaly in zip(patches, computed, strict=True):
            is_anomaly, is_tissue = patch.masks_at(anomaly.shape[0])
            if not is_tissue.any():
                left_out += 1
                continue
            pixel_labels.append(is_anomaly[is_tissue])
            pixel_scores.append(anomaly[is_tissue].astype(np.float64))
            labels.append(bool(is_anomaly[is_tissue].any()))
            scores.append(float(anomaly[is_tissue].mean(dtype=np.float64)))
    if not labels:
        raise ConfigError("the folder contains no patch of WSSS4LUAD", subject=folder)
    patch_figures: Mapping[str, float] = figures(np.array(labels), np.array(scores))
    return {
        "patches": len(labels),
        "without_tissue": left_out,
        "pixels": figures(np.concatenate(pixel_labels), np.concatenate(pixel_scores)),
        "patch_mean": dict(patch_figures),
    }


def _in_batches(patches: Iterator[LabelledPatch]) -> Iterator[list[LabelledPatch]]:
    batch: list[LabelledPatch] = []
    for patch in patches:
        batch.append(patch)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
