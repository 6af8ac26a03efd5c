"""Cohorts: tables of cases, read from manifests, lists of paths or the folders of public data sets."""

from lobule.cohort.case import SPLITS, VIEWS, Case, Cohort, Kind
from lobule.cohort.manifest import as_cohort, cohort_of_paths, read_cohort, write_cohort

__all__ = [
    "SPLITS", "VIEWS", "Case", "Cohort", "Kind",
    "as_cohort", "cohort_of_paths", "read_cohort", "write_cohort",
]  # fmt: skip
