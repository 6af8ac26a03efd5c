"""Extraction of features: encode the tiles of every slide and write one feature file per case.

Extraction computes no scores; its files are the training input of other methods. It runs in the scanner like
any predictor, so the scanner handles resuming, failed cases and the memory limit.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lobule.bundles import write_tensors
from lobule.cohort import Case, Cohort
from lobule.errors import LobuleError
from lobule.features import FeatureManifest, TileFrame, prepare_folder, write_coords, write_features
from lobule.features.folder import ENCODER, clear_folder
from lobule.features.frame import Encoding
from lobule.features.hdf5 import read_feature_file
from lobule.files import make_folder
from lobule.nets.encoders import Encoder
from lobule.results.folder import CaseFolder, open_results
from lobule.results.locks import lock_folder
from lobule.results.result import COMPLETE, UNSCORED, Result
from lobule.results.tables import TableReader
from lobule.scanning.cases import Progress
from lobule.scanning.contract import Fields, ImageSource, OpenCase, ScanOptions, Steps
from lobule.scanning.open_case import slide_images
from lobule.scanning.scan import Machine, ScanReport, scan
from lobule.scanning.tile_features import COLUMN, TileEncoder, Tiling, fill_features, tile_fields
from lobule.slides.identity import slide_fingerprint
from lobule.stitch import State

SCAN = "scan"
"""The results folder of the scan, inside the folder of features."""


@dataclass(frozen=True)
class Extraction:
    """Settings of the tiles and of the stored features."""

    tiling: Tiling
    dtype: str = "float16"
    layout: str = "trident"
    keep_encoder: bool = True
    """Store the encoder's weights with the features, so that bundles trained on them can scan slides."""


class ExtractionPredictor:
    """A predictor that encodes tiles and writes a feature file for each case."""

    def __init__(self, model: TileEncoder, manifest: FeatureManifest, root: Path) -> None:
        self.model, self.manifest, self.root = model, manifest, root

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        return slide_images(case, options, self.model.tiling.stains)

    def steps(self, case: OpenCase) -> Steps[Result]:
        tiling = self.model.tiling
        fields = tile_fields(case, tiling)
        frame = TileFrame.of(case.case.id, fields.lattices[0], tiling.tile_px, tiling.mpp)
        assert case.case.path is not None
        source = slide_fingerprint(case.case.path)
        coords_path, features_path = self.manifest.paths_of(self.root, frame)
        if not self._is_up_to_date(features_path, source, fields, frame):
            table = yield from fill_features(fields, self.manifest.encoding.dim)
            self._export(table, frame, source, coords_path, features_path)
        feature_file = read_feature_file(features_path)
        metadata = {"tiles": feature_file.count, "features": str(features_path.relative_to(self.root))}
        return Result({}, metadata=metadata, scored=feature_file.count > 0)

    def _is_up_to_date(self, path: Path, source: str, fields: Fields, frame: TileFrame) -> bool:
        """Whether a complete feature file of the same tiles of the same slide exists already."""
        if not path.exists():
            return False
        try:
            file = read_feature_file(path)
        except LobuleError:
            return False
        encoding = self.manifest.encoding
        if (file.source, file.hash, file.count) != (source, encoding.hash, len(fields)):
            return False
        # Another region of the slide, or another µm/px, can have the same number of tiles.
        boxes = (fields.l0_box(row) for row in range(len(fields)))
        corners = np.array([(box.x, box.y) for box in boxes], np.int64).reshape(-1, 2)
        return file.tile_l0 == frame.l0_tile and np.array_equal(file.l0_coords(), corners)

    def _export(
        self, table: TableReader, frame: TileFrame, source: str, coords_path: Path, features_path: Path
    ) -> None:
        """Write the table as a feature file, chunk by chunk, without the failed tiles."""
        for path in (coords_path, features_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in features_path.parent.glob(f".{features_path.stem[:80]}.*.part.h5"):
            leftover.unlink(missing_ok=True)
        manifest, corners = self.manifest, [np.empty((0, 2), np.int64)]
        coords_dtype = "int32" if manifest.layout == "clam" else "int64"
        options: dict[str, Any] = {"dtype": manifest.dtype, "coords_dtype": coords_dtype}
        with write_features(features_path, frame, manifest.encoding, source=source, **options) as append:
            for chunk in table.iterate():
                scored = chunk["state"] == State.SCORED
                if not scored.any():
                    continue
                corners.append(np.stack([chunk["l0_x"][scored], chunk["l0_y"][scored]], axis=1))
                append(chunk[COLUMN][scored], corners[-1])
        write_coords(coords_path, frame, np.concatenate(corners), coords_dtype="int64")


def extract(
    encoder: Encoder,
    cohort: Cohort,
    out: str | Path,
    extraction: Extraction,
    options: ScanOptions | None = None,
    machine: Machine | None = None,
    *,
    fresh: bool = False,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> ScanReport:
    """Extract the features of every case of a cohort; running it again continues an interrupted extraction.

    Args:
        encoder: The encoder.
        cohort: The slides, or regions of slides.
        out: The folder of features.
        extraction: Settings of the tiles and of the stored features.
        options: Options of the scan, such as the tissue detection.
        machine: The device and the limits of this machine.
        fresh: Delete existing features in the folder first.
        retry_failed: Process cases and tiles again that failed before.
        progress: Receives the progress of the scan.

    Raises:
        ConfigError: The encoder does not accept tiles of this size.
        ResultsError: The folder contains features of another encoder or of other tiles.
    """
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
        tiling.stains,
    )
    tile_encoder = TileEncoder(encoder, tiling)
    tile_encoder.bytes_of_tile()  # an invalid tile size is refused before the folder is created
    if fresh:
        with lock_folder(make_folder(out) / SCAN):
            clear_folder(out)
    root = prepare_folder(out, manifest)
    if extraction.keep_encoder and not (root / ENCODER).exists():
        write_tensors(root / ENCODER, encoder.weights)
    clear_cases_without_files(root)
    predictor = ExtractionPredictor(tile_encoder, manifest, root)
    bundle: dict[str, Any] = {"method": "features", "fingerprint": encoding.hash, "classes": []}
    try:
        return scan(
            predictor, bundle, cohort, root / SCAN, options, machine,
            fresh=fresh, retry_failed=retry_failed, progress=progress,
        )  # fmt: skip
    finally:
        delete_tables(root)


def clear_cases_without_files(root: Path) -> None:
    """Delete the results of complete cases without a feature file, so that they are extracted again."""
    for case in _complete_cases(root):
        result = case.result or {}
        if not (root / str(result.get("features", ""))).is_file():
            case.clear()


def delete_tables(root: Path) -> None:
    """Delete the tables of complete cases, because the feature files contain the same data."""
    for case in _complete_cases(root):
        shutil.rmtree(case.path / "tables", ignore_errors=True)


def _complete_cases(root: Path) -> list[CaseFolder]:
    if not (root / SCAN / "scan.json").exists():
        return []
    return [case for case in open_results(root / SCAN).cases() if case.status in (COMPLETE, UNSCORED)]
