"""Feature files in HDF5: written for the readers of TRIDENT and CLAM; read from these and from STAMP."""

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
"""Number of rows that are read at once when a whole file is streamed."""

Kind = Literal["lobule", "trident", "clam", "stamp", "challenge"]
Append = Callable[[NDArray[Any], NDArray[np.int64]], None]
"""Appends features (n, d) and level-0 corners (n, 2) of n tiles to a file."""


@dataclass(frozen=True)
class FeatureFile:
    """The metadata of a feature file, and methods that read its features block by block."""

    path: Path
    kind: Kind
    count: int
    dim: int
    dtype: str
    encoder: str | None
    hash: str | None
    """Hash of the encoder; None if another tool wrote the file."""
    source: str | None
    """Fingerprint of the slide; None if another tool wrote the file."""
    tile_l0: float | None
    """Side of a tile in level-0 pixels; None if the file does not state it."""
    tile_um: float | None = None
    """Side of a tile in µm, if that is the unit of the file."""
    l0_size: Size | None = None
    features_name: str = "features"

    def l0_coords(self, mpp: float | None = None) -> NDArray[np.int64]:
        """(n, 2) level-0 x and y of the tiles' corners; `mpp` is required if the file stores µm."""
        with open_hdf5(self.path) as file:
            coords = np.asarray(file["coords"])
        if self.kind != "stamp":
            return coords.astype(np.int64)
        if mpp is None:
            raise MissingMpp(self.path)
        return np.round(coords.astype(np.float64) / mpp).astype(np.int64)

    def l0_side(self, mpp: float | None = None) -> float | None:
        """Side of a tile in level-0 pixels; None if the file does not state it."""
        if self.tile_um is None:
            return self.tile_l0
        if mpp is None:
            raise MissingMpp(self.path)
        return self.tile_um / mpp

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the features in order: a slice of rows, and the features of these rows."""
        with open_hdf5(self.path) as file:
            features = file[self.features_name]
            for start in range(0, self.count, rows):
                row_slice = slice(start, min(start + rows, self.count))
                yield row_slice, self._read_finite(features, row_slice)

    def read(self, row_slice: slice) -> NDArray[Any]:
        """The features of a slice of rows."""
        with open_hdf5(self.path) as file:
            return self._read_finite(file[self.features_name], row_slice)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The rows with these indices, in the given order; only one block of other rows is in memory."""
        out = np.empty((len(rows), self.dim), self.dtype)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        with open_hdf5(self.path) as file:
            features = file[self.features_name]
            for start in range(0, self.count, BLOCK_ROWS):
                first, last = np.searchsorted(ordered, [start, start + BLOCK_ROWS])
                if first < last:
                    block = self._read_finite(features, slice(start, min(start + BLOCK_ROWS, self.count)))
                    out[order[first:last]] = block[ordered[first:last] - start]
        return out

    def _read_finite(self, features: Any, row_slice: slice) -> NDArray[Any]:
        block = np.asarray(features[row_slice])
        if not all_finite(block):
            invalid_rows = np.flatnonzero(~np.isfinite(block).all(axis=1))
            first = row_slice.start + int(invalid_rows[0])
            actual = f"NaN or infinite values in {len(invalid_rows)} rows, first in row {first}"
            raise _damaged(self.path, "the file contains features that are not numbers", actual)
        return block


def all_finite(block: NDArray[Any]) -> bool:
    """Whether no value is NaN or infinite; half precision is tested by its bits, several times faster."""
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
    licence: str | None = None,
) -> Iterator[Append]:
    """Write a feature file through the function `append(features, l0_coords)` that is yielded.

    The file is written under a temporary name and renamed when the context ends without an error.
    """
    if dtype not in ("float16", "float32"):
        raise ConfigError(f"features are not stored as {dtype}", expected="float16 or float32")
    folder = str(Path(path).parent)
    with create_hdf5(path) as file:
        file.attrs.update(_root_attributes(frame, encoding, source))
        if licence is not None:
            file.attrs["encoder_licence"] = licence
        sizes = {"maxshape": (None, encoding.dim), "chunks": (CHUNK_ROWS, encoding.dim)}
        features = file.create_dataset("features", (0, encoding.dim), dtype, **sizes)
        features.attrs.update({"name": frame.name, "savetodir": folder, "encoder": encoding.name})
        coords = coords_dataset(file, frame, folder, coords_dtype)

        def append(values: NDArray[Any], l0_coords: NDArray[np.int64]) -> None:
            count = features.shape[0]
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
            features.resize(count + len(stored), axis=0)
            features[count:] = stored
            coords.resize(count + len(stored), axis=0)
            coords[count:] = l0_coords

        yield append


def write_coords(
    path: str | Path, frame: TileFrame, l0_coords: NDArray[np.int64], *, coords_dtype: str = "int64"
) -> None:
    """Write a file with only the corners of the tiles, which both layouts store in `patches/`."""
    with create_hdf5(path) as file:
        coords = coords_dataset(file, frame, str(Path(path).parent), coords_dtype)
        coords.resize(len(l0_coords), axis=0)
        coords[:] = l0_coords


@contextmanager
def create_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Create an HDF5 file under a temporary name and rename it when the context ends without an error."""
    with write_atomic(path) as temporary_path, h5py.File(temporary_path, "w") as file:
        yield file


def coords_dataset(file: h5py.File, frame: TileFrame, folder: str, dtype: str) -> Any:
    """The empty dataset of tile corners, with the attributes of its layouts."""
    coords = file.create_dataset("coords", (0, 2), dtype, maxshape=(None, 2), chunks=(4 * CHUNK_ROWS, 2))
    coords.attrs.update(frame.attributes(folder))
    return coords


def _root_attributes(frame: TileFrame, encoding: Encoding, source: str | None) -> dict[str, Any]:
    attributes: dict[str, Any] = {"lobule_format": FORMAT, "mpp": frame.mpp}
    attributes |= {"encoder": encoding.name, "encoder_hash": encoding.hash}
    return attributes if source is None else attributes | {"source": source}


# -- reading files of any tool ------------------------------------------------------------------------------


def read_feature_file(path: str | Path) -> FeatureFile:
    """Read the metadata of a feature file of any layout.

    Raises:
        DamagedFile: The file is half-written, damaged, or not a feature file.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        name = "feats" if "feats" in file.keys() else "features"  # noqa: SIM118 - follows no link
        refuse_foreign_storage(path, file, name, "coords")
        if name not in file.keys() or "coords" not in file.keys():  # noqa: SIM118
            raise DamagedFile(
                "not a feature file",
                subject=path,
                expected="datasets `features` (or `feats`) and `coords`",
                actual=", ".join(file) or "nothing",
                remedy="The file may be half-written: extract the features of this slide again",
            )
        features, coords = file[name], file["coords"]
        _check_shapes(path, features.shape, coords.shape)
        fields = {"path": path, "count": len(coords), "dim": features.shape[1], "dtype": str(features.dtype)}
        if name == "feats":
            return _stamp_file(fields, dict(file.attrs))
        coords_attributes = dict(coords.attrs)
        if _l0_tile(coords_attributes) is None:  # the coordinates may have only a name as attribute
            coords_attributes = _attributes_of_patches(path) | coords_attributes
        return _corners_file(fields, dict(file.attrs), dict(features.attrs), coords_attributes)


def refuse_foreign_storage(path: Path, file: h5py.File, *names: str) -> None:
    """Refuse datasets that contain anything except numbers stored in this file.

    Links, external storage, virtual datasets and references could read any other file as features.
    """
    for key in names:
        if key not in file.keys():  # noqa: SIM118 - `key in file` would follow links
            continue
        link = file.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise _not_a_feature_file(path, f"`{key}` is a link", "numbers in the file itself")
        item = file[key]
        if not isinstance(item, h5py.Dataset):
            raise _not_a_feature_file(path, f"`{key}` is a group", "a dataset")
        if item.external or item.is_virtual:
            raise _not_a_feature_file(
                path, f"the numbers of `{key}` are stored in other files", "numbers in the file itself"
            )
        if item.dtype.kind not in "fiu":
            raise _not_a_feature_file(path, f"`{key}` is of type {item.dtype}", "numbers")


def _not_a_feature_file(path: Path, actual: str, expected: str) -> DamagedFile:
    return _damaged(path, "not a feature file", actual, expected)


def _damaged(path: Path, problem: str, actual: str, expected: str | None = None) -> DamagedFile:
    remedy = "Extract the features of this slide again"
    return DamagedFile(problem, subject=path, expected=expected, actual=actual, remedy=remedy)


def _check_shapes(path: Path, features: tuple[int, ...], coords: tuple[int, ...]) -> None:
    if len(features) != 2 or len(coords) != 2 or coords[1] != 2 or features[1] == 0:
        raise DamagedFile(
            "the datasets have an unexpected shape",
            subject=path,
            expected="features (n, d) and coords (n, 2)",
            actual=f"{features} and {coords}",
        )
    if features[0] != coords[0]:
        problem = "half-written: the numbers of features and coordinates differ"
        raise _damaged(path, problem, f"{features[0]} features, {coords[0]} coordinates")


def _stamp_file(fields: dict[str, Any], file_attributes: Mapping[str, Any]) -> FeatureFile:
    unit = str(file_attributes.get("unit", "um"))
    if unit != "um":
        raise DamagedFile(
            "the coordinates have an unknown unit", subject=fields["path"], expected="um", actual=unit
        )
    tile_um = file_attributes.get("tile_size_um")
    fields |= {"encoder": _text(file_attributes.get("extractor")), "features_name": "feats"}
    fields |= {"tile_um": None if tile_um is None else float(tile_um)}
    return FeatureFile(**fields, kind="stamp", hash=None, source=None, tile_l0=None)


def _corners_file(
    fields: dict[str, Any],
    file_attributes: Mapping[str, Any],
    features_attributes: Mapping[str, Any],
    coords_attributes: Mapping[str, Any],
) -> FeatureFile:
    is_lobule = file_attributes.get("lobule_format") is not None
    kind: Kind = "lobule" if is_lobule else "trident" if "patch_size_level0" in coords_attributes else "clam"
    width, height = coords_attributes.get("level0_width"), coords_attributes.get("level0_height")
    return FeatureFile(
        **fields,
        kind=kind,
        encoder=_text(features_attributes.get("encoder", file_attributes.get("encoder"))),
        hash=_text(file_attributes.get("encoder_hash")) if is_lobule else None,
        source=_text(file_attributes.get("source")) if is_lobule else None,
        tile_l0=_l0_tile(coords_attributes),
        l0_size=None if width is None or height is None else Size(int(width), int(height)),
    )


def _l0_tile(coords_attributes: Mapping[str, Any]) -> float | None:
    """Side of a tile in level-0 pixels, computed from the attributes of TRIDENT or CLAM."""
    if "patch_size_level0" in coords_attributes:
        return float(coords_attributes["patch_size_level0"])
    if "patch_size" in coords_attributes and "downsample" in coords_attributes:
        step = float(np.mean(np.asarray(coords_attributes["downsample"], np.float64)))
        return float(coords_attributes["patch_size"]) * step
    return None


def _attributes_of_patches(path: Path) -> dict[str, Any]:
    """Attributes of the coordinates file in `patches/`, for feature files without the size of tiles."""
    folders = (path.parent.parent, path.parent.parent.parent)
    names = (f"{path.stem}_patches.h5", f"{path.stem}.h5")
    for coords_path in (folder / "patches" / name for folder in folders for name in names):
        if coords_path.is_file():
            with open_hdf5(coords_path) as file:
                refuse_foreign_storage(coords_path, file, "coords")
                return dict(file["coords"].attrs) if "coords" in file.keys() else {}  # noqa: SIM118
    return {}


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file. An error is reported as a half-written file, because that is the usual cause."""
    if not path.is_file():
        raise not_readable(FileNotFoundError(), path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        actual = (str(error).splitlines() or [type(error).__name__])[0]
        raise _damaged(path, "half-written or damaged: HDF5 cannot read it", actual) from error
