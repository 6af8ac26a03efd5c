"""Cohorts: tables of cases, read from manifests, lists of paths or the folders of public data sets."""

from lobule.cohort.case import SPLITS, VIEWS, Case, Cohort, Kind
from lobule.cohort.layouts import LAYOUTS
from lobule.cohort.manifest import cohort_of_paths, read_cohort, write_cohort

__all__ = [
    "LAYOUTS", "SPLITS", "VIEWS", "Case", "Cohort", "Kind", "cohort_of_paths", "read_cohort", "write_cohort",
]  # fmt: skip
