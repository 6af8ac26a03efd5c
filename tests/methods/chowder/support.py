"""Cohorts of generated features with known tumour tiles, written as feature files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.cohort import Case, Cohort
from lobule.features import Encoding, FeatureManifest, TileFrame, prepare_folder, write_coords, write_features
from lobule.geometry import Size
from tests.scanning.support import write_slide

DIM, SIDE, MPP = 12, 16, 0.5
COLUMNS, ROWS = 12, 8
ENCODING = Encoding("lobule:tiny", "sha256:" + "a" * 64, DIM)
MANIFEST = FeatureManifest(ENCODING, MPP, SIDE, SIDE, 0.1, "float32")


@dataclass(frozen=True)
class SlideTiles:
    """The tiles of one slide; a square of tumour tiles differs from the others in the first features."""

    coords: NDArray[np.int64]
    features: NDArray[np.float32]
    inside: NDArray[np.bool_]


def make_slide(seed: int, tumour: bool, strength: float = 2.5, square: int = 4) -> SlideTiles:
    rng = np.random.default_rng(seed)
    rows, columns = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    coords = np.stack([columns * SIDE, rows * SIDE], axis=1).astype(np.int64)
    features = rng.normal(size=(len(coords), DIM)).astype(np.float32)
    top, left = rng.integers(0, ROWS - square), rng.integers(0, COLUMNS - square)
    inside = (rows >= top) & (rows < top + square) & (columns >= left) & (columns < left + square) & tumour
    features[inside, :3] += strength
    return SlideTiles(coords, features, inside)


def frame_of(name: str) -> TileFrame:
    size = Size(COLUMNS * SIDE, ROWS * SIDE)
    return TileFrame(name, SIDE, MPP, SIDE, size, 20.0, 0, (1.0, 1.0), size)


def write_tiles(
    folder: Path,
    name: str,
    slide: SlideTiles,
    encoding: Encoding = ENCODING,
    dtype: str = "float32",
    source: str | None = None,
) -> Path:
    frame = frame_of(name)
    coords, path = MANIFEST.paths_of(folder, frame)
    for target in (coords, path):
        target.parent.mkdir(parents=True, exist_ok=True)
    with write_features(path, frame, encoding, source=source, dtype=dtype) as append:
        for start in range(0, len(slide.coords), 50):
            append(slide.features[start : start + 50], slide.coords[start : start + 50])
    write_coords(coords, frame, slide.coords)
    return path


def write_outline(folder: Path, name: str, slide: SlideTiles) -> str:
    x, y = slide.coords[slide.inside].min(axis=0)
    right, bottom = slide.coords[slide.inside].max(axis=0) + SIDE
    ring = np.array([(x, y), (right, y), (right, bottom), (x, bottom)], np.float64)
    write_annotation(folder / f"{name}.xml", Annotation((Polygon(ring),)))
    return str(folder / f"{name}.xml")


def make_cohort(folder: Path, slides: int = 20, seed: int = 0, strength: float = 2.5) -> tuple[Cohort, Path]:
    """Write slides with one label each (every second is positive), their features and tumour outlines."""
    features = prepare_folder(folder / "features", MANIFEST)
    cases = []
    for number in range(slides):
        tumour = number % 2 == 1
        name = f"{'tumor' if tumour else 'normal'}_{number:03d}"
        slide = make_slide(1000 * seed + number, tumour, strength)
        write_tiles(features, name, slide)
        pixels = np.full((ROWS * SIDE, COLUMNS * SIDE, 3), 200, np.uint8)
        slide_path = write_slide(folder / f"{name}.tif", pixels, tile=64)
        cases.append(
            Case(
                name, f"patient {number}", "slide", str(slide_path), label="tumor" if tumour else "normal",
                mpp=MPP, site=f"site {number // 2 % 4}",
                annotation=write_outline(folder, name, slide) if tumour else None,
            )
        )  # fmt: skip
    return Cohort(tuple(cases)), features
