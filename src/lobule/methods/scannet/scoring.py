"""Learning the slide score from the slides at hand: their maps, the features of these, and a forest."""

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
from lobule.methods.scannet.forest import CrossFitted, Floats, cross_fitted, map_features, too_few
from lobule.methods.scannet.predictor import DensePredictor, analysed_map
from lobule.results.folder import open_results
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.tissue import TissueConfig
from lobule.training.patch_sampling import TUMOUR, SlidePositions

KEPT = "slide_score.json"


@dataclass(frozen=True, eq=False)
class Learned:
    """What a training learned of slide scores; without `fitted` the highest cell stays the score."""

    fitted: CrossFitted | None
    cases: tuple[str, ...] = ()
    """Of `fitted.scores`, in order."""
    notes: tuple[str, ...] = ()

    def metrics(self) -> dict[str, Any]:
        """For the bundle: scores that no forest learned from, and the area under their curve."""
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
) -> Learned:
    """Scan the slides with the trained net and learn their label from their maps, by folds of patients.

    Too few patients of a kind leave the highest cell as the score, and that is said. Maps of slides that the
    net was trained on are cleaner than those of others, so that slides which only validated help here.
    """
    kinds = {places.case.id: is_tumour(places) for places in slides}
    known = [places for places in slides if kinds[places.case.id] is not None]
    if why := too_few(np.array([bool(kinds[p.case.id]) for p in known]), [p.case.patient for p in known]):
        return Learned(None, notes=(f"{why}: the slide score is the highest cell",))
    rows, notes = features_of(predictor, fingerprint, known, tissue, folder, machine)
    used = [places for places in known if places.case.id in rows]
    positive = np.array([bool(kinds[places.case.id]) for places in used])
    patients = [places.case.patient for places in used]
    if why := too_few(positive, patients):
        return Learned(None, notes=(*notes, f"{why}: the slide score is the highest cell"))
    names = tuple(places.case.id for places in used)
    table = np.stack([rows[name] for name in names])
    return Learned(cross_fitted(table, positive, patients, trees=trees, seed=seed), names, tuple(notes))


def is_tumour(places: SlidePositions) -> bool | None:
    """By the label, else by the outlines; None where neither says."""
    meaning = None if places.case.label is None else polarity(places.case.label)
    if meaning is not None:
        return meaning
    return True if places.count(TUMOUR) else None


def features_of(
    predictor: DensePredictor,
    fingerprint: str,
    slides: Sequence[SlidePositions],
    tissue: TissueConfig | None,
    folder: Path,
    machine: Machine,
) -> tuple[dict[str, Floats], list[str]]:
    """The features of each slide's map at the method's stride; done before, they are read from `folder`."""
    kept = folder / KEPT
    if not kept.exists():
        cohort = Cohort(tuple(places.case for places in slides))
        facts = {"method": "scannet", "fingerprint": fingerprint, "classes": list(predictor.classes)}
        results = folder / "slide-score"
        report = scan(predictor, facts, cohort, results, ScanOptions(tissue=tissue), machine)
        opened = open_results(results)
        found = {}
        for case in cohort:
            if case.id not in report.failed:
                (reader,) = opened.case_folder(case.id).maps.values()
                found[case.id] = map_features(*analysed_map(reader)[:2]).tolist()
        notes = [f"{name}: not used for the slide score: {why}" for name, why in report.failed.items()]
        write_json(kept, {"features": found, "notes": notes})
        shutil.rmtree(results, ignore_errors=True)
    stored: Mapping[str, Any] = read_json(kept)
    return {name: np.array(row) for name, row in stored["features"].items()}, list(stored["notes"])
