"""Folds as the authors of the paper published them, pickled here by Python's own pickle."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, DamagedFile, LobuleError, ResultsError
from lobule.methods.rakhlin.folds import read_folds
from lobule.pickles import plain_pickle

PREFIXES = {"n": "normal", "b": "benign", "is": "in situ", "iv": "invasive"}


def cohort(per_class: int = 10) -> Cohort:
    return Cohort(
        tuple(
            Case(
                f"{prefix}{number:03d}",
                f"{prefix}{number}",
                "image",
                f"/bach/{prefix}{number:03d}.tif",
                label=label,
            )
            for prefix, label in PREFIXES.items()
            for number in range(1, per_class + 1)
        )
    )


def published_folds(
    cases: Cohort, seed: int = 4
) -> tuple[list[dict[str, dict[str, np.ndarray]]], dict[str, int]]:
    """The list that `pickle.dump` was given: arrays of names and of labels, per fold and subset."""
    rng = np.random.default_rng(seed)
    files = np.array([f"{case.id}.npy" for case in cases])
    labels = np.array([list(PREFIXES.values()).index(case.label or "") for case in cases])
    fold_of_file = rng.permutation(np.arange(len(files)) % 10)
    folds = [
        {
            "train": {"x": files[fold_of_file != fold], "y": labels[fold_of_file != fold]},
            "test": {"x": files[fold_of_file == fold], "y": labels[fold_of_file == fold]},
        }
        for fold in range(10)
    ]
    return folds, dict(zip([case.id for case in cases], fold_of_file.tolist(), strict=True))


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_the_published_pickle_gives_each_image_the_fold_that_tests_it(protocol: int, tmp_path: Path) -> None:
    cases = cohort()
    folds, expected = published_folds(cases)
    path = tmp_path / "folds-10.pkl"
    path.write_bytes(pickle.dumps(folds, protocol))
    np.testing.assert_array_equal(read_folds(path, cases, 10), [expected[case.id] for case in cases])
    renamed = Cohort(
        tuple(Case(f"case {n}", c.patient, "image", c.path, label=c.label) for n, c in enumerate(cases))
    )
    np.testing.assert_array_equal(read_folds(path, renamed, 10), [expected[case.id] for case in cases])


def test_a_table_needs_only_case_and_fold(tmp_path: Path) -> None:
    cases = cohort(1)
    (tmp_path / "folds.csv").write_text("fold,case\n3,n001\n1,b001\n0,is001\n2,iv001\n")
    assert read_folds(tmp_path / "folds.csv", cases, 4).tolist() == [3, 1, 0, 2]


def test_arrays_of_numbers_and_text_become_lists() -> None:
    arrays = {"a": np.array([1.5, -2]), "b": np.array(["é", "long name"]), "c": np.array([[True], [False]])}
    for protocol in (2, 3, 4):
        assert plain_pickle(pickle.dumps(arrays, protocol)) == {
            "a": [1.5, -2.0], "b": ["é", "long name"], "c": [True, False],
        }  # fmt: skip


class Malice:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps([{"test": {"x": np.array([Malice()], object)}}]),
        pickle.dumps(Malice()),
        pickle.dumps([{"test": {"x": np.array([{"a": 1}], object)}}]),
        pickle.dumps([{"test": {"x": np.array(["a"])}}], 3)[:-9],
        pickle.dumps(np.zeros(3, "f8"), 3).replace(b"K\x03\x85", b"K\x04\x85"),
    ],
    ids=["a call in an array", "a call", "objects", "cut", "fewer bytes than values"],
)
def test_pickles_that_are_not_plain_are_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folds.pkl").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"folds\.pkl"):
        read_folds("folds.pkl", cohort(1), 10)
    assert not (tmp_path / "executed").exists()


def test_other_lists_and_missing_images_are_refused(tmp_path: Path) -> None:
    cases = cohort()
    folds, _ = published_folds(cohort(9))
    for content, error, message in (
        (folds, ConfigError, "4 cases have no fold"),
        ([{"train": 1}], ResultsError, "not the list of folds"),
        ([*folds, folds[0]], ResultsError, "tested in two folds"),
    ):
        (tmp_path / "folds.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(error, match=message) as caught:
            read_folds(tmp_path / "folds.pkl", cases, 11)
        assert isinstance(caught.value, LobuleError)
