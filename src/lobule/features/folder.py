"""A folder of feature files: its manifest, where each case's file is, and that all come from one encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from lobule.cohort import Case
from lobule.errors import ConfigError, DamagedFile, NotReadable, ResultsError
from lobule.features.frame import Encoding, TileFrame, encoding_of, to_facts
from lobule.features.hdf5 import FeatureFile, read_feature_file
from lobule.files import make_folder, read_json, write_json

MANIFEST = "features.json"
ENCODER = "encoder.safetensors"
FORMAT = "lobule-features/1"
RESEARCH_USE = "Research use only: not a medical device, not for diagnosis."

Layout = Literal["trident", "clam"]


@dataclass(frozen=True)
class FeatureManifest:
    """What every file of a folder was made with."""

    encoding: Encoding
    mpp: float
    tile_px: int
    input_px: int
    tissue_share: float
    dtype: str = "float16"
    layout: Layout = "trident"
    scaling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ConfigError(f"no layout '{self.layout}'", expected=", ".join(get_args(Layout)))
        if self.layout == "clam" and self.dtype != "float32":
            raise ConfigError("CLAM's readers take float32 features alone", remedy="Use --dtype float32")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "encoding": to_facts(self.encoding), "scaling": dict(self.scaling)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> FeatureManifest:
        try:
            values = {name: facts[name] for name in cls.__dataclass_fields__}
            return cls(**{**values, "encoding": encoding_of(facts["encoding"])})
        except (KeyError, TypeError) as error:
            raise ConfigError("not a manifest of features", actual=repr(error)) from error

    def paths_of(self, root: Path, frame: TileFrame) -> tuple[Path, Path]:
        """Where a case's corners and its features go."""
        name = quote(frame.name, safe=" ")
        if self.layout == "clam":
            return root / "patches" / f"{name}.h5", root / "h5_files" / f"{name}.h5"
        base = root / frame.folder_name
        features = base / f"features_{self.encoding.folder_name}" / f"{name}.h5"
        return base / "patches" / f"{name}_patches.h5", features


def begin_folder(path: str | Path, manifest: FeatureManifest) -> Path:
    """Make or take up a folder; one that holds features of another encoder or other tiles is refused."""
    root = make_folder(path)
    place = root / MANIFEST
    wanted = {"format": FORMAT, "research_use": RESEARCH_USE, **manifest.to_dict()}
    if place.exists():
        before = read_json(place)
        if before != wanted:
            # the encoding's hash is over the input size too: what is plainer comes first
            keys = sorted(wanted, key=lambda name: name == "encoding")
            key = next(key for key in keys if before.get(key) != wanted[key])
            raise ResultsError(
                f"this folder holds features of another {key}",
                subject=root,
                expected=str(before.get(key)),
                actual=str(wanted[key]),
                remedy="Write to another folder: features of two kinds must not be mixed",
            )
    else:
        write_json(place, wanted)
    return root


@dataclass(frozen=True)
class FeatureFolder:
    """Feature files of many cases, Lobule's own or another tool's."""

    path: Path
    manifest: FeatureManifest | None
    """None where another tool made the folder."""

    @property
    def encoder_weights(self) -> Path | None:
        """The encoder's weights, where they were kept with the features."""
        place = self.path / ENCODER
        return place if place.is_file() else None

    def find(self, case: Case) -> FeatureFile:
        """The features of a case, by its name or its slide's; what is half-written or missing is said so."""
        names = dict.fromkeys([quote(case.id, safe=" "), case.id, *_stem(case)])
        for name in names:
            if (place := self._files.get(name)) is not None:
                return self._checked(read_feature_file(place))
        broken = [path for name in names for path in self.path.rglob(f".{escape(name[:80])}.*.part.h5")]
        if broken:
            raise DamagedFile(
                "its features are half-written: the extraction was stopped",
                subject=broken[0],
                remedy="Run the same `lobule features` again; it goes on where it stopped",
            )
        raise NotReadable(
            f"no features of the case '{case.id}'",
            subject=self.path,
            expected=f"a file {next(iter(names))}.h5",
            remedy="Extract them with `lobule features`",
        )

    def of_slide_file(self, case: Case, file: FeatureFile) -> bool:
        """Whether a file found for a case is that of its whole slide, not of the case alone."""
        return file.path.stem not in (quote(case.id, safe=" "), case.id)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Feature files by case."""
        found: dict[str, Path] = {}
        kinds = _feature_folders(self.path)
        if len(kinds) > 1:
            raise ConfigError(
                "this folder holds features of several kinds",
                subject=self.path,
                actual=", ".join(str(kind.relative_to(self.path)) for kind in kinds),
                remedy="Name the folder of one of them",
            )
        for path in sorted((kinds or [self.path])[0].glob("*.h5")):
            if not path.name.startswith("."):
                found[path.stem] = path
        return found

    def _checked(self, file: FeatureFile) -> FeatureFile:
        if self.manifest is not None:
            wanted = self.manifest.encoding
            if file.hash != wanted.hash or file.dim != wanted.dim:
                raise ConfigError(
                    "features of another backbone",
                    subject=file.path,
                    expected=f"{wanted.name}, {wanted.dim} numbers, {wanted.hash[:23]}",
                    actual=f"{file.encoder}, {file.dim} numbers, {(file.hash or 'unknown weights')[:23]}",
                    remedy="Extract them again with the folder's backbone",
                )
        return file


def open_features(path: str | Path) -> FeatureFolder:
    """A folder of features: one that `lobule features` made, TRIDENT's, CLAM's or STAMP's."""
    root = Path(path)
    if not root.is_dir():
        raise NotReadable(
            "no folder of features", subject=path, remedy="Make one with `lobule features COHORT --out DIR`"
        )
    place = root / MANIFEST
    manifest = FeatureManifest.from_dict(read_json(place)) if place.is_file() else None
    return FeatureFolder(root, manifest)


def _feature_folders(root: Path) -> list[Path]:
    """Folders that hold feature files, as the layouts place them; none where the folder itself does."""
    patterns = ("features_*", "*x_*px_*px_overlap/features_*", "h5_files")
    return sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_dir()})


def _stem(case: Case) -> list[str]:
    return [] if case.path is None else [Path(case.path).stem]
