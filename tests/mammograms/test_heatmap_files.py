"""Heatmap files have the layout that the published tools read."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from lobule.errors import DamagedFile, NotReadable
from lobule.mammograms.heatmaps import heatmap_path, read_heatmap, write_heatmap


@pytest.mark.parametrize(
    ("view", "flip", "mirrored"), [("L-CC", "NO", False), ("R-MLO", "NO", True), ("L-CC", "YES", True)]
)
def test_files_contain_the_stored_orientation_transposed(tmp_path, view, flip, mirrored):
    heatmap = np.random.default_rng(0).random((7, 5)).astype(np.float32)
    path = heatmap_path(tmp_path, "malignant", "0_R-MLO")
    assert path == tmp_path / "heatmap_malignant" / "0_R-MLO.hdf5"
    write_heatmap(path, heatmap, view, flip)
    with h5py.File(path) as file:
        dataset = file["image"]
        assert (dataset.shape, dataset.dtype, dataset.compression) == ((5, 7), np.float32, "lzf")
        assert np.array_equal(dataset[:].T, heatmap[:, ::-1] if mirrored else heatmap)
    assert np.array_equal(read_heatmap(path, view, flip), heatmap)


def test_other_files_than_heatmaps_are_refused(tmp_path):
    path = tmp_path / "x.hdf5"
    with pytest.raises(NotReadable):
        read_heatmap(path, "L-CC", "NO")
    path.write_bytes(b"no HDF5")
    with pytest.raises(DamagedFile, match="not a heatmap file"):
        read_heatmap(path, "L-CC", "NO")
    with h5py.File(path, "w") as file:
        file["other"] = [1]
    with pytest.raises(DamagedFile, match="called image"):
        read_heatmap(path, "L-CC", "NO")
