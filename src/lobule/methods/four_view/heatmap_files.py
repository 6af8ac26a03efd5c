"""Heatmaps in the layout of the published tools, written by `lobule heatmaps` and read by a scan.

Each image has the files `heatmap_malignant/NAME.hdf5` and `heatmap_benign/NAME.hdf5`, where NAME is the name
of the image without suffix. Their dataset `image` is a float32 heatmap of the cropped image, in the
orientation of the stored image and transposed: (width, height).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lobule.errors import DamagedFile
from lobule.files import make_folder
from lobule.hdf5 import numbers_at, open_hdf5, write_dataset
from lobule.mammograms.breasts import GRADES
from lobule.mammograms.exam_views import ExamView, Heatmaps

DATASET = "image"


def heatmap_path(folder: str | Path, grade: str, image: ExamView) -> Path:
    return Path(folder) / f"heatmap_{grade}" / f"{Path(image.mammogram.heading.path).stem}.hdf5"


def write_heatmaps(folder: str | Path, image: ExamView, heatmaps: Heatmaps) -> None:
    """Write the benign and the malignant heatmap of a view, which point right."""
    for grade, heatmap in zip(GRADES, heatmaps, strict=True):
        stored = heatmap[:, ::-1] if image.frame.mirrored else heatmap
        path = heatmap_path(folder, grade, image)
        make_folder(path.parent)
        write_dataset(path, DATASET, np.ascontiguousarray(stored.T, np.float32), "lzf")


def read_heatmaps(folder: str | Path, image: ExamView) -> Heatmaps:
    """Read the benign and the malignant heatmap of a view, mirrored to point right.

    Raises:
        NotReadable: A file is missing.
        DamagedFile: A file is damaged, or a heatmap has another size than the cropped view.
    """
    height, width = image.shape
    heatmaps: list[NDArray[np.float32]] = []
    for grade in GRADES:
        path = heatmap_path(folder, grade, image)
        with open_hdf5(path) as file:
            stored = numbers_at(file, DATASET, path, shape=(width, height)).astype(np.float32).T
        if not np.isfinite(stored).all():
            raise DamagedFile("the heatmap contains values that are not numbers", subject=path)
        heatmaps.append(stored[:, ::-1] if image.frame.mirrored else stored)
    return np.ascontiguousarray(np.stack(heatmaps))
