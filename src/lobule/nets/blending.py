"""Overlapping windows on a fixed grid, and the blending of their scores into one map without seams.

Windows of T × T cells start at every multiple of `hop` cells of a case. A cell gets the weighted mean of all
windows that cover it. The weights are those of a Hann window, so a window fades in and out. Since the windows
and their weights do not depend on how a map is divided into fields, neither does the score of a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lobule.errors import ConfigError


@dataclass(frozen=True)
class WindowGrid:
    """The windows that cover a square of cells."""

    side: int
    """Cells per side of a window."""
    hop: int
    """Cells between the starts of neighbouring windows."""

    def __post_init__(self) -> None:
        if not 1 <= self.hop <= self.side:
            raise ConfigError(
                "windows must lie side by side or overlap",
                expected=f"a hop of 1 to {self.side} cells",
                actual=str(self.hop),
            )

    @classmethod
    def overlapping(cls, side: int, overlap: float) -> WindowGrid:
        """Windows that share a part of their side with the next one."""
        return cls(side, max(1, side - round(overlap * side)))

    @property
    def before(self) -> int:
        """Cells that the first window starts before the first cell of a field."""
        return self.hop * ((self.side - 1) // self.hop)

    @property
    def after(self) -> int:
        """Cells that the last window ends behind the last cell of a field."""
        return self.side - self.hop

    def windows(self, cells: int) -> int:
        """Windows per side of a field of `cells` cells, which must be a multiple of the hop."""
        return (cells - self.hop + self.before) // self.hop + 1

    def needed(self, required: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For each field, the windows that cover a required cell.

        Args:
            required: (fields, cells, cells).

        Returns:
            (fields, windows²), row by row.
        """
        cells = required.shape[1]
        count = self.windows(cells)
        needed = np.zeros((len(required), count, count), np.bool_)
        starts = [number * self.hop - self.before for number in range(count)]
        spans = [slice(max(0, start), max(0, min(cells, start + self.side))) for start in starts]
        for row, rows in enumerate(spans):
            for column, columns in enumerate(spans):
                needed[:, row, column] = required[:, rows, columns].any(axis=(1, 2))
        return needed.reshape(len(required), count * count)

    @cached_property
    def weights(self) -> Tensor:
        """(side²): the weight of each cell of a window."""
        ramp = torch.sin(torch.pi * (torch.arange(self.side).double() + 0.5) / self.side) ** 2
        if self.hop == self.side:  # Windows side by side need no weights.
            ramp = torch.ones(self.side).double()
        return (ramp[:, None] * ramp).flatten().float()

    def starts(self, cells: int) -> list[tuple[int, int]]:
        """The first row and column of every window within the pixels of a field, in cells."""
        count = range(self.windows(cells))
        return [(row * self.hop, column * self.hop) for row in count for column in count]

    def blend(self, scores: Tensor, windows: Tensor, cells: int) -> Tensor:
        """Blend the scores of windows into the map of a field.

        Args:
            scores: (n, side, side) scores of the computed windows.
            windows: (n) their numbers, row by row.
            cells: Cells per side of the field.

        Returns:
            (cells, cells); 0 where no window was computed.
        """
        count = self.windows(cells)
        weights = self.weights.to(scores)
        columns = scores.new_zeros((2, self.side**2, count**2))
        columns[0, :, windows] = (scores.flatten(1) * weights).T
        columns[1, :, windows] = weights[:, None]
        extent = cells + self.before + self.after
        summed, total = F.fold(columns, (extent, extent), self.side, stride=self.hop)[:, 0]
        inside = slice(self.before, self.before + cells)
        blended: Tensor = (summed / total.clamp(min=1e-12))[inside, inside]
        return blended
