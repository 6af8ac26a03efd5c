"""Folds by patient or by site: creation, storage as a table, and reuse by another training."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Cohort
from lobule.errors import ConfigError, Leakage, ResultsError, TooLarge
from lobule.files import csv_text, open_url, read_at_most, write_text
from lobule.methods.rakhlin.config import KINDS, Config
from lobule.pickles import plain_pickle
from lobule.training.division import (
    TrainingSplit,
    grouped_folds,
    groups_by_site,
    refuse_missing_classes,
    training_split,
)

LARGEST_FILE = 64 << 20
COLUMNS = ("case", "patient", "site", "label", "fold")


def split_for_training(cohort: Cohort, val: str | None, seed: int) -> TrainingSplit:
    """The labelled cases of the split 'train'. No case is held out, because the folds validate."""
    training = training_split(cohort, None, seed, KINDS).train
    labelled = training.where(lambda case: case.label is not None)
    notes = ["cross-validation validates: no case is held out for it"]
    if val is not None and cohort.splits() and len(cohort.split(val)):
        notes.append(f"the split '{val}' is left alone: scan and evaluate it")
    if len(labelled) < len(training):
        notes.append(f"{len(training) - len(labelled)} cases without a label are left out")
    if not len(labelled):
        raise ConfigError("no case has a label", subject=cohort.path, expected="one label an image")
    return TrainingSplit(labelled, Cohort(()), tuple(notes))


def folds_of(config: Config, cohort: Cohort, labels: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """The fold of every case: those of `folds_file`, or new ones that keep patients (or sites) together."""
    _check_counts(config, labels)
    unit = "patients" if config.folds_by == "patient" else "sites"
    if config.folds_file:
        folds = read_folds(config.folds_file, cohort, config.boosting.folds)
    else:
        groups = groups_by_site(cohort.cases) if unit == "sites" else [case.patient for case in cohort]
        count = config.boosting.folds
        folds = grouped_folds(labels, groups, count, seed, unit=unit, setting="boosting.folds")
    refuse_missing_classes(labels, folds, config.classes, unit)
    return folds


def write_folds(path: Path, cohort: Cohort, folds: NDArray[np.intp]) -> None:
    pairs = zip(cohort, folds.tolist(), strict=True)
    rows = [[case.id, case.patient, case.site or "", case.label, fold] for case, fold in pairs]
    write_text(path, csv_text(COLUMNS, rows))


def read_folds(path: str | Path, cohort: Cohort, count: int) -> NDArray[np.intp]:
    """The folds of a file, for the cases of a cohort; a patient in two of them is refused.

    The file is a table with the columns `case` and `fold`, or the pickled list that the authors published:
    per fold a dictionary whose `test` has the names of its images in `x`. Nothing in a pickle is executed.
    """
    with open_url(path) as file:
        content = read_at_most(file, LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise TooLarge(
            "the file of folds is too large", subject=path, expected=f"at most {LARGEST_FILE} bytes"
        )
    is_pickle = content[:1] == b"\x80" or str(path).endswith((".pkl", ".pickle"))
    fold_of_name = _pickled_folds(content, path) if is_pickle else _folds_of_table(content, path)
    names = {case.id: [case.id, Path(case.path or "").stem] for case in cohort}
    fold_of_case = {
        case: fold_of_name[name]
        for case, both in names.items()
        for name in both[::-1]
        if name in fold_of_name
    }
    missing = [case.id for case in cohort if case.id not in fold_of_case]
    if missing:
        raise ConfigError(
            f"{len(missing)} cases have no fold there", subject=path, actual=", ".join(missing[:5])
        )
    folds = np.array([fold_of_case[case.id] for case in cohort], np.intp)
    if folds.min() < 0 or folds.max() >= count:
        raise ConfigError(
            "folds beyond those asked for",
            subject=path,
            expected=f"0 to {count - 1}",
            actual=f"{folds.min()} to {folds.max()}",
            remedy=f"--set boosting.folds={folds.max() + 1}",
        )
    pairs = set(zip((case.patient for case in cohort), folds.tolist(), strict=True))
    counts = Counter(patient for patient, _ in pairs)
    if torn := [patient for patient in cohort.patients() if counts[patient] > 1]:
        raise Leakage("patients are in several folds", subject=path, actual=", ".join(torn[:5]))
    return folds


def _folds_of_table(content: bytes, path: str | Path) -> dict[str, int]:
    try:
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
        return {row["case"]: int(row["fold"]) for row in rows}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ResultsError(
            "this is not a table of folds", subject=path, expected="the columns case and fold"
        ) from error


def _pickled_folds(content: bytes, path: str | Path) -> dict[str, int]:
    """The fold in which each image, by its name without suffix, is tested."""
    folds = plain_pickle(content, path)
    try:
        names = [[Path(name).stem for name in fold["test"]["x"]] for fold in folds]
    except (KeyError, TypeError) as error:
        raise ResultsError(
            "this is not the list of folds that the authors published",
            subject=path,
            expected="a list of dictionaries with the images of a fold in ['test']['x']",
        ) from error
    folds = {name: fold for fold, names_of_fold in enumerate(names) for name in names_of_fold}
    if len(folds) < sum(map(len, names)):
        raise ResultsError("an image is tested in two folds", subject=path, expected="one fold an image")
    return folds


def _check_counts(config: Config, labels: NDArray[np.intp]) -> None:
    counts = np.bincount(labels, minlength=len(config.classes))
    fewest = int(counts.argmin())
    if counts[fewest] < config.boosting.folds:
        raise ConfigError(
            f"the class '{config.classes[fewest]}' has fewer images than there are folds",
            expected=f"at least {config.boosting.folds}",
            actual=f"{counts[fewest]}",
            remedy=f"Add images, or ask for fewer folds: --set boosting.folds={max(2, counts[fewest])}",
        )
