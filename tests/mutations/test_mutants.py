"""The mutants are sound and the campaign notices what it should; the campaign itself is a long run."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.mutations.campaign import (
    UNDECIDED,
    Outcome,
    read_outcomes,
    related_tests,
    report,
    run_campaign,
)  # fmt: skip
from tests.mutations.mutants import SOURCE, Mutant, choose_mutants, covered_files, mutants_of

EXAMPLE = b'''
"""Docstring with 1 number and a < sign."""
LIMIT: int = 3

def area(width: int, height: int = 2) -> int:
    """Area."""
    if width < 0 or not height:
        raise ValueError(f"{width + 1} is below 0")
    return width * height + 1
'''


def test_every_kind_of_fault_is_made_once_and_text_for_people_is_left_alone() -> None:
    faults = {(mutant.original, mutant.replacement) for mutant in mutants_of("example.py", EXAMPLE)}
    assert faults == {
        ("3", "4"), ("2", "3"), ("<", "<="), ("0", "1"), ("or", "and"), ("not height", "height"),
        ("width < 0 or not height", "(not (width < 0 or not height))"), ("*", "+"), ("+", "-"), ("1", "2"),
    }  # fmt: skip


def test_every_mutant_of_a_module_parses_to_another_program() -> None:
    source = (SOURCE / "grid.py").read_bytes()
    original = ast.dump(ast.parse(source))
    mutants = mutants_of("grid.py", source)
    assert len(mutants) > 50
    for mutant in mutants:
        assert ast.dump(ast.parse(mutant.apply(source))) != original, mutant.name


def test_the_same_seed_chooses_the_same_mutants() -> None:
    assert choose_mutants(30, 4) == choose_mutants(30, 4)
    assert choose_mutants(30, 4) != choose_mutants(30, 5)


def test_a_mutant_of_an_older_text_is_refused() -> None:
    mutant = Mutant("grid.py", 1, 0, 1, "<", "<=")
    with pytest.raises(ValueError, match="the file has changed"):
        mutant.apply(b"changed text")


def test_every_covered_file_has_related_tests_that_exist() -> None:
    root = Path(__file__).parents[2]
    for module in covered_files():
        for test in related_tests(module):
            assert (root / test).exists(), (module, test)


def test_the_last_outcome_of_a_mutant_counts(tmp_path: Path) -> None:
    """A mutant that was undecided in a short campaign gets another outcome in the next one."""
    mutant = choose_mutants(1, 1)[0]
    decided = Outcome(mutant.name, mutant.module, mutant.line, "", "", True, "FAILED tests/test_grid.py", 1.0)
    undecided = replace(decided, caught=False, evidence=UNDECIDED)
    path = tmp_path / "outcomes.jsonl"
    path.write_text("".join(json.dumps(asdict(outcome)) + "\n" for outcome in (undecided, decided)))
    assert read_outcomes(path) == [decided]


@pytest.mark.campaign
def test_two_hundred_mutants_are_caught(tmp_path: Path) -> None:
    outcomes = run_campaign(choose_mutants(200, seed=1), tmp_path / "outcomes.jsonl")
    caught = sum(outcome.caught for outcome in outcomes)
    assert caught >= 0.92 * len(outcomes), report(outcomes)
