"""A predictor that calibrates the scores of another one, with a fit to the labelled cases of a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lobule.errors import BundleError
from lobule.measures.calibration import fit_from_dict
from lobule.results.result import Result
from lobule.scanning.contract import OpenCase, Predictor, Steps


class CalibratedPredictor:
    """Replaces the scores of another predictor by calibrated ones. The metadata keeps the raw scores."""

    def __init__(self, inner: Predictor, calibration: Mapping[str, Any]) -> None:
        self.inner, self.calibration = inner, calibration
        self.model, self.images = inner.model, inner.images
        calibrated({}, calibration)  # An unusable calibration raises an error before anything is scanned.

    def steps(self, case: OpenCase) -> Steps[Result]:
        result = yield from self.inner.steps(case)
        scores, above = calibrated(result.scores, self.calibration)
        metadata = {**result.metadata, "raw_scores": dict(result.scores), "above_thresholds": above}
        return replace(result, scores=scores, metadata=metadata)


def calibrated(
    scores: Mapping[str, float], calibration: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, dict[str, bool]]]:
    """Calibrate the scores that the calibration covers, and compare each with its thresholds.

    Args:
        scores: Raw scores by name.
        calibration: The calibration stored in a bundle.

    Returns:
        All scores, of which those without a calibration are unchanged; and for each calibrated score, whether
        it reaches each threshold.

    Raises:
        BundleError: The calibration is damaged.
    """
    calibrated_scores = {name: float(value) for name, value in scores.items()}
    above: dict[str, dict[str, bool]] = {}
    try:
        for target in calibration["targets"].values():
            fit = fit_from_dict(target["fit"])
            for name in target["scores"]:
                if name in calibrated_scores:
                    calibrated_scores[name] = float(fit([calibrated_scores[name]])[0])
                    above[name] = {
                        f"sensitivity {point['wanted']:g}": calibrated_scores[name] >= point["threshold"]
                        for point in target["thresholds"]
                    }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError("the calibration of the bundle cannot be used", actual=repr(error)) from error
    return calibrated_scores, above
