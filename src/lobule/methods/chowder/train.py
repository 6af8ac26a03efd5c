"""Training of a bag model on stored features: optional cross-validation, an ensemble, and its localisation.

All files are written to `out`. `training/` contains a folder per member and a file per fold, from which an
interrupted training is resumed. The bundle is written last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lobule.bundles import Bundle, patient_hash, write_bundle
from lobule.cohort import Cohort
from lobule.cohort.case import Kind
from lobule.errors import ResultsError
from lobule.features import FeatureFolder, open_features
from lobule.features.frame import encoding_to_dict
from lobule.files import read_json, write_json
from lobule.methods.chowder.agreement import auc_spread, ensemble_agreement, training_notes
from lobule.methods.chowder.bags import Bag, gather, refuse_mixed, refuse_one_class
from lobule.methods.chowder.checks import auc_of, counterfactual, localisation_metrics
from lobule.methods.chowder.config import Config
from lobule.methods.chowder.crossvalidate import cross_validate
from lobule.methods.chowder.ensemble import (
    BagScores,
    Ensemble,
    Localisation,
    localise,
    members_of,
    to_tensors,
)
from lobule.methods.chowder.fit import Fitted, Moments, fit, moments_of
from lobule.methods.chowder.splits import hold_out
from lobule.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from lobule.training.fitting import FitProgress, TrainMachine
from lobule.training.job import begun_training, training_split

log = logging.getLogger("lobule.train")

KINDS: tuple[Kind, ...] = ("slide", "region")
ENCODER = "encoder.safetensors"
OUT_OF_FOLD = "out_of_fold.csv"
FEATURE_IDENTITIES = "features.json"
"""File in the training folder that identifies the features of every bag; a resumed training compares it."""


def train(
    config: Config,
    cohort: Cohort,
    out: str | Path,
    *,
    val: str | None = "val",
    seed: int = 0,
    resume: bool = False,
    fresh: bool = False,
    machine: TrainMachine | None = None,
    progress: FitProgress | None = None,
) -> Bundle:
    """Train on the stored features of a cohort with one label per case, and write the bundle.

    Args:
        config: The settings; `features` is required.
        cohort: The cases with their labels.
        out: The folder of the bundle.
        val: The split for early stopping and for judging the map. If the cohort has no such split, a fifth
            of the patients is held out; with None there is no validation.
        seed: Seed of the folds, of the weights and of the sampled tiles.
        resume: Continue an interrupted training in `out`.
        fresh: Delete an earlier training in `out` and start again.
        machine: The device and the limits of this machine.
        progress: Receives the progress of the training.

    Returns:
        The bundle as written.

    Raises:
        ConfigError: No features are set, or the features do not fit together.
        ResultsError: The features have changed since the interrupted training.
    """
    config = config.with_features()
    folder = open_features(config.features)
    progress = progress or FitProgress()
    progress.stage = "reading features"
    bags = _training_bags(cohort, val, seed, folder, config)
    identity = {"seed": seed, "kind": _kind(folder, bags.train)}
    split = training_split(cohort, None, seed, KINDS)
    with begun_training(out, config, split, also=identity, resume=resume, fresh=fresh) as training_folder:
        _refuse_other_features(training_folder, bags, out)
        training = _Training(
            config,
            bags,
            folder,
            training_folder,
            seed,
            (machine or TrainMachine()).resolved(),
            progress,
        )
        return training.run(Path(out))


@dataclass(frozen=True)
class TrainingBags:
    """The training and validation bags, the cases without usable features, and notes for the user."""

    train: list[Bag]
    val: list[Bag]
    held_out: bool
    failures: dict[str, str]
    notes: tuple[str, ...]


def _training_bags(
    cohort: Cohort, val: str | None, seed: int, folder: FeatureFolder, config: Config
) -> TrainingBags:
    own_split = bool(val and cohort.split(val))
    split = training_split(cohort, val if own_split else None, seed, KINDS)
    train_cases = gather(split.train, folder, config.positive)
    refuse_one_class(train_cases.bags, "training")
    if val is None:
        return TrainingBags(
            list(train_cases.bags), [], False, train_cases.failures, (*train_cases.notes, *split.notes)
        )
    if not own_split:
        train_bags, val_bags, note = hold_out(train_cases.bags, seed)
        return TrainingBags(
            train_bags, val_bags, bool(val_bags), train_cases.failures, (*train_cases.notes, note)
        )
    val_cases = gather(split.val, folder, config.positive)
    refuse_mixed([*train_cases.bags, *val_cases.bags])
    notes, failures = (*train_cases.notes, *val_cases.notes), train_cases.failures | val_cases.failures
    if len({bag.label for bag in val_cases.bags}) < 2:
        note = "the validation split has only one label: there is no validation and the last weights are used"
        return TrainingBags(list(train_cases.bags), [], False, failures, (*notes, note))
    return TrainingBags(list(train_cases.bags), list(val_cases.bags), False, failures, notes)


def _refuse_other_features(training_folder: Path, bags: TrainingBags, out: str | Path) -> None:
    """Refuse to resume if the features have changed: existing members were trained on the old ones."""
    identities = {bag.case.id: bag.identity() for bag in (*bags.train, *bags.val)}
    identities_path = training_folder / FEATURE_IDENTITIES
    if not identities_path.exists():
        write_json(identities_path, identities)
        return
    stored_identities = read_json(identities_path)
    changed = [
        name
        for name in {**identities, **stored_identities}
        if identities.get(name) != stored_identities.get(name)
    ]
    if changed:
        raise ResultsError(
            "the features have changed since this training started",
            subject=out,
            actual=", ".join(changed[:5]) + (" …" if len(changed) > 5 else ""),
            remedy="Start over with --fresh",
        )


def _kind(folder: FeatureFolder, bags: Sequence[Bag]) -> dict[str, Any]:
    """The encoder and the tiling of the features, for the bundle and for comparison at resume."""
    file = bags[0].file
    if folder.manifest is None:
        return {"encoding": {"name": file.encoder, "hash": None, "dim": file.dim}, "tiling": None}
    manifest = folder.manifest
    names = ("mpp", "tile_px", "input_px", "tissue_share")
    return {
        "encoding": encoding_to_dict(manifest.encoding),
        "tiling": {name: getattr(manifest, name) for name in names},
    }


class _Training:
    """One training: its bags, its members and their metrics."""

    def __init__(
        self,
        config: Config,
        bags: TrainingBags,
        folder: FeatureFolder,
        training_folder: Path,
        seed: int,
        machine: TrainMachine,
        progress: FitProgress,
    ) -> None:
        self.config, self.training_bags, self.folder, self.training_folder = (
            config,
            bags,
            folder,
            training_folder,
        )
        self.seed, self.machine, self.progress = seed, machine, progress
        self.dim = bags.train[0].file.dim
        self.notes = list(bags.notes)

    def run(self, out: Path) -> Bundle:
        for note in self.notes:
            log.info(note)
        metrics: dict[str, Any] = {}
        texts: dict[str, str] = {}
        config = self.config
        if config.folds:
            all_bags = self.training_bags.train + (
                self.training_bags.val if self.training_bags.held_out else []
            )
            cross_validation = cross_validate(
                config, all_bags, self.training_folder, self.seed, self._fit_member, self._stage
            )
            metrics |= cross_validation.metrics
            texts[OUT_OF_FOLD] = cross_validation.table
            if cross_validation.chosen is not None:
                config = replace(config, rate=cross_validation.chosen[0], decay=cross_validation.chosen[1])
        ensemble, members = self._members(config)
        self._stage("reading whole bags")
        scored_train = self._scored(ensemble, self.training_bags.train)
        scored_val = self._scored(ensemble, self.training_bags.val)
        check_bags, check_name = (
            (scored_val, "validation cases")
            if scored_val
            else (scored_train, "the training cases themselves")
        )
        localisation = localise(config, scored_train, check_bags, check_name)
        if localisation.refused:
            self.notes.append(f"no map will be drawn: {localisation.refused}")
        metrics |= self._metrics(ensemble, localisation, scored_train, scored_val, members)
        return self._save(out, ensemble, localisation, metrics, texts)

    def _members(self, config: Config) -> tuple[Ensemble, list[dict[str, Any]]]:
        """The trained members; those already on disk are loaded."""
        moments: Moments | None = None
        tensors: dict[str, Tensor] = {}
        summaries: list[dict[str, Any]] = []
        for number in range(config.members):
            member_folder = self.training_folder / f"member-{number:02d}"
            checkpoint = read_checkpoint(member_folder)
            if checkpoint is None:
                if config.standardise and moments is None:
                    moments = moments_of(self.training_bags.train)
                self._stage(f"member {number + 1} of {config.members}")
                seed = member_seed(self.seed, number)
                fitted = self._fit_member(
                    config, self.training_bags.train, self.training_bags.val, seed, moments
                )
                member_folder.mkdir(parents=True, exist_ok=True)
                checkpoint = Checkpoint({"fitted": fit_summary(fitted)}, fitted.model.state_dict())
                write_checkpoint(member_folder, checkpoint, "weights")
            summaries.append(dict(checkpoint.contents["fitted"]))
            log.info(_member_line(number, config.members, summaries[-1]))
            tensors |= {f"member-{number}/{name}": value for name, value in checkpoint.tensors.items()}
        return members_of(config, self.dim, tensors), summaries

    def _fit_member(
        self,
        config: Config,
        train_bags: Sequence[Bag],
        val_bags: Sequence[Bag],
        seed: int,
        moments: Moments | None = None,
    ) -> Fitted:
        if config.standardise and moments is None:
            moments = moments_of(train_bags)
        self.progress.steps = config.setting("epochs")
        return fit(
            config,
            train_bags,
            val_bags,
            seed,
            device=self.machine.device,
            max_ram=self.machine.max_ram,
            moments=moments,
            on_epoch=self._report_epoch,
        )

    def _report_epoch(self, epoch: int, loss: float) -> None:
        self.progress.loss = loss
        self.progress.step = epoch

    def _stage(self, stage: str) -> None:
        self.progress.stage = stage

    def _scored(self, ensemble: Ensemble, bags: Sequence[Bag]) -> list[tuple[Bag, BagScores]]:
        return [(bag, ensemble.score_bag(bag.blocks())) for bag in bags]

    def _metrics(
        self,
        ensemble: Ensemble,
        localisation: Localisation,
        scored_train: Sequence[tuple[Bag, BagScores]],
        scored_val: Sequence[tuple[Bag, BagScores]],
        members: list[dict[str, Any]],
    ) -> dict[str, Any]:
        check_bags = scored_val or scored_train
        localisation_checks = localisation_metrics(check_bags, localisation)
        agreement = ensemble_agreement([scores.logits for _, scores in scored_train])
        spread = auc_spread([member["val_auc"] for member in members])
        warnings = training_notes(agreement, spread, [bag.label for bag, _ in scored_val], len(members))
        for warning in warnings:
            log.warning(warning)
        self.notes += warnings
        return {
            "val_auc": auc_of(scored_val),
            "train_auc": auc_of(scored_train),
            "evidence_auc": localisation.auc,
            "tile_auc": None if localisation_checks is None else localisation_checks["tile_auc"],
            "localisation": localisation_checks,
            "counterfactual": counterfactual(ensemble, localisation, check_bags, self.seed),
            "judged_on": localisation.judged_on,
            "members": members,
            "member_val_auc": spread,
            "agreement": agreement,
        }

    def _save(
        self,
        out: Path,
        ensemble: Ensemble,
        localisation: Localisation,
        metrics: Mapping[str, Any],
        texts: Mapping[str, str],
    ) -> Bundle:
        kind = _kind(self.folder, self.training_bags.train)
        weights = self.folder.encoder_weights
        provenance = {
            "seed": self.seed,
            "features": self.config.features,
            "train_cases": [bag.case.id for bag in self.training_bags.train],
            "val_cases": [bag.case.id for bag in self.training_bags.val],
            "notes": self.notes,
            "lost": self.training_bags.failures,
        }
        used_bags = [
            *self.training_bags.train,
            *(self.training_bags.val if self.training_bags.held_out else []),
        ]
        config = {**replace(ensemble.config, features="").to_dict(), **kind}
        bundle = Bundle(
            "chowder",
            {**config, "localisation": localisation.describe()},
            ensemble.config.classes,
            None if kind["tiling"] is None else kind["tiling"]["mpp"],
            metrics,
            provenance,
            tuple(sorted({patient_hash(bag.case.patient) for bag in used_bags})),
        )
        copies = {ENCODER: weights} if weights is not None else None
        return write_bundle(out, bundle, to_tensors(ensemble, localisation), texts, copies)


def member_seed(seed: int, number: int) -> int:
    """The seed of one member, different for each member."""
    return int(np.random.default_rng([seed, number, 0x3E3]).integers(2**31))


def _member_line(number: int, members: int, outcome: Mapping[str, Any]) -> str:
    line = f"member {number + 1} of {members}: {outcome['epochs']} epochs, loss {outcome['loss']:.4f}"
    auc = outcome["val_auc"]
    return line if auc is None else f"{line}, validation AUC {auc:.4f} at epoch {outcome['best_epoch']}"


def fit_summary(fitted: Fitted) -> dict[str, Any]:
    return {
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "val_auc": fitted.val_auc,
        "loss": fitted.losses[-1],
    }
