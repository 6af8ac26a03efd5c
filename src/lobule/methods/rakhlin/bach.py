"""Predictions of a scan in the format of the BACH challenge (ICIAR 2018): `case,class`."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from lobule.errors import ResultsError
from lobule.files import csv_text, write_text
from lobule.methods.rakhlin.config import BACH
from lobule.results.folder import open_results
from lobule.results.result import COMPLETE, PARTIAL

log = logging.getLogger(__name__)


def write_bach(results: str | Path, path: str | Path) -> int:
    """Write `case,class` for every image with a prediction and return their number.

    Images without a prediction, such as damaged ones, are left out, and a warning of the log lists them.
    The case is the number in the image's name (`test12` is 12), or the name where it has none; classes are
    0 normal, 1 benign, 2 in situ, 3 invasive. Rows are in the order of the cases.

    Raises:
        ResultsError: No image has a prediction, or the model has other classes.
    """
    opened = open_results(results)
    rows: list[tuple[str, int]] = []
    left_out: list[str] = []
    for name in opened.planned():
        folder = opened.case_folder(name)
        result = folder.result
        if result is None or result["status"] not in (COMPLETE, PARTIAL):
            left_out.append(name)
            continue
        class_scores: dict[str, float] = result["scores"]
        missing = [label for label in BACH if label not in class_scores]
        if missing:
            raise ResultsError(
                "the model does not have the classes of BACH", subject=results, expected=", ".join(BACH)
            )
        scores = [class_scores[label] for label in BACH]
        best = scores.index(max(scores))
        rows.append((case_number(name), best))
    ordered = sorted(rows, key=lambda row: (not row[0].isdigit(), row[0].zfill(12)))
    if not rows:
        raise ResultsError(
            "no image has a prediction", subject=results,
            actual=f"{len(left_out)} images without one", remedy="Scan them again with --retry-failed",
        )  # fmt: skip
    if left_out:
        log.warning("no prediction for %s; scan them again with --retry-failed", ", ".join(left_out))
    write_text(path, csv_text(["case", "class"], ordered))
    return len(rows)


def case_number(name: str) -> str:
    """The number at the end of an image's name."""
    match = re.search(r"(\d+)$", name)
    return str(int(match[1])) if match else name
