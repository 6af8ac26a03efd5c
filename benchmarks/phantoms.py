"""Generated slides: Mpixel of tissue a second and core against the target of 10, and peak memory."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from lobule.phantoms.slides import SlidePhantom, truth_of, write_slide
from measure import peak_bytes, report

TARGET = 10.0
"""Mpixel of tissue a second and core."""


def phantom(side: int, tissue: float, mpp: float) -> SlidePhantom:
    return SlidePhantom(
        7, side, side, mpp, tissue=tissue, macro=int(side * mpp > 6000), micro=1, itc=1, mimics=2
    )


def rate(mpp: float, side: int) -> float:
    """Mpixel of tissue a second of processor time, painting and encoding to the file."""
    slide = phantom(side, 0.6, mpp)
    tissue = float((truth_of(slide).mask(8) > 0).mean()) * side * side / 1e6
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        write_slide(slide, Path(folder) / "slide.tif", style="generic", threads=1)
        return tissue / (time.process_time() - start)


def one(side: int, tissue: float, mpp: float, folder: str) -> None:
    """Write one slide; run as a child so that its peak memory is its own."""
    write_slide(
        phantom(side, tissue, mpp), Path(folder) / "slide.tif", style="generic", threads=os.cpu_count()
    )


def peak(side: int, tissue: float, mpp: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return peak_bytes([__file__, "--one", str(side), str(tissue), str(mpp), folder])


def large() -> dict[str, float]:
    """100,000 × 100,000 px at 0.25 µm/px, about a fifth of it tissue."""
    start = time.perf_counter()
    bytes_ = peak(100_000, 0.2, 0.25)
    seconds = time.perf_counter() - start
    print(f"100,000 x 100,000 px: {seconds:.0f} s, peak {bytes_ / 2**30:.2f} GiB")
    return {"large_seconds": seconds, "large_peak_gib": bytes_ / 2**30, "large_over_ceiling": bytes_ / 1.5e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, under 45 s")
    parser.add_argument("--large", action="store_true", help="also a slide of 100,000 x 100,000 px")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        side, tissue, mpp, folder = options.one
        one(int(side), float(tissue), float(mpp), folder)
        return
    ratios: dict[str, float] = {}
    for mpp in (0.5,) if options.quick else (0.25, 0.5, 1.0):
        best = max(rate(mpp, 4096 if options.quick else 6144) for _ in range(3))
        print(f"{mpp:g} um/px: {best:.1f} Mpixel of tissue a second and core")
        ratios[f"over_target_{mpp:g}um"] = best / TARGET
    # the default µm/px of a phantom; at 1 µm/px a pixel holds four times the nuclei
    ratios["over_target"] = ratios["over_target_0.5um"]
    small, big = (4096, 8192) if options.quick else (8192, 32768)
    ratios["memory_of_larger"] = peak(big, 0.08, 0.5) / peak(small, 0.08, 0.5)
    print(f"peak memory at {big} px a side over {small} px: {ratios['memory_of_larger']:.2f}")
    if options.large:
        ratios |= large()
    report("phantoms", ratios)


if __name__ == "__main__":
    main()
