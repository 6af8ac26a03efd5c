"""Heatmap files in the format of the published tools: one transposed HDF5 file per view and class."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from lobule.errors import DamagedFile
from lobule.files import not_readable, write_atomic
from lobule.mammograms.views import right_pointing

Grade = Literal["benign", "malignant"]
DATASET = "image"


def heatmap_path(folder: str | Path, grade: Grade, name: str) -> Path:
    """The path at which the published tools expect the heatmap of the image `name`."""
    return Path(folder) / f"heatmap_{grade}" / f"{name}.hdf5"


def write_heatmap(path: str | Path, heatmap: NDArray[np.float32], view: str, horizontal_flip: str) -> None:
    """Write a right-pointing (H, W) heatmap. The file has it in the orientation of its image, transposed."""
    stored = right_pointing(heatmap, view, horizontal_flip)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset(DATASET, data=stored.T.astype(np.float32), compression="lzf")


def read_heatmap(path: str | Path, view: str, horizontal_flip: str) -> NDArray[np.float32]:
    """The right-pointing (H, W) heatmap of a file."""
    try:
        with h5py.File(path, "r") as file:
            stored = np.asarray(file[DATASET], dtype=np.float32).T
    except FileNotFoundError as error:
        raise not_readable(error, path) from error
    except (OSError, KeyError) as error:
        raise DamagedFile(
            f"the file is not a heatmap file: {error}",
            subject=path,
            expected="HDF5 with a dataset called image",
        ) from error
    return np.ascontiguousarray(right_pointing(stored, view, horizontal_flip))
