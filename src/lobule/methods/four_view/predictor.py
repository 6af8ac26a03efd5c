"""The four-view classifier for the scanner: heatmaps of patches, features of windows, scores of exams."""

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
from lobule.errors import LobuleError
from lobule.findings import Finding
from lobule.mammograms.exam_views import (
    BrokenView,
    ExamView,
    Heatmaps,
    InputView,
    PatchView,
    files_of_views,
    open_views,
)
from lobule.mammograms.published.patches import PatchGrid
from lobule.mammograms.views import angle_of
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.heatmap_files import read_heatmaps
from lobule.methods.four_view.heatmaps import PatchScores, ViewPatches, store_heatmaps, table_name
from lobule.methods.four_view.model import Nets
from lobule.methods.four_view.planning import (
    ImageShapes,
    PlannedImage,
    draw_patch_grids,
    image_shapes_of,
    patch_frame,
    plan_exam_windows,
)
from lobule.methods.four_view.scores import Features, Heads, result_of
from lobule.nets.four_view import TARGETS, Classifier, ResNet22
from lobule.nets.painter import CELL, Painter
from lobule.nets.squeezed import Squeezed
from lobule.results.result import Result
from lobule.scanning.contract import Batch, EngineSettings, ImageSource, OpenCase, ScanOptions, Steps
from lobule.scanning.device import HEADROOM, copy_to_device, dtype_of, in_torch, largest_cells, working_bytes
from lobule.scanning.exam_passes import CellMeans, choose_windows, fill_view_table, sample_windows

BATCH_ON_GPU = 8
SAMPLE_SIDE = 512
"""Side in pixels of the random sample window on which the model is measured."""
LARGEST_LOOK, SMALLEST_LOOK = 128, 32
"""Side in cells of the area that the patch network processes in one run, with `painting="fast"`."""


@dataclass(frozen=True)
class WindowFeatures:
    """Key of a pass that computes features of windows of one angle with the trunks of some classifiers."""

    angle: str
    classifiers: tuple[int, ...]
    """Numbers of the classifiers whose features stand side by side."""


class FourViewModel:
    """Every network of a bundle."""

    def __init__(self, config: Config, nets: Nets) -> None:
        self.config, self.nets = config, nets
        self._trunks: list[dict[str, nn.Module]] = []
        self._painters: list[nn.Module] = []
        self._engine = EngineSettings()

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        """Choose the number of windows per batch that fits into memory."""
        config = self.config.set(options.settings)
        window_bytes = max(
            working_bytes(trunk, *config.input_size(angle), config.architecture.channels)
            for angle, trunk in trunks_of(self.nets.members[0]).items()
        )
        engine = choose_windows(engine, max_bytes, window_bytes, BATCH_ON_GPU)
        if not config.architecture.heatmaps or config.reading.painting == "exact":
            return engine
        cost = Painter(copy.deepcopy(self.nets.patch_nets[0])).bytes_per_px() * HEADROOM
        cells = largest_cells(
            lambda side: int(cost * (CELL * side) ** 2), max_bytes,
            preferred=LARGEST_LOOK, smallest=SMALLEST_LOOK, purpose="band of a view",
        )  # fmt: skip
        return replace(engine, cells=cells)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._engine = engine
        self._trunks = [
            {
                angle: copy_to_device(Squeezed(copy.deepcopy(trunk)), engine)
                for angle, trunk in trunks_of(net).items()
            }
            for net in self.nets.classifiers
        ]
        painters = [Painter(copy.deepcopy(net)) for net in self.nets.patch_nets]
        self._painters = [copy_to_device(painter, in_torch(engine)) for painter in painters]

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[WindowFeatures, Batch]:
        size, channels = self.config.input_size("L-CC"), self.config.architecture.channels
        return WindowFeatures("CC", (0,)), sample_windows(engine, size, channels, SAMPLE_SIDE)

    def forward(self, key: CellMeans | PatchScores | WindowFeatures, batch: Batch) -> dict[str, Tensor]:
        if isinstance(key, CellMeans):
            return key.of(batch.pixels)
        x = batch.pixels.permute(0, 3, 1, 2).to(dtype_of(self._engine))
        if isinstance(key, WindowFeatures):
            trunks = [self._trunks[number][key.angle] for number in key.classifiers]
            return {"features": torch.cat([trunk(x).float() for trunk in trunks], dim=1)}
        painter = self._painters[key.net]
        if key.column == "scores":
            return {"scores": torch.softmax(painter(x).float(), dim=1)}
        assert isinstance(painter, Painter)
        return {"evidence": painter.evidence(x).float().flatten(1)}


class FourViewPredictor:
    """Predictor of one or several classifiers of any variant, with or without patch networks."""

    classes = TARGETS

    def __init__(self, config: Config, nets: Nets) -> None:
        self.config, self.nets, self.model = config, nets, FourViewModel(config, nets)
        self.heads = [Heads(net) for net in nets.classifiers]
        self._shapes: dict[tuple[str, ...], ImageShapes] = {}

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        """Open the exam's images, by view; further images of a view are numbered."""
        config, _ = self._choose(case, options)
        joined = config.architecture.joins_views
        images = open_views(case, config.view_options, joined=joined)
        # An exam that is scored view by view does not advance the cohort's random stream.
        self._shapes[case.paths] = image_shapes_of(images) if joined else {}
        return images

    def steps(self, case: OpenCase) -> Steps[Result]:
        config, classifiers = self._choose(case.case, case.options)
        features, findings = Features(classifiers), list[Finding]()
        differences: list[NDArray[np.float64]] = []
        images = {name: i for name, i in case.images.items() if isinstance(i, ExamView | BrokenView)}
        stored = config.reading.heatmap_files
        # The grid of an image is drawn even if no window of it is read, to keep the random stream in step.
        grids = self.patch_grids(case, config) if config.architecture.heatmaps and not stored else {}
        nets = sorted({config.architecture.patch_net_of[number] for number in classifiers})
        for planned in plan_exam_windows(images, config, case.earlier()):
            if not planned.windows:
                continue
            name, image = planned.name, planned.image
            heatmaps: dict[int, Heatmaps] = {}
            if isinstance(image, ExamView) and stored:
                heatmaps = dict.fromkeys(nets, read_heatmaps(stored, image))
                findings += yield from store_heatmaps(name, image, heatmaps[nets[0]], config)
            elif isinstance(image, ExamView) and grids:
                source = PatchView(image, patch_frame(image, config))
                for net in nets:
                    patches = ViewPatches(name, image, source, grids[name], case.engine, net)
                    heatmaps[net], net_differences = yield from patches.heatmaps(config.reading.painting)
                    differences.append(net_differences)
                findings += yield from store_heatmaps(name, image, _mean(heatmaps), config)
            for net in nets:
                yield from self._read_windows(planned, config, net, heatmaps.get(net), features)
        metadata = _painting_metadata(config, differences)
        return result_of(config, self.heads, features, case.images, findings, metadata)

    def _choose(self, case: Case, options: ScanOptions) -> tuple[Config, range]:
        """Choose the classifiers for an exam: those for exams that lack a view if there are any.

        Returns:
            The settings, with the variant of the classifiers, and the numbers of the classifiers.
        """
        config = self.config.set(options.settings)
        architecture = config.architecture
        count = len(self.nets.classifiers)
        if all(files_of_views(case).values()) or not architecture.joins_views or not architecture.alone:
            return config, range(architecture.members)
        single = replace(config, architecture=replace(architecture, variant="image_wise"))
        return single, range(architecture.members, count)

    def _read_windows(
        self, planned: PlannedImage, config: Config, net: int, heatmaps: Heatmaps | None, features: Features
    ) -> Steps[None]:
        """Compute the features of an image's windows with the classifiers of one patch network."""
        architecture, image = config.architecture, planned.image
        numbers = tuple(n for n in features.classifiers if architecture.patch_net_of[n] == net)
        size = config.view_options.size(image.view)
        source = (
            InputView(image, size, heatmaps, architecture.shrink) if isinstance(image, ExamView) else image
        )
        suffix = " alone" if numbers[0] >= architecture.members else ""
        (rows,) = yield from fill_view_table(
            WindowFeatures(angle_of(image.view), numbers), table_name("windows", planned.name + suffix, net),
            planned.name, source, image.boxes(list(planned.windows.values())), ("features",),
            size=config.input_size(image.view),
        )  # fmt: skip
        features.add(image.view, list(planned.windows), rows, numbers)

    def patch_grids(self, case: OpenCase, config: Config) -> dict[str, PatchGrid]:
        """Draw the patch grid of each image of an exam."""
        shared = config.architecture.joins_views and config.reading.compat == "nyu"
        earlier = (self._shapes_of(other, config) for other in case.earlier()) if shared else ()
        return draw_patch_grids(image_shapes_of(case.images), config, earlier)

    def _shapes_of(self, case: Case, config: Config) -> ImageShapes:
        """Return the sizes of an earlier exam's cropped images, from this process's cache if possible.

        Exams that cannot be read do not advance the random stream.
        """
        if case.paths not in self._shapes:
            try:
                self._shapes[case.paths] = image_shapes_of(open_views(case, config.view_options, joined=True))
            except (LobuleError, OSError):
                self._shapes[case.paths] = {}
        return self._shapes[case.paths]


def trunks_of(net: Classifier) -> dict[str, ResNet22]:
    return {"CC": net.four_view_resnet.cc, "MLO": net.four_view_resnet.mlo}


def _mean(heatmaps: Mapping[int, Heatmaps]) -> Heatmaps:
    maps = list(heatmaps.values())
    return maps[0] if len(maps) == 1 else np.mean(maps, axis=0)


def _painting_metadata(config: Config, differences: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Describe how heatmaps were computed and, for `fast`, how far the scores are from the exact ones."""
    if not config.architecture.heatmaps:
        return {}
    if config.reading.heatmap_files:
        return {"heatmaps": {"read_from": config.reading.heatmap_files}}
    metadata: dict[str, Any] = {"painting": config.reading.painting}
    all_differences = np.concatenate(differences) if differences else np.zeros(0)
    if len(all_differences):
        metadata |= {
            "patches_compared": len(all_differences) // 2,
            "mean_difference": float(all_differences.mean()),
            "greatest_difference": float(all_differences.max()),
        }
    return {"heatmaps": metadata}
