"""Divides a cohort into shards of about the same estimated work.

Every shard computes the same division, from the list of cases and the estimates in `work.json`. The first
shard makes the estimates; the others read them.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError
from lobule.files import LONGEST_FOLDER_NAME, fits_folder_name
from lobule.results.work import read_work, write_work
from lobule.scanning.contract import ScanOptions
from lobule.slides.slide import Slide, open_slide
from lobule.tissue import TissueConfig, find_tissue
from lobule.units import Mpp

log = logging.getLogger("lobule.scan")

PICTURE_PX = 512
"""Longest side of the picture on which tissue is estimated."""
SMALLEST_WORK = 0.1
"""Least work of a case in mm²: opening it takes time, even if it contains no tissue."""
ASSUMED_MPP = 0.25
"""µm/px of slides that do not state it. It only affects the estimate of their work."""


def check_cases(cohort: Cohort) -> list[Case]:
    """Return the cases of a cohort, or raise `ConfigError` if two of them would share a results folder."""
    cases = list(cohort)
    duplicates = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    if duplicates:
        raise ConfigError(
            "several cases have the same name", subject=cohort.path, actual=", ".join(duplicates[:5])
        )
    if too_long := [case.id for case in cases if not fits_folder_name(case.id)]:
        raise ConfigError(
            "case names that are too long for a folder name",
            subject=cohort.path,
            expected=f"at most {LONGEST_FOLDER_NAME} bytes, escaped characters counted as three",
            actual=", ".join(name[:60] for name in too_long[:3]),
            remedy="Use shorter names",
        )
    return cases


def check_shard(shard: tuple[int, int]) -> None:
    """Raise `ConfigError` if there is no such shard."""
    index, count = shard
    if not 1 <= index <= count:
        raise ConfigError(f"there is no shard {index} of {count}", expected="i/n with i from 1 to n")


def shard_of(cases: Sequence[Case], work: Mapping[str, float], shard: tuple[int, int]) -> list[Case]:
    """Return the cases of a shard, in the order of the cohort.

    Args:
        cases: All cases of the cohort.
        work: The estimated work of each case; a case without an estimate counts as the median.
        shard: (i, n) returns shard i of n, counted from 1.
    """
    check_shard(shard)
    index, count = shard
    usual = median(work.values()) if work else 1.0
    weights = [work.get(case.id, usual) for case in cases]
    shard_numbers = balanced(weights, count)
    return [case for case, number in zip(cases, shard_numbers, strict=True) if number == index - 1]


def balanced(weights: Sequence[float], count: int) -> list[int]:
    """Assign each weight to one of `count` shards, so that the sums of the shards differ little.

    The largest weight is assigned first, always to the shard with the smallest sum. The result depends only
    on the weights and their order.
    """
    shard_sums = [(0.0, number) for number in range(count)]
    assigned = [0] * len(weights)
    for index in sorted(range(len(weights)), key=lambda index: (-weights[index], index)):
        smallest, number = heapq.heappop(shard_sums)
        assigned[index] = number
        heapq.heappush(shard_sums, (smallest + weights[index], number))
    return assigned


def work_of(cases: Sequence[Case], root: Path, options: ScanOptions, threads: int) -> dict[str, float]:
    """Return the estimated work of each case; estimates that do not exist yet are made and stored in `root`.

    Only one process at a time may call this function for a folder.
    """
    work = read_work(root)
    missing = [case for case in cases if case.id not in work]
    if missing:
        log.info("estimating the work of %d cases", len(missing))
        with ThreadPoolExecutor(threads) as pool:
            estimates = list(pool.map(lambda case: estimate(case, options), missing))
        values = [value for value in estimates if value is not None]
        usual = median([*work.values(), *values]) if work or values else 1.0
        for case, value in zip(missing, estimates, strict=True):
            work[case.id] = round(usual if value is None else value, 3)
        write_work(root, work)
    return work


def estimate(case: Case, options: ScanOptions) -> float | None:
    """Estimate the area to scan in mm², from a small picture of the slide.

    Returns:
        The area; None if the case is not a slide or cannot be read now.
    """
    if case.path is None:
        return None
    try:
        with open_slide(case.path, mpp=case.mpp or options.mpp) as slide:
            return max(SMALLEST_WORK, _mm2_to_scan(slide, case, options.tissue))
    except Exception as error:  # The scan reports the error of the case.
        log.debug("case %s: the work cannot be estimated: %s", case.id, error)
        return None


def _mm2_to_scan(slide: Slide, case: Case, tissue: TissueConfig | None) -> float:
    resolution = slide.stated_mpp
    l0_mpp = Mpp.square(ASSUMED_MPP) if resolution is None else resolution.mpp
    width, height = slide.size
    box = case.l0_box
    share = 1.0
    if tissue is not None:
        picture = slide.thumbnail(PICTURE_PX)
        scale = max(width / picture.shape[1], height / picture.shape[0])
        mask = find_tissue(picture, l0_mpp.scaled(scale, scale), tissue).mask
        if box is not None:
            top, left = int(box.y / scale), int(box.x / scale)
            mask = mask[top : math.ceil(box.bottom / scale), left : math.ceil(box.right / scale)]
        share = float(mask.mean()) if mask.size else 0.0
    if box is not None:
        width, height = box.width, box.height
    return share * width * height * l0_mpp.x * l0_mpp.y / 1e6
