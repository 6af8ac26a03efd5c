"""The reviews of a results folder as a cohort, whose annotations are what the reviewers accepted and drew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lobule.annotations import Annotation, write_annotation
from lobule.cohort import Case, Cohort
from lobule.cohort.manifest import IMAGE_SUFFIXES
from lobule.files import case_folder_name, make_folder, read_json
from lobule.geometry import Box
from lobule.layouts.folders import non_empty_cohort
from lobule.results import CaseFolder, open_results
from lobule.results.checks import LARGEST_JSON
from lobule.results.folder import PLAN
from lobule.reviews import in_force, read_reviews, reviewed_annotation, reviewed_cases, verdicts

FOLDER = "review-annotations"
"""Folder beside the results for the annotations that this layout writes."""


def reviewed_results(folder: str | Path) -> Cohort:
    """The reviewed slides and images of a results folder.

    A finding that more reviewers accept than reject is a tumour, and so is every drawn outline. The outlines
    are written as GeoJSON to the folder `review-annotations` of the results. A case without tumour is normal.
    Cases with notes only are left out, and so are exams, which have no findings to judge.

    Attributes: `exhaustive` is false if some finding was not judged or an accepted one has no outline,
    and `reviewers` lists who reviewed the case.
    """
    results = open_results(folder)
    cases = []
    for name in reviewed_cases(results.path):
        case = _case(results.path, results.case_folder(name), name)
        if case is not None:
            cases.append(case)
    return non_empty_cohort(folder, cases, "reviewed slides", "reviews written with `lobule view`")


def _case(results: Path, folder: CaseFolder, name: str) -> Case | None:
    reviews = {person: in_force(entries) for person, entries in read_reviews(results, name).items()}
    reviews = {
        person: entries
        for person, entries in reviews.items()
        if any(entry.action != "note" for entry in entries)
    }
    plan = read_json(folder.path / PLAN, LARGEST_JSON) if (folder.path / PLAN).is_file() else {}
    if not reviews or plan.get("views") or not plan.get("input"):
        return None
    result = folder.result or {}
    annotation = reviewed_annotation(reviews, folder.findings())
    tumours = annotation.of_kind("tumour")
    file = next(iter(plan["input"]))
    box = plan.get("l0_box")
    kind = "image" if file.lower().endswith(IMAGE_SUFFIXES) else "region" if box else "slide"
    judged_findings = {number for entries in reviews.values() for number in verdicts(entries)}
    complete = len(judged_findings) >= (result.get("findings") or {"count": 0})["count"]
    return Case(
        name,
        str(result.get("patient") or name),
        kind,  # type: ignore[arg-type]
        path=file,
        label="tumor" if tumours or annotation.warnings else "normal",
        mpp=plan.get("mpp"),
        annotation=_written(results, name, annotation) if tumours else None,
        l0_box=Box(*box) if box else None,
        attributes=_attributes(reviews, annotation, complete),
    )


def _attributes(reviews: Mapping[str, Any], annotation: Annotation, complete: bool) -> dict[str, str]:
    attributes = {
        "exhaustive": "true" if complete and not annotation.warnings else "false",
        "reviewers": "; ".join(sorted(reviews)),
    }
    return attributes | ({"note": "; ".join(annotation.warnings)} if annotation.warnings else {})


def _written(results: Path, name: str, annotation: Annotation) -> str:
    path = make_folder(results / FOLDER) / f"{case_folder_name(name)}.geojson"
    write_annotation(path, annotation)
    return str(path.absolute())
