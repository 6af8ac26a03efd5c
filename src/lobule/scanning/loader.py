"""Reads the fields of a batch into arrays. If a field cannot be read, only this field fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.scanning.contract import Fields, Pass, Pixels, PixelSource


@dataclass(frozen=True, eq=False)
class LoadedBatch:
    """The arrays of a batch, with `size` slots, of which the first `len(rows)` are fields of the pass."""

    rows: NDArray[np.int64]
    pixels: Pixels
    """(size, height, width, channels)."""
    params: Mapping[str, NDArray[np.generic]]
    failures: Mapping[int, str]
    """For rows of the pass whose field could not be read, the cause."""
    repeated: bool = False
    """Whether the batch is computed once more, because a device failed while it computed it."""

    def without_padding(self) -> LoadedBatch:
        """Return the slots that are fields of the pass."""
        count = len(self.rows)
        params = {name: values[:count] for name, values in self.params.items()}
        return replace(self, pixels=self.pixels[:count], params=params)

    def split(self, count: int) -> Iterator[LoadedBatch]:
        """Iterate over `count` pieces of the slots, which together have the same pixels and parameters."""
        if count == 1:
            yield self
            return
        for slots in np.array_split(np.arange(len(self.pixels)), count):
            params = {name: values[slots] for name, values in self.params.items()}
            yield replace(self, pixels=self.pixels[slots], params=params)

    def computed(self, outputs: Mapping[str, NDArray[Any]]) -> ComputedBatch:
        """Return the outputs of the fields, without the pixels."""
        height, width = self.pixels.shape[1:3]
        return ComputedBatch(self.rows, outputs, self.failures, height * width)


@dataclass(frozen=True, eq=False)
class ComputedBatch:
    """The outputs of a batch. It waits for the writing thread, so it does not keep the pixels."""

    rows: NDArray[np.int64]
    outputs: Mapping[str, NDArray[Any]]
    """One array per output, with one entry per slot."""
    failures: Mapping[int, str]
    """For rows of the pass whose field could not be read, the cause."""
    area: int
    """Pixels of one field."""


def batches_of(fields: Fields, size: int) -> list[NDArray[np.int64]]:
    """Divide the rows of a pass into batches of fields of the same shape.

    The division depends only on the pass, not on what is already stored.
    """
    if len(fields) == 0:
        return []
    shapes, bucket = np.unique(fields.shapes(), axis=0, return_inverse=True)
    first = [int(np.argmax(bucket.ravel() == index)) for index in range(len(shapes))]
    out = []
    for index in np.argsort(first):
        rows = np.flatnonzero(bucket.ravel() == index)
        out += [rows[start : start + size] for start in range(0, len(rows), size)]
    return out


def load_batch(
    pass_: Pass, images: Mapping[str, PixelSource], rows: NDArray[np.int64], size: int
) -> LoadedBatch:
    """Read the fields of one batch. A short batch is padded, so that all batches have the same shape."""
    fields = pass_.fields
    failures: dict[int, str] = {}
    pixels: Pixels | None = None
    for slot, row in enumerate(int(row) for row in rows):
        try:
            field_pixels = images[fields.image_of(row)].read_lattice(fields.lattice_of(row), fields.box(row))
        except Exception as error:  # Any error of a reader fails only this field, and is recorded.
            failures[row] = cause_of(error)
            continue
        if size == 1 and field_pixels.flags.owndata:  # Large fields are not copied.
            pixels = field_pixels[np.newaxis]
            break
        if pixels is None:
            pixels = np.full((size, *field_pixels.shape), _blank(field_pixels), field_pixels.dtype)
        pixels[slot] = field_pixels
    if pixels is None:  # No field could be read, so there is nothing to compute.
        pixels = np.empty((0, 0, 0, 0), np.uint8)
    params = {name: _padded(values[rows], size) for name, values in fields.params.items()}
    return LoadedBatch(rows, pixels, params, failures)


def cause_of(error: BaseException) -> str:
    text = str(error) or "no message"
    return text if type(error).__module__.startswith("lobule.") else f"{type(error).__name__}: {text}"


def _blank(pixels: Pixels) -> int:
    return 255 if pixels.dtype == np.uint8 else 0


def _padded(values: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    if len(values) == size:
        return values
    fill = np.repeat(values[-1:], size - len(values), axis=0)
    return np.concatenate([values, fill])
