"""Files of a folder, and the layout in which each sub-folder is a label."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lobule.cohort.case import Case, Cohort, Kind
from lobule.cohort.manifest import IMAGE_SUFFIXES, SLIDE_SUFFIXES
from lobule.cohort.rows import ids_of_paths
from lobule.errors import CohortError, NotReadable


def files_under(folder: str | Path) -> Iterator[Path]:
    """Every file below a folder in a fixed order. Links are followed, except cycles."""
    top = Path(folder).absolute()
    if not top.is_dir():
        raise NotReadable("there is no such folder", subject=folder, remedy="Check the path")
    visited: set[str] = set()
    for directory, folders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(directory)
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        if real not in visited:
            visited.add(real)
            yield from (Path(directory, name) for name in sorted(names) if not name.startswith("."))


def non_empty_cohort(folder: str | Path, cases: Sequence[Case], data_set: str, expected: str) -> Cohort:
    """Create the cohort of a data set.

    Args:
        folder: The folder of the data set, for the error.
        cases: The cases of the folder.
        data_set: Name of the data set, or what the cases are.
        expected: The files that the folder should contain, for the error.

    Raises:
        CohortError: There are no cases.
    """
    if not cases:
        problem = f"the folder contains no cases of {data_set}; expected {expected}. Check the path"
        raise CohortError(folder, [problem])
    return Cohort(tuple(cases))


def plain_folder(folder: str | Path) -> Cohort:
    """Slides and images of a folder. Each sub-folder is a label; files in the folder itself have no label."""
    top = Path(folder).absolute()
    suffixes = SLIDE_SUFFIXES + IMAGE_SUFFIXES
    files = [file for file in files_under(top) if file.suffix.lower() in suffixes]
    kinds: set[Kind] = {_kind_of(file) for file in files}
    if len(kinds) > 1:
        raise CohortError(
            folder, ["slides and plain images are mixed there; make one manifest for each kind of file"]
        )
    cases = []
    for case_id, file in zip(ids_of_paths([str(file) for file in files]), files, strict=True):
        inside = file.relative_to(top).parts[:-1]
        cases.append(
            Case(case_id, case_id, _kind_of(file), path=str(file), label=inside[0] if inside else None)
        )
    return non_empty_cohort(
        folder, cases, "slides or images", f"files that end in {', '.join(sorted(suffixes))}"
    )


def _kind_of(file: Path) -> Kind:
    return "image" if file.suffix.lower() in IMAGE_SUFFIXES else "slide"
