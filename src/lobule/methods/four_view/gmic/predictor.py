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

from lobule.bundles import Bundle
from lobule.cohort import Case
from lobule.errors import CaseError, ModelError
from lobule.findings import Finding
from lobule.geometry import Box
from lobule.methods.four_view.crop import Window
from lobule.methods.four_view.gmic.config import Config
from lobule.methods.four_view.images import BrokenView, ExamView, Heatmaps, InputView
from lobule.methods.four_view.painting import CellMeans, fill_heatmap
from lobule.methods.four_view.plan import PlannedImage, fill_windows, open_views, plan_images_separately
from lobule.methods.four_view.predictor import cell_means
from lobule.methods.four_view.scores import GRADES, breast_scores, image_metadata, scored_rows, views_note
from lobule.nets.four_view import TARGETS
from lobule.nets.gmic import Gmic
from lobule.nets.squeezed import Squeezed
from lobule.results.result import Result
from lobule.results.tables import TableReader
from lobule.scanning.contract import Batch, EngineSettings, ImageSource, OpenCase, ScanOptions, Steps
from lobule.scanning.device import activation_bytes, largest_cells, placed

HEADROOM = 2.0
BATCH_ON_GPU = 4
SAMPLE_SIDE = 1024
"""Side in pixels of the random sample window on which the model is measured."""


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
        self._placed: list[nn.Module] = []

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        window_bytes = activation_bytes(self.nets[0].ds_net, *self.config.window, 1)
        preferred = 1 if engine.device == "cpu" else BATCH_ON_GPU
        batch = largest_cells(
            lambda windows: int(windows * HEADROOM * window_bytes),
            room,
            preferred=preferred,
            purpose="batch of windows",
        )
        return replace(engine, batch=batch)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        float32_engine = replace(engine, precision="float32")
        quirks = self.config.set(options.settings).quirks
        self._placed = []
        for net in self.nets:
            model = copy.deepcopy(net)
            model.compat = quirks
            model.ds_net = _WholeMap(model.ds_net)  # type: ignore[assignment]
            self._placed.append(placed(model, float32_engine))

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[ViewScores, Batch]:
        height, width = (min(SAMPLE_SIDE, length) for length in self.config.window)
        pixels = np.random.default_rng(0).standard_normal((engine.batch, height, width, 1), np.float32)
        return ViewScores(), Batch(torch.from_numpy(pixels).to(engine.device))

    def forward(self, key: ViewScores | CellMeans, batch: Batch) -> dict[str, Tensor]:
        if isinstance(key, CellMeans):
            return cell_means(batch.pixels, key.cell)
        x = batch.pixels.permute(0, 3, 1, 2)
        outputs = [net(x) for net in self._placed]
        columns = ("scores", "global_scores", "local_scores", "attention", "corners", "saliency")
        return {
            column: torch.cat([getattr(output, column).float().flatten(1) for output in outputs], dim=1)
            for column in columns
        }


class GmicPredictor:
    """Predictor of one GMIC model, or of several whose scores are averaged."""

    classes = TARGETS

    def __init__(self, config: Config, nets: Sequence[Gmic]) -> None:
        self.config, self.model = config, GmicModel(config, nets)
        self._map_shape = _map_shape(nets[0], config.window)

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        """Open the first image of every view that the exam has."""
        if case.kind != "exam":
            raise CaseError(
                "this model reads exams only",
                subject=case.path,
                expected="a case with files of the views in the columns l_cc, r_cc, l_mlo, r_mlo",
                actual=f"a case of kind {case.kind}",
            )
        return open_views(case, self.config.set(options.settings))

    def steps(self, case: OpenCase) -> Steps[Result]:
        config = self.config.set(case.options.settings)
        views: dict[str, ViewOutputs] = {}
        findings: list[Finding] = []
        for planned in plan_images_separately(case, config):
            sources: dict[str, ImageSource] = {}
            if isinstance(planned.image, ExamView):
                sources[planned.name] = InputView(planned.image, config.window, None)
            name = f"windows {planned.name}"
            table = yield from fill_windows(ViewScores(), name, planned, config, sources)
            outputs = self._read_outputs(table)
            if outputs is None or not isinstance(planned.image, ExamView):
                continue
            views[planned.image.view] = outputs
            window = planned.windows[0]
            layers, inside = saliency_layers(
                outputs.saliency.mean(axis=0), window, planned.image.pixels.shape
            )
            yield from fill_heatmap(f"saliency {planned.name}", planned, layers, config.map_cell, inside)
            findings += region_findings(outputs, planned, config.region_px)
        if not views:
            raise ModelError("no view of the exam could be scored")
        return build_result(views, case.images, findings)

    def _read_outputs(self, table: TableReader) -> ViewOutputs | None:
        """Read the only row of a view's table; None if the view failed."""
        columns = {}
        shapes: dict[str, tuple[int, ...]] = {
            "scores": (2,),
            "global_scores": (2,),
            "local_scores": (2,),
            "attention": (self.config.regions,),
            "corners": (self.config.regions, 2),
            "saliency": (2, *self._map_shape),
        }
        for column, shape in shapes.items():
            rows = scored_rows(table, column)
            if 0 not in rows:
                return None
            columns[column] = rows[0].reshape(len(self.model.nets), *shape)
        corners = np.rint(columns.pop("corners")).astype(np.int64)
        return ViewOutputs(corners=corners, **columns)


class _WholeMap(nn.Module):
    """The trunk for inference only, returning its whole feature map."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.squeezed = Squeezed(trunk)

    def forward(self, x: Tensor) -> Tensor:
        return self.squeezed.whole_map(x)


def _map_shape(net: Gmic, window: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of the saliency map of a window."""
    with torch.device("meta"):
        shape = copy.deepcopy(net.ds_net).to("meta")(torch.empty(1, 1, *window)).shape
    return int(shape[2]), int(shape[3])


def saliency_layers(
    saliency: NDArray[np.float32], window: Window, shape: tuple[int, ...]
) -> tuple[Heatmaps, Window]:
    """Convert the saliency (2, rows, columns) of a window to layers of the cropped view.

    Returns:
        The layers, and the window of the view that they cover.
    """
    inside = Window(
        max(0, window.top), min(shape[0], window.bottom), max(0, window.left), min(shape[1], window.right)
    )
    rows = (np.arange(inside.top, inside.bottom) - window.top) * saliency.shape[1] // window.height
    columns = (np.arange(inside.left, inside.right) - window.left) * saliency.shape[2] // window.width
    layers = np.zeros((2, *shape), np.float32)
    layers[:, inside.top : inside.bottom, inside.left : inside.right] = saliency[:, rows][:, :, columns]
    return (layers[0], layers[1]), inside


def region_findings(outputs: ViewOutputs, planned: PlannedImage, side: int) -> list[Finding]:
    """Return the regions in pixels of the stored image, scored by attention.

    The attention of the regions of a view sums to 1. A region that several models chose is one finding.
    Regions entirely outside the image are dropped.
    """
    assert isinstance(planned.image, ExamView)
    window = planned.windows[0]
    attention: dict[tuple[int, int], float] = {}
    for corners, weights in zip(outputs.corners.tolist(), outputs.attention.tolist(), strict=True):
        for (row, column), weight in zip(corners, weights, strict=True):
            attention[row, column] = attention.get((row, column), 0.0) + weight / len(outputs.attention)
    findings = []
    for (row, column), score in attention.items():
        top, left = window.top + row, window.left + column
        box = _clipped(planned.image.frame.to_l0(Window(top, top + side, left, left + side)), planned.image)
        if box is not None:
            x, y = box.x + box.width // 2, box.y + box.height // 2
            findings.append(Finding(x, y, score, "box", "region", box, image=planned.name))
    return findings


def _clipped(box: Box, image: ExamView) -> Box | None:
    left, top = max(0, box.x), max(0, box.y)
    right, bottom = min(image.size.width, box.right), min(image.size.height, box.bottom)
    return Box.of_edges(left, top, right, bottom) if right > left and bottom > top else None


def build_result(
    views: Mapping[str, ViewOutputs], images: Mapping[str, ImageSource], findings: Sequence[Finding]
) -> Result:
    """Average the scores of the models and of the views of each breast."""
    means = {view: outputs.scores.astype(np.float64).mean(axis=0) for view, outputs in views.items()}
    metadata: dict[str, Any] = {
        "images": image_metadata(images),
        "model": "gmic",
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
        },
    }
    notes = [views_note("GMIC", views)]
    notes += [f"{name}: {image.error}" for name, image in images.items() if isinstance(image, BrokenView)]
    ordered = tuple(sorted(findings, key=lambda finding: -finding.score))
    return Result(breast_scores({v: m.tolist() for v, m in means.items()}), ordered, tuple(notes), metadata)


def build(config: Config) -> list[Gmic]:
    """Build the models of a configuration, with random weights."""
    return [
        Gmic(
            top_share=share,
            regions=config.regions,
            region_px=config.region_px,
            widths=config.widths,
            compat=config.quirks,
        )
        for share in config.top_shares
    ]


def weights_of(nets: Sequence[Gmic]) -> dict[str, Tensor]:
    """Return the tensors of a bundle. The names of each model start with its number."""
    return {f"{i}.{name}": t for i, net in enumerate(nets, start=1) for name, t in net.state_dict().items()}


def fill(nets: Sequence[Gmic], weights: Mapping[str, Tensor], bundle: Bundle) -> None:
    try:
        for number, net in enumerate(nets, start=1):
            prefix = f"{number}."
            net.load_state_dict(
                {
                    name.removeprefix(prefix): value
                    for name, value in weights.items()
                    if name.startswith(prefix)
                }
            )
            net.eval()
    except RuntimeError as error:
        raise ModelError(
            "the weights do not fit the networks",
            subject=bundle.path,
            expected="the weights of GMIC models",
            actual=str(error),
        ) from error


def load(bundle: Bundle, *, trust: bool = False) -> GmicPredictor:
    """Load a GMIC bundle as a predictor. Its weights are plain tensors, so `trust` has no effect."""
    config = Config.from_dict(bundle.config)
    nets = build(config)
    fill(nets, bundle.weights(), bundle)
    return GmicPredictor(config, nets)
