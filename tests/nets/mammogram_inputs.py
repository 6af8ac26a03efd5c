"""The network inputs of the real exam, without augmentation, for tests of the networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lobule.mammograms.published.centres import GMIC_WINDOW_SIZE, best_centre, window_size
from lobule.mammograms.published.crop import crop_of
from lobule.mammograms.published.windows import network_input, plan_window
from lobule.mammograms.views import stored_pointing
from tests.nets.four_view_recipe import synthetic_heatmaps
from tests.reference.mammograms import ViewImage, right_pointing

SMALL = np.s_[..., 600:1000, 0:300]


class RealExam:
    """The four views, cropped and pointing right, with their crops."""

    def __init__(self, kit: Path) -> None:
        self.facing, self.crops = {}, {}
        for view in ("L-CC", "R-CC", "L-MLO", "R-MLO"):
            with Image.open(kit / "mammograms" / "nyu" / "images" / f"0_{view}.png") as image:
                stored = np.array(image).astype(np.uint16)
            self.crops[view] = crop_of(stored, stored_pointing(view, "NO"))
            cropped = self.crops[view].window.of(stored)
            self.facing[view] = np.ascontiguousarray(right_pointing(cropped, view, "NO"))

    def image(self, view, size=None):
        facing = self.facing[view]
        centre = best_centre(facing, view, self.crops[view].landmarks, size or window_size(view))
        return ViewImage(facing.shape, centre)

    def heatmaps(self, view):
        shape = self.facing[view].shape
        return tuple(right_pointing(heatmap, view, "NO") for heatmap in synthetic_heatmaps(shape))

    def input(self, view, *, heatmaps=False, gmic=False) -> torch.Tensor:
        """(1, C, h, w)"""
        size = GMIC_WINDOW_SIZE if gmic else window_size(view)
        image = self.image(view, size)
        plan = plan_window(image.shape, view, size, image.centre)
        layers = self.heatmaps(view) if heatmaps else None
        return as_batch(network_input(self.facing[view], plan.unpadded, plan.size, layers))


def as_batch(array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None]
