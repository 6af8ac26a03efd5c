"""Encodes the tiles of a slide: the pass that fills a table of features, shared by several methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from lobule.color import Normalisation
from lobule.errors import CaseError, ConfigError
from lobule.grid import MapGrid, share_in_cells
from lobule.nets.encoders import Encoder
from lobule.nets.vit import VitEncoder, WithTokens
from lobule.results.tables import TableReader
from lobule.scanning.contract import Batch, EngineSettings, Fields, OpenCase, ScanOptions, Steps, fill_table
from lobule.scanning.device import SLICE, copy_to_device, dtype_of, random_batch, working_bytes
from lobule.stitch import State


@dataclass(frozen=True)
class TileFeatures:
    """Key of the pass that encodes tiles."""


TABLE = COLUMN = "features"
"""Name of the table that holds the features of tiles, and of its column."""
TOKENS, SCALES = "tokens", "scales"
"""Names of the columns with the tokens of the patches of a tile, and with a factor for each token."""
TokenStorage = Literal["none", "float16", "int8"]
"""How tokens are stored; "none" computes none. int8 values are multiplied by the factor of their token."""
BATCH = 256
"""Tiles per batch on a GPU. A CPU uses smaller batches: it gains nothing from larger ones, and would have to
compute the padding of the last batch of a case."""

WAITING = 12
"""Bytes per pixel value of a tile and replica: uint8 in up to four queued batches, and float32 twice."""

CHUNK_BYTES = 16 << 20
"""Size of a chunk of the table, which stays in memory until it is written."""


@dataclass(frozen=True)
class Tiling:
    """The tiles of a slide that are encoded."""

    mpp: float
    tile_px: int = 224
    """Pixels per side of a tile at `mpp`. Tiles lie side by side, starting at level-0 (0, 0)."""
    input_px: int = 224
    """Pixels per side of the encoder's input. Tiles of another size are resized on the device."""
    tissue_share: float = 0.1
    """Tiles with a smaller share of tissue are skipped."""
    stains: Normalisation = "none"
    """How the stains of a slide are normalised before its tiles are encoded."""

    def __post_init__(self) -> None:
        if self.tile_px < 1 or self.input_px < 1 or self.mpp <= 0 or not 0 <= self.tissue_share <= 1:
            raise ConfigError(
                f"invalid tiles: {self.tile_px} px at {self.mpp} µm/px, {self.input_px} px for the encoder, "
                f"a tissue share of {self.tissue_share}"
            )


def tiles_of(case: OpenCase, tiling: Tiling) -> tuple[MapGrid, NDArray[np.bool_]]:
    """Return the grid of a case's tiles, and a mask of the tiles with enough tissue."""
    lattice = case.images["slide"].lattice(mpp=tiling.mpp, upsample=case.options.upsample)
    grid = MapGrid(lattice, tiling.tile_px, tiling.tile_px)
    tissue = case.tissue()
    share = share_in_cells(grid, tissue.mask, tissue.l0_step)
    return grid, np.asarray((share >= tiling.tissue_share) & (share > 0))


def tile_fields(case: OpenCase, tiling: Tiling) -> Fields:
    """Return every tile with tissue, row by row."""
    grid, has_tissue = tiles_of(case, tiling)
    rows, columns = np.nonzero(has_tissue)
    boxes = np.empty((len(rows), 4), np.int64)
    boxes[:, 0], boxes[:, 1] = columns * tiling.tile_px, rows * tiling.tile_px
    boxes[:, 2:] = tiling.tile_px
    return Fields(("slide",), (grid.lattice,), np.zeros(len(rows), np.int16), boxes)


def fill_features(fields: Fields, dim: int, token_bytes: int = 0) -> Steps[TableReader]:
    """Fill the table of `dim` features of each tile. It is an error if no tile can be encoded.

    Args:
        fields: The tiles.
        dim: Number of features.
        token_bytes: Bytes of the tokens of a tile; 0 without tokens.
    """
    fewest = 8 if token_bytes else 64
    chunk_rows = int(np.clip(CHUNK_BYTES // (4 * dim + token_bytes), fewest, 4096))
    table = yield from fill_table(TileFeatures(), TABLE, fields, chunk_rows=chunk_rows)
    _refuse_all_failed(table)
    return table


def _refuse_all_failed(table: TableReader) -> None:
    """Raise an error if every tile failed, since the empty result would look like a slide without tissue."""
    states = [chunk["state"] for chunk in table.iterate(["state"])]
    if states and not any((state == State.SCORED).any() for state in states):
        raise CaseError(
            f"none of its {sum(map(len, states))} tiles could be encoded",
            remedy="Copy the slide again from its source and run the same command with --retry-failed",
        )


class TileEncoder:
    """Runs an encoder: the `Model` of predictors that encode tiles."""

    def __init__(
        self, encoder: Encoder, tiling: Tiling, tokens: TokenStorage = "none", suffix: str = ""
    ) -> None:
        """
        Args:
            encoder: The encoder.
            tiling: The tiles.
            tokens: How tokens of patches are stored; "none" computes only features.
            suffix: Appended to the names of the columns, to tell the encoders of one pass apart.
        """
        if encoder.input_px is not None and tiling.input_px != encoder.input_px:
            raise ConfigError(
                f"'{encoder.name}' accepts only tiles of {encoder.input_px} px",
                actual=f"{tiling.input_px} px",
                remedy=f"Use --input {encoder.input_px}",
            )
        self.encoder, self.tiling, self.tokens, self.suffix = encoder, tiling, tokens, suffix
        self._net = encoder.for_inference()
        if tokens != "none":
            self._net = WithTokens(self._transformer())
        self._device_net: nn.Module | None = None
        self._engine = EngineSettings()

    def _transformer(self) -> VitEncoder:
        if not isinstance(self.encoder.net, VitEncoder):
            raise ConfigError(
                f"'{self.encoder.name}' has no tokens",
                expected="a vision transformer of `lobule weights list`",
                remedy="Remove --tokens, or use another encoder",
            )
        return self.encoder.net

    @property
    def token_shape(self) -> tuple[int, int, int] | None:
        """Rows, columns and width of the tokens of a tile; None if none are computed."""
        if self.tokens == "none":
            return None
        transformer = self._transformer()
        return (*transformer.grid, transformer.token_width)

    @property
    def token_bytes(self) -> int:
        """Bytes of the stored tokens of a tile."""
        if self.token_shape is None:
            return 0
        rows, columns, width = self.token_shape
        return rows * columns * (width + 2 if self.tokens == "int8" else 2 * width)

    def bytes_of_tile(self) -> int:
        """Return the bytes for encoding one tile. Raises `ConfigError` if the encoder rejects its size."""
        side = self.tiling.input_px
        try:
            encoding_bytes = working_bytes(self.encoder.net, side, side)
        except RuntimeError as error:
            raise ConfigError(
                f"'{self.encoder.name}' does not accept tiles of {side} px",
                actual=str(error).splitlines()[0],
                remedy="Use larger tiles, or enlarge them with --input",
            ) from error
        return encoding_bytes + WAITING * 3 * self.tiling.tile_px**2

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        most = SLICE if engine.device == "cpu" else BATCH
        return replace(engine, batch=max(1, min(most, max_bytes // self.bytes_of_tile())))

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._engine = engine
        self._device_net = copy_to_device(self._net, engine)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[TileFeatures, Batch]:
        side = self.tiling.tile_px
        return TileFeatures(), random_batch(engine, side, side, engine.batch)

    def forward(self, key: TileFeatures, batch: Batch) -> dict[str, torch.Tensor]:
        assert self._device_net is not None
        outputs = self._device_net(self._scaled(batch.pixels))
        if self.tokens == "none":
            return {COLUMN + self.suffix: outputs.float()}
        features, tokens = outputs
        return {COLUMN + self.suffix: features.float(), **self._stored_tokens(tokens)}

    def _scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Resize, cut and scale tiles as the encoder requires it."""
        dtype = dtype_of(self._engine)
        if self.encoder.preparation is not None:
            return self.encoder.scaling.apply(self.encoder.preparation.apply(pixels), dtype)
        size = (self.tiling.input_px, self.tiling.input_px)
        if tuple(pixels.shape[1:3]) == size:
            return self.encoder.scaling.apply(pixels, dtype)
        # torch cannot resize bfloat16 tensors on a CPU.
        x = self.encoder.scaling.apply(pixels, torch.float32)
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True).to(dtype)

    def _stored_tokens(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """The columns of tokens (N, T, d), flattened to one row per tile."""
        if self.tokens == "float16":
            return {TOKENS + self.suffix: tokens.half().flatten(1)}
        values, scales = quantised(tokens.float())
        return {TOKENS + self.suffix: values.flatten(1), SCALES + self.suffix: scales}


def quantised(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (N, T, d) as int8 (N, T, d) and float16 factors (N, T) that restore their sizes."""
    scales = (tokens.abs().amax(dim=2) / 127).clamp(min=torch.finfo(torch.float16).tiny).half()
    values = (tokens / scales.float()[..., None]).round().clamp(-127, 127)
    return values.to(torch.int8), scales


class TileEncoders:
    """Runs several encoders on the same tiles, so that a slide is read once."""

    def __init__(self, encoders: Sequence[TileEncoder]) -> None:
        self.encoders = tuple(encoders)
        self.tiling = self.encoders[0].tiling

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        batches = [encoder.choose_batch(engine, room, options).batch for encoder in self.encoders]
        return replace(engine, batch=min(batches))

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        for encoder in self.encoders:
            encoder.move_to_device(engine, options)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[TileFeatures, Batch]:
        return self.encoders[0].sample_batch(engine, options)

    def forward(self, key: TileFeatures, batch: Batch) -> dict[str, torch.Tensor]:
        outputs: dict[str, torch.Tensor] = {}
        for encoder in self.encoders:
            outputs |= encoder.forward(key, batch)
        return outputs
