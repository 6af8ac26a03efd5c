"""A slide of 100,000 px a side, about a fifth of it tissue: made, then scanned coarsely under 2 GiB.

Both run in child processes, so that their peaks are separate. `--keep DIR` uses the slide in that
folder, or stores the new one there. The ratios are peaks over their ceilings: 1.5 GB for making, and for
scanning 2 GiB beyond what the process held when the scan began. `--quick` takes a slide of
10,000 px a side, so it does not show that the memory suffices for a large one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from measure import peak_bytes, report

MAKING, SCANNING = 1.5e9, 2 * 2**30


def make(path: Path, side: int) -> None:
    import os

    from lobule.phantoms.slides import SlidePhantom, write_slide

    # A slide of 10,000 px a side has no room for a macrometastasis.
    macro = int(side > 50_000)
    phantom = SlidePhantom(7, side, side, 0.25, tissue=0.2, macro=macro, micro=1, itc=1, mimics=2)
    write_slide(phantom, path, threads=os.cpu_count())


def scan(path: Path, out: Path, mpp: float) -> None:
    import psutil
    import torch

    import lobule
    import lobule.scanning.scan
    from lobule.methods.scannet import Config, save
    from lobule.nets.backbones import BACKBONES
    from lobule.nets.scaling import PLAIN_SCALING

    torch.manual_seed(0)
    save(out / "bundle", Config(trunk="tiny", mpp=mpp), BACKBONES["tiny"](2), PLAIN_SCALING)
    before = psutil.Process().memory_info().rss
    report = lobule.scan(out / "bundle", path, out / "results", fresh=True)
    (out / "before").write_text(str(before))
    counters = report.counters
    print(f"{counters.pixels_done / 1e6:,.0f} Mpixel in {report.seconds:,.0f} s, {dict(report.counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a slide of 10,000 px a side")
    parser.add_argument("--keep", metavar="DIR", help="where the slide is, or is left")
    parser.add_argument("--mpp", type=float, default=0.5, help="µm/px that the small net wants")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    side = 10_000 if options.quick else 100_000
    if options.child:
        task, slide, out = options.child
        make(Path(slide), side) if task == "make" else scan(Path(slide), Path(out), options.mpp)
        return
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(options.keep or folder) / f"{side}.tif"
        common = ["--mpp", str(options.mpp), *(["--quick"] if options.quick else [])]
        if not slide.exists():
            began = time.perf_counter()
            peak = peak_bytes([__file__, "--child", "make", str(slide), folder, *common])
            ratios["making_over_ceiling"] = peak / MAKING
            print(
                f"made {side:,} px a side in {time.perf_counter() - began:,.0f} s, peak {peak / 1e9:.2f} GB"
            )
        began = time.perf_counter()
        peak = peak_bytes([__file__, "--child", "scan", str(slide), folder, *common])
        before = int((Path(folder) / "before").read_text())
        ratios["scanning_over_ceiling"] = (peak - before) / SCANNING
        print(
            f"scanned in {time.perf_counter() - began:,.0f} s, peak {peak / 2**30:.2f} GiB, "
            f"{(peak - before) / 2**30:.2f} GiB beyond the model and the libraries"
        )
    report("large", ratios)


if __name__ == "__main__":
    main()
