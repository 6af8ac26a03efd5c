"""Generated views as DICOM files, correct except for the changes that a test makes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from lobule.phantoms.exams import ExamPhantom, render_exam
from tests.mammograms.dicom_variants import Variant, write_variant

PHANTOM = ExamPhantom(5, 208, 152, left_malignant=True)


@lru_cache(maxsize=2)
def rendered(flip="NO"):
    return render_exam(replace(PHANTOM, horizontal_flip=flip))


def pixels_of(view="L-CC", flip="NO"):
    return rendered(flip).images[view]


def write_view(path: Path, view="L-CC", pixels=None, change=None, **options) -> Path:
    """Write one DICOM file; `change(dataset)` may modify it first."""
    flip = options.get("horizontal_flip", "NO")
    variant = Variant(**{"patient": "P1", "seed": 7, **options})
    pixels = pixels_of(view, flip) if pixels is None else pixels
    write_variant(path, pixels, view, 1.15, variant)
    if change is not None:
        import pydicom

        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)
    return path


def blob(shape=(120, 90), value=1000):
    """A plain half disc at the left edge."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.where((rows - shape[0] / 2) ** 2 + columns**2 < (shape[0] / 3) ** 2, value, 0).astype(np.uint16)
