"""Evaluation: compare results or submissions with the truth of a cohort, with intervals, by any column."""

from lobule.evaluation.evaluate import Evaluation, evaluate_source
from lobule.evaluation.leakage import keep_training_patients
from lobule.evaluation.official import official_cohort
from lobule.evaluation.options import Options
from lobule.evaluation.reader_study import evaluate_readers
from lobule.evaluation.sources import open_source, read_submission

__all__ = [
    "Evaluation",
    "Options",
    "evaluate_readers",
    "evaluate_source",
    "keep_training_patients",
    "official_cohort",
    "open_source",
    "read_submission",
]
