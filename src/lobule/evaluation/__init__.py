"""Evaluation: compare results or submissions with the truth of a cohort.

Measures have confidence intervals, and can also be computed for each value of any column of the cohort.
"""

from lobule.evaluation.evaluate import Evaluation, evaluate_source
from lobule.evaluation.official import official_cohort
from lobule.evaluation.options import Options
from lobule.evaluation.reader_study import evaluate_readers
from lobule.evaluation.sources import open_source, read_submission

__all__ = [
    "Evaluation",
    "Options",
    "evaluate_readers",
    "evaluate_source",
    "official_cohort",
    "open_source",
    "read_submission",
]
