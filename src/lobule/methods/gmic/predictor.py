"""GMIC for the scanner: saliency and regions from one window of each view, and a score of each breast."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.cohort import Case
from lobule.errors import ModelError
from lobule.findings import Finding
from lobule.geometry import Box
from lobule.mammograms.breasts import GRADES, breast_scores, views_note
from lobule.mammograms.exam_views import BrokenView, ExamView, Heatmaps, InputView, open_views
from lobule.mammograms.published.crop import Window
from lobule.mammograms.published.windows import plan_window
from lobule.methods.gmic.config import Config
from lobule.nets.four_view import TARGETS
from lobule.nets.gmic import Gmic
from lobule.nets.shapes import output_shape
from lobule.nets.squeezed import Squeezed
from lobule.results.result import Result
from lobule.scanning.contract import Batch, EngineSettings, ImageSource, OpenCase, ScanOptions, Steps
from lobule.scanning.device import copy_to_device, in_torch, working_bytes
from lobule.scanning.exam_passes import (
    CellMeans,
    Rows,
    choose_windows,
    exam_result,
    fill_heatmap,
    fill_view_table,
    sample_windows,
)

BATCH_ON_GPU = 4
SAMPLE_SIDE = 1024
"""Side in pixels of the random sample window on which the model is measured."""
COLUMNS = ("scores", "global_scores", "local_scores", "attention", "corners", "saliency")
"""Outputs of the models that are stored for each window."""


@dataclass(frozen=True, eq=False)
class ViewOutputs:
    """Outputs of the models for one view. The first axis of every array is the model."""

    scores: NDArray[np.float32]
    """(models, 2): benign and malignant, also in the arrays below."""
    global_scores: NDArray[np.float32]
    local_scores: NDArray[np.float32]
    attention: NDArray[np.float32]
    """(models, regions)"""
    corners: NDArray[np.int64]
    """(models, regions, 2): row and column in the window."""
    saliency: NDArray[np.float32]
    """(models, 2, rows, columns)"""


@dataclass(frozen=True)
class ViewScores:
    """Key of a pass that computes saliency, regions and scores of windows with every model."""


class GmicModel:
    """The models of a bundle."""

    def __init__(self, config: Config, nets: Sequence[Gmic]) -> None:
        self.config, self.nets = config, list(nets)
        self._device_nets: list[nn.Module] = []

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        window_bytes = working_bytes(self.nets[0].ds_net, *self.config.window, 1)
        return choose_windows(engine, max_bytes, window_bytes, BATCH_ON_GPU)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        float32_engine = replace(in_torch(engine), precision="float32")
        quirks = replace(self.config, **options.settings).quirks
        self._device_nets = []
        for net in self.nets:
            model = copy.deepcopy(net)
            model.quirks = quirks
            model.ds_net = _WholeMap(model.ds_net)  # type: ignore[assignment]
            self._device_nets.append(copy_to_device(model, float32_engine))

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[ViewScores, Batch]:
        return ViewScores(), sample_windows(engine, self.config.window, 1, SAMPLE_SIDE)

    def forward(self, key: ViewScores | CellMeans, batch: Batch) -> dict[str, Tensor]:
        if isinstance(key, CellMeans):
            return key.of(batch.pixels)
        x = batch.pixels.permute(0, 3, 1, 2)
        outputs = [net(x) for net in self._device_nets]
        return {
            column: torch.cat([getattr(output, column).float().flatten(1) for output in outputs], dim=1)
            for column in COLUMNS
        }


class GmicPredictor:
    """Predictor of one GMIC model, or of several whose scores are averaged."""

    classes = TARGETS

    def __init__(self, config: Config, nets: Sequence[Gmic]) -> None:
        self.config, self.model = config, GmicModel(config, nets)
        self._map_shape = _map_shape(nets[0], config.window)

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        """Open the first image of every view that the exam has."""
        return open_views(case, replace(self.config, **options.settings).view_options, joined=False)

    def steps(self, case: OpenCase) -> Steps[Result]:
        config = replace(self.config, **case.options.settings)
        views: dict[str, ViewOutputs] = {}
        findings: list[Finding] = []
        for name, image in case.images.items():
            assert isinstance(image, ExamView | BrokenView)
            window = plan_window(image.shape, image.view, config.window, image.centre).unpadded
            source = InputView(image, config.window) if isinstance(image, ExamView) else image
            columns = yield from fill_view_table(
                ViewScores(), f"windows {name}", name, source, image.boxes([window]), COLUMNS,
                size=config.window,
            )  # fmt: skip
            if isinstance(image, BrokenView) or not columns[0]:
                continue
            outputs = views[image.view] = self._outputs(columns)
            layers, inside = saliency_layers(outputs.saliency.mean(axis=0), window, image.shape)
            yield from fill_heatmap(f"saliency {name}", name, image, layers, config.map_cell, inside)
            findings += region_findings(outputs, name, image, window, config.region_px)
        if not views:
            raise ModelError("no view of the exam could be scored")
        return build_result(views, case.images, findings)

    def _outputs(self, columns: Sequence[Rows]) -> ViewOutputs:
        """Return the outputs in the only row of a view's table."""
        regions = self.config.regions
        shapes = ((2,), (2,), (2,), (regions,), (regions, 2), (2, *self._map_shape))
        arrays = {
            name: rows[0].reshape(len(self.model.nets), *shape)
            for name, rows, shape in zip(COLUMNS, columns, shapes, strict=True)
        }
        corners = np.rint(arrays.pop("corners")).astype(np.int64)
        return ViewOutputs(corners=corners, **arrays)


class _WholeMap(nn.Module):
    """The trunk for inference only, returning its whole feature map."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.squeezed = Squeezed(trunk)

    def forward(self, x: Tensor) -> Tensor:
        return self.squeezed.whole_map(x)


def _map_shape(net: Gmic, window: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of the saliency map of a window."""
    shape = output_shape(net.ds_net, (1, 1, *window))
    return shape[2], shape[3]


def saliency_layers(
    saliency: NDArray[np.float32], window: Window, shape: tuple[int, int]
) -> tuple[Heatmaps, Window]:
    """Convert the saliency (2, rows, columns) of a window to layers of the cropped view.

    Returns:
        The layers, and the window of the view that they cover.
    """
    inside = window.inside(shape)
    rows = (np.arange(inside.top, inside.bottom) - window.top) * saliency.shape[1] // window.height
    columns = (np.arange(inside.left, inside.right) - window.left) * saliency.shape[2] // window.width
    layers = np.zeros((2, *shape), np.float32)
    layers[:, inside.top : inside.bottom, inside.left : inside.right] = saliency[:, rows][:, :, columns]
    return layers, inside


def region_findings(
    outputs: ViewOutputs, name: str, image: ExamView, window: Window, side: int
) -> list[Finding]:
    """Return the regions in pixels of the stored image, scored by attention.

    The attention of the regions of a view sums to 1. A region that several models chose is one finding.
    Regions entirely outside the image are dropped.
    """
    attention: dict[tuple[int, int], float] = {}
    for corners, weights in zip(outputs.corners.tolist(), outputs.attention.tolist(), strict=True):
        for (row, column), weight in zip(corners, weights, strict=True):
            attention[row, column] = attention.get((row, column), 0.0) + weight / len(outputs.attention)
    findings = []
    for (row, column), score in attention.items():
        top, left = window.top + row, window.left + column
        region = image.frame.to_l0(Window(top, top + side, left, left + side))
        inside = Window(region.y, region.bottom, region.x, region.right).inside(image.stored.shape)
        if inside.height and inside.width:
            box = Box.of_edges(inside.left, inside.top, inside.right, inside.bottom)
            x, y = box.x + box.width // 2, box.y + box.height // 2
            findings.append(Finding(x, y, score, "box", "region", box, image=name))
    return findings


def build_result(
    views: Mapping[str, ViewOutputs], images: Mapping[str, ImageSource], findings: Sequence[Finding]
) -> Result:
    """Average the scores of the models and of the views of each breast."""
    means = {view: outputs.scores.astype(np.float64).mean(axis=0) for view, outputs in views.items()}
    metadata = {
        "views": {
            view: {
                grade: {
                    "score": float(means[view][i]),
                    "of_models": [float(value) for value in outputs.scores[:, i]],
                    "global": [float(value) for value in outputs.global_scores[:, i]],
                    "local": [float(value) for value in outputs.local_scores[:, i]],
                }
                for i, grade in enumerate(GRADES)
            }
            for view, outputs in views.items()
        }
    }
    scores = breast_scores({view: mean.tolist() for view, mean in means.items()})
    return exam_result(scores, images, findings, "gmic", metadata, (views_note("GMIC", views),))
