"""A folder of feature files: its manifest, the file of each case, and the check that one encoder made all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from lobule.cohort import Case
from lobule.color import Normalisation
from lobule.errors import ConfigError, DamagedFile, NotReadable, ResultsError
from lobule.features.frame import Encoding, TileFrame, encoding_of
from lobule.features.hdf5 import FeatureFile, read_feature_file
from lobule.features.npy import read_challenge_file
from lobule.features.tokens import TokenFile, read_token_file
from lobule.files import make_folder, read_json, write_json
from lobule.results.result import RESEARCH_USE
from lobule.results.store_copies import local_results

MANIFEST = "features.json"
ENCODER = "encoder.safetensors"
FORMAT = "lobule-features/1"

Layout = Literal["trident", "clam"]
Tokens = Literal["none", "float16", "int8"]
UNSTATED: dict[str, Any] = {"stains": "none", "tokens": "none", "preparation": {}, "weights": {}}
"""Settings that a manifest states only if they differ from these values."""
NOT_COMPARED = ("weights",)
"""Settings that may differ when a folder is continued, since the hash of the encoder covers the tensors."""


@dataclass(frozen=True)
class FeatureManifest:
    """The encoder and the settings with which all files of a folder were extracted."""

    encoding: Encoding
    mpp: float
    tile_px: int
    input_px: int
    tissue_share: float
    dtype: str = "float16"
    layout: Layout = "trident"
    scaling: Mapping[str, Any] = field(default_factory=dict)
    stains: Normalisation = "none"
    """How the stains of the slides were normalised; a manifest that does not state it means "none"."""
    preparation: Mapping[str, Any] = field(default_factory=dict)
    """How tiles are resized and cut for the encoder; empty if they are used as they are."""
    weights: Mapping[str, Any] = field(default_factory=dict)
    """Licence, file and hash of published weights; empty for other encoders."""
    tokens: Tokens = "none"
    """How the tokens of patches are stored."""

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ConfigError(f"unknown layout '{self.layout}'", expected=", ".join(get_args(Layout)))
        if self.layout == "clam" and self.tokens != "none":
            raise ConfigError("the layout clam stores no tokens", remedy="Use --layout trident")
        if self.layout == "clam" and self.dtype != "float32":
            raise ConfigError("the layout clam stores float32 features only", remedy="Use --dtype float32")

    def to_dict(self) -> dict[str, Any]:
        content = asdict(self)
        return {name: value for name, value in content.items() if UNSTATED.get(name) != value}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> FeatureManifest:
        try:
            values = {name: {**UNSTATED, **stored}[name] for name in cls.__dataclass_fields__}
            return cls(**{**values, "encoding": encoding_of(stored["encoding"])})
        except (KeyError, TypeError) as error:
            raise ConfigError("the content is not a manifest of features", actual=repr(error)) from error

    def paths_of(self, root: Path, frame: TileFrame) -> tuple[Path, Path]:
        """The paths of the coordinates file and the feature file of a case."""
        name = quote(frame.name, safe=" ")
        if self.layout == "clam":
            return root / "patches" / f"{name}.h5", root / "h5_files" / f"{name}.h5"
        base = root / frame.folder_name
        features = base / f"features_{self.encoding.folder_name}" / f"{name}.h5"
        return base / "patches" / f"{name}_patches.h5", features

    def token_path(self, root: Path, frame: TileFrame) -> Path:
        """The path of the file of tokens of a case."""
        folder = f"tokens_{self.encoding.folder_name}"
        return root / frame.folder_name / folder / f"{quote(frame.name, safe=' ')}.h5"


def coords_path_of(features_path: Path) -> Path:
    """Return the path of the coordinates file that belongs to a feature file, in both layouts."""
    patches = features_path.parent.parent / "patches"
    is_clam = features_path.parent.name == "h5_files"
    return patches / (features_path.name if is_clam else f"{features_path.stem}_patches.h5")


def prepare_folder(path: str | Path, manifest: FeatureManifest) -> Path:
    """Create or reopen a folder of features.

    Raises:
        ResultsError: The folder contains features of another encoder or of other tiles.
    """
    root = make_folder(path)
    manifest_path = root / MANIFEST
    content = {"format": FORMAT, "research_use": RESEARCH_USE, **manifest.to_dict()}
    if not manifest_path.exists():
        write_json(manifest_path, content)
        return root
    ignored = dict.fromkeys(NOT_COMPARED)
    stored, requested = (UNSTATED | one | ignored for one in (read_json(manifest_path), content))
    if stored != requested:
        # The hash of the encoding depends on the input size too. The encoding is compared last, so that the
        # message names the simplest difference.
        keys = sorted(requested, key=lambda name: name == "encoding")
        key = next(key for key in keys if stored.get(key) != requested[key])
        raise ResultsError(
            f"this folder contains features of another {key}",
            subject=root,
            expected=_setting_text(stored.get(key)),
            actual=_setting_text(requested[key]),
            remedy="Write to another folder, because features of two kinds must not be mixed",
        )
    return root


def _setting_text(value: Any) -> str:
    """A setting of a manifest for messages; an encoding with the beginning of the hash of its weights."""
    if isinstance(value, Mapping) and set(value) == {"name", "hash", "dim"}:
        return f"{value['name']} with the weights {str(value['hash'])[:23]}, {value['dim']} numbers per tile"
    return str(value)


def clear_folder(path: str | Path) -> None:
    """Delete the features in a folder that `lobule features` has written, and nothing else."""
    root = Path(path)
    if not (root / MANIFEST).exists():
        return
    if (root / "h5_files").exists():  # the layout of CLAM, whose positions are in another folder
        shutil.rmtree(root / "patches", ignore_errors=True)
    for folder in {root / path.relative_to(root).parts[0] for path in _feature_folders(root)}:
        shutil.rmtree(folder, ignore_errors=True)
    for name in (ENCODER, MANIFEST):
        (root / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class FeatureFolder:
    """Feature files of many cases, written by Lobule or by another tool."""

    path: Path
    manifest: FeatureManifest | None
    """None if another tool wrote the folder."""

    @property
    def encoder_weights(self) -> Path | None:
        """The file with the encoder's weights; None if it was not stored with the features."""
        path = self.path / ENCODER
        return path if path.is_file() else None

    def find(self, case: Case) -> FeatureFile:
        """Find the feature file of a case by the case name or by the file name of its slide.

        Raises:
            DamagedFile: The extraction of this case was interrupted, or its file is damaged.
            NotReadable: There is no feature file for this case.
            ConfigError: The file comes from another encoder than the folder.
        """
        stems = [] if case.path is None else [Path(case.path).stem]
        names = dict.fromkeys([quote(case.id, safe=" "), case.id, *stems])
        for name in names:
            if (feature_path := self._files.get(name)) is not None:
                is_table = feature_path.suffix == ".npy"
                file = read_challenge_file(feature_path) if is_table else read_feature_file(feature_path)
                return self._refuse_other_encoder(file)
        unfinished = [path for name in names for path in self.path.rglob(f".{escape(name[:80])}.*.part.h5")]
        if unfinished:
            raise DamagedFile(
                "the feature file is half-written: the extraction was stopped",
                subject=unfinished[0],
                remedy="Run the same `lobule features` command again to complete it",
            )
        raise NotReadable(
            f"there are no features of the case '{case.id}'",
            subject=self.path,
            expected=f"a file {next(iter(names))}.h5",
            remedy="Extract them with `lobule features`",
        )

    def find_tokens(self, case: Case) -> TokenFile:
        """Find the file with the tokens of a case, next to its feature file.

        Raises:
            NotReadable: The folder has no tokens of this case.
            ConfigError: The tokens come from another encoder than the features.
        """
        features = self.find(case)
        folder = features.path.parent
        path = folder.parent / folder.name.replace("features_", "tokens_", 1) / features.path.name
        if not path.is_file():
            raise NotReadable(
                f"there are no tokens of the case '{case.id}'",
                subject=path,
                remedy="Extract them with `lobule features --tokens float16` to another folder",
            )
        tokens = read_token_file(path)
        if (tokens.hash, tokens.count) != (features.hash, features.count):
            raise ConfigError(
                "the tokens do not belong to the features",
                subject=path,
                expected=f"{features.count} tiles of {features.encoder}, {(features.hash or '')[:23]}",
                actual=f"{tokens.count} tiles of {tokens.encoder}, {tokens.hash[:23]}",
                remedy="Extract both again",
            )
        return tokens

    def is_slide_file(self, case: Case, file: FeatureFile) -> bool:
        """Whether the feature file of a case is named after its slide, and not after the case itself."""
        return file.path.stem not in (quote(case.id, safe=" "), case.id)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Feature files by file name without suffix."""
        folders = _feature_folders(self.path)
        if len(folders) > 1:
            raise ConfigError(
                "this folder contains features of several kinds",
                subject=self.path,
                actual=", ".join(str(folder.relative_to(self.path)) for folder in folders),
                remedy="Pass one of these subfolders instead",
            )
        folder = (folders or [self.path])[0]
        paths = sorted(folder.glob("*.h5")) or sorted(folder.glob("*.npy"))
        return {path.stem: path for path in paths if not path.name.startswith(".")}

    def _refuse_other_encoder(self, file: FeatureFile) -> FeatureFile:
        encoding = None if self.manifest is None else self.manifest.encoding
        if encoding is not None and (file.hash, file.dim) != (encoding.hash, encoding.dim):
            raise ConfigError(
                "the features come from another backbone",
                subject=file.path,
                expected=f"{encoding.name}, {encoding.dim} numbers, {encoding.hash[:23]}",
                actual=f"{file.encoder}, {file.dim} numbers, {(file.hash or 'unknown weights')[:23]}",
                remedy="Extract them again with the backbone of this folder",
            )
        return file


def open_features(path: str | Path) -> FeatureFolder:
    """Open a folder of features written by `lobule features`, TRIDENT, CLAM, STAMP or Owkin's challenges.

    Args:
        path: The folder. If it contains features of several encoders, pass one of its subfolders. The URL of
            features of one encoder in an object store is copied to this machine first.

    Raises:
        NotReadable: There is no such folder.
    """
    root = local_results(path, subfolder="scan")
    if not root.is_dir():
        raise NotReadable(
            "there is no such folder of features",
            subject=path,
            remedy="Create one with `lobule features COHORT --out DIR`",
        )
    manifest_path = root / MANIFEST
    manifest = FeatureManifest.from_dict(read_json(manifest_path)) if manifest_path.is_file() else None
    return FeatureFolder(root, manifest)


def _feature_folders(root: Path) -> list[Path]:
    """Subfolders with feature files, as in the layouts; empty if the folder itself contains the files."""
    patterns = ("features_*", "*x_*px_*px_overlap/features_*", "h5_files")
    return sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_dir()})
