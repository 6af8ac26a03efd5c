"""Tiles are resized as Pillow does it, also at edges so sharp that interpolation overshoots."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from lobule.nets.preparation import Preparation


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resize_px", "crop_px"), [(64, 256, 224), (224, 256, 224), (300, 248, 224)])
def test_resizing_equals_that_of_pillow(
    size: int, resize_px: int, crop_px: int, interpolation: Literal["bilinear", "bicubic"]
) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (size, size, 3), dtype=np.uint8)
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    by_pillow = np.asarray(Image.fromarray(pixels).resize((resize_px, resize_px), method)).astype(int)
    preparation = Preparation(resize_px, crop_px, interpolation)
    start = (resize_px - crop_px) // 2
    inside = slice(start, start + crop_px)

    on_cpu = preparation.apply(torch.from_numpy(pixels)[None])[0].numpy()
    assert on_cpu.dtype == np.uint8 and on_cpu.shape == (crop_px, crop_px, 3)
    levels = np.abs(on_cpu - by_pillow[inside, inside])
    assert levels.max() <= 2 and (levels > 0).mean() < 0.01

    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    by_axes = preparation.resize_axis_by_axis(planes)[0].permute(1, 2, 0).numpy()
    assert by_axes.dtype == np.uint8 and np.abs(by_axes - by_pillow).max() <= 2
