"""What features are of: the encoder that made them, and where their tiles lie, as each layout says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lobule.errors import ConfigError
from lobule.geometry import Lattice, Size

USUAL_MAGNIFICATIONS = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
NEAR = 0.15
"""Scanners that are called 20x have 0.46 to 0.5 µm/px: so near counts as the usual number."""


@dataclass(frozen=True)
class Encoding:
    """What turns a tile into numbers. Features of two encodings must not be mixed."""

    name: str
    """The backbone, such as `resnet50` or `timm:vit_small_patch16_224`."""
    hash: str
    """Over the weights, the input scaling and the input size."""
    dim: int

    @property
    def folder_name(self) -> str:
        """The name as part of a path, as `features_<encoder>` has it."""
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.name)


@dataclass(frozen=True)
class TileFrame:
    """Where the tiles of one slide lie."""

    name: str
    """The case, or the slide's file name without suffix."""
    tile_px: int
    """Pixels a side of a tile at the µm/px it is read at."""
    mpp: float
    """µm/px at which tiles are read."""
    l0_tile: int
    """Level-0 pixels a side."""
    l0_size: Size
    l0_magnification: float
    level: int | None = None
    """The level that is read unscaled; None where pixels are resampled."""
    downsample: tuple[float, float] = (1.0, 1.0)
    level_size: Size | None = None
    overlap_px: int = 0

    @classmethod
    def of(cls, name: str, lattice: Lattice, tile_px: int, wanted_mpp: float) -> TileFrame:
        """The frame of tiles that lie on a lattice without gap or overlap."""
        if lattice.mpp is None:
            raise ConfigError("features need the µm/px of their tiles", subject=name)
        step_x, step_y = float(lattice.step_x), float(lattice.step_y)
        mpp = lattice.mpp.mean if lattice.level is not None else wanted_mpp
        return cls(
            name,
            tile_px,
            mpp,
            round(tile_px * (step_x * step_y) ** 0.5),
            lattice.l0_size,
            nominal_magnification(lattice.mpp.mean / (step_x * step_y) ** 0.5),
            lattice.level,
            (step_x, step_y),
            lattice.size if lattice.level is not None else None,
        )

    def attributes(self, folder: str) -> dict[str, Any]:
        """The attributes of `coords`: TRIDENT's, and CLAM's where the tiles lie on a real level.

        Elsewhere CLAM's `patch_level` is left out, so that a CLAM reader fails loudly instead of reading
        tiles of another size.
        """
        trident = {
            "patch_size": self.tile_px,
            "patch_size_level0": self.l0_tile,
            "level0_magnification": _plain(self.l0_magnification),
            "target_magnification": _plain(nominal_magnification(self.mpp)),
            "overlap": self.overlap_px,
            "name": self.name,
            "savetodir": folder,
            "level0_width": self.l0_size.width,
            "level0_height": self.l0_size.height,
        }
        if self.level is None or self.level_size is None:
            return trident
        return trident | {
            "patch_level": self.level,
            "downsample": self.downsample,
            "downsampled_level_dim": tuple(self.level_size),
            "level_dim": tuple(self.level_size),
            "save_path": folder,
        }

    @property
    def folder_name(self) -> str:
        """TRIDENT's folder of all slides tiled alike."""
        magnification = _plain(nominal_magnification(self.mpp))
        return f"{magnification:g}x_{self.tile_px}px_{self.overlap_px}px_overlap"


def nominal_magnification(mpp: float) -> float:
    """The number that people call a µm/px by: 10 over it, or the usual number that is near."""
    exact = 10.0 / mpp
    nearest = min(USUAL_MAGNIFICATIONS, key=lambda usual: abs(usual / exact - 1))
    return nearest if abs(nearest / exact - 1) <= NEAR else round(exact, 3)


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def encoding_of(facts: Mapping[str, Any]) -> Encoding:
    """An encoding as `to_facts` stored it."""
    try:
        return Encoding(str(facts["name"]), str(facts["hash"]), int(facts["dim"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("not the description of an encoder", actual=repr(dict(facts))) from error


def to_facts(encoding: Encoding) -> dict[str, Any]:
    return asdict(encoding)
