"""What every training has in common: its cases, its folder, its seed, its machine and its record.

A method's `train` opens a job and runs its stages one after the other:

    with training_job(config, cohort, out, **options) as job:
        pool, validation = train_pool(job), validation_pool(job)
        ...
        return save(job.out, config, net, **job.record(train_cases, val_cases, metrics))
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.bundles import TrainingRecord
from lobule.cohort import Case, Cohort, Kind
from lobule.files import make_folder
from lobule.fingerprints import fingerprint
from lobule.scanning.scan import Machine
from lobule.tissue import TissueConfig
from lobule.training.distributed import Ranks, joined_ranks
from lobule.training.division import TrainingSplit, training_split
from lobule.training.fit_options import FitOptions, Group
from lobule.training.fitting import Batches, FitReport, fit
from lobule.training.machine import TrainMachine
from lobule.training.progress import FitProgress
from lobule.training.training_folder import MethodConfig, begun_training
from lobule.training.training_scan import P, TrainingScan

log = logging.getLogger("lobule.train")


class TrainOptions(TypedDict, total=False):
    """The keyword arguments of the `train` function of every method; all of them are optional."""

    val: str | None
    """Name of the split for validation, by default "val". If the cohort has no such split, a fifth of the
    patients is held out. With None there is no validation."""
    seed: int
    """Seed of the initial weights and of all other random choices, by default 0."""
    resume: bool
    """Continue the training that was interrupted in the folder."""
    fresh: bool
    """Delete an earlier training in the folder and start again."""
    tissue: TissueConfig | None
    """Settings of the tissue detection, for methods that detect tissue."""
    machine: TrainMachine | None
    """Device, precision, memory and number of workers."""
    progress: FitProgress | None
    """Receives the progress of the training."""


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """A training that has begun: its cases and folder, and what its stages report."""

    out: Path
    """Folder of the bundle."""
    folder: Path
    """Folder of checkpoints and logs, locked by this process."""
    split: TrainingSplit
    seed: int
    tissue: TissueConfig
    machine: TrainMachine
    """The machine without "auto" and None."""
    progress: FitProgress
    ranks: Ranks
    notes: list[str] = field(default_factory=list)
    """Notes for the user, which the bundle records."""
    failures: dict[str, str] = field(default_factory=dict)
    """The cause for each case that could not be used."""

    @property
    def workers(self) -> int:
        return self.machine.workers or 1

    @property
    def device(self) -> torch.device:
        return torch.device(self.machine.device)

    def fit_options(self, settings: object, **changes: Any) -> FitOptions:
        """Return the options of the training loop, with a checkpoint at each evaluation.

        Args:
            settings: A dataclass. Its fields that are named like an option set that option.
            changes: Further options, which take precedence.
        """
        names = {option.name for option in fields(FitOptions)}
        shared = {name: value for name, value in vars(settings).items() if name in names}
        machine = {"precision": self.machine.precision, "device": self.machine.device}
        options = FitOptions(**{**shared, **machine, **changes})
        return replace(options, checkpoint_every=options.evaluate_every)

    def note(self, *notes: str) -> None:
        """Log and record notes for the user."""
        for note in notes:
            if self.ranks.first:
                log.info(note)
            self.notes.append(note)

    def begin_stage(self, name: str) -> None:
        """Show that a stage begins. Its number of steps is not known yet."""
        self.progress.stage = name
        self.progress.step = self.progress.steps = 0

    def fit(
        self,
        module: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: Batches[Any],
        options: FitOptions,
        name: str,
        groups: Sequence[Group],
        validate: Callable[[nn.Module], float] | None = None,
    ) -> FitReport:
        """Train a module as `fitting.fit` does, with checkpoints and the log in the folder `name`."""
        report = fit(
            module, loss, batches, options, self.folder / name, groups, validate=validate,
            progress=self.progress, ranks=self.ranks,
        )  # fmt: skip
        for failures in self.ranks.from_all(batches.state().get("lost", {})):
            self.failures.update(failures)
        return report

    def on_device(self, array: NDArray[Any]) -> Tensor:
        """Return an array as a tensor on the device of the training."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def move_to_device(self, module: nn.Module) -> None:
        """Move a module to the device, in the memory layout that is fastest for convolutions."""
        module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the precision of the training, outside the training loop."""
        if self.machine.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def scan_machine(self, readers: int | None = None) -> Machine:
        """Return the resources for scans during the training."""
        machine = self.machine
        devices = machine.scan_devices or machine.device
        return Machine(devices, machine.precision, machine.max_ram, readers, channels_last=True)

    def scan_with(self, predictor: P, method: str, fingerprint: str, folder: str) -> TrainingScan[P]:
        """Return a scan with a model, whose results are in a subfolder of the training."""
        path = make_folder(self.folder / folder)
        return TrainingScan(predictor, method, fingerprint, path, self.tissue, self.scan_machine())

    def record(
        self, train: Iterable[Case], val: Iterable[Case], metrics: Mapping[str, Any], **provenance: Any
    ) -> TrainingRecord:
        """Return the record of the training for its bundle.

        Args:
            train: The cases that the model was trained on.
            val: The cases on which weights, thresholds or a calibration were chosen. They have influenced the
                model, too, so `lobule evaluate` refuses their patients like those of `train`.
            metrics: Figures of the training.
            provenance: Further inputs of the training.
        """
        train, val = list(train), list(val)
        return {
            "patients": sorted({case.patient for case in (*train, *val)}),
            "metrics": metrics,
            "provenance": {
                "seed": self.seed,
                "train_cases": [case.id for case in train],
                "val_cases": [case.id for case in val],
                "labels": {"training": _labels(train), "validation": _labels(val)},
                "sites": _counts(case.site or "not stated" for case in (*train, *val)),
                "notes": self.notes,
                "lost": self.failures,
                **provenance,
            },
        }


def _labels(cases: Iterable[Case]) -> dict[str, int]:
    """Count the labels of cases; an exam counts for each label that is true for one of its breasts."""
    return _counts(
        name
        for case in cases
        for name in (
            [name for name, value in case.breast_labels.items() if value] or ["no breast label is true"]
            if case.breast_labels
            else [case.label or "no label"]
        )
    )


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


@contextmanager
def training_job(
    config: MethodConfig,
    cases: Cohort | TrainingSplit,
    out: str | Path,
    *,
    kinds: tuple[Kind, ...] = ("slide", "region"),
    also: Mapping[str, Any] | None = None,
    distributed: bool = False,
    val: str | None = "val",
    seed: int = 0,
    resume: bool = False,
    fresh: bool = False,
    tissue: TissueConfig | None = None,
    machine: TrainMachine | None = None,
    progress: FitProgress | None = None,
) -> Iterator[TrainingJob]:
    """Begin or resume a training, and close it after its last stage.

    Args:
        config: Settings of the method.
        cases: The cohort, or its division if the method divides it in another way.
        out: Folder of the bundle. Checkpoints and logs are in its subfolder `training`.
        kinds: The kinds of cases that the method learns from.
        also: Further inputs that have to be the same when the training is resumed.
        distributed: Whether the processes that torchrun started share this training.
        val: See `TrainOptions`, as for the following options.

    Raises:
        ConfigError: The cohort has no training cases, or cases of another kind.
        Leakage: A patient is in more than one split.
        ResultsError: The folder is used by another process, or contains other files or another training.
    """
    split = cases if isinstance(cases, TrainingSplit) else training_split(cases, val, seed, kinds)
    inputs = {"seed": seed, **({"tissue": tissue.to_dict()} if tissue else {}), **(also or {})}
    with (
        joined_ranks() if distributed else nullcontext(Ranks()) as ranks,
        begun_training(out, config, split, also=inputs, resume=resume, fresh=fresh, ranks=ranks) as folder,
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        resolved_machine = (machine or TrainMachine()).resolved(ranks)
        job = TrainingJob(
            Path(out), folder, split, seed, tissue or TissueConfig(), resolved_machine,
            progress or FitProgress(), ranks,
        )  # fmt: skip
        job.note(*split.notes)
        torch.manual_seed(seed)
        yield job


def val_and_seed(options: TrainOptions) -> tuple[str | None, int]:
    """Return two options with their defaults, for a method that divides the cohort by itself."""
    return options.get("val", "val"), options.get("seed", 0)


def weights_source(path: str, otherwise: str | None = None) -> str | None:
    """Return the fingerprint of a file of pretrained weights, for the record of a training."""
    return fingerprint(path, full=True) if path else otherwise
