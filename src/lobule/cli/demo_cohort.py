"""The cohort of `lobule demo`: generated slides of nine hospitals, each in one split only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lobule.cli.demo_story import share_of
from lobule.cohort import Case, Cohort, write_cohort
from lobule.errors import ConfigError
from lobule.files import make_folder
from lobule.phantoms.cohorts import Member
from lobule.phantoms.noise import mixed
from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import truth_of, write_slide
from lobule.phantoms.truth import SlideTruth, write_annotation_files

UM_PER_PX = 0.5
SLIDES = {"train": 12, "val": 4, "test": 12}
"""Slides per split in the full demo; half of them have no tumour. A smaller demo has fewer slides."""
HOSPITALS = {"train": "ABCD", "val": "EF", "test": "GHI"}
"""Hospitals of each split; every hospital has its own stain and scanner."""
LESIONS, MIMICS = 6, 3
"""Micrometastases of a tumour slide, which also has isolated cells, and regions that resemble tumour."""


def slide_counts(side: int) -> dict[str, int]:
    """Return the number of slides of each split, an even number that is at least two."""
    return {split: max(2, 2 * round(count * share_of(side) / 2)) for split, count in SLIDES.items()}


def write_demo_cohort(
    folder: Path, seed: int, side: int, report_progress: Callable[[int], None] = lambda slides: None
) -> tuple[Cohort, dict[str, SlideTruth]]:
    """Write slides, outlines and the manifest, and return the cohort and the ground truth of each case."""
    make_folder(folder)
    cases: list[Case] = []
    truths: dict[str, SlideTruth] = {}
    for split, count in slide_counts(side).items():
        letters = HOSPITALS[split]
        for number in range(count):
            case_id, site = f"{split}-{number + 1:02d}", f"hospital-{letters[number // 2 % len(letters)]}"
            # The name of a hospital determines its stain, so the seed is part of the name.
            phantom = phantom_of(mixed(seed, len(cases), 0xDE), side, f"{site}-{seed}", number % 2 == 0)
            path = folder / f"{case_id}.tif"
            truth = truths[case_id] = write_slide(phantom, path)
            outlines = path.with_suffix(".xml") if truth.outlines else None
            if outlines is not None:
                write_annotation_files(truth, outlines)
            member = Member(len(cases), f"patient-{len(cases) + 1:02d}", split, site, bool(truth.outlines))
            details = {"annotation": outlines and str(outlines), "attributes": {"exhaustive": "true"}}
            cases.append(member.case(case_id, "slide", path, truth.label, UM_PER_PX, **details))
            report_progress(len(cases))
    cohort = Cohort(tuple(cases))
    write_cohort(cohort, folder / "cohort.csv")
    return cohort, truths


def phantom_of(seed: int, side: int, site: str, tumour: bool) -> SlidePhantom:
    """Return a slide phantom with as many lesions as fit on the tissue."""
    most = max(1, round(LESIONS * share_of(side))) if tumour else 0
    for micro in range(most, -1, -1):
        phantom = SlidePhantom(
            seed, side, side * 2 // 3, UM_PER_PX, site, 0.6, micro=micro, itc=int(tumour), mimics=MIMICS
        )
        with suppress(ConfigError):
            truth_of(phantom)
            break
    return phantom
