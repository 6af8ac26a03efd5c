"""Extraction of features: encode the tiles of every slide and write one feature file per case.

Extraction computes no scores; its files are the training input of other methods. It runs in the scanner like
any predictor, so the scanner handles resuming, failed cases and the memory limit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.bundles import write_tensors
from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, LobuleError
from lobule.features import (
    FeatureManifest,
    TileFrame,
    TokenGrid,
    prepare_folder,
    read_token_file,
    write_coords,
    write_features,
    write_tokens,
)
from lobule.features.folder import ENCODER, MANIFEST, clear_folder, coords_path_of
from lobule.features.frame import Encoding, folder_name
from lobule.features.hdf5 import read_feature_file
from lobule.files import make_folder
from lobule.nets.encoders import Encoder
from lobule.results.folder import CaseFolder, open_results
from lobule.results.locks import lock_folder
from lobule.results.result import COMPLETE, UNSCORED, Result
from lobule.results.store import ResultsStore, results_at
from lobule.results.tables import Columns, TableReader
from lobule.scanning.contract import Fields, ImageSource, OpenCase, ScanOptions, Steps
from lobule.scanning.open_case import slide_images
from lobule.scanning.progress import Progress
from lobule.scanning.scan import Machine, ScanReport, scan
from lobule.scanning.tile_features import (
    COLUMN,
    SCALES,
    TOKENS,
    TileEncoder,
    TileEncoders,
    Tiling,
    TokenStorage,
    fill_features,
    tile_fields,
)
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
    tokens: TokenStorage = "none"
    """How the tokens of the patches of every tile are stored; "none" stores only features."""


@dataclass(frozen=True)
class FeatureOutput:
    """The folder that the features of one encoder are written to."""

    encoder: TileEncoder
    manifest: FeatureManifest
    root: Path

    @property
    def token_grid(self) -> TokenGrid | None:
        """The patches of a tile; None if no tokens are stored."""
        shape, storage = self.encoder.token_shape, self.encoder.tokens
        return None if shape is None or storage == "none" else TokenGrid(*shape, storage)

    @property
    def dim(self) -> int:
        return self.manifest.encoding.dim

    @property
    def token_bytes(self) -> int:
        return self.encoder.token_bytes

    def is_up_to_date(self, frame: TileFrame, source: str, fields: Fields) -> bool:
        """Whether complete files of the same tiles of the same slide exist already."""
        path = self.features_path(frame)
        if not path.exists():
            return False
        try:
            file = read_feature_file(path)
            if self.token_grid is not None:
                tokens = read_token_file(self.tokens_path(frame), self.token_grid)
                if (tokens.hash, tokens.count) != (file.hash, file.count):
                    return False
        except LobuleError:
            return False
        encoding = self.manifest.encoding
        if (file.source, file.hash, file.count) != (source, encoding.hash, len(fields)):
            return False
        # Another region of the slide, or another µm/px, can have the same number of tiles.
        boxes = (fields.l0_box(row) for row in range(len(fields)))
        corners = np.array([(box.x, box.y) for box in boxes], np.int64).reshape(-1, 2)
        return file.tile_l0 == frame.l0_tile and np.array_equal(file.l0_coords(), corners)

    def features_path(self, frame: TileFrame) -> Path:
        return self.manifest.paths_of(self.root, frame)[1]

    def tokens_path(self, frame: TileFrame) -> Path:
        return self.manifest.token_path(self.root, frame)

    def write(self, table: TableReader, frame: TileFrame, source: str) -> None:
        """Write the table as files, chunk by chunk, without the failed tiles."""
        manifest, corners = self.manifest, [np.empty((0, 2), np.int64)]
        coords_path, features_path = manifest.paths_of(self.root, frame)
        for path in (coords_path, features_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in features_path.parent.glob(f".{features_path.stem[:80]}.*.part.h5"):
            leftover.unlink(missing_ok=True)
        coords_dtype = "int32" if manifest.layout == "clam" else "int64"
        options: dict[str, Any] = {"dtype": manifest.dtype, "coords_dtype": coords_dtype}
        options["licence"] = manifest.weights.get("licence")
        with (
            self._append_tokens(frame, source) as append_tokens,
            write_features(features_path, frame, manifest.encoding, source=source, **options) as append,
        ):
            for chunk in table.iterate():
                scored = chunk["state"] == State.SCORED
                if not scored.any():
                    continue
                corners.append(np.stack([chunk["l0_x"][scored], chunk["l0_y"][scored]], axis=1))
                append(chunk[COLUMN + self.encoder.suffix][scored], corners[-1])
                append_tokens(chunk, scored, corners[-1])
        write_coords(coords_path, frame, np.concatenate(corners), coords_dtype="int64")

    @contextmanager
    def _append_tokens(self, frame: TileFrame, source: str) -> Iterator[Callable[..., None]]:
        """A function that appends the tokens of a chunk of the table, if tokens are stored."""
        if (grid := self.token_grid) is None:
            yield lambda chunk, scored, corners: None
            return
        path = self.tokens_path(frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = self.encoder.suffix
        with write_tokens(path, frame, self.manifest.encoding, grid, source=source) as append:

            def append_chunk(chunk: Columns, scored: NDArray[np.bool_], corners: NDArray[np.int64]) -> None:
                scales = chunk[SCALES + suffix][scored] if grid.storage == "int8" else None
                append(chunk[TOKENS + suffix][scored], scales, corners)

            yield append_chunk


class ExtractionPredictor:
    """A predictor that encodes tiles and writes a feature file for each case and encoder."""

    def __init__(
        self, model: TileEncoder | TileEncoders, outputs: Sequence[FeatureOutput], root: Path
    ) -> None:
        self.model, self.outputs, self.root = model, tuple(outputs), root

    @property
    def bundle(self) -> dict[str, Any]:
        """What identifies the encoders in the results."""
        hashes = [output.manifest.encoding.hash for output in self.outputs]
        return {"method": "features", "fingerprint": "+".join(hashes), "classes": []}

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        return slide_images(case, options, self.model.tiling.stains)

    def steps(self, case: OpenCase) -> Steps[Result]:
        tiling = self.model.tiling
        fields = tile_fields(case, tiling)
        frame = TileFrame.of(case.case.id, fields.lattices[0], tiling.tile_px, tiling.mpp)
        assert case.case.path is not None
        source = slide_fingerprint(case.case.path)
        if not all(output.is_up_to_date(frame, source, fields) for output in self.outputs):
            dim = sum(output.dim for output in self.outputs)
            token_bytes = sum(output.token_bytes for output in self.outputs)
            table = yield from fill_features(fields, dim, token_bytes)
            for output in self.outputs:
                output.write(table, frame, source)
        paths = [output.features_path(frame) for output in self.outputs]
        count = read_feature_file(paths[0]).count
        relative_paths = [str(path.relative_to(self.root)) for path in paths]
        metadata: dict[str, Any] = {"tiles": count}
        metadata["features"] = relative_paths[0] if len(paths) == 1 else relative_paths
        token_paths = [output.tokens_path(frame) for output in self.outputs if output.token_grid is not None]
        if token_paths:
            metadata["tokens"] = [str(path.relative_to(self.root)) for path in token_paths]
        return Result({}, metadata=metadata, scored=count > 0)


def extract(
    encoder: Encoder | Sequence[Encoder],
    cohort: Cohort,
    out: str | Path,
    extraction: Extraction,
    options: ScanOptions | None = None,
    machine: Machine | None = None,
    *,
    fresh: bool = False,
    retry_failed: bool = False,
    progress: Progress | None = None,
    store: ResultsStore | None = None,
    run: Callable[..., ScanReport] | None = None,
) -> ScanReport:
    """Extract the features of every case of a cohort; running it again continues an interrupted extraction.

    Args:
        encoder: The encoder. Several encoders share one pass over the slides; the features of each are
            written to a subfolder of `out` with its name.
        cohort: The slides, or regions of slides.
        out: The folder of features.
        extraction: Settings of the tiles and of the stored features. With several encoders, those with a
            fixed input size use it instead of `tiling.input_px`.
        options: Options of the scan, such as the tissue detection.
        machine: The device and the limits of this machine.
        fresh: Delete existing features in the folder first.
        retry_failed: Process cases and tiles again that failed before.
        progress: Receives the progress of the scan.
        store: The object store of the features, if `out` is its scratch folder (see `features_at`).
        run: Runs the scan instead of `lobule.scanning.scan.scan`, for example on several machines. It is
            called with the same arguments, except that the model is left out.

    Raises:
        ConfigError: The encoder does not accept tiles of this size.
        ResultsError: The folder contains features of another encoder or of other tiles.
    """
    encoders = [encoder] if isinstance(encoder, Encoder) else list(encoder)
    root = Path(out)
    for tile_encoder in _tile_encoders(encoders, extraction):
        tile_encoder.bytes_of_tile()  # an invalid tile size is refused before the folder is created
    if fresh:
        with lock_folder(make_folder(root) / SCAN):
            for folder in _folders(encoders, root):
                clear_folder(folder)
    predictor = open_extraction(encoders, extraction, root)
    if store is None:
        clear_cases_without_files(root)
    else:
        for output in predictor.outputs:
            store.publish_file(output.root / MANIFEST)
            store.publish_missing(output.root / ENCODER)
    arguments: dict[str, Any] = {
        "fresh": fresh,
        "retry_failed": retry_failed,
        "progress": progress,
        "store": store,
    }
    try:
        if run is not None:
            return run(predictor.bundle, cohort, root / SCAN, options, machine, **arguments)
        return scan(predictor, predictor.bundle, cohort, root / SCAN, options, machine, **arguments)
    finally:
        delete_tables(root)


def open_extraction(encoders: Sequence[Encoder], extraction: Extraction, root: Path) -> ExtractionPredictor:
    """Create or reopen the folders of the encoders, and return the predictor that fills them.

    Raises:
        ConfigError: An encoder does not accept tiles of this size.
        ResultsError: A folder contains features of another encoder or of other tiles.
    """
    tile_encoders, folders = _tile_encoders(encoders, extraction), _folders(encoders, root)
    outputs = [_output(one, extraction, folder) for one, folder in zip(tile_encoders, folders, strict=True)]
    model = tile_encoders[0] if len(tile_encoders) == 1 else TileEncoders(tile_encoders)
    return ExtractionPredictor(model, outputs, make_folder(root))


def _folders(encoders: Sequence[Encoder], root: Path) -> list[Path]:
    return [root] if len(encoders) == 1 else [root / folder_name(one.name) for one in encoders]


@contextmanager
def features_at(out: str | Path, fresh: bool = False) -> Iterator[tuple[Path, ResultsStore | None]]:
    """Yield the folder on this machine that features are written to, and its store if `out` is a URL."""
    with results_at(out, SCAN, fresh, further_files=feature_files, omitted=("tables",)) as opened:
        yield opened


def feature_files(folder: CaseFolder) -> list[Path]:
    """Return the files of the features of a finished case: features, their positions, and tokens."""
    result, root = folder.result or {}, folder.path.parents[2]
    features = result.get("features", [])
    paths = [root / str(path) for path in (features if isinstance(features, list) else [features])]
    tokens = [root / str(path) for path in result.get("tokens", [])]
    return [*paths, *(coords_path_of(path) for path in paths), *tokens]


def _tile_encoders(encoders: Sequence[Encoder], extraction: Extraction) -> list[TileEncoder]:
    if len({one.name for one in encoders}) < len(encoders):
        raise ConfigError("an encoder is named twice", actual=", ".join(one.name for one in encoders))
    tiling, tile_encoders = extraction.tiling, []
    for number, one in enumerate(encoders):
        input_px = one.input_px or tiling.input_px
        one_tiling = tiling if len(encoders) == 1 else replace(tiling, input_px=input_px)
        suffix = f"_{number}" if number else ""
        tile_encoders.append(TileEncoder(one, one_tiling, extraction.tokens, suffix))
    return tile_encoders


def _output(tile_encoder: TileEncoder, extraction: Extraction, folder: Path) -> FeatureOutput:
    """Create or reopen the folder of an encoder, and store its weights there."""
    encoder, tiling = tile_encoder.encoder, tile_encoder.tiling
    manifest = FeatureManifest(
        Encoding(encoder.name, encoder.hash_at(tiling.input_px), encoder.dim),
        tiling.mpp,
        tiling.tile_px,
        tiling.input_px,
        tiling.tissue_share,
        extraction.dtype,
        extraction.layout,  # type: ignore[arg-type]  # checked by the manifest
        encoder.scaling.as_dict(),
        tiling.stains,
        {} if encoder.preparation is None else encoder.preparation.as_dict(),
        encoder.provenance,
        extraction.tokens,
    )
    root = prepare_folder(folder, manifest)
    if extraction.keep_encoder and not (root / ENCODER).exists():
        write_tensors(root / ENCODER, encoder.weights)
    return FeatureOutput(tile_encoder, manifest, root)


def clear_cases_without_files(root: Path) -> None:
    """Delete the results of complete cases without a feature file, so that they are extracted again."""
    for case in _complete_cases(root):
        result = case.result or {}
        features = result.get("features", "")
        paths = [*(features if isinstance(features, list) else [features]), *result.get("tokens", ())]
        if not all((root / str(path)).is_file() for path in paths):
            case.clear()


def delete_tables(root: Path) -> None:
    """Delete the tables of complete cases, because the feature files contain the same data."""
    for case in _complete_cases(root):
        shutil.rmtree(case.path / "tables", ignore_errors=True)


def _complete_cases(root: Path) -> list[CaseFolder]:
    if not (root / SCAN / "scan.json").exists():
        return []
    return [case for case in open_results(root / SCAN).cases() if case.status in (COMPLETE, UNSCORED)]
