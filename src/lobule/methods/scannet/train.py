"""Training of ScanNet: patches sampled from outlined slides, then rounds of hard-negative mining.

A training writes to `out`: `training/` with a folder for each round (checkpoint, log, hard negatives), and
the bundle at the end. An interrupted training continues from `training/` with bit-identical results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor, nn

from lobule.bundles import Bundle, plain_weights, read_bundle
from lobule.cohort import Cohort
from lobule.files import make_folder
from lobule.imagenet import imagenet_weights
from lobule.methods.scannet.calibration import CellCalibration, calibrate_cells
from lobule.methods.scannet.config import Config
from lobule.methods.scannet.mining import merge_points, mine
from lobule.methods.scannet.predictor import DensePredictor, save
from lobule.methods.scannet.scoring import LearnedSlideScore, learn_slide_score
from lobule.nets.backbones import BACKBONES, load_trunk
from lobule.nets.digest import weights_digest
from lobule.nets.receptive import geometry_of
from lobule.nets.scaling import PLAIN_SCALING, InputScaling
from lobule.training.batch_record import BatchRecord
from lobule.training.fit_options import Group, split_parameters
from lobule.training.fitting import FitReport
from lobule.training.job import TrainingJob, TrainOptions, training_job, weights_source
from lobule.training.patch_pools import PatchStreams, cases_of, train_pool, validation_pool
from lobule.training.patch_sampling import NORMAL, Points, Pool
from lobule.training.sampling import SampleConfig, Samples
from lobule.training.training_scan import TrainingScan

GROWTH = 0.05
"""Mining ends when the number of hard negatives grows by less than this share."""


def train(config: Config, cohort: Cohort, out: str | Path, **options: Unpack[TrainOptions]) -> Bundle:
    """Train on a cohort of outlined slides and write the bundle.

    If the training is started by torchrun, the processes share each batch; all of them need access to the
    slides and to `out`.

    Args:
        config: Settings of the model and of the training.
        cohort: Cases with outlines.
        out: Folder for the bundle and the state of the training.
        **options: See `TrainOptions`.
    """
    config = config.resolved()
    with training_job(config, cohort, out, distributed=True, **options) as job:
        training = _begin(config, job)
        pool = train_pool(job, stains=config.stains)
        validation = validation_pool(job, need=(), stains=config.stains)
        pool, metrics = training.run_rounds(pool, validation)
        bundle = training.save(pool, validation, metrics) if job.ranks.first else None
        job.ranks.wait()
        return bundle or read_bundle(job.out)


def _begin(config: Config, job: TrainingJob) -> _Training:
    net = BACKBONES[config.trunk](len(config.classes))
    if (weights := _start_weights(config)) is not None:
        load_trunk(net, weights)
    scaling = PLAIN_SCALING if weights is None else InputScaling()
    sampling = SampleConfig(
        config.mpp, geometry_of(net).extent, hard_share=config.hard_share, by_site=config.by_site,
        augment=config.augment, upsample=config.upsample,
    )  # fmt: skip
    job.move_to_device(net)
    return _Training(config, job, net, scaling, PatchStreams(job, sampling, config.batch, config.val_patches))


def _start_weights(config: Config) -> Mapping[str, Tensor] | None:
    """The pretrained weights of the trunk; None if it starts from random ones."""
    if config.starts_from == "random":
        return None
    if config.starts_from == "imagenet":
        return imagenet_weights(config.trunk.removeprefix("scannet_"))
    return plain_weights(config.starts_from)


@dataclass(frozen=True, eq=False)
class _Training:
    """The inputs of every stage: the settings, the job and the net, which the rounds train."""

    config: Config
    job: TrainingJob
    net: nn.Module
    scaling: InputScaling
    streams: PatchStreams

    def run_rounds(self, pool: Pool, validation: Pool | None) -> tuple[Pool, dict[str, Any]]:
        """Train, then mine hard negatives and train again while there are enough new ones.

        Returns:
            The pool with the hard negatives, and the metrics of the rounds.
        """
        reports = [self._train_round(pool, validation, 0)]
        counts: list[int] = []
        for round_ in range(1, self.config.rounds + 1):
            hard = self._mine(pool, round_)
            counts.append(sum(map(len, hard.values())))
            if counts[-1] < (1 + GROWTH) * sum(counts[-2:-1]) or not hard:
                break
            pool = pool.with_hard(hard)
            reports.append(self._train_round(pool, validation, round_))
        return pool, {
            "val_auc": reports[-1].best,
            "rounds": [{**report.summary(), "replicas": report.replicas} for report in reports],
            "hard_places": counts,
        }

    def _train_round(self, pool: Pool, validation: Pool | None, round_: int) -> FitReport:
        """Train on patches of the pool. Later rounds continue with the learning rate of the trunk."""
        config, job = self.config, self.job
        job.begin_stage(f"round {round_}")
        options = job.fit_options(
            config,
            steps=config.round_steps if round_ else config.steps,
            replicas=job.machine.replicas_for(config.batch // job.ranks.count),
            seed=job.seed + 1000 * (round_ + 1),
        )
        validate = self.streams.validate(validation, self._margin)
        with self.streams.draw(pool, round_) as stream:
            batches = BatchRecord(stream, self._record_path(round_)) if config.record_batches else stream
            return job.fit(
                self.net, self._loss, batches, options, f"round-{round_}", self._groups(round_), validate
            )

    def _record_path(self, round_: int) -> Path:
        """The file of the batches of a round; each process of a shared training has one."""
        ranks = self.job.ranks
        name = "batches.csv" if ranks.count == 1 else f"batches-{ranks.rank}.csv"
        return make_folder(self.job.folder / f"round-{round_}") / name

    def _groups(self, round_: int) -> list[Group]:
        """All parameters with one learning rate, except that a pretrained trunk first has a lower one."""
        config, net = self.config, self.net
        if round_ or config.starts_from == "random":
            return [Group(list(net.parameters()), config.trunk_rate if round_ else config.rate)]
        trunk, head = split_parameters(net, "trunk.", "conv")
        return [Group(head, config.rate), Group(trunk, config.trunk_rate)]

    def _loss(self, net: nn.Module, samples: Samples) -> Tensor:
        return nn.functional.cross_entropy(self._logits(net, samples), self.job.on_device(samples.labels))

    def _logits(self, net: nn.Module, samples: Samples) -> Tensor:
        logits: Tensor = net(self.scaling.apply(self.job.on_device(samples.pixels))).flatten(1).float()
        return logits

    def _margin(self, samples: Samples) -> Tensor:
        """The scores of validation patches: the output for tumour minus that for normal tissue."""
        with self.job.autocast():
            logits = self._logits(self.net, samples)
        return logits[:, 1] - logits[:, 0]

    def _scan(self, folder: str) -> TrainingScan[DensePredictor]:
        """Return a scan with the net as it is trained so far; the net is moved to the CPU."""
        predictor = DensePredictor(self.config, self.net.cpu(), self.scaling)
        return self.job.scan_with(predictor, "scannet", weights_digest(self.net), folder)

    def _mine(self, pool: Pool, round_: int) -> dict[int, Points]:
        """The hard negatives of all rounds so far, up to the limit of each slide, the newest first."""
        config, job = self.config, self.job
        job.begin_stage(f"mining for round {round_}")
        slide_scan = self._scan(f"round-{round_}")
        try:
            mined, notes = job.ranks.from_first(lambda: mine(slide_scan, pool))
        finally:
            self.net.to(job.device)
        job.note(*notes)
        nothing = np.empty((0, 2))
        return {
            number: merge_points(
                mined.get(number, nothing),
                pool.hard.get(number, nothing),
                config.hard_merge * config.mpp / pool.slides[number].mpp,
            )[: config.hard_cap]
            for number in sorted({*mined, *pool.hard})
        }

    def save(self, pool: Pool, validation: Pool | None, metrics: dict[str, Any]) -> Bundle:
        calibration = self._calibrate(validation)
        learned = self._learn_slide_score(pool, validation)
        record = self.job.record(
            cases_of(pool), cases_of(validation), metrics | learned.metrics(),
            weights=self._weights_source(),
        )  # fmt: skip
        forest = learned.fitted.forest if learned.fitted else None
        net = self.net.cpu()
        return save(
            self.job.out, self.config, net, self.scaling, forest=forest, calibration=calibration, **record
        )

    def _weights_source(self) -> str | None:
        start = self.config.starts_from
        return weights_source(
            "" if start in ("random", "imagenet") else start, None if start == "random" else start
        )

    def _calibrate(self, validation: Pool | None) -> CellCalibration | None:
        """Calibrate the scores of cells on the validation slides, if there are any."""
        job, threshold = self.job, self.config.threshold
        if validation is None or not validation.usable(NORMAL):
            job.note(
                "Without validation slides with normal tissue the scores are not calibrated, and the "
                f"threshold for findings stays {threshold}."
            )
            return None
        job.begin_stage("calibrating on the validation slides")
        slide_scan = self._scan("calibration")
        stride = slide_scan.predictor.calibration_stride
        calibration, notes = calibrate_cells(
            slide_scan, validation.slides, threshold=threshold, stride=stride
        )
        job.note(*notes)
        return calibration

    def _learn_slide_score(self, pool: Pool, validation: Pool | None) -> LearnedSlideScore:
        """Train a forest on the training and validation slides, if the config asks for one."""
        if self.config.slide_score == "max":
            return LearnedSlideScore(None)
        self.job.begin_stage("learning the slide score")
        slides = [*pool.slides, *(validation.slides if validation else ())]
        learned = learn_slide_score(
            self._scan("slide-score"), slides, trees=self.config.trees, seed=self.job.seed
        )
        self.job.note(*learned.notes)
        return learned
