"""Patients in several splits, equal files of several cases, and sites that give labels away."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from lobule.cohort import SPLITS, Case
from lobule.cohort.rows import same_file, same_patient
from lobule.errors import LobuleError
from lobule.files import is_url
from lobule.fingerprints import fingerprint

SAMPLED_BYTES = 64 << 10
"""Bytes at the start, middle and end of a file that are compared before the whole file is read."""
LEAST_ASSOCIATION = 0.3
"""Smallest association (Cramér's V) of sites and labels that is reported."""
LARGEST_P = 0.01


@dataclass(frozen=True)
class SharedPatient:
    """A patient with cases in several splits."""

    patient: str
    cases: Mapping[str, tuple[str, ...]]
    """The cases in each split."""


@dataclass(frozen=True)
class EqualFiles:
    """Files of several cases with the same content."""

    files: tuple[str, ...]
    cases: tuple[str, ...]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Confounding:
    """A column that tells much about the label."""

    column: str
    association: float
    """Cramér's V between values and labels, corrected for its bias: 0 for none, 1 if the value decides."""
    p: float
    patients: Mapping[str, Mapping[str, int]]
    """Number of patients with each label at each value."""


def patients_in_several_splits(cases: Sequence[Case]) -> list[SharedPatient]:
    """Patients with cases in several splits, compared without letter case, spaces and a decimal zero."""
    by_patient: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    spelling: dict[str, str] = {}
    for case in cases:
        if case.split is not None:
            key = same_patient(case.patient)
            spelling.setdefault(key, case.patient)
            by_patient[key][case.split].append(case.id)
    return [
        SharedPatient(spelling[key], {name: tuple(splits[name]) for name in SPLITS if name in splits})
        for key, splits in by_patient.items()
        if len(splits) > 1
    ]


def splits_of(cases: Iterable[Case]) -> tuple[str, ...]:
    """The splits of some cases, in the order train, val, test."""
    present = {case.split for case in cases}
    return tuple(name for name in SPLITS if name in present)


# -- equal files --------------------------------------------------------------------------------------------


def equal_files(cases: Sequence[Case]) -> list[EqualFiles]:
    """Files with the same content that belong to several cases.

    Only files of equal size whose first, middle and last bytes agree are read completely. Regions of one
    slide share its file within a split on purpose, and are reported only across splits.
    """
    owners: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        for path in case.paths:
            if not is_url(path) and Path(path).is_file():
                owners[same_file(path)].append(case)
    groups = [
        paths
        for similar in _grouped(owners, _sample)
        for paths in _grouped(similar, lambda path: fingerprint(path))
    ]
    alone = [[path] for path in owners if not any(path in paths for paths in groups)]
    reports = []
    for paths in groups + alone:
        sharing = {case.id: case for path in paths for case in owners[path]}
        splits = splits_of(sharing.values())
        only_regions = len(paths) == 1 and all(case.kind == "region" for case in sharing.values())
        if len(sharing) > 1 and not (only_regions and len(splits) < 2):
            reports.append(EqualFiles(tuple(paths), tuple(sharing), splits))
    return reports


def _grouped(paths: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    """Groups of at least two paths with the same key; paths that cannot be read are left out."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        try:
            groups[key(path)].append(path)
        except (OSError, LobuleError):
            continue
    return [group for group in groups.values() if len(group) > 1]


def _sample(path: str) -> str:
    """The size of a file and a hash of its first, middle and last bytes."""
    size = Path(path).stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with Path(path).open("rb") as file:
        for offset in (0, size // 2, max(0, size - SAMPLED_BYTES)):
            file.seek(offset)
            digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


# -- confounding --------------------------------------------------------------------------------------------


def label_of(case: Case) -> str | None:
    """The label of a case; of an exam without one, whether any breast is malignant."""
    if case.label is not None or not case.breast_labels:
        return case.label
    malignant = [value for name, value in case.breast_labels.items() if name.endswith("_malignant")]
    return None if not malignant else "malignant" if any(malignant) else "not malignant"


def confounded(cases: Sequence[Case], column: str = "site") -> Confounding | None:
    """The association of a column with the labels; None if it is weak or may be chance.

    A patient counts once for each of its pairs of value and label. The p-value is that of a chi-squared
    test with `LARGEST_P` as its limit.
    """
    pairs = {
        (same_patient(case.patient), value, label)
        for case in cases
        if (value := case.value(column)) is not None and (label := label_of(case)) is not None
    }
    counts = Counter((value, label) for _, value, label in pairs)
    values, labels = (sorted({pair[index] for pair in counts}) for index in (0, 1))
    if len(values) < 2 or len(labels) < 2:
        return None
    table = np.array([[counts[value, label] for label in labels] for value in values])
    chi2, p, _, _ = stats.chi2_contingency(table, correction=False)
    association = _cramers_v(float(chi2), table.shape, int(table.sum()))
    if association < LEAST_ASSOCIATION or p > LARGEST_P:
        return None
    patients = {value: {label: counts[value, label] for label in labels} for value in values}
    return Confounding(column, association, float(p), patients)


def _cramers_v(chi2: float, shape: tuple[int, ...], total: int) -> float:
    """Cramér's V with the correction of Bergsma (2013)."""
    rows, columns = shape
    if total < 2:
        return 0.0
    phi2 = max(0.0, chi2 / total - (rows - 1) * (columns - 1) / (total - 1))
    corrected = min(rows - (rows - 1) ** 2 / (total - 1) - 1, columns - (columns - 1) ** 2 / (total - 1) - 1)
    return float(np.sqrt(phi2 / corrected)) if corrected > 0 else 0.0
