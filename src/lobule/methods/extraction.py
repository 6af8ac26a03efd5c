"""Extraction of features: tiles of every slide through an encoder, into one feature file a case.

Not a method that learns: it gives no score, and what it leaves is what methods learn from. It runs through
the scanner as any predictor does, so resuming, failures and the memory ceiling are the scanner's.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, LobuleError
from lobule.features import FeatureManifest, TileFrame, begin_folder, write_coords, write_features
from lobule.features.folder import ENCODER
from lobule.features.frame import Encoding
from lobule.features.hdf5 import read_feature_file
from lobule.files import write_atomic
from lobule.nets.encoders import Encoder
from lobule.results.folder import CaseFolder, open_results
from lobule.results.result import COMPLETE, UNSCORED, Result
from lobule.results.tables import TableReader
from lobule.scanning.cases import Progress
from lobule.scanning.contract import (
    Batch,
    EngineSettings,
    Fields,
    ImageSource,
    OpenCase,
    Pass,
    ScanOptions,
    Store,
)
from lobule.scanning.scan import Machine, ScanReport, scan
from lobule.scanning.tile_features import COLUMN, TileEncoder, Tiling, features_pass, refuse_all_failed
from lobule.slides.identity import slide_fingerprint
from lobule.slides.slide import open_slide
from lobule.stitch import State

SCAN = "scan"
"""The results folder of the extraction, inside the folder of features."""


@dataclass(frozen=True)
class Extraction:
    """What is extracted, and how it is stored."""

    tiling: Tiling
    dtype: str = "float16"
    layout: str = "trident"
    keep_encoder: bool = True
    """Keep the encoder's weights with the features, so that bundles trained on them can scan slides."""


class ExtractionPredictor:
    """An encoder as the scanner runs it; each case ends as a feature file."""

    classes: tuple[str, ...] = ()

    def __init__(self, encoder: TileEncoder, manifest: FeatureManifest, root: Path) -> None:
        self._encoder, self.manifest, self.root = encoder, manifest, root

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        if case.path is None:
            raise ConfigError("features are made of slides", subject=case.id, actual=f"an {case.kind}")
        return {"slide": open_slide(case.path, mpp=case.mpp or options.mpp)}

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        return self._encoder.choose_batch(engine, room)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._encoder.move_to_device(engine)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[str, Batch]:
        return self._encoder.sample_batch(engine)

    def steps(self, case: OpenCase) -> Generator[Pass, Store, Result]:
        tiling = self._encoder.tiling
        pass_ = features_pass(case, tiling, self.manifest.encoding.dim)
        lattice = pass_.fields.lattices[0]
        frame = TileFrame.of(case.case.id, lattice, tiling.tile_px, tiling.mpp)
        assert case.case.path is not None
        source = slide_fingerprint(case.case.path)
        coords_path, features_path = self.manifest.paths_of(self.root, frame)
        if not self._stands(features_path, source, pass_.fields, frame):
            table = yield pass_
            assert isinstance(table, TableReader)
            refuse_all_failed(table)
            self._export(table, frame, source, coords_path, features_path)
        stored = read_feature_file(features_path)
        facts = {"tiles": stored.count, "features": str(features_path.relative_to(self.root))}
        return Result({}, metadata=facts, scored=stored.count > 0)

    def forward(self, name: str, batch: Batch) -> dict[str, torch.Tensor]:
        return self._encoder.forward(batch)

    def _stands(self, path: Path, source: str, fields: Fields, frame: TileFrame) -> bool:
        """Whether the file is there already, whole, of these very tiles of this very slide."""
        if not path.exists():
            return False
        try:
            found = read_feature_file(path)
        except LobuleError:
            return False
        wanted = self.manifest.encoding
        if (found.source, found.hash, found.count) != (source, wanted.hash, len(fields)):
            return False
        # another region of the slide, or another µm/px said of it, may have as many tiles
        boxes = (fields.l0_box(row) for row in range(len(fields)))
        corners = np.array([(box.x, box.y) for box in boxes], np.int64).reshape(-1, 2)
        return found.tile_l0 == frame.l0_tile and np.array_equal(found.l0_coords(), corners)

    def _export(
        self, table: TableReader, frame: TileFrame, source: str, coords_path: Path, features_path: Path
    ) -> None:
        """The table as a feature file, part by part; tiles that failed are left out."""
        for path in (coords_path, features_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in features_path.parent.glob(f".{features_path.stem[:80]}.*.part.h5"):
            leftover.unlink(missing_ok=True)
        coords_dtype = "int32" if self.manifest.layout == "clam" else "int64"
        corners = [np.empty((0, 2), np.int64)]
        with write_features(
            features_path,
            frame,
            self.manifest.encoding,
            source=source,
            dtype=self.manifest.dtype,
            coords_dtype=coords_dtype,
        ) as append:
            for part in table.iterate():
                scored = part["state"] == State.SCORED
                if not scored.any():
                    continue
                corners.append(np.stack([part["l0_x"][scored], part["l0_y"][scored]], axis=1))
                append(part[COLUMN][scored], corners[-1])
        write_coords(coords_path, frame, np.concatenate(corners), coords_dtype="int64")


def extract(
    encoder: Encoder,
    cohort: Cohort,
    out: str | Path,
    extraction: Extraction,
    options: ScanOptions | None = None,
    machine: Machine | None = None,
    *,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> ScanReport:
    """Features of every case of a cohort; run again, it goes on where it stopped."""
    tiling = extraction.tiling
    encoding = Encoding(encoder.name, encoder.hash_at(tiling.input_px), encoder.dim)
    manifest = FeatureManifest(
        encoding,
        tiling.mpp,
        tiling.tile_px,
        tiling.input_px,
        tiling.tissue_share,
        extraction.dtype,
        extraction.layout,  # type: ignore[arg-type]  # checked by the manifest
        encoder.scaling.as_dict(),
    )
    placed_encoder = TileEncoder(encoder, tiling)
    placed_encoder.bytes_of_tile()  # a folder that says tiles are of a size that cannot be is of no use
    root = begin_folder(out, manifest)
    if extraction.keep_encoder and not (root / ENCODER).exists():
        keep_encoder(encoder, root / ENCODER)
    forget_missing(root)
    predictor = ExtractionPredictor(placed_encoder, manifest, root)
    facts: dict[str, Any] = {"method": "features", "fingerprint": encoding.hash, "classes": []}
    try:
        return scan(
            predictor,
            facts,
            cohort,
            root / SCAN,
            options,
            machine,
            retry_failed=retry_failed,
            progress=progress,
        )
    finally:
        drop_tables(root)


def keep_encoder(encoder: Encoder, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in encoder.weights.items()}
    with write_atomic(path) as part:
        save_file(tensors, part)


def forget_missing(root: Path) -> None:
    """Forget cases that are said to be complete and whose feature file is gone: they are made again."""
    for case in _complete(root):
        facts = case.result or {}
        if not (root / str(facts.get("features", ""))).is_file():
            case.clear()


def drop_tables(root: Path) -> None:
    """Forget the tables of complete cases: what was in them is in the feature files."""
    for case in _complete(root):
        shutil.rmtree(case.path / "tables", ignore_errors=True)


def _complete(root: Path) -> list[CaseFolder]:
    if not (root / SCAN / "scan.json").exists():
        return []
    return [case for case in open_results(root / SCAN).cases() if case.status in (COMPLETE, UNSCORED)]
