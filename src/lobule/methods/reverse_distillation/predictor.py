"""The reverse distillation predictor: maps of patch scores in the exact or the shared form."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lobule.bundles import Bundle, patient_hash, write_bundle
from lobule.cohort import Case
from lobule.errors import BundleError, ConfigError, ModelError
from lobule.findings import Finding, cell_centre, components, non_maximum_suppression
from lobule.grid import Cells, MapGrid, cells_by_centre
from lobule.methods.reverse_distillation.calibration import Calibration
from lobule.methods.reverse_distillation.config import Config, Form
from lobule.nets.anomaly import SLIDE_THRESHOLD, Distances, slide_score, smooth, summed, window_means
from lobule.nets.reverse_distillation import Student, StudentShape
from lobule.nets.scaling import InputScaling
from lobule.nets.teachers import Teacher, teacher
from lobule.results.maps import MapReader
from lobule.results.result import Result
from lobule.scanning.contract import (
    Batch,
    EngineSettings,
    ImageSource,
    OpenCase,
    Pass,
    ScanOptions,
    Store,
    map_pass,
)
from lobule.scanning.device import activation_bytes, largest_cells, placed
from lobule.slides.slide import open_slide
from lobule.stitch import State
from lobule.units import Mpp

HEADROOM = 2.0
"""Ratio of the actual peak memory to the size of the largest layer."""
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
        self.scaling = scaling or frozen.scaling
        self.net = Distances(frozen, student).eval()
        self.classes = config.classes
        self.strides, self.multiple = frozen.strides, frozen.multiple
        self.padded_size = frozen.padded_size(config.input, config.input)[0]
        self._device_net: nn.Module = self.net
        self._engine = EngineSettings()
        self._config = config

    # -- the Predictor interface --------------------------------------------------------------------------

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        assert case.path is not None, "patches are read from slides"
        return {"slide": open_slide(case.path, mpp=case.mpp or options.mpp)}

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        config, stride = self.scan_config(options), self.stride(options)

        patch_bytes = (
            int(HEADROOM * activation_bytes(self.net, config.input, config.input)) + 12 * config.patch**2
        )
        ratio = self._ratio(stride) if config.form == "shared" else 1

        def needs(blocks: int) -> int:
            patches = (blocks + 2) ** 2 if config.form == "shared" else blocks**2
            pixels = 18 * self.field_side(config, stride, ratio * blocks) ** 2
            return (
                min(patches, patches_at_once(engine.device)) * patch_bytes
                + 6 * patches * config.patch**2
                + pixels
            )

        blocks = largest_cells(
            needs, room, preferred=PREFERRED_BLOCKS[config.form], purpose="field of patches"
        )
        return replace(engine, cells=blocks * ratio, batch=1)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._config, self._engine = self.scan_config(options), engine
        if self._config.form == "shared" and engine.cells % self._ratio(self.stride(options)):
            raise ConfigError(
                f"{engine.cells} cells along a side of a field are not a whole number of patches",
                expected=f"a multiple of {self._ratio(self.stride(options))}",
            )
        self._device_net = placed(self.net.for_inference(), engine)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[str, Batch]:
        config, stride = self.scan_config(options), self.stride(options)
        # About one batch of patches: measuring a whole field would take seconds.
        limit = patches_at_once(engine.device)
        if config.form == "shared":  # for n patches of cells, a mosaic has up to n + 2 patches a side
            cells = self._ratio(stride) * max(1, math.isqrt(limit // config.mosaics) - 1)
        else:
            cells = math.isqrt(limit)
        cells = min(cells, engine.cells)
        side = self.field_side(config, stride, cells)
        pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
        required = torch.ones((1, cells, cells), dtype=torch.bool, device=engine.device)
        batch = Batch(torch.from_numpy(pixels).to(engine.device), {"wanted": required}, {})
        return _pass_name(stride), batch

    def steps(self, case: OpenCase) -> Generator[Pass, Store, Result]:
        config, stride = self.scan_config(case.options), self.stride(case.options)
        lattice = case.images["slide"].lattice(mpp=config.mpp, upsample=case.options.upsample)
        window, margin = self.field_side(config, stride, 1), self.margin(config)
        grid = MapGrid(lattice, stride, window, case.engine.cells, margin + config.patch / 2)
        tissue = case.tissue()
        required = cells_by_centre(grid, tissue.mask, tissue.l0_step)
        pass_ = map_pass(_pass_name(stride), grid, self.layers(config), required, ~required)
        assert pass_.fields.grid_indices is not None
        params = {"wanted": _required_by_field(required, grid, pass_.fields.grid_indices)}
        store = yield replace(pass_, fields=replace(pass_.fields, params=params))
        assert isinstance(store, MapReader)
        return self._result(store, config, stride)

    def forward(self, name: str, batch: Batch) -> dict[str, Tensor]:
        stride = int(name.rpartition("-s")[2])
        if self._config.form == "shared":
            raw = self.shared(batch.pixels, stride, batch.params["wanted"])
        else:
            raw = self.exact(batch.pixels, stride, batch.params["wanted"])
        if self._config.threshold == "paper" or self.calibration.patch is None:
            return {"map": raw[:, None]}
        fit = self.calibration.patch
        return {"map": torch.stack([torch.sigmoid(fit.slope * raw + fit.intercept), raw], dim=1)}

    # -- the two forms ------------------------------------------------------------------------------------

    def exact(self, pixels: Tensor, stride: int, required: Tensor) -> Tensor:
        """Raw scores (fields, cells, cells), with every required patch computed separately."""
        side, cells = self.config.patch, required.shape[-1]
        patches = pixels.unfold(1, side, stride).unfold(2, side, stride)[:, :cells, :cells]
        # (fields, cells, cells, channels, rows, columns): only the required patches are copied
        chosen = patches[required].permute(0, 2, 3, 1).contiguous()
        raw = torch.zeros(required.shape, dtype=torch.float32, device=pixels.device)
        if len(chosen):
            raw[required] = self.patch_scores(chosen)
        return raw

    def patch_scores(self, patches: Tensor) -> Tensor:
        """Raw scores (B,) of patches (B, rows, columns, 3)."""
        distances = self._distances(patches)
        size = self.config.input
        if self.config.score == "max":
            maps = smooth(summed(distances, (self.padded_size, self.padded_size))[:, :size, :size])
            return maps.amax(dim=(1, 2))
        return window_means(distances, size, self.padded_size)[:, 0, 0]

    def shared(self, pixels: Tensor, stride: int, required: Tensor) -> Tensor:
        """Raw scores (fields, cells, cells) of windows over mosaics of adjacent patches.

        In a mosaic, each pixel is computed in one patch only. A window covers several patches and averages
        the section of each map that lies inside it. The effect of a patch's edges on its map is the same for
        all windows, because together the sections cover each position within a patch exactly once. The scores
        still depend on where the patch grid lies; averaging over shifted mosaics reduces this.
        """
        offsets = self._mosaic_offsets(self._config)
        means = []
        for offset in offsets:
            start = offsets[-1] - offset
            means.append(self._mosaic_scores(pixels[:, start:, start:], stride, required, offset))
        return torch.stack(means).mean(dim=0)

    def _mosaic_scores(self, pixels: Tensor, stride: int, required: Tensor, offset: int) -> Tensor:
        """Scores of the windows of one mosaic, which starts `offset` pixels before the first window."""
        side, cells, ratio = self.config.patch, required.shape[-1], self._ratio(stride)
        across = _patches_across(side, stride, cells, offset)
        over = _patches_of_cells(side, stride, cells, offset, pixels.device)
        needed = (over.T @ required.float() @ over) > 0
        patches = pixels[:, : across * side, : across * side].unfold(1, side, side).unfold(2, side, side)
        mosaics = []
        for values in self._distances(patches[needed].permute(0, 2, 3, 1).contiguous()):
            mosaic = values.new_zeros(*needed.shape, *values.shape[-2:])
            mosaic[needed] = values
            mosaics.append(mosaic.transpose(2, 3).flatten(3).flatten(1, 2))
        size = self.config.input
        return window_means(
            mosaics, size, self.padded_size, size // ratio, cells, across, offset * size // side
        )

    def images_of(self, pixels: Tensor) -> Tensor:
        """The teacher's input for patches: scaled, and resized if necessary."""
        return images_for(self.config, self.scaling, pixels)

    def _distances(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.bfloat16 if self._engine.precision == "bfloat16" else torch.float32
        chunks = [
            self._device_net(self.images_of(chunk).to(dtype))
            for chunk in pixels.split(patches_at_once(pixels.device.type))
        ]
        first, second, third = (torch.cat(maps) for maps in zip(*chunks, strict=True))
        return first, second, third

    # -- geometry -----------------------------------------------------------------------------------------

    def scan_config(self, options: ScanOptions) -> Config:
        """The config with the settings that this scan overrides."""
        config = replace(self.config, **dict(options.settings))
        if config.form == "shared" and config.score == "max":
            raise ConfigError("the shared form does not support score=max", remedy="Use form=exact")
        return config

    def stride(self, options: ScanOptions) -> int:
        stride = options.stride or self.config.stride
        if self.scan_config(options).form == "shared":
            self._ratio(stride)
        return stride

    def layers(self, config: Config) -> tuple[str, ...]:
        """Names of the map layers: the tumour score and, if that is calibrated, the raw score."""
        calibrated = config.threshold == "calibrated" and self.calibration.patch is not None
        return (self.classes[1], ANOMALY) if calibrated else (self.classes[1],)

    def _ratio(self, stride: int) -> int:
        """Cells along a side of a patch, which must be a whole number for the shared form."""
        ratio, rest = divmod(self.config.patch, stride)
        if rest or ratio < 1 or self.config.input % ratio:
            raise ConfigError(
                f"the shared form does not support stride {stride}",
                expected=f"a stride that divides the patch side of {self.config.patch} px",
                remedy="Choose another --stride, or --set form=exact",
            )
        return ratio

    def _mosaic_offsets(self, config: Config) -> list[int]:
        """For each mosaic, the distance in pixels from its start to the first window."""
        patch, size = config.patch, config.input
        offsets = [number * patch // config.mosaics for number in range(config.mosaics)]
        if any(offset * size % patch for offset in offsets):
            raise ConfigError(
                f"the offsets of {config.mosaics} mosaics are not whole pixels after resizing patches "
                f"to {size} px",
                remedy="Use --set mosaics=1",
            )
        return offsets

    def margin(self, config: Config) -> int:
        """Pixels before the first window of a field."""
        return self._mosaic_offsets(config)[-1] if config.form == "shared" else 0

    def field_side(self, config: Config, stride: int, cells: int) -> int:
        """Side of a field in pixels; in the shared form it consists of whole patches."""
        if config.form != "shared":
            return config.patch + stride * (cells - 1)
        margin = self.margin(config)
        sides = [
            margin
            - offset
            + _patches_across(config.patch, stride, self._ratio(stride), offset) * config.patch
            for offset in self._mosaic_offsets(config)
        ]
        # The cells fill whole patches, and each further patch of cells adds one patch to every mosaic.
        return stride * cells + max(sides) - config.patch

    # -- results ------------------------------------------------------------------------------------------

    def _result(self, store: MapReader, config: Config, stride: int) -> Result:
        scores, states = store.read()
        scored, info = states == State.SCORED, store.info
        raw, name = scores[-1][scored], self.classes[1]
        layer = np.where(scored, scores[0], np.float32(0))
        um, l0 = info.um_stride, info.l0_stride
        mpp = None if um is None else Mpp(um[0] / l0[0], um[1] / l0[1])
        metadata: dict[str, Any] = {"form": config.form, "stride": stride}
        if config.form == "shared":
            measured = self.calibration.shared
            metadata["shared_rank"] = None if measured is None else measured.rank
        if len(info.classes) == 1:
            slide = slide_score(raw, SLIDE_THRESHOLD)
            return Result({name: slide}, tuple(_maxima(layer, l0, stride, name)), metadata=metadata)
        candidates = components(layer, l0, mpp=mpp, threshold=0.5, label=name)
        findings = [finding for finding in candidates if (finding.cells or 0) >= config.min_cells]
        values = {
            name: self.calibration.slide_probability(raw, config.form),
            ANOMALY: slide_score(raw, self.calibration.threshold(config.form)),
        }
        ordered = tuple(sorted(findings, key=lambda finding: -finding.score))
        return Result(values, ordered, metadata=metadata)


def _maxima(
    layer: NDArray[np.float32], l0_stride: tuple[float, float], stride: int, name: str
) -> list[Finding]:
    """Findings by the paper's method: maxima of the raw map by non-maximum suppression."""
    radius = max(1, round(PAPER_RADIUS_PX / stride))
    maxima = non_maximum_suppression(layer, 1, radius=radius, threshold=PAPER_FINDINGS)
    # Convert from cells to level-0 pixels; x and y may have different steps.
    positions = [cell_centre(maximum.l0_y, maximum.l0_x, l0_stride) for maximum in maxima]
    return [
        Finding(*position, maximum.score, label=name)
        for position, maximum in zip(positions, maxima, strict=True)
    ]


def _required_by_field(required: Cells, grid: MapGrid, grid_indices: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Mask (fields, cells, cells) of the cells of each field that must be computed."""
    n = grid.cells
    padded = np.zeros((grid.field_rows * n, grid.field_columns * n), np.bool_)
    padded[: grid.rows, : grid.columns] = required
    blocks = padded.reshape(grid.field_rows, n, grid.field_columns, n).transpose(0, 2, 1, 3)
    field_cells: NDArray[np.bool_] = blocks[grid_indices[:, 0], grid_indices[:, 1]]
    return field_cells


def _patches_across(side: int, stride: int, cells: int, offset: int) -> int:
    """Patches along a side of a mosaic that contains the windows of all cells."""
    return -(-(offset + stride * (cells - 1) + side) // side)


def _patches_of_cells(side: int, stride: int, cells: int, offset: int, device: torch.device) -> Tensor:
    """Matrix (cells, patches) along one axis: 1 if the cell's window overlaps the patch, otherwise 0."""
    across = _patches_across(side, stride, cells, offset)
    begins = offset + stride * torch.arange(cells, device=device)[:, None]
    patch = side * torch.arange(across, device=device)
    return ((begins < patch + side) & (begins + side > patch)).float()


def images_for(config: Config, scaling: InputScaling, pixels: Tensor) -> Tensor:
    """Scale patches (B, rows, columns, 3) for the teacher, and resize them to its input size."""
    images = scaling.apply(pixels)
    if images.shape[-1] != config.input:
        images = functional.interpolate(images, (config.input, config.input), mode="bilinear", antialias=True)
    return images


def patches_at_once(device: str) -> int:
    return PATCHES_AT_ONCE["cpu" if device == "cpu" else "accelerator"]


def _pass_name(stride: int) -> str:
    return f"map-s{stride}"


# -- on disk ------------------------------------------------------------------------------------------------


def save(
    path: str | Path,
    predictor: AnomalyPredictor,
    *,
    patients: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Bundle:
    """Write a bundle with teacher, bottleneck and decoder, so that scanning needs no download."""
    config, net = predictor.config, predictor.net
    settings = {
        **config.to_dict(),
        "scaling": predictor.scaling.as_dict(),
        "student": net.student.shape.as_dict(),
        "calibration": predictor.calibration.to_dict(),
        "identity": net.teacher.identity(),
    }
    bundle = Bundle(
        "reverse_distillation",
        settings,
        config.classes,
        config.mpp,
        metrics or {},
        provenance or {},
        tuple(patient_hash(patient) for patient in patients),
    )
    return write_bundle(path, bundle, net.state_dict(), texts)


def load(bundle: Bundle, *, trust: bool = False) -> AnomalyPredictor:
    """Load a predictor from a bundle. The weights are plain tensors, so `trust` is not needed."""
    settings = dict(bundle.config)
    try:
        scaling = InputScaling.from_dict(settings.pop("scaling"))
        shape = StudentShape.from_dict(settings.pop("student"))
        calibration = Calibration.from_dict(settings.pop("calibration"))
        settings.pop("identity")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            "model.json lacks a setting or contains an invalid one", subject=bundle.path, actual=repr(error)
        ) from error
    config = Config.from_dict(settings)
    frozen = teacher(config.teacher)
    if config.standardise_teacher:  # placeholders; the stored weights replace them
        frozen.standardise([torch.zeros(c) for c in shape.channels], [torch.ones(c) for c in shape.channels])
    predictor = AnomalyPredictor(config, frozen, Student(shape), calibration, scaling)
    try:
        predictor.net.load_state_dict(bundle.weights())
    except RuntimeError as error:
        raise ModelError(
            "the weights do not fit the net", subject=bundle.path, expected=config.teacher, actual=str(error)
        ) from error
    return predictor
