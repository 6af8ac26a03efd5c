"""Time and memory needed to generate slides.

over_target_*      Mpixel of tissue per second and core, divided by the target of 10, at a µm/px
over_target        the same at 0.5 µm/px, the default of generated slides
memory_of_larger   peak memory for a large slide, divided by that for a small one
large_*            seconds and peak memory for a slide of 100,000 × 100,000 px (only with `--large`)

`--quick` measures 0.5 µm/px only, and smaller slides.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import truth_of, write_slide
from measure import peak_bytes, report

TARGET_RATE = 10.0
"""Mpixel of tissue per second and core."""
MEMORY_CEILING = 1.5e9
"""Bytes that generating the large slide may need."""
MACRO_SLIDE_UM = 6000
"""Slides with longer sides have room for a macrometastasis."""
MASK_STEP = 8
"""Level-0 pixels per pixel of the mask from which the area of the tissue is computed."""


def phantom_of(side: int, tissue_share: float, mpp: float) -> SlidePhantom:
    """Return the parameters of a square slide with lesions of all classes that have room on it."""
    macro = int(side * mpp > MACRO_SLIDE_UM)
    return SlidePhantom(7, side, side, mpp, tissue=tissue_share, macro=macro, micro=1, itc=1, mimics=2)


def tissue_mpixel_per_cpu_second(side: int, mpp: float) -> float:
    """Write a slide on one core, and return its Mpixel of tissue per second of processor time."""
    phantom = phantom_of(side, 0.6, mpp)
    tissue_mpixel = float((truth_of(phantom).mask(MASK_STEP) > 0).mean()) * side * side / 1e6
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        write_slide(phantom, Path(folder) / "slide.tif", style="generic", threads=1)
        return tissue_mpixel / (time.process_time() - start)


def write_one_slide(side: int, tissue_share: float, mpp: float, folder: str) -> None:
    """Write one slide on all cores. It runs in a child process, so that its peak memory can be measured."""
    phantom = phantom_of(side, tissue_share, mpp)
    write_slide(phantom, Path(folder) / "slide.tif", style="generic", threads=os.cpu_count())


def peak_bytes_of_slide(side: int, tissue_share: float, mpp: float) -> int:
    """Write a slide in a child process, and return the peak memory of that process."""
    with tempfile.TemporaryDirectory() as folder:
        return peak_bytes([__file__, "--write-slide", str(side), str(tissue_share), str(mpp), folder])


def measure_large_slide() -> dict[str, float]:
    """Measure a slide of 100,000 × 100,000 px at 0.25 µm/px, of which about a fifth is tissue."""
    start = time.perf_counter()
    peak = peak_bytes_of_slide(100_000, 0.2, 0.25)
    seconds = time.perf_counter() - start
    print(f"100,000 x 100,000 px: {seconds:.0f} s, peak {peak / 2**30:.2f} GiB")
    return {
        "large_seconds": seconds,
        "large_peak_gib": peak / 2**30,
        "large_over_ceiling": peak / MEMORY_CEILING,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, under 45 s")
    parser.add_argument("--large", action="store_true", help="also a slide of 100,000 x 100,000 px")
    parser.add_argument("--write-slide", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_slide:
        side, tissue_share, mpp, folder = options.write_slide
        write_one_slide(int(side), float(tissue_share), float(mpp), folder)
        return
    ratios: dict[str, float] = {}
    for mpp in (0.5,) if options.quick else (0.25, 0.5, 1.0):
        side = 4096 if options.quick else 6144
        best_rate = max(tissue_mpixel_per_cpu_second(side, mpp) for _ in range(3))
        print(f"{mpp:g} um/px: {best_rate:.1f} Mpixel of tissue per second and core")
        ratios[f"over_target_{mpp:g}um"] = best_rate / TARGET_RATE
    # The target applies to the default µm/px. At 1 µm/px, a pixel contains four times as many nuclei.
    ratios["over_target"] = ratios["over_target_0.5um"]
    small, large = (4096, 8192) if options.quick else (8192, 32768)
    ratios["memory_of_larger"] = peak_bytes_of_slide(large, 0.08, 0.5) / peak_bytes_of_slide(small, 0.08, 0.5)
    print(f"peak memory at {large} px per side, relative to {small} px: {ratios['memory_of_larger']:.2f}")
    if options.large:
        ratios |= measure_large_slide()
    report("phantoms", ratios)


if __name__ == "__main__":
    main()
