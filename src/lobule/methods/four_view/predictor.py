"""The four-view classifier for the scanner: heatmaps of patches, features of windows, scores of exams."""

from __future__ import annotations

import copy
import random
from collections.abc import Generator, Mapping
from dataclasses import replace
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
from lobule.methods.four_view.painting import PATCHES, paint, pass_name, store_heatmaps
from lobule.methods.four_view.patches import PatchGrid
from lobule.methods.four_view.plan import PlannedImage, cropped_shapes, open_views, plan_images, window_pass
from lobule.methods.four_view.scores import Features, Heads, exam_result
from lobule.methods.four_view.streams import Shapes, draw_grid, patches_stream
from lobule.nets.four_view import TARGETS, Classifier, ResNet22
from lobule.nets.painter import CELL, Painter
from lobule.nets.squeezed import Squeezed
from lobule.results.result import Result
from lobule.results.tables import TableReader
from lobule.scanning.contract import Batch, EngineSettings, ImageSource, OpenCase, Pass, ScanOptions, Store
from lobule.scanning.device import activation_bytes, largest_cells, placed

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
ALONE = "alone"
"""Suffix of the names of passes of the classifiers for exams that lack a view."""


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
        self.trunks = _trunks(net)
        self.heads = [Heads(member) for member in self.nets.members]
        self.heads_alone = [Heads(member) for member in self.nets.alone]
        self._placed: dict[str, nn.Module] = {}
        self._engine = EngineSettings()
        self._shapes: dict[tuple[str, ...], Shapes] = {}

    # -- the interface of the scanner ---------------------------------------------------------------------

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

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        """Choose the number of windows per batch that fits into memory.

        On a CPU the batch is one window, because several replicas run at the same time.
        """
        config = self.config.set(options.settings)
        window_bytes = 0
        for angle, trunk in self.trunks.items():
            window_bytes = max(
                window_bytes, activation_bytes(trunk, *config.input_size(angle), config.channels)
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
        for kind, members in (("", self.nets.members), (ALONE, self.nets.alone)):
            for number, member in enumerate(members):
                for angle, trunk in _trunks(member).items():
                    squeezed = placed(Squeezed(copy.deepcopy(trunk)), engine)
                    self._placed[f"{angle}{kind}{number}"] = squeezed
        for number, net in enumerate(self.nets.patch_nets):
            self._placed[f"patches{number}"] = placed(Painter(copy.deepcopy(net)), engine)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[str, Batch]:
        height, width = (min(SAMPLE_SIDE, length) for length in self.config.input_size("L-CC"))
        shape = (engine.batch, height, width, self.config.channels)
        pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
        return "windows L-CC", Batch(torch.from_numpy(pixels).to(engine.device), {}, {})

    def steps(self, case: OpenCase) -> Generator[Pass, Store, Result]:
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

    def forward(self, name: str, batch: Batch) -> dict[str, Tensor]:
        kind, _, image = name.partition(" ")
        if kind == "heatmap":
            return cell_means(batch.pixels, self.config.heatmap_cell)
        dtype = torch.bfloat16 if self._engine.precision == "bfloat16" else torch.float32
        x = batch.pixels.permute(0, 3, 1, 2).to(dtype)
        image, _, net_number = image.partition(" by ")
        number = int(net_number or 1) - 1
        if kind == "patches":
            return {"scores": torch.softmax(self._placed[f"patches{number}"](x).float(), dim=1)}
        if kind == "evidence":
            painter = self._placed[f"patches{number}"]
            assert isinstance(painter, Painter)
            return {"evidence": painter.evidence(x).float().flatten(1)}
        alone = image.endswith(ALONE)
        angle = angle_of(image.partition(" ")[0]) + (ALONE if alone else "")
        members = self._members_of(number, alone)
        return {
            "features": torch.cat([self._placed[f"{angle}{member}"](x).float() for member in members], dim=1)
        }

    # -- one exam -----------------------------------------------------------------------------------------

    def _config_of(self, case: Case, options: ScanOptions) -> Config:
        """Return the config for this exam: that of the image-wise classifiers if the exam lacks a view."""
        config = self.config.set(options.settings)
        has_all_views = all(case.views.get(view.lower().replace("-", "_")) for view in VIEWS)
        if has_all_views or not config.reads_exams or not config.alone:
            return config
        patch_of = config.patch_of[config.members :]
        return replace(config, variant="image_wise", members=config.alone, alone=0, patch_of=patch_of)

    def _members_of(self, number: int, alone: bool) -> list[int]:
        """Return the members that read the heatmaps of a patch network."""
        count = self.config.alone if alone else self.config.members
        patch_of = self.config.patch_of or (0,) * (self.config.members + self.config.alone)
        net_of_member = patch_of[self.config.members :] if alone else patch_of
        return [member for member in range(count) if net_of_member[member] == number]

    def _paint_heatmaps(
        self,
        planned: PlannedImage,
        grid: PatchGrid,
        engine: EngineSettings,
        config: Config,
        differences: list[NDArray[np.float64]],
    ) -> Generator[Pass, Store, dict[int, Heatmaps]]:
        """Compute the heatmaps of every patch network that a member reads."""
        heatmaps = {}
        for number in sorted(set(config.patch_of or (0,))):
            heatmaps[number], image_differences = yield from paint(planned, grid, engine, config, number)
            differences.append(image_differences)
        return heatmaps

    def _read_windows(
        self, planned: PlannedImage, config: Config, heatmaps: Mapping[int, Heatmaps], features: Features
    ) -> Generator[Pass, Store, None]:
        """Compute the features of an image's windows with the trunks of every member."""
        alone = config.reads_exams != self.config.reads_exams
        size = config.size(planned.image.view)
        for number in sorted(set(config.patch_of or (0,))):
            sources: dict[str, ImageSource] = {}
            if isinstance(planned.image, ExamView):
                sources[planned.name] = InputView(planned.image, size, heatmaps.get(number), config.shrink)
            name = pass_name("windows", planned.name + (f" {ALONE}" if alone else ""), number)
            store = yield window_pass(name, planned, config, sources)
            assert isinstance(store, TableReader)
            features.add(planned.image.view, planned.epochs, store, self._members_of(number, alone))

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
