"""Training of the four-view classifier, in the stages patches, heatmaps, BI-RADS and breasts.

All files are in `out`: `training/` has a folder per stage with its checkpoint and log, or with the scores of
every patch, and the bundle is written last. An interrupted training continues from these files and gives the
same bundle, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lobule.bundles import Bundle
from lobule.cohort import Cohort, Kind
from lobule.errors import ConfigError
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.draws import (
    ExamBatch,
    ExamSampler,
    PatchSampler,
    collate_exams,
    collate_patches,
)
from lobule.methods.four_view.heatmap_store import HeatmapStore, score_patches
from lobule.methods.four_view.members import save
from lobule.methods.four_view.objectives import (
    areas,
    birads_area,
    birads_loss,
    classifier_loss,
    exam_probabilities,
    patch_areas,
    selection_metric,
)
from lobule.methods.four_view.pool import GRADES, UNKNOWN, ArrayCache, ExamPool, gather_exams
from lobule.methods.four_view.predictor import FourViewPredictor
from lobule.methods.four_view.start import Start, build_start
from lobule.methods.four_view.stream import BatchStream
from lobule.nets.birads import BiradsNet
from lobule.nets.digest import weights_digest
from lobule.scanning.scan import Machine
from lobule.training.fitting import FitOptions, FitProgress, FitReport, Group, TrainMachine, fit
from lobule.training.job import TrainingSplit, begun_training, training_split

log = logging.getLogger("lobule.train")

KINDS: tuple[Kind, ...] = ("exam",)
"""Kinds of cases that the method can be trained on."""
PATCHES, BIRADS, BREASTS, VALIDATION = 1, 2, 3, 1_000_000
"""Numbers of the random streams of each stage."""
CACHE_SHARE = 0.5
"""Share of the memory limit that is used to cache decoded views and heatmaps."""
CLASSES = (*GRADES, "outside", "negative")

Item = TypeVar("Item")


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
    """Train on a cohort of exams and write the bundle.

    Args:
        config: Settings of the classifier and its training.
        cohort: Training and validation exams.
        out: Folder of the bundle and the files of the training.
        val: Split used for validation. If the cohort has no such split, a fifth of the patients is used.
            With None there is no validation.
        seed: Seed of all random numbers.
        resume: Continue the training in `out`.
        fresh: Delete the training in `out` and start again.
        machine: Device, precision, memory limit and number of workers.
        progress: Object that is updated with the current stage and step.

    Returns:
        The bundle that was written.

    Raises:
        ConfigError: if the settings or the labels of the cohort do not allow the training.
    """
    if config.batch < 1 or config.patch_batch < 2 or len(config.patch_shares) != len(CLASSES):
        raise ConfigError(
            "batch or patch_batch is too small, or patch_shares does not have four values",
            expected="batch of at least 1, patch_batch of at least 2, and a share of " + ", ".join(CLASSES),
        )
    torch.manual_seed(seed)
    start = build_start(config)
    machine, progress = (machine or TrainMachine()).resolved(), progress or FitProgress()
    split = training_split(cohort, val, seed, KINDS)
    identity = {"seed": seed, **start.sources}
    with begun_training(out, start.config, split, also=identity, resume=resume, fresh=fresh) as folder:
        return _Training(start, split, folder, seed, machine, progress).run(Path(out))


class _Training:
    """One run of the training, with its exams, networks and stages."""

    def __init__(
        self,
        start: Start,
        split: TrainingSplit,
        folder: Path,
        seed: int,
        machine: TrainMachine,
        progress: FitProgress,
    ) -> None:
        self.start, self.config, self.split, self.folder = start, start.config, split, folder
        self.seed, self.machine, self.progress = seed, machine, progress
        self.workers, self.device = machine.workers or 1, torch.device(machine.device)
        self.cache = ArrayCache(int(machine.max_ram * CACHE_SHARE))
        self.notes: list[str] = []
        self.metrics: dict[str, Any] = {}

    def run(self, out: Path) -> Bundle:
        self._start_stage("finding breasts")
        pool = gather_exams(self.split.train, self.config, self.cache, workers=self.workers)
        val_pool = None
        if self.split.val:
            val_pool = gather_exams(self.split.val, self.config, self.cache, workers=self.workers)
        self._note(*self.split.notes, *pool.notes, *(val_pool.notes if val_pool else ()))
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            store = None
            if self.start.patch_net is not None:
                if not self.start.patch_is_trained:
                    self._train_patches(self.start.patch_net, pool, val_pool)
                store, pool, val_pool = self._paint_heatmaps(pool, val_pool)
            if not self.start.is_pretrained:
                from_birads = self._train_birads(pool, val_pool, store)
            else:
                from_birads = False
            self._train_breasts(pool, val_pool, store, pretrained=from_birads or self.start.is_pretrained)
        return self._save(out, pool)

    # -- stages -------------------------------------------------------------------------------------------

    def _train_patches(self, net: nn.Module, pool: ExamPool, val_pool: ExamPool | None) -> None:
        """Train the patch network on outlined lesions."""
        config = self.config
        sampler = PatchSampler(pool)
        if sampler.missing:
            self._note("no patches of the class " + ", ".join(CLASSES[label] for label in sampler.missing))
        val_sampler: PatchSampler | None = None
        if val_pool is not None:
            try:
                val_sampler = PatchSampler(val_pool, augmented=False)
            except ConfigError:
                self._note(
                    "no validation exam has a malignant outline: the patch network keeps its last weights"
                )

        def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            pixels, labels = (tensor.to(self.device) for tensor in batch)
            return nn.functional.cross_entropy(self._patch_logits(module, pixels), labels)

        def score(module: nn.Module) -> float:
            assert val_sampler is not None
            return selection_metric(self._evaluate_patches(module, val_sampler))

        with self._batch_stream(sampler.draw, collate_patches, config.patch_batch, PATCHES) as batches:
            report = self._fit(
                net, loss, batches, "patches", PATCHES, config.patch_steps,
                [Group(list(net.parameters()), config.patch_rate)], score if val_sampler else None,
            )  # fmt: skip
        self.metrics["patches"] = self._summary(report)

    def _patch_logits(self, net: nn.Module, pixels: Tensor) -> Tensor:
        logits: Tensor = net(pixels.expand(-1, 3, -1, -1)).float()
        return logits

    def _evaluate_patches(self, net: nn.Module, sampler: PatchSampler) -> dict[str, float]:
        labels, scores = [], []
        with self._batch_stream(
            sampler.draw, collate_patches, self.config.patch_batch, VALIDATION
        ) as batches:
            for _ in range(-(-self.config.val_patches // self.config.patch_batch)):
                pixels, batch_labels = next(batches)
                with self._precision():
                    probabilities = torch.softmax(self._patch_logits(net, pixels.to(self.device)), dim=1)
                labels.append(batch_labels.numpy())
                scores.append(probabilities.cpu().numpy())
        return patch_areas(np.concatenate(labels), np.concatenate(scores))

    def _paint_heatmaps(
        self, pool: ExamPool, val_pool: ExamPool | None
    ) -> tuple[HeatmapStore, ExamPool, ExamPool | None]:
        """Run the patch network over every exam once. Exams that fail are removed from the pools."""
        self._start_stage("heatmaps")
        assert self.start.patch_net is not None
        predictor = FourViewPredictor(self.config, self.start.net.cpu(), self.start.patch_net.cpu().eval())
        exams = [*pool.exams, *(val_pool.exams if val_pool else ())]
        cohort = Cohort(tuple(exam.case for exam in exams))
        machine = Machine(
            device=self.machine.device, precision=self.machine.precision, max_ram=self.machine.max_ram,
            channels_last=True,
        )  # fmt: skip
        store, failed = score_patches(
            predictor, weights_digest(self.start.patch_net), cohort, self.folder / "heatmaps", machine
        )
        self._note(*(f"{case}: left out: {cause}" for case, cause in failed.items()))

        def without_failed(scored_pool: ExamPool) -> ExamPool:
            return replace(
                scored_pool, exams=tuple(exam for exam in scored_pool.exams if exam.case.id not in failed)
            )

        return store, without_failed(pool), None if val_pool is None else without_failed(val_pool)

    def _train_birads(self, pool: ExamPool, val_pool: ExamPool | None, store: HeatmapStore | None) -> bool:
        """Train the trunks on BI-RADS categories, if the cohort has them."""
        columns = birads_columns(self.split.train, self.config.birads)
        if columns is None or self.config.birads_steps == 0:
            if self.config.birads_steps:
                self._note(f"the cohort has no column '{self.config.birads}': no BI-RADS stage")
            return False
        values = [exam.case.value(column) for exam in pool.exams for column in columns]
        categories = tuple(sorted({value for value in values if value}))
        if len(categories) < 2:
            self._note("all exams have one BI-RADS category: no BI-RADS stage")
            return False
        sampler = ExamSampler(pool, store, columns, categories)
        torch.manual_seed(self.seed + BIRADS)
        net = BiradsNet(self.start.net.four_view_resnet, self.config.widths[-1], len(categories))
        val_sampler = None if val_pool is None else ExamSampler(val_pool, store, columns, categories)
        score = (
            None if val_sampler is None or not val_sampler.strata[0][1] else self._birads_score(val_sampler)
        )
        with self._batch_stream(sampler.draw, collate_exams, self.config.batch, BIRADS) as batches:
            report = self._fit(
                net, lambda module, batch: birads_loss(module, batch.to(self.device)), batches,
                "BI-RADS", BIRADS, self.config.birads_steps,
                [Group(list(net.parameters()), self.config.birads_rate)], score,
            )  # fmt: skip
        self.metrics["birads"] = {"categories": list(categories), **self._summary(report)}
        return True

    def _birads_score(self, sampler: ExamSampler) -> Callable[[nn.Module], float]:
        def score(net: nn.Module) -> float:
            grades, scores = [], []
            for batch in self._in_order(sampler):
                with self._precision():
                    outputs = net(batch.views)
                for view, logits in outputs.items():
                    view_grades = batch.grades[batch.rows[view], 0 if view.startswith("L") else 1]
                    graded = view_grades != UNKNOWN
                    grades.append(view_grades[graded].cpu().numpy())
                    scores.append(torch.softmax(logits.float(), dim=1)[graded].cpu().numpy())
            return birads_area(grades, scores)

        return score

    def _train_breasts(
        self, pool: ExamPool, val_pool: ExamPool | None, store: HeatmapStore | None, *, pretrained: bool
    ) -> None:
        """Train the classifier on breast labels."""
        config, net = self.config, self.start.net
        sampler = ExamSampler(pool, store)
        trunk_rate = config.trunk_rate if pretrained else config.rate
        named_parameters = list(net.named_parameters())
        groups = [
            Group(
                [
                    parameter
                    for name, parameter in named_parameters
                    if not name.startswith("four_view_resnet.")
                ],
                config.rate,
            ),
            Group(
                [parameter for name, parameter in named_parameters if name.startswith("four_view_resnet.")],
                trunk_rate,
            ),
        ]
        val_sampler = None if val_pool is None else ExamSampler(val_pool, store)
        if val_sampler is not None and not self._can_evaluate(val_sampler):
            self._note(
                "the validation exams lack a class: there is no validation, and the last weights are used"
            )
            val_sampler = None

        def score(module: nn.Module) -> float:
            assert val_sampler is not None
            return selection_metric(self._evaluate(module, val_sampler))

        with self._batch_stream(sampler.draw, collate_exams, config.batch, BREASTS) as batches:
            report = self._fit(
                net,
                lambda module, batch: classifier_loss(module, batch.to(self.device), config.positive_weight),
                batches, "breasts", BREASTS, config.steps, groups, score if val_sampler else None,
            )  # fmt: skip
        self.metrics["breasts"] = self._summary(report)
        if val_sampler is not None:
            with torch.no_grad():
                val_areas = self._evaluate(net.eval(), val_sampler)
            self.metrics |= {f"val_auc_{name}": value for name, value in val_areas.items()}

    def _can_evaluate(self, sampler: ExamSampler) -> bool:
        labels = np.stack([exam.labels for exam in sampler.pool.exams])
        return bool(areas(labels, np.random.default_rng(0).random(labels.shape)))

    def _evaluate(self, net: nn.Module, sampler: ExamSampler) -> dict[str, float]:
        labels, scores = [], []
        for batch in self._in_order(sampler):
            with self._precision():
                scores.append(exam_probabilities(net, batch))  # type: ignore[arg-type]
            labels.append(batch.labels.cpu().numpy())
        return areas(np.concatenate(labels), np.concatenate(scores))

    # -- shared by the stages -----------------------------------------------------------------------------

    def _in_order(self, sampler: ExamSampler) -> Iterator[ExamBatch]:
        """Yield every exam of the pool once, with the windows at the best centres."""
        exams = sampler.pool.exams
        for first in range(0, len(exams), self.config.batch):
            samples = [sampler.sample(exam, None) for exam in exams[first : first + self.config.batch]]
            yield collate_exams(samples).to(self.device)

    def _batch_stream(
        self,
        draw: Callable[[int, np.random.Generator], Any],
        collate: Callable[[Sequence[Any]], Item],
        batch: int,
        stage: int,
    ) -> BatchStream[Any, Item]:
        return BatchStream(draw, collate, batch, seed=self.seed, stage=stage, workers=self.workers)

    def _fit(
        self,
        net: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: Any,
        name: str,
        stage: int,
        steps: int,
        groups: Sequence[Group],
        validate: Callable[[nn.Module], float] | None,
    ) -> FitReport:
        config = self.config
        self._start_stage(name)
        torch.manual_seed(self.seed + 1000 * stage)
        net.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        options = FitOptions(
            steps=steps,
            schedule=config.schedule,
            patience=config.patience,
            stop_after=config.stop_after,
            evaluate_every=config.evaluate_every,
            checkpoint_every=config.evaluate_every,
            accumulate=config.accumulate,
            optimiser=config.optimiser,
            weight_decay=config.weight_decay,
            precision=self.machine.precision,
            device=self.machine.device,
        )
        report = fit(
            net, loss, batches, options, self.folder / name.lower(), groups, validate=validate,
            progress=self.progress,
        )  # fmt: skip
        net.eval()
        return report

    def _precision(self) -> Any:
        if self.machine.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _summary(self, report: FitReport) -> dict[str, Any]:
        return {"steps": report.steps, "val_auc": report.best, "best_step": report.best_step}

    def _save(self, out: Path, pool: ExamPool) -> Bundle:
        net = self.start.net.cpu()
        patch_net = None if self.start.patch_net is None else self.start.patch_net.cpu()
        return save(
            out,
            self.config,
            net,
            patch_net,
            patients=sorted({exam.case.patient for exam in pool.exams}),
            metrics=self.metrics,
            provenance={
                "seed": self.seed,
                "train_cases": [exam.case.id for exam in pool.exams],
                "val_cases": [case.id for case in self.split.val],
                "notes": self.notes,
                **self.start.sources,
            },
        )

    def _start_stage(self, name: str) -> None:
        self.progress.stage, self.progress.step, self.progress.steps = name, 0, 0

    def _note(self, *notes: str) -> None:
        for note in notes:
            log.info(note)
            self.notes.append(note)


def birads_columns(cohort: Cohort, name: str) -> tuple[str, str] | None:
    """Return the BI-RADS columns of the left and the right breast, or twice the column of the whole exam."""
    for columns in ((f"left_{name}", f"right_{name}"), (name, name)):
        if any(case.value(column) is not None for case in cohort for column in columns):
            return columns
    return None
