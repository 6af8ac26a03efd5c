"""The predictor of bag models for the scanner: tile features, tile scores, a slide score and a map."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.bundles import Bundle, plain_weights
from lobule.cohort import Case
from lobule.errors import BundleError, ConfigError
from lobule.features import FeatureFolder, open_features
from lobule.findings import components
from lobule.geometry import Lattice
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
from lobule.nets.encoders import encoder
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
from lobule.scanning.tile_features import PASS, TileEncoder, Tiling, features_pass, refuse_all_failed
from lobule.slides.slide import open_slide
from lobule.stitch import State
from lobule.units import Mpp

TILES, MAP = "tiles", "map"
NO_TILE = "Nothing was scored: the feature file contains no tile of this case, so it had no tissue."
BATCH = 256
"""Number of tiles that the members score at once, and of map cells that are written at once."""


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
        self._folders: dict[str, FeatureFolder] = {}

    # -- the interface of the scanner ---------------------------------------------------------------------

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        if case.path is None:
            raise ConfigError("bag models scan slides", subject=case.id, actual=f"a case of kind {case.kind}")
        return {"slide": open_slide(case.path, mpp=case.mpp or options.mpp)}

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        if self._folder(options) is not None:
            return replace(engine, batch=BATCH)
        return self._encoder.choose_batch(engine, room)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        for member in self.ensemble.members:
            member.to(engine.device)
        if self._folder(options) is None:
            self._encoder.move_to_device(engine)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[str, Batch]:
        if self._folder(options) is None:
            return self._encoder.sample_batch(engine)
        pixels = np.random.default_rng(0).normal(size=(engine.batch, 1, 1, self.ensemble.dim))
        return TILES, Batch(torch.from_numpy(pixels.astype(np.float32)).to(engine.device), {}, {})

    def steps(self, case: OpenCase) -> Generator[Pass, Store, Result]:
        folder = self._folder(case.options)
        if folder is None:
            table = yield features_pass(case, self._encoder.tiling, self.ensemble.dim)
            assert isinstance(table, TableReader)
            refuse_all_failed(table)
            source = tiles_of_table(table)
        else:
            bag = bag_of(replace(case.case, mpp=_l0_mpp(case)), folder)
            source = stored_tiles(bag, self._encoding["hash"], self._encoding["name"], self.ensemble.dim)
        if len(source) == 0:
            notes = () if folder is None else (NO_TILE,)
            return Result({}, notes=notes, scored=False)
        if self.ensemble.in_pieces:
            outputs_table = yield self._tiles_pass(case, source)
            assert isinstance(outputs_table, TableReader)
            scores = self._score_table(outputs_table)
        else:
            scores = self.ensemble.score_bag(source.blocks())
        result = self._result(scores)
        if (no_map_reason := self._no_map(source)) is not None:
            return replace(result, notes=(no_map_reason, *result.notes))
        map_reader = yield self._map_pass(case, source, self.localisation.values(scores.evidence))
        assert isinstance(map_reader, MapReader)
        return replace(result, findings=self._findings(map_reader))

    def forward(self, name: str, batch: Batch) -> dict[str, torch.Tensor]:
        if name == PASS:
            return self._encoder.forward(batch)
        if name == MAP:
            return {"map": batch.pixels.permute(0, 3, 1, 2)}
        features = batch.pixels.flatten(1).float()
        return {"outputs": torch.cat([member.of_tiles(features) for member in self.ensemble.members], dim=1)}

    # -- implementation -----------------------------------------------------------------------------------

    @cached_property
    def _encoder(self) -> TileEncoder:
        """The encoder of the bundle; its weights file contains only tensors."""
        if self._tiling is None or ENCODER not in self._bundle.files:
            raise ConfigError(
                "this bundle contains no encoder, so it cannot scan slides directly",
                subject=self._bundle.path,
                remedy="Pass stored features with --set features=DIR",
            )
        loaded_encoder = encoder(str(self._encoding["name"]), plain_weights(self._bundle.file(ENCODER)))
        tiling = Tiling(**self._tiling)
        if loaded_encoder.hash_at(tiling.input_px) != self._encoding["hash"]:
            raise BundleError(
                "the encoder in the bundle is not the one that computed its training features",
                subject=self._bundle.path,
                expected=str(self._encoding["hash"]),
                actual=loaded_encoder.hash_at(tiling.input_px),
            )
        return TileEncoder(loaded_encoder, tiling)

    def _folder(self, options: ScanOptions) -> FeatureFolder | None:
        """The folder of features set for the scan; None if the scan computes the features."""
        path = str(options.settings.get("features") or "")
        if not path:
            return None
        if path not in self._folders:
            self._folders[path] = open_features(path)
        return self._folders[path]

    def _tiles_pass(self, case: OpenCase, source: TileSource) -> Pass:
        """The pass that computes the outputs of each member from the features of every tile."""
        slide = case.images["slide"]
        side = max(1, round(source.l0_side or 1))
        boxes = np.concatenate([source.l0_coords, np.full_like(source.l0_coords, side)], axis=1)
        count = len(boxes)
        fields = Fields(
            ("slide",),
            (slide.lattice(level=0),),
            np.zeros(count, np.int16),
            boxes,
            sizes=np.ones((count, 2), np.int64),
        )
        picture = FeaturePicture(slide.size, source)
        return Pass(TILES, fields, TableSpec(4096), batch=BATCH, sources={"slide": picture})

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
        lattice: Lattice = slide.lattice(level=0)
        assert source.l0_side is not None
        side = max(1, round(source.l0_side))
        return MapGrid(lattice, side, side)

    def _map_pass(self, case: OpenCase, source: TileSource, values: NDArray[np.float64]) -> Pass:
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
        picture = ValuePicture(case.images["slide"].size, layer, failed, grid.stride)
        covered = has_tile | failed
        values_pass = map_pass(
            MAP, grid, self.classes[1:], covered, ~covered, batch=BATCH, sources={"slide": picture}
        )
        sizes = np.ones((len(values_pass.fields), 2), np.int64)
        return replace(values_pass, fields=replace(values_pass.fields, sizes=sizes))

    def _findings(self, map_reader: MapReader) -> tuple[Any, ...]:
        scores, states = map_reader.read()
        layer = np.where(states == State.SCORED, scores[0], np.float32(0))
        l0, um = map_reader.info.l0_stride, map_reader.info.um_stride
        mpp = None if um is None else Mpp(um[0] / l0[0], um[1] / l0[1])
        findings = components(layer, l0, mpp=mpp, threshold=self.localisation.cut, label=self.classes[1])
        return tuple(sorted(findings, key=lambda finding: -finding.score))


def _l0_mpp(case: OpenCase) -> float | None:
    """µm/px of level 0, for feature files whose coordinates are in µm."""
    mpp = case.images["slide"].lattice(level=0).mpp
    return None if mpp is None else mpp.mean


def load(bundle: Bundle, *, trust: bool = False) -> BagPredictor:
    """Load a bundle as a predictor. The weights file contains only tensors, so `trust` has no effect."""
    return BagPredictor(bundle)
