"""The division of a cohort: validation cases, folds without divided patients, and refused divisions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, Leakage
from lobule.training.division import (
    grouped_folds,
    groups_by_site,
    held_out_patients,
    refuse_missing_classes,
    training_split,
)


def case_of(name: str, patient: str, split: str | None = None, annotation: str | None = None) -> Case:
    return Case(name, patient, "slide", f"/{name}.tif", split=split, annotation=annotation)


def exam(name: str, split: str | None, **labels: bool) -> Case:
    breast_labels = {
        f"{side}_{grade}": False for side in ("left", "right") for grade in ("benign", "malignant")
    }
    return Case(name, name, "exam", None, split=split, breast_labels={**breast_labels, **labels})


# -- training and validation --------------------------------------------------------------------------------


def test_a_patient_in_two_splits_is_rejected() -> None:
    torn = Cohort((case_of("a", "p", "train"), case_of("b", "p", "test"), case_of("c", "q", "train")))
    with pytest.raises(Leakage, match="1 patients are in more than one split"):
        training_split(torn, "val", 0)


def test_patients_are_held_out_if_there_is_no_validation_split() -> None:
    cases = [case_of(f"t{i}", f"p{i // 2}", annotation="x") for i in range(20)]
    cases += [case_of(f"n{i}", f"q{i}") for i in range(10)]
    splits = training_split(Cohort(tuple(cases)), "val", 0)
    assert len(splits.train) + len(splits.val) == 30
    assert not set(splits.train.patients()) & set(splits.val.patients())
    outlined = [case for case in splits.val if case.annotation]
    assert (len(outlined), len(splits.val)) == (4, 6)
    assert training_split(Cohort(tuple(cases)), "val", 0) == splits
    assert training_split(Cohort(tuple(cases)), "val", 1) != splits
    few = training_split(Cohort(tuple(cases[:2])), "val", 0)
    assert not few.val
    assert "too few patients" in few.notes[0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 1000))
def test_a_fifth_of_each_class_is_held_out_and_no_class_is_emptied(
    positive: int, negative: int, seed: int
) -> None:
    patients = {f"p{n}": n < positive for n in range(positive + negative)}
    held_out = held_out_patients(patients, seed)
    for value, count in ((True, positive), (False, negative)):
        chosen = sum(patients[name] == value for name in held_out)
        assert chosen == (max(1, round(count / 5)) if count > 1 else 0)
        assert count == 0 or chosen < count


def test_a_validation_split_with_all_malignant_exams_is_refused() -> None:
    cases = [exam("a", "train"), exam("b", "train", left_benign=True), exam("c", "val", right_malignant=True)]
    with pytest.raises(ConfigError, match="all patients with a malignant breast are in the validation split"):
        training_split(Cohort(tuple(cases)), "val", 0, ("exam",))
    also = exam("d", "train", left_malignant=True)
    split = training_split(Cohort((*cases, also)), "val", 0, ("exam",))
    assert [case.id for case in split.train] == ["a", "b", "d"]


# -- folds --------------------------------------------------------------------------------------------------


def test_folds_of_the_published_size_have_equal_classes() -> None:
    labels, images = np.repeat(np.arange(4), 100), [str(n) for n in range(400)]
    folds = grouped_folds(labels, images, 10, seed=1)
    table = np.zeros((10, 4), int)
    np.add.at(table, (folds, labels), 1)
    np.testing.assert_array_equal(table, 10)
    assert (grouped_folds(labels, images, 10, seed=1) == folds).all()
    assert (grouped_folds(labels, images, 10, seed=2) != folds).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_a_patient_is_in_one_fold_and_folds_are_even(seed: int, folds: int) -> None:
    rng = np.random.default_rng(seed)
    patients = [f"p{k}" for k in rng.integers(0, 40, 150)]
    labels = rng.integers(0, 3, 150)
    fold_of = grouped_folds(labels, patients, folds, seed)
    folds_of_patient: dict[str, set[int]] = {}
    for patient, fold in zip(patients, fold_of.tolist(), strict=True):
        folds_of_patient.setdefault(patient, set()).add(fold)
    assert all(len(numbers) == 1 for numbers in folds_of_patient.values())
    sizes = np.bincount(fold_of, minlength=folds)
    assert sizes.max() - sizes.min() <= 12
    for label in range(3):
        counts = np.bincount(fold_of[labels == label], minlength=folds)
        assert np.abs(counts - counts.mean()).max() <= 8


@pytest.mark.parametrize(
    ("labels", "patients", "message"),
    [
        ([0, 1] * 4, ["a", "b", "c", "d"] * 2, r"5 folds need as many patients. Found 4. .*--set inner=N"),
        ([0, 0, 1, 1, 2, 2], list("abcdef"), "5 folds need as many cases of one class. Found 2"),
    ],
)
def test_too_few_patients_for_the_folds_are_refused(labels: Any, patients: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grouped_folds(labels, patients, 5, seed=0, setting="inner")


def test_folds_that_remove_a_class_from_training_are_refused() -> None:
    folds = np.array([0, 0, 1, 1, 2])
    refuse_missing_classes([0, 1, 0, 1, 0], folds, ("normal", "tumour"))
    with pytest.raises(ConfigError, match="all cases of the class 'tumour' are in one fold"):
        refuse_missing_classes([0, 0, 1, 1, 0], folds, ("normal", "tumour"))


def test_sites_that_share_a_patient_are_one_group() -> None:
    def case(name: str, patient: str, site: str | None) -> Case:
        return replace(case_of(name, patient), site=site)

    rows = [("a", "p1", "s1"), ("b", "p2", "s1"), ("c", "p2", "s2"), ("d", "p3", "s3"), ("e", "p4", None)]
    groups = groups_by_site([case(*row) for row in rows])
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 3
