"""Hard negatives: normal tissue of the training slides that the model scores as tumour."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from lobule.cohort import Cohort
from lobule.files import read_json, write_json
from lobule.methods.scannet.gallery import HardNegative, write_gallery
from lobule.methods.scannet.predictor import DensePredictor
from lobule.results.folder import CaseFolder, open_results
from lobule.results.maps import MapReader
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from lobule.tissue import TissueConfig
from lobule.training.patch_sampling import NORMAL, Points, Pool, SlidePositions

MIN_SCORE = 0.5
"""A normal cell with a higher score is a hard negative."""
GALLERY = "gallery.html"


def mine(
    predictor: DensePredictor,
    fingerprint: str,
    pool: Pool,
    tissue: TissueConfig | None,
    folder: Path,
    machine: Machine,
) -> tuple[dict[int, Points], list[str]]:
    """Scan the normal tissue of the training slides coarsely and collect hard negatives.

    A gallery of them is written to `gallery.html` in `folder`. A finished result in `folder` is
    reused.

    Returns:
        The hard negatives by the index of the slide, and notes about slides that could not be scanned.
    """
    record = folder / "hard.json"
    index_of = {slide.case.id: index for index, slide in enumerate(pool.slides)}
    if not record.exists():
        cohort = Cohort(tuple(pool.slides[index].case for index in pool.usable(NORMAL)))
        bundle_metadata = {
            "method": "scannet",
            "fingerprint": fingerprint,
            "classes": list(predictor.classes),
        }
        options = ScanOptions(stride=predictor.geometry.stride, tissue=tissue)
        results = folder / "scan"
        report = scan(predictor, bundle_metadata, cohort, results, options, machine)
        stored_results = open_results(results)
        points_by_case: dict[str, Points] = {}
        negatives: list[HardNegative] = []
        for case in cohort:
            if case.id not in report.failed:
                slide, case_folder = pool.slides[index_of[case.id]], stored_results.case_folder(case.id)
                points_by_case[case.id] = hard_negatives(predictor, slide, case_folder)
                index = index_of[case.id]
                negatives += [
                    HardNegative(index, *scored_point)
                    for scored_point in with_scores(case_folder, points_by_case[case.id])
                ]
        window = predictor.geometry.extent
        write_gallery(
            folder / GALLERY,
            pool.slides,
            negatives,
            name=folder.name,
            mpp=predictor.config.mpp,
            window=window,
        )
        notes = [
            f"{name} was not searched for hard negatives: {cause}" for name, cause in report.failed.items()
        ]
        write_json(
            record, {"places": {name: p.tolist() for name, p in points_by_case.items()}, "notes": notes}
        )
        shutil.rmtree(results, ignore_errors=True)
    stored: Mapping[str, Any] = read_json(record)
    hard = {index_of[name]: np.array(p, np.float64) for name, p in stored["places"].items() if p}
    return hard, list(stored["notes"])


def hard_negatives(predictor: DensePredictor, slide: SlidePositions, folder: CaseFolder) -> Points:
    """Centres of normal cells that were scored as tumour, in descending order and not close to each other."""
    config = predictor.config
    (reader,) = folder.maps.values()
    scores, states = reader.read()
    worst = np.where(states == State.SCORED, scores.max(axis=0), np.float32(0))
    rows, columns = np.nonzero(worst > MIN_SCORE)
    order = np.argsort(-worst[rows, columns], kind="stable")
    cells = np.stack([rows, columns], axis=1)[order]
    if len(cells):
        cells = cells[slide.classes(_centres(reader, cells)) == NORMAL]
    radius = config.hard_merge / predictor.geometry.stride
    return _centres(reader, _spaced_cells(cells, worst.shape, radius, config.hard_cap))


def with_scores(folder: CaseFolder, points: Points) -> list[tuple[float, float, float]]:
    """x, y and score of points that are centres of cells of a case's map."""
    (reader,) = folder.maps.values()
    scores, _ = reader.read()
    columns, rows = (points // reader.info.l0_stride).astype(np.int64).T
    values = scores.max(axis=0)[rows, columns]
    return [(float(x), float(y), float(value)) for (x, y), value in zip(points, values, strict=True)]


def _centres(reader: MapReader, cells: NDArray[np.int64]) -> Points:
    step_x, step_y = reader.info.l0_stride
    return np.stack([(cells[:, 1] + 0.5) * step_x, (cells[:, 0] + 0.5) * step_y], axis=1)


def _spaced_cells(
    cells: NDArray[np.int64], shape: tuple[int, ...], radius: float, limit: int
) -> NDArray[np.int64]:
    """Keep the first cells, and drop each that is closer than `radius` cells to one that was kept."""
    reach = int(np.ceil(radius))
    offsets = np.arange(-reach, reach + 1)
    disc = np.hypot(offsets[:, None], offsets[None, :]) < radius
    blocked = np.zeros((shape[0] + 2 * reach, shape[1] + 2 * reach), np.bool_)
    chosen = []
    for row, column in cells:
        if not blocked[row + reach, column + reach]:
            chosen.append((row, column))
            blocked[row : row + 2 * reach + 1, column : column + 2 * reach + 1] |= disc
            if len(chosen) == limit:
                break
    return np.array(chosen, np.int64).reshape(-1, 2)


def merge_points(new: Points, old: Points, distance: float) -> Points:
    """The new points, and the old points that are not close to a new one."""
    if len(new) and len(old):
        nearest, _ = cKDTree(new).query(old)
        old = old[nearest >= distance]
    return np.concatenate([new, old])
