"""The classifier for the scanner: class probabilities of images and regions, and their map over a slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.cohort import Case
from lobule.errors import CaseError
from lobule.geometry import Box, Lattice, Size
from lobule.grid import MapGrid, share_in_cells
from lobule.methods.rakhlin.config import Config, DescriptorSet
from lobule.methods.rakhlin.describe import (
    Describer,
    EncoderSample,
    PreparedImage,
    image_key,
    random_params,
    scaled_sides,
)
from lobule.methods.rakhlin.encoders import Encoder
from lobule.methods.rakhlin.forests import Calibrator, Forests, merged
from lobule.results.maps import MapReader
from lobule.results.result import Result
from lobule.results.tables import TableReader
from lobule.scanning.contract import Batch, Fields, OpenCase, Steps, fill_map, fill_table
from lobule.scanning.map_findings import map_findings
from lobule.scanning.open_case import slide_images
from lobule.slides.slide import Slide
from lobule.stitch import State
from lobule.tissue import TissueConfig, find_tissue
from lobule.units import Mpp

MAX_WHOLE = 1 << 25
"""Pixels of an image (or region) that is classified as one; a larger one gets a map, as a slide."""
FINDING = 0.5
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


@dataclass(frozen=True)
class ImageScores:
    """Key of the pass that classifies augmentations of one image."""


@dataclass(frozen=True)
class WindowScores:
    """Key of the pass that classifies the windows of a map."""


@dataclass(frozen=True, eq=False)
class Framed:
    """An open case with the key of its random numbers."""

    case: Case
    slide: Slide
    lattice: Lattice
    box: Box
    """The case on the lattice."""
    config: Config
    seed: int

    @classmethod
    def of(cls, case: OpenCase, config: Config, seed: int) -> Framed:
        slide = case.images["slide"]
        assert isinstance(slide, Slide)
        upsample, l0_box = case.options.upsample, case.case.l0_box
        lattice = slide.lattice(mpp=config.mpp, upsample=upsample) if config.mpp else slide.lattice(level=0)
        box = Box(0, 0, *lattice.size) if l0_box is None else lattice.of_l0(l0_box)
        return cls(case.case, slide, lattice, box, config, seed)

    def is_whole(self) -> bool:
        """Whether the case is classified as one image."""
        if self.case.kind == "slide":
            return max(self.box.width, self.box.height) <= 2 * self.config.window
        return self.box.size.area <= MAX_WHOLE

    def image_table(
        self, key: Any, name: str, sets: Sequence[DescriptorSet], augmentations: int
    ) -> tuple[Steps[TableReader], bool]:
        """Steps that fill one row an augmentation of the whole image; whether its stains were normalised."""
        if self.box.size.area > MAX_WHOLE:
            raise CaseError(
                f"an image of {self.box.size} is too large to be classified as one",
                subject=self.case.path,
                expected=f"at most {MAX_WHOLE >> 20} Mpixel",
                remedy="Cut it into regions (x, y, w, h in the manifest)",
            )
        sides = scaled_sides(self.config, self.box)
        keyed = [(image_key(self.case), number) for number in range(augmentations)]
        row = [self.box.x, self.box.y, self.box.width, self.box.height]
        fields = Fields(
            ("slide",),
            (self.lattice,),
            np.zeros(augmentations, np.int16),
            np.array([row] * augmentations, np.int64),
            params=random_params(self.config, sets, keyed, sides, self.seed, self.case.path),
            sizes=np.array([[*_pixel_row(sides)]] * augmentations, np.int64),
        )
        source = PreparedImage(self.slide, self.config, cache_last_box=True)
        _, degenerate = source.read(self.lattice, self.box)
        steps = fill_table(key, name, fields, chunk_rows=5, batch=1, sources={"slide": source})
        return steps, not degenerate

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

    def fill_windows(
        self, grid: MapGrid, required: NDArray[np.bool_], sets: Sequence[DescriptorSet], batch: int
    ) -> Steps[MapReader]:
        """Fill a map with one field a window (and as many as it has augmentations, in one)."""
        sides = scaled_sides(self.config, Box(0, 0, grid.window, grid.window))
        key, count = image_key(self.case), self.config.map_augmentations

        def params(grid_indices: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
            keyed = [
                (f"{key} {row},{column}", number)
                for row, column in grid_indices.tolist()
                for number in range(count)
            ]
            rows = random_params(self.config, sets, keyed, sides, self.seed, self.case.path)
            return {name: values.reshape(-1, count, *values.shape[1:]) for name, values in rows.items()}

        source = PreparedImage(self.slide, self.config, cache_last_box=False)
        return fill_map(
            WindowScores(), "map", grid, self.config.classes, required,
            params=params, pixel_size=_pixel_row(sides), batch=batch, sources={"slide": source},
        )  # fmt: skip


def _pixel_row(sides: NDArray[np.int64]) -> Size:
    """The size of a prepared image: the pixels of all scales in one row."""
    return Size(int(sides.prod(axis=1).sum()), 1)


class RakhlinModel:
    """Encoders and the forests of every set; a `Describer` whose descriptors are classified."""

    def __init__(self, describer: Describer, forests: Forests, calibrator: Calibrator | None) -> None:
        self.describer, self.forests, self.calibrator = describer, forests, calibrator
        self.choose_batch, self.move_to_device = describer.choose_batch, describer.move_to_device
        self.sample_batch = describer.sample_batch

    def forward(
        self, key: EncoderSample | ImageScores | WindowScores, batch: Batch
    ) -> dict[str, torch.Tensor]:
        if isinstance(key, EncoderSample):
            return self.describer.forward(key, batch)
        if isinstance(key, ImageScores):
            predictions = self._predictions(batch)
            return {name: torch.from_numpy(values) for name, values in predictions.items()}
        return {"map": torch.from_numpy(self._window_scores(batch))[:, :, None, None]}

    def _predictions(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        described = self.describer.describe(batch)
        return {name: self.forests.predict(name, rows.numpy()) for name, rows in described.items()}

    def _window_scores(self, batch: Batch) -> NDArray[np.float32]:
        """(windows, classes): the fused and calibrated probabilities of each window."""
        windows, augmentations = batch.params["stains"].shape[:2]
        flat = {name: values.flatten(0, 1) for name, values in batch.params.items()}
        pixels = batch.pixels.repeat_interleave(augmentations, dim=0)
        predictions = list(self._predictions(Batch(pixels, flat)).values())
        fused = np.mean(predictions, axis=0, dtype=np.float64)
        return self.calibrated(fused.reshape(windows, augmentations, -1).mean(axis=1)).astype(np.float32)

    def calibrated(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        return probabilities if self.calibrator is None else self.calibrator(probabilities)


class RakhlinPredictor:
    """The whole model: encoders, the forests of every set, and what follows them."""

    images = staticmethod(slide_images)

    def __init__(
        self,
        config: Config,
        encoders: Sequence[Encoder],
        forests: Forests,
        calibrator: Calibrator | None = None,
        seed: int = 0,
    ) -> None:
        self.config, self.seed = config, seed
        self.classes = config.classes
        self.model = RakhlinModel(Describer(config, dict(enumerate(encoders))), forests, calibrator)

    def steps(self, case: OpenCase) -> Steps[Result]:
        framed = Framed.of(case, replace(self.config, **case.options.settings), self.seed)
        if framed.is_whole():
            return (yield from self._image(framed, case.options.tissue))
        return (yield from self._map(case, framed))

    # -- results -------------------------------------------------------------------------------------------

    def _image(self, framed: Framed, tissue: TissueConfig | None) -> Steps[Result]:
        count = framed.config.scan_augmentations or framed.config.augmentations
        sets = self.model.describer.sets
        fill_augmentations, normalised = framed.image_table(ImageScores(), "augmentations", sets, count)
        # An image whose stains were normalised contains tissue; only the others can be blank.
        may_be_blank = not normalised or framed.config.stains == "none"
        if tissue is not None and may_be_blank and not framed.has_tissue(tissue):
            return Result({}, notes=(NO_TISSUE,), scored=False)
        table = yield from fill_augmentations
        names = [set_.name for set_ in self.config.sets]
        columns = table.read(names)
        if set(columns) != set(names):
            raise CaseError("no augmentation of it could be scored", subject=framed.case.path)
        of_sets = {name: np.nanmean(columns[name].astype(np.float64), axis=0) for name in names}
        fused = self.model.calibrated(np.mean(list(of_sets.values()), axis=0))
        metadata = {
            "prediction": self.classes[int(fused.argmax())],
            "sets": {name: values.tolist() for name, values in of_sets.items()},
            "augmentations": count,
            "stains_normalised": normalised,
        }
        notes = () if normalised else (UNNORMALISED,)
        return Result(self._scores(fused), notes=notes, metadata=metadata)

    def _map(self, case: OpenCase, framed: Framed) -> Steps[Result]:
        config, lattice = framed.config, framed.lattice
        grid = MapGrid(lattice, case.options.stride or config.stride, config.window)
        tissue = case.tissue()
        required = share_in_cells(grid, tissue.mask, tissue.l0_step) >= config.tissue_share
        of_window = config.crops * config.map_augmentations
        batch = max(1, case.engine.batch // of_window)
        sets = self.model.describer.sets
        reader = yield from framed.fill_windows(grid, np.asarray(required, np.bool_), sets, batch)
        _, findings = map_findings(reader, self.classes[1:], FINDING)
        scores, states = reader.read()
        cells = scores[:, states == State.SCORED].T.astype(np.float64)
        winners = np.bincount(cells.argmax(axis=1), minlength=len(self.classes)) if len(cells) else None
        metadata = {"shares": None if winners is None else (winners / len(cells)).tolist()}
        return Result(self._slide_scores(cells), findings, metadata=metadata)

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
