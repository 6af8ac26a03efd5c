"""Folds by patient or by site: creation, storage as a table, and reuse by another training."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, Leakage, ResultsError
from lobule.files import open_url, write_text
from lobule.methods.rakhlin.boosting import stratified_folds
from lobule.methods.rakhlin.config import Config

COLUMNS = ("case", "patient", "site", "label", "fold")


def folds_of(config: Config, cohort: Cohort, labels: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """The fold of every case: those of `folds_file`, or new ones that keep patients (or sites) together."""
    _check_counts(config, labels)
    if config.folds_file:
        folds = read_folds(config.folds_file, cohort, config.boosting.folds)
    else:
        folds = stratified_folds(labels.tolist(), groups_of(config, cohort), config.boosting.folds, seed)
    _check_classes(config, labels, folds)
    return folds


def groups_of(config: Config, cohort: Cohort) -> list[str]:
    """The group of each case that no fold divides. Sites that share a patient are one group."""
    if config.folds_by == "patient":
        return [case.patient for case in cohort]
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while above.get(name, name) != name:
            name = above[name]
        return name

    for case in cohort:  # a patient seen at two sites joins them
        above[root(f"patient {case.patient}")] = root(
            f"site {case.site}" if case.site else f"patient {case.patient}"
        )
    return [root(f"patient {case.patient}") for case in cohort]


def write_folds(path: Path, cohort: Cohort, folds: NDArray[np.intp]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case, fold in zip(cohort, folds.tolist(), strict=True):
        writer.writerow([case.id, case.patient, case.site or "", case.label, fold])
    write_text(path, out.getvalue())


def read_folds(path: str | Path, cohort: Cohort, count: int) -> NDArray[np.intp]:
    """The folds of a table, for the cases of a cohort; a patient in two of them is refused."""
    with open_url(path, "r") as file:
        rows = list(csv.DictReader(file))
    try:
        fold_of_case = {row["case"]: int(row["fold"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(
            "this is not a table of folds", subject=path, expected=",".join(COLUMNS)
        ) from error
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
    torn = _torn(cohort.cases, folds)
    if torn:
        raise Leakage("patients are in several folds", subject=path, actual=", ".join(torn[:5]))
    return folds


def _torn(cases: tuple[Case, ...], folds: NDArray[np.intp]) -> list[str]:
    fold_of_group: dict[str, int] = {}
    return [
        case.patient
        for case, fold in zip(cases, folds.tolist(), strict=True)
        if fold_of_group.setdefault(case.patient, fold) != fold
    ]


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


def _check_classes(config: Config, labels: NDArray[np.intp], folds: NDArray[np.intp]) -> None:
    """Check that every model learns from every class."""
    for fold in range(config.boosting.folds):
        if not (folds == fold).any():
            raise ConfigError(f"fold {fold} is empty", remedy="Ask for fewer folds")
        missing = np.setdiff1d(np.arange(len(config.classes)), labels[folds != fold])
        if len(missing):
            unit = "patient" if config.folds_by == "patient" else "site"
            raise ConfigError(
                f"all images of the class '{config.classes[missing[0]]}' are in one fold",
                expected=f"images of every class from two {unit}s or more",
                remedy="Add images of others" + ("" if unit == "patient" else ", or --set folds_by=patient"),
            )
