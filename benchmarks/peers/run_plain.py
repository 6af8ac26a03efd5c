"""The plain loop that people write: OpenSlide in a DataLoader, the model on each batch."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch
from numpy.typing import NDArray
from torchvision.models import resnet18
from torchvision.transforms.functional import to_tensor


class Tiles(torch.utils.data.Dataset[torch.Tensor]):
    """Tiles of level 0; each process opens the slide for itself."""

    def __init__(self, slide: str, corners: NDArray[np.int64], side: int) -> None:
        self.path, self.corners, self.side = slide, corners, side
        self.slide: Any = None

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.slide is None:
            self.slide = openslide.OpenSlide(self.path)
        x, y = (int(value) for value in self.corners[index])
        tile: torch.Tensor = to_tensor(
            self.slide.read_region((x, y), 0, (self.side, self.side)).convert("RGB")
        )
        return tile


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    root = Path(job["root"])
    net = resnet18(num_classes=2).eval()
    net.load_state_dict(torch.load(root / "resnet18.pt", weights_only=True))
    tiles = Tiles(str(root / "slide" / "slide.svs"), np.load(root / "tiles.npy"), job["tile"])
    start = time.perf_counter()
    loader = torch.utils.data.DataLoader(tiles, batch_size=job["batch"], num_workers=job["workers"])
    with torch.inference_mode():
        scores = torch.cat([torch.softmax(net(batch), dim=1) for batch in loader])
    seconds = time.perf_counter() - start
    np.save(job["scores"], scores.numpy())
    print(json.dumps({"seconds": seconds, "count": len(tiles), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
