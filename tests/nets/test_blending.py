"""Overlapping windows: their blending against plain loops, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lobule.errors import ConfigError
from lobule.nets.blending import WindowGrid

GRIDS = [WindowGrid(14, 8), WindowGrid(14, 7), WindowGrid(16, 9), WindowGrid(6, 6), WindowGrid(5, 1)]


def all_windows(grid: WindowGrid, hops: int) -> tuple[int, torch.Tensor]:
    cells = grid.hop * hops
    return cells, torch.arange(grid.windows(cells) ** 2)


@pytest.mark.parametrize("grid", GRIDS)
def test_windows_that_agree_give_their_scores_unchanged(grid: WindowGrid) -> None:
    """Each window reads from one large map, so every mean of windows must be that map."""
    cells, numbers = all_windows(grid, 3)
    extent = cells + grid.before + grid.after
    content = torch.rand(extent, extent, generator=torch.Generator().manual_seed(0))
    cut = [content[row : row + grid.side, column : column + grid.side] for row, column in grid.starts(cells)]
    blended = grid.blend(torch.stack(cut), numbers, cells)
    inside = slice(grid.before, grid.before + cells)
    torch.testing.assert_close(blended, content[inside, inside], rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_blending_equals_plain_loops(grid: WindowGrid) -> None:
    cells, numbers = all_windows(grid, 2)
    scores = torch.rand(len(numbers), grid.side, grid.side, generator=torch.Generator().manual_seed(1))
    hann = np.sin(np.pi * (np.arange(grid.side) + 0.5) / grid.side) ** 2
    hann = np.ones(grid.side) if grid.hop == grid.side else hann
    expected = np.empty((cells, cells))
    for row in range(cells):
        for column in range(cells):
            summed = total = 0.0
            for number, (top, left) in enumerate(grid.starts(cells)):
                y, x = row + grid.before - top, column + grid.before - left
                if 0 <= y < grid.side and 0 <= x < grid.side:
                    weight = hann[y] * hann[x]
                    summed, total = summed + weight * float(scores[number, y, x]), total + weight
            expected[row, column] = summed / total
    np.testing.assert_allclose(grid.blend(scores, numbers, cells), expected, atol=1e-6)


def test_the_needed_windows_are_those_over_required_cells() -> None:
    grid = WindowGrid(14, 8)
    cells, numbers = all_windows(grid, 3)
    required = np.zeros((2, cells, cells), np.bool_)
    required[1, 3:5, 20] = True
    needed = grid.needed(required)
    assert not needed[0].any()
    over = [
        any(0 <= y + grid.before - row < 14 and 0 <= 20 + grid.before - column < 14 for y in (3, 4))
        for row, column in grid.starts(cells)
    ]
    np.testing.assert_array_equal(needed[1], over)
    scores = torch.rand(len(numbers), 14, 14, generator=torch.Generator().manual_seed(2))
    complete = grid.blend(scores, numbers, cells)
    partial = grid.blend(scores[needed[1]], numbers[torch.from_numpy(needed[1])], cells)
    torch.testing.assert_close(partial[required[1]], complete[required[1]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("hop", [7, 8])
def test_a_map_of_windows_that_disagree_has_no_seams(hop: int) -> None:
    """Every window is off by its own constant; the jumps at its border are no larger than elsewhere."""
    jumps = {}
    for grid in (WindowGrid(14, hop), WindowGrid(14, 14)):
        cells, numbers = all_windows(grid, 20)
        generator = torch.Generator().manual_seed(3)
        offsets = torch.rand(len(numbers), 1, 1, generator=generator)
        blended = grid.blend(offsets.expand(-1, 14, 14).contiguous(), numbers, cells)
        across = (blended[:, 1:] - blended[:, :-1]).abs().mean(dim=0).numpy()
        starts = {column - grid.before for _, column in grid.starts(cells)}
        borders = {*starts, *(start + 14 for start in starts)}
        is_border = np.array([cell + 1 in borders for cell in range(cells - 1)])
        jumps[grid.hop] = across[is_border].mean() - across[~is_border].mean()
    assert jumps[hop] < 0.001 and jumps[14] > 0.2


def test_windows_must_touch() -> None:
    with pytest.raises(ConfigError, match="side by side"):
        WindowGrid(8, 9)
    assert WindowGrid.overlapping(14, 0.43) == WindowGrid(14, 8)
    assert WindowGrid.overlapping(4, 0.99) == WindowGrid(4, 1)
