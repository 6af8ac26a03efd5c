"""Compare methods and encoders on one cohort: train, scan and evaluate each, and write one table."""

from lobule.comparison.entries import Entry
from lobule.comparison.labels import MINUTES
from lobule.comparison.run import Comparison, compare

__all__ = ["MINUTES", "Comparison", "Entry", "compare"]
