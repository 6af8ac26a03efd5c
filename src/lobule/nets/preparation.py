"""Resizing and cutting of tiles before they are scaled, as the authors of an encoder specify it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Preparation:
    """Resize to a square, then cut out its centre."""

    resize_px: int
    crop_px: int
    interpolation: Literal["bilinear", "bicubic"]

    def apply(self, pixels: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) to uint8 (N, crop, crop, 3), with the values of Pillow to within two levels."""
        side = self.resize_px
        if tuple(pixels.shape[1:3]) != (side, side):
            planes = pixels.permute(0, 3, 1, 2)
            if pixels.device.type == "cpu":
                planes = self._interpolate(planes, (side, side))
            else:
                planes = self.resize_axis_by_axis(planes)
            pixels = planes.permute(0, 2, 3, 1)
        start = round((side - self.crop_px) / 2)
        return pixels[:, start : start + self.crop_px, start : start + self.crop_px]

    def resize_axis_by_axis(self, planes: Tensor) -> Tensor:
        """Resize uint8 planes on devices that can resize only floats.

        Pillow rounds and clips to 8 bits after each axis. Clipping once, after both, would change sharp edges
        by up to 20 levels.
        """
        for size in ((planes.shape[2], self.resize_px), (self.resize_px, self.resize_px)):
            planes = self._interpolate(planes.float(), size).round_().clamp_(0, 255)
        return planes.to(torch.uint8)

    def _interpolate(self, planes: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(planes, size, mode=self.interpolation, align_corners=False, antialias=True)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
