"""TIAToolbox's part: PatchPredictor over a slide, the places given by a mask, as its documentation has it.

With "do": "tiles" it runs ResNet-18 side by side; with "dense" the dense net on overlapping patches, one for
each cell of a block of the map. The lobule package lends the net's definition and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tiatoolbox  # type: ignore[import-not-found]
import torch
from tiatoolbox.models.architecture.vanilla import CNNModel  # type: ignore[import-not-found]
from tiatoolbox.models.dataset.classification import (  # type: ignore[import-not-found]
    predefined_preproc_func,
)
from tiatoolbox.models.engine.patch_predictor import PatchPredictor  # type: ignore[import-not-found]

CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""The places of ResNet's parts in CNNModel's trunk."""


class DenseOnPatches(CNNModel):  # type: ignore[misc]
    """The dense net with one patch a cell: its output is one cell wide."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__("resnet18", 2)
        del self.feat_extract, self.classifier
        self.net = net

    def forward(self, imgs: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.net(imgs).flatten(1), -1)


def resnet(root: Path) -> Any:
    state = torch.load(root / "resnet18.pt", weights_only=True)
    names = {name: index for index, name in CHILDREN.items()}
    renamed = {}
    for key, tensor in state.items():
        head, _, rest = key.partition(".")
        renamed[f"classifier.{rest}" if head == "fc" else f"feat_extract.{names[head]}.{rest}"] = tensor
    model = CNNModel("resnet18", 2)
    model.load_state_dict(renamed)
    return model


def dense(root: Path) -> Any:
    from lobule.nets.backbones import BACKBONES

    net = BACKBONES["tiny"](2)
    net.load_state_dict(torch.load(root / "tiny.pt", weights_only=True))
    return DenseOnPatches(net)


def tile_layout(job: dict[str, Any], corners: Any) -> tuple[int, int, Any]:
    """Side and stride of the patches, and a mask with one pixel for each place of the grid."""
    side = int(job["side"])
    if job["do"] == "tiles":
        tile = int(job["tile"])
        mask = np.zeros((side // tile, side // tile), np.uint8)
        mask[corners[:, 1] // tile, corners[:, 0] // tile] = 1
        return tile, tile, mask
    geometry = json.loads((Path(job["root"]) / "tiny.json").read_text(encoding="utf-8"))
    stride = int(geometry["stride"])
    mask = np.zeros((side // stride, side // stride), np.uint8)
    x, y = (int(value) // stride for value in np.median(corners, axis=0))
    mask[y : y + int(job["block"]), x : x + int(job["block"])] = 1
    return int(geometry["window"]), stride, mask


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    root = Path(job["root"])
    corners = np.load(root / "tiles.npy")
    side, stride, mask = tile_layout(job, corners)
    model = resnet(root) if job["do"] == "tiles" else dense(root)
    model.preproc_func = predefined_preproc_func("kather100k")  # ToTensor
    predictor = PatchPredictor(
        model, batch_size=job["batch"], num_workers=job["workers"], device="cpu", verbose=False
    )
    slide = root / "slide" / "slide.svs"
    start = time.perf_counter()
    out = predictor.run(
        images=[slide],
        masks=[mask],
        patch_mode=False,
        patch_input_shape=(side, side),
        stride_shape=(stride, stride),
        input_resolutions=[{"units": "mpp", "resolution": job["mpp"]}],
        batch_size=job["batch"],
        num_workers=job["workers"],
        device="cpu",
        auto_get_mask=False,
        return_probabilities=True,
        save_dir=Path(job["out"]),
        overwrite=True,
        output_type="zarr",
    )
    seconds = time.perf_counter() - start
    import zarr

    group: Any = zarr.open(str(out[slide]), mode="r")
    scores, coordinates = np.asarray(group["probabilities"]), np.asarray(group["coordinates"])
    if job["do"] == "tiles":
        at = {(int(x), int(y)): index for index, (x, y) in enumerate(coordinates[:, :2])}
        np.save(job["scores"], scores[[at[int(x), int(y)] for x, y in corners]])
    versions = {"tiatoolbox": tiatoolbox.__version__, "torch": torch.__version__}
    print(json.dumps({"seconds": seconds, "count": len(scores), **versions}))


if __name__ == "__main__":
    main()
