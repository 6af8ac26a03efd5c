"""The cohort that Camelyon16's naming means, for a submission that comes with masks and no manifest."""

from __future__ import annotations

from lobule.cohort import Case, Cohort
from lobule.evaluation.options import Options
from lobule.evaluation.sources import Source
from lobule.evaluation.truth import check_masks, mask_file


def official_cohort(source: Source, options: Options) -> Cohort:
    """Every named slide: tumour where the name begins with `Tumor` or a mask exists; its own patient."""
    check_masks(options)
    cases = []
    for name in source.names():
        case = Case(name, name, "slide", label="normal")
        if name.startswith("Tumor") or mask_file(case, options) is not None:
            case = Case(name, name, "slide", label="tumor")
        cases.append(case)
    return Cohort(tuple(cases))
