"""Training of reverse distillation: the student is fitted to the frozen teacher on a fixed set of patches.

A training writes to `out`: `training/` with the checkpoint and the log, and the bundle at the end. An
interrupted training continues from `training/` with bit-identical results.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lobule.augment import NO_AUGMENTATION
from lobule.bundles import Bundle, plain_weights
from lobule.cohort import Cohort
from lobule.errors import ConfigError
from lobule.files import fingerprint
from lobule.losses import distillation_loss, focal_distillation_loss
from lobule.methods.reverse_distillation.budget import PatchBudget, choose_patches
from lobule.methods.reverse_distillation.calibrate import calibrate, raw_scores
from lobule.methods.reverse_distillation.config import RANDOM, Config, Loss
from lobule.methods.reverse_distillation.predictor import AnomalyPredictor, images_for, save
from lobule.nets.reverse_distillation import Student
from lobule.nets.teachers import ChannelStatistics, Teacher, load_teacher_weights, teacher
from lobule.tissue import TissueConfig
from lobule.training.fitting import FitOptions, FitProgress, FitReport, Group, TrainMachine, fit
from lobule.training.job import TrainingSplit, begun_training, training_split
from lobule.training.patch_sampling import NORMAL, TUMOUR, Pool
from lobule.training.sampling import SampleConfig, Samples, SampleStream, gather

log = logging.getLogger("lobule.train")

BETAS = (0.5, 0.999)
"""Adam's betas, as published."""
STATISTICS, STATISTICS_PATCHES = 2_000_000, 512
"""Random stream (round) of the patches that standardise the teacher's maps, and their maximum number."""
VALIDATION = 1_000_000
"""Random stream (round) of the validation patches, so that every evaluation uses the same patches."""
POSITIONS_FILE = "places.csv"
"""File in the bundle that lists the positions of all training patches."""


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
    """Train on a few outlined slides of a cohort and write the bundle.

    Args:
        config: Settings of the model and of the training.
        cohort: Cases with outlines.
        out: Folder for the bundle and the state of the training.
        val: Name of the split for validation and calibration. If the cohort has no such split, a fifth of the
            patients is held out. With None there is no validation.
        seed: Seed of the choice of patches, of the initial weights and of the augmentation.
        resume: Continue the training that was interrupted in `out`.
        fresh: Discard an earlier training in `out`.
        tissue: Settings of the tissue detection.
        machine: Device, precision and number of workers.
        progress: Receives the progress of the training.
    """
    machine, progress = (machine or TrainMachine()).resolved(), progress or FitProgress()
    splits = training_split(cohort, val, seed)
    with begun_training(out, config, splits, also={"seed": seed}, resume=resume, fresh=fresh) as folder:
        training = _Training(config, splits, folder, seed, tissue or TissueConfig(), machine, progress)
        return training.run(Path(out))


def frozen_teacher(name: str, weights: str, seed: int = 0) -> Teacher:
    """Build a teacher with weights from a file, published weights ("") or random weights (`random`)."""
    if weights and weights != RANDOM:
        frozen = teacher(name)
        load_teacher_weights(frozen, plain_weights(weights))
        return frozen
    if weights == RANDOM:
        torch.manual_seed(seed)
        return teacher(name)
    try:
        return teacher(name, pretrained=True)
    except OSError as error:  # errors of urllib and of the hub are subclasses of OSError
        raise ConfigError(
            "cannot download the teacher's published weights",
            subject=name,
            actual=str(error),
            remedy="Use a local file: --set weights=FILE when training, --teacher FILE when converting",
        ) from error


class _Training:
    """State of one training."""

    def __init__(
        self,
        config: Config,
        splits: TrainingSplit,
        folder: Path,
        seed: int,
        tissue: TissueConfig,
        machine: TrainMachine,
        progress: FitProgress,
    ) -> None:
        self.requested_config, self.splits, self.folder, self.seed = config, splits, folder, seed
        self.tissue, self.machine, self.progress = tissue, machine, progress
        self.workers = machine.workers or 1
        self.device = torch.device(machine.device)
        self.notes: list[str] = []
        self.failures: dict[str, str] = {}
        self.config = config

    def run(self, out: Path) -> Bundle:
        self.progress.stage = "finding tissue"
        patch_budget = self._choose_patches()
        validation = self._validation_pool()
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            predictor = self._build_predictor(patch_budget)
            report = self._fit_student(predictor, patch_budget, validation)
        self.progress.stage = "calibrating"
        outcome = calibrate(
            predictor, patch_budget.pool, validation, self._val_stream, self.tissue, self.folder, self.machine
        )
        predictor.calibration = outcome.calibration
        self._note(*outcome.notes)
        return self._save(out, predictor, patch_budget, report, outcome.metrics)

    # -- training and validation data ---------------------------------------------------------------------

    def _choose_patches(self) -> PatchBudget:
        pool = gather(self.splits.train, self.tissue, workers=self.workers, need=(NORMAL,))
        self._note(*self.splits.notes, *pool.notes)
        loss: Loss = self.requested_config.loss
        if loss == "focal" and not (pool.usable(TUMOUR) and self.requested_config.tumour_patches):
            self._note(
                "There are no tumour patches; the plain one-class loss is used, which learns from "
                "normal tissue only."
            )
            loss = "plain"
        self.config = self.requested_config.of_loss(loss)
        patch_budget = choose_patches(self.config, pool, self.seed)
        self._note(*patch_budget.notes)
        if not patch_budget.total(NORMAL):
            raise ConfigError(
                "no slide contains a complete patch of normal tissue",
                subject=self.splits.train.path,
                remedy="Use smaller patches, or slides with more normal tissue",
            )
        return patch_budget

    def _validation_pool(self) -> Pool | None:
        """The slides for validation and calibration; None if a class is missing."""
        if not self.splits.val:
            return None
        validation = gather(self.splits.val, self.tissue, workers=self.workers, need=())
        self._note(*validation.notes)
        if validation.usable(NORMAL) and validation.usable(TUMOUR):
            return validation
        self._note(
            "The validation split lacks a class; there is no validation and the last weights are used."
        )
        return None

    def _stream(self, pool: Pool, round_: int = 0, batches: int | None = None) -> SampleStream:
        config = self.config
        return SampleStream(
            pool,
            SampleConfig(
                config.mpp,
                config.patch,
                augment=config.augment if config.augmentation and round_ != VALIDATION else NO_AUGMENTATION,
            ),
            config.batch,
            seed=self.seed,
            round_=round_,
            batches=batches,
            workers=self.workers,
            processes=self.machine.processes,
            ahead=max(4, 2 * self.workers),
        )

    # -- fitting ------------------------------------------------------------------------------------------

    def _build_predictor(self, patch_budget: PatchBudget) -> AnomalyPredictor:
        config = self.config
        frozen = frozen_teacher(config.teacher, config.weights, self.seed)
        if config.weights == RANDOM:
            self._note("The teacher's weights are random, so the model is only useful for tests.")
        if config.standardise_teacher:
            self._standardise(frozen, patch_budget.pool)
        torch.manual_seed(self.seed)
        student = Student(frozen.student_shape(config.shortcut))
        predictor = AnomalyPredictor(config, frozen, student)
        predictor.net.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return predictor

    def _standardise(self, frozen: Teacher, pool: Pool) -> None:
        """Standardise the teacher's maps by their statistics over augmented normal training patches."""
        frozen.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        statistics = ChannelStatistics()
        batches = -(-min(len(pool.fixed or ()), STATISTICS_PATCHES) // self.config.batch)
        with self._stream(pool, STATISTICS, batches) as stream:
            for samples in stream:
                normal = samples.pixels[samples.labels == NORMAL]
                if len(normal):
                    pixels = torch.from_numpy(normal).to(self.device)
                    statistics.add(frozen(images_for(self.config, frozen.scaling, pixels)))
        means, spreads = statistics.result()
        frozen.standardise(
            [mean.to(self.device) for mean in means], [spread.to(self.device) for spread in spreads]
        )

    def _fit_student(
        self, predictor: AnomalyPredictor, patch_budget: PatchBudget, validation: Pool | None
    ) -> FitReport:
        config, student = self.config, predictor.net.student
        epoch = max(1, -(-len(patch_budget.positions) // config.batch))
        self.progress.stage = "round 0"
        options = FitOptions(
            steps=config.epochs * epoch,
            schedule="constant",
            stop_after=config.epochs + 1,
            evaluate_every=epoch,
            checkpoint_every=epoch,
            optimiser="adam",
            momentum=BETAS[0],
            second_beta=BETAS[1],
            weight_decay=0.0,
            precision=self.machine.precision,
            device=self.machine.device,
        )
        with self._stream(patch_budget.pool) as stream:
            report = fit(
                student,
                lambda net, samples: self._loss(predictor, net, samples),
                stream,
                options,
                self.folder / "fit",
                [Group([value for value in student.parameters() if value.requires_grad], config.rate)],
                validate=None
                if validation is None
                else lambda _: self._validation_auc(predictor, validation),
                progress=self.progress,
            )
            self.failures |= stream.state()["lost"]
        predictor.net.eval()
        return report

    def _loss(self, predictor: AnomalyPredictor, student: nn.Module, samples: Samples) -> Tensor:
        pixels = torch.from_numpy(samples.pixels).to(self.device, non_blocking=True)
        maps = predictor.net.teacher(predictor.images_of(pixels))
        rebuilt = student(maps)
        if self.config.loss == "plain":
            return distillation_loss(maps, rebuilt)
        normal = torch.from_numpy(samples.labels == NORMAL).to(self.device)
        if self.config.safe:
            return focal_distillation_loss(maps, rebuilt, normal)
        return focal_distillation_loss(maps, rebuilt, normal, floor=None)

    def _val_stream(self, pool: Pool) -> SampleStream:
        return self._stream(pool, VALIDATION, max(1, -(-self.config.val_patches // self.config.batch)))

    def _validation_auc(self, predictor: AnomalyPredictor, validation: Pool) -> float:
        """Area under the ROC curve of the validation patches."""
        from sklearn.metrics import roc_auc_score

        with self._val_stream(validation) as stream:
            labels, raw = raw_scores(predictor, stream, self.device)
        return float(roc_auc_score(labels, raw))

    # -- the bundle ---------------------------------------------------------------------------------------

    def _save(
        self,
        out: Path,
        predictor: AnomalyPredictor,
        patch_budget: PatchBudget,
        report: FitReport,
        calibration_metrics: dict[str, Any],
    ) -> Bundle:
        config = self.config
        metrics = {
            "val_auc": report.best,
            "steps": report.steps,
            "best_step": report.best_step,
            "epochs": [[step, score] for step, score in report.scores],
            **calibration_metrics,
        }
        budget = {
            "slides": sum(1 for _, tumour in patch_budget.counts.values() if tumour),
            "normal_patches": patch_budget.total(NORMAL),
            "tumour_patches": patch_budget.total(TUMOUR),
            "of": {name: list(counts) for name, counts in patch_budget.counts.items()},
        }
        from_file = config.weights and config.weights != RANDOM
        provenance = {
            "seed": self.seed,
            "budget": budget,
            "train_cases": list(patch_budget.counts),
            "val_cases": [case.id for case in self.splits.val],
            "notes": self.notes,
            "lost": self.failures,
            "weights": fingerprint(config.weights, full=True) if from_file else config.weights or "published",
        }
        patients = sorted({slide.case.patient for slide in patch_budget.pool.slides})
        predictor.net.cpu()
        return save(
            out,
            predictor,
            patients=patients,
            metrics=metrics,
            provenance=provenance,
            texts={POSITIONS_FILE: patch_budget.to_csv()},
        )

    def _note(self, *notes: str) -> None:
        for note in notes:
            log.info(note)
            self.notes.append(note)
