"""WSInfer's part: `run_inference` by library call, its segmentation skipped by writing its patches file."""

from __future__ import annotations

import json
import shutil
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import pandas as pd  # type: ignore[import-untyped,import-not-found,unused-ignore]
import torch
from torchvision.models import resnet18
from wsinfer.modellib.models import LocalModelTorchScript  # type: ignore[import-not-found]
from wsinfer.modellib.run_inference import run_inference  # type: ignore[import-not-found]
from wsinfer_zoo.client import ModelConfiguration  # type: ignore[import-not-found]


def torchscript(root: Path) -> Path:
    """The same weights in the form that WSInfer takes."""
    path = root / "resnet18-torchscript.pt"
    if not path.exists():
        net = resnet18(num_classes=2).eval()
        net.load_state_dict(torch.load(root / "resnet18.pt", weights_only=True))
        torch.jit.save(torch.jit.script(net), path)
    return path


def main() -> None:
    warnings.simplefilter("ignore")
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    root, out = Path(job["root"]), Path(job["out"])
    corners = np.load(root / "tiles.npy")
    shutil.rmtree(out, ignore_errors=True)
    (out / "patches").mkdir(parents=True)
    with h5py.File(out / "patches" / "slide.h5", "w") as file:
        coords = file.create_dataset("/coords", data=corners, compression="gzip")
        coords.attrs["patch_size"] = job["tile"]
        coords.attrs["patch_level"] = 0
        coords.attrs["patch_spacing_um_px"] = job["mpp"]
    model_config = json.loads((root / "config.json").read_text(encoding="utf-8"))
    model = LocalModelTorchScript(ModelConfiguration.from_dict(model_config), str(torchscript(root)))
    start = time.perf_counter()
    failed = run_inference(root / "slide", out, model, batch_size=job["batch"], num_workers=job["workers"])
    seconds = time.perf_counter() - start
    if any(failed):
        raise RuntimeError(f"WSInfer failed on {failed}")
    table = pd.read_csv(out / "model-outputs-csv" / "slide.csv")
    assert (table[["minx", "miny"]].to_numpy() == corners).all()
    np.save(job["scores"], table[[f"prob_{name}" for name in model_config["class_names"]]].to_numpy())
    versions = {"wsinfer": version("wsinfer"), "torch": torch.__version__}
    print(json.dumps({"seconds": seconds, "count": len(table), **versions}))


if __name__ == "__main__":
    main()
