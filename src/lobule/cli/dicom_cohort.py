"""The DICOM layout of `lobule cohort`: group slides by series and mammograms by exam."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from pathlib import Path

from lobule.cohort import Case, Cohort
from lobule.cohort.rows import ids_of_paths
from lobule.errors import CohortError
from lobule.layouts.folders import files_under
from lobule.mammograms.dicom_header import DicomHeader, read_dicom_header


def dicom(folder: str | Path) -> tuple[Cohort, dict[str, str]]:
    """Build a cohort of the slides or the exams in a folder.

    Returns:
        The cohort, and the files that were left out, each with the reason.

    Raises:
        CohortError: The folder has no DICOM files, or contains both slides and mammograms.
    """
    headers = [header for file in files_under(folder) if (header := read_dicom_header(file))]
    slides = [header for header in headers if header.is_slide]
    mammograms = {str(header.file) for header in headers if header.is_mammogram}
    if slides and mammograms:
        raise CohortError(
            folder,
            ["the folder contains both slides and mammograms; use a separate folder and manifest for each"],
        )
    left_out: dict[str, str] = {}
    if slides:
        cases = slide_cases(slides)
    else:
        cases, left_out = exam_cases(Path(folder).absolute(), mammograms)
    if not cases:
        reasons = [f"{file}: {reason}" for file, reason in left_out.items()]
        raise CohortError(folder, ["the folder contains no DICOM slides and no DICOM mammograms", *reasons])
    return Cohort(tuple(cases)), left_out


def slide_cases(headers: Sequence[DicomHeader]) -> list[Case]:
    """Return a case for each series, whose path is its folder, or a file if the folder has several series."""
    series_in: dict[Path, set[str]] = {}
    first: dict[str, DicomHeader] = {}
    for header in headers:
        series_in.setdefault(header.file.parent, set()).add(header.series)
        if header.is_level:
            first.setdefault(header.series, header)
    paths = [
        str(header.file.parent if len(series_in[header.file.parent]) == 1 else header.file)
        for header in first.values()
    ]
    return [
        Case(case_id, header.patient or case_id, "slide", path=path)
        for case_id, header, path in zip(ids_of_paths(paths), first.values(), paths, strict=True)
    ]


def exam_cases(folder: Path, mammograms: Set[str]) -> tuple[list[Case], dict[str, str]]:
    """Return a case for each visit, named after the patient, with the views that the DICOM headers state."""
    from lobule.mammograms.exams import read_exams

    visits_report = read_exams(folder)
    cases: list[Case] = []
    for number, exam in enumerate(visits_report.exams, start=1):
        patient = (exam.patient or "").strip() or f"exam{number:04d}"
        name = re.sub(r"[^\w.-]+", "-", patient).strip(".-") or f"exam{number:04d}"
        visits = sum(case.patient == patient for case in cases)
        views = {
            view.lower().replace("-", "_"): tuple(heading.path for heading in headings)
            for view, headings in exam.views.items()
        }
        cases.append(Case(f"{name}-{visits + 1}" if visits else name, patient, "exam", views=views))
    left_out = {
        heading.path: heading.refusals[0].sentence for heading in visits_report.refused if heading.refusals
    }
    left_out |= {path: str(error) for path, error in visits_report.failed.items() if path in mammograms}
    return cases, left_out
