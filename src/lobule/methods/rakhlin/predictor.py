"""The classifier for the scanner: class probabilities of images and regions, and their map over a slide."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.cohort import Case
from lobule.errors import CaseError
from lobule.findings import components
from lobule.geometry import Box, Lattice
from lobule.grid import MapGrid, share_in_cells
from lobule.methods.rakhlin.config import Config
from lobule.methods.rakhlin.describe import Describer, PreparedImage, image_key, random_params, sides_of
from lobule.methods.rakhlin.encoders import Encoder
from lobule.methods.rakhlin.forests import Calibrator, Forests
from lobule.methods.rakhlin.fusion import merged
from lobule.results.maps import MapReader
from lobule.results.result import Result
from lobule.results.tables import TableReader
from lobule.scanning.contract import (
    Batch,
    EngineSettings,
    Fields,
    ImageSource,
    OpenCase,
    Pass,
    ScanOptions,
    Store,
    TableSpec,
    map_pass,
)
from lobule.slides.slide import Slide, open_slide
from lobule.stitch import State
from lobule.tissue import TissueConfig, find_tissue
from lobule.units import Mpp

MAX_WHOLE = 1 << 25
"""Pixels of an image (or region) that is classified as one; a larger one gets a map, as a slide."""
FINDING = 0.5
IMAGE, MAP, SAMPLE = "augmentations", "map", "sample"
CARCINOMA = "carcinoma"
UNNORMALISED = (
    "hardly any tissue, or a single stain: its stains could not be normalised, and it is used as it is"
)
NO_TISSUE = "Nothing was scored: no tissue was found in the image. Scan with --no-tissue to score it anyway."
ASSUMED_MPP = 0.5
"""µm/px at which tissue is sought in an image that does not state its resolution."""
BLANK_SPREAD = 8.0
"""Standard deviation of the grey levels that a blank image does not exceed; noise and shading are below."""
PREVIEW_PX = 512
"""Longest side in pixels of the reduced image in which tissue is sought."""


def open_image(case: Case, options: ScanOptions) -> Slide:
    assert case.path is not None, "images and slides have a file"
    return open_slide(case.path, mpp=case.mpp or options.mpp)


def frame_of(slide: Slide, case: Case, config: Config, upsample: bool) -> tuple[Lattice, Box]:
    """The lattice on which a case is read, and the box of the case on it."""
    lattice = slide.lattice(mpp=config.mpp, upsample=upsample) if config.mpp else slide.lattice(level=0)
    box = Box(0, 0, *lattice.size) if case.l0_box is None else lattice.of_l0(case.l0_box)
    return lattice, box


@dataclass(frozen=True, eq=False)
class Framed:
    """An open case with the key of its random numbers."""

    case: Case
    slide: Slide
    lattice: Lattice
    box: Box
    config: Config
    seed: int

    def is_whole(self) -> bool:
        """Whether the case is classified as one image."""
        if self.case.kind == "slide":
            return max(self.box.width, self.box.height) <= 2 * self.config.window
        return self.box.size.area <= MAX_WHOLE

    def image_pass(self, name: str, describer: Describer, augmentations: int) -> tuple[Pass, bool]:
        """One field an augmentation of the whole image, and whether its stains could not be normalised."""
        if self.box.size.area > MAX_WHOLE:
            raise CaseError(
                f"an image of {self.box.size} is too large to be classified as one",
                subject=self.case.path,
                expected=f"at most {MAX_WHOLE >> 20} Mpixel",
                remedy="Cut it into regions (x, y, w, h in the manifest)",
            )
        source = PreparedImage(self.slide, self.config, keep=True)
        sides = sides_of(self.config, self.box)
        key = image_key(self.case)
        augmentation_keys = [(key, number) for number in range(augmentations)]
        params = random_params(
            self.config, describer.sets, augmentation_keys, sides, self.seed, self.case.path
        )
        _, degenerate = source.read(self.lattice, self.box)
        row = [self.box.x, self.box.y, self.box.width, self.box.height]
        fields = self._fields(np.array([row] * augmentations, np.int64), sides, params)
        return Pass(name, fields, TableSpec(part_rows=5), batch=1, sources={"slide": source}), degenerate

    def has_tissue(self, config: TissueConfig) -> bool:
        """Whether the image shows anything: structure, or a spot that tissue detection finds."""
        rgb = self.slide.read_lattice(self.lattice, self.box)
        factor = min(-(-max(rgb.shape[:2]) // PREVIEW_PX), *rgb.shape[:2])
        rows, columns = (side // factor for side in rgb.shape[:2])
        blocks = rgb[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
        reduced = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
        mpp = self.lattice.mpp or Mpp.square(ASSUMED_MPP)
        if float(reduced.mean(axis=2).std()) > BLANK_SPREAD:
            return True  # grey images show structure, but tissue detection needs colour
        # An image is scored whole, so that even a speck of tissue counts.
        every_speck = replace(config, debris_mm2=0.0)
        return bool(find_tissue(reduced, mpp.scaled(factor, factor), every_speck).mask.any())

    def map_of(self, describer: Describer, grid: MapGrid, required: NDArray[np.bool_], batch: int) -> Pass:
        """One field a window (and as many as it has augmentations, in one)."""
        pass_ = map_pass(MAP, grid, self.config.classes, required, ~required, batch=batch)
        grid_indices = pass_.fields.grid_indices
        assert grid_indices is not None
        source = PreparedImage(self.slide, self.config, keep=False)
        sides = sides_of(self.config, Box(0, 0, grid.window, grid.window))
        key = image_key(self.case)
        keyed = [
            (f"{key} {row},{column}", number)
            for row, column in grid_indices.tolist()
            for number in range(self.config.map_augmentations)
        ]
        params = random_params(self.config, describer.sets, keyed, sides, self.seed, self.case.path)
        count = self.config.map_augmentations
        shaped = {name: values.reshape(-1, count, *values.shape[1:]) for name, values in params.items()}
        fields = self._fields(pass_.fields.boxes, sides, shaped)
        return replace(pass_, fields=replace(fields, grid_indices=grid_indices), sources={"slide": source})

    def _fields(
        self, boxes: NDArray[np.int64], sides: NDArray[np.int64], params: Mapping[str, NDArray[Any]]
    ) -> Fields:
        pixels = int(sides.prod(axis=1).sum())
        sizes = np.tile(np.array([pixels, 1], np.int64), (len(boxes), 1))
        image = np.zeros(len(boxes), np.int16)
        return Fields(("slide",), (self.lattice,), image, boxes, params=params, sizes=sizes)


class RakhlinPredictor:
    """The whole model: encoders, the forests of every set, and what follows them."""

    def __init__(
        self,
        config: Config,
        encoders: Sequence[Encoder],
        forests: Forests,
        calibrator: Calibrator | None = None,
        seed: int = 0,
    ) -> None:
        self.config, self.forests, self.calibrator, self.seed = config, forests, calibrator, seed
        self.classes = config.classes
        self.describer = Describer(config, dict(enumerate(encoders)))

    # -- the contract with the scanner -------------------------------------------------------------------

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        return {"slide": open_image(case, options)}

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        return self.describer.choose_batch(engine, room)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self.describer.move_to_device(engine)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[str, Batch]:
        return SAMPLE, self.describer.sample_batch(engine)

    def steps(self, case: OpenCase) -> Generator[Pass, Store, Result]:
        slide = case.images["slide"]
        assert isinstance(slide, Slide)
        config = replace(self.config, **case.options.settings)
        lattice, box = frame_of(slide, case.case, config, case.options.upsample)
        framed = Framed(case.case, slide, lattice, box, config, self.seed)
        if framed.is_whole():
            return (yield from self._image(framed, case.options.tissue))
        return (yield from self._map(case, framed))

    def forward(self, name: str, batch: Batch) -> dict[str, torch.Tensor]:
        if name == SAMPLE:
            return self.describer.encode_sample(batch)
        if name == IMAGE:
            described = self.describer.describe(batch)
            predictions = {name: self.forests.predict(name, rows.numpy()) for name, rows in described.items()}
            return {name: torch.from_numpy(values) for name, values in predictions.items()}
        return {"map": torch.from_numpy(self._classified(batch))[:, :, None, None]}

    # -- results -------------------------------------------------------------------------------------------

    def _image(self, framed: Framed, tissue: TissueConfig | None) -> Generator[Pass, Store, Result]:
        count = framed.config.scan_augmentations or framed.config.augmentations
        pass_, degenerate = framed.image_pass(IMAGE, self.describer, count)
        # An image whose stains were normalised contains tissue; only the others can be blank.
        may_be_blank = degenerate or framed.config.stains == "none"
        if tissue is not None and may_be_blank and not framed.has_tissue(tissue):
            return Result({}, notes=(NO_TISSUE,), scored=False)
        store = yield pass_
        assert isinstance(store, TableReader)
        names = [set_.name for set_ in self.config.sets]
        columns = store.read(names)
        if set(columns) != set(names):
            raise CaseError("no augmentation of it could be scored", subject=framed.case.path)
        of_sets = {name: np.nanmean(columns[name].astype(np.float64), axis=0) for name in names}
        fused = self._calibrated(np.mean(list(of_sets.values()), axis=0))
        metadata = {
            "prediction": self.classes[int(fused.argmax())],
            "sets": {name: values.tolist() for name, values in of_sets.items()},
            "augmentations": count,
            "stains_normalised": not degenerate,
        }
        notes = (UNNORMALISED,) if degenerate else ()
        return Result(self._scores(fused), notes=notes, metadata=metadata)

    def _map(self, case: OpenCase, framed: Framed) -> Generator[Pass, Store, Result]:
        config, lattice = framed.config, framed.lattice
        grid = MapGrid(lattice, case.options.stride or config.stride, config.window)
        tissue = case.tissue()
        required = share_in_cells(grid, tissue.mask, tissue.l0_step) >= config.tissue_share
        of_window = config.crops * config.map_augmentations
        batch = max(1, case.engine.batch // of_window)
        store = yield framed.map_of(self.describer, grid, np.asarray(required, np.bool_), batch)
        assert isinstance(store, MapReader)
        scores, states = store.read()
        there = states == State.SCORED
        info = store.info
        um, l0 = info.um_stride, info.l0_stride
        mpp = None if um is None else Mpp(um[0] / l0[0], um[1] / l0[1])
        findings = []
        for name, layer in zip(self.classes[1:], scores[1:], strict=True):
            hot = np.where(there, layer, np.float32(0))
            findings += components(hot, l0, mpp=mpp, threshold=FINDING, label=name)
        cells = scores[:, there].T.astype(np.float64)
        winners = np.bincount(cells.argmax(axis=1), minlength=len(self.classes)) if len(cells) else None
        metadata = {"shares": None if winners is None else (winners / len(cells)).tolist()}
        ordered = tuple(sorted(findings, key=lambda finding: -finding.score))
        return Result(self._slide_scores(cells), ordered, metadata=metadata)

    def _classified(self, batch: Batch) -> NDArray[np.float32]:
        """(windows, classes): the fused and calibrated probabilities of each window."""
        windows, augmentations = batch.params["stains"].shape[:2]
        flat = {name: values.flatten(0, 1) for name, values in batch.params.items()}
        pixels = batch.pixels.repeat_interleave(augmentations, dim=0)
        described = self.describer.describe(Batch(pixels, flat, {}))
        predictions = [self.forests.predict(name, rows.numpy()) for name, rows in described.items()]
        fused = np.mean(predictions, axis=0, dtype=np.float64)
        of_windows = fused.reshape(windows, augmentations, -1).mean(axis=1)
        return self._calibrated(of_windows).astype(np.float32)

    def _calibrated(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        return probabilities if self.calibrator is None else self.calibrator(probabilities)

    def _scores(self, fused: NDArray[np.float64]) -> dict[str, float]:
        scores = {name: float(value) for name, value in zip(self.classes, fused, strict=True)}
        if groups := carcinoma_groups(self.config):
            scores[CARCINOMA] = float(merged(fused, groups)[1])
        return scores

    def _slide_scores(self, cells: NDArray[np.float64]) -> dict[str, float]:
        """Score of each class on a slide: its highest cell; for the first (normal) class its lowest cell."""
        if len(cells) == 0:
            return {name: float(index == 0) for index, name in enumerate(self.classes)}
        worst = cells.max(axis=0)
        worst[0] = cells[:, 0].min()
        scores = {name: float(value) for name, value in zip(self.classes, worst, strict=True)}
        if groups := carcinoma_groups(self.config):
            scores[CARCINOMA] = float(merged(cells, groups)[:, 1].max())
        return scores


def carcinoma_groups(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Indices of the other classes and of carcinoma; None if the model lacks one of the groups."""
    if not set(config.carcinoma) <= set(config.classes) or len(config.carcinoma) < 1:
        return None
    inside = tuple(n for n, name in enumerate(config.classes) if name in config.carcinoma)
    benign_classes = tuple(n for n, name in enumerate(config.classes) if name not in config.carcinoma)
    return (benign_classes, inside) if benign_classes and inside else None
