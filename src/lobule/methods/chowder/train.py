"""Training of a bag model on stored features: optional cross-validation, an ensemble, and its localisation.

All files are written to `out`. `training/` contains a folder per member and a file per fold, from which an
interrupted training is resumed. The bundle is written last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from lobule.bundles import Bundle, trained_bundle, write_bundle
from lobule.cohort import Cohort, Kind
from lobule.features import FeatureFolder, open_features
from lobule.features.frame import encoding_to_dict
from lobule.methods.chowder.agreement import auc_spread, ensemble_agreement, training_notes
from lobule.methods.chowder.bags import Bag, gather, refuse_mixed, refuse_one_class
from lobule.methods.chowder.checks import auc_of, counterfactual, localisation_metrics
from lobule.methods.chowder.config import Config
from lobule.methods.chowder.crossvalidate import cross_validate
from lobule.methods.chowder.ensemble import Ensemble, Localisation, localise, members_of, to_tensors
from lobule.methods.chowder.fit import Fitted, Moments, fit, moments_of
from lobule.methods.chowder.splits import hold_out
from lobule.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from lobule.training.division import TrainingSplit, training_split
from lobule.training.job import TrainingJob, TrainOptions, training_job, val_and_seed
from lobule.training.progress import FitProgress

log = logging.getLogger("lobule.train")

KINDS: tuple[Kind, ...] = ("slide", "region")
ENCODER = "encoder.safetensors"
OUT_OF_FOLD = "out_of_fold.csv"


def train(config: Config, cohort: Cohort, out: str | Path, **options: Unpack[TrainOptions]) -> Bundle:
    """Train on the stored features of a cohort with one label per case, and write the bundle.

    Args:
        config: The settings; `features` is required.
        cohort: The cases with their labels.
        out: The folder of the bundle.
        **options: See `TrainOptions`.

    Returns:
        The bundle as written.

    Raises:
        ConfigError: No features are set, or the features do not fit together.
        ResultsError: The features have changed since the interrupted training.
    """
    val, seed = val_and_seed(options)
    config = config.with_features()
    progress = options["progress"] = options.get("progress") or FitProgress()
    progress.stage = "reading features"
    folder = open_features(config.features)
    bags = _training_bags(cohort, val, seed, folder, config)
    split = TrainingSplit(training_split(cohort, None, seed, KINDS).train, Cohort(()), bags.notes)
    identity = {"kind": _kind(folder, bags.train), "feature_set": bags.identities()}
    with training_job(config, split, out, also=identity, **options) as job:
        job.failures.update(bags.failures)
        training = _Training(config, bags, folder, job)
        chosen_config, metrics, texts = training.cross_validate() if config.folds else (config, {}, {})
        ensemble, members = training.fit_members(chosen_config)
        localisation = training.localise(ensemble, members, metrics)
        return training.save(ensemble, localisation, metrics, texts)


@dataclass(frozen=True)
class TrainingBags:
    """The training and validation bags, the cases without usable features, and notes for the user."""

    train: list[Bag]
    val: list[Bag]
    held_out: bool
    failures: dict[str, str]
    notes: tuple[str, ...]

    def identities(self) -> dict[str, list[Any]]:
        """Identify the features of every bag. They may not change while members are trained on them."""
        return {bag.case.id: bag.identity() for bag in (*self.train, *self.val)}


def _training_bags(
    cohort: Cohort, val: str | None, seed: int, folder: FeatureFolder, config: Config
) -> TrainingBags:
    has_val_split = bool(val and cohort.split(val))
    split = training_split(cohort, val if has_val_split else None, seed, KINDS)
    train = gather(split.train, folder, config.positive)
    refuse_one_class(train.bags, "training")
    if val is None:
        return TrainingBags(list(train.bags), [], False, train.failures, (*train.notes, *split.notes))
    if not has_val_split:
        train_bags, val_bags, note = hold_out(train.bags, seed)
        return TrainingBags(train_bags, val_bags, bool(val_bags), train.failures, (*train.notes, note))
    validating = gather(split.val, folder, config.positive)
    refuse_mixed([*train.bags, *validating.bags])
    val_bags, notes = list(validating.bags), (*train.notes, *validating.notes)
    if len({bag.label for bag in val_bags}) < 2:
        note = "the validation split has only one label: there is no validation and the last weights are used"
        val_bags, notes = [], (*notes, note)
    return TrainingBags(list(train.bags), val_bags, False, train.failures | validating.failures, notes)


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


@dataclass(frozen=True, eq=False)
class _Training:
    """The inputs of every stage."""

    config: Config
    bags: TrainingBags
    features: FeatureFolder
    job: TrainingJob

    def cross_validate(self) -> tuple[Config, dict[str, Any], dict[str, str]]:
        """Return the config with the rate and decay that the folds chose, their metrics, and their scores."""
        bags = self.bags.train + (self.bags.val if self.bags.held_out else [])
        result = cross_validate(
            self.config, bags, self.job.folder, self.job.seed, self._fit_member, self.job.begin_stage
        )
        config = self.config
        if result.chosen is not None:
            config = replace(config, rate=result.chosen[0], decay=result.chosen[1])
        return config, dict(result.metrics), {OUT_OF_FOLD: result.table}

    def fit_members(self, config: Config) -> tuple[Ensemble, list[dict[str, Any]]]:
        """The trained members; those already on disk are loaded."""
        moments: Moments | None = None
        tensors: dict[str, Tensor] = {}
        summaries: list[dict[str, Any]] = []
        train_bags, val_bags, job = self.bags.train, self.bags.val, self.job
        for number in range(config.members):
            member_folder = job.folder / f"member-{number:02d}"
            checkpoint = read_checkpoint(member_folder)
            if checkpoint is None:
                if config.standardise and moments is None:
                    moments = moments_of(train_bags)
                job.begin_stage(f"member {number + 1} of {config.members}")
                member = self._fit_member(
                    config, train_bags, val_bags, member_seed(job.seed, number), moments
                )
                member_folder.mkdir(parents=True, exist_ok=True)
                checkpoint = Checkpoint({"fitted": fit_summary(member)}, member.model.state_dict())
                write_checkpoint(member_folder, checkpoint, "weights")
            summaries.append(dict(checkpoint.contents["fitted"]))
            log.info(_member_line(number, config.members, summaries[-1]))
            tensors |= {f"member-{number}/{name}": value for name, value in checkpoint.tensors.items()}
        return members_of(config, train_bags[0].file.dim, tensors), summaries

    def _fit_member(
        self,
        config: Config,
        train_bags: Sequence[Bag],
        val_bags: Sequence[Bag],
        seed: int,
        moments: Moments | None = None,
    ) -> Fitted:
        progress, machine = self.job.progress, self.job.machine
        if config.standardise and moments is None:
            moments = moments_of(train_bags)
        progress.steps = config.setting("epochs")

        def report_epoch(epoch: int, loss: float) -> None:
            progress.loss = loss
            progress.step = epoch

        return fit(
            config, train_bags, val_bags, seed, device=machine.device, max_ram=machine.max_ram,
            moments=moments, on_epoch=report_epoch,
        )  # fmt: skip

    def localise(
        self, ensemble: Ensemble, members: list[dict[str, Any]], metrics: dict[str, Any]
    ) -> Localisation:
        """Orient the tile scores, decide whether maps may be drawn, and add the figures to `metrics`."""
        job = self.job
        job.begin_stage("reading whole bags")
        scored_train, scored_val = (
            [(bag, ensemble.score_bag(bag.blocks())) for bag in bags]
            for bags in (self.bags.train, self.bags.val)
        )
        check_bags = scored_val or scored_train
        name = "validation cases" if scored_val else "the training cases themselves"
        localisation = localise(ensemble.config, scored_train, check_bags, name)
        if localisation.refused:
            job.note(f"no map will be drawn: {localisation.refused}")
        checks = localisation_metrics(check_bags, localisation)
        agreement = ensemble_agreement([scores.logits for _, scores in scored_train])
        spread = auc_spread([member["val_auc"] for member in members])
        warnings = training_notes(agreement, spread, [bag.label for bag, _ in scored_val], len(members))
        job.note(*warnings)
        metrics.update({
            "val_auc": auc_of(scored_val),
            "train_auc": auc_of(scored_train),
            "evidence_auc": localisation.auc,
            "tile_auc": None if checks is None else checks["tile_auc"],
            "localisation": checks,
            "counterfactual": counterfactual(ensemble, localisation, check_bags, job.seed),
            "judged_on": localisation.judged_on,
            "members": members,
            "member_val_auc": spread,
            "agreement": agreement,
        })  # fmt: skip
        return localisation

    def save(
        self,
        ensemble: Ensemble,
        localisation: Localisation,
        metrics: Mapping[str, Any],
        texts: Mapping[str, str],
    ) -> Bundle:
        kind, encoder = _kind(self.features, self.bags.train), self.features.encoder_weights
        train_cases, val_cases = ([bag.case for bag in bags] for bags in (self.bags.train, self.bags.val))
        record = self.job.record(train_cases, val_cases, metrics, features=self.config.features)
        config = replace(ensemble.config, features="").to_dict()
        settings = {**config, **kind, "localisation": localisation.describe()}
        mpp = None if kind["tiling"] is None else kind["tiling"]["mpp"]
        bundle = trained_bundle("chowder", settings, ensemble.config.classes, mpp, **record)
        copies = None if encoder is None else {ENCODER: encoder}
        return write_bundle(self.job.out, bundle, to_tensors(ensemble, localisation), texts, copies)


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
