"""Resizing and cutting of tiles before they are scaled, as the authors of an encoder specify it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Preparation:
    """Resize to a square, then cut out its centre."""

    resize_px: int
    crop_px: int
    interpolation: Literal["bilinear", "bicubic"]

    def apply(self, pixels: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) to uint8 (N, crop, crop, 3). Values are rounded after resizing, as in Pillow."""
        side = (self.resize_px, self.resize_px)
        if tuple(pixels.shape[1:3]) != side:
            planes = pixels.permute(0, 3, 1, 2).float()
            resized = F.interpolate(
                planes, side, mode=self.interpolation, align_corners=False, antialias=True
            )
            pixels = resized.round_().clamp_(0, 255).to(pixels.dtype).permute(0, 2, 3, 1)
        start = round((self.resize_px - self.crop_px) / 2)
        return pixels[:, start : start + self.crop_px, start : start + self.crop_px]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
