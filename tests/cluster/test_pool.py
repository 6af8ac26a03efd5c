"""The pool of workers, on a stand-in for Ray that loses workers on request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.cluster.pool import MOST_FAILED_STARTS, Task, WorkerPool
from lobule.cluster.worker import CaseOutcome, WorkerState
from lobule.cohort import Case
from lobule.errors import ConfigError, ResultsError


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


@dataclass(eq=False)
class Call:
    actor: Actor
    result: Any


@dataclass(eq=False)
class Actor:
    ray: FakeRay
    number: int
    is_dead: bool = False

    @property
    def start(self) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda: Call(self, self.ray.start_result(self)))

    @property
    def scan(self) -> SimpleNamespace:
        return SimpleNamespace(
            remote=lambda order, case, part=None: Call(self, self.ray.scan_result(self, case))
        )


@dataclass
class FakeRay:
    """Calls return at once, in the order of a list of choices. An exception as a result is a lost worker."""

    choices: list[int] = field(default_factory=list)
    deadly: frozenset[str] = frozenset()
    """Cases that end their worker every time."""
    unlucky: dict[str, int] = field(default_factory=dict)
    """How often a case loses its worker before it succeeds."""
    failed_starts: int = 0
    task_errors: dict[str, Exception] = field(default_factory=dict)
    actors: list[Actor] = field(default_factory=list)
    most_running: int = 0
    most_of_one: int = 0
    first_calls: list[Call] = field(default_factory=list)

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def create(self) -> Actor:
        self.actors.append(Actor(self, len(self.actors)))
        return self.actors[-1]

    def start_result(self, actor: Actor) -> Any:
        if self.failed_starts:
            self.failed_starts -= 1
            return RayError("died while starting")
        return WorkerState(f"host {actor.number}", actor.number, {})

    def scan_result(self, actor: Actor, case: Case) -> Any:
        if case.id in self.task_errors and actor.number == 0:
            return RayTaskError(self.task_errors[case.id])
        if case.id in self.deadly:
            return RayError("died")
        if self.unlucky.get(case.id, 0):
            self.unlucky[case.id] -= 1
            return RayError("died")
        return CaseOutcome("complete", None, {})

    def wait(self, calls: list[Call], **_: Any) -> tuple[list[Call], list[Call]]:
        self.first_calls = self.first_calls or list(calls)
        self.most_running = max(self.most_running, len(calls))
        self.most_of_one = max(self.most_of_one, *Counter(call.actor.number for call in calls).values())
        index = self.choices.pop() % len(calls) if self.choices else -1
        return [calls[index]], []

    def get(self, call: Call) -> Any:
        if call.actor.is_dead:
            raise RayError("died")
        if isinstance(call.result, Exception):
            call.actor.is_dead = not isinstance(call.result, RayTaskError)
            raise call.result
        return call.result

    def kill(self, actor: Actor) -> None:
        actor.is_dead = True


@dataclass
class Run:
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    order: list[int] = field(default_factory=list)


def run_pool(
    ray: FakeRay, names: list[str], size: int = 3, attempts: int = 4, has_settings: bool = False
) -> Run:
    run = Run()

    def done(task: Task, outcome: CaseOutcome, worker: Any) -> None:
        run.done.append(task.case.id)

    pool = WorkerPool(
        ray, ray.create, size, attempts, lambda state: run.order.append(state.process), done,
        lambda task: run.failed.append(task.case.id), has_settings=has_settings,
    )  # fmt: skip
    pool.run([Task(index, Case(name, name, "slide")) for index, name in enumerate(names)])
    return run


@given(
    st.integers(0, 12), st.integers(1, 4), st.lists(st.integers(0, 9), max_size=80),
    st.dictionaries(st.integers(0, 11), st.integers(1, 3), max_size=3),
)  # fmt: skip
def test_every_case_is_done_once_whatever_is_lost(
    count: int, size: int, choices: list[int], unlucky: dict[int, int]
) -> None:
    names = [f"case {index}" for index in range(count)]
    ray = FakeRay(choices, unlucky={f"case {index}": times for index, times in unlucky.items()})
    run = run_pool(ray, names, size, attempts=5)
    assert sorted(run.done) == sorted(names) and not run.failed


@given(st.integers(1, 4), st.lists(st.integers(0, 9), max_size=80))
def test_a_deadly_case_is_blamed_and_the_others_are_done(size: int, choices: list[int]) -> None:
    names = [f"case {index}" for index in range(8)] + ["deadly"]
    run = run_pool(FakeRay(choices, deadly=frozenset({"deadly"})), names, size)
    assert run.failed == ["deadly"] and sorted(run.done) == sorted(names[:-1])


def test_the_first_worker_starts_alone_and_cases_are_shared() -> None:
    ray = FakeRay()
    run = run_pool(ray, [str(index) for index in range(10)], size=3)
    assert run.order[0] == 0 and sorted(run.order) == [0, 1, 2] and len(ray.actors) == 3
    assert 3 <= ray.most_running <= 12
    assert all(actor.is_dead for actor in ray.actors), "no worker outlives the pool"


def test_all_workers_start_at_once_when_the_settings_are_chosen() -> None:
    ray = FakeRay()
    run_pool(ray, [str(index) for index in range(10)], size=3, has_settings=True)
    assert [call.result.process for call in ray.first_calls] == [0, 1, 2]


def test_a_worker_has_few_cases_when_few_are_left() -> None:
    for count, most in ((30, 4), (4, 2), (1, 1)):
        ray = FakeRay()
        run_pool(ray, [str(index) for index in range(count)], size=2)
        assert ray.most_of_one == most


def test_no_more_workers_than_cases() -> None:
    ray = FakeRay()
    run_pool(ray, ["one"], size=8)
    assert len(ray.actors) == 1


def test_workers_that_die_while_starting_end_the_scan() -> None:
    assert run_pool(FakeRay(failed_starts=MOST_FAILED_STARTS - 1), ["one"]).done == ["one"]
    with pytest.raises(ResultsError, match="in a row died while starting"):
        run_pool(FakeRay(failed_starts=MOST_FAILED_STARTS), ["one"])


def test_a_worker_with_a_full_disk_is_retired_and_its_cases_are_done_elsewhere() -> None:
    names = [str(index) for index in range(10)]
    full = ResultsError("no space is left on the disk")
    ray = FakeRay(task_errors=dict.fromkeys(names[3:], full))
    run = run_pool(ray, names, size=2)
    assert sorted(run.done) == names and len(ray.actors) == 2
    with pytest.raises(ResultsError, match="no space"):
        run_pool(FakeRay(task_errors=dict.fromkeys(names, full)), names, size=1)


def test_other_errors_of_workers_end_the_scan() -> None:
    with pytest.raises(ConfigError, match="another version"):
        run_pool(FakeRay(task_errors={"0": ConfigError("another version")}), ["0", "1"])
