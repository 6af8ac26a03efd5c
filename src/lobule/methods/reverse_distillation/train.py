"""Training of reverse distillation: a listed budget of patches, the student fitted to the frozen teacher.

What a training leaves behind lies in `out`: the bundle, which comes last, and `training/` with its checkpoint
and log, from which an interrupted training goes on bit for bit.
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
from lobule.methods.reverse_distillation.budget import Spent, spend
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
"""Of Adam, as published."""
STATISTICS, STATISTICS_PATCHES = 2_000_000, 512
"""The round of the patches that standardise the teacher's maps, and how many are drawn at most."""
VALIDATION = 1_000_000
"""The round that validation patches are drawn in: the same ones at every look."""
PLACES = "places.csv"
"""The file of a bundle that lists every place that was learned from."""


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

    `val` names the split that is validated and calibrated on; without one in the cohort, a fifth of the
    patients is held out, and with None nobody is. `resume` goes on with what is in `out`, `fresh` forgets it.
    """
    machine, progress = (machine or TrainMachine()).resolved(), progress or FitProgress()
    parts = training_split(cohort, val, seed)
    with begun_training(out, config, parts, also={"seed": seed}, resume=resume, fresh=fresh) as folder:
        training = _Training(config, parts, folder, seed, tissue or TissueConfig(), machine, progress)
        return training.run(Path(out))


def frozen_teacher(name: str, weights: str, seed: int = 0) -> Teacher:
    """A teacher with the weights of a file, published ones, or fresh ones where `random` is said."""
    if weights and weights != RANDOM:
        frozen = teacher(name)
        load_teacher_weights(frozen, plain_weights(weights))
        return frozen
    if weights == RANDOM:
        torch.manual_seed(seed)
        return teacher(name)
    try:
        return teacher(name, pretrained=True)
    except OSError as error:  # urllib's and the hub's errors are of this kind
        raise ConfigError(
            "the teacher's published weights cannot be fetched",
            subject=name,
            actual=str(error),
            remedy="Give a file that you have with --set weights=FILE, or --teacher FILE when converting",
        ) from error


class _Training:
    """One training: its budget, its teacher and student."""

    def __init__(
        self,
        config: Config,
        parts: TrainingSplit,
        folder: Path,
        seed: int,
        tissue: TissueConfig,
        machine: TrainMachine,
        progress: FitProgress,
    ) -> None:
        self.asked, self.parts, self.folder, self.seed = config, parts, folder, seed
        self.tissue, self.machine, self.progress = tissue, machine, progress
        self.workers = machine.workers or 1
        self.device = torch.device(machine.device)
        self.notes: list[str] = []
        self.failures: dict[str, str] = {}
        self.config = config

    def run(self, out: Path) -> Bundle:
        self.progress.stage = "finding tissue"
        spent = self._budget()
        held = self._held()
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            predictor = self._built(spent)
            report = self._fitted(predictor, spent, held)
        self.progress.stage = "calibrating"
        told = calibrate(
            predictor, spent.pool, held, self._val_stream, self.tissue, self.folder, self.machine
        )
        predictor.calibration = told.calibration
        self._note(*told.notes)
        return self._save(out, predictor, spent, report, told.metrics)

    # -- what is learned from -----------------------------------------------------------------------------

    def _budget(self) -> Spent:
        pool = gather(self.parts.train, self.tissue, workers=self.workers, need=(NORMAL,))
        self._note(*self.parts.notes, *pool.notes)
        loss: Loss = self.asked.loss
        if loss == "focal" and not (pool.usable(TUMOUR) and self.asked.tumour_patches):
            self._note("there are no tumour patches: the plain one-class loss learns normal tissue alone")
            loss = "plain"
        self.config = self.asked.of_loss(loss)
        spent = spend(self.config, pool, self.seed)
        self._note(*spent.notes)
        if not spent.total(NORMAL):
            raise ConfigError(
                "no slide has a place for a whole normal patch",
                subject=self.parts.train.path,
                remedy="Use smaller patches, or slides with more normal tissue",
            )
        return spent

    def _held(self) -> Pool | None:
        """What is validated and calibrated on; None where nothing can be."""
        if not self.parts.val:
            return None
        held = gather(self.parts.val, self.tissue, workers=self.workers, need=())
        self._note(*held.notes)
        if held.usable(NORMAL) and held.usable(TUMOUR):
            return held
        self._note("the validation split lacks a class: nothing is validated and the last weights are kept")
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

    def _built(self, spent: Spent) -> AnomalyPredictor:
        config = self.config
        frozen = frozen_teacher(config.teacher, config.weights, self.seed)
        if config.weights == RANDOM:
            self._note("the teacher's weights are random: nobody trained it")
        if config.standardise_teacher:
            self._standardise(frozen, spent.pool)
        torch.manual_seed(self.seed)
        student = Student(frozen.student_shape(config.shortcut))
        predictor = AnomalyPredictor(config, frozen, student)
        predictor.net.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return predictor

    def _standardise(self, frozen: Teacher, pool: Pool) -> None:
        """Standardise the teacher's maps by those of normal training patches, augmented as in training."""
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

    def _fitted(self, predictor: AnomalyPredictor, spent: Spent, held: Pool | None) -> FitReport:
        config, student = self.config, predictor.net.student
        epoch = max(1, -(-len(spent.listed) // config.batch))
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
        with self._stream(spent.pool) as stream:
            report = fit(
                student,
                lambda net, samples: self._loss(predictor, net, samples),
                stream,
                options,
                self.folder / "fit",
                [Group([value for value in student.parameters() if value.requires_grad], config.rate)],
                validate=None if held is None else lambda _: self._validated(predictor, held),
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

    def _validated(self, predictor: AnomalyPredictor, held: Pool) -> float:
        """The area under the ROC curve of the validation patches."""
        from sklearn.metrics import roc_auc_score

        with self._val_stream(held) as stream:
            labels, raw = raw_scores(predictor, stream, self.device)
        return float(roc_auc_score(labels, raw))

    # -- the bundle ---------------------------------------------------------------------------------------

    def _save(
        self,
        out: Path,
        predictor: AnomalyPredictor,
        spent: Spent,
        report: FitReport,
        told: dict[str, Any],
    ) -> Bundle:
        config = self.config
        metrics = {
            "val_auc": report.best,
            "steps": report.steps,
            "best_step": report.best_step,
            "epochs": [[step, score] for step, score in report.scores],
            **told,
        }
        budget = {
            "slides": sum(1 for _, tumour in spent.counts.values() if tumour),
            "normal_patches": spent.total(NORMAL),
            "tumour_patches": spent.total(TUMOUR),
            "of": {name: list(counts) for name, counts in spent.counts.items()},
        }
        given = config.weights and config.weights != RANDOM
        provenance = {
            "seed": self.seed,
            "budget": budget,
            "train_cases": list(spent.counts),
            "val_cases": [case.id for case in self.parts.val],
            "notes": self.notes,
            "lost": self.failures,
            "weights": fingerprint(config.weights, full=True) if given else config.weights or "published",
        }
        patients = sorted({places.case.patient for places in spent.pool.slides})
        predictor.net.cpu()
        return save(
            out,
            predictor,
            patients=patients,
            metrics=metrics,
            provenance=provenance,
            texts={PLACES: spent.to_csv()},
        )

    def _note(self, *notes: str) -> None:
        for note in notes:
            log.info(note)
            self.notes.append(note)
