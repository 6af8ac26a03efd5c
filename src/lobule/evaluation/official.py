"""A cohort from Camelyon16's file names, for a submission with masks but without a manifest."""

from __future__ import annotations

from lobule.cohort import Case, Cohort
from lobule.evaluation.options import Options
from lobule.evaluation.sources import Source
from lobule.evaluation.truth import check_masks, mask_file


def official_cohort(source: Source, options: Options) -> Cohort:
    """One case per slide. It is a tumour if its name begins with `Tumor` or it has a mask, else normal.

    Every slide counts as a patient.
    """
    check_masks(options)
    cases = []
    for name in source.names():
        case = Case(name, name, "slide", label="normal")
        if name.startswith("Tumor") or mask_file(case, options) is not None:
            case = Case(name, name, "slide", label="tumor")
        cases.append(case)
    return Cohort(tuple(cases))
