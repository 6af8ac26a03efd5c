"""Findings as binary tiles for the viewer: single findings up close, counts and maxima from afar.

A tile of level 0 lists its findings. A tile of level k > 0 covers 2^k tiles of level 0 per side. It is
divided into `BINS` × `BINS` bins; each bin has the number of its findings and their highest score.

Both kinds of tile are a header (`HEADER`) followed by columns, one after the other.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.results import CaseFolder

BINS = 64
"""Bins per side of a tile."""
MAX_FINDINGS_PER_TILE = 8192
"""Tiles of level 0 are made small enough for this number, but not smaller than `SMALLEST_TILE`."""
SMALLEST_TILE = 256
"""Smallest side of a tile in level-0 pixels, whatever the number of findings."""
MAX_LABELS = 255
"""Number of labels that a tile can tell apart; findings with other labels are shown with the first label."""
HEADER = struct.Struct("<4sI")
"""Which kind of tile follows, and the number of its findings or bins."""
POINTS_MAGIC, BINS_MAGIC = b"LFP1", b"LFB1"
FINDING_FIELDS = (
    "l0_x",
    "l0_y",
    "score",
    "kind",
    "label",
    "size_um",
    "area_um2",
    "lesion_class",
    "cells",
    "box",
    "image",
)


@dataclass(frozen=True)
class ImageFindings:
    """The findings of one image of a case, sorted by score, highest first."""

    number: NDArray[np.int64]
    """Row of each finding in the findings table."""
    l0_x: NDArray[np.int64]
    l0_y: NDArray[np.int64]
    score: NDArray[np.float32]
    label: NDArray[np.uint8]
    """Index into the labels of the case."""
    tile_side: int
    """Side of a tile of level 0, in level-0 pixels."""
    levels: int
    """Number of levels; the single tile of the highest level covers all findings."""

    def __len__(self) -> int:
        return len(self.number)

    def tile(self, level: int, column: int, row: int) -> bytes:
        """Return one tile: the findings in it, or from level 1 on the counts and maxima of its bins."""
        side = self.tile_side << level
        inside = (self.l0_x // side == column) & (self.l0_y // side == row)
        if level == 0:
            return self._points(inside)
        return self._bins(inside, column * side, row * side, side // BINS)

    def _points(self, inside: NDArray[np.bool_]) -> bytes:
        """Return the tile that lists the selected findings."""
        columns: list[NDArray[Any]] = [
            self.number[inside].astype("<u4"),
            self.l0_x[inside].astype("<i4"),
            self.l0_y[inside].astype("<i4"),
            self.score[inside].astype("<f4"),
            self.label[inside],
        ]
        return HEADER.pack(POINTS_MAGIC, int(inside.sum())) + b"".join(column.tobytes() for column in columns)

    def _bins(self, inside: NDArray[np.bool_], l0_left: int, l0_top: int, bin_side: int) -> bytes:
        """Return the tile that counts the selected findings in bins; empty bins are left out."""
        bin_x, bin_y = (self.l0_x[inside] - l0_left) // bin_side, (self.l0_y[inside] - l0_top) // bin_side
        codes, first, counts = np.unique(bin_y * BINS + bin_x, return_index=True, return_counts=True)
        # The findings are sorted by score, so that the first finding of a bin has the highest score.
        highest = self.score[inside][first]
        columns: list[NDArray[Any]] = [
            counts.astype("<u4"),
            highest.astype("<f4"),
            (codes % BINS).astype(np.uint8),
            (codes // BINS).astype(np.uint8),
        ]
        return HEADER.pack(BINS_MAGIC, len(codes)) + b"".join(column.tobytes() for column in columns)


@dataclass(frozen=True)
class CaseFindings:
    """All findings of a case."""

    columns: dict[str, NDArray[Any]]
    """The findings table; empty if there are no findings."""
    order: NDArray[np.int64]
    """Rows of the table, highest score first."""
    labels: tuple[str, ...]
    """The first `MAX_LABELS` labels in alphabetical order."""
    images: dict[str, ImageFindings]
    """The findings of each image; a slide is the only image of its case."""

    @classmethod
    def read(cls, folder: CaseFolder) -> CaseFindings:
        """Read the findings of a case from its results folder."""
        columns = folder.findings()
        count = len(columns["score"]) if columns else 0
        if not count:
            return cls({}, np.zeros(0, np.int64), (), {})
        scores = np.asarray(columns["score"], np.float64)
        order = np.argsort(-scores, kind="stable")
        names = np.array([str(label or "") for label in columns["label"]], object)
        labels = tuple(sorted(set(names.tolist())))[:MAX_LABELS]
        code_of = {label: code for code, label in enumerate(labels)}
        label_codes = np.array([code_of.get(name, 0) for name in names.tolist()], np.uint8)
        image_names = columns.get("image", np.full(count, "slide", object))
        images = {}
        for image in sorted(set(image_names.tolist())):
            rows = order[image_names[order] == image]
            l0_x, l0_y = (np.asarray(columns[name], np.int64)[rows] for name in ("l0_x", "l0_y"))
            side, levels = _choose_tiling(l0_x, l0_y)
            images[str(image)] = ImageFindings(
                rows, l0_x, l0_y, scores[rows].astype(np.float32), label_codes[rows], side, levels
            )
        return cls(columns, order, labels, images)

    def page(self, offset: int, limit: int, label: str | None = None) -> tuple[int, list[dict[str, Any]]]:
        """Return the number of findings, and one page of them, highest score first.

        With a `label`, only the findings with this label are counted and returned.
        """
        order = self.order
        if label is not None and len(order):
            chosen = np.array([str(name or "") == label for name in self.columns["label"]], np.bool_)
            order = order[chosen[order]]
        return len(order), [self.finding(int(number)) for number in order[offset : offset + limit]]

    def finding(self, number: int, outline: bool = False) -> dict[str, Any]:
        """Return one finding as values that JSON can store; unknown values are left out.

        Args:
            number: Row of the finding in the findings table.
            outline: Also return the polygons of its outline.
        """
        finding: dict[str, Any] = {"number": number}
        for name in FINDING_FIELDS:
            value = _as_json_value(self.columns[name][number]) if name in self.columns else None
            if value is not None:
                finding[name] = value
        if outline:
            finding["polygon"] = self.outline(number)
        return finding

    def outline(self, number: int) -> list[Any]:
        """Return the polygons of a finding, each a list of rings; empty if it has none."""
        text = self.columns["polygon"][number] if "polygon" in self.columns else None
        polygons = json.loads(text) if isinstance(text, str) else []
        return polygons if isinstance(polygons, list) else []


def _as_json_value(value: Any) -> Any:
    """Convert a value of the findings table for JSON; NaN and infinity become None."""
    if isinstance(value, np.ndarray):
        return [int(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _choose_tiling(l0_x: NDArray[np.int64], l0_y: NDArray[np.int64]) -> tuple[int, int]:
    """Choose the side of the tiles of level 0; return it and the number of levels."""
    extent = int(max(l0_x.max(initial=0), l0_y.max(initial=0))) + 1
    covered_side = SMALLEST_TILE
    while covered_side < extent:
        covered_side *= 2
    side = covered_side
    while side > SMALLEST_TILE:
        codes = (l0_y // side) * (covered_side // side + 1) + l0_x // side
        if np.unique(codes, return_counts=True)[1].max() <= MAX_FINDINGS_PER_TILE:
            break
        side //= 2
    return side, (covered_side // side).bit_length()
