"""Training of reverse distillation: the student is fitted to the frozen teacher on a fixed set of patches.

A training writes to `out`: `training/` with the checkpoint and the log, and the bundle at the end. An
interrupted training continues from `training/` with bit-identical results.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn

from lobule.augment import NO_AUGMENTATION
from lobule.bundles import Bundle, plain_weights
from lobule.cohort import Cohort
from lobule.encoders import ENCODERS, licences_of
from lobule.errors import ConfigError
from lobule.fingerprints import fingerprint
from lobule.losses import FLOOR, distillation_loss, focal_distillation_loss
from lobule.methods.reverse_distillation.budget import PatchBudget, choose_patches
from lobule.methods.reverse_distillation.calibrate import calibrate
from lobule.methods.reverse_distillation.config import RANDOM, Config
from lobule.methods.reverse_distillation.coords import listed_patches
from lobule.methods.reverse_distillation.encoder_teachers import find_teacher, load_encoder_weights
from lobule.methods.reverse_distillation.predictor import AnomalyPredictor, images_for, save
from lobule.nets.reverse_distillation import Student
from lobule.nets.teachers import ChannelStatistics, Teacher, load_teacher_weights
from lobule.training.fit_options import Group
from lobule.training.fitting import FitReport
from lobule.training.job import TrainingJob, TrainOptions, training_job, weights_source
from lobule.training.patch_pools import PatchStreams, cases_of, train_pool, validation_pool
from lobule.training.patch_sampling import NORMAL, TUMOUR, Pool
from lobule.training.sampling import SampleConfig, Samples

BETAS = (0.5, 0.999)
"""Adam's betas, as published."""
STATISTICS, STATISTICS_PATCHES = 2_000_000, 512
"""Random stream (round) of the patches that standardise the teacher's maps, and their maximum number."""
POSITIONS_FILE = "places.csv"
"""File in the bundle that lists the positions of all training patches."""


def train(config: Config, cohort: Cohort, out: str | Path, **options: Unpack[TrainOptions]) -> Bundle:
    """Train on a few outlined slides of a cohort and write the bundle.

    Args:
        config: Settings of the model and of the training.
        cohort: Cases with outlines.
        out: Folder for the bundle and the state of the training.
        **options: See `TrainOptions`.
    """
    lists = {"coords": [fingerprint(path, full=True) for path in config.coords]} if config.coords else None
    with training_job(config, cohort, out, also=lists, **options) as job:
        config, budget = _choose_patches(config, job)
        validation = validation_pool(job, stains=config.stains)
        sampling = SampleConfig(
            config.mpp, config.patch, augment=config.augment if config.augmentation else NO_AUGMENTATION
        )
        streams = PatchStreams(job, sampling, config.batch, config.val_patches)
        training = _Training(config, job, streams, _build_predictor(config, streams, budget.pool))
        report = training.fit_student(budget, validation)
        return training.calibrate_and_save(budget, validation, report)


def frozen_teacher(name: str, weights: str, seed: int = 0, input_px: int = 256) -> Teacher:
    """Build a teacher with weights from a file, published weights ("") or random weights (`random`)."""
    if weights == RANDOM:
        torch.manual_seed(seed)
    frozen = find_teacher(name, input_px, pretrained=not weights)
    if weights not in ("", RANDOM) and name in ENCODERS:
        load_encoder_weights(frozen, ENCODERS[name], weights)
    elif weights not in ("", RANDOM):
        load_teacher_weights(frozen, plain_weights(weights))
    return frozen


def _choose_patches(config: Config, job: TrainingJob) -> tuple[Config, PatchBudget]:
    """Choose the training patches. Without tumour patches, the config changes to the plain loss."""
    if config.coords:
        config, budget = listed_patches(config, job)
        job.note(*budget.notes)
        return config.of_loss(config.loss if budget.total(TUMOUR) else "plain"), budget
    pool = train_pool(job, need=(NORMAL,), stains=config.stains)
    loss = config.loss
    if loss == "focal" and not (pool.usable(TUMOUR) and config.tumour_patches):
        job.note("There are no tumour patches: the plain one-class loss learns from normal tissue only.")
        loss = "plain"
    config = config.of_loss(loss)
    budget = choose_patches(config, pool, job.seed)
    job.note(*budget.notes)
    if not budget.total(NORMAL):
        raise ConfigError(
            "no slide contains a complete patch of normal tissue",
            subject=job.split.train.path,
            remedy="Use smaller patches, or slides with more normal tissue",
        )
    return config, budget


def _build_predictor(config: Config, streams: PatchStreams, pool: Pool) -> AnomalyPredictor:
    job = streams.job
    frozen = frozen_teacher(config.teacher, config.weights, job.seed, config.input)
    if config.weights == RANDOM:
        job.note("The teacher's weights are random, so the model is only useful for tests.")
    if config.standardise_teacher:
        _standardise(config, streams, frozen, pool)
    torch.manual_seed(job.seed)
    predictor = AnomalyPredictor(config, frozen, Student(frozen.student_shape(config.shortcut)))
    job.move_to_device(predictor.net)
    return predictor


def _standardise(config: Config, streams: PatchStreams, frozen: Teacher, pool: Pool) -> None:
    """Standardise the teacher's maps by their statistics over augmented normal training patches."""
    job, statistics = streams.job, ChannelStatistics()
    job.move_to_device(frozen)
    count = min(len(pool.fixed or ()), STATISTICS_PATCHES)
    with streams.draw(pool, STATISTICS, count) as stream:
        for samples in stream:
            normal = samples.pixels[samples.labels == NORMAL]
            if len(normal):
                statistics.add(frozen(images_for(config, frozen.scaling, job.on_device(normal))))
    means, spreads = statistics.result()
    frozen.standardise([mean.to(job.device) for mean in means], [spread.to(job.device) for spread in spreads])


@dataclass(frozen=True, eq=False)
class _Training:
    """The inputs of every stage: the settings, the job and the model, whose student is trained."""

    config: Config
    job: TrainingJob
    streams: PatchStreams
    predictor: AnomalyPredictor

    def fit_student(self, budget: PatchBudget, validation: Pool | None) -> FitReport:
        config, job, net = self.config, self.job, self.predictor.net
        epoch = max(1, -(-len(budget.positions) // config.batch))
        job.begin_stage("round 0")
        options = job.fit_options(
            config,
            steps=config.epochs * epoch,
            schedule="constant",
            stop_after=config.epochs + 1,
            evaluate_every=epoch,
            optimiser="adam",
            momentum=BETAS[0],
            second_beta=BETAS[1],
            weight_decay=0.0,
        )
        groups = [Group([value for value in net.student.parameters() if value.requires_grad], config.rate)]
        validate = self.streams.validate(validation, self._score)
        with self.streams.draw(budget.pool) as stream:
            report = job.fit(net.student, self._loss, stream, options, "fit", groups, validate)
        net.eval()
        return report

    def _loss(self, student: nn.Module, samples: Samples) -> Tensor:
        images = self.predictor.model.images_of(self.job.on_device(samples.pixels))
        maps = self.predictor.net.teacher(images)
        rebuilt = student(maps)
        if self.config.loss == "plain":
            return distillation_loss(maps, rebuilt)
        normal = self.job.on_device(samples.labels == NORMAL)
        return focal_distillation_loss(maps, rebuilt, normal, floor=FLOOR if self.config.safe else None)

    def _score(self, samples: Samples) -> Tensor:
        return self.predictor.model.patch_scores(self.job.on_device(samples.pixels))

    def calibrate_and_save(self, budget: PatchBudget, validation: Pool | None, report: FitReport) -> Bundle:
        config, job, predictor = self.config, self.job, self.predictor
        job.begin_stage("calibrating")
        slide_scan = job.scan_with(predictor, "reverse_distillation", "calibration", "calibration")
        outcome = calibrate(slide_scan, self.streams, budget.pool, validation)
        predictor.calibration = outcome.calibration
        job.note(*outcome.notes)
        weights = "" if config.weights == RANDOM else config.weights
        predictor.net.cpu()
        record = job.record(
            cases_of(budget.pool),
            cases_of(validation),
            {**report.summary(), "epochs": list(report.scores), **outcome.metrics},
            budget=budget.summary(),
            weights=weights_source(weights, config.weights or "published"),
            **licences_of(config.teacher),
        )
        return save(job.out, predictor, texts={POSITIONS_FILE: budget.to_csv()}, **record)
