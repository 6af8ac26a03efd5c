"""Check one file, which is a slide, a mammogram or a manifest, in the way that a scan reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lobule.errors import CohortError, LobuleError

LARGE_PX = 50_000_000
"""Overviews of a slide with a single level and more pixels than this are slow."""


def check_file(path: str) -> dict[str, Any]:
    """Check a file.

    Returns:
        A dictionary with `ok`, `what` the file is, `problems` that prevent its use, and `remarks`.
    """
    report: dict[str, Any] = {"path": path, "ok": False, "what": None, "problems": [], "remarks": []}
    try:
        if path.lower().endswith((".csv", ".parquet", ".pq")):
            check_cohort(path, report)
        elif is_mammogram(path):
            check_mammogram(path, report)
        else:
            check_slide(path, report)
    except CohortError as error:
        report["what"] = "cohort"
        report["problems"] += error.problems
    except LobuleError as error:
        report["problems"].append(str(error))
    report["ok"] = not report["problems"]
    return report


def check_cohort(path: str, report: dict[str, Any]) -> None:
    from lobule.cohort import read_cohort

    cohort = read_cohort(path)
    report["what"] = f"cohort of {len(cohort)} cases ({cohort.kind or 'slides and regions'})"
    unlabelled = sum(case.label is None and not case.breast_labels for case in cohort)
    if unlabelled:
        report["remarks"].append(f"{unlabelled} of {len(cohort)} cases have no label")


def is_mammogram(path: str) -> bool:
    """Return whether a file is a DICOM mammogram."""
    from lobule.mammograms.dicom_header import read_dicom_header

    file = Path(path)
    header = read_dicom_header(file) if file.is_file() else None
    return header is not None and header.is_mammogram


def check_mammogram(path: str, report: dict[str, Any]) -> None:
    from lobule.mammograms.dicom import examine_dicom

    heading = examine_dicom(Path(path))
    report["what"] = f"mammogram, {heading.view or 'view unknown'}, {heading.width} × {heading.height} px"
    for decision in heading.decisions:
        report["problems" if decision.outcome == "refused" else "remarks"].append(decision.sentence)


def check_slide(path: str, report: dict[str, Any]) -> None:
    from lobule.slides.check import check_slide

    slide_report = check_slide(path)
    size = f"{slide_report.levels[0].width:,} × {slide_report.levels[0].height:,} px"
    report["what"] = f"{slide_report.format}, {size}, {len(slide_report.levels)} levels"
    report["slide"] = slide_report.as_json()
    problems = list(slide_report.problems)
    if slide_report.mpp_x is None:
        # The first problem is then the missing µm/px. The user can supply it, so it is only a remark.
        report["remarks"].append(problems.pop(0))
    base = slide_report.levels[0]
    if len(slide_report.levels) == 1 and base.width * base.height > LARGE_PX:
        report["remarks"].append("The slide has only one level, so overviews of it are slow.")
    report["problems"] += problems


def as_text(report: dict[str, Any]) -> str:
    head = f"{report['path']}: {'good' if report['ok'] else 'not good'}"
    lines = [head + (f" ({report['what']})" if report["what"] else "")]
    lines += [f"  wrong: {problem}" for problem in report["problems"]]
    lines += [f"  note:  {remark}" for remark in report["remarks"]]
    return "\n".join(lines)
