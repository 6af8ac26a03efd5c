"""The geometry of fields: which pixels, patches and mosaics the cells of a field need.

A cell is the window of one patch. In the shared form, windows are averaged over mosaics of adjacent patches;
each mosaic starts at another offset before the first window. `config.stride` is the stride of the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lobule.errors import ConfigError
from lobule.methods.reverse_distillation.config import Config

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def scan_config(config: Config, settings: Mapping[str, Any], stride: int | None) -> Config:
    """Return the config with the stride and the settings that a scan changes.

    Raises:
        ConfigError: They contradict each other.
    """
    config = replace(config, **{**settings, "stride": stride or config.stride})
    if config.form == "shared" and config.score == "max":
        raise ConfigError("the shared form does not support score=max", remedy="Use form=exact")
    cells_per_patch(config)  # A stride that the shared form does not support raises an error.
    return config


def cells_per_patch(config: Config) -> int:
    """Cells along a side of a patch: 1 in the exact form, where cells are independent."""
    if config.form == "exact":
        return 1
    ratio, rest = divmod(config.patch, config.stride)
    if rest or ratio < 1 or config.input % ratio:
        raise ConfigError(
            f"the shared form does not support stride {config.stride}",
            expected=f"a stride that divides the patch side of {config.patch} px",
            remedy="Choose another --stride, or --set form=exact",
        )
    return ratio


def mosaic_offsets(config: Config) -> list[int]:
    """For each mosaic, the distance in pixels from its start to the first window."""
    patch, size = config.patch, config.input
    offsets = [number * patch // config.mosaics for number in range(config.mosaics)]
    if any(offset * size % patch for offset in offsets):
        raise ConfigError(
            f"the offsets of {config.mosaics} mosaics are not whole pixels after resizing patches "
            f"to {size} px",
            remedy="Use --set mosaics=1",
        )
    return offsets


def margin_of(config: Config) -> int:
    """Pixels before the first window of a field."""
    return mosaic_offsets(config)[-1] if config.form == "shared" else 0


def field_side(config: Config, cells: int) -> int:
    """Side of a field in pixels; in the shared form it consists of whole patches."""
    if config.form == "exact":
        return config.patch + config.stride * (cells - 1)
    sides = [
        margin_of(config) - offset + patches_across(config, cells_per_patch(config), offset) * config.patch
        for offset in mosaic_offsets(config)
    ]
    # The cells fill whole patches, and each further patch of cells adds one patch to every mosaic.
    return config.stride * cells + max(sides) - config.patch


def patches_across(config: Config, cells: int, offset: int) -> int:
    """Patches along a side of a mosaic that contains the windows of all cells."""
    return -(-(offset + config.stride * (cells - 1) + config.patch) // config.patch)


def patches_of_cells(config: Config, cells: int, offset: int, device: torch.device) -> Tensor:
    """Matrix (cells, patches) along one axis: 1 if the cell's window overlaps the patch, otherwise 0."""
    import torch

    side = config.patch
    begins = offset + config.stride * torch.arange(cells, device=device)[:, None]
    patch = side * torch.arange(patches_across(config, cells, offset), device=device)
    return ((begins < patch + side) & (begins + side > patch)).float()
