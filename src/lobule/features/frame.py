"""The encoder of features, the positions of their tiles, and the attributes that each layout stores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lobule.errors import ConfigError
from lobule.geometry import Lattice, Size

STANDARD_MAGNIFICATIONS = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
TOLERANCE = 0.15
"""Relative tolerance for a standard magnification: scanners called 20x have 0.46 to 0.5 µm/px."""


@dataclass(frozen=True)
class Encoding:
    """The encoder that converts a tile to features. Features of two encodings must not be mixed."""

    name: str
    """The backbone, such as `resnet50` or `timm:vit_small_patch16_224`."""
    hash: str
    """Hash of the weights, the input scaling and the input size."""
    dim: int

    @property
    def folder_name(self) -> str:
        """The name with only characters that are safe in a path, for the folder `features_<encoder>`."""
        return folder_name(self.name)


def folder_name(encoder: str) -> str:
    """The name of an encoder with only characters that are safe in a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", encoder)


@dataclass(frozen=True)
class TileFrame:
    """The size and the grid of the tiles of one slide."""

    name: str
    """The name of the case, or the file name of the slide without suffix."""
    tile_px: int
    """Side of a tile in pixels, at the µm/px at which it is read."""
    mpp: float
    """µm/px at which tiles are read."""
    l0_tile: int
    """Side of a tile in level-0 pixels."""
    l0_size: Size
    l0_magnification: float
    level: int | None = None
    """The level that is read without scaling; None if pixels are resampled."""
    downsample: tuple[float, float] = (1.0, 1.0)
    level_size: Size | None = None
    overlap_px: int = 0

    @classmethod
    def of(cls, name: str, lattice: Lattice, tile_px: int, target_mpp: float) -> TileFrame:
        """The frame of tiles that cover a lattice without gaps or overlap."""
        if lattice.mpp is None:
            raise ConfigError("features need the µm/px of the slide, which is unknown", subject=name)
        step_x, step_y = float(lattice.step_x), float(lattice.step_y)
        mpp = lattice.mpp.mean if lattice.level is not None else target_mpp
        step = (step_x * step_y) ** 0.5
        magnification = nominal_magnification(lattice.mpp.mean / step)
        level_size = lattice.size if lattice.level is not None else None
        return cls(
            name, tile_px, mpp, round(tile_px * step), lattice.l0_size, magnification,
            lattice.level, (step_x, step_y), level_size,
        )  # fmt: skip

    def attributes(self, folder: str) -> dict[str, Any]:
        """The attributes of `coords`: those of TRIDENT, and of CLAM if the tiles are on a pyramid level.

        Without such a level, `patch_level` of CLAM is left out. A CLAM reader then raises an error instead of
        reading tiles of another size.
        """
        trident = {
            "patch_size": self.tile_px,
            "patch_size_level0": self.l0_tile,
            "level0_magnification": _int_if_whole(self.l0_magnification),
            "target_magnification": _int_if_whole(nominal_magnification(self.mpp)),
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
        """The name of TRIDENT's folder for all slides with this tiling."""
        magnification = _int_if_whole(nominal_magnification(self.mpp))
        return f"{magnification:g}x_{self.tile_px}px_{self.overlap_px}px_overlap"


def nominal_magnification(mpp: float) -> float:
    """The magnification for a µm/px: 10 divided by it, rounded to a standard magnification if one is near."""
    exact = 10.0 / mpp
    nearest = min(STANDARD_MAGNIFICATIONS, key=lambda standard: abs(standard / exact - 1))
    return nearest if abs(nearest / exact - 1) <= TOLERANCE else round(exact, 3)


def _int_if_whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def encoding_of(stored: Mapping[str, Any]) -> Encoding:
    """Read an encoding that was stored by `encoding_to_dict`."""
    try:
        return Encoding(str(stored["name"]), str(stored["hash"]), int(stored["dim"]))
    except (KeyError, TypeError, ValueError) as error:
        problem = "the description of the encoder is incomplete"
        raise ConfigError(problem, actual=repr(dict(stored))) from error


def encoding_to_dict(encoding: Encoding) -> dict[str, Any]:
    return asdict(encoding)
