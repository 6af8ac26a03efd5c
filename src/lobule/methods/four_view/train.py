"""Training of the four-view classifier, in the stages patches, heatmaps, BI-RADS and breasts.

All files are in `out`: `training/` has a folder per stage with its checkpoint and log, or with the scores of
every patch, and the bundle is written last. An interrupted training continues from these files and gives the
same bundle, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from lobule.bundles import Bundle
from lobule.cohort import Cohort, Kind
from lobule.errors import ConfigError
from lobule.methods.four_view.bundle import save
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.heatmaps import score_patches
from lobule.methods.four_view.model import Nets
from lobule.methods.four_view.objectives import (
    areas,
    birads_area,
    birads_loss,
    classifier_loss,
    exam_probabilities,
    patch_areas,
    selection_metric,
)
from lobule.methods.four_view.predictor import FourViewPredictor
from lobule.methods.four_view.samples import (
    ExamBatch,
    ExamSampler,
    PatchSampler,
    collate_exams,
    collate_patches,
)
from lobule.methods.four_view.start import Start, build_start
from lobule.methods.four_view.stream import BatchStream
from lobule.methods.four_view.training_exams import UNKNOWN, ArrayCache, ExamPool, gather_exams
from lobule.nets.birads import BiradsNet
from lobule.nets.digest import weights_digest
from lobule.nets.four_view import PATCH_CLASSES
from lobule.training.fit_options import Group, split_parameters
from lobule.training.job import TrainingJob, TrainOptions, training_job, val_and_seed

KINDS: tuple[Kind, ...] = ("exam",)
"""Kinds of cases that the method can be trained on."""
PATCHES, BIRADS, BREASTS, VALIDATION = 1, 2, 3, 1_000_000
"""Numbers of the random streams of each stage."""
CACHE_SHARE = 0.5
"""Share of the memory limit that is used to cache decoded views and heatmaps."""


def train(config: Config, cohort: Cohort, out: str | Path, **options: Unpack[TrainOptions]) -> Bundle:
    """Train on a cohort of exams and write the bundle.

    Args:
        config: Settings of the classifier and its training.
        cohort: Training and validation exams.
        out: Folder of the bundle and the files of the training.
        **options: See `TrainOptions`.

    Returns:
        The bundle that was written.

    Raises:
        ConfigError: if the settings or the labels of the cohort do not allow the training.
    """
    settings = config.training
    if settings.batch < 1 or settings.patch_batch < 2 or len(settings.patch_shares) != len(PATCH_CLASSES):
        raise ConfigError(
            "batch or patch_batch is too small, or patch_shares does not have four values",
            expected=f"batch of at least 1, patch_batch of at least 2, a share of {', '.join(PATCH_CLASSES)}",
        )
    torch.manual_seed(val_and_seed(options)[1])
    start = build_start(config)
    with training_job(start.config, cohort, out, kinds=KINDS, also=start.sources, **options) as job:
        training = _Training(start, start.config, job)
        exams = training.gather()
        if start.patch_net is not None:
            if not start.patch_is_trained:
                training.train_patches(start.patch_net, exams)
            exams = training.paint_heatmaps(start.patch_net, exams)
        is_pretrained = start.is_pretrained or training.train_birads(exams)
        training.train_breasts(exams, trunk_rate=settings.trunk_rate if is_pretrained else settings.rate)
        return training.save(exams)


@dataclass(frozen=True, eq=False)
class _Exams:
    """The training exams, and the validation exams if there are any."""

    train: ExamPool
    val: ExamPool | None


@dataclass(frozen=True, eq=False)
class _Training:
    """The inputs of every stage, and the metrics that the stages record."""

    start: Start
    config: Config
    job: TrainingJob
    metrics: dict[str, Any] = field(default_factory=dict)

    def gather(self) -> _Exams:
        job, cache = self.job, ArrayCache(int(self.job.machine.max_ram * CACHE_SHARE))
        job.begin_stage("finding breasts")
        pool = gather_exams(job.split.train, self.config, cache, workers=job.workers)
        job.note(*pool.notes)
        if not job.split.val:
            return _Exams(pool, None)
        val_pool = gather_exams(job.split.val, self.config, cache, workers=job.workers)
        job.note(*val_pool.notes)
        return _Exams(pool, val_pool)

    # -- patches and heatmaps -----------------------------------------------------------------------------

    def train_patches(self, net: nn.Module, exams: _Exams) -> None:
        """Train the patch network on outlined lesions."""
        sampler = PatchSampler(exams.train)
        if sampler.missing:
            missing = ", ".join(PATCH_CLASSES[label] for label in sampler.missing)
            self.job.note(f"no patches of the class {missing}")
        validate: Callable[[nn.Module], float] | None = None
        if exams.val is not None:
            try:
                val_sampler = PatchSampler(exams.val, augmented=False)
                validate = partial(self._score_patches, val_sampler)
            except ConfigError:
                self.job.note(
                    "no validation exam has a malignant outline: the patch network keeps its last weights"
                )

        def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            pixels, labels = (tensor.to(self.job.device) for tensor in batch)
            return nn.functional.cross_entropy(_patch_logits(module, pixels), labels)

        settings = self.config.training
        batches = self._batches(sampler.draw, collate_patches, settings.patch_batch, PATCHES)
        groups = [Group(list(net.parameters()), settings.patch_rate)]
        self._fit(net, loss, batches, "patches", PATCHES, settings.patch_steps, groups, validate)

    def _score_patches(self, sampler: PatchSampler, net: nn.Module) -> float:
        labels, scores = [], []
        batch = self.config.training.patch_batch
        with self._batches(sampler.draw, collate_patches, batch, VALIDATION) as batches:
            for _ in range(-(-self.config.training.val_patches // batch)):
                pixels, batch_labels = next(batches)
                with self.job.autocast():
                    logits = _patch_logits(net, pixels.to(self.job.device))
                    probabilities = torch.softmax(logits, dim=1)
                labels.append(batch_labels.numpy())
                scores.append(probabilities.cpu().numpy())
        return selection_metric(patch_areas(np.concatenate(labels), np.concatenate(scores)))

    def paint_heatmaps(self, patch_net: nn.Module, exams: _Exams) -> _Exams:
        """Run the patch network over every exam once. Exams that fail are removed."""
        job = self.job
        job.begin_stage("heatmaps")
        nets = Nets((self.start.net.cpu(),), (), (patch_net.cpu().eval(),))
        predictor = FourViewPredictor(self.config, nets)
        all_exams = [*exams.train.exams, *(exams.val.exams if exams.val else ())]
        cohort = Cohort(tuple(exam.case for exam in all_exams))
        scores, failed = score_patches(
            predictor,
            self.config,
            weights_digest(patch_net),
            cohort,
            job.folder / "heatmaps",
            job.scan_machine(),
        )
        job.note(*(f"{case}: left out: {cause}" for case, cause in failed.items()))
        val = None if exams.val is None else exams.val.without(failed, scores)
        return _Exams(exams.train.without(failed, scores), val)

    # -- BI-RADS ------------------------------------------------------------------------------------------

    def train_birads(self, exams: _Exams) -> bool:
        """Train the trunks on BI-RADS categories. Returns False if the cohort has none."""
        settings, job = self.config.training, self.job
        if settings.birads_steps == 0:
            return False
        columns = birads_columns(job.split.train, settings.birads)
        if columns is None:
            job.note(f"the cohort has no column '{settings.birads}': no BI-RADS stage")
            return False
        values = [exam.case.value(column) for exam in exams.train.exams for column in columns]
        categories = tuple(sorted({value for value in values if value}))
        if len(categories) < 2:
            job.note("all exams have one BI-RADS category: no BI-RADS stage")
            return False
        sampler = ExamSampler(exams.train, columns, categories)
        torch.manual_seed(job.seed + BIRADS)
        net = BiradsNet(self.start.net.four_view_resnet, self.config.architecture.widths[-1], len(categories))
        validate: Callable[[nn.Module], float] | None = None
        if exams.val is not None:
            val_sampler = ExamSampler(exams.val, columns, categories)
            if val_sampler.strata[0][1]:
                validate = partial(self._score_birads, val_sampler)
        self._fit(
            net, lambda module, batch: birads_loss(module, batch.to(job.device)),
            self._batches(sampler.draw, collate_exams, settings.batch, BIRADS),
            "BI-RADS", BIRADS, settings.birads_steps, [Group(list(net.parameters()), settings.birads_rate)],
            validate, categories=list(categories),
        )  # fmt: skip
        return True

    def _score_birads(self, sampler: ExamSampler, net: nn.Module) -> float:
        grades, scores = [], []
        for batch in self._in_order(sampler):
            with self.job.autocast():
                outputs = net(batch.views)
            for view, logits in outputs.items():
                view_grades = batch.grades[batch.rows[view], 0 if view.startswith("L") else 1]
                graded = view_grades != UNKNOWN
                grades.append(view_grades[graded].cpu().numpy())
                scores.append(torch.softmax(logits.float(), dim=1)[graded].cpu().numpy())
        return birads_area(grades, scores)

    # -- breasts ------------------------------------------------------------------------------------------

    def train_breasts(self, exams: _Exams, *, trunk_rate: float) -> None:
        """Train the classifier on breast labels."""
        settings, net = self.config.training, self.start.net
        sampler = ExamSampler(exams.train)
        trunk, head = split_parameters(net, "four_view_resnet.")
        val_sampler = None if exams.val is None else ExamSampler(exams.val)
        if val_sampler is not None and not _can_evaluate(val_sampler):
            self.job.note(
                "the validation exams lack a class: there is no validation, and the last weights are used"
            )
            val_sampler = None
        self._fit(
            net,
            lambda net, batch: classifier_loss(net, batch.to(self.job.device), settings.positive_weight),
            self._batches(sampler.draw, collate_exams, settings.batch, BREASTS),
            "breasts", BREASTS, settings.steps, [Group(head, settings.rate), Group(trunk, trunk_rate)],
            None if val_sampler is None else partial(self._score, val_sampler),
        )  # fmt: skip
        if val_sampler is not None:
            with torch.no_grad():
                val_areas = self._areas(val_sampler, net.eval())
            self.metrics.update({f"val_auc_{name}": value for name, value in val_areas.items()})

    def _areas(self, sampler: ExamSampler, net: nn.Module) -> dict[str, float]:
        with self.job.autocast():
            pairs = [
                (batch.labels.cpu().numpy(), exam_probabilities(net, batch))  # type: ignore[arg-type]
                for batch in self._in_order(sampler)
            ]
        labels, scores = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        return areas(labels, scores)

    def _score(self, sampler: ExamSampler, net: nn.Module) -> float:
        return selection_metric(self._areas(sampler, net))

    # -- shared by the stages -----------------------------------------------------------------------------

    def _in_order(self, sampler: ExamSampler) -> Iterator[ExamBatch]:
        """Yield every exam of the pool once, with the windows at the best centres."""
        exams = sampler.pool.exams
        for first in range(0, len(exams), self.config.training.batch):
            samples = [
                sampler.sample(exam, None) for exam in exams[first : first + self.config.training.batch]
            ]
            yield collate_exams(samples).to(self.job.device)

    def _batches(self, draw: Any, collate: Any, batch: int, stage: int) -> BatchStream[Any, Any]:
        return BatchStream(draw, collate, batch, seed=self.job.seed, stage=stage, workers=self.job.workers)

    def _fit(
        self,
        net: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: BatchStream[Any, Any],
        name: str,
        stage: int,
        steps: int,
        groups: Sequence[Group],
        validate: Callable[[nn.Module], float] | None,
        **metrics: Any,
    ) -> None:
        """Train a network and record the metrics of the stage."""
        job = self.job
        job.begin_stage(name)
        torch.manual_seed(job.seed + 1000 * stage)
        net.to(device=job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        options = job.fit_options(self.config.training, steps=steps)
        with batches:
            report = job.fit(net, loss, batches, options, name.lower(), groups, validate)
        net.eval()
        self.metrics[name.lower().replace("-", "")] = {**metrics, **report.summary()}

    def save(self, exams: _Exams) -> Bundle:
        patch_net = None if self.start.patch_net is None else self.start.patch_net.cpu()
        train_cases, val_cases = (
            [exam.case for exam in pool.exams] if pool else [] for pool in (exams.train, exams.val)
        )
        record = self.job.record(train_cases, val_cases, self.metrics, **self.start.sources)
        return save(self.job.out, self.config, self.start.net.cpu(), patch_net, **record)


def _patch_logits(net: nn.Module, pixels: Tensor) -> Tensor:
    logits: Tensor = net(pixels.expand(-1, 3, -1, -1)).float()
    return logits


def _can_evaluate(sampler: ExamSampler) -> bool:
    labels = np.stack([exam.labels for exam in sampler.pool.exams])
    return bool(areas(labels, np.random.default_rng(0).random(labels.shape)))


def birads_columns(cohort: Cohort, name: str) -> tuple[str, str] | None:
    """Return the BI-RADS columns of the left and the right breast, or twice the column of the whole exam."""
    for columns in ((f"left_{name}", f"right_{name}"), (name, name)):
        if any(case.value(column) is not None for case in cohort for column in columns):
            return columns
    return None
