"""Feature files in the layouts of other tools, written and read with h5py and without code of Lobule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

COORDS = np.array([[0, 0], [512, 0], [0, 512], [1024, 1536]], np.int64)
FEATURES = np.random.default_rng(4).normal(size=(4, 6)).astype(np.float32)

TRIDENT_COORDS = (
    "patch_size", "patch_size_level0", "level0_magnification", "target_magnification", "overlap", "name",
    "savetodir", "level0_width", "level0_height",
)  # fmt: skip
TRIDENT_FEATURES = ("name", "savetodir", "encoder")
CLAM_COORDS = (
    "patch_size", "patch_level", "downsample", "downsampled_level_dim", "level_dim", "name", "save_path",
)  # fmt: skip


def write_trident(root: Path, slide: str, attributes_in_features: bool = True, empty: bool = False) -> Path:
    """Write `20x_256px_0px_overlap/{patches,features_uni}` of a 40x slide: patches of 512 level-0 pixels."""
    base = root / "20x_256px_0px_overlap"
    coords, features = (COORDS[:0], FEATURES[:0]) if empty else (COORDS, FEATURES)
    coords_attributes: dict[str, Any] = {
        "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20,
        "overlap": 0, "name": slide, "savetodir": str(base), "level0_width": 4096, "level0_height": 3072,
    }  # fmt: skip
    (base / "patches").mkdir(parents=True, exist_ok=True)
    with h5py.File(base / "patches" / f"{slide}_patches.h5", "w") as file:
        file.create_dataset("coords", data=coords).attrs.update(coords_attributes)
    (base / "features_uni").mkdir(exist_ok=True)
    path = base / "features_uni" / f"{slide}.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("features", data=features)
        data.attrs.update({"name": slide, "savetodir": str(base / "features_uni"), "encoder": "uni"})
        dataset = file.create_dataset("coords", data=coords)
        if attributes_in_features:
            dataset.attrs.update(coords_attributes)
    return path


def write_clam(root: Path, slide: str, with_patches: bool = True) -> Path:
    """Write `patches/` and `h5_files/`: patches of 256 px on level 1, whose downsample is 2."""
    if with_patches:
        (root / "patches").mkdir(parents=True, exist_ok=True)
        with h5py.File(root / "patches" / f"{slide}.h5", "w") as file:
            dataset = file.create_dataset("coords", data=COORDS.astype(np.int32))
            dataset.attrs.update(
                {
                    "patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0), "name": slide,
                    "downsampled_level_dim": (2048, 1536), "level_dim": (2048, 1536), "save_path": str(root),
                }
            )  # fmt: skip
    (root / "h5_files").mkdir(parents=True, exist_ok=True)
    path = root / "h5_files" / f"{slide}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=FEATURES)
        file.create_dataset("coords", data=COORDS.astype(np.int32))
    return path


def write_stamp(root: Path, slide: str, unit: str = "um") -> Path:
    """Write a file of STAMP: `feats` in half precision, coordinates in µm, attributes at the root."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{slide}.h5"
    with h5py.File(path, "w") as file:
        file["feats"] = FEATURES.astype(np.float16)
        file["coords"] = COORDS * 0.25
        attributes = {"unit": unit, "tile_size_um": 128.0, "tile_size_px": 224, "extractor": "ctp"}
        file.attrs.update({**attributes, "feat_type": "tile"})
    return path


def read_as_trident(path: Path) -> dict[str, Any]:
    """Read a file as TRIDENT's readers do; a missing attribute raises KeyError."""
    with h5py.File(path, "r") as file:
        features, coords = file["features"], file["coords"]
        values: dict[str, Any] = {name: coords.attrs[name] for name in TRIDENT_COORDS}
        values |= {f"features.{name}": features.attrs[name] for name in TRIDENT_FEATURES}
        return values | {"features": features[:], "coords": coords[:]}


def read_as_clam(patches: Path, features: Path) -> dict[str, Any]:
    """Read files as CLAM's readers do; a missing `patch_level` raises KeyError, as in CLAM."""
    with h5py.File(patches, "r") as file:
        values: dict[str, Any] = {name: file["coords"].attrs[name] for name in CLAM_COORDS}
        values["patches"] = file["coords"][:]
    with h5py.File(features, "r") as file:
        return values | {"features": file["features"][:], "coords": file["coords"][:]}


def l0_patch(values: dict[str, Any]) -> NDArray[np.float64]:
    """The side of a patch at level 0, as CLAM's readers compute it."""
    return np.asarray(values["patch_size"] * np.asarray(values["downsample"], np.float64))
