"""Lobule's part of the comparison, and what all parts share: slide, weights, bundles and the list of tiles.

python run_lobule.py JOB.json     with "do": "prepare", "tiles" or "dense"
"""
# ruff: noqa: E402

from __future__ import annotations

from lobule.allocator import keep_freed_memory

keep_freed_memory()  # As the command line does, before any library starts threads with memory of their own.

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lobule.bundles import read_bundle
from lobule.cohort import Case, Cohort
from lobule.methods import load
from lobule.scanning.contract import EngineSettings, ScanOptions
from lobule.scanning.open_case import OpenedCase
from lobule.scanning.scan import Machine, scan

MPP, TILE, CLASSES = 0.5, 224, ("normal", "tumour")


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Make the slide once, seeded weights, both bundles, and the tiles that Lobule would look at."""
    from lobule.phantoms.slides import SlidePhantom, write_slide

    root = Path(job["root"])
    slide = root / "slide" / "slide.svs"
    if not slide.exists():
        region = root / "part.svs"
        side = int(job["side"])
        write_slide(
            SlidePhantom(seed=3, width=side, height=side, mpp=MPP, tissue=job["tissue"], sections=1), region,
            style="svs",
        )  # fmt: skip
        slide.parent.mkdir(parents=True, exist_ok=True)
        region.rename(slide)
    tiles_bundle(root)
    dense_bundle(root)
    case = Case("slide", "patient", "slide", str(slide))
    predictor = load(read_bundle(root / "bundle-tiles"))
    opened = OpenedCase(case, predictor.images(case, ScanOptions()), ScanOptions(), EngineSettings())
    try:
        boxes = next(predictor.steps(opened)).fields.boxes
    finally:
        opened.close()
    if job.get("most"):
        first = (len(boxes) - int(job["most"])) // 2
        boxes = boxes[max(first, 0) :][: int(job["most"])]
    np.save(root / "tiles.npy", boxes[:, :2])
    return {"tiles": len(boxes), "quantising": quantised(root, slide, job["fields"])}


def quantised(root: Path, slide: Path, fields: int | None) -> float | None:
    """Write the int8 bundle and return the seconds it took; None without fields or the extra `quantize`."""
    if fields is None:
        return None
    from lobule.api.quantization import quantize
    from lobule.errors import MissingExtra

    began, out = time.perf_counter(), root / "bundle-int8"
    shutil.rmtree(out, ignore_errors=True)
    try:
        quantize(root / "bundle-tiles", str(slide), out, fields=fields, scans=0)
    except MissingExtra:
        return None
    return time.perf_counter() - began


def tiles_bundle(root: Path) -> None:
    """A ResNet-18 with neutral norms whose two scores spread over 0 to 1; no weights are downloaded."""
    from torchvision.models import resnet18

    from lobule.methods.classifier.convert import convert

    torch.manual_seed(1)
    net = resnet18(num_classes=len(CLASSES)).eval()
    with torch.no_grad():
        for block in net.modules():  # keeps the sums of the residual blocks from growing
            if hasattr(block, "bn2"):
                block.bn2.weight.fill_(0.5)
        net.fc.weight.mul_(16.0)
    torch.save(net.state_dict(), root / "resnet18.pt")
    config = {
        "spec_version": "1.0", "architecture": "resnet18", "num_classes": len(CLASSES),
        "class_names": CLASSES, "patch_size_pixels": TILE, "spacing_um_px": MPP,
        "transform": [{"name": "ToTensor"}],
    }  # fmt: skip
    (root / "config.json").write_text(json.dumps(config), encoding="utf-8")
    convert(
        root / "resnet18.pt", root / "config.json", root / "bundle-tiles", architecture="torchvision:resnet18"
    )


def dense_bundle(root: Path) -> None:
    from lobule.methods.scannet import Config, save
    from lobule.nets.backbones import BACKBONES
    from lobule.nets.receptive import geometry_of
    from lobule.nets.scaling import InputScaling

    torch.manual_seed(2)
    net = BACKBONES["tiny"](len(CLASSES)).eval()
    torch.save(net.state_dict(), root / "tiny.pt")
    scaling = InputScaling((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    save(root / "bundle-dense", Config(trunk="tiny", classes=CLASSES, mpp=MPP), net, scaling)
    geometry = geometry_of(net)
    geometry_fields = {"window": geometry.extent, "stride": geometry.stride}
    (root / "tiny.json").write_text(json.dumps(geometry_fields), encoding="utf-8")


def timed_scan(job: dict[str, Any]) -> dict[str, Any]:
    """One scan; finding tissue, choosing the form of the model and writing the results are in its time."""
    root, out = Path(job["root"]), Path(job["out"])
    is_int8 = job["precision"] == "int8"
    bundle = read_bundle(root / ("bundle-int8" if is_int8 else f"bundle-{job['do']}"))
    predictor = load(bundle)
    bundle_fields = {
        "method": bundle.method,
        "fingerprint": bundle.fingerprint,
        "classes": list(bundle.classes),
    }
    tiles = np.load(root / "tiles.npy")
    case = Case("slide", "patient", "slide", str(root / "slide" / "slide.svs"))
    batch = job["batch"] if job["do"] == "tiles" and not is_int8 else None  # int8 models have a fixed size
    machine = Machine(precision=job["precision"], batch=batch, runtime=job["runtime"])
    start = time.perf_counter()
    ended = scan(
        predictor, bundle_fields, Cohort((case,)), out, ScanOptions(), machine, int8_folder=bundle.int8_folder
    )
    seconds = time.perf_counter() - start
    if ended.counts != {"complete": 1}:
        raise RuntimeError(f"the scan ended with {ended.counts}: {ended.failed}")
    reader = next(iter(_maps(out).values()))
    engine = json.loads((out / "scan.json").read_text(encoding="utf-8"))["engine"]
    if job["do"] == "tiles":
        scores = reader.read()[0]
        np.save(job["scores"], scores[:, tiles[:, 1] // TILE, tiles[:, 0] // TILE].T)
    count = int(reader.counts()["scored"])
    form = f"{engine['runtime']} {engine['precision']}"
    return {"seconds": seconds, "count": count, "precision": form, "torch": torch.__version__}


def _maps(out: Path) -> Any:
    from lobule.results import open_results

    return open_results(out).case_folder("slide").maps


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    done = prepare(job) if job["do"] == "prepare" else timed_scan(job)
    print(json.dumps(done))


if __name__ == "__main__":
    main()
