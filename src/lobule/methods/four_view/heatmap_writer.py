"""Heatmaps of a cohort at full resolution, written as the published tools write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, UsageError
from lobule.files import make_folder
from lobule.mammograms.breasts import GRADES
from lobule.mammograms.exam_views import PatchView, readable_views
from lobule.methods.four_view.heatmap_files import write_heatmaps
from lobule.methods.four_view.heatmaps import ViewPatches
from lobule.methods.four_view.planning import patch_frame
from lobule.methods.four_view.predictor import FourViewPredictor
from lobule.results.result import Result
from lobule.scanning.contract import ImageSource, OpenCase, ScanOptions, Steps
from lobule.scanning.scan import Machine, ScanReport, scan


class HeatmapWriter:
    """Predictor that writes the heatmaps of every image of an exam, at full resolution."""

    def __init__(self, predictor: FourViewPredictor, folder: Path) -> None:
        self._predictor, self._folder, self.model = predictor, folder, predictor.model

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        return self._predictor.images(case, options)

    def steps(self, case: OpenCase) -> Steps[Result]:
        config = self._predictor.config.set(case.options.settings)
        images = readable_views(case.images)
        for name, grid in self._predictor.patch_grids(case, config).items():
            source = PatchView(images[name], patch_frame(images[name], config))
            maps = []
            for net in range(config.architecture.patch_nets):
                patches = ViewPatches(name, images[name], source, grid, case.engine, net)
                maps.append((yield from patches.heatmaps(config.reading.painting))[0])
            write_heatmaps(self._folder, images[name], np.mean(maps, axis=0) if len(maps) > 1 else maps[0])
        return Result({})


def write_cohort_heatmaps(
    predictor: FourViewPredictor,
    fingerprint: str,
    cohort: Cohort,
    folder: str | Path,
    settings: Mapping[str, object],
    machine: Machine,
    **options: Any,
) -> ScanReport:
    """Write the heatmaps of a cohort; an interrupted run continues.

    Args:
        predictor: A model that reads heatmaps.
        fingerprint: That of its bundle.
        cohort: The exams. Two images with the same name are refused, since files are named after images.
        folder: Receives `heatmap_benign`, `heatmap_malignant`, and the scores of the patches in `patches`.
        settings: Settings of the scan, such as `reading.seed`.
        machine: Device, precision and memory.
        **options: `fresh`, `retry_failed` and `progress` of a scan.
    """
    if not predictor.config.architecture.heatmaps:
        raise ConfigError("this bundle has no patch network", remedy="Use a bundle that reads heatmaps")
    _refuse_equal_names(cohort)
    bundle = {"method": "four_view heatmaps", "fingerprint": fingerprint, "classes": list(GRADES)}
    writer = HeatmapWriter(predictor, make_folder(folder))
    scan_options = ScanOptions(settings=dict(settings))
    return scan(writer, bundle, cohort, Path(folder) / "patches", scan_options, machine, **options)


def _refuse_equal_names(cohort: Cohort) -> None:
    paths: dict[str, str] = {}
    for case in cohort:
        for path in case.paths:
            other = paths.setdefault(Path(path).stem, path)
            if other != path:
                raise UsageError(
                    "two images have the same name, and their heatmaps would have the same file",
                    subject=path,
                    actual=f"another image with this name: {other}",
                    remedy="Rename one of them",
                )
