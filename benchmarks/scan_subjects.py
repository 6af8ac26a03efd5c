"""The slide and the bundles of `benchmarks/scan.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MPP, TILE = 0.25, 224
CALIBRATION_FIELDS = 40


def paint(path: Path, side: int, tissue: float) -> None:
    """Write a generated slide of which this share is tissue."""
    from lobule.phantoms.slides import SlidePhantom, write_slide

    write_slide(SlidePhantom(seed=11, width=side, height=side, mpp=MPP, tissue=tissue, sections=1), path)


def make_bundle(kind: str, folder: Path) -> Path:
    """Write a bundle with seeded weights. Its scores are meaningless but take as long as real ones."""
    import torch

    torch.manual_seed(5)
    out = folder / f"bundle-{kind}"
    if out.exists():
        return out
    if kind == "dense":
        from lobule.methods.scannet import Config, save
        from lobule.nets.backbones import BACKBONES
        from lobule.nets.scaling import PLAIN_SCALING

        save(out, Config(trunk="tiny", mpp=MPP), BACKBONES["tiny"](2), PLAIN_SCALING)
        return out
    from lobule.methods.classifier.convert import convert
    from lobule.nets.resnet import resnet

    torch.save(resnet("resnet18", 2).state_dict(), folder / "weights.pt")
    transform = [{"name": "ToTensor"}]
    geometry_fields = {
        "class_names": ["normal", "tumour"], "patch_size_pixels": TILE, "spacing_um_px": MPP,
        "transform": transform,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(geometry_fields), encoding="utf-8")
    convert(folder / "weights.pt", folder / "config.json", out, architecture="torchvision:resnet18")
    return out


def quantised(bundle: Any, slide: Path, folder: Path) -> Any:
    """Write and return a quantised copy of a bundle."""
    from lobule.bundles import read_bundle

    out = folder / f"{bundle.path.name}-int8"
    if out.exists():
        return read_bundle(out)
    command = ["weights", "quantize", str(bundle.path), str(slide), "--out", str(out), "--scans", "0"]
    command += ["--fields", str(CALIBRATION_FIELDS)]
    subprocess.run([sys.executable, "-m", "lobule", *command], stdout=subprocess.DEVNULL, check=True)
    return read_bundle(out)
