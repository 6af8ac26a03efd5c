"""`check`: audit the splits of a cohort."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lobule.audit.duplicates import NearDuplicate, near_duplicates
from lobule.audit.picture import Picture, filtered, shrunk_images
from lobule.audit.splits import (
    Confounding,
    EqualFiles,
    SharedPatient,
    confounded,
    equal_files,
    patients_in_several_splits,
)
from lobule.audit.stored import StoredPictures
from lobule.cohort import Case, Cohort, read_cohort
from lobule.errors import LobuleError


@dataclass(frozen=True)
class CohortAudit:
    """The problems of a cohort, in one list for each kind."""

    cases: int
    pictures: int
    """Number of images whose pixels were compared."""
    patients: tuple[SharedPatient, ...]
    files: tuple[EqualFiles, ...]
    near_duplicates: tuple[NearDuplicate, ...]
    confounding: tuple[Confounding, ...]
    unreadable: dict[str, str]
    """Cases whose pixels could not be read, with the reason."""
    seconds: float

    @property
    def problems(self) -> int:
        """Number of problems, without unreadable cases."""
        return len(self.patients) + len(self.files) + len(self.near_duplicates) + len(self.confounding)


def check(
    cohort: Cohort | str | Path,
    *,
    pixels: bool = True,
    threads: int | None = None,
    work: str | Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> CohortAudit:
    """Audit the splits of a cohort.

    Four kinds of problems are reported: patients in several splits; equal files of several cases; near
    duplicates, which are images that show the same pixels although one was compressed again, cropped by up to
    20 %, rotated by quarter turns, mirrored or rescaled; and sites that are confounded with the labels.

    Args:
        cohort: A manifest or a cohort. A manifest with patients in several splits is accepted here.
        pixels: Look for near duplicates, which reads a small picture of every image.
        threads: Number of threads that read pictures; by default one per core.
        work: Folder for the pictures that were read. A later call reads only cases that are not there yet or
            whose files have changed.
        progress: Called with 1 after each case that was read.

    Returns:
        The problems. The same cohort gives the same report.

    Example:
        audit = lobule.check("cohort.csv")
        print(audit.problems, audit.near_duplicates)
    """
    start = time.perf_counter()
    if not isinstance(cohort, Cohort):
        cohort = read_cohort(cohort, check_files=False, check_splits=False)
    stored = None if work is None or not pixels else StoredPictures(work)
    pictures, unreadable = _read_pictures(cohort, threads, stored, progress) if pixels else ([], {})
    files = equal_files(cohort.cases)
    equal_pairs = [frozenset(group.cases) for group in files]
    duplicates = [
        pair
        for pair in near_duplicates(pictures)
        if not any({pair.first.case, pair.second.case} <= group for group in equal_pairs)
    ]
    site = confounded(cohort.cases)
    return CohortAudit(
        len(cohort),
        len(pictures),
        tuple(patients_in_several_splits(cohort.cases)),
        tuple(files),
        tuple(duplicates),
        () if site is None else (site,),
        unreadable,
        time.perf_counter() - start,
    )


def _read_pictures(
    cohort: Cohort,
    threads: int | None,
    stored: StoredPictures | None,
    progress: Callable[[float], None] | None,
) -> tuple[list[Picture], dict[str, str]]:
    """The pictures of all cases in the order of the cohort, and why others could not be read."""

    def read(case: Case) -> list[Picture] | str:
        try:
            return _pictures_of(case, stored)
        except (LobuleError, OSError) as error:
            return str(error)
        finally:
            if progress is not None:
                progress(1)

    pictures: list[Picture] = []
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for case, outcome in zip(cohort, pool.map(read, cohort), strict=True):
            if isinstance(outcome, str):
                unreadable[case.id] = outcome
            else:
                pictures += outcome
    return pictures, unreadable


def _pictures_of(case: Case, stored: StoredPictures | None) -> list[Picture]:
    images = None if stored is None else stored.read(case)
    if images is None:
        # Several files of one view get distinct names in the store.
        images = {f"{number} {image}": pixels for number, (image, pixels) in enumerate(shrunk_images(case))}
        if stored is not None:
            stored.write(case, images)
    return [filtered(case, name.partition(" ")[2], pixels) for name, pixels in images.items()]
