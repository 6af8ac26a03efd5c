"""Very large cases become a task for each worker and pass, and end with a task of the whole case."""

from __future__ import annotations

from pathlib import Path

import pytest

from lobule.cluster.division import MOST_DIVIDED_PASSES, Division
from lobule.cluster.pool import Task
from lobule.cohort import Case
from lobule.results.folder import RESULT, Results
from lobule.scanning.case_shares import SCOUT


@pytest.fixture
def task(tmp_path: Path) -> Task:
    slide = tmp_path / "slide.tif"
    slide.write_bytes(bytes(100))
    return Task(7, Case("slide", "patient", "slide", str(slide)))


def division_of(tmp_path: Path, workers: int = 3, least_bytes: int = 99) -> Division:
    return Division(Results(tmp_path / "results"), workers, least_bytes)


def test_small_finished_and_remote_cases_and_single_workers_are_not_divided(
    task: Task, tmp_path: Path
) -> None:
    assert division_of(tmp_path, least_bytes=100).tasks(task) == [task]
    assert division_of(tmp_path, workers=1).tasks(task) == [task]
    remote = Task(0, Case("url", "patient", "slide", "https://host/slide.tif"))
    assert division_of(tmp_path, least_bytes=0).tasks(remote) == [remote]
    result = tmp_path / "results/cases/slide" / RESULT
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    assert division_of(tmp_path).tasks(task) == [task]


def test_passes_are_divided_until_no_share_has_work(task: Task, tmp_path: Path) -> None:
    division = division_of(tmp_path)
    shares = division.tasks(task)
    assert [(one.order, one.share.number, one.share.count) for one in shares if one.share] == [
        (7, 0, 3), (7, 1, 3), (7, 2, 3),
    ]  # fmt: skip
    assert division.tasks_after(shares[1], True) == division.tasks_after(shares[0], False) == []
    (scout,) = division.tasks_after(shares[2], False)
    assert scout.share == SCOUT, "one share had fields to compute, so there may be another pass"
    following = division.tasks_after(scout, True)
    assert [one.share for one in following] == [one.share for one in shares]
    for share in following[:2]:
        assert division.tasks_after(share, True) == []
    (scout,) = division.tasks_after(following[2], True)
    (undivided,) = division.tasks_after(scout, False)
    assert undivided.share is None and undivided.case is task.case and undivided.order == 7


def test_a_case_without_work_in_its_shares_ends_undivided(task: Task, tmp_path: Path) -> None:
    division = division_of(tmp_path, workers=2)
    shares = division.tasks(task)
    assert division.tasks_after(shares[0], False) == []
    assert [one.share for one in division.tasks_after(shares[1], False)] == [None]


def test_a_case_of_many_passes_ends_undivided(task: Task, tmp_path: Path) -> None:
    division = division_of(tmp_path, workers=2)
    tasks, divided_passes = division.tasks(task), 0
    while len(tasks) == 2:
        divided_passes += 1
        assert division.tasks_after(tasks[0], True) == []
        tasks = division.tasks_after(tasks[1], True)
        if tasks[0].share == SCOUT:
            tasks = division.tasks_after(tasks[0], True)
    assert divided_passes == MOST_DIVIDED_PASSES and [one.share for one in tasks] == [None]
