"""The description of a map and of its position on the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lobule.geometry import Box
from lobule.grid import MapGrid
from lobule.stitch import State
from lobule.units import Mpp

MOST_SIDE = 1 << 24
MOST_CHUNK_CELLS = 1 << 26
MOST_CHUNKS = 1 << 18
"""Limits that no scan exceeds: side of a map, cells of a chunk, and number of chunks."""


@dataclass(frozen=True)
class MapInfo:
    """The description of a map and of its position on the image, stored as attributes of the Zarr group."""

    name: str
    image: str
    classes: tuple[str, ...]
    rows: int
    columns: int
    l0_stride: tuple[float, float]
    """Level-0 pixels per cell in x and y. Cell (r, c) covers [c·x, (c+1)·x) × [r·y, (r+1)·y)."""
    um_stride: tuple[float, float] | None
    chunk: tuple[int, int]
    """Rows and columns of one chunk: a whole number of fields."""

    @classmethod
    def of_grid(cls, name: str, image: str, classes: Sequence[str], grid: MapGrid, fields: int) -> MapInfo:
        """Return the description of a map on a grid. A chunk is `fields` fields wide and one field high."""
        mpp = grid.lattice.mpp
        um = None if mpp is None else (mpp.x * grid.stride, mpp.y * grid.stride)
        columns = min(fields, grid.field_columns) * grid.cells
        return cls(
            name, image, tuple(classes), grid.rows, grid.columns, grid.l0_cell, um, (grid.cells, columns)
        )

    def chunk_of(self, row: int, column: int) -> tuple[int, int]:
        return row // self.chunk[0], column // self.chunk[1]

    def chunk_cells(self, chunk: tuple[int, int]) -> tuple[slice, slice]:
        top, left = chunk[0] * self.chunk[0], chunk[1] * self.chunk[1]
        bottom, right = min(top + self.chunk[0], self.rows), min(left + self.chunk[1], self.columns)
        return slice(top, bottom), slice(left, right)

    @property
    def chunks(self) -> list[tuple[int, int]]:
        down, across = -(-self.rows // self.chunk[0]), -(-self.columns // self.chunk[1])
        return [(row, column) for row in range(down) for column in range(across)]

    @property
    def l0_mpp(self) -> Mpp | None:
        """µm per level-0 pixel; None if the slide does not state it."""
        if self.um_stride is None:
            return None
        return Mpp(self.um_stride[0] / self.l0_stride[0], self.um_stride[1] / self.l0_stride[1])

    def l0_box(self, rows: slice, columns: slice) -> Box:
        x, y = self.l0_stride
        return Box.of_edges(
            int(columns.start * x), int(rows.start * y), round(columns.stop * x), round(rows.stop * y)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the description without the division into chunks."""
        return {
            "name": self.name,
            "image": self.image,
            "classes": list(self.classes),
            "shape": [self.rows, self.columns],
            "l0_stride": list(self.l0_stride),
            "um_stride": None if self.um_stride is None else list(self.um_stride),
        }

    def to_attributes(self) -> dict[str, Any]:
        states = {state.name.lower(): int(state) for state in State}
        return {"lobule": {"kind": "map", **self.to_dict(), "chunk": list(self.chunk), "states": states}}

    @classmethod
    def of_attributes(cls, attributes: dict[str, Any]) -> MapInfo:
        metadata = attributes["lobule"]
        um, l0 = metadata["um_stride"], metadata["l0_stride"]
        (rows, columns), (chunk_rows, chunk_columns) = metadata["shape"], metadata["chunk"]
        return cls(
            metadata["name"], metadata["image"], tuple(metadata["classes"]), int(rows), int(columns),
            (float(l0[0]), float(l0[1])), None if um is None else (float(um[0]), float(um[1])),
            (int(chunk_rows), int(chunk_columns)),
        )  # fmt: skip


def check_sizes(info: MapInfo) -> None:
    """Refuse shapes that no scan writes, before anything is allocated for them."""
    shape = (info.rows, info.columns)
    strides = (*info.l0_stride, *(info.um_stride or ()))
    chunk_cells = info.chunk[0] * info.chunk[1]
    if min(*shape, *info.chunk) < 1 or max(shape) > MOST_SIDE or chunk_cells > MOST_CHUNK_CELLS:
        raise ValueError(f"a map of {shape} cells in chunks of {info.chunk}")
    if (down := -(-shape[0] // info.chunk[0])) * (across := -(-shape[1] // info.chunk[1])) > MOST_CHUNKS:
        raise ValueError(f"a map of {down} × {across} chunks")
    if not all(0 < stride < np.inf for stride in strides):
        raise ValueError(f"cells of {strides}")
    if not info.classes or not all(isinstance(name, str) for name in (info.name, info.image, *info.classes)):
        raise ValueError("names that are not text")
