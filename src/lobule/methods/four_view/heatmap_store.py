"""Heatmaps for training. The scanner runs the patch network over every exam once and stores the patch scores.

The scores of a view take a few kilobytes. Its heatmaps are computed from them when they are read.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Cohort
from lobule.errors import DamagedResults
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.images import ExamView, Heatmaps, PatchView
from lobule.methods.four_view.painting import fill_patches
from lobule.methods.four_view.patches import BENIGN, MALIGNANT, PatchGrid
from lobule.methods.four_view.plan import PlannedImage, distinct_patches, patch_frame
from lobule.methods.four_view.pool import ExamPool, TrainExam, TrainView
from lobule.methods.four_view.predictor import FourViewPredictor
from lobule.methods.four_view.scores import scored_rows
from lobule.methods.four_view.streams import draw_grid
from lobule.results.folder import Results, open_results
from lobule.results.result import Result
from lobule.scanning.contract import OpenCase, ScanOptions, Steps
from lobule.scanning.scan import Machine, scan


class PatchScorer:
    """Predictor that runs only the patch network: it fills one table of scores per image of an exam."""

    classes = ("malignant", "benign", "outside", "negative")

    def __init__(self, predictor: FourViewPredictor) -> None:
        self.config = predictor.config
        self.model, self.images = predictor.model, predictor.images

    def steps(self, case: OpenCase) -> Steps[Result]:
        images = {name: image for name, image in case.images.items() if isinstance(image, ExamView)}
        shapes = {name: image.crop.window.shape for name, image in images.items()}
        for name, grid in patch_grids(shapes, self.config).items():
            source = PatchView(images[name], patch_frame(images[name], self.config))
            rows, _ = distinct_patches(grid, source.pixels)
            planned = PlannedImage(name, images[name], (), ())
            yield from fill_patches(planned, source, grid, rows, case.engine)
        return Result({})


def patch_grids(shapes: Mapping[str, tuple[int, int]], config: Config) -> dict[str, PatchGrid]:
    """Draw the patch grid of each image of an exam.

    All images share one random stream, except in variants that score each view alone.
    """
    rng = random.Random(config.seed)
    grids = {}
    for name, shape in shapes.items():
        grids[name] = draw_grid(shape, rng if config.reads_exams else random.Random(config.seed), config)
    return grids


class HeatmapStore:
    """Heatmaps of exams, computed from the stored scores of their patches."""

    def __init__(self, results: Results, config: Config) -> None:
        self._results, self._config = results, config

    def read(self, exam: TrainExam, image: TrainView, pool: ExamPool) -> Heatmaps:
        """Return the benign and the malignant heatmap (H, W) of the cropped, right-pointing view."""
        heatmaps = pool.cache.get(("heatmaps", image.path), lambda: self._compute(exam, image, pool))
        return heatmaps[0], heatmaps[1]

    def _compute(self, exam: TrainExam, image: TrainView, pool: ExamPool) -> NDArray[np.float32]:
        shapes = {name: other.shape for name, other in exam.images.items()}
        grid = patch_grids(shapes, self._config)[image.name]
        pixels = pool.pixels(image)
        rows, row_of = distinct_patches(grid, pixels[:, ::-1] if image.patches_mirrored else pixels)
        table = self._results.case_folder(exam.case.id).tables[f"patches {image.name}"]
        scored = scored_rows(table, "scores")
        if len(scored) < len(rows):
            raise DamagedResults(
                f"{len(rows) - len(scored)} patches of {image.name} have no score", subject=table.path
            )
        scores = np.stack([scored[int(row)] for row in row_of])[:, [BENIGN, MALIGNANT]]
        maps = average_patch_scores(image.shape, grid, scores)
        return np.ascontiguousarray(maps[:, :, ::-1] if image.patches_mirrored else maps)


def average_patch_scores(
    shape: tuple[int, int], grid: PatchGrid, scores: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """Average the scores (patches, classes) of the patches over each pixel to maps (classes, H, W).

    Cumulative sums make the time almost independent of the number of patches. The result equals that of
    `heatmap_of`, which adds patch by patch, to within 1e-6.
    """
    classes = scores.shape[1]
    change = np.zeros((classes + 1, shape[0] + 1, shape[1] + 1))
    for (row, column), patch_scores in zip(grid.corners(), scores, strict=True):
        bottom, right = row + grid.patch, column + grid.patch
        values = np.append(patch_scores, 1.0)
        change[:, row, column] += values
        change[:, bottom, right] += values
        change[:, row, right] -= values
        change[:, bottom, column] -= values
    sums = change.cumsum(axis=1).cumsum(axis=2)[:, :-1, :-1]
    means: NDArray[np.float32] = (sums[:classes] / np.rint(sums[classes])).astype(np.float32)
    return means


def score_patches(
    predictor: FourViewPredictor, fingerprint: str, cohort: Cohort, folder: Path, machine: Machine
) -> tuple[HeatmapStore, dict[str, str]]:
    """Run the patch network over a cohort, or continue an interrupted run.

    Returns:
        The store of heatmaps, and the cause of failure by case for the cases that failed.
    """
    bundle = {"method": "four_view", "fingerprint": fingerprint, "classes": list(PatchScorer.classes)}
    report = scan(PatchScorer(predictor), bundle, cohort, folder, ScanOptions(), machine)
    return HeatmapStore(open_results(folder), predictor.config), dict(report.failed)
