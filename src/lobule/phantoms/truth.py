"""Exact truth of a generated slide: outlines in level-0 pixels and class masks at any step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from lobule.annotations import Annotation, Polygon, fill, write_annotation
from lobule.files import write_atomic
from lobule.geometry import Box
from lobule.phantoms.outlines import Points

GLASS, TISSUE, TUMOUR = 0, 1, 2
"""Values of a class mask."""


@dataclass(frozen=True)
class Outline:
    """One outlined lesion."""

    points: Points
    lesion_class: str
    """macro, micro or itc."""
    size_um: float
    """The longest distance between two points of the outline."""


@dataclass(frozen=True)
class SlideTruth:
    """The complete truth of a generated slide."""

    width: int
    height: int
    mpp: float
    outlines: tuple[Outline, ...]
    tissue: tuple[Points, ...]
    """Outlines of the tissue sections."""

    @property
    def label(self) -> str:
        """The label of the slide."""
        return "tumor" if self.outlines else "normal"

    def mask(self, step: int = 1, box: Box | None = None) -> NDArray[np.uint8]:
        """Classes at the centres of cells of `step` × `step` level-0 pixels, for all that the slide touches.

        `box`, in cells, asks for a part.
        """
        box = box or Box(0, 0, -(-self.width // step), -(-self.height // step))
        classes = np.full((box.height, box.width), GLASS, np.uint8)
        for value, outlines in ((TISSUE, self.tissue), (TUMOUR, [one.points for one in self.outlines])):
            classes[fill([Polygon(points) for points in outlines], step, box)] = value
        return classes

    def write_mask(self, path: Path, step: int | None = None) -> None:
        """The class mask as a PNG whose longest side has at most 2,048 px, or of a given step."""
        step = step or max(1, -(-max(self.width, self.height) // 2048))
        with write_atomic(path) as temporary:
            Image.fromarray(self.mask(step)).save(temporary)

    def lesions_json(self) -> str:
        lesions = [
            {
                "class": one.lesion_class,
                "size_um": round(one.size_um, 2),
                "centre": [round(float(c), 1) for c in one.points.mean(0)],
                "vertices": len(one.points),
            }
            for one in self.outlines
        ]
        description = {"width": self.width, "height": self.height, "mpp": self.mpp, "lesions": lesions}
        return json.dumps(description, indent=1)


def annotation_of(truth: SlideTruth) -> Annotation:
    """The lesions as an annotation; each is named by its number and class."""
    return Annotation(
        tuple(
            Polygon(one.points, "tumour", f"lesion {number} {one.lesion_class}", "Tumor")
            for number, one in enumerate(truth.outlines, start=1)
        )
    )


def write_annotation_files(truth: SlideTruth, path: Path) -> None:
    """Write the outlines as ASAP XML and, next to it, as QuPath GeoJSON."""
    annotation = annotation_of(truth)
    write_annotation(path.with_suffix(".xml"), annotation)
    write_annotation(path.with_suffix(".geojson"), annotation)


def write_mask_tiff(truth: SlideTruth, path: Path, tile: int = 512) -> None:
    """Write the tumour as a pyramid of 0 and 255, each level computed exactly from the outlines."""
    steps = [1]
    while max(truth.width, truth.height) // steps[-1] > 2 * tile or steps[-1] < 32:
        steps.append(steps[-1] * 2)
    with write_atomic(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as writer:
        for step in steps:
            columns, rows = -(-truth.width // step), -(-truth.height // step)
            per_cm = 1e4 / (truth.mpp * step)
            writer.write(
                _mask_tiles(truth, step, columns, rows, tile),
                shape=(rows, columns),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="minisblack",
                compression="deflate",
                subfiletype=0 if step == 1 else 1,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                software="Lobule",
                metadata=None,
            )


def _mask_tiles(
    truth: SlideTruth, step: int, columns: int, rows: int, tile: int
) -> Iterator[NDArray[np.uint8]]:
    for top in range(0, rows, tile):
        for left in range(0, columns, tile):
            box = Box(left, top, min(tile, columns - left), min(tile, rows - top))
            values = np.zeros((tile, tile), np.uint8)
            values[: box.height, : box.width] = (truth.mask(step, box) == TUMOUR) * np.uint8(255)
            yield values
