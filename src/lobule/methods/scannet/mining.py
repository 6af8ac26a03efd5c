"""Hard negatives: normal tissue of the training slides that the model scores as tumour."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.methods.scannet.gallery import HardNegative, write_gallery
from lobule.methods.scannet.predictor import DensePredictor
from lobule.results.maps import MapReader
from lobule.stitch import State
from lobule.training.patch_sampling import NORMAL, Points, Pool, SlidePositions
from lobule.training.training_scan import ScannedMaps, TrainingScan

MIN_SCORE = 0.5
"""A normal cell with a higher score is a hard negative."""
GALLERY = "gallery.html"
SAMPLES_PER_MARGIN = 16
"""Points along an outline per margin, to which distances are measured."""


def mine(slide_scan: TrainingScan[DensePredictor], pool: Pool) -> tuple[dict[int, Points], list[str]]:
    """Scan the normal tissue of the training slides coarsely and collect hard negatives.

    A gallery of them is written to `gallery.html`. A finished result is read again.

    Returns:
        The hard negatives by the index of the slide, and notes about slides that could not be scanned.
    """
    predictor, folder = slide_scan.predictor, slide_scan.folder
    index_of = {slide.case.id: index for index, slide in enumerate(pool.slides)}

    def collect(scanned: ScannedMaps) -> dict[str, Any]:
        points_by_case: dict[str, Points] = {}
        negatives: list[HardNegative] = []
        for name, reader in scanned.maps.items():
            index = index_of[name]
            points_by_case[name], scores = hard_negatives(predictor, pool.slides[index], reader)
            negatives += [
                HardNegative(index, float(x), float(y), float(score))
                for (x, y), score in zip(points_by_case[name], scores, strict=True)
            ]
        write_gallery(
            folder / GALLERY, pool.slides, negatives,
            name=folder.name, mpp=predictor.config.mpp, window=predictor.geometry.extent,
        )  # fmt: skip
        return {
            "places": {name: points.tolist() for name, points in points_by_case.items()},
            "notes": scanned.notes("not searched for hard negatives"),
        }

    cases = [pool.slides[index].case for index in pool.usable(NORMAL)]
    stored = slide_scan.recorded("hard.json", cases, collect, stride=predictor.geometry.stride)
    hard = {index_of[name]: np.array(p, np.float64) for name, p in stored["places"].items() if p}
    return hard, stored["notes"]


def hard_negatives(
    predictor: DensePredictor, slide: SlidePositions, reader: MapReader
) -> tuple[Points, NDArray[np.float32]]:
    """Return the centres of normal cells that were scored as tumour, and their scores.

    They are in descending order of the score and not close to each other.
    """
    config = predictor.config
    scores, states = reader.read()
    worst = np.where(states == State.SCORED, scores.max(axis=0), np.float32(0))
    rows, columns = np.nonzero(worst > MIN_SCORE)
    order = np.argsort(-worst[rows, columns], kind="stable")
    cells = np.stack([rows, columns], axis=1)[order]
    if len(cells):
        centres = _centres(reader, cells)
        l0_margin = config.hard_margin * config.mpp / slide.mpp
        cells = cells[(slide.classes(centres) == NORMAL) & far_from_outlines(slide, centres, l0_margin)]
    radius = config.hard_merge / predictor.geometry.stride
    cells = _spaced_cells(cells, worst.shape, radius, config.hard_cap)
    return _centres(reader, cells), worst[cells[:, 0], cells[:, 1]]


def far_from_outlines(slide: SlidePositions, l0_points: Points, margin: float) -> NDArray[np.bool_]:
    """Whether points are at least this far from every tumour outline, in level-0 pixels, to within 0.1 %."""
    rings = [] if slide.outlined is None else [
        ring for polygon in slide.outlined.of_kind("tumour") for ring in polygon.rings
    ]  # fmt: skip
    if not rings or margin <= 0:
        return np.ones(len(l0_points), np.bool_)
    spacing = margin / SAMPLES_PER_MARGIN
    samples = np.concatenate([_along(ring, spacing) for ring in rings])
    return np.asarray(_distances_to_nearest(l0_points, samples) >= margin, np.bool_)


def _distances_to_nearest(points: Points, targets: Points) -> NDArray[np.float64]:
    """Return the distance of each point to the nearest target."""
    from scipy.spatial import cKDTree  # Imported here, because a scan imports this module and needs no tree.

    nearest, _ = cKDTree(targets).query(points)
    return np.asarray(nearest, np.float64)


def _along(ring: Points, spacing: float) -> Points:
    """Points along a closed ring that are at most `spacing` apart."""
    reach = np.roll(ring, -1, axis=0) - ring
    counts = np.maximum(1, np.ceil(np.hypot(*reach.T) / spacing)).astype(np.int64)
    edge = np.repeat(np.arange(len(ring)), counts)
    fraction = (np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[edge]
    points: Points = ring[edge] + fraction[:, None] * reach[edge]
    return points


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
        old = old[_distances_to_nearest(old, new) >= distance]
    return np.concatenate([new, old])
