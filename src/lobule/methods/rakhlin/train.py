"""Training: descriptors of every image, then boosted trees by fold, seed and set, tested on held-out folds.

In `out`: the bundle, which comes last; `features/`, a cache by content that any training may reuse; and
`training/` with the folds, the finished models (an interrupted training continues after the last one), the
out-of-fold predictions and the report.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Unpack

import lightgbm
import numpy as np
from numpy.typing import NDArray

from lobule.bundles import Bundle
from lobule.cohort import Cohort
from lobule.encoders import licences_of
from lobule.errors import BundleError, CaseError
from lobule.files import make_folder, read_json, write_json, write_text
from lobule.methods.rakhlin.boosting import boost, dataset
from lobule.methods.rakhlin.bundle import save
from lobule.methods.rakhlin.config import KINDS, Config, DescriptorSet
from lobule.methods.rakhlin.encoders import Encoder, Plan, pretrained
from lobule.methods.rakhlin.explain import Attributions, Explained, explain
from lobule.methods.rakhlin.features import Described, described
from lobule.methods.rakhlin.folds import folds_of, split_for_training, write_folds
from lobule.methods.rakhlin.forests import read_forest_file, text_name
from lobule.methods.rakhlin.report import HeldOut, calibrated, report, write_predictions
from lobule.methods.rakhlin.trees import BoostedTrees
from lobule.nets.digest import weights_digest
from lobule.training.job import TrainingJob, TrainOptions, training_job, val_and_seed

log = logging.getLogger("lobule.train")

LEARNED_FROM = "described.json"
"""File that records the descriptors and images (by content) from which the models of a training learn."""


def train(config: Config, cohort: Cohort, out: str | Path, **options: Unpack[TrainOptions]) -> Bundle:
    """Train on a cohort of labelled images (or regions) and write the bundle.

    Validation is by cross-validation, whatever `val` says. `fresh` keeps the descriptors, which are valid
    for any boosting parameters.

    Args:
        config: Settings of the descriptors and of the boosted trees.
        cohort: Cases with one label each.
        out: Folder of the bundle, the descriptors and the models.
        **options: See `TrainOptions`.
    """
    split = split_for_training(cohort, *val_and_seed(options))
    config = config.resolved().with_classes(split.train.labels())
    with training_job(config, split, out, kinds=KINDS, **options) as job:
        folds = folds_of(config, split.train, _labels(config, split.train), job.seed)
        write_folds(job.folder / "folds.csv", split.train, folds)
        numbers = range(len(config.encoders))
        encoders = [pretrained(Plan.of(config, n), config.weights_of(n), job.seed) for n in numbers]
        described_sets = [described(config, n, encoder, job) for n, encoder in enumerate(encoders)]
        data = _described_data(config, job, folds)
        _note_stains(job, data.cohort, described_sets[0])
        models = _models_folder(job, data.cohort, described_sets)
        boosting = _Boosting(config, job, models, data)
        predictions, attributions = boosting.run(described_sets)
        return _save(config, job, models, encoders, replace(data, of_sets=predictions), attributions)


def _labels(config: Config, cohort: Cohort) -> NDArray[np.intp]:
    return np.array([config.classes.index(case.label or "") for case in cohort], np.intp)


def _described_data(config: Config, job: TrainingJob, folds: NDArray[np.intp]) -> HeldOut:
    """Leave out the images without descriptors, and check that every class and fold still has images."""
    cohort = job.split.train.where(lambda case: case.id not in job.failures)
    is_described = np.array([case.id not in job.failures for case in job.split.train], np.bool_)
    labels, folds = _labels(config, cohort), folds[is_described]
    for fold in range(config.boosting.folds):
        learned_classes = np.unique(labels[folds != fold])
        if not (folds == fold).any() or len(learned_classes) < len(config.classes):
            case, cause = next(iter(job.failures.items()))
            raise CaseError(
                f"{len(job.failures)} images could not be described, and too few are left: {cause}",
                subject=case,
            )
    for case, cause in job.failures.items():
        log.warning("case %s is left out: %s", case, cause)
    return HeldOut(cohort, labels, folds)


def _note_stains(job: TrainingJob, cohort: Cohort, descriptors: Described) -> None:
    raw = [case.id for case in cohort if not descriptors.normalised(case.id)]
    if raw:
        names = ", ".join(raw[:5]) + (", …" if len(raw) > 5 else "")
        job.note(f"{len(raw)} images with hardly any tissue are used without normalisation: {names}")


def _models_folder(job: TrainingJob, cohort: Cohort, described_sets: Sequence[Described]) -> Path:
    """The folder of the models. Stored models are deleted if the descriptors they learned from changed."""
    models, record_path = make_folder(job.folder / "models"), job.folder / LEARNED_FROM
    sources = {
        "descriptors": [one.results.path.name for one in described_sets],
        "images": {case.id: described_sets[0].ids[case.id] for case in cohort},
    }
    if record_path.exists() and read_json(record_path) != sources:
        log.warning("images or weights have changed since this training began; its models are trained again")
        shutil.rmtree(models)
        make_folder(models)
    write_json(record_path, sources)
    return models


# -- boosting -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Boosting:
    """Trains the models of every set, fold and seed, or reads those of an interrupted training."""

    config: Config
    job: TrainingJob
    models: Path
    data: HeldOut
    """The images, which the models predict without having seen them."""

    def run(self, described_sets: Sequence[Described]) -> tuple[dict[str, NDArray[np.float64]], Attributions]:
        """For every set, (seeds, images, classes): predictions of the models that did not see the image."""
        predictions, attributions = {}, Attributions()
        for set_ in self.config.sets:
            self.job.begin_stage(f"boosting {set_.name}")
            described_set = described_sets[set_.encoder]
            descriptors = np.stack([described_set.of(case.id, set_.name) for case in self.data.cohort])
            predictions[set_.name] = self._all_folds(set_, descriptors, attributions)
        return predictions, attributions

    def _all_folds(
        self, set_: DescriptorSet, descriptors: NDArray[np.float32], attributions: Attributions
    ) -> NDArray[np.float64]:
        boosting, data = self.config.boosting, self.data
        out = np.empty((boosting.seeds, len(data.labels), len(self.config.classes)))
        room = self.job.machine.max_ram // (2 * descriptors.nbytes + 1)
        with ThreadPoolExecutor(max(1, min(self.job.workers, room))) as pool:
            outcomes = pool.map(lambda fold: self._fold(set_, fold, descriptors), range(boosting.folds))
            for fold, (fold_predictions, explained) in enumerate(outcomes):
                out[:, data.folds == fold] = fold_predictions
                attributions.add(set_.name, explained)
        return out

    def _fold(
        self, set_: DescriptorSet, fold: int, descriptors: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], Explained]:
        """(seeds, images of the fold, classes), and what explains the first model."""
        config, labels, boosting = self.config, self.data.labels, self.config.boosting
        is_held_out = self.data.folds == fold
        _, augmentations, width = descriptors.shape
        rows = descriptors[is_held_out].reshape(-1, width)

        @cache
        def datasets() -> tuple[lightgbm.Dataset, lightgbm.Dataset | None]:
            training = dataset(descriptors[~is_held_out], labels[~is_held_out], boosting)
            if not boosting.early_stopping:
                return training, None
            return training, dataset(descriptors[is_held_out], labels[is_held_out], boosting, training)

        predictions = []
        explained = Explained(np.zeros(width), 0)
        for seed in range(boosting.seeds):
            path = self.models / text_name(set_.name, seed, fold)
            forest = _stored_forest(path)
            if forest is None:
                booster = boost(*datasets(), len(config.classes), boosting, seed, fold)
                write_text(path, booster.model_to_string())
                forest = read_forest_file(path)
            predictions.append(forest.predict(rows).reshape(-1, augmentations, len(config.classes)))
            if seed == 0 and (count := min(config.attributions, augmentations)):
                first = descriptors[is_held_out][:, :count].reshape(-1, width)
                explained = explain(forest, first, labels[is_held_out].repeat(count))
        return np.stack([one.mean(axis=1) for one in predictions]), explained


def _stored_forest(path: Path) -> BoostedTrees | None:
    """The stored model of this training; None if it does not exist or cannot be read."""
    with suppress(BundleError):
        return read_forest_file(path)
    return None


# -- the bundle ---------------------------------------------------------------------------------------------


def _save(
    config: Config,
    job: TrainingJob,
    models: Path,
    encoders: Sequence[Encoder],
    held_out: HeldOut,
    attributions: Attributions,
) -> Bundle:
    metrics = report(config, held_out)
    calibrator, metrics["calibration"] = calibrated(config, held_out)
    if attributions.sums:
        # For each encoder, the layers that form its descriptor, and their widths.
        layers = {
            index: list(zip(encoder.taps or ["last"], encoder.widths(), strict=True))
            for index, encoder in enumerate(encoders)
        }
        metrics["attributions"] = attributions.summary(config, layers)
    write_predictions(job.folder / "out_of_fold.csv", config, held_out)
    write_json(job.folder / "report.json", metrics)
    weights = {name: weights_digest(one.trunk) for name, one in zip(config.encoders, encoders, strict=True)}
    names = [
        text_name(set_.name, seed, fold) for set_ in config.sets for seed, fold in config.boosting.models()
    ]
    inputs = {"weights": weights, **licences_of(*config.encoders)}
    return save(
        job.out, config, encoders, {name: (models / name).read_text() for name in names}, calibrator,
        seed=job.seed, **job.record(held_out.cohort, (), metrics, **inputs),
    )  # fmt: skip
