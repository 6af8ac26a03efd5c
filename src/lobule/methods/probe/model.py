"""The encoder and the head of a probe: tokens of overlapping windows, their scores, and the blended map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.geometry import Lattice
from lobule.grid import Cells, MapGrid
from lobule.methods.probe.config import Config
from lobule.nets.blending import WindowGrid
from lobule.nets.encoders import Encoder
from lobule.nets.token_maps import TokenNet, token_net
from lobule.scanning.contract import Batch, EngineSettings, ScanOptions
from lobule.scanning.device import (
    SLICE,
    copy_to_device,
    dtype_of,
    largest_cells,
    random_batch,
    working_bytes,
)

NEEDED = "needed"
"""The parameter of a field that says which of its windows cover a required cell."""
MOST_HOPS = 8
"""Largest side of a field in hops. Larger fields would save few windows at their borders."""
GPU_SLICE = 128
"""Windows that a GPU computes at once."""
BYTES_PER_PIXEL = 24
"""Bytes per pixel of a field: the queued batches, and the windows cut out of it."""


@dataclass(frozen=True)
class TokenMap:
    """Key of the pass that scores the tokens of a slide."""


def make_token_net(config: Config, encoder: Encoder) -> TokenNet:
    """The network that computes the tokens of the settings."""
    return token_net(encoder, config.window, config.token_px, config.strides)


def window_grid(config: Config, net: TokenNet) -> WindowGrid:
    return WindowGrid.overlapping(net.side, config.overlap)


class ProbeModel:
    """Scores the tokens of every window of a field and blends them."""

    def __init__(self, config: Config, encoder: Encoder, head: nn.Module) -> None:
        self.config, self.encoder, self.head = config, encoder, head
        self.net = make_token_net(config, encoder)
        self.windows = window_grid(config, self.net)
        self._device_net: nn.Module | None = None
        self._device_head: nn.Module | None = None
        self._engine = EngineSettings()

    def grid(self, lattice: Lattice, cells: int) -> MapGrid:
        """The map of a slide: one cell per token. A field consists of whole hops."""
        token_px = self.net.token_px
        window = token_px * (1 + self.windows.before + self.windows.after)
        centre = token_px * (self.windows.before + 0.5)
        return MapGrid(lattice, token_px, window, self._whole_hops(cells), centre)

    def _whole_hops(self, cells: int) -> int:
        hop = self.windows.hop
        return max(1, cells // hop) * hop

    def needed(self, grid: MapGrid, required: Cells) -> Callable[[NDArray[np.int32]], Mapping[str, Any]]:
        """The function that gives each field of a map the windows to compute."""
        padded = np.zeros((grid.field_rows * grid.cells, grid.field_columns * grid.cells), np.bool_)
        padded[: grid.rows, : grid.columns] = required
        blocks = padded.reshape(grid.field_rows, grid.cells, grid.field_columns, grid.cells)

        def params(indices: NDArray[np.int32]) -> Mapping[str, Any]:
            of_fields = blocks[indices[:, 0], :, indices[:, 1]]
            return {NEEDED: self.windows.needed(of_fields).astype(np.uint8)}

        return params

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        window, hop, token_px = self.net.window, self.windows.hop, self.net.token_px
        of_slice = SLICE * working_bytes(self.net.measured, window, window)

        def field_bytes(hops: int) -> int:
            cells = hop * hops
            pixels = (token_px * (cells + self.windows.before + self.windows.after)) ** 2
            scores = 8 * 4 * self.windows.windows(cells) ** 2 * self.net.side**2
            return of_slice + BYTES_PER_PIXEL * pixels + scores

        hops = largest_cells(field_bytes, max_bytes, preferred=MOST_HOPS, purpose="field")
        return replace(engine, cells=hop * hops, batch=1)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._engine = engine
        self._device_net = copy_to_device(self.net, engine)
        self._device_head = self.head.to(engine.device)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[TokenMap, Batch]:
        cells = self._whole_hops(engine.cells)
        side = self.net.token_px * (cells + self.windows.before + self.windows.after)
        batch = random_batch(engine, side, side)
        needed = torch.ones((1, self.windows.windows(cells) ** 2), dtype=torch.uint8, device=engine.device)
        return TokenMap(), Batch(batch.pixels, {NEEDED: needed})

    def forward(self, key: TokenMap, batch: Batch) -> dict[str, Tensor]:
        maps = [
            self._field(pixels, needed)
            for pixels, needed in zip(batch.pixels, batch.params[NEEDED], strict=True)
        ]
        return {"map": torch.stack(maps)[:, None]}

    def _field(self, pixels: Tensor, needed: Tensor) -> Tensor:
        """The map (cells, cells) of a field."""
        px, windows = self.net.token_px, self.windows
        cells = len(pixels) // px - windows.before - windows.after
        numbers = torch.nonzero(needed).flatten()
        starts, side = windows.starts(cells), self.net.window
        size = SLICE if self._engine.device == "cpu" else GPU_SLICE
        scores = []
        for chunk in numbers.split(size):
            corners = [starts[number] for number in chunk.tolist()]
            cut = [
                pixels[row * px : row * px + side, column * px : column * px + side]
                for row, column in corners
            ]
            scores.append(self.score_windows(torch.stack(cut)))
        if not scores:
            return pixels.new_zeros((cells, cells), dtype=torch.float32)
        return windows.blend(torch.cat(scores), numbers, cells)

    def score_windows(self, pixels: Tensor) -> Tensor:
        """The scores (n, T, T) of the tokens of windows, uint8 (n, W, W, 3)."""
        assert self._device_head is not None, "the model was not moved to a device"
        tokens = self.tokens(pixels)
        scores: Tensor = self._device_head(tokens.flatten(0, 2))
        return scores.reshape(tokens.shape[:3])

    def tokens(self, pixels: Tensor) -> Tensor:
        """The tokens (n, T, T, d) of windows, as float32."""
        assert self._device_net is not None, "the model was not moved to a device"
        tokens: Tensor = self._device_net(self.encoder.scaling.apply(pixels, dtype_of(self._engine)))
        return tokens.float()
