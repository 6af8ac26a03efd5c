"""`csv`: one table of findings per case, and `cases.csv` with the scores of all cases."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lobule.exports.case import ExportCase
from lobule.exports.export import CaseOutput, CaseRecord, Export
from lobule.exports.options import ExportOptions
from lobule.findings import Finding
from lobule.results.result import RESEARCH_USE

COLUMNS = (
    "case", "image", "number", "score", "label", "l0_x", "l0_y", "x_um", "y_um", "kind", "box_x", "box_y",
    "box_width", "box_height", "size_um", "area_um2", "lesion_class", "cells", "reviews",
)  # fmt: skip


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    path = folder / "findings" / f"{case.file_name}.csv"
    path.parent.mkdir()
    reviews = case.reviews_of_findings
    with path.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for number, finding in case.findings(options):
            row = _row(case, number, finding)
            writer.writerow({**row, "reviews": "; ".join(reviews.get(number, []))})
    return CaseOutput(summary={"findings": case.finding_count} | _patient(case, options))


def _row(case: ExportCase, number: int, finding: Finding) -> dict[str, Any]:
    frame = case.frames.get(finding.image)
    mpp = None if frame is None else frame.mpp
    row = {"case": case.name, "number": number, **finding.to_dict(), "image": finding.image}
    if mpp is not None:
        row |= {"x_um": round(finding.l0_x * mpp.x, 3), "y_um": round(finding.l0_y * mpp.y, 3)}
    if (box := finding.box) is not None:
        row |= {"box_x": box.x, "box_y": box.y, "box_width": box.width, "box_height": box.height}
    return {name: value for name, value in row.items() if name in COLUMNS}


def _patient(case: ExportCase, options: ExportOptions) -> dict[str, Any]:
    return {"patient": case.patient} if options.show_patients else {}


def finish(records: Sequence[CaseRecord], folder: Path, options: ExportOptions) -> None:
    scores = list(dict.fromkeys(name for record in records for name in record.scores))
    patient = ["patient"] if options.show_patients else []
    names = ["case", *patient, "status", *scores, "findings", "notes", "research_use"]
    with (folder / "cases.csv").open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow(
                {
                    "case": record.case,
                    "status": record.status,
                    **record.scores,
                    **{name: record.summary.get(name) for name in (*patient, "findings")},
                    "notes": " ".join([*record.notes, *([record.error] if record.error else [])]),
                    "research_use": RESEARCH_USE,
                }
            )


EXPORT = Export(
    "csv",
    "tables: findings of each case, and scores of all cases",
    write,
    kinds=frozenset({"slide", "image", "exam"}),
    supports=frozenset({"min_score", "show_patients"}),
    finish=finish,
)
