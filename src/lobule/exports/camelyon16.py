"""`camelyon16`: the submission to Camelyon16: `slides.csv`, and `detections/NAME.csv` for each slide.

A slide without findings gets an empty file, because the evaluation counts only slides that have a file.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from lobule.errors import UsageError
from lobule.exports.case import ExportCase
from lobule.exports.export import CaseOutput, CaseRecord, Export
from lobule.exports.options import ExportOptions

PREFERRED_SCORES = ("tumour", "tumor", "slide", "malignant")
"""The score of a slide if its result has several scores."""


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    path = folder / "detections" / f"{case.file_name}.csv"
    path.parent.mkdir()
    size, outside = case.frames["slide"].size if "slide" in case.frames else None, 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for _, finding in case.findings(options):
            # The official script reads the mask at this position, and negative numbers wrap around in it.
            inside = finding.l0_x >= 0 and finding.l0_y >= 0
            inside &= size is None or (finding.l0_x < size.width and finding.l0_y < size.height)
            if inside and finding.score == finding.score:
                file.write(f"{finding.score!r},{finding.l0_x},{finding.l0_y}\n")
            else:
                outside += 1
    note = f"{outside:,} findings outside the slide or without a score were left out."
    return CaseOutput((note,) if outside else ())


def slide_score(scores: Mapping[str, float], case: str) -> float:
    """Return the score of a slide that says how likely it contains tumour."""
    if len(scores) == 1:
        return next(iter(scores.values()))
    for name in PREFERRED_SCORES:
        if name in scores:
            return scores[name]
    raise UsageError(
        "cannot tell which score is that of the slide", subject=case, actual=", ".join(scores) or "no score",
        expected=f"one score, or one of {', '.join(PREFERRED_SCORES)}",
    )  # fmt: skip


def finish(records: Sequence[CaseRecord], folder: Path, options: ExportOptions) -> None:
    with (folder / "slides.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for record in records:
            if record.exported:
                writer.writerow([record.case, repr(slide_score(record.scores, record.case))])


EXPORT = Export(
    "camelyon16",
    "submission to Camelyon16: slide scores and detections",
    write,
    supports=frozenset({"min_score"}),
    finish=finish,
)
