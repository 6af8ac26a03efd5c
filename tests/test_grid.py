"""The grid and its inverse: every cell is computed once, where it says it is."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.errors import ConfigError
from lobule.geometry import Box, Lattice, Size
from lobule.grid import MapGrid, cells_by_centre, cells_in_box, share_in_cells
from lobule.stitch import State, place_field
from lobule.units import Mpp


def lattice_of(width: int, height: int, step: Fraction = Fraction(1)) -> Lattice:
    return Lattice(step, step, Size(width, height), Mpp.square(0.25 * float(step)), None)


grids = st.builds(
    MapGrid,
    st.builds(lattice_of, st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from([1, 4, 8, 32]),
    st.integers(1, 90),
    st.integers(1, 7),
)


def field_box(grid: MapGrid, row: int, column: int) -> Box:
    """The lattice box of one field."""
    return Box(*grid.field_boxes(np.array([[row, column]])).ravel().tolist())


@given(grids)
def test_fields_stitch_to_the_whole_map(grid: MapGrid) -> None:
    """A net that returns each cell's window start gives back the coordinates of every cell, once."""
    scores = np.full((2, grid.rows, grid.columns), np.nan, np.float32)
    states = np.zeros((grid.rows, grid.columns), np.uint8)
    covered = np.zeros_like(states)
    for row, column in grid.fields_over(np.ones((grid.rows, grid.columns), np.bool_)):
        field = (int(row), int(column))
        box = field_box(grid, *field)
        x = box.x + grid.stride * np.arange(grid.cells)
        y = box.y + grid.stride * np.arange(grid.cells)
        values = np.stack(np.broadcast_arrays(x[None, :], y[:, None])).astype(np.float32)
        place_field((scores, states), grid, field, values)
        covered[grid.field_cells(*field)] += 1
        assert x[-1] + grid.window == box.right
    assert (covered == 1).all() and (states == State.SCORED).all()
    centre = scores + grid.window / 2
    want_x = grid.stride * np.arange(grid.columns) + grid.stride / 2
    want_y = grid.stride * np.arange(grid.rows) + grid.stride / 2
    assert np.abs(centre[0] - want_x[None, :]).max() <= 0.5
    assert np.abs(centre[1] - want_y[:, None]).max() <= 0.5


def test_the_published_example() -> None:
    """A slide of 97792 × 221184 px at stride 16 with 83 cells a side of the coarse map."""
    grid = MapGrid(lattice_of(97792, 221184), 16, 244, 166)
    assert (grid.rows, grid.columns) == (13824, 6112)
    assert (grid.field_rows, grid.field_columns) == (84, 37)
    assert grid.field_side == 2884
    assert field_box(grid, 0, 0).x == -114
    assert field_box(grid, 0, 1).x == 2542


def test_neighbouring_fields_overlap_by_window_minus_stride() -> None:
    grid = MapGrid(lattice_of(10000, 10000), 32, 244, 83)
    first, second = field_box(grid, 0, 0), field_box(grid, 0, 1)
    assert second.x - first.x == 2656
    assert first.right - second.x == 212


@given(grids, st.randoms(use_true_random=False))
def test_only_fields_with_a_required_cell_are_listed(grid: MapGrid, random: object) -> None:
    rng = np.random.default_rng(random.randint(0, 2**32))  # type: ignore[attr-defined]
    required = rng.random((grid.rows, grid.columns)) < 0.02
    fields = {tuple(index) for index in grid.fields_over(required).tolist()}
    direct = {(int(r) // grid.cells, int(c) // grid.cells) for r, c in np.argwhere(required)}
    assert fields == direct


def test_cells_of_another_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        MapGrid(lattice_of(100, 100), 10, 10).fields_over(np.ones((3, 3), np.bool_))


@given(st.integers(20, 300), st.integers(20, 300), st.sampled_from([7, 16, 33]), st.sampled_from([3, 8, 10]))
def test_the_share_of_a_cell_on_the_mask_is_exact(width: int, height: int, stride: int, step: int) -> None:
    grid = MapGrid(lattice_of(width, height), stride, stride)
    rng = np.random.default_rng(width * 1000 + height)
    mask = rng.random((-(-height // step), -(-width // step))) < 0.5
    share = share_in_cells(grid, mask, (step, step))
    fine = mask.repeat(step, 0).repeat(step, 1)
    big = np.zeros((grid.rows * stride, grid.columns * stride))
    big[: fine.shape[0], : fine.shape[1]] = fine[: big.shape[0], : big.shape[1]]
    covered = big.reshape(grid.rows, stride, grid.columns, stride).sum(axis=(1, 3))
    case = np.zeros_like(big)
    case[:height, :width] = 1
    area = case.reshape(grid.rows, stride, grid.columns, stride).sum(axis=(1, 3))
    # the mask's last pixels may reach past the case: more than all of a cell is all of it
    np.testing.assert_allclose(share, np.minimum(covered / area, 1), atol=1e-9)


def test_cells_by_centre_follow_the_mask() -> None:
    grid = MapGrid(lattice_of(100, 60), 10, 10)
    mask = np.zeros((6, 10), np.bool_)
    mask[2, 3] = True
    assert np.argwhere(cells_by_centre(grid, mask, (10, 10))).tolist() == [[2, 3]]
    # a mask twice as coarse: its one pixel holds the centres of four cells
    coarse = np.zeros((3, 5), np.bool_)
    coarse[1, 1] = True
    assert cells_by_centre(grid, coarse, (20, 20)).sum() == 4


def test_cells_in_a_box() -> None:
    cells = cells_in_box((6, 10), (10.0, 10.0), Box(15, 5, 20, 10))
    # centres at x 15, 25 and at y 5: the box is half-open, so 35 and 15 lie outside
    assert np.argwhere(cells).tolist() == [[0, 1], [0, 2]]


@given(grids, st.randoms(use_true_random=False))
def test_failed_and_scored_fields_fill_a_block_of_the_map(grid: MapGrid, random: object) -> None:
    """Blocks of one row of fields, as production writes them, join to the map that is filled as a whole."""
    rng = np.random.default_rng(random.randint(0, 2**32))  # type: ignore[attr-defined]
    complete_map = (
        np.zeros((1, grid.rows, grid.columns), np.float32),
        np.zeros((grid.rows, grid.columns), np.uint8),
    )
    joined = np.zeros_like(complete_map[0]), np.zeros_like(complete_map[1])
    for row in range(grid.field_rows):
        rows, _ = grid.field_cells(row, 0)
        block = joined[0][:, rows], joined[1][rows]
        for column in range(grid.field_columns):
            values = rng.random((1, grid.cells, grid.cells), np.float32) if rng.random() < 0.7 else None
            place_field(complete_map, grid, (row, column), values)
            place_field(block, grid, (row, column), values, (rows.start, 0))
    assert np.array_equal(complete_map[0], joined[0]) and np.array_equal(complete_map[1], joined[1])
    assert set(np.unique(complete_map[1])) <= {State.SCORED, State.FAILED}
    assert not complete_map[0][0, complete_map[1] == State.FAILED].any()
