"""The predictor of bag models for the scanner: tile features, tile scores, a slide score and a map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.bundles import Bundle, plain_weights
from lobule.cohort import Case
from lobule.encoders.load import restore_encoder
from lobule.errors import BundleError, ConfigError
from lobule.features import FeatureFolder, open_features
from lobule.geometry import Size
from lobule.grid import MapGrid
from lobule.methods.chowder.agreement import case_note, case_spread
from lobule.methods.chowder.bags import bag_of
from lobule.methods.chowder.config import Config
from lobule.methods.chowder.ensemble import BagScores, Ensemble, Localisation, localisation_of, members_of
from lobule.methods.chowder.sources import (
    FeaturePicture,
    TileSource,
    ValuePicture,
    stored_tiles,
    tiles_of_table,
)
from lobule.methods.chowder.train import ENCODER
from lobule.results.maps import MapReader
from lobule.results.result import Result
from lobule.results.tables import TableReader
from lobule.scanning.contract import (
    Batch,
    EngineSettings,
    Fields,
    ImageSource,
    OpenCase,
    ScanOptions,
    Steps,
    fill_map,
    fill_table,
)
from lobule.scanning.map_findings import map_findings
from lobule.scanning.open_case import slide_images
from lobule.scanning.tile_features import TileEncoder, TileFeatures, Tiling, fill_features, tile_fields
from lobule.stitch import State

NO_TILE = "Nothing was scored: the feature file contains no tile of this case, so it had no tissue."
BATCH = 256
"""Number of tiles that the members score at once, and of map cells that are written at once."""


ONE_PIXEL = Size(1, 1)


@dataclass(frozen=True)
class TileOutputs:
    """Key of the pass that computes the outputs of every member from the features of tiles."""


@dataclass(frozen=True)
class StoredValues:
    """Key of the pass that writes computed values of tiles into a map."""


class BagModel:
    """The members of an ensemble, and the encoder of the bundle for scans of slides."""

    def __init__(
        self,
        bundle: Bundle,
        encoding: Mapping[str, Any],
        tiling: Mapping[str, Any] | None,
        ensemble: Ensemble,
    ) -> None:
        self._bundle, self._encoding, self._tiling = bundle, encoding, tiling
        self.ensemble = ensemble
        self._folders: dict[str, FeatureFolder] = {}

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        if self.folder(options) is not None:
            return replace(engine, batch=BATCH)
        return self.encoder.choose_batch(engine, max_bytes, options)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        for member in self.ensemble.members:
            member.to(engine.device)
        if self.folder(options) is None:
            self.encoder.move_to_device(engine, options)

    def sample_batch(
        self, engine: EngineSettings, options: ScanOptions
    ) -> tuple[TileFeatures | TileOutputs, Batch]:
        if self.folder(options) is None:
            return self.encoder.sample_batch(engine, options)
        pixels = np.random.default_rng(0).normal(size=(engine.batch, 1, 1, self.ensemble.dim))
        return TileOutputs(), Batch(torch.from_numpy(pixels.astype(np.float32)).to(engine.device))

    def forward(
        self, key: TileFeatures | TileOutputs | StoredValues, batch: Batch
    ) -> dict[str, torch.Tensor]:
        if isinstance(key, TileFeatures):
            return self.encoder.forward(key, batch)
        if isinstance(key, StoredValues):
            return {"map": batch.pixels.permute(0, 3, 1, 2)}
        features = batch.pixels.flatten(1).float()
        return {"outputs": torch.cat([member.of_tiles(features) for member in self.ensemble.members], dim=1)}

    @cached_property
    def encoder(self) -> TileEncoder:
        """The encoder of the bundle; its weights file contains only tensors."""
        if self._tiling is None or ENCODER not in self._bundle.files:
            raise ConfigError(
                "this bundle contains no encoder, so it cannot scan slides directly",
                subject=self._bundle.path,
                remedy="Pass stored features with --set features=DIR",
            )
        stored_weights = plain_weights(self._bundle.file(ENCODER))
        loaded_encoder = restore_encoder(str(self._encoding["name"]), stored_weights)
        tiling = Tiling(**self._tiling)
        if loaded_encoder.hash_at(tiling.input_px) != self._encoding["hash"]:
            raise BundleError(
                "the encoder in the bundle is not the one that computed its training features",
                subject=self._bundle.path,
                expected=str(self._encoding["hash"]),
                actual=loaded_encoder.hash_at(tiling.input_px),
            )
        return TileEncoder(loaded_encoder, tiling)

    def folder(self, options: ScanOptions) -> FeatureFolder | None:
        """The folder of features set for the scan; None if the scan computes the features."""
        path = str(options.settings.get("features") or "")
        if not path:
            return None
        if path not in self._folders:
            self._folders[path] = open_features(path)
        return self._folders[path]


class BagPredictor:
    """Scans slides, or features stored before, with a bundle of bag models."""

    def __init__(self, bundle: Bundle) -> None:
        config = dict(bundle.config)
        self._bundle = bundle
        try:
            self._encoding: Mapping[str, Any] = config.pop("encoding")
            self._tiling: Mapping[str, Any] | None = config.pop("tiling")
            localisation = config.pop("localisation")
        except KeyError as error:
            raise BundleError(
                "the config of the bundle is incomplete", subject=bundle.path, actual=repr(error)
            ) from error
        self.config = Config.from_dict(config)
        self.classes = self.config.classes
        tensors = bundle.weights()
        self.ensemble: Ensemble = members_of(self.config, int(self._encoding["dim"]), tensors)
        self.localisation: Localisation = localisation_of(localisation, tensors)
        self.model = BagModel(bundle, self._encoding, self._tiling, self.ensemble)

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        return slide_images(case, options, (self._tiling or {}).get("stains", "none"))

    def steps(self, case: OpenCase) -> Steps[Result]:
        folder = self.model.folder(case.options)
        if folder is None:
            fields = tile_fields(case, self.model.encoder.tiling)
            source = tiles_of_table((yield from fill_features(fields, self.ensemble.dim)))
        else:
            bag = bag_of(replace(case.case, mpp=_l0_mpp(case)), folder)
            source = stored_tiles(bag, self._encoding["hash"], self._encoding["name"], self.ensemble.dim)
        if len(source) == 0:
            notes = () if folder is None else (NO_TILE,)
            return Result({}, notes=notes, scored=False)
        if self.ensemble.in_pieces:
            scores = self._score_table((yield from self._fill_outputs(case, source)))
        else:
            scores = self.ensemble.score_bag(source.blocks())
        result = self._result(scores)
        if (no_map_reason := self._no_map(source)) is not None:
            return replace(result, notes=(no_map_reason, *result.notes))
        reader = yield from self._fill_map(case, source, self.localisation.values(scores.evidence))
        _, findings = map_findings(reader, self.classes[1:2], self.localisation.cut)
        return replace(result, findings=findings)

    def _fill_outputs(self, case: OpenCase, source: TileSource) -> Steps[TableReader]:
        """Compute the outputs of each member from the features of every tile."""
        slide = case.images["slide"]
        side = max(1, round(source.l0_side or 1))
        boxes = np.concatenate([source.l0_coords, np.full_like(source.l0_coords, side)], axis=1)
        count = len(boxes)
        sizes = np.ones((count, 2), np.int64)
        fields = Fields(("slide",), (slide.lattice(level=0),), np.zeros(count, np.int16), boxes, sizes=sizes)
        picture = FeaturePicture(source)
        return fill_table(
            TileOutputs(), "tiles", fields, chunk_rows=4096, batch=BATCH, sources={"slide": picture}
        )

    def _score_table(self, table: TableReader) -> BagScores:
        columns = table.read(["outputs", "state"])
        outputs = torch.from_numpy(columns["outputs"][columns["state"] == State.SCORED])
        width = outputs.shape[1] // len(self.ensemble.members)
        return self.ensemble.score_outputs(list(outputs.split(width, dim=1)))

    def _result(self, scores: BagScores) -> Result:
        metadata = {"tiles": int(scores.evidence.shape[1]), "members": case_spread(scores.logits)}
        agreement = self._bundle.metrics.get("agreement") or {}
        note = case_note(scores.logits, agreement.get("case_sd"))
        notes = () if note is None else (note,)
        return Result({self.classes[1]: scores.probability}, metadata=metadata, notes=notes, scored=True)

    def _no_map(self, source: TileSource) -> str | None:
        if self.localisation.refused is not None:
            return f"no map is drawn: {self.localisation.refused}"
        if source.l0_side is None:
            return "no map is drawn: the feature file does not state the size of its tiles"
        return None

    def _grid(self, case: OpenCase, source: TileSource) -> MapGrid:
        """A grid with one cell per tile, on the lattice of the tiles or else in whole level-0 pixels."""
        slide = case.images["slide"]
        if self._tiling is not None:
            side = int(self._tiling["tile_px"])
            return MapGrid(slide.lattice(mpp=self._tiling["mpp"], upsample=case.options.upsample), side, side)
        assert source.l0_side is not None
        side = max(1, round(source.l0_side))
        return MapGrid(slide.lattice(level=0), side, side)

    def _fill_map(self, case: OpenCase, source: TileSource, values: NDArray[np.float64]) -> Steps[MapReader]:
        grid = self._grid(case, source)
        side = source.l0_side or 1.0

        def cells(corners: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            x, y = ((corners + side / 2) / grid.l0_cell).T
            return np.clip(y.astype(np.int64), 0, grid.rows - 1), np.clip(
                x.astype(np.int64), 0, grid.columns - 1
            )

        layer = np.zeros((grid.rows, grid.columns), np.float32)
        has_tile = np.zeros(layer.shape, np.bool_)
        # Tiles of other tools may not form a grid. If several share a cell, the highest value is used.
        np.maximum.at(layer, cells(source.l0_coords), values.astype(np.float32))
        has_tile[cells(source.l0_coords)] = True
        failed = np.zeros(layer.shape, np.bool_)
        failed[cells(source.failed)] = True
        failed &= ~has_tile
        picture = ValuePicture(layer, failed, grid.stride)
        return fill_map(
            StoredValues(), "map", grid, self.classes[1:], has_tile | failed,
            pixel_size=ONE_PIXEL, batch=BATCH, sources={"slide": picture},
        )  # fmt: skip


def _l0_mpp(case: OpenCase) -> float | None:
    """µm/px of level 0, for feature files whose coordinates are in µm."""
    mpp = case.images["slide"].lattice(level=0).mpp
    return None if mpp is None else mpp.mean


def load(bundle: Bundle, *, trust: bool = False) -> BagPredictor:
    """Load a bundle as a predictor. The weights file contains only tensors, so `trust` has no effect."""
    return BagPredictor(bundle)
