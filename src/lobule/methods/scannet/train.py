"""Training of ScanNet: patches sampled from outlined slides, then rounds of hard-negative mining.

A training writes to `out`: `training/` with a folder for each round (checkpoint, log, hard negatives), and
the bundle at the end. An interrupted training continues from `training/` with bit-identical results.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lobule.augment import NO_AUGMENTATION
from lobule.bundles import Bundle, plain_weights, read_bundle
from lobule.cohort import Cohort
from lobule.files import fingerprint, make_folder
from lobule.methods.scannet.calibration import CellCalibration, calibrate_cells
from lobule.methods.scannet.config import Config
from lobule.methods.scannet.mining import merge_points, mine
from lobule.methods.scannet.predictor import DensePredictor, save
from lobule.methods.scannet.scoring import LearnedSlideScore, learn_slide_score
from lobule.nets.backbones import BACKBONES, load_trunk
from lobule.nets.digest import weights_digest
from lobule.nets.receptive import geometry_of
from lobule.nets.scaling import PLAIN_SCALING, InputScaling
from lobule.scanning.scan import Machine
from lobule.tissue import TissueConfig
from lobule.training.distributed import Ranks, joined_ranks
from lobule.training.fitting import FitOptions, FitProgress, FitReport, Group, TrainMachine, fit
from lobule.training.job import TrainingSplit, begun_training, training_split
from lobule.training.patch_sampling import NORMAL, TUMOUR, Points, Pool
from lobule.training.sampling import SampleConfig, Samples, SampleStream, gather

log = logging.getLogger("lobule.train")

VALIDATION = 1_000_000
"""Random stream (round) of the validation patches, so that every evaluation uses the same patches."""
GROWTH = 0.05
"""Mining ends when the number of hard negatives grows by less than this share."""


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
    """Train on a cohort of outlined slides and write the bundle.

    If the training is started by torchrun, the processes share each batch; all of them need access to the
    slides and to `out`.

    Args:
        config: Settings of the model and of the training.
        cohort: Cases with outlines.
        out: Folder for the bundle and the state of the training.
        val: Name of the split for validation. If the cohort has no such split, a fifth of the patients is
        held out. With None there is no validation.
        seed: Seed of the initial weights, the sampling and the augmentation.
        resume: Continue the training that was interrupted in `out`.
        fresh: Discard an earlier training in `out`.
        tissue: Settings of the tissue detection.
        machine: Device, precision and number of workers.
        progress: Receives the progress of the training.
    """
    config = config.resolved()
    splits = training_split(cohort, val, seed)
    with (
        joined_ranks() as ranks,
        begun_training(
            out, config, splits, also={"seed": seed}, resume=resume, fresh=fresh, ranks=ranks
        ) as folder,
    ):
        resolved_machine, fit_progress = (
            (machine or TrainMachine()).resolved(ranks),
            progress or FitProgress(),
        )
        training = _Training(
            config, splits, folder, seed, tissue or TissueConfig(), resolved_machine, fit_progress, ranks
        )
        return training.run(Path(out))


def both_classes(pool: Pool) -> bool:
    """Whether patches of normal tissue and of tumour can be cut from the slides of the pool."""
    return bool(pool.usable(NORMAL)) and bool(pool.usable(TUMOUR))


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
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.config, self.splits, self.folder, self.seed = config, splits, folder, seed
        self.tissue, self.machine, self.progress = tissue, machine, progress
        self.workers = machine.workers or 1
        self.device = torch.device(machine.device)
        self.notes: list[str] = []
        self.failures: dict[str, str] = {}
        torch.manual_seed(seed)
        net = BACKBONES[config.trunk](len(config.classes))
        if config.weights:
            load_trunk(net, plain_weights(config.weights))
        self.scaling = InputScaling() if config.weights else PLAIN_SCALING
        self.side = geometry_of(net).extent
        self.net = net.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(self, out: Path) -> Bundle:
        self.progress.stage = "finding tissue"
        pool, validation = self._pools()
        reports: list[FitReport] = []
        counts: list[int] = []
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            for round_ in range(self.config.rounds + 1):
                if round_ > 0:
                    hard = self._mine(pool, round_)
                    counts.append(sum(map(len, hard.values())))
                    if counts[-1] < (1 + GROWTH) * sum(counts[-2:-1]) or not hard:
                        break
                    pool = pool.with_hard(hard)
                reports.append(self._round(pool, validation, round_))
        bundle = self._save(out, pool, validation, reports, counts) if self.ranks.first else None
        self.ranks.wait()
        return bundle or read_bundle(out)

    def _pools(self) -> tuple[Pool, Pool | None]:
        """The slides for training and for validation; None instead of the latter if there are none."""
        pool = gather(self.splits.train, self.tissue, workers=self.workers)
        self._note(*self.splits.notes, *pool.notes)
        if not self.splits.val:
            return pool, None
        validation = gather(self.splits.val, self.tissue, workers=self.workers, need=())
        self._note(*validation.notes)
        if not both_classes(validation):
            self._note(
                "The validation split lacks a class; there is no validation and the last weights are used."
            )
        return pool, validation

    def _round(self, pool: Pool, validation: Pool | None, round_: int) -> FitReport:
        """Train on patches of the pool. Later rounds continue with the learning rate of the trunk."""
        config, folder = self.config, self.folder / f"round-{round_}"
        self.progress.stage = f"round {round_}"
        options = FitOptions(
            steps=config.round_steps if round_ else config.steps,
            schedule=config.schedule,
            patience=config.patience,
            stop_after=config.stop_after,
            evaluate_every=config.evaluate_every,
            checkpoint_every=config.evaluate_every,
            accumulate=config.accumulate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            clip=config.clip,
            precision=self.machine.precision,
            device=self.machine.device,
            lanes=self.machine.lanes_for(config.batch // self.ranks.count),
            seed=self.seed + 1000 * (round_ + 1),
        )
        with self._stream(pool, round_) as stream:
            report = fit(
                self.net,
                self._loss,
                stream,
                options,
                folder,
                self._groups(round_),
                validate=(lambda net: self._validation_auc(net, validation))
                if validation is not None and both_classes(validation)
                else None,
                progress=self.progress,
                ranks=self.ranks,
            )
            for failures in self.ranks.from_all(stream.state()["lost"]):
                self.failures |= failures
        return report

    def _stream(self, pool: Pool, round_: int, batches: int | None = None) -> SampleStream:
        config, validating = self.config, round_ == VALIDATION
        return SampleStream(
            pool,
            SampleConfig(
                config.mpp,
                self.side,
                hard_share=config.hard_share,
                by_site=config.by_site,
                augment=NO_AUGMENTATION if validating else config.augment,
                upsample=config.upsample,
            ),
            config.batch,
            seed=self.seed,
            round_=round_,
            batches=batches,
            workers=self.workers,
            processes=self.machine.processes,
            ahead=max(4, 2 * self.workers),
            share=(0, 1) if validating else (self.ranks.rank, self.ranks.count),
        )

    def _groups(self, round_: int) -> list[Group]:
        config = self.config
        named = list(self.net.named_parameters())
        if round_:
            return [Group([value for _, value in named], config.trunk_rate)]
        if not config.weights:
            return [Group([value for _, value in named], config.rate)]
        trunk = [value for name, value in named if name.startswith(("trunk.", "conv"))]
        head = [value for name, value in named if not name.startswith(("trunk.", "conv"))]
        return [Group(head, config.rate), Group(trunk, config.trunk_rate)]

    def _loss(self, net: nn.Module, samples: Samples) -> Tensor:
        labels = torch.from_numpy(samples.labels).to(self.device)
        return nn.functional.cross_entropy(self._logits(net, samples), labels)

    def _logits(self, net: nn.Module, samples: Samples) -> Tensor:
        pixels = torch.from_numpy(samples.pixels).to(self.device, non_blocking=True)
        logits: Tensor = net(self.scaling.apply(pixels)).flatten(1).float()
        return logits

    def _validation_auc(self, net: nn.Module, validation: Pool) -> float:
        """Area under the ROC curve of the validation patches."""
        from sklearn.metrics import roc_auc_score

        scores, labels = [], []
        batches = -(-self.config.val_patches // self.config.batch)
        bfloat16 = self.machine.precision == "bfloat16"
        with self._stream(validation, VALIDATION, batches) as stream:
            for samples in stream:
                with torch.autocast(self.device.type, torch.bfloat16) if bfloat16 else nullcontext():
                    logits = self._logits(net, samples)
                scores.append((logits[:, 1] - logits[:, 0]).cpu())
                labels.append(samples.labels)
        return float(roc_auc_score(np.concatenate(labels), torch.cat(scores).numpy()))

    def _mine(self, pool: Pool, round_: int) -> dict[int, Points]:
        """The hard negatives of all rounds so far, up to the limit of each slide, the newest first."""
        self.progress.stage = f"mining for round {round_}"
        folder = make_folder(self.folder / f"round-{round_}")
        predictor, machine = DensePredictor(self.config, self.net.cpu(), self.scaling), self._scanning()
        try:
            mined, notes = self.ranks.from_first(
                lambda: mine(predictor, weights_digest(self.net), pool, self.tissue, folder, machine)
            )
        finally:
            self.net.to(self.device)
        self._note(*notes)
        cap = self.config.hard_cap
        nothing = np.empty((0, 2))
        return {
            number: merge_points(
                mined.get(number, nothing),
                pool.hard.get(number, nothing),
                self.config.hard_merge * self.config.mpp / pool.slides[number].mpp,
            )[:cap]
            for number in sorted({*mined, *pool.hard})
        }

    def _calibration(self, validation: Pool | None) -> CellCalibration | None:
        """Calibrate the scores of cells on the validation slides, if there are any."""
        if validation is None or not validation.usable(NORMAL):
            self._note(
                "Without validation slides with normal tissue the scores are not calibrated, and the "
                f"threshold for findings stays {self.config.threshold}."
            )
            return None
        self.progress.stage = "calibrating on the validation slides"
        predictor = DensePredictor(self.config, self.net.cpu(), self.scaling)
        folder = make_folder(self.folder / "calibration")
        calibration, notes = calibrate_cells(
            predictor, weights_digest(self.net), validation.slides, self.tissue, folder, self._scanning(),
            threshold=self.config.threshold, stride=predictor.calibration_stride,
        )  # fmt: skip
        self._note(*notes)
        return calibration

    def _slide_score(self, pool: Pool, validation: Pool | None) -> LearnedSlideScore:
        """Train a forest on the training and validation slides, if the config asks for one."""
        if self.config.slide_score == "max":
            return LearnedSlideScore(None)
        self.progress.stage = "learning the slide score"
        predictor = DensePredictor(self.config, self.net.cpu(), self.scaling)
        slides = [*pool.slides, *(validation.slides if validation else ())]
        folder = make_folder(self.folder / "slide-score")
        learned = learn_slide_score(
            predictor, weights_digest(self.net), slides, self.tissue, folder, self._scanning(),
            trees=self.config.trees, seed=self.seed,
        )  # fmt: skip
        self._note(*learned.notes)
        return learned

    def _scanning(self) -> Machine:
        """Resources for scans during the training."""
        return Machine(
            device=self.machine.device,
            precision=self.machine.precision,
            max_ram=self.machine.max_ram,
            channels_last=True,
        )

    def _save(
        self, out: Path, pool: Pool, validation: Pool | None, reports: list[FitReport], counts: list[int]
    ) -> Bundle:
        final, calibration = reports[-1], self._calibration(validation)
        learned = self._slide_score(pool, validation)
        metrics = {
            "val_auc": final.best,
            "rounds": [
                {"steps": report.steps, "val_auc": report.best, "best_step": report.best_step}
                for report in reports
            ],
            "hard_places": counts,
            **learned.metrics(),
        }
        provenance = {
            "seed": self.seed,
            "train_cases": [slide.case.id for slide in pool.slides],
            "val_cases": [case.id for case in self.splits.val],
            "notes": self.notes,
            "lost": self.failures,
            "weights": fingerprint(self.config.weights, full=True) if self.config.weights else None,
        }
        # The forest and the calibration have also learned from the validation slides, so their patients
        # count as training patients.
        used = validation is not None and (learned.fitted is not None or calibration is not None)
        slides = [*pool.slides, *(validation.slides if validation is not None and used else ())]
        patients = sorted({slide.case.patient for slide in slides})
        return save(
            out, self.config, self.net.cpu(), self.scaling, patients=patients, metrics=metrics,
            provenance=provenance, forest=learned.fitted.forest if learned.fitted else None,
            calibration=calibration,
        )  # fmt: skip

    def _note(self, *notes: str) -> None:
        for note in notes:
            if self.ranks.first:
                log.info(note)
            self.notes.append(note)
