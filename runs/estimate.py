"""Estimate the time and disk space of a run from rates that are measured on this machine and on its cases.

The scripts in this folder call it before they start. Some cases are opened: slides to measure their tissue
and the rate of reading, images and exams to measure the rate of decoding. A small convolution measures the
rate of computing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lobule.cohort import Case, Cohort, read_cohort
from lobule.errors import LobuleError

FIELD = 512
"""Side of the fields that are read from slides, in pixels."""
FIELDS = 6


def main() -> None:
    """Print one line about time and one about disk space."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cohort")
    parser.add_argument("--mpp", type=float, default=0.5, help="µm/px at which slides are read")
    parser.add_argument(
        "--passes", type=float, default=1, help="how often the pixels of a case are read and computed"
    )
    parser.add_argument(
        "--train-pixels", type=float, default=0, help="pixels of all training batches together"
    )
    parser.add_argument(
        "--flop-per-pixel", type=float, default=0, help="floating-point operations of the model"
    )
    parser.add_argument(
        "--bytes-per-pixel", type=float, default=0, help="stored bytes for each pixel of tissue"
    )
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    cohort = read_cohort(options.cohort, check_files=False)
    samples = [sample for case in spread(cohort, 4) if (sample := measured(case, options.mpp))]
    if not samples:
        print("no estimate: none of the first cases can be read")
        return
    pixels = len(cohort) * float(np.mean([size for size, _ in samples]))
    reading = (
        pixels * options.passes * sum(seconds for _, seconds in samples) / sum(size for size, _ in samples)
    )
    computing, device = 0.0, ""
    if options.flop_per_pixel:
        rate, device = computing_rate(options.device)
        computing = (pixels * options.passes + 3 * options.train_pixels) * options.flop_per_pixel / rate
    print(
        f"estimate for {len(cohort)} cases with {pixels / len(cohort) / 1e6:,.1f} million pixels each, from "
        f"{len(samples)} of them: reading {duration(reading)} on one core"
        + (f", computing {duration(computing)} on {device}" if computing else "")
        + ". Each stage shows its own rate and the time left."
    )
    print(f"disk: about {pixels * options.bytes_per_pixel / 1e9:,.2f} GB for what the run writes")


def spread(cohort: Cohort, count: int) -> list[Case]:
    """Some cases at equal distances in the manifest."""
    step = max(1, len(cohort) // count)
    return list(cohort.cases[::step])[:count]


def measured(case: Case, mpp: float) -> tuple[float, float] | None:
    """The pixels that are computed of a case, and the seconds to read them; None if it cannot be read."""
    readers: dict[str, Callable[[Case, float], tuple[float, float]]] = {
        "slide": slide,
        "image": image,
        "exam": exam,
    }
    try:
        return readers[case.kind](case, mpp)
    except (LobuleError, OSError, KeyError):
        return None


def slide(case: Case, mpp: float) -> tuple[float, float]:
    """Read some fields of tissue, and extrapolate to all tissue."""
    from lobule.geometry import Box
    from lobule.scanning.open_case import tissue_of
    from lobule.slides.slide import open_slide
    from lobule.tissue import TissueConfig

    assert case.path is not None
    with open_slide(case.path, mpp=case.mpp) as opened:
        mask = tissue_of(opened, TissueConfig()).mask
        lattice = opened.lattice(mpp=max(mpp, opened.mpp.mean), upsample=True)
        rows, columns = np.nonzero(mask)
        if not len(rows):
            return 0.0, 0.0
        chosen = np.linspace(0, len(rows) - 1, FIELDS).astype(int)
        start, read = time.perf_counter(), 0
        for row, column in zip(rows[chosen], columns[chosen], strict=True):
            x = int(column / mask.shape[1] * lattice.size.width)
            y = int(row / mask.shape[0] * lattice.size.height)
            field = Box(x, y, FIELD, FIELD).intersect(Box(0, 0, *lattice.size))
            read += opened.read_lattice(lattice, field).shape[0] * field.width
        seconds = time.perf_counter() - start
        tissue = float(mask.mean()) * lattice.size.width * lattice.size.height
    return tissue, seconds * tissue / max(read, 1)


def image(case: Case, mpp: float) -> tuple[float, float]:
    """Read the whole image."""
    from lobule.geometry import Box
    from lobule.slides.slide import open_slide

    assert case.path is not None
    start = time.perf_counter()
    with open_slide(case.path) as opened:
        opened.read_level(0, Box(0, 0, *opened.size))
        return float(opened.size.area), time.perf_counter() - start


def exam(case: Case, mpp: float) -> tuple[float, float]:
    """Read all views."""
    from lobule.mammograms.exams import read_view

    start = time.perf_counter()
    pixels = sum(float(read_view(path).pixels.size) for path in case.paths)
    return pixels, time.perf_counter() - start


def computing_rate(device: str) -> tuple[float, str]:
    """Floating-point operations per second of a convolution of 64 channels, and the device."""
    import torch

    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1).to(name)
    batch = torch.zeros(1, 64, 256, 256, device=name)
    operations = 2 * 64 * 64 * 9 * 256 * 256

    def once() -> Any:
        with torch.inference_mode():
            value = convolution(batch)
        return float(value[0, 0, 0, 0])

    once()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.5:
        once()
        count += 1
    return operations * count / (time.perf_counter() - start), name


def duration(seconds: float) -> str:
    """Seconds, minutes or hours in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


if __name__ == "__main__":
    main()
