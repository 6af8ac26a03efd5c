"""Reverse distillation for the scanner: a map of patch scores, exact or with overlap shared."""

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
"""Bytes really taken over the bytes of the largest layer."""
BLOCKS: dict[Form, int] = {"exact": 8, "shared": 12}
"""Cells of the exact form, patches of the shared one, a side of a field where memory allows. The shared form
computes the patches at the edges of a field again for the next one."""
AT_ONCE = {"cpu": 16, "accelerator": 64}
"""Patches of a field that are computed together."""
PAPER_FINDINGS = 2.0
"""The raw score above which a maximum is a finding in the paper's way; published as 0.5, which all exceed."""
PAPER_RADIUS_PX = 6 * 64
"""Pixels that a maximum suppresses to each side in the paper's way."""
ANOMALY = "anomaly"
"""The raw score, beside the calibrated one."""


class AnomalyPredictor:
    """A teacher and its student as a scanner of slides."""

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
        self.filled = frozen.filled(config.input, config.input)[0]
        self._placed: nn.Module = self.net
        self._engine = EngineSettings()
        self._config = config

    # -- what the scanner asks ----------------------------------------------------------------------------

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        assert case.path is not None, "patches are read from slides"
        return {"slide": open_slide(case.path, mpp=case.mpp or options.mpp)}

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        config, stride = self.asked(options), self.stride(options)

        one = int(HEADROOM * activation_bytes(self.net, config.input, config.input)) + 12 * config.patch**2
        ratio = self._ratio(stride) if config.form == "shared" else 1

        def needs(blocks: int) -> int:
            patches = (blocks + 2) ** 2 if config.form == "shared" else blocks**2
            pixels = 18 * self.field_side(config, stride, ratio * blocks) ** 2
            return min(patches, at_once(engine.device)) * one + 6 * patches * config.patch**2 + pixels

        blocks = largest_cells(needs, room, preferred=BLOCKS[config.form], purpose="field of patches")
        return replace(engine, cells=blocks * ratio, batch=1)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._config, self._engine = self.asked(options), engine
        if self._config.form == "shared" and engine.cells % self._ratio(self.stride(options)):
            raise ConfigError(
                f"{engine.cells} cells a side make no whole patches",
                expected=f"a multiple of {self._ratio(self.stride(options))}",
            )
        self._placed = placed(self.net.for_inference(), engine)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[str, Batch]:
        config, stride = self.asked(options), self.stride(options)
        # about as many patches as are computed at once: a whole field would take seconds to measure
        most = at_once(engine.device)
        if config.form == "shared":  # a mosaic for n patches of cells has up to n + 2 a side
            cells = self._ratio(stride) * max(1, math.isqrt(most // config.mosaics) - 1)
        else:
            cells = math.isqrt(most)
        cells = min(cells, engine.cells)
        side = self.field_side(config, stride, cells)
        pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
        wanted = torch.ones((1, cells, cells), dtype=torch.bool, device=engine.device)
        batch = Batch(torch.from_numpy(pixels).to(engine.device), {"wanted": wanted}, {})
        return _pass_name(stride), batch

    def steps(self, case: OpenCase) -> Generator[Pass, Store, Result]:
        config, stride = self.asked(case.options), self.stride(case.options)
        lattice = case.images["slide"].lattice(mpp=config.mpp, upsample=case.options.upsample)
        window, margin = self.field_side(config, stride, 1), self.margin(config)
        grid = MapGrid(lattice, stride, window, case.engine.cells, margin + config.patch / 2)
        tissue = case.tissue()
        wanted = cells_by_centre(grid, tissue.mask, tissue.l0_step)
        pass_ = map_pass(_pass_name(stride), grid, self.layers(config), wanted, ~wanted)
        assert pass_.fields.grid_indices is not None
        params = {"wanted": _wanted_of_fields(wanted, grid, pass_.fields.grid_indices)}
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

    def exact(self, pixels: Tensor, stride: int, wanted: Tensor) -> Tensor:
        """(fields, cells, cells) raw scores, each of its own patch as if nothing else were there."""
        side, cells = self.config.patch, wanted.shape[-1]
        patches = pixels.unfold(1, side, stride).unfold(2, side, stride)[:, :cells, :cells]
        # (fields, cells, cells, channels, rows, columns): only the wanted ones are copied
        chosen = patches[wanted].permute(0, 2, 3, 1).contiguous()
        raw = torch.zeros(wanted.shape, dtype=torch.float32, device=pixels.device)
        if len(chosen):
            raw[wanted] = self.patch_scores(chosen)
        return raw

    def patch_scores(self, patches: Tensor) -> Tensor:
        """(B,) raw scores of patches (B, rows, columns, 3)."""
        distances = self._distances(patches)
        size = self.config.input
        if self.config.score == "max":
            maps = smooth(summed(distances, (self.filled, self.filled))[:, :size, :size])
            return maps.amax(dim=(1, 2))
        return window_means(distances, size, self.filled)[:, 0, 0]

    def shared(self, pixels: Tensor, stride: int, wanted: Tensor) -> Tensor:
        """(fields, cells, cells) raw scores of windows of mosaics: each pixel is computed in one patch only.

        A window over several patches takes from each the part that lies in it. Whatever a patch's own edges
        do to its map is in every window alike, since it has each part of a patch exactly once. What is left
        is how patches lie by chance, and the mean over mosaics that lie otherwise has less of it.
        """
        layings = self._layings(self._config)
        means = []
        for before in layings:
            start = layings[-1] - before
            means.append(self._of_mosaic(pixels[:, start:, start:], stride, wanted, before))
        return torch.stack(means).mean(dim=0)

    def _of_mosaic(self, pixels: Tensor, stride: int, wanted: Tensor, before: int) -> Tensor:
        """The windows of one mosaic, which begins some pixels before the first of them."""
        side, cells, ratio = self.config.patch, wanted.shape[-1], self._ratio(stride)
        across = _across(side, stride, cells, before)
        over = _patches_of_cells(side, stride, cells, before, pixels.device)
        needed = (over.T @ wanted.float() @ over) > 0
        patches = pixels[:, : across * side, : across * side].unfold(1, side, side).unfold(2, side, side)
        mosaics = []
        for values in self._distances(patches[needed].permute(0, 2, 3, 1).contiguous()):
            mosaic = values.new_zeros(*needed.shape, *values.shape[-2:])
            mosaic[needed] = values
            mosaics.append(mosaic.transpose(2, 3).flatten(3).flatten(1, 2))
        size = self.config.input
        return window_means(mosaics, size, self.filled, size // ratio, cells, across, before * size // side)

    def images_of(self, pixels: Tensor) -> Tensor:
        """What the teacher sees of patches: scaled, and resized to its side where that is another."""
        return images_for(self.config, self.scaling, pixels)

    def _distances(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.bfloat16 if self._engine.precision == "bfloat16" else torch.float32
        parts = [
            self._placed(self.images_of(some).to(dtype)) for some in pixels.split(at_once(pixels.device.type))
        ]
        first, second, third = (torch.cat(maps) for maps in zip(*parts, strict=True))
        return first, second, third

    # -- geometry -----------------------------------------------------------------------------------------

    def asked(self, options: ScanOptions) -> Config:
        """The config with what this scan asks otherwise."""
        config = replace(self.config, **dict(options.settings))
        if config.form == "shared" and config.score == "max":
            raise ConfigError("the shared form has no maximum of a patch", remedy="Use form=exact")
        return config

    def stride(self, options: ScanOptions) -> int:
        stride = options.stride or self.config.stride
        if self.asked(options).form == "shared":
            self._ratio(stride)
        return stride

    def layers(self, config: Config) -> tuple[str, ...]:
        """What the map holds: the tumour's score, and beside a calibrated one the raw one."""
        calibrated = config.threshold == "calibrated" and self.calibration.patch is not None
        return (self.classes[1], ANOMALY) if calibrated else (self.classes[1],)

    def _ratio(self, stride: int) -> int:
        """Cells along a patch, which the shared form needs to be whole."""
        ratio, rest = divmod(self.config.patch, stride)
        if rest or ratio < 1 or self.config.input % ratio:
            raise ConfigError(
                f"the shared form has no map of stride {stride}",
                expected=f"a stride that goes into the patch of {self.config.patch} px without rest",
                remedy="Choose another --stride, or --set form=exact",
            )
        return ratio

    def _layings(self, config: Config) -> list[int]:
        """Pixels before the first window at which each mosaic begins."""
        patch, size = config.patch, config.input
        layings = [number * patch // config.mosaics for number in range(config.mosaics)]
        if any(before * size % patch for before in layings):
            raise ConfigError(
                f"{config.mosaics} mosaics do not lie on the pixels of patches that are resized to {size} px",
                remedy="Use --set mosaics=1",
            )
        return layings

    def margin(self, config: Config) -> int:
        """Pixels of a field before its first window."""
        return self._layings(config)[-1] if config.form == "shared" else 0

    def field_side(self, config: Config, stride: int, cells: int) -> int:
        """Pixels a side of a field; that of the shared form is made of whole patches."""
        if config.form != "shared":
            return config.patch + stride * (cells - 1)
        most = self.margin(config)
        beyond = [
            most - before + _across(config.patch, stride, self._ratio(stride), before) * config.patch
            for before in self._layings(config)
        ]
        # for cells that fill whole patches; each more patch of them is one more of every mosaic
        return stride * cells + max(beyond) - config.patch

    # -- results ------------------------------------------------------------------------------------------

    def _result(self, store: MapReader, config: Config, stride: int) -> Result:
        scores, states = store.read()
        scored, info = states == State.SCORED, store.info
        raw, name = scores[-1][scored], self.classes[1]
        layer = np.where(scored, scores[0], np.float32(0))
        um, l0 = info.um_stride, info.l0_stride
        mpp = None if um is None else Mpp(um[0] / l0[0], um[1] / l0[1])
        facts: dict[str, Any] = {"form": config.form, "stride": stride}
        if config.form == "shared":
            measured = self.calibration.shared
            facts["shared_rank"] = None if measured is None else measured.rank
        if len(info.classes) == 1:
            slide = slide_score(raw, SLIDE_THRESHOLD)
            return Result({name: slide}, tuple(_maxima(layer, l0, stride, name)), metadata=facts)
        found = components(layer, l0, mpp=mpp, threshold=0.5, label=name)
        kept = [finding for finding in found if (finding.cells or 0) >= config.min_cells]
        values = {
            name: self.calibration.slide_probability(raw, config.form),
            ANOMALY: slide_score(raw, self.calibration.threshold(config.form)),
        }
        ordered = tuple(sorted(kept, key=lambda finding: -finding.score))
        return Result(values, ordered, metadata=facts)


def _maxima(
    layer: NDArray[np.float32], l0_stride: tuple[float, float], stride: int, name: str
) -> list[Finding]:
    """Findings in the paper's way: maxima of the raw map, one after another."""
    radius = max(1, round(PAPER_RADIUS_PX / stride))
    maxima = non_maximum_suppression(layer, 1, radius=radius, threshold=PAPER_FINDINGS)
    # found in cells, laid where the cells are: x and y need not have the same step
    places = [cell_centre(found.l0_y, found.l0_x, l0_stride) for found in maxima]
    return [Finding(*place, found.score, label=name) for place, found in zip(places, maxima, strict=True)]


def _wanted_of_fields(wanted: Cells, grid: MapGrid, places: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(fields, cells, cells): which cells of each field are to be computed."""
    n = grid.cells
    padded = np.zeros((grid.field_rows * n, grid.field_columns * n), np.bool_)
    padded[: grid.rows, : grid.columns] = wanted
    blocks = padded.reshape(grid.field_rows, n, grid.field_columns, n).transpose(0, 2, 1, 3)
    chosen: NDArray[np.bool_] = blocks[places[:, 0], places[:, 1]]
    return chosen


def _across(side: int, stride: int, cells: int, before: int) -> int:
    """Patches a side of a mosaic that holds the windows of all cells."""
    return -(-(before + stride * (cells - 1) + side) // side)


def _patches_of_cells(side: int, stride: int, cells: int, before: int, device: torch.device) -> Tensor:
    """(cells, patches) of 0 and 1: on which patches of a mosaic the window of a cell lies, along a side."""
    across = _across(side, stride, cells, before)
    begins = before + stride * torch.arange(cells, device=device)[:, None]
    patch = side * torch.arange(across, device=device)
    return ((begins < patch + side) & (begins + side > patch)).float()


def images_for(config: Config, scaling: InputScaling, pixels: Tensor) -> Tensor:
    """Scale patches (B, rows, columns, 3) for the teacher, and resize them to the side that it sees."""
    images = scaling.apply(pixels)
    if images.shape[-1] != config.input:
        images = functional.interpolate(images, (config.input, config.input), mode="bilinear", antialias=True)
    return images


def at_once(device: str) -> int:
    return AT_ONCE["cpu" if device == "cpu" else "accelerator"]


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
    """Write a bundle: teacher, bottleneck and decoder, so that nothing is fetched to scan with it."""
    config, net = predictor.config, predictor.net
    facts = {
        **config.to_dict(),
        "scaling": predictor.scaling.as_dict(),
        "student": net.student.shape.as_dict(),
        "calibration": predictor.calibration.to_dict(),
        "identity": net.teacher.identity(),
    }
    bundle = Bundle(
        "reverse_distillation",
        facts,
        config.classes,
        config.mpp,
        metrics or {},
        provenance or {},
        tuple(patient_hash(patient) for patient in patients),
    )
    return write_bundle(path, bundle, net.state_dict(), texts)


def load(bundle: Bundle, *, trust: bool = False) -> AnomalyPredictor:
    """A bundle as a predictor; its weights are plain tensors, so `trust` is not needed."""
    facts = dict(bundle.config)
    try:
        scaling = InputScaling.from_dict(facts.pop("scaling"))
        shape = StudentShape.from_dict(facts.pop("student"))
        calibration = Calibration.from_dict(facts.pop("calibration"))
        facts.pop("identity")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            "model.json lacks a setting, or one of it cannot be used", subject=bundle.path, actual=repr(error)
        ) from error
    config = Config.from_dict(facts)
    frozen = teacher(config.teacher)
    if config.standardise_teacher:  # the weights replace these values
        frozen.standardise([torch.zeros(c) for c in shape.channels], [torch.ones(c) for c in shape.channels])
    predictor = AnomalyPredictor(config, frozen, Student(shape), calibration, scaling)
    try:
        predictor.net.load_state_dict(bundle.weights())
    except RuntimeError as error:
        raise ModelError(
            "the weights do not fit the net", subject=bundle.path, expected=config.teacher, actual=str(error)
        ) from error
    return predictor
