"""Training of the four-view classifier: patches, heatmaps, BI-RADS, breasts, one stage after the other.

Everything that a training leaves behind lies in `out`: the bundle, which comes last, and `training/` with a
folder a stage (checkpoint and log, or the scores of every patch), from which an interrupted training goes on
bit for bit.
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
    ExamDraws,
    PatchDraws,
    as_batch,
    as_patches,
)
from lobule.methods.four_view.heatmap_store import HeatmapStore, score_patches
from lobule.methods.four_view.members import save
from lobule.methods.four_view.objectives import (
    areas,
    birads_area,
    birads_loss,
    classifier_loss,
    exam_probabilities,
    of_metrics,
    patch_areas,
)
from lobule.methods.four_view.pool import GRADES, UNKNOWN, ExamPool, Kept, gather
from lobule.methods.four_view.predictor import FourViewPredictor
from lobule.methods.four_view.start import Start, starting
from lobule.methods.four_view.stream import DrawnBatches
from lobule.nets.birads import BiradsNet
from lobule.nets.digest import weights_digest
from lobule.scanning.scan import Machine
from lobule.training.fitting import FitOptions, FitProgress, FitReport, Group, TrainMachine, fit
from lobule.training.job import TrainingSplit, begun_training, training_split

log = logging.getLogger("lobule.train")

KINDS: tuple[Kind, ...] = ("exam",)
"""What it learns from."""
PATCHES, BIRADS, BREASTS, VALIDATION = 1, 2, 3, 1_000_000
"""Numbers of the random streams."""
KEPT_SHARE = 0.5
"""Of the memory ceiling, for decoded views and heatmaps."""
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

    `val` names the split that is validated on; without one in the cohort, a fifth of the patients is held
    out, and with None nobody is. `resume` goes on with what is in `out`, `fresh` forgets it.
    """
    if config.batch < 1 or config.patch_batch < 2 or len(config.patch_shares) != len(CLASSES):
        raise ConfigError(
            "a batch is too small, or patch_shares are not four",
            expected="batch from 1, patch_batch from 2, and a share of " + ", ".join(CLASSES),
        )
    torch.manual_seed(seed)
    start = starting(config)
    machine, progress = (machine or TrainMachine()).resolved(), progress or FitProgress()
    parts = training_split(cohort, val, seed, KINDS)
    also = {"seed": seed, **start.sources}
    with begun_training(out, start.config, parts, also=also, resume=resume, fresh=fresh) as folder:
        return _Training(start, parts, folder, seed, machine, progress).run(Path(out))


class _Training:
    """One training: its pools, its nets and its stages."""

    def __init__(
        self,
        start: Start,
        parts: TrainingSplit,
        folder: Path,
        seed: int,
        machine: TrainMachine,
        progress: FitProgress,
    ) -> None:
        self.start, self.config, self.parts, self.folder = start, start.config, parts, folder
        self.seed, self.machine, self.progress = seed, machine, progress
        self.workers, self.device = machine.workers or 1, torch.device(machine.device)
        self.kept = Kept(int(machine.max_ram * KEPT_SHARE))
        self.notes: list[str] = []
        self.metrics: dict[str, Any] = {}

    def run(self, out: Path) -> Bundle:
        self._stage("finding breasts")
        pool = gather(self.parts.train, self.config, self.kept, workers=self.workers)
        held = None
        if self.parts.val:
            held = gather(self.parts.val, self.config, self.kept, workers=self.workers)
        self._note(*self.parts.notes, *pool.notes, *(held.notes if held else ()))
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            store = None
            if self.start.patch_net is not None:
                if not self.start.patch_is_trained:
                    self._patches(self.start.patch_net, pool, held)
                store, pool, held = self._heatmaps(pool, held)
            if not self.start.is_pretrained:
                from_birads = self._birads(pool, held, store)
            else:
                from_birads = False
            self._breasts(pool, held, store, pretrained=from_birads or self.start.is_pretrained)
        return self._save(out, pool)

    # -- stages -------------------------------------------------------------------------------------------

    def _patches(self, net: nn.Module, pool: ExamPool, held: ExamPool | None) -> None:
        """The patch classifier, from outlined lesions."""
        config = self.config
        draws = PatchDraws(pool)
        if draws.missing:
            self._note("no patches of the class " + ", ".join(CLASSES[label] for label in draws.missing))
        judged: PatchDraws | None = None
        if held is not None:
            try:
                judged = PatchDraws(held, augmented=False)
            except ConfigError:
                self._note("nothing malignant is outlined to validate patches on: the last weights are kept")

        def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            pixels, labels = (part.to(self.device) for part in batch)
            return nn.functional.cross_entropy(self._patch_logits(module, pixels), labels)

        def score(module: nn.Module) -> float:
            assert judged is not None
            return of_metrics(self._judge_patches(module, judged))

        with self._drawn(draws.draw, as_patches, config.patch_batch, PATCHES) as batches:
            report = self._fit(
                net, loss, batches, "patches", PATCHES, config.patch_steps,
                [Group(list(net.parameters()), config.patch_rate)], score if judged else None,
            )  # fmt: skip
        self.metrics["patches"] = self._told(report)

    def _patch_logits(self, net: nn.Module, pixels: Tensor) -> Tensor:
        logits: Tensor = net(pixels.expand(-1, 3, -1, -1)).float()
        return logits

    def _judge_patches(self, net: nn.Module, draws: PatchDraws) -> dict[str, float]:
        labels, scores = [], []
        with self._drawn(draws.draw, as_patches, self.config.patch_batch, VALIDATION) as batches:
            for _ in range(-(-self.config.val_patches // self.config.patch_batch)):
                pixels, own = next(batches)
                with self._precision():
                    said = torch.softmax(self._patch_logits(net, pixels.to(self.device)), dim=1)
                labels.append(own.numpy())
                scores.append(said.cpu().numpy())
        return patch_areas(np.concatenate(labels), np.concatenate(scores))

    def _heatmaps(
        self, pool: ExamPool, held: ExamPool | None
    ) -> tuple[HeatmapStore, ExamPool, ExamPool | None]:
        """Every exam once through the patch network; exams that fail leave the pools."""
        self._stage("heatmaps")
        assert self.start.patch_net is not None
        predictor = FourViewPredictor(self.config, self.start.net.cpu(), self.start.patch_net.cpu().eval())
        exams = [*pool.exams, *(held.exams if held else ())]
        cohort = Cohort(tuple(exam.case for exam in exams))
        machine = Machine(
            device=self.machine.device, precision=self.machine.precision, max_ram=self.machine.max_ram,
            channels_last=True,
        )  # fmt: skip
        store, failed = score_patches(
            predictor, weights_digest(self.start.patch_net), cohort, self.folder / "heatmaps", machine
        )
        self._note(*(f"{case}: left out: {cause}" for case, cause in failed.items()))

        def left(of: ExamPool) -> ExamPool:
            return replace(of, exams=tuple(exam for exam in of.exams if exam.case.id not in failed))

        return store, left(pool), None if held is None else left(held)

    def _birads(self, pool: ExamPool, held: ExamPool | None, store: HeatmapStore | None) -> bool:
        """The trunks learn BI-RADS categories first, where the cohort has them."""
        columns = birads_columns(self.parts.train, self.config.birads)
        if columns is None or self.config.birads_steps == 0:
            if self.config.birads_steps:
                self._note(f"the cohort has no column '{self.config.birads}': no BI-RADS stage")
            return False
        said = [exam.case.value(column) for exam in pool.exams for column in columns]
        categories = tuple(sorted({one for one in said if one}))
        if len(categories) < 2:
            self._note("all exams have one BI-RADS category: no BI-RADS stage")
            return False
        draws = ExamDraws(pool, store, columns, categories)
        torch.manual_seed(self.seed + BIRADS)
        net = BiradsNet(self.start.net.four_view_resnet, self.config.widths[-1], len(categories))
        judged = None if held is None else ExamDraws(held, store, columns, categories)
        score = None if judged is None or not judged.strata[0][1] else self._birads_score(judged)
        with self._drawn(draws.draw, as_batch, self.config.batch, BIRADS) as batches:
            report = self._fit(
                net, lambda module, batch: birads_loss(module, batch.to(self.device)), batches,
                "BI-RADS", BIRADS, self.config.birads_steps,
                [Group(list(net.parameters()), self.config.birads_rate)], score,
            )  # fmt: skip
        self.metrics["birads"] = {"categories": list(categories), **self._told(report)}
        return True

    def _birads_score(self, draws: ExamDraws) -> Callable[[nn.Module], float]:
        def score(net: nn.Module) -> float:
            grades, scores = [], []
            for batch in self._in_order(draws):
                with self._precision():
                    outputs = net(batch.views)
                for view, logits in outputs.items():
                    own = batch.grades[batch.rows[view], 0 if view.startswith("L") else 1]
                    kept = own != UNKNOWN
                    grades.append(own[kept].cpu().numpy())
                    scores.append(torch.softmax(logits.float(), dim=1)[kept].cpu().numpy())
            return birads_area(grades, scores)

        return score

    def _breasts(
        self, pool: ExamPool, held: ExamPool | None, store: HeatmapStore | None, *, pretrained: bool
    ) -> None:
        """The classifier itself, from breast labels."""
        config, net = self.config, self.start.net
        draws = ExamDraws(pool, store)
        trunk_rate = config.trunk_rate if pretrained else config.rate
        named = list(net.named_parameters())
        groups = [
            Group([p for name, p in named if not name.startswith("four_view_resnet.")], config.rate),
            Group([p for name, p in named if name.startswith("four_view_resnet.")], trunk_rate),
        ]
        judged = None if held is None else ExamDraws(held, store)
        if judged is not None and not self._can_judge(judged):
            self._note(
                "the validation exams lack a class: nothing is validated and the last weights are kept"
            )
            judged = None

        def score(module: nn.Module) -> float:
            assert judged is not None
            return of_metrics(self._judge(module, judged))

        with self._drawn(draws.draw, as_batch, config.batch, BREASTS) as batches:
            report = self._fit(
                net,
                lambda module, batch: classifier_loss(module, batch.to(self.device), config.positive_weight),
                batches, "breasts", BREASTS, config.steps, groups, score if judged else None,
            )  # fmt: skip
        self.metrics["breasts"] = self._told(report)
        if judged is not None:
            with torch.no_grad():
                found = self._judge(net.eval(), judged)
            self.metrics |= {f"val_auc_{name}": value for name, value in found.items()}

    def _can_judge(self, draws: ExamDraws) -> bool:
        labels = np.stack([exam.labels for exam in draws.pool.exams])
        return bool(areas(labels, np.random.default_rng(0).random(labels.shape)))

    def _judge(self, net: nn.Module, draws: ExamDraws) -> dict[str, float]:
        labels, scores = [], []
        for batch in self._in_order(draws):
            with self._precision():
                scores.append(exam_probabilities(net, batch))  # type: ignore[arg-type]
            labels.append(batch.labels.cpu().numpy())
        return areas(np.concatenate(labels), np.concatenate(scores))

    # -- what stages share --------------------------------------------------------------------------------

    def _in_order(self, draws: ExamDraws) -> Iterator[ExamBatch]:
        """Every exam of the pool once, in the windows at its best centres."""
        exams = draws.pool.exams
        for first in range(0, len(exams), self.config.batch):
            samples = [draws.sample(exam, None) for exam in exams[first : first + self.config.batch]]
            yield as_batch(samples).to(self.device)

    def _drawn(
        self,
        draw: Callable[[int, np.random.Generator], Any],
        collate: Callable[[Sequence[Any]], Item],
        batch: int,
        stage: int,
    ) -> DrawnBatches[Any, Item]:
        return DrawnBatches(draw, collate, batch, seed=self.seed, stage=stage, workers=self.workers)

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
        self._stage(name)
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

    def _told(self, report: FitReport) -> dict[str, Any]:
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
                "val_cases": [case.id for case in self.parts.val],
                "notes": self.notes,
                **self.start.sources,
            },
        )

    def _stage(self, name: str) -> None:
        self.progress.stage, self.progress.step, self.progress.steps = name, 0, 0

    def _note(self, *notes: str) -> None:
        for note in notes:
            log.info(note)
            self.notes.append(note)


def birads_columns(cohort: Cohort, name: str) -> tuple[str, str] | None:
    """The columns of the left and the right breast: their own where there are such, else the exam's."""
    for columns in ((f"left_{name}", f"right_{name}"), (name, name)):
        if any(case.value(column) is not None for case in cohort for column in columns):
            return columns
    return None
