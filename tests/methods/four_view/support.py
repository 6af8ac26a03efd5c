"""Small exams and small four-view models, and their scores computed step by step, without the scanner."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from lobule.api import scan
from lobule.bundles import Bundle, write_bundle
from lobule.cohort import Case
from lobule.mammograms.exams import read_view
from lobule.mammograms.published.centres import best_centre
from lobule.mammograms.published.crop import crop_of
from lobule.mammograms.published.patches import PatchGrid, draw_strides, heatmap_of
from lobule.mammograms.published.windows import network_input, plan_exam, plan_image
from lobule.mammograms.views import VIEWS
from lobule.methods.four_view import Config
from lobule.methods.four_view.model import Nets, build
from lobule.nets.four_view import TARGETS, ViewWise
from lobule.results import open_results
from tests.methods.four_view.configs import changed
from tests.nets.four_view_recipe import cut_patch, made_tensor, patch_pixels
from tests.reference.mammograms import ViewImage, right_pointing

SMALL = changed(
    epochs=3,
    window=(192, 128),
    move=(12, 12),
    resize=12,
    crop_iterations=4,
    crop_buffer=6,
    patch=64,
    patch_stride=30,
    heatmap_cell=8,
    widths=(4, 4, 8, 8, 16),
    patch_growth=4,
    patch_blocks=(1, 2, 1, 1),
    patch_first_width=8,
)
"""A model for exams of 300 × 220 px."""
MACHINE = {"device": "cpu", "precision": "float32", "readers": 2, "memory_layout": "channels-last"}
AUGMENTATION = SMALL.variation
NEAR = {"atol": 1e-5, "rtol": 0}


def seeded(net: torch.nn.Module, tag: str) -> torch.nn.Module:
    """Fill a network with weights that depend only on the names of its tensors."""
    state = {
        key: tensor if tensor.ndim == 0 else torch.from_numpy(made_tensor(tag, "s", key, tuple(tensor.shape)))
        for key, tensor in net.state_dict().items()
    }
    net.load_state_dict(state)
    return net.eval()


def nets(config: Config):
    networks = build(config)
    net, patch_net = networks.members[0], next(iter(networks.patch_nets), None)
    return seeded(net, "view-image"), None if patch_net is None else seeded(patch_net, "patch")


def as_nets(net, patch_net=None) -> Nets:
    return Nets((net,), (), () if patch_net is None else (patch_net,))


def weights_of(net, patch_net=None) -> dict[str, torch.Tensor]:
    return as_nets(net, patch_net).state_dict()


def bundle_of(path: Path, **settings: object) -> Path:
    config = changed(SMALL, **settings)
    write_bundle(path, Bundle("four_view", config.to_dict(), TARGETS, None), weights_of(*nets(config)))
    return path


def run(bundle: Path, cohort: object, out: Path, **options: object):
    """Scan on two cores. `options` are passed to `scan`."""
    return scan(bundle, cohort, out, **MACHINE, **options)


class ByHand:
    """One view, prepared step by step like in the published pipeline."""

    def __init__(self, path: str, view: str) -> None:
        mammogram = read_view(path, view=view)
        self.view, self.flip = view, mammogram.horizontal_flip
        crop = crop_of(mammogram.pixels, mammogram.pointing, iterations=4, buffer=6)
        self.window = crop.window
        self.image = np.ascontiguousarray(
            right_pointing(crop.window.of(mammogram.pixels), view, mammogram.horizontal_flip)
        )
        self.centre = best_centre(self.image, view, crop.landmarks, SMALL.architecture.window)
        self.view_image = ViewImage(self.image.shape, self.centre)

    def heatmaps(self, rng: random.Random, patch_net: torch.nn.Module):
        """Return the benign and the malignant heatmap, scoring every patch of the grid, even blank ones."""
        grid = self.grid(rng)
        pixels = patch_pixels(self.image)
        with torch.inference_mode():
            patches = [torch.from_numpy(cut_patch(pixels, corner, 64).copy()) for corner in grid.corners()]
            scores = torch.softmax(patch_net(torch.stack(patches)), dim=1).numpy()
        return heatmap_of(self.image.shape, grid, scores[:, 1]), heatmap_of(
            self.image.shape, grid, scores[:, 0]
        )

    def grid(self, rng: random.Random) -> PatchGrid:
        rows = draw_strides(self.image.shape[0], rng, patch=64, stride=30)
        columns = draw_strides(self.image.shape[1], rng, patch=64, stride=30)
        return PatchGrid.of_strides(rows, columns, 64)


def views_of(case: Case) -> dict[str, list[ByHand]]:
    return {
        view: [ByHand(path, view) for path in case.views.get(view.lower().replace("-", "_"), ())]
        for view in VIEWS
    }


def exam_by_hand(case, net: ViewWise, windows, heatmaps=None, augmentation=AUGMENTATION, epochs=3):
    """Return the scores (epochs, 4) of the view-wise net.

    `windows` is the random stream and `heatmaps` contains the heatmaps of each view.
    """
    views = views_of(case)
    plans = plan_exam(
        {view: [image.view_image for image in images] for view, images in views.items()},
        windows,
        epochs=epochs,
        augmentation=augmentation,
        size=SMALL.architecture.window,
    )
    scores = []
    for plan in plans:
        inputs = {}
        for view, (index, window) in plan.items():
            maps = None if heatmaps is None else heatmaps[view]
            inputs[view] = torch.from_numpy(
                network_input(views[view][index].image, window.unpadded, window.size, maps)
            )[None]
        with torch.inference_mode():
            scores.append(net.exam_scores(net(inputs))[0].numpy())
    return np.array(scores)


def view_by_hand(path: str, view: str, net, heatmaps=None):
    """Return the scores (epochs, 2) of one view by the image-wise net."""
    image = ByHand(path, view)
    scores = []
    for window in plan_image(
        image.view_image, view, epochs=3, augmentation=AUGMENTATION, size=SMALL.architecture.window
    ):
        x = torch.from_numpy(network_input(image.image, window.unpadded, window.size, heatmaps))[None]
        with torch.inference_mode():
            scores.append(net.single(view, x)[0, :, 1].exp().numpy())
    return np.array(scores)


def result_of(folder: Path, case: str) -> dict:
    result = open_results(folder).case_folder(case).result
    assert result is not None
    return result
