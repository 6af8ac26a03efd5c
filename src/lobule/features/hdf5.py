"""Feature files in HDF5: one writer for TRIDENT's and CLAM's readers, one reader for theirs and STAMP's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from lobule.errors import ConfigError, DamagedFile, MissingMpp
from lobule.features.frame import Encoding, TileFrame
from lobule.files import not_readable, write_atomic
from lobule.geometry import Size

FORMAT = "lobule-features/1"
CHUNK_ROWS = 256
BLOCK_ROWS = 1024
"""Rows that are read at once where a whole file is streamed."""

Kind = Literal["lobule", "trident", "clam", "stamp"]
Append = Callable[[NDArray[Any], NDArray[np.int64]], None]
"""Takes features (n, d) and level-0 corners (n, 2) of as many tiles."""


@dataclass(frozen=True)
class FeatureFile:
    """What a feature file says of itself. Numbers are read when asked for, block by block."""

    path: Path
    kind: Kind
    count: int
    dim: int
    dtype: str
    encoder: str | None
    hash: str | None
    """Of the encoder, where Lobule wrote the file."""
    source: str | None
    """Fingerprint of the slide, where Lobule wrote the file."""
    tile_l0: float | None
    """Level-0 pixels a side of a tile; None where the file does not say."""
    tile_um: float | None = None
    """The same in µm, where that is the file's unit."""
    overlap_l0: float = 0.0
    l0_size: Size | None = None
    features_name: str = "features"

    def l0_coords(self, mpp: float | None = None) -> NDArray[np.int64]:
        """(n, 2) level-0 x and y of the tiles' corners; `mpp` is needed where the file counts in µm."""
        with _opened(self.path) as file:
            coords = np.asarray(file["coords"])
        if self.kind != "stamp":
            return coords.astype(np.int64)
        if mpp is None:
            raise MissingMpp(self.path)
        return np.round(coords.astype(np.float64) / mpp).astype(np.int64)

    def l0_side(self, mpp: float | None = None) -> float | None:
        """Level-0 pixels a side of a tile; None where the file does not say."""
        if self.tile_um is None:
            return self.tile_l0
        if mpp is None:
            raise MissingMpp(self.path)
        return self.tile_um / mpp

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The features in order, some rows at a time."""
        with _opened(self.path) as file:
            features = file[self.features_name]
            for start in range(0, self.count, rows):
                where = slice(start, min(start + rows, self.count))
                yield where, self._checked(features, where)

    def read(self, where: slice) -> NDArray[Any]:
        """A run of rows."""
        with _opened(self.path) as file:
            return self._checked(file[self.features_name], where)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The rows of these numbers, in their order, never holding more of the file than they and a block."""
        out = np.empty((len(rows), self.dim), self.dtype)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        with _opened(self.path) as file:
            features = file[self.features_name]
            for start in range(0, self.count, BLOCK_ROWS):
                first, last = np.searchsorted(ordered, [start, start + BLOCK_ROWS])
                if first < last:
                    where = slice(start, min(start + BLOCK_ROWS, self.count))
                    out[order[first:last]] = self._checked(features, where)[ordered[first:last] - start]
        return out

    def _checked(self, features: Any, where: slice) -> NDArray[Any]:
        block = np.asarray(features[where])
        if not all_finite(block):
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
            raise DamagedFile(
                "features that are not numbers",
                subject=self.path,
                actual=f"{len(bad)} such rows from row {where.start + int(bad[0])} on",
                remedy="Extract the features of this slide again",
            )
        return block


def all_finite(block: NDArray[Any]) -> bool:
    """Whether no number is infinite or none; of half precision by its bits, which is several times faster."""
    if block.dtype == np.float16 and block.flags.c_contiguous:
        return not bool(((block.view(np.uint16) & 0x7C00) == 0x7C00).any())
    return bool(np.isfinite(block).all())


@contextmanager
def write_features(
    path: str | Path,
    frame: TileFrame,
    encoding: Encoding,
    *,
    source: str | None = None,
    dtype: str = "float16",
    coords_dtype: str = "int64",
) -> Iterator[Append]:
    """Give `append(features, l0_coords)`; the file takes its name only once everything is in it."""
    if dtype not in ("float16", "float32"):
        raise ConfigError(f"features are not stored as {dtype}", expected="float16 or float32")
    folder = str(Path(path).parent)
    with write_atomic(path) as part, h5py.File(part, "w") as file:
        file.attrs.update(_root_attributes(frame, encoding, source))
        features = file.create_dataset(
            "features",
            (0, encoding.dim),
            dtype,
            maxshape=(None, encoding.dim),
            chunks=(CHUNK_ROWS, encoding.dim),
        )
        features.attrs.update({"name": frame.name, "savetodir": folder, "encoder": encoding.name})
        coords = _coords(file, frame, folder, coords_dtype)

        def append(values: NDArray[Any], l0_coords: NDArray[np.int64]) -> None:
            before = features.shape[0]
            with np.errstate(over="ignore"):
                stored = values.astype(dtype)
            if values.shape != (len(l0_coords), encoding.dim) or not np.isfinite(stored).all():
                raise ConfigError(
                    "these features cannot be stored",
                    subject=path,
                    expected=f"{len(l0_coords)} rows of {encoding.dim} numbers that fit into {dtype}",
                    actual=f"shape {values.shape}, from {values.min():g} to {values.max():g}",
                    remedy="Use --dtype float32" if dtype == "float16" else None,
                )
            features.resize(before + len(stored), axis=0)
            features[before:] = stored
            coords.resize(before + len(stored), axis=0)
            coords[before:] = l0_coords

        yield append


def write_coords(
    path: str | Path, frame: TileFrame, l0_coords: NDArray[np.int64], *, coords_dtype: str = "int64"
) -> None:
    """The corners of the tiles by themselves, as both layouts keep them in `patches/`."""
    with write_atomic(path) as part, h5py.File(part, "w") as file:
        coords = _coords(file, frame, str(Path(path).parent), coords_dtype)
        coords.resize(len(l0_coords), axis=0)
        coords[:] = l0_coords


def _coords(file: h5py.File, frame: TileFrame, folder: str, dtype: str) -> Any:
    coords = file.create_dataset("coords", (0, 2), dtype, maxshape=(None, 2), chunks=(4 * CHUNK_ROWS, 2))
    coords.attrs.update(frame.attributes(folder))
    return coords


def _root_attributes(frame: TileFrame, encoding: Encoding, source: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"lobule_format": FORMAT, "mpp": frame.mpp}
    found |= {"encoder": encoding.name, "encoder_hash": encoding.hash}
    return found if source is None else found | {"source": source}


# -- reading what others wrote ------------------------------------------------------------------------------


def read_feature_file(path: str | Path) -> FeatureFile:
    """Open a feature file of any layout; one that is half-written or damaged is a `DamagedFile`."""
    path = Path(path)
    with _opened(path) as file:
        name = "feats" if "feats" in file.keys() else "features"  # noqa: SIM118 - follows no link
        _check_storage(path, file, name)
        if name not in file.keys() or "coords" not in file.keys():  # noqa: SIM118
            raise DamagedFile(
                "not a feature file",
                subject=path,
                expected="datasets `features` (or `feats`) and `coords`",
                actual=", ".join(file) or "nothing",
                remedy="It may be half-written: extract the features of this slide again",
            )
        features, coords = file[name], file["coords"]
        _check_shapes(path, features.shape, coords.shape)
        facts = {"path": path, "count": len(coords), "dim": features.shape[1], "dtype": str(features.dtype)}
        if name == "feats":
            return _of_stamp(facts, dict(file.attrs))
        marks = dict(file.attrs)
        where = dict(coords.attrs)
        if _l0_lengths(where)[0] is None:  # some say no more than a name there
            where = _attributes_of_patches(path) | where
        return _of_corners(facts, marks, dict(features.attrs), where)


def _check_storage(path: Path, file: h5py.File, name: str) -> None:
    """Refuse datasets whose numbers are not plain numbers in this very file.

    Links, external storage, virtual datasets and references would read other files as features.
    """
    for key in (name, "coords"):
        if key not in file.keys():  # noqa: SIM118 - asking the file itself would follow links
            continue
        link = file.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise _refused(path, f"`{key}` is a link", "numbers in the file itself")
        item = file[key]
        if not isinstance(item, h5py.Dataset):
            raise _refused(path, f"`{key}` is a group", "a dataset")
        if item.external or item.is_virtual:
            raise _refused(
                path, f"the numbers of `{key}` are stored in other files", "numbers in the file itself"
            )
        if item.dtype.kind not in "fiu":
            raise _refused(path, f"`{key}` is of type {item.dtype}", "numbers")


def _refused(path: Path, found: str, expected: str) -> DamagedFile:
    return DamagedFile(
        "not a feature file",
        subject=path,
        expected=expected,
        actual=found,
        remedy="Extract the features of this slide again",
    )


def _check_shapes(path: Path, features: tuple[int, ...], coords: tuple[int, ...]) -> None:
    if len(features) != 2 or len(coords) != 2 or coords[1] != 2 or features[1] == 0:
        raise DamagedFile(
            "features of another shape",
            subject=path,
            expected="features (n, d) and coords (n, 2)",
            actual=f"{features} and {coords}",
        )
    if features[0] != coords[0]:
        raise DamagedFile(
            "half-written: its features and coordinates are not as many",
            subject=path,
            actual=f"{features[0]} features, {coords[0]} coordinates",
            remedy="Extract the features of this slide again",
        )


def _of_stamp(facts: dict[str, Any], marks: Mapping[str, Any]) -> FeatureFile:
    unit = str(marks.get("unit", "um"))
    if unit != "um":
        raise DamagedFile("coordinates of an unknown unit", subject=facts["path"], expected="um", actual=unit)
    um = marks.get("tile_size_um")
    return FeatureFile(
        **facts,
        kind="stamp",
        encoder=_text(marks.get("extractor")),
        hash=None,
        source=None,
        tile_l0=None,
        tile_um=None if um is None else float(um),
        features_name="feats",
    )


def _of_corners(
    facts: dict[str, Any], marks: Mapping[str, Any], said: Mapping[str, Any], where: Mapping[str, Any]
) -> FeatureFile:
    own = marks.get("lobule_format") is not None
    kind: Kind = "lobule" if own else "trident" if "patch_size_level0" in where else "clam"
    tile, overlap = _l0_lengths(where)
    width, height = where.get("level0_width"), where.get("level0_height")
    return FeatureFile(
        **facts,
        kind=kind,
        encoder=_text(said.get("encoder", marks.get("encoder"))),
        hash=_text(marks.get("encoder_hash")) if own else None,
        source=_text(marks.get("source")) if own else None,
        tile_l0=tile,
        overlap_l0=overlap,
        l0_size=None if width is None or height is None else Size(int(width), int(height)),
    )


def _l0_lengths(where: Mapping[str, Any]) -> tuple[float | None, float]:
    """Level-0 pixels of a tile's side and of the overlap, by whichever attributes there are."""
    if "patch_size_level0" in where:
        tile = float(where["patch_size_level0"])
        return tile, float(where.get("overlap", 0)) * tile / float(where.get("patch_size", tile))
    if "patch_size" in where and "downsample" in where:
        step = float(np.mean(np.asarray(where["downsample"], np.float64)))
        return float(where["patch_size"]) * step, 0.0
    return None, 0.0


def _attributes_of_patches(path: Path) -> dict[str, Any]:
    """Where the feature file says nothing of its tiles, what the file of corners beside it says."""
    for folder in (path.parent.parent, path.parent.parent.parent):
        for name in (f"{path.stem}_patches.h5", f"{path.stem}.h5"):
            beside = folder / "patches" / name
            if beside.is_file():
                with _opened(beside) as file:
                    _check_storage(beside, file, "coords")
                    return dict(file["coords"].attrs) if "coords" in file.keys() else {}  # noqa: SIM118
    return {}


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file; what does not open is said to be half-written, which is nearly always why."""
    if not path.is_file():
        raise not_readable(FileNotFoundError(), path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise DamagedFile(
            "half-written or damaged: HDF5 cannot read it",
            subject=path,
            actual=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="Extract the features of this slide again",
        ) from error
