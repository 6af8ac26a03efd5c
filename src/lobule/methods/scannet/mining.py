"""Hard negatives: normal places of the training slides that the model takes for tumour."""

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
from lobule.methods.scannet.gallery import Mined, write_gallery
from lobule.methods.scannet.predictor import DensePredictor
from lobule.results.folder import CaseFolder, open_results
from lobule.results.maps import MapReader
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from lobule.tissue import TissueConfig
from lobule.training.patch_sampling import NORMAL, Points, Pool, SlidePositions

FOOLED = 0.5
"""A normal cell with a score above it is a hard place."""
GALLERY = "gallery.html"


def mine(
    predictor: DensePredictor,
    fingerprint: str,
    pool: Pool,
    tissue: TissueConfig | None,
    folder: Path,
    machine: Machine,
) -> tuple[dict[int, Points], list[str]]:
    """Scan the normal tissue of the training slides coarsely; the places that fooled the model, by slide.

    A slide that cannot be scanned gives no places and is said so. Done before, it is read from `folder`.
    Beside the places lies a gallery of them, `gallery.html`.
    """
    kept = folder / "hard.json"
    number_of = {places.case.id: number for number, places in enumerate(pool.slides)}
    if not kept.exists():
        cohort = Cohort(tuple(pool.slides[number].case for number in pool.usable(NORMAL)))
        facts = {"method": "scannet", "fingerprint": fingerprint, "classes": list(predictor.classes)}
        options = ScanOptions(stride=predictor.geometry.stride, tissue=tissue)
        results = folder / "scan"
        report = scan(predictor, facts, cohort, results, options, machine)
        opened = open_results(results)
        found: dict[str, Points] = {}
        mined: list[Mined] = []
        for case in cohort:
            if case.id not in report.failed:
                places, own = pool.slides[number_of[case.id]], opened.case_folder(case.id)
                found[case.id] = hard_places(predictor, places, own)
                number = number_of[case.id]
                mined += [Mined(number, *place) for place in with_scores(own, found[case.id])]
        window = predictor.geometry.extent
        write_gallery(
            folder / GALLERY, pool.slides, mined, name=folder.name, mpp=predictor.config.mpp, window=window
        )
        notes = [f"{name}: not mined: {cause}" for name, cause in report.failed.items()]
        write_json(kept, {"places": {name: p.tolist() for name, p in found.items()}, "notes": notes})
        shutil.rmtree(results, ignore_errors=True)
    stored: Mapping[str, Any] = read_json(kept)
    hard = {number_of[name]: np.array(p, np.float64) for name, p in stored["places"].items() if p}
    return hard, list(stored["notes"])


def hard_places(predictor: DensePredictor, places: SlidePositions, folder: CaseFolder) -> Points:
    """Centres of normal cells taken for tumour, the worst first, none near another, so many at most."""
    config = predictor.config
    (reader,) = folder.maps.values()
    scores, states = reader.read()
    worst = np.where(states == State.SCORED, scores.max(axis=0), np.float32(0))
    rows, columns = np.nonzero(worst > FOOLED)
    order = np.argsort(-worst[rows, columns], kind="stable")
    cells = np.stack([rows, columns], axis=1)[order]
    if len(cells):
        cells = cells[places.classes(_centres(reader, cells)) == NORMAL]
    radius = config.hard_merge / predictor.geometry.stride
    return _centres(reader, _apart(cells, worst.shape, radius, config.hard_cap))


def with_scores(folder: CaseFolder, places: Points) -> list[tuple[float, float, float]]:
    """x, y and score of places that are centres of cells of a case's map."""
    (reader,) = folder.maps.values()
    scores, _ = reader.read()
    columns, rows = (places // reader.info.l0_stride).astype(np.int64).T
    values = scores.max(axis=0)[rows, columns]
    return [(float(x), float(y), float(value)) for (x, y), value in zip(places, values, strict=True)]


def _centres(reader: MapReader, cells: NDArray[np.int64]) -> Points:
    step_x, step_y = reader.info.l0_stride
    return np.stack([(cells[:, 1] + 0.5) * step_x, (cells[:, 0] + 0.5) * step_y], axis=1)


def _apart(cells: NDArray[np.int64], shape: tuple[int, ...], radius: float, most: int) -> NDArray[np.int64]:
    """The first cells, in order, of which none is closer than `radius` cells to one before it."""
    reach = int(np.ceil(radius))
    offsets = np.arange(-reach, reach + 1)
    disc = np.hypot(offsets[:, None], offsets[None, :]) < radius
    taken = np.zeros((shape[0] + 2 * reach, shape[1] + 2 * reach), np.bool_)
    kept = []
    for row, column in cells:
        if not taken[row + reach, column + reach]:
            kept.append((row, column))
            taken[row : row + 2 * reach + 1, column : column + 2 * reach + 1] |= disc
            if len(kept) == most:
                break
    return np.array(kept, np.int64).reshape(-1, 2)


def joined(new: Points, old: Points, distance: float) -> Points:
    """The new places, and those of the old that are not near a new one."""
    if len(new) and len(old):
        nearest, _ = cKDTree(new).query(old)
        old = old[nearest >= distance]
    return np.concatenate([new, old])
