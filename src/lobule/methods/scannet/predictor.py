"""The ScanNet predictor: a uniform dense map, or a coarse map that is refined at suspicious cells."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from torch import nn

from lobule.bundles import Bundle, TrainingRecord, trained_bundle, write_bundle
from lobule.errors import ConfigError
from lobule.findings import Finding, components, non_maximum_suppression
from lobule.grid import Cells, MapGrid, cells_by_centre
from lobule.methods.scannet.calibration import CELLS, CellCalibration
from lobule.methods.scannet.config import Config, require_stride
from lobule.methods.scannet.forest import FOREST, Forest, map_features
from lobule.methods.scannet.refinement import calibrated, promise_of, refining_grid, worth_refining
from lobule.nets.backbones import BACKBONES
from lobule.nets.dense import DenseNet, densify
from lobule.nets.inference import for_inference
from lobule.nets.receptive import geometry_of
from lobule.nets.scaling import InputScaling
from lobule.results.maps import MapReader
from lobule.results.result import Result
from lobule.scanning.contract import OPENVINO, Batch, EngineSettings, OpenCase, ScanOptions, Steps, fill_map
from lobule.scanning.device import copy_to_device, dtype_of, largest_cells, random_batch, working_bytes
from lobule.scanning.map_findings import by_score
from lobule.scanning.open_case import slide_images
from lobule.stitch import Scores, State, States, overlay, reduce_map
from lobule.units import Mpp

CPU_CELLS = 56
"""Most cells of the net's stride along a side of a field on a CPU. Larger fields overlap less, but they need
more memory, whose first use takes time, and cores wait longer for each other at the end of a case."""

MAX_ANALYSED = 48_000_000
"""Maximum number of cells of a map in the search for findings; larger maps are first reduced by maximum."""


@dataclass(frozen=True)
class DenseMap:
    """Key of a pass that fills a map of this stride."""

    stride: int


class DenseModel:
    """An unpadded net that computes dense maps at every stride that it supports."""

    def __init__(
        self,
        config: Config,
        net: nn.Module,
        scaling: InputScaling,
        calibration: CellCalibration | None,
        has_forest: bool,
    ) -> None:
        self.config, self.scaling, self.calibration = config, scaling, calibration
        self.has_forest = has_forest
        self.net = net.eval()
        self.geometry = geometry_of(net)
        self._inference_net = for_inference(net)
        self._device_nets: dict[int, nn.Module] = {}
        self._engine = EngineSettings()
        self._inputs: dict[int, torch.Tensor] = {}  # One per thread, by the thread's identifier.

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        dense = self._dense(min(self._all_strides(options)))

        def needs(cells: int) -> int:
            side = dense.geometry.in_size(cells)
            return working_bytes(dense, side, side) + 2 * 3 * side * side

        # Fields are measured in cells of the net's stride, so that they have the same area for every α.
        factor = self.geometry.stride // dense.geometry.stride
        preferred = min(self.config.cells, CPU_CELLS) if engine.device == "cpu" else self.config.cells
        cells = largest_cells(
            lambda coarse: needs(coarse * factor),
            max_bytes,
            preferred=preferred,
            purpose="field of a map",
        )
        return replace(engine, cells=cells, batch=1)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        # Built here and not in the replicas, because tracing a net temporarily changes all modules of the
        # process.
        self._engine, self._inputs = engine, {}
        self._device_nets = {
            stride: copy_to_device(
                self._dense(stride), engine, channels_last_input=engine.precision == "int8"
            )
            for stride in self._all_strides(options)
        }

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[DenseMap, Batch]:
        stride = self.strides(options)[-1]
        # A small field suffices, but int8 models exist only for complete fields.
        cells = engine.cells if engine.precision == "int8" else min(engine.cells, 8)
        cells = cells * self.geometry.stride // stride
        side = self._dense(stride).geometry.in_size(cells)
        return DenseMap(stride), random_batch(engine, side, side)

    def forward(self, key: DenseMap, batch: Batch) -> dict[str, torch.Tensor]:
        net = self._device_nets[key.stride]
        logits = net(self._scaled(batch.pixels)).float()
        if self.calibration is not None:
            return {"map": self.calibration.probabilities(logits)}
        return {"map": torch.softmax(logits, dim=1)[:, 1:]}

    def _scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """The input of the net. For OpenVINO it is valid until the next call in the same thread.

        Each thread keeps one input for OpenVINO, because new ones of 50 MB between other allocations would
        make the memory grow, and each new page costs time.
        """
        if self._engine.runtime != OPENVINO:
            return self.scaling.apply(pixels, dtype_of(self._engine))
        fields, height, width, _ = pixels.shape
        channels_last = self._engine.precision == "int8"
        shape = (fields, height, width, 3) if channels_last else (fields, 3, height, width)
        thread = threading.get_ident()
        inputs = self._inputs.get(thread)
        if inputs is None or inputs.shape != shape:
            inputs = self._inputs[thread] = torch.empty(shape)
        return (self.scaling.write_rows if channels_last else self.scaling.write_planes)(pixels, inputs)

    def stride(self, options: ScanOptions) -> int:
        """The stride of a uniform map: the net's stride divided by a power of two."""
        stride = options.stride or self.config.stride
        require_stride(self.geometry.stride, stride)
        return stride

    def strides(self, options: ScanOptions) -> tuple[int, ...]:
        """The strides of the maps of a scan, coarsest first."""
        if not options.refine:
            return (self.stride(options),)
        fine = self.stride(replace(options, stride=options.stride or self.config.refine_stride))
        return tuple(dict.fromkeys((self.geometry.stride, fine)))

    @property
    def default_stride(self) -> int:
        """The stride of a scan without options."""
        return self.stride(ScanOptions())

    def uses_forest(self, options: ScanOptions) -> bool:
        """Whether the forest scores slides in this scan. Otherwise the highest cell is the score."""
        requested = options.settings.get("slide_score")
        if requested == "forest" and not self.has_forest:
            raise ConfigError(
                "this bundle does not contain a forest for slide scores",
                remedy="Train one with --set slide_score=forest",
            )
        return self.has_forest and requested != "max"

    def _all_strides(self, options: ScanOptions) -> tuple[int, ...]:
        """The strides of every pass that a scan may run."""
        forest_strides = (self.default_stride,) if self.uses_forest(options) else ()
        return tuple(dict.fromkeys((*self.strides(options), *forest_strides)))

    def _dense(self, stride: int) -> DenseNet:
        return densify(self._inference_net, self.geometry.stride // stride)


class DensePredictor:
    """Scans slides densely with an unpadded net."""

    def __init__(
        self,
        config: Config,
        net: nn.Module,
        scaling: InputScaling,
        forest: Forest | None = None,
        calibration: CellCalibration | None = None,
    ) -> None:
        if calibration is not None:
            config = calibrated(config, calibration)
        self.config, self.forest, self.calibration = config, forest, calibration
        self.classes = config.classes
        self.model = DenseModel(config, net, scaling, calibration, forest is not None)
        self.geometry = self.model.geometry
        self.images = partial(slide_images, stains=config.stains)

    def steps(self, case: OpenCase) -> Steps[Result]:
        config, options = replace(self.config, **case.options.settings), case.options
        lattice = case.images["slide"].lattice(mpp=config.mpp, upsample=options.upsample)
        stride, *finer = self.model.strides(options)
        tissue = case.tissue()

        def on_tissue(grid: MapGrid) -> Cells:
            return cells_by_centre(grid, tissue.mask, tissue.l0_step)

        coarse_grid = self._grid(lattice, stride, case.engine)
        coarse_cells = on_tissue(coarse_grid)
        coarse = yield from fill_map(
            DenseMap(stride), _map_name(stride), coarse_grid, self.classes[1:], coarse_cells
        )
        analysed, strides = analysed_map(coarse), {stride: int(coarse_cells.sum())}
        forest_map = analysed
        uses_forest = self.model.uses_forest(options)
        if uses_forest and stride != (default := self.model.default_stride):
            # The features are only comparable at the stride at which the forest was trained.
            grid = self._grid(lattice, default, case.engine)
            uniform = yield from fill_map(
                DenseMap(default), f"score-s{default}", grid, self.classes[1:], on_tissue(grid)
            )
            forest_map = analysed_map(uniform)
        forest_score = self._forest_score(*forest_map[:2]) if uses_forest else None
        for fine_stride in finer:
            factor = stride // fine_stride
            grid = self._grid(lattice, fine_stride, case.engine)
            refined = worth_refining(coarse, config.refine_above).repeat(factor, 0).repeat(factor, 1)
            required = refined[: grid.rows, : grid.columns] & on_tissue(grid)
            if case.engine.precision != "int8":  # int8 models exist only for one size of fields.
                grid = refining_grid(grid, required, factor)
            # A score of 0 of cells without a score would read as "no tumour".
            is_complete = bool((coarse.states()[coarse_cells] == State.SCORED).all() and coarse_cells.any())
            fine = yield from fill_map(
                DenseMap(fine_stride), _map_name(fine_stride), grid, self.classes[1:],
                required, ~on_tissue(grid), promise=promise_of(coarse.scores(), grid, factor),
                go_on=lambda: case.seconds_left() > 0,
                preliminary=self._slide_scores(config, analysed, forest_score) if is_complete else None,
            )  # fmt: skip
            strides[fine_stride] = fine.counts()["scored"]
            analysed = analysed_map(coarse, fine)
        return self._result(config, analysed, strides, forest_score)

    @property
    def calibration_stride(self) -> int:
        """The stride of a scan without options, or the net's stride if the net does not support that one."""
        try:
            return self.model.default_stride
        except ConfigError:
            return self.geometry.stride

    def _forest_score(self, scores: Scores, states: States) -> float:
        assert self.forest is not None
        if self.calibration is not None:
            # The forest learned from uncalibrated maps.
            scores = self.calibration.to_uncalibrated(scores).astype(np.float32)
        return float(self.forest.probability(map_features(scores, states)[None])[0])

    def _grid(self, lattice: Any, stride: int, engine: EngineSettings) -> MapGrid:
        dense = self.geometry.dense(self.geometry.stride // stride)
        cells = engine.cells * self.geometry.stride // stride
        return MapGrid(lattice, stride, dense.extent, cells, dense.first_centre)

    def _result(
        self, config: Config, analysed: Analysed, strides: Mapping[int, int], forest_score: float | None
    ) -> Result:
        _, _, l0_stride, mpp = analysed
        findings: list[Finding] = []
        for name, layer in self._layers(analysed):
            findings += findings_of(config, layer, l0_stride, mpp, name)
        metadata: dict[str, Any] = {
            "strides": {str(stride): cells for stride, cells in sorted(strides.items())}
        }
        if self.calibration is not None:
            metadata["finding_threshold"] = config.threshold
        if len(strides) > 1:
            metadata["refine_above"] = config.refine_above
        if forest_score is not None:
            metadata |= {"slide_score": "forest", "highest": self._slide_scores(config, analysed, None)}
        return Result(
            self._slide_scores(config, analysed, forest_score), by_score(findings), metadata=metadata
        )

    def _slide_scores(
        self, config: Config, analysed: Analysed, forest_score: float | None
    ) -> dict[str, float]:
        if forest_score is not None:
            return {self.classes[1]: forest_score}
        return {name: highest_cell(layer, config.mean_cells) for name, layer in self._layers(analysed)}

    def _layers(self, analysed: Analysed) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield each class but the background with its scores; cells without a score are 0."""
        scores, states, *_ = analysed
        for index, name in enumerate(self.classes[1:]):
            yield name, np.where(states == State.SCORED, scores[index], np.float32(0))


def highest_cell(layer: NDArray[np.float32], side: int = 1) -> float:
    """The highest cell; with a side above 1, the highest mean of a square. Cells without a score are 0."""
    if side > 1:
        return float(uniform_filter(layer.astype(np.float64), side, mode="constant").max(initial=0.0))
    return float(layer.max(initial=0.0))


def _map_name(stride: int) -> str:
    return f"map-s{stride}"


def findings_of(
    config: Config, layer: NDArray[np.float32], l0_stride: tuple[float, float], mpp: Mpp | None, name: str
) -> list[Finding]:
    """The findings of one class of a map, by the method that the config selects."""
    if config.findings == "nms":
        radius = max(1, round(config.nms_radius / l0_stride[0]))
        return non_maximum_suppression(
            layer, l0_stride, radius=radius, threshold=config.threshold, label=name
        )
    regions = components(
        layer, l0_stride, mpp=mpp, threshold=config.threshold, opening=config.opening, label=name
    )
    return [candidate for candidate in regions if (candidate.cells or 0) >= config.min_cells]


Analysed = tuple[Scores, States, tuple[float, float], Mpp | None]
"""Scores, states, level-0 pixels per cell, and µm/px of level 0."""


def analysed_map(coarse: MapReader, fine: MapReader | None = None) -> Analysed:
    """The finest available scores as one map, reduced by maximum if it is too large."""
    reader = fine or coarse
    info = reader.info
    factor = 1
    while info.rows * info.columns / factor**2 > MAX_ANALYSED:
        factor *= 2
    scores, states = _read_reduced(reader, factor)
    if fine is not None:
        ratio = round(coarse.info.l0_stride[0] / fine.info.l0_stride[0])
        rough = _read_reduced(coarse, max(1, factor // ratio))
        scores, states = overlay(rough, (scores, states), max(1, ratio // factor))
    l0 = (info.l0_stride[0] * factor, info.l0_stride[1] * factor)
    return scores, states, l0, info.l0_mpp


def _read_reduced(reader: MapReader, factor: int) -> tuple[Scores, States]:
    if factor == 1:
        return reader.read()
    info = reader.info
    band_rows = 1024 * factor
    bands = [
        reduce_map(*reader.read(slice(top, min(top + band_rows, info.rows))), factor)
        for top in range(0, info.rows, band_rows)
    ]
    return np.concatenate([reduced[0] for reduced in bands], axis=1), np.concatenate(
        [reduced[1] for reduced in bands]
    )


def save(
    path: str | Path,
    config: Config,
    net: nn.Module,
    scaling: InputScaling,
    *,
    forest: Forest | None = None,
    calibration: CellCalibration | None = None,
    **record: Unpack[TrainingRecord],
) -> Bundle:
    """Write a ScanNet bundle with the record of its training."""
    settings = {**config.to_dict(), "scaling": scaling.as_dict()}
    cells = {} if calibration is None else {CELLS: calibration.to_dict()}
    bundle = trained_bundle("scannet", settings, config.classes, config.mpp, calibration=cells, **record)
    texts = {} if forest is None else {FOREST: forest.to_text()}
    return write_bundle(path, bundle, net.state_dict(), texts)


def load(bundle: Bundle, *, trust: bool = False) -> DensePredictor:
    """Load a predictor from a ScanNet bundle. The weights are plain tensors, so `trust` is not needed."""
    settings = dict(bundle.config)
    scaling = InputScaling.from_dict(settings.pop("scaling"))
    config = Config.from_dict(settings)
    if config.trunk not in BACKBONES:
        raise ConfigError(f"unknown trunk '{config.trunk}'", expected=", ".join(BACKBONES))
    net = BACKBONES[config.trunk](len(config.classes))
    bundle.fill(net, config.trunk)
    forest = None
    if FOREST in bundle.files:
        forest = Forest.of_text(bundle.file(FOREST).read_text("utf-8"))
    calibration = None
    if CELLS in bundle.calibration:
        calibration = CellCalibration.from_dict(bundle.calibration[CELLS])
    return DensePredictor(config, net, scaling, forest, calibration)
