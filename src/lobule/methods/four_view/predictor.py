"""The four-view classifier for the scanner: heatmaps of patches, features of windows, scores of exams."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lobule.bundles import Bundle
from lobule.cohort import Case
from lobule.errors import CaseError, LobuleError
from lobule.findings import Finding
from lobule.mammograms.views import VIEWS, angle_of
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.images import ExamView, Heatmaps, InputView
from lobule.methods.four_view.members import (
    PATCH_PREFIX,
    Nets,
    build,
    build_all,
    fill,
    save,
    weights_of,
)
from lobule.methods.four_view.painting import (
    PATCHES,
    CellMeans,
    PatchEvidence,
    PatchScores,
    paint,
    pass_name,
    store_heatmaps,
)
from lobule.methods.four_view.patches import PatchGrid
from lobule.methods.four_view.plan import PlannedImage, cropped_shapes, fill_windows, open_views, plan_images
from lobule.methods.four_view.scores import Features, Heads, exam_result
from lobule.methods.four_view.streams import Shapes, draw_grid, patches_stream
from lobule.nets.four_view import TARGETS, Classifier, ResNet22
from lobule.nets.painter import CELL, Painter
from lobule.nets.squeezed import Squeezed
from lobule.results.result import Result
from lobule.scanning.contract import Batch, EngineSettings, ImageSource, OpenCase, ScanOptions, Steps
from lobule.scanning.device import activation_bytes, dtype_of, largest_cells, placed

__all__ = [
    "PATCHES",
    "PATCH_PREFIX",
    "FourViewPredictor",
    "build",
    "load",
    "save",
    "weights_of",
]

HEADROOM = 2.0
BATCH_ON_GPU = 8
SAMPLE_SIDE = 512
"""Side in pixels of the random sample window on which the model is measured."""
LARGEST_LOOK, SMALLEST_LOOK = 128, 32
"""Side in cells of the area that the patch network processes in one run, with `painting="fast"`."""


@dataclass(frozen=True)
class WindowFeatures:
    """Key of a pass that computes the features of windows of one angle with the trunks of some members."""

    angle: str
    members: tuple[int, ...]
    """The classifiers whose features stand side by side."""
    alone: bool = False
    """Whether they are the classifiers for exams that lack a view."""


class FourViewModel:
    """Every network of a bundle."""

    def __init__(self, config: Config, nets: Nets) -> None:
        self.config, self.nets = config, nets
        self.trunks = _trunks(nets.members[0])
        self._device_trunks: dict[tuple[bool, int, str], nn.Module] = {}
        self._device_painters: list[nn.Module] = []
        self._engine = EngineSettings()

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        """Choose the number of windows per batch that fits into memory.

        On a CPU the batch is one window, because several replicas run at the same time.
        """
        config = self.config.set(options.settings)
        window_bytes = max(
            activation_bytes(trunk, *config.input_size(angle), config.channels)
            for angle, trunk in self.trunks.items()
        )
        preferred = 1 if engine.device == "cpu" else BATCH_ON_GPU
        batch = largest_cells(
            lambda windows: int(windows * HEADROOM * window_bytes),
            room,
            preferred=preferred,
            purpose="batch of windows",
        )
        if config.heatmaps and config.painting == "fast":
            cost = Painter(copy.deepcopy(self.nets.patch_nets[0])).bytes_per_px() * HEADROOM
            cells = largest_cells(
                lambda side: int(cost * (CELL * side) ** 2),
                room,
                preferred=LARGEST_LOOK,
                smallest=SMALLEST_LOOK,
                purpose="band of a view",
            )
            engine = replace(engine, cells=cells)
        return replace(engine, batch=batch)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._engine = engine
        self._device_trunks = {
            (alone, number, angle): placed(Squeezed(copy.deepcopy(trunk)), engine)
            for alone, members in ((False, self.nets.members), (True, self.nets.alone))
            for number, member in enumerate(members)
            for angle, trunk in _trunks(member).items()
        }
        self._device_painters = [placed(Painter(copy.deepcopy(net)), engine) for net in self.nets.patch_nets]

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[WindowFeatures, Batch]:
        height, width = (min(SAMPLE_SIDE, length) for length in self.config.input_size("L-CC"))
        shape = (engine.batch, height, width, self.config.channels)
        pixels = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))
        return WindowFeatures("CC", self.members_of(0, alone=False)), Batch(pixels.to(engine.device))

    def forward(
        self, key: CellMeans | PatchScores | PatchEvidence | WindowFeatures, batch: Batch
    ) -> dict[str, Tensor]:
        if isinstance(key, CellMeans):
            return cell_means(batch.pixels, key.cell)
        x = batch.pixels.permute(0, 3, 1, 2).to(dtype_of(self._engine))
        if isinstance(key, PatchScores):
            return {"scores": torch.softmax(self._device_painters[key.net](x).float(), dim=1)}
        if isinstance(key, PatchEvidence):
            painter = self._device_painters[key.net]
            assert isinstance(painter, Painter)
            return {"evidence": painter.evidence(x).float().flatten(1)}
        trunks = [self._device_trunks[key.alone, member, key.angle] for member in key.members]
        return {"features": torch.cat([trunk(x).float() for trunk in trunks], dim=1)}

    def members_of(self, number: int, alone: bool) -> tuple[int, ...]:
        """Return the members that read the heatmaps of a patch network."""
        count = self.config.alone if alone else self.config.members
        patch_of = self.config.patch_of or (0,) * (self.config.members + self.config.alone)
        net_of_member = patch_of[self.config.members :] if alone else patch_of
        return tuple(member for member in range(count) if net_of_member[member] == number)


class FourViewPredictor:
    """Predictor of one or several classifiers of any variant, with or without patch networks."""

    classes = TARGETS

    def __init__(
        self,
        config: Config,
        net: Classifier,
        patch_net: nn.Module | None = None,
        nets: Nets | None = None,
    ) -> None:
        """`nets` are all networks of the bundle, if it has more than `net` and `patch_net`."""
        self.config = config
        self.nets = nets or Nets((net,), (), () if patch_net is None else (patch_net,))
        self.patch_net = patch_net
        self.model = FourViewModel(config, self.nets)
        self.heads = [Heads(member) for member in self.nets.members]
        self.heads_alone = [Heads(member) for member in self.nets.alone]
        self._shapes: dict[tuple[str, ...], Shapes] = {}

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        """Open the exam's images, by view; further images of a view are numbered."""
        if case.kind != "exam":
            raise CaseError(
                "this model reads exams only",
                subject=case.path,
                expected="a case with files of the views in the columns l_cc, r_cc, l_mlo, r_mlo",
                actual=f"a case of kind {case.kind}",
            )
        config = self._config_of(case, options)
        images = open_views(case, config)
        # An exam that is scored view by view does not advance the cohort's random stream.
        self._shapes[case.paths] = cropped_shapes(images) if config.reads_exams else []
        return images

    def steps(self, case: OpenCase) -> Steps[Result]:
        config = self._config_of(case.case, case.options)
        rng = self._patches_rng(case, config)
        features = Features(config.windows, config.members)
        findings: list[Finding] = []
        differences: list[NDArray[np.float64]] = []
        for planned in plan_images(case, config):
            heatmaps: dict[int, Heatmaps] = {}
            if isinstance(planned.image, ExamView) and config.heatmaps:
                # The grid is drawn even if no window of the image is read, to keep the random stream in step.
                grid = draw_grid(planned.image.crop.window.shape, rng or random.Random(config.seed), config)
                if planned.epochs:
                    heatmaps = yield from self._paint_heatmaps(
                        planned, grid, case.engine, config, differences
                    )
                    findings += yield from store_heatmaps(planned, _mean(heatmaps), config)
            if planned.epochs:
                yield from self._read_windows(planned, config, heatmaps, features)
        heads = self.heads if config.reads_exams == self.config.reads_exams else self.heads_alone
        return exam_result(
            config, heads, features, case.images, findings, _painting_metadata(config, differences)
        )

    # -- one exam -----------------------------------------------------------------------------------------

    def _config_of(self, case: Case, options: ScanOptions) -> Config:
        """Return the config for this exam: that of the image-wise classifiers if the exam lacks a view."""
        config = self.config.set(options.settings)
        has_all_views = all(case.views.get(view.lower().replace("-", "_")) for view in VIEWS)
        if has_all_views or not config.reads_exams or not config.alone:
            return config
        patch_of = config.patch_of[config.members :]
        return replace(config, variant="image_wise", members=config.alone, alone=0, patch_of=patch_of)

    def _paint_heatmaps(
        self,
        planned: PlannedImage,
        grid: PatchGrid,
        engine: EngineSettings,
        config: Config,
        differences: list[NDArray[np.float64]],
    ) -> Steps[dict[int, Heatmaps]]:
        """Compute the heatmaps of every patch network that a member reads."""
        heatmaps = {}
        for number in sorted(set(config.patch_of or (0,))):
            heatmaps[number], image_differences = yield from paint(planned, grid, engine, config, number)
            differences.append(image_differences)
        return heatmaps

    def _read_windows(
        self, planned: PlannedImage, config: Config, heatmaps: Mapping[int, Heatmaps], features: Features
    ) -> Steps[None]:
        """Compute the features of an image's windows with the trunks of every member."""
        alone = config.reads_exams != self.config.reads_exams
        view = planned.image.view
        size = config.size(view)
        for number in sorted(set(config.patch_of or (0,))):
            sources: dict[str, ImageSource] = {}
            if isinstance(planned.image, ExamView):
                sources[planned.name] = InputView(planned.image, size, heatmaps.get(number), config.shrink)
            name = pass_name("windows", planned.name + (" alone" if alone else ""), number)
            key = WindowFeatures(angle_of(view), self.model.members_of(number, alone), alone)
            table = yield from fill_windows(key, name, planned, config, sources)
            features.add(view, planned.epochs, table, key.members)

    def _patches_rng(self, case: OpenCase, config: Config) -> random.Random | None:
        """Return the random stream of an exam's patch grids; None if every image starts a new stream."""
        if not config.heatmaps or not config.reads_exams:
            return None
        return patches_stream(config, case.earlier(), lambda other: self._shapes_of(other, config))

    def _shapes_of(self, case: Case, config: Config) -> Shapes:
        """Return the sizes of an earlier exam's cropped images, from this process's cache if possible."""
        if case.paths not in self._shapes:
            try:
                self._shapes[case.paths] = cropped_shapes(open_views(case, config))
            except (LobuleError, OSError):
                self._shapes[case.paths] = []
        return self._shapes[case.paths]


def cell_means(pixels: Tensor, cell: int) -> dict[str, Tensor]:
    """Average two layers over the cells of a map.

    The third channel of `pixels` (N, H, W, 3) is their mask.
    """
    means = F.avg_pool2d(pixels.permute(0, 3, 1, 2), cell)
    # A cell that crosses the edge is averaged over its pixels inside the mask.
    return {"map": means[:, :2] / means[:, 2:].clamp_min(1e-6)}


def _trunks(net: Classifier) -> dict[str, ResNet22]:
    return {"CC": net.four_view_resnet.cc, "MLO": net.four_view_resnet.mlo}


def _mean(heatmaps: Mapping[int, Heatmaps]) -> Heatmaps:
    if len(heatmaps) == 1:
        (only,) = heatmaps.values()
        return only
    benign, malignant = (np.mean([maps[layer] for maps in heatmaps.values()], axis=0) for layer in (0, 1))
    return benign, malignant


def _painting_metadata(config: Config, differences: list[NDArray[np.float64]]) -> dict[str, Any]:
    """Describe how heatmaps were computed and, for `fast`, how far the scores are from the exact ones."""
    if not config.heatmaps:
        return {}
    metadata: dict[str, Any] = {"painting": config.painting}
    all_differences = np.concatenate(differences) if differences else np.zeros(0)
    if len(all_differences):
        metadata |= {
            "patches_compared": len(all_differences) // 2,
            "mean_difference": float(all_differences.mean()),
            "greatest_difference": float(all_differences.max()),
        }
    return {"heatmaps": metadata}


def load(bundle: Bundle, *, trust: bool = False) -> FourViewPredictor:
    """Load a four-view bundle as a predictor. Its weights are plain tensors, so `trust` has no effect."""
    config = Config.from_dict(bundle.config)
    nets = build_all(config)
    fill(nets, bundle.weights(), bundle, config)
    return FourViewPredictor(config, nets.members[0], nets.patch_nets[0] if nets.patch_nets else None, nets)
