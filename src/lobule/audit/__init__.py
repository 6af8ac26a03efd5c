"""Audit a cohort: leaks between splits, duplicates, and sites that give labels away."""

from lobule.audit.check import CohortAudit, check

__all__ = ["CohortAudit", "check"]
