"""Training of a bag model on stored features: optional cross-validation, an ensemble, and its localisation.

All files are written to `out`. `training/` contains a folder per member and a file per fold, from which an
interrupted training is resumed. The bundle is written last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from lobule.bundles import Bundle, trained_bundle, write_bundle
from lobule.cohort import Cohort
from lobule.encoders import licences_of
from lobule.features import open_features
from lobule.files import make_folder
from lobule.methods.chowder.agreement import auc_spread, ensemble_agreement, training_notes
from lobule.methods.chowder.bags import Bag, encoding_and_tiling
from lobule.methods.chowder.checks import auc_of, counterfactual, localisation_metrics
from lobule.methods.chowder.config import Config
from lobule.methods.chowder.crossvalidate import cross_validate
from lobule.methods.chowder.ensemble import Ensemble, Localisation, localise, members_of, to_tensors
from lobule.methods.chowder.fit import Fitted, fit, moments_of
from lobule.methods.chowder.splits import TrainingBags, training_bags
from lobule.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from lobule.training.division import TrainingSplit, training_split
from lobule.training.job import TrainingJob, TrainOptions, training_job, val_and_seed
from lobule.training.progress import FitProgress

log = logging.getLogger("lobule.train")

ENCODER = "encoder.safetensors"
OUT_OF_FOLD = "out_of_fold.csv"
cached_moments = lru_cache(maxsize=1)(moments_of)
"""Computing them reads every feature, and all members of an ensemble use the same."""


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
    bags = training_bags(cohort, val, seed, folder, config)
    split = TrainingSplit(training_split(cohort, None, seed).train, Cohort(()), bags.notes)
    kind = encoding_and_tiling(folder, bags.train[0])
    # The features may not change while members are trained on them.
    feature_set = {bag.case.id: bag.identity() for bag in (*bags.train, *bags.val)}
    identity = {"kind": kind, "feature_set": feature_set}
    with training_job(config, split, out, also=identity, **options) as job:
        job.failures.update(bags.failures)
        training = _Training(bags, job)
        metrics: dict[str, Any] = {}
        texts: dict[str, str] = {}
        if config.folds:
            bags_of_folds = bags.train + (bags.val if bags.held_out else [])
            result = cross_validate(
                config, bags_of_folds, job.folder, seed, training.fit_member, job.begin_stage
            )
            config, metrics, texts = result.config, dict(result.metrics), {OUT_OF_FOLD: result.table}
        ensemble, members = training.fit_members(config)
        localisation = training.localise(ensemble, members, metrics)
        licences = licences_of(str(kind["encoding"]["name"]))
        record = job.record(*bags.cases, metrics, features=config.features, **licences)
        settings = {**replace(config, features="").to_dict(), **kind, "localisation": localisation.describe()}
        mpp = None if kind["tiling"] is None else kind["tiling"]["mpp"]
        bundle = trained_bundle("chowder", settings, config.classes, mpp, **record)
        copies = None if folder.encoder_weights is None else {ENCODER: folder.encoder_weights}
        return write_bundle(out, bundle, to_tensors(ensemble, localisation), texts, copies)


@dataclass(frozen=True, eq=False)
class _Training:
    """The inputs of every stage."""

    bags: TrainingBags
    job: TrainingJob

    def fit_members(self, config: Config) -> tuple[Ensemble, list[dict[str, Any]]]:
        """The trained members; those already on disk are loaded."""
        tensors: dict[str, Tensor] = {}
        summaries: list[dict[str, Any]] = []
        train_bags, val_bags, job = self.bags.train, self.bags.val, self.job
        for number in range(config.members):
            member_folder = make_folder(job.folder / f"member-{number:02d}")
            checkpoint = read_checkpoint(member_folder)
            if checkpoint is None:
                job.begin_stage(f"member {number + 1} of {config.members}")
                member = self.fit_member(config, train_bags, val_bags, member_seed(job.seed, number))
                checkpoint = Checkpoint({"fitted": member.summary()}, member.model.state_dict())
                write_checkpoint(member_folder, checkpoint, "weights")
            summaries.append(dict(checkpoint.contents["fitted"]))
            log.info(_member_line(number, config.members, summaries[-1]))
            tensors |= {f"member-{number}/{name}": value for name, value in checkpoint.tensors.items()}
        return members_of(config, train_bags[0].file.dim, tensors), summaries

    def fit_member(
        self, config: Config, train_bags: Sequence[Bag], val_bags: Sequence[Bag], seed: int
    ) -> Fitted:
        progress, machine = self.job.progress, self.job.machine
        progress.steps = config.setting("epochs")

        def report_epoch(epoch: int, loss: float) -> None:
            progress.step, progress.loss = epoch, loss

        return fit(
            config, train_bags, val_bags, seed, device=machine.device, max_ram=machine.max_ram,
            moments=cached_moments(tuple(train_bags)) if config.standardise else None, on_epoch=report_epoch,
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
        job.note(*training_notes(agreement, spread, [bag.label for bag, _ in scored_val], len(members)))
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


def member_seed(seed: int, number: int) -> int:
    """The seed of one member, different for each member."""
    return int(np.random.default_rng([seed, number, 0x3E3]).integers(2**31))


def _member_line(number: int, members: int, outcome: Mapping[str, Any]) -> str:
    line = f"member {number + 1} of {members}: {outcome['epochs']} epochs, loss {outcome['loss']:.4f}"
    auc = outcome["val_auc"]
    return line if auc is None else f"{line}, validation AUC {auc:.4f} at epoch {outcome['best_epoch']}"
