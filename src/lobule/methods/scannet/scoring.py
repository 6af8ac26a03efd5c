"""Training of the slide score: scan the slides, compute features of their maps, and fit a forest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lobule.cohort.labels import polarity
from lobule.methods.scannet.forest import CrossFitted, Floats, cross_fit, map_features, too_few
from lobule.methods.scannet.predictor import analysed_map
from lobule.training.patch_sampling import TUMOUR, SlidePositions
from lobule.training.training_scan import ScannedMaps, TrainingScan

RECORD = "slide_score.json"


@dataclass(frozen=True, eq=False)
class LearnedSlideScore:
    """The trained slide score; if `fitted` is None, the highest cell remains the score."""

    fitted: CrossFitted | None
    cases: tuple[str, ...] = ()
    """The cases of `fitted.scores`, in the same order."""
    notes: tuple[str, ...] = ()

    def metrics(self) -> dict[str, Any]:
        """Metrics for the bundle: out-of-fold scores and the area under their ROC curve."""
        if self.fitted is None:
            return {}
        scores = dict(zip(self.cases, self.fitted.scores.round(6).tolist(), strict=True))
        return {"slide_auc_out_of_fold": self.fitted.auc, "slide_scores_out_of_fold": scores}


def learn_slide_score(
    slide_scan: TrainingScan[Any], slides: Sequence[SlidePositions], *, trees: int, seed: int
) -> LearnedSlideScore:
    """Scan the slides with the trained net, and train a forest to predict their labels from their maps.

    With too few patients of one class, the highest cell remains the score and a note explains it. Validation
    slides are useful here, because the maps of slides that the net was trained on are cleaner than other
    maps.
    """
    labels = {slide.case.id: is_tumour(slide) for slide in slides}
    labelled = [slide for slide in slides if labels[slide.case.id] is not None]
    if reason := too_few(
        np.array([bool(labels[slide.case.id]) for slide in labelled]),
        [slide.case.patient for slide in labelled],
    ):
        return LearnedSlideScore(None, notes=(f"{reason}: the slide score is the highest cell",))
    rows, notes = features_of(slide_scan, labelled)
    scanned = [slide for slide in labelled if slide.case.id in rows]
    positive = np.array([bool(labels[slide.case.id]) for slide in scanned])
    patients = [slide.case.patient for slide in scanned]
    if reason := too_few(positive, patients):
        return LearnedSlideScore(None, notes=(*notes, f"{reason}: the slide score is the highest cell"))
    names = tuple(slide.case.id for slide in scanned)
    table = np.stack([rows[name] for name in names])
    return LearnedSlideScore(
        cross_fit(table, positive, patients, trees=trees, seed=seed), names, tuple(notes)
    )


def is_tumour(slide: SlidePositions) -> bool | None:
    """Whether a slide has tumour, by its label or else by its outlines; None if neither tells."""
    meaning = None if slide.case.label is None else polarity(slide.case.label)
    if meaning is not None:
        return meaning
    return True if slide.count(TUMOUR) else None


def features_of(
    slide_scan: TrainingScan[Any], slides: Sequence[SlidePositions]
) -> tuple[dict[str, Floats], list[str]]:
    """Features of each slide's map at the default stride; finished ones are read again."""

    def features(scanned: ScannedMaps) -> dict[str, Any]:
        rows = {
            name: map_features(*analysed_map(reader)[:2]).tolist() for name, reader in scanned.maps.items()
        }
        return {"features": rows, "notes": scanned.notes("not used for the slide score")}

    stored = slide_scan.recorded(RECORD, [slide.case for slide in slides], features)
    return {name: np.array(row) for name, row in stored["features"].items()}, stored["notes"]
