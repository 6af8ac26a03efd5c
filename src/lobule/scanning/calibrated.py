"""A predictor whose scores are calibrated: what a site's labelled cases taught, applied to every result."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lobule.cohort import Case
from lobule.errors import BundleError
from lobule.measures.calibration import fit_from_dict
from lobule.results.result import Result
from lobule.scanning.contract import (
    Batch,
    EngineSettings,
    ImageSource,
    OpenCase,
    Pass,
    Predictor,
    ScanOptions,
    Store,
)

if TYPE_CHECKING:
    import torch


class CalibratedPredictor:
    """Another predictor, its scores replaced by calibrated ones; the raw ones are kept beside them."""

    def __init__(self, inner: Predictor, calibration: Mapping[str, Any]) -> None:
        self.inner, self.calibration = inner, calibration
        calibrated({}, calibration)  # what cannot be used is said before anything is scanned

    @property
    def classes(self) -> tuple[str, ...]:
        return self.inner.classes

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        return self.inner.images(case, options)

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        return self.inner.choose_batch(engine, room, options)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self.inner.move_to_device(engine, options)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[str, Batch]:
        return self.inner.sample_batch(engine, options)

    def forward(self, name: str, batch: Batch) -> dict[str, torch.Tensor]:
        return self.inner.forward(name, batch)

    def steps(self, case: OpenCase) -> Generator[Pass, Store, Result]:
        result = yield from self.inner.steps(case)
        scores, above = calibrated(result.scores, self.calibration)
        facts = {**result.metadata, "raw_scores": dict(result.scores), "above_thresholds": above}
        return replace(result, scores=scores, metadata=facts)


def calibrated(
    scores: Mapping[str, float], calibration: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, dict[str, bool]]]:
    """Calibrated scores, and for each which of its thresholds it reaches; others stay as they are."""
    found = {name: float(value) for name, value in scores.items()}
    above: dict[str, dict[str, bool]] = {}
    try:
        for target in calibration["targets"].values():
            fit = fit_from_dict(target["fit"])
            for name in target["scores"]:
                if name in found:
                    found[name] = float(fit([found[name]])[0])
                    above[name] = {
                        f"sensitivity {point['wanted']:g}": found[name] >= point["threshold"]
                        for point in target["thresholds"]
                    }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError("the calibration of the bundle cannot be used", actual=repr(error)) from error
    return found, above
