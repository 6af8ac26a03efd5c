"""How long ScanNet needs for a slide on this machine: minutes per 100 mm² of tissue, for every stride.

A generated slide of one field (83 × 83 cells of 32 px at 0.25 µm/px, 0.44 mm²) is scanned by VGG-16 of full
width with random weights, on which the time does not depend; the time is that of the case, from opening it to
its written result. Finer strides are extrapolated: the dense network of each stride and the one of stride 32
compute a field of 20 × 20 strides from memory, and the time of the scan is multiplied by their ratio.

    python experiments/scannet_minutes.py [--small]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import lobule
from lobule.cohort import Case, Cohort
from lobule.methods.scannet import Config, save
from lobule.nets.backbones import BACKBONES
from lobule.nets.dense import densify
from lobule.nets.inference import for_inference
from lobule.nets.receptive import geometry_of
from lobule.nets.scaling import InputScaling
from lobule.phantoms.slides import SlidePhantom, write_slide
from lobule.scanning.device import available_cores

MPP, STRIDE, CELLS, SECTION = 0.25, 32, 83, 100.0
ALPHAS = (1, 2, 4, 8)


def seconds_of_scan(folder: Path, cells: int) -> float:
    """Seconds of scanning a slide of cells × cells, as the scan recorded them."""
    side = cells * STRIDE
    slide = SlidePhantom(seed=3, width=side, height=side, mpp=MPP, tissue=0.9, sections=1)
    write_slide(slide, folder / "slide.tif")
    torch.manual_seed(0)
    config = Config(mpp=MPP, cells=cells)
    save(folder / "bundle", config, BACKBONES[config.trunk](2), InputScaling())
    cohort = Cohort((Case("slide", "patient", "slide", str(folder / "slide.tif")),))
    report = lobule.scan(
        folder / "bundle", cohort, folder / "out", tissue=False, device="cpu", precision="float32"
    )
    assert report.counts == {"complete": 1}, report.failed
    return float(json.loads((folder / "out/cases/slide/run.json").read_text())["seconds"])


def factors(cells: int) -> dict[int, float]:
    """Time of the dense networks, relative to the one of stride 32."""
    net = for_inference(BACKBONES["scannet_vgg16"](2).eval())
    geometry = geometry_of(net)

    def call_of(alpha: int) -> Callable[[], Tensor]:
        side = geometry.dense(alpha).in_size(alpha * cells)
        pixels = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last)
        dense = densify(net, alpha)
        return lambda: dense(pixels)

    best: dict[int, float] = {}
    with torch.inference_mode():
        for alpha in ALPHAS:
            call, seconds = call_of(alpha), []
            for _ in range(2 if alpha < 8 else 1):
                began = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - began)
            best[alpha] = min(seconds)
    return {alpha: best[alpha] / best[1] for alpha in ALPHAS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a field of 8 × 8 cells, to try the script")
    small = parser.parse_args().small
    torch.set_num_threads(available_cores())
    cells = 8 if small else CELLS
    area = (cells * STRIDE * MPP / 1000) ** 2
    with tempfile.TemporaryDirectory() as folder:
        seconds = seconds_of_scan(Path(folder), cells)
    print(f"stride 32: {seconds:.1f} s for {area:.3f} mm², {seconds / area:.0f} s per mm²", flush=True)
    for alpha, factor in factors(4 if small else 20).items():
        minutes = seconds / area * SECTION * factor / 60
        print(f"stride {STRIDE // alpha}: {factor:.2f} times, {minutes:.0f} minutes per {SECTION:g} mm²")
    print(f"{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
