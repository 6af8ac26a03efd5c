"""Training of the four-view classifier, in the stages patches, heatmaps, BI-RADS and breasts.

All files are in `out`: `training/` has a folder per stage with its checkpoint and log, or with the scores of
every patch, and the bundle is written last. An interrupted training continues from these files and gives the
same bundle, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from lobule.bundles import Bundle
from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError
from lobule.methods.four_view.bundle import save
from lobule.methods.four_view.config import KINDS, Config
from lobule.methods.four_view.heatmaps import score_patches
from lobule.methods.four_view.model import Nets
from lobule.methods.four_view.objectives import (
    areas,
    birads_area,
    birads_loss,
    breast_areas,
    classifier_loss,
    labels_and_scores,
    mean_of_four,
    patch_areas,
    selection_metric,
)
from lobule.methods.four_view.predictor import FourViewPredictor
from lobule.methods.four_view.samples import (
    ExamBatch,
    ExamSampler,
    PatchSampler,
    birads_categories,
    birads_columns,
    collate_exams,
    other_categories,
)
from lobule.methods.four_view.start import Start, build_start
from lobule.methods.four_view.training_exams import ExamPool, gather_exams
from lobule.nets.birads import BiradsNet
from lobule.nets.digest import weights_digest
from lobule.nets.published import PATCH_CLASSES
from lobule.results.folder import Results
from lobule.slides.cache import TileCache
from lobule.training.batch_stream import DrawnBatches
from lobule.training.fit_options import Group, split_parameters
from lobule.training.job import TrainingJob, TrainOptions, training_job, val_and_seed

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
    torch.manual_seed(val_and_seed(options)[1])
    start = build_start(config)
    with training_job(start.config, cohort, out, kinds=KINDS, also=start.sources, **options) as job:
        training = _Training(start, job)
        exams = training.gather()
        if start.patch_net is not None:
            if not start.patch_is_trained:
                training.train_patches(start.patch_net, exams)
            exams = training.paint_heatmaps(start.patch_net, exams)
        is_pretrained = start.is_pretrained or training.train_birads(exams)
        training.train_breasts(exams, is_pretrained=is_pretrained)
        return training.save(exams)


@dataclass(frozen=True, eq=False)
class _Exams:
    """The training exams, and the validation exams if there are any."""

    train: ExamPool
    val: ExamPool | None

    def without(self, failed: Collection[str], patch_scores: Results) -> _Exams:
        """Return the exams without some cases, with the scores of every patch of the others."""
        val = None if self.val is None else self.val.without(failed, patch_scores)
        return _Exams(self.train.without(failed, patch_scores), val)

    @property
    def cases(self) -> tuple[list[Case], list[Case]]:
        return self.train.cases, [] if self.val is None else self.val.cases


@dataclass(frozen=True, eq=False)
class _Training:
    """The inputs of every stage, and the metrics that the stages record."""

    start: Start
    job: TrainingJob
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        return self.start.config

    def gather(self) -> _Exams:
        job, cache = self.job, TileCache(int(self.job.machine.max_ram * CACHE_SHARE))
        job.begin_stage("finding breasts")
        pools: list[ExamPool] = []
        for cohort in filter(None, (job.split.train, job.split.val)):
            pools.append(gather_exams(cohort, self.config, cache, workers=job.workers))
            job.note(*pools[-1].notes)
        return _Exams(pools[0], pools[1] if len(pools) > 1 else None)

    # -- patches and heatmaps -----------------------------------------------------------------------------

    def train_patches(self, net: nn.Module, exams: _Exams) -> None:
        """Train the patch network on outlined lesions."""
        settings, sampler, validate = self.config.training, PatchSampler(exams.train), None
        if sampler.missing:
            missing = ", ".join(PATCH_CLASSES[label] for label in sampler.missing)
            self.job.note(f"no patches of the class {missing}")
        if exams.val is not None:
            try:
                validate = partial(self._score_patches, PatchSampler(exams.val, augmented=False))
            except ConfigError:
                self.job.note(
                    "no validation exam has a malignant outline: the patch network keeps its last weights"
                )
        groups = [Group(list(net.parameters()), settings.patch_rate)]
        batches = self._batches(sampler.draw, default_collate, settings.patch_batch, PATCHES)
        self._fit("patches", net, self._patch_loss, batches, settings.patch_steps, groups, validate)

    def _patch_loss(self, net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, labels = (tensor.to(self.job.device) for tensor in batch)
        return nn.functional.cross_entropy(_patch_logits(net, pixels), labels)

    def _score_patches(self, sampler: PatchSampler, net: nn.Module) -> float:
        labels, scores = [], []
        settings = self.config.training
        with self._batches(sampler.draw, default_collate, settings.patch_batch, VALIDATION) as batches:
            for pixels, batch_labels in islice(batches, -(-settings.val_patches // settings.patch_batch)):
                with self.job.autocast():
                    logits = _patch_logits(net, pixels.to(self.job.device))
                labels.append(batch_labels.numpy())
                scores.append(torch.softmax(logits, dim=1).cpu().numpy())
        return selection_metric(patch_areas(np.concatenate(labels), np.concatenate(scores)))

    def paint_heatmaps(self, patch_net: nn.Module, exams: _Exams) -> _Exams:
        """Run the patch network over every exam once. Exams that fail are removed."""
        job, config = self.job, self.config
        job.begin_stage("heatmaps")
        predictor = FourViewPredictor(config, Nets((self.start.net.cpu(),), (), (patch_net.cpu().eval(),)))
        train_cases, val_cases = exams.cases
        scores, failed = score_patches(
            predictor, config, weights_digest(patch_net), Cohort((*train_cases, *val_cases)),
            job.folder / "heatmaps", job.scan_machine(),
        )  # fmt: skip
        job.note(*(f"{case}: left out: {cause}" for case, cause in failed.items()))
        return exams.without(failed, scores)

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
        values = {case.value(column) for case in exams.train.cases for column in columns}
        categories = birads_categories(values, settings.birads_classes)
        if settings.birads_classes == "published" and (left_out := other_categories(values)):
            job.note(f"BI-RADS categories other than 0, 1 and 2 are left out: {', '.join(left_out)}")
        if len(categories) < 2:
            job.note("all exams have one BI-RADS category: no BI-RADS stage")
            return False
        torch.manual_seed(job.seed + BIRADS)
        net = BiradsNet(self.start.net.four_view_resnet, self.config.architecture.widths[-1], len(categories))
        validate = None
        if exams.val is not None:
            val_sampler = ExamSampler(exams.val, columns, categories)
            validate = partial(self._on_exams, birads_area, val_sampler) if val_sampler.has_exams else None
        groups = [Group(list(net.parameters()), settings.birads_rate)]
        sampler = ExamSampler(exams.train, columns, categories)
        batches = self._batches(sampler.draw, collate_exams, settings.batch, BIRADS)
        self._fit(
            "BI-RADS", net, lambda net, batch: birads_loss(net, batch.to(job.device)), batches,
            settings.birads_steps, groups, validate, categories=list(categories),
        )  # fmt: skip
        return True

    # -- breasts ------------------------------------------------------------------------------------------

    def train_breasts(self, exams: _Exams, *, is_pretrained: bool) -> None:
        """Train the classifier on breast labels."""
        settings, net = self.config.training, self.start.net
        sampler = ExamSampler(exams.train)
        trunk, head = split_parameters(net, "four_view_resnet.")
        trunk_rate = settings.trunk_rate if is_pretrained else settings.rate
        val_sampler = None if exams.val is None else ExamSampler(exams.val)
        if val_sampler is not None and not _can_evaluate(val_sampler):
            self.job.note(
                "the validation exams lack a class: there is no validation, and the last weights are used"
            )
            val_sampler = None
        val_areas = None if val_sampler is None else partial(self._on_exams, breast_areas, val_sampler)
        self._fit(
            "breasts", net,
            lambda net, batch: classifier_loss(net, batch.to(self.job.device), settings.positive_weight),
            self._batches(sampler.draw, collate_exams, settings.batch, BREASTS),
            settings.steps, [Group(head, settings.rate), Group(trunk, trunk_rate)],
            None if val_sampler is None else partial(self._on_exams, self._selects, val_sampler),
        )  # fmt: skip
        if val_areas is not None:
            with torch.no_grad():
                self.metrics.update({f"val_auc_{name}": value for name, value in val_areas(net).items()})

    def _selects(self, net: nn.Module, batches: Iterator[ExamBatch]) -> float:
        """Return the area that chooses the weights."""
        labels, scores = labels_and_scores(net, batches)  # type: ignore[arg-type]
        if self.config.training.select_by == "mean of four":
            mean = mean_of_four(labels, scores)
            if mean is not None:
                return mean
        return selection_metric(areas(labels, scores))

    # -- shared by the stages -----------------------------------------------------------------------------

    def _on_exams(
        self, measure: Callable[[Any, Iterator[ExamBatch]], Any], sampler: ExamSampler, net: nn.Module
    ) -> Any:
        """Measure a network on every exam once, in the precision of the training."""
        with self.job.autocast():
            return measure(net, self._in_order(sampler))

    def _in_order(self, sampler: ExamSampler) -> Iterator[ExamBatch]:
        """Yield every exam of the pool once, with the windows at the best centres."""
        exams, size = sampler.pool.exams, self.config.training.batch
        for first in range(0, len(exams), size):
            samples = [sampler.sample(exam, None) for exam in exams[first : first + size]]
            yield collate_exams(samples).to(self.job.device)

    def _batches(self, draw: Any, collate: Any, batch: int, stage: int) -> DrawnBatches[Any, Any]:
        return DrawnBatches(draw, collate, batch, seed=self.job.seed, stage=stage, workers=self.job.workers)

    def _fit(
        self,
        name: str,
        net: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: DrawnBatches[Any, Any],
        steps: int,
        groups: Sequence[Group],
        validate: Callable[[nn.Module], float] | None,
        **metrics: Any,
    ) -> None:
        """Train a network and record the metrics of the stage."""
        job = self.job
        job.begin_stage(name)
        torch.manual_seed(job.seed + 1000 * batches.stage)
        job.move_to_device(net)
        options = job.fit_options(self.config.training, steps=steps)
        with batches:
            report = job.fit(net, loss, batches, options, name.lower(), groups, validate)
        net.eval()
        self.metrics[name.lower().replace("-", "")] = {**metrics, **report.summary()}

    def save(self, exams: _Exams) -> Bundle:
        patch_net = None if self.start.patch_net is None else self.start.patch_net.cpu()
        train_cases, val_cases = exams.cases
        record = self.job.record(train_cases, val_cases, self.metrics, **self.start.sources)
        return save(self.job.out, self.config, self.start.net.cpu(), patch_net, **record)


def _patch_logits(net: nn.Module, pixels: Tensor) -> Tensor:
    logits: Tensor = net(pixels.expand(-1, 3, -1, -1)).float()
    return logits


def _can_evaluate(sampler: ExamSampler) -> bool:
    labels = np.stack([exam.labels for exam in sampler.pool.exams])
    return bool(areas(labels, np.random.default_rng(0).random(labels.shape)))
