"""The predictions of a scan in the form in which BACH (ICIAR 2018) takes them: `case,class`."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from lobule.errors import ResultsError
from lobule.files import write_text
from lobule.methods.rakhlin.config import BACH
from lobule.results.folder import open_results
from lobule.results.result import COMPLETE, PARTIAL


def write_bach(results: str | Path, path: str | Path) -> int:
    """Write `case,class` for every scanned image, and say how many; a case without a result is an error.

    The case is the number in the image's name (`test12` is 12), or the name where it has none; classes are
    0 normal, 1 benign, 2 in situ, 3 invasive. Rows are in the order of the cases.
    """
    opened = open_results(results)
    rows: list[tuple[str, int]] = []
    for name in opened.planned():
        folder = opened.case_folder(name)
        result = folder.result
        if result is None or result["status"] not in (COMPLETE, PARTIAL):
            raise ResultsError(
                "there is no prediction of a case",
                subject=folder.path,
                remedy="Scan it again: --retry-failed",
            )
        said: dict[str, float] = result["scores"]
        missing = [label for label in BACH if label not in said]
        if missing:
            raise ResultsError(
                "the model has not the classes of BACH", subject=results, expected=", ".join(BACH)
            )
        scores = [said[label] for label in BACH]
        best = scores.index(max(scores))
        rows.append((case_number(name), best))
    ordered = sorted(rows, key=lambda row: (not row[0].isdigit(), row[0].zfill(12)))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["case", "class"])
    writer.writerows(ordered)
    write_text(path, out.getvalue())
    return len(rows)


def case_number(name: str) -> str:
    """The number that ends an image's name."""
    found = re.search(r"(\d+)$", name)
    return str(int(found[1])) if found else name
