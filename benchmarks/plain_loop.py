"""The usual way to compute features of tiles, as a reference: OpenSlide's `read_region` in a DataLoader."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class PlainTiles:
    """A dataset in which each item is one call of `read_region`."""

    def __init__(self, slide: str, corners: NDArray[np.int64], side: int) -> None:
        self.slide, self.corners, self.side = slide, corners, side
        self._opened: Any = None

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: int) -> Any:
        import openslide
        import torch

        self._opened = self._opened or openslide.OpenSlide(self.slide)
        x, y = (int(value) for value in self.corners[index])
        pixels = np.asarray(self._opened.read_region((x, y), 0, (self.side, self.side)).convert("RGB"))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def run_plain_loop(
    network: Any, slide: Path, corners: NDArray[np.int64], side: int, workers: int
) -> tuple[float, NDArray[np.float32]]:
    """Run the plain loop; return its seconds and features."""
    import torch
    from torch.utils.data import DataLoader

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)
    dataset: Any = PlainTiles(str(slide), corners, side)
    began = time.perf_counter()
    rows = []
    with torch.inference_mode():
        for images in DataLoader(dataset, batch_size=32, num_workers=workers):
            rows.append(network(images.to(device)).cpu().numpy())
    return time.perf_counter() - began, np.concatenate(rows)


def tiles_inside(slide: Path, corners: NDArray[np.int64], side: int) -> NDArray[np.bool_]:
    """The tiles that do not cross the border of the slide: OpenSlide fills the rest of a tile with black."""
    import openslide

    with openslide.OpenSlide(str(slide)) as opened:
        return np.asarray((corners + side <= np.array(opened.dimensions)).all(axis=1))
