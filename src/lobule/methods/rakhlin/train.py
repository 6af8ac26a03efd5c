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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from lobule.bundles import Bundle
from lobule.cohort import Cohort, Kind
from lobule.errors import BundleError, CaseError, ConfigError
from lobule.files import make_folder, read_json, write_json, write_text
from lobule.methods.rakhlin.boosting import BoostingConfig, boost, data_parameters
from lobule.methods.rakhlin.bundle import save
from lobule.methods.rakhlin.config import BACH, Config, DescriptorSet
from lobule.methods.rakhlin.encoders import Encoder, Plan, pretrained
from lobule.methods.rakhlin.explain import Attributions, Explained, explain
from lobule.methods.rakhlin.features import Described, described, weights_hash
from lobule.methods.rakhlin.folds import folds_of, write_folds
from lobule.methods.rakhlin.forests import read_forest, read_forest_file, text_name
from lobule.methods.rakhlin.report import HeldOut, calibrated, report, write_predictions
from lobule.methods.rakhlin.trees import BoostedTrees
from lobule.scanning.scan import Machine
from lobule.tissue import TissueConfig
from lobule.training.fitting import FitProgress, TrainMachine
from lobule.training.job import TrainingSplit, begun_training, training_split

log = logging.getLogger("lobule.train")

KINDS: tuple[Kind, ...] = ("image", "region", "slide")
LEARNED_FROM = "described.json"
"""File that records the descriptors and images (by content) from which the models of a training learn."""


def split_for_training(
    cohort: Cohort, val: str | None, seed: int, kinds: tuple[Kind, ...] = KINDS
) -> TrainingSplit:
    """The labelled cases of the split 'train'. No case is held out, because the folds validate."""
    training = training_split(cohort, None, seed, kinds).train
    labelled = training.where(lambda case: case.label is not None)
    notes = ["cross-validation validates: no case is held out for it"]
    if val is not None and cohort.splits() and len(cohort.split(val)):
        notes.append(f"the split '{val}' is left alone: scan and evaluate it")
    if len(labelled) < len(training):
        notes.append(f"{len(training) - len(labelled)} cases without a label are left out")
    if not len(labelled):
        raise ConfigError("no case has a label", subject=cohort.path, expected="one label an image")
    return TrainingSplit(labelled, Cohort(()), tuple(notes))


def train(
    config: Config,
    cohort: Cohort,
    out: str | Path,
    *,
    val: str | None = "val",
    seed: int = 0,
    resume: bool = False,
    fresh: bool = False,
    tissue: TissueConfig | None = None,
    machine: TrainMachine | None = None,
    progress: FitProgress | None = None,
) -> Bundle:
    """Train on a cohort of labelled images (or regions) and write the bundle.

    Validation is by cross-validation, whatever `val` says. `resume` continues with the contents of
    `out`; `fresh` deletes them except the descriptors, which are valid for any boosting parameters.
    """
    machine, progress = (machine or TrainMachine()).resolved(), progress or FitProgress()
    split = split_for_training(cohort, val, seed)
    config = with_classes(config.resolved(), split.train)
    with begun_training(out, config, split, also={"seed": seed}, resume=resume, fresh=fresh) as folder:
        return _Training(config, split, Path(out), folder, seed, machine, progress).run()


def with_classes(config: Config, cohort: Cohort) -> Config:
    """Return the config with the classes of the cohort, and refuse labels that are not among its classes."""
    labels = cohort.labels()
    if not config.classes:
        classes = BACH if set(labels) == set(BACH) else labels
        config = replace(config, classes=classes)
    elif strange := sorted(set(labels) - set(config.classes)):
        raise ConfigError(
            f"the label '{strange[0]}' is not one of the classes", expected=", ".join(config.classes)
        )
    if len(config.classes) < 2:
        raise ConfigError(
            "there are fewer than two classes", expected="two classes or more", actual=", ".join(labels)
        )
    return config


@dataclass(frozen=True, eq=False)
class _Data:
    """The images that could be described, their classes and folds."""

    cohort: Cohort
    labels: NDArray[np.intp]
    folds: NDArray[np.intp]


class _Training:
    """The state of one training: its folds, descriptors and models."""

    def __init__(
        self,
        config: Config,
        who: TrainingSplit,
        out: Path,
        folder: Path,
        seed: int,
        machine: TrainMachine,
        progress: FitProgress,
    ) -> None:
        self.config, self.who, self.out, self.folder, self.seed = config, who, out, folder, seed
        self.machine, self.progress = machine, progress
        self.models = make_folder(folder / "models")
        self.notes: list[str] = []
        self.failures: dict[str, str] = {}
        self._note(*who.notes)

    def run(self) -> Bundle:
        cohort = self.who.train
        labels = self._labels(cohort)
        folds = folds_of(self.config, cohort, labels, self.seed)
        write_folds(self.folder / "folds.csv", cohort, folds)
        encoders = [
            pretrained(Plan.of(self.config, n), self.config.weights_of(n), self.seed)
            for n in range(len(self.config.encoders))
        ]
        described_sets = [self._described(n, encoder, cohort) for n, encoder in enumerate(encoders)]
        is_described = np.array([case.id not in self.failures for case in cohort], np.bool_)
        left = cohort.where(lambda case: case.id not in self.failures)
        self._check_left(labels[is_described], folds[is_described])
        self._note_stains(left, described_sets[0])
        self._forget_models_of_others(left, described_sets)
        data = _Data(left, labels[is_described], folds[is_described])
        of_sets, attributions = {}, Attributions()
        for set_ in self.config.sets:
            self.progress.stage = f"boosting {set_.name}"
            of_sets[set_.name] = self._boosted(set_, described_sets[set_.encoder], data, attributions)
        held_out = HeldOut(data.cohort, data.labels, data.folds, of_sets)
        return self._finish(encoders, held_out, attributions)

    def _labels(self, cohort: Cohort) -> NDArray[np.intp]:
        class_index = {name: n for n, name in enumerate(self.config.classes)}
        return np.array([class_index[case.label or ""] for case in cohort], np.intp)

    def _described(self, index: int, encoder: Encoder, cohort: Cohort) -> Described:
        machine = Machine(
            device=self.machine.device,
            precision=self.machine.precision,
            max_ram=self.machine.max_ram,
            readers=self.machine.workers,
            channels_last=True,
        )
        folder = Path(self.config.features) if self.config.features else self.out / "features"
        descriptors = described(
            self.config, index, encoder, cohort, make_folder(folder), machine, self.seed, self.progress
        )
        self.failures |= descriptors.failures
        return descriptors

    def _check_left(self, labels: NDArray[np.intp], folds: NDArray[np.intp]) -> None:
        """Check that every class and fold still has images after leaving out those without descriptors."""
        for fold in range(self.config.boosting.folds):
            learned_classes = np.unique(labels[folds != fold])
            if not (folds == fold).any() or len(learned_classes) < len(self.config.classes):
                case, cause = next(iter(self.failures.items()))
                raise CaseError(
                    f"{len(self.failures)} images could not be described, and too few are left: {cause}",
                    subject=case,
                )
        for case, cause in self.failures.items():
            log.warning("case %s is left out: %s", case, cause)

    def _note_stains(self, cohort: Cohort, descriptors: Described) -> None:
        raw = [case.id for case in cohort if not descriptors.normalised(case.id)]
        if raw:
            names = ", ".join(raw[:5]) + (", …" if len(raw) > 5 else "")
            self._note(f"{len(raw)} images with hardly any tissue are used without normalisation: {names}")

    def _forget_models_of_others(self, cohort: Cohort, described_sets: Sequence[Described]) -> None:
        """Delete stored models if the descriptors they were trained on have changed."""
        sources = {
            "descriptors": [one.results.path.name for one in described_sets],
            "images": {case.id: described_sets[0].ids[case.id] for case in cohort},
        }
        record_path = self.folder / LEARNED_FROM
        if record_path.exists() and read_json(record_path) != sources:
            log.warning(
                "images or weights have changed since this training began; its models are trained again"
            )
            shutil.rmtree(self.models)
            make_folder(self.models)
        write_json(record_path, sources)

    # -- boosting -----------------------------------------------------------------------------------------

    def _boosted(
        self, set_: DescriptorSet, described_set: Described, data: _Data, attributions: Attributions
    ) -> NDArray[np.float64]:
        """(seeds, images, classes): predictions of the models of a set for their held-out images."""
        boosting, classes = self.config.boosting, len(self.config.classes)
        descriptors = np.stack([described_set.of(case.id, set_.name) for case in data.cohort])
        out = np.empty((boosting.seeds, len(data.labels), classes))
        at_once = max(1, min(self.machine.workers or 1, self.machine.max_ram // (2 * descriptors.nbytes + 1)))

        def one_fold(fold: int) -> tuple[NDArray[np.float64], Explained]:
            return self._fold(set_, fold, descriptors, data)

        with ThreadPoolExecutor(at_once) as pool:
            for fold, (fold_predictions, explained) in enumerate(pool.map(one_fold, range(boosting.folds))):
                out[:, data.folds == fold] = fold_predictions
                attributions.add(set_.name, explained)
        return out

    def _fold(
        self,
        set_: DescriptorSet,
        fold: int,
        descriptors: NDArray[np.float32],
        data: _Data,
    ) -> tuple[NDArray[np.float64], Explained]:
        """(seeds, images of the fold, classes), and what explains the first; models on disk are read."""
        boosting = self.config.boosting
        here = data.folds == fold
        _, augmentations, width = descriptors.shape
        rows = descriptors[here].reshape(-1, width)
        shared = _FoldData(boosting, descriptors, data.labels, here)
        predictions = []
        explained = Explained(np.zeros(width), 0)
        for seed in range(boosting.seeds):
            path = self.models / text_name(set_.name, seed, fold)
            forest = _stored_forest(path) or self._train_forest(path, shared, seed, fold)
            predictions.append(forest.predict(rows).reshape(-1, augmentations, len(self.config.classes)))
            if seed == 0 and (count := min(self.config.attributions, augmentations)):
                shown = descriptors[here][:, :count].reshape(-1, width)
                explained = explain(forest, shown, data.labels[here].repeat(count))
        return np.stack([one.mean(axis=1) for one in predictions]), explained

    def _train_forest(self, path: Path, shared: _FoldData, seed: int, fold: int) -> BoostedTrees:
        forest = boost(
            shared.training(), None, len(self.config.classes), self.config.boosting, seed, fold,
            shared.held_out(),
        )  # fmt: skip
        text = forest.model_to_string()
        write_text(path, text)
        return read_forest(text, path)

    # -- the end ------------------------------------------------------------------------------------------

    def _finish(self, encoders: Sequence[Encoder], held_out: HeldOut, attributions: Attributions) -> Bundle:
        metrics = report(self.config, held_out)
        calibrator, metrics["calibration"] = calibrated(self.config, held_out)
        if attributions.sums:
            metrics["attributions"] = attributions.summary(self.config, _layers(encoders))
        write_predictions(self.folder / "out_of_fold.csv", self.config, held_out)
        write_json(self.folder / "report.json", metrics)
        provenance = {
            "seed": self.seed,
            "train_cases": [case.id for case in held_out.cohort],
            "notes": self.notes,
            "lost": self.failures,
            "weights": {
                name: weights_hash(one) for name, one in zip(self.config.encoders, encoders, strict=True)
            },
        }
        texts = {
            text_name(set_.name, seed, fold): (self.models / text_name(set_.name, seed, fold)).read_text()
            for set_ in self.config.sets
            for seed, fold in self.config.boosting.models()
        }
        return save(
            self.out, self.config, encoders, texts, calibrator,
            patients=held_out.cohort.patients(), metrics=metrics, provenance=provenance, seed=self.seed,
        )  # fmt: skip

    def _note(self, *notes: str) -> None:
        for note in notes:
            log.info(note)
            self.notes.append(note)


class _FoldData:
    """Data shared by the seeds of a fold: its descriptors, binned at first use."""

    def __init__(
        self,
        config: BoostingConfig,
        descriptors: NDArray[np.float32],
        labels: NDArray[np.intp],
        here: NDArray[np.bool_],
    ) -> None:
        self._config, self._descriptors, self._labels, self._here = config, descriptors, labels, here
        self._training: lightgbm.Dataset | None = None
        self._held_out: lightgbm.Dataset | None = None

    def training(self) -> lightgbm.Dataset:
        if self._training is None:
            self._training = lightgbm.Dataset(*self._rows(~self._here), params=data_parameters(self._config))
        return self._training

    def held_out(self) -> lightgbm.Dataset | None:
        if self._config.early_stopping and self._held_out is None:
            rows, labels = self._rows(self._here)
            self._held_out = lightgbm.Dataset(rows, labels, reference=self.training())
        return self._held_out

    def _rows(self, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Descriptors with one row per augmentation."""
        _, augmentations, width = self._descriptors.shape
        return self._descriptors[chosen].reshape(-1, width), self._labels[chosen].repeat(augmentations)


def _stored_forest(path: Path) -> BoostedTrees | None:
    """The stored model of this training; None if it does not exist or cannot be read."""
    if not path.exists():
        return None
    try:
        return read_forest_file(path)
    except BundleError:
        return None


def _layers(encoders: Sequence[Encoder]) -> dict[int, list[tuple[str, int]]]:
    """For each encoder, the layers that form its descriptor, and their widths."""
    layers: dict[int, list[tuple[str, int]]] = {}
    for index, encoder in enumerate(encoders):
        widths = encoder.widths()
        names: Sequence[Any] = encoder.taps or ["last"]
        layers[index] = list(zip(names, widths, strict=True))
    return layers
