"""The reverse distillation predictor: maps of patch scores in the exact or the shared form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lobule.bundles import Bundle, TrainingRecord, trained_bundle, write_bundle
from lobule.errors import BundleError, ConfigError
from lobule.findings import non_maximum_suppression
from lobule.grid import Cells, MapGrid, cells_by_centre
from lobule.measures.calibration import Platt
from lobule.methods.reverse_distillation.calibration import Calibration
from lobule.methods.reverse_distillation.config import Config, Form
from lobule.methods.reverse_distillation.encoder_teachers import find_teacher
from lobule.methods.reverse_distillation.geometry import (
    cells_per_patch,
    field_side,
    margin_of,
    mosaic_offsets,
    patches_across,
    patches_of_cells,
    scan_config,
)
from lobule.nets.anomaly import SLIDE_THRESHOLD, Distances, slide_score, smooth, summed, window_means
from lobule.nets.reverse_distillation import Student, StudentShape
from lobule.nets.scaling import InputScaling
from lobule.nets.teachers import Teacher
from lobule.results.maps import MapReader
from lobule.results.result import Result
from lobule.scanning.contract import Batch, EngineSettings, OpenCase, ScanOptions, Steps, fill_map
from lobule.scanning.device import copy_to_device, dtype_of, largest_cells, random_batch, working_bytes
from lobule.scanning.map_findings import map_findings
from lobule.scanning.open_case import slide_images
from lobule.stitch import State

PREFERRED_BLOCKS: dict[Form, int] = {"exact": 8, "shared": 12}
"""Preferred side of a field, in cells (exact form) or patches (shared form); less if memory is short. Large
fields pay off in the shared form, because patches at the edge of a field are computed again for the next
field."""
PATCHES_AT_ONCE = {"cpu": 16, "accelerator": 64}
"""Number of patches that are computed in one batch."""
PAPER_FINDINGS = 2.0
"""With the paper's method, maxima above this raw score are findings. The published 0.5 is exceeded by all
maxima."""
PAPER_RADIUS_PX = 6 * 64
"""With the paper's method, a maximum suppresses others within this distance."""
ANOMALY = "anomaly"
"""Name of the map layer with the raw score, next to the calibrated one."""


@dataclass(frozen=True)
class PatchMap:
    """Key of the pass that fills a map of patch scores."""

    config: Config
    """The settings of the scan; `stride` is that of the map."""
    fit: Platt | None = None
    """Turns raw scores into probabilities, which become the first layer of the map."""


class PatchModel:
    """A teacher and its student, which score patches in the exact or the shared form."""

    def __init__(self, config: Config, frozen: Teacher, student: Student, scaling: InputScaling) -> None:
        self.config, self.scaling = config, scaling
        self.net = Distances(frozen, student).eval()
        self.padded_size = frozen.padded_size(config.input, config.input)[0]
        self._device_net: nn.Module = self.net
        self._engine = EngineSettings()

    def scan_config(self, options: ScanOptions) -> Config:
        """The config with the stride and the settings that this scan overrides."""
        return scan_config(self.config, options.settings, options.stride)

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        config = self.scan_config(options)
        ratio = cells_per_patch(config)
        patch_bytes = working_bytes(self.net, config.input, config.input) + 12 * config.patch**2

        def needs(blocks: int) -> int:
            patches = (blocks + 2) ** 2 if config.form == "shared" else blocks**2
            computed = min(patches, patches_at_once(engine.device)) * patch_bytes
            pixels = 18 * field_side(config, ratio * blocks) ** 2
            return computed + 6 * patches * config.patch**2 + pixels

        blocks = largest_cells(
            needs, max_bytes, preferred=PREFERRED_BLOCKS[config.form], purpose="field of patches"
        )
        return replace(engine, cells=blocks * ratio, batch=1)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        ratio = cells_per_patch(self.scan_config(options))
        if engine.cells % ratio:
            raise ConfigError(
                f"{engine.cells} cells along a side of a field are not a whole number of patches",
                expected=f"a multiple of {ratio}",
            )
        self._engine = engine
        self._device_net = copy_to_device(self.net.for_inference(), engine)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[PatchMap, Batch]:
        config = self.scan_config(options)
        # About one batch of patches: measuring a whole field would take seconds.
        limit = patches_at_once(engine.device)
        if config.form == "shared":  # for n patches of cells, a mosaic has up to n + 2 patches a side
            cells = cells_per_patch(config) * max(1, math.isqrt(limit // config.mosaics) - 1)
        else:
            cells = math.isqrt(limit)
        cells = min(cells, engine.cells)
        side = field_side(config, cells)
        required = torch.ones((1, cells, cells), dtype=torch.bool, device=engine.device)
        return PatchMap(config), replace(random_batch(engine, side, side), params={"required": required})

    def forward(self, key: PatchMap, batch: Batch) -> dict[str, Tensor]:
        scores = self.shared if key.config.form == "shared" else self.exact
        raw = scores(key.config, batch.pixels, batch.params["required"])
        if key.fit is None:
            return {"map": raw[:, None]}
        return {"map": torch.stack([torch.sigmoid(key.fit.slope * raw + key.fit.intercept), raw], dim=1)}

    # -- the two forms ------------------------------------------------------------------------------------

    def exact(self, config: Config, pixels: Tensor, required: Tensor) -> Tensor:
        """Raw scores (fields, cells, cells), with every required patch computed separately."""
        side, cells = config.patch, required.shape[-1]
        patches = pixels.unfold(1, side, config.stride).unfold(2, side, config.stride)[:, :cells, :cells]
        # (fields, cells, cells, channels, rows, columns): only the required patches are copied
        chosen = patches[required].permute(0, 2, 3, 1).contiguous()
        raw = torch.zeros(required.shape, dtype=torch.float32, device=pixels.device)
        if len(chosen):
            raw[required] = self.patch_scores(chosen)
        return raw

    def patch_scores(self, patches: Tensor) -> Tensor:
        """Raw scores (B,) of patches (B, rows, columns, 3)."""
        return self.scores_of_distances(self._distances(patches))

    def scores_of_distances(self, distances: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Raw scores (B,) from the distance maps of single patches."""
        if self.config.score == "max":
            return self._smooth_maps(distances).amax(dim=(1, 2))
        return window_means(distances, self.config.input, self.padded_size)[:, 0, 0]

    def patch_maps(self, patches: Tensor) -> Tensor:
        """Smoothed anomaly maps (B, input, input) of patches (B, rows, columns, 3)."""
        return self._smooth_maps(self._distances(patches))

    def _smooth_maps(self, distances: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        size = self.config.input
        maps = summed(distances, (self.padded_size, self.padded_size))
        return smooth(maps[:, :size, :size])

    def shared(self, config: Config, pixels: Tensor, required: Tensor) -> Tensor:
        """Raw scores (fields, cells, cells) of windows over mosaics of adjacent patches.

        In a mosaic, each pixel is computed in one patch only. A window covers several patches and averages
        the section of each map that lies inside it. The effect of a patch's edges on its map is the same for
        all windows, because together the sections cover each position within a patch exactly once. The scores
        still depend on where the patch grid lies; averaging over shifted mosaics reduces this.
        """
        offsets = mosaic_offsets(config)
        means = []
        for offset in offsets:
            start = offsets[-1] - offset
            means.append(self._mosaic_scores(config, pixels[:, start:, start:], required, offset))
        return torch.stack(means).mean(dim=0)

    def _mosaic_scores(self, config: Config, pixels: Tensor, required: Tensor, offset: int) -> Tensor:
        """Scores of the windows of one mosaic, which starts `offset` pixels before the first window."""
        side, size, cells = config.patch, config.input, required.shape[-1]
        across = patches_across(config, cells, offset)
        over = patches_of_cells(config, cells, offset, pixels.device)
        needed = (over.T @ required.float() @ over) > 0
        patches = pixels[:, : across * side, : across * side].unfold(1, side, side).unfold(2, side, side)
        mosaics = []
        for values in self._distances(patches[needed].permute(0, 2, 3, 1).contiguous()):
            mosaic = values.new_zeros(*needed.shape, *values.shape[-2:])
            mosaic[needed] = values
            mosaics.append(mosaic.transpose(2, 3).flatten(3).flatten(1, 2))
        stride = size // cells_per_patch(config)
        return window_means(mosaics, size, self.padded_size, stride, cells, across, offset * size // side)

    def images_of(self, pixels: Tensor) -> Tensor:
        """The teacher's input for patches: scaled, and resized if necessary."""
        return images_for(self.config, self.scaling, pixels)

    def _distances(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = dtype_of(self._engine)
        chunks = [
            self._device_net(self.images_of(chunk).to(dtype))
            for chunk in pixels.split(patches_at_once(pixels.device.type))
        ]
        first, second, third = (torch.cat(maps) for maps in zip(*chunks, strict=True))
        return first, second, third


class AnomalyPredictor:
    """Scans slides with a teacher and its student."""

    def __init__(
        self,
        config: Config,
        frozen: Teacher,
        student: Student,
        calibration: Calibration | None = None,
        scaling: InputScaling | None = None,
    ) -> None:
        self.config, self.calibration = config, calibration or Calibration()
        self.model = PatchModel(config, frozen, student, scaling or frozen.scaling)
        self.net = self.model.net
        self.images = partial(slide_images, stains=config.stains)

    def steps(self, case: OpenCase) -> Steps[Result]:
        config = self.model.scan_config(case.options)
        lattice = case.images["slide"].lattice(mpp=config.mpp, upsample=case.options.upsample)
        centre = margin_of(config) + config.patch / 2
        grid = MapGrid(lattice, config.stride, field_side(config, 1), case.engine.cells, centre)
        tissue = case.tissue()
        required = cells_by_centre(grid, tissue.mask, tissue.l0_step)
        fit = self.calibration.patch if config.threshold == "calibrated" else None
        reader = yield from fill_map(
            PatchMap(config, fit),
            f"map-s{config.stride}",
            grid,
            self.config.classes[1:] if fit is None else (self.config.classes[1], ANOMALY),
            required,
            params=lambda indices: {"required": _required_by_field(required, grid, indices)},
        )
        return self._result(reader, config)

    def _result(self, reader: MapReader, config: Config) -> Result:
        scores, states = reader.read()
        scored, name = states == State.SCORED, config.classes[1]
        raw = scores[-1][scored]
        metadata: dict[str, Any] = {"form": config.form, "stride": config.stride}
        if config.form == "shared":
            measured = self.calibration.shared
            metadata["shared_rank"] = None if measured is None else measured.rank
        if len(reader.info.classes) == 1:
            layer = np.where(scored, scores[0], np.float32(0))
            maxima = non_maximum_suppression(
                layer,
                reader.info.l0_stride,
                radius=max(1, round(PAPER_RADIUS_PX / config.stride)),
                threshold=PAPER_FINDINGS,
                label=name,
            )
            return Result({name: slide_score(raw, SLIDE_THRESHOLD)}, tuple(maxima), metadata=metadata)
        _, regions = map_findings(reader, (name,), threshold=0.5)
        findings = tuple(finding for finding in regions if (finding.cells or 0) >= config.min_cells)
        values = {
            name: self.calibration.slide_probability(raw, config.form),
            ANOMALY: slide_score(raw, self.calibration.threshold(config.form)),
        }
        return Result(values, findings, metadata=metadata)


def _required_by_field(required: Cells, grid: MapGrid, grid_indices: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Mask (fields, cells, cells) of the cells of each field that must be computed."""
    n = grid.cells
    padded = np.zeros((grid.field_rows * n, grid.field_columns * n), np.bool_)
    padded[: grid.rows, : grid.columns] = required
    blocks = padded.reshape(grid.field_rows, n, grid.field_columns, n).transpose(0, 2, 1, 3)
    field_cells: NDArray[np.bool_] = blocks[grid_indices[:, 0], grid_indices[:, 1]]
    return field_cells


def images_for(config: Config, scaling: InputScaling, pixels: Tensor) -> Tensor:
    """Scale patches (B, rows, columns, 3) for the teacher, and resize them to its input size."""
    images = scaling.apply(pixels)
    if images.shape[-1] != config.input:
        images = functional.interpolate(images, (config.input, config.input), mode="bilinear", antialias=True)
    return images


def patches_at_once(device: str) -> int:
    return PATCHES_AT_ONCE["cpu" if device == "cpu" else "accelerator"]


# -- on disk ------------------------------------------------------------------------------------------------


def save(
    path: str | Path,
    predictor: AnomalyPredictor,
    texts: Mapping[str, str] | None = None,
    **record: Unpack[TrainingRecord],
) -> Bundle:
    """Write a bundle with teacher, bottleneck and decoder, so that scanning needs no download."""
    config, net = predictor.config, predictor.net
    settings = {
        **config.to_dict(),
        "scaling": predictor.model.scaling.as_dict(),
        "student": net.student.shape.as_dict(),
        "calibration": predictor.calibration.to_dict(),
        "identity": net.teacher.identity(),
    }
    bundle = trained_bundle("reverse_distillation", settings, config.classes, config.mpp, **record)
    return write_bundle(path, bundle, net.state_dict(), texts)


def load(bundle: Bundle, *, trust: bool = False) -> AnomalyPredictor:
    """Load a predictor from a bundle. The weights are plain tensors, so `trust` is not needed."""
    settings = dict(bundle.config)
    try:
        scaling = InputScaling.from_dict(settings.pop("scaling"))
        shape = StudentShape.from_dict(settings.pop("student"))
        calibration = Calibration.from_dict(settings.pop("calibration"))
        identity = dict(settings.pop("identity"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            "model.json lacks a setting or contains an invalid one", subject=bundle.path, actual=repr(error)
        ) from error
    config = Config.from_dict(settings)
    every_depth = bool(identity.get("every_depth"))
    frozen = find_teacher(config.teacher, config.input, every_depth=every_depth)
    if config.standardise_teacher:  # placeholders; the stored weights replace them
        frozen.standardise([torch.zeros(c) for c in shape.channels], [torch.ones(c) for c in shape.channels])
    predictor = AnomalyPredictor(config, frozen, Student(shape), calibration, scaling)
    bundle.fill(predictor.net, config.teacher)
    return predictor
