"""The boosted trees of every set, and the calibration that may follow their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import BundleError
from lobule.measures.calibration import Isotonic, Platt, fit_from_dict, fit_isotonic, fit_platt
from lobule.methods.rakhlin.trees import LARGEST_TEXT, BoostedTrees


def text_name(set_name: str, seed: int, fold: int) -> str:
    """The file of a model."""
    return f"{set_name}-s{seed}-f{fold}.txt"


def read_forest_file(path: Path) -> BoostedTrees:
    """A model from a file of LightGBM's text."""
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise BundleError(
                "too large for a model", subject=path, expected=f"at most {LARGEST_TEXT >> 20} MiB"
            )
        return BoostedTrees.of_text(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError("the model cannot be read", subject=path, actual=str(error)[:200]) from error


@dataclass(frozen=True)
class Forests:
    """Set → its models of all seeds and folds."""

    of_set: Mapping[str, Sequence[BoostedTrees]]

    def predict(self, set_name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(rows, classes): the mean over all models of a set, for images that are in no fold."""
        predictions = [forest.predict(rows) for forest in self.of_set[set_name]]
        mean: NDArray[np.float32] = np.mean(predictions, axis=0).astype(np.float32)
        return mean


def merged(probabilities: NDArray[np.floating[Any]], groups: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """(..., classes) to (..., groups): the largest of each group, over their sum.

    Not the sum of each group: so the merged label is always the group of the winning class.
    """
    columns = [probabilities[..., list(group)].max(axis=-1) for group in groups]
    largest: NDArray[np.float64] = np.stack(columns, axis=-1).astype(np.float64)
    largest /= largest.sum(axis=-1, keepdims=True)
    return largest


@dataclass(frozen=True)
class Calibrator:
    """Each class against the rest, then all over their sum."""

    curves: tuple[Platt | Isotonic | None, ...]
    """None leaves a class as it is: one that never occurred, or always."""

    def __call__(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., classes) to (..., classes)."""
        columns = [
            probabilities[..., n] if curve is None else curve(probabilities[..., n])
            for n, curve in enumerate(self.curves)
        ]
        calibrated = np.clip(np.stack(columns, axis=-1), 1e-9, None)
        return np.asarray(calibrated / calibrated.sum(axis=-1, keepdims=True))

    def to_list(self) -> list[dict[str, Any] | None]:
        return [None if curve is None else curve.to_dict() for curve in self.curves]

    @classmethod
    def from_list(cls, stored: Sequence[Mapping[str, Any] | None]) -> Calibrator:
        try:
            return cls(tuple(None if curve is None else fit_from_dict(curve) for curve in stored))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError("a calibration that cannot be used", actual=repr(stored)) from error


def fit_calibrator(kind: str, labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> Calibrator:
    """ "platt" or "isotonic", on probabilities (images, classes) that the images had no part in."""
    fit = fit_platt if kind == "platt" else fit_isotonic
    return Calibrator(tuple(fit(labels == n, probabilities[:, n]) for n in range(probabilities.shape[1])))
