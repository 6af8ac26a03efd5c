"""Write cohorts, results folders and submissions with given scores and findings."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lobule.files import write_json
from lobule.findings import Finding
from lobule.results.result import FORMAT
from lobule.results.writing import write_findings


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def begin(folder: Path, cases: Sequence[str], bundle: Mapping[str, Any] | None = None) -> Path:
    metadata = {"method": "scannet", "fingerprint": "f" * 64, "classes": ["normal", "tumour"]}
    write_json(
        _make_folder(folder) / "scan.json",
        {"format": FORMAT, "bundle": {**metadata, **(bundle or {})}, "options": {}, "cases": list(cases)},
    )
    return folder


def put(
    folder: Path,
    case: str,
    scores: Mapping[str, float],
    detections: Sequence[Sequence[float]] | None = None,
    *,
    status: str = "complete",
    size: tuple[int, int] | None = None,
    mpp: float | None = 0.25,
    error: str | None = None,
    failed: int = 0,
) -> None:
    """Write one case of a results folder."""
    case_folder = _make_folder(folder / "cases" / case)
    images = {}
    if size is not None:
        images["slide"] = {"size": list(size), "mpp": None if mpp is None else [mpp, mpp]}
    write_json(
        case_folder / "result.json",
        {
            "format": FORMAT, "case": case, "status": status, "scores": dict(scores), "images": images,
            "failed": [{}] * failed, "error": None if error is None else {"message": error},
            "maps": [], "findings": {"count": len(detections or ())}, "notes": [],
        },
    )  # fmt: skip
    if detections is not None:
        write_findings(case_folder, [Finding(int(x), int(y), float(score)) for score, x, y in detections])


def _make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask with the values 0 and 255 and one level."""
    _make_folder(path.parent)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path, compression="tiff_lzw")


def golden_masks(masks: Mapping[str, np.ndarray], case: str, slide: str) -> np.ndarray:
    shape = masks[f"{case}/{slide}/shape"]
    count = int(np.prod(shape))
    return np.unpackbits(masks[f"{case}/{slide}/bits"], count=count).reshape(shape).astype(bool)


def write_submission(folder: Path, slides: Sequence[Mapping[str, Any]]) -> Path:
    """Write the official folder: one CSV per slide without a header, empty for no detections."""
    for slide in slides:
        lines = [f"{confidence!r},{x},{y}\n" for confidence, x, y in slide["detections"]]
        (_make_folder(folder) / f"{slide['name']}.csv").write_text("".join(lines))
    return folder
