"""Batches are fixed by the pass alone, and a field that cannot be read costs itself only."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lobule.errors import DamagedTile
from lobule.geometry import Box, Lattice, Size
from lobule.scanning.contract import Fields, Pass, TableSpec
from lobule.scanning.loader import batches_of, load_batch

LATTICE = Lattice(Fraction(1), Fraction(1), Size(1000, 1000), None, 0)


def fields_of(boxes: np.ndarray, **params: np.ndarray) -> Fields:
    return Fields(("slide",), (LATTICE,), np.zeros(len(boxes), np.int16), boxes, params=params)


@given(st.lists(st.sampled_from([(8, 8), (8, 16), (32, 8)]), max_size=40), st.integers(1, 7))
def test_batches_partition_the_fields_by_shape(shapes: list[tuple[int, int]], size: int) -> None:
    boxes = np.array([[i, 0, w, h] for i, (w, h) in enumerate(shapes)], np.int64).reshape(-1, 4)
    batches = batches_of(fields_of(boxes), size)
    assert sorted(int(row) for rows in batches for row in rows) == list(range(len(shapes)))
    for rows in batches:
        assert 1 <= len(rows) <= size
        assert len({shapes[int(row)] for row in rows}) == 1
        assert (np.diff(rows) > 0).all(), "fields stay in the order of the plan"
    for shape in set(shapes):
        sizes = [len(rows) for rows in batches if shapes[int(rows[0])] == shape]
        assert all(count == size for count in sizes[:-1]), "only the last batch of a shape is short"


class Source:
    """Pixels that say where they are; one place cannot be read."""

    size = Size(1000, 1000)

    def lattice(self, **_: object) -> Lattice:
        return LATTICE

    def read_lattice(self, lattice: Lattice, box: Box) -> np.ndarray:
        if box.x == 20:
            raise DamagedTile("slide.tif", 0, (1, 2), "cut off")
        return np.full((box.height, box.width, 3), box.x, np.uint8)


def load(xs: list[int], size: int) -> object:
    boxes = np.array([[x, 0, 4, 4] for x in xs], np.int64)
    pass_ = Pass("key", "p", fields_of(boxes, weight=np.array(xs, np.float32)), TableSpec())
    return load_batch(pass_, {"slide": Source()}, np.arange(len(xs)), size)


def test_a_short_batch_is_padded_and_a_failed_field_is_white() -> None:
    batch = load([10, 20, 30], 5)
    assert batch.pixels.shape == (5, 4, 4, 3)  # type: ignore[attr-defined]
    assert batch.pixels[:, 0, 0, 0].tolist() == [10, 255, 30, 255, 255]  # type: ignore[attr-defined]
    assert batch.params["weight"].tolist() == [10, 20, 30, 30, 30]  # type: ignore[attr-defined]
    assert list(batch.failures) == [1] and "column 1, row 2" in batch.failures[1]  # type: ignore[attr-defined]


def test_a_batch_without_a_readable_field_computes_nothing() -> None:
    batch = load([20, 20], 2)
    assert len(batch.pixels) == 0 and list(batch.failures) == [0, 1]  # type: ignore[attr-defined]


def test_a_single_field_is_not_copied() -> None:
    class StoredSource(Source):
        pixels = np.full((4, 4, 3), 7, np.uint8)

        def read_lattice(self, lattice: Lattice, box: Box) -> np.ndarray:
            return self.pixels if box.x < 10 else self.pixels[:3]  # The second is a view of another array.

    boxes = np.array([[0, 0, 4, 4], [10, 0, 4, 3]], np.int64)
    pass_ = Pass("key", "p", fields_of(boxes), TableSpec())
    owned, view = (load_batch(pass_, {"slide": StoredSource()}, np.array([row]), 1).pixels for row in (0, 1))
    assert np.shares_memory(owned, StoredSource.pixels) and owned.shape == (1, 4, 4, 3)
    assert not np.shares_memory(view, StoredSource.pixels) and (view == 7).all()
