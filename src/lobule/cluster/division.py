"""Divides very large cases among the workers: pass by pass, and then the case itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lobule.cluster.pool import Task
from lobule.cohort import Case
from lobule.results.folder import RESULT, Results
from lobule.scanning.case_shares import SCOUT, Share, merge_shares

MOST_DIVIDED_PASSES = 4
"""Later passes of a case are left to the task of the whole case."""


@dataclass
class _DividedPass:
    """The shares of one pass of a case that are not done yet."""

    number: int = 0
    remaining: int = 0
    has_work: bool = False
    """Whether a share had fields to compute. If none had, every pass of the case is complete."""


@dataclass(eq=False)
class Division:
    """Decides which cases are divided, and which tasks follow when the shares of a pass are done."""

    results: Results
    workers: int
    least_bytes: int
    """Cases whose file is larger are divided."""
    _passes: dict[str, _DividedPass] = field(default_factory=dict)

    def tasks(self, task: Task) -> list[Task]:
        """Return a task for each worker if the case is very large and unfinished; otherwise the task."""
        case = task.case
        is_large = self.workers > 1 and file_bytes(case) > self.least_bytes
        if not is_large or (self.results.case_folder(case.id).path / RESULT).exists():
            return [task]
        return self._shares(task)

    def _shares(self, task: Task) -> list[Task]:
        current = self._passes.setdefault(task.case.id, _DividedPass())
        current.number, current.remaining, current.has_work = current.number + 1, self.workers, False
        shares = [Share(number, self.workers) for number in range(self.workers)]
        return [Task(task.order, task.case, share=share) for share in shares]

    def tasks_after(self, task: Task, has_work: bool) -> list[Task]:
        """Return what follows a share. After the last one of a pass, all are merged.

        Then one worker finds out whether there is another pass to divide.
        """
        if task.share == SCOUT:
            return self._shares(task) if has_work else [Task(task.order, task.case)]
        current = self._passes[task.case.id]
        current.remaining -= 1
        current.has_work = current.has_work or has_work
        if current.remaining:
            return []
        merge_shares(self.results.case_folder(task.case.id))
        is_next_divided = current.has_work and current.number < MOST_DIVIDED_PASSES
        return [Task(task.order, task.case, share=SCOUT if is_next_divided else None)]


def file_bytes(case: Case) -> int:
    """Return the size of the file of a case; 0 if it cannot be known here."""
    try:
        return Path(case.path).stat().st_size if case.path else 0
    except OSError:  # A URL, or a missing file, whose error the worker reports.
        return 0
