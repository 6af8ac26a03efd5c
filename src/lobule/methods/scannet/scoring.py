"""Training of the slide score: scan the slides, compute features of their maps, and fit a forest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lobule.cohort import Cohort
from lobule.cohort.labels import polarity
from lobule.files import read_json, write_json
from lobule.methods.scannet.forest import CrossFitted, Floats, cross_fit, map_features, too_few
from lobule.methods.scannet.predictor import DensePredictor, analysed_map
from lobule.results.folder import open_results
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.tissue import TissueConfig
from lobule.training.patch_sampling import TUMOUR, SlidePositions

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
    predictor: DensePredictor,
    fingerprint: str,
    slides: Sequence[SlidePositions],
    tissue: TissueConfig | None,
    folder: Path,
    machine: Machine,
    *,
    trees: int,
    seed: int,
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
    rows, notes = features_of(predictor, fingerprint, labelled, tissue, folder, machine)
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
    predictor: DensePredictor,
    fingerprint: str,
    slides: Sequence[SlidePositions],
    tissue: TissueConfig | None,
    folder: Path,
    machine: Machine,
) -> tuple[dict[str, Floats], list[str]]:
    """Features of each slide's map at the default stride; finished ones are read from `folder`."""
    record = folder / RECORD
    if not record.exists():
        cohort = Cohort(tuple(slide.case for slide in slides))
        bundle_metadata = {
            "method": "scannet",
            "fingerprint": fingerprint,
            "classes": list(predictor.classes),
        }
        results = folder / "slide-score"
        report = scan(predictor, bundle_metadata, cohort, results, ScanOptions(tissue=tissue), machine)
        stored_results = open_results(results)
        features = {}
        for case in cohort:
            if case.id not in report.failed:
                (reader,) = stored_results.case_folder(case.id).maps.values()
                features[case.id] = map_features(*analysed_map(reader)[:2]).tolist()
        notes = [f"{name}: not used for the slide score: {reason}" for name, reason in report.failed.items()]
        write_json(record, {"features": features, "notes": notes})
        shutil.rmtree(results, ignore_errors=True)
    stored: Mapping[str, Any] = read_json(record)
    return {name: np.array(row) for name, row in stored["features"].items()}, list(stored["notes"])
