"""The training loop, for any module, loss and stream of batches. It can be stopped at any time and resumed.

A checkpoint contains the weights, the state of the optimiser, the best weights so far and the position in the
stream of batches. A resumed training computes the steps after its last checkpoint again, with identical
results: the random numbers of a step depend only on the seed of the training and the number of the step.

A batch can be divided into micro-batches, which replicas of the module compute in parallel on a CPU; see
`lobule.training.replicas`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from lobule.allocator import keep_freed_memory, return_freed_memory
from lobule.errors import ModelError, ResultsError
from lobule.files import make_folder, write_text
from lobule.scanning.device import available_cores
from lobule.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from lobule.training.distributed import Ranks
from lobule.training.fit_options import (
    FitOptions,
    Group,
    Optimiser,
    Schedule,
    changed_options,
    fixed_options,
    make_optimiser,
    schedule_factor,
)
from lobule.training.machine import TrainMachine
from lobule.training.progress import FitProgress
from lobule.training.replicas import MicroBatch, Replicas, derive_seed
from lobule.training.training_log import COLUMNS, LOG, EventFile

__all__ = [
    "Batches",
    "FitOptions",
    "FitProgress",
    "FitReport",
    "Group",
    "Optimiser",
    "Schedule",
    "TrainMachine",
    "fit",
]

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)


class Batches(Protocol[Item_co]):
    """An endless stream of batches whose position can be saved and restored."""

    def __next__(self) -> Item_co: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Divisible(Protocol):
    """A batch that can be divided into micro-batches."""

    def __len__(self) -> int: ...

    def divide(self, count: int) -> Sequence[Any]: ...


@dataclass
class _State:
    """The state of the loop, apart from tensors and the stream of batches. Checkpoints contain it."""

    step: int = 0
    """Number of completed steps."""
    scale: float = 1.0
    """Factor on all learning rates; smaller after each plateau of the score."""
    best: float | None = None
    """The best score so far."""
    best_step: int = 0
    waited: int = 0
    """Evaluations since the best score."""
    waited_rate: int = 0
    """Evaluations since the best score or the last reduction of the learning rate, whichever is later."""
    done: bool = False
    scores: list[tuple[int, float]] = field(default_factory=list)
    """Step and score of each evaluation."""


@dataclass(frozen=True)
class FitReport:
    """The outcome of a training.

    The trained module has the weights with the best score, or the last weights if nothing was evaluated.
    """

    steps: int
    best: float | None
    """The best score, or None if nothing was evaluated."""
    best_step: int
    scores: tuple[tuple[int, float], ...]
    replicas: int
    """Number of replicas, on which the statistics of batch norms depend."""

    def summary(self) -> dict[str, Any]:
        """Return the figures that a bundle records for each stage."""
        return {"steps": self.steps, "val_auc": self.best, "best_step": self.best_step}


def fit(
    module: nn.Module,
    loss: Callable[[nn.Module, Item], Tensor],
    batches: Batches[Item],
    options: FitOptions,
    folder: str | Path,
    groups: Sequence[Group],
    *,
    validate: Callable[[nn.Module], float] | None = None,
    progress: FitProgress | None = None,
    ranks: Ranks | None = None,
) -> FitReport:
    """Train a module, starting from the checkpoint in `folder` if there is one.

    Args:
        module: The module to train, on its device.
        loss: Function that returns the loss of the module for one batch.
        batches: The batches. With several ranks, each process gets its share of every batch.
        options: Options of the training loop.
        folder: Folder for checkpoints and the log.
        groups: Parameters with their learning rates.
        validate: Function that returns a score of the module, which is in evaluation mode. Higher is better.
        progress: Updated while the training runs.
        ranks: The processes of the training. Their gradients are averaged.

    Returns:
        The number of steps and the scores. The module is left with its best weights.

    Raises:
        ModelError: The loss, the weights or the score became NaN or infinite.
        ResultsError: The checkpoint is damaged, or belongs to a training with other options.
    """
    if torch.device(options.device).type == "cpu":
        keep_freed_memory()
    run = _Run(
        module, loss, batches, options, make_folder(folder), groups, validate, progress or FitProgress(),
        ranks or Ranks(), make_optimiser(options, groups), options.replicas,
    )  # fmt: skip
    run.progress.steps = options.steps
    try:
        run.resume()
        while not run.state.done:
            run.advance()
        return run.finish()
    finally:
        run.close()
        return_freed_memory()


@dataclass(eq=False)
class _Run:
    """One run of the training loop: its inputs, its state, and the operations that change it."""

    module: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    batches: Batches[Any]
    options: FitOptions
    folder: Path
    groups: Sequence[Group]
    validate: Callable[[nn.Module], float] | None
    progress: FitProgress
    ranks: Ranks
    optimiser: torch.optim.Optimizer
    replica_count: int
    state: _State = field(default_factory=_State)
    best: dict[str, Tensor] = field(default_factory=dict)
    log_lines: list[str] = field(default_factory=list)
    _replicas: Replicas | None = None
    _event_file: EventFile | None = None
    _losses: list[Tensor] = field(default_factory=list)
    _start_time: float = field(default_factory=time.monotonic)
    _start_step: int = 0

    # -- a step -------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Run one step of the optimiser, then log, evaluate and save a checkpoint if they are due."""
        options, state = self.options, self.state
        self.module.train()
        for optimised, group in zip(self.optimiser.param_groups, self.groups, strict=True):
            optimised["lr"] = group.rate * state.scale * schedule_factor(options, state.step)
        assert self._replicas is not None
        # `gradients` sets the gradients of the parameters and returns the loss.
        self._losses.append(self._replicas.gradients(self._micro_batches(), self._compute))
        self.ranks.average([p.grad for p in self._parameters() if p.grad is not None])
        if options.clip > 0:
            nn.utils.clip_grad_norm_(self._parameters(), options.clip)
        self.optimiser.step()
        state.step += 1
        state.done = state.step >= options.steps
        is_evaluation_due = self.validate is not None and (
            state.step % options.evaluate_every == 0 or state.done
        )
        is_checkpoint_due = is_evaluation_due or state.done or state.step % options.checkpoint_every == 0
        if is_checkpoint_due or state.step % options.log_every == 0:
            self._log_losses()
        if is_checkpoint_due:
            self._check_weights()
        if is_evaluation_due:
            self._evaluate()
        if is_checkpoint_due:
            self.save()
        self.progress.step = state.step
        self.progress.steps_per_s = (state.step - self._start_step) / (
            time.monotonic() - self._start_time + 1e-9
        )

    def _micro_batches(self) -> list[MicroBatch]:
        """Read the batches of one step, and divide them if there are more replicas than batches."""
        batch_count = self.options.accumulate
        pieces_per_batch = -(-self.replica_count // batch_count)
        weighted_items: list[tuple[Any, float]] = []
        for _ in range(batch_count):
            batch = next(self.batches)
            if pieces_per_batch > 1 and isinstance(batch, Divisible):
                weighted_items += [
                    (piece, len(piece) / len(batch) / batch_count) for piece in batch.divide(pieces_per_batch)
                ]
            else:
                weighted_items.append((batch, 1 / batch_count))
        seed_numbers = (self.options.seed, self.state.step, self.ranks.rank)
        return [
            MicroBatch(item, weight, derive_seed(*seed_numbers, index))
            for index, (item, weight) in enumerate(weighted_items)
        ]

    def _compute(self, module: nn.Module, item: Any) -> Tensor:
        """Return the loss of one batch or micro-batch, in the precision of the training."""
        with self._precision():
            return self.loss(module, item)

    def _precision(self) -> Any:
        if self.options.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(torch.device(self.options.device).type, torch.bfloat16)

    def _log_losses(self) -> None:
        """Log the mean of the losses since the last call. Waiting for each loss would slow down a GPU."""
        loss_tensor = torch.stack(self._losses).float().mean()
        self.ranks.average([loss_tensor])
        mean_loss = float(loss_tensor)
        self._losses.clear()
        if not math.isfinite(mean_loss):
            raise ModelError(
                f"the loss became {mean_loss} at or before step {self.state.step}",
                subject=self.folder,
                remedy="Start over with a lower learning rate; the last valid checkpoint is kept",
            )
        rate = self.optimiser.param_groups[0]["lr"]
        self.log_lines.append(f"{self.state.step},{mean_loss:.6g},{rate:.6g},\n")
        self.progress.loss = mean_loss
        if self.ranks.first:  # The next checkpoint, which also writes the log, may be hours away.
            self._write_log()
        if self._event_file is not None:
            self._event_file.add(self.state.step, loss=mean_loss, rate=rate)

    def _check_weights(self) -> None:
        """Raise an error if a weight is NaN or infinite. The loss would show this only in the next step."""
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters()):
            raise ModelError(
                f"the weights became NaN or infinite at step {self.state.step}",
                subject=self.folder,
                remedy="Start over with a lower learning rate; the last valid checkpoint is kept",
            )

    def _evaluate(self) -> None:
        """Evaluate the module. Keep its weights if the score is the best one.

        Otherwise, count the evaluations without a better score; after enough of them, reduce the learning
        rate or end the training.
        """
        validate, state, options = self.validate, self.state, self.options
        assert validate is not None
        self.module.eval()
        with torch.no_grad():
            score = self.ranks.from_first(lambda: float(validate(self.module)))
        if not math.isfinite(score):
            raise ModelError(f"the score is {score} at step {state.step}", subject=self.folder)
        state.scores.append((state.step, score))
        self.log_lines[-1] = self.log_lines[-1].rstrip("\n") + f"{score:.6g}\n"
        self.progress.score = score
        if self._event_file is not None:
            self._event_file.add(state.step, score=score)
        if state.best is None or score > state.best:
            state.best, state.best_step, state.waited, state.waited_rate = score, state.step, 0, 0
            self.best = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
            return
        state.waited += 1
        state.waited_rate += 1
        if options.schedule == "plateau" and state.waited_rate >= options.patience:
            state.scale, state.waited_rate = state.scale * options.factor, 0
        state.done = state.done or state.waited >= options.stop_after

    # -- checkpoints --------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the log and a checkpoint, on the first rank only."""
        if not self.ranks.first:
            return
        self._write_log()
        tensors = {f"model/{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        for number, parameter in enumerate(self._parameters()):
            moments = self.optimiser.state[parameter]
            tensors |= {f"moments/{number}/{k}": v for k, v in moments.items() if isinstance(v, Tensor)}
        contents = {
            "options": fixed_options(self.options),
            "replicas": self.replica_count,
            "loop": asdict(self.state),
            "batches": self.batches.state(),
        }
        write_checkpoint(self.folder, Checkpoint(contents, tensors), f"step-{self.state.step:08d}")

    def _write_log(self) -> None:
        write_text(self.folder / LOG, COLUMNS + "".join(self.log_lines))

    def resume(self) -> None:
        """Restore the checkpoint in the folder, if there is one, and create the replicas."""
        checkpoint = read_checkpoint(self.folder)
        if checkpoint is not None:
            self._restore(checkpoint)
        self._replicas = Replicas(
            self.module, self.replica_count, max(1, available_cores() // self.replica_count)
        )
        if self.ranks.first and not self.state.done:
            self._event_file = EventFile.opened(self.folder, self.state.step)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint. Raises an error if it was written with other options."""
        if checkpoint.contents["options"] != fixed_options(self.options):
            raise ResultsError(
                "this training began with different settings",
                subject=self.folder,
                expected=str(changed_options(checkpoint.contents["options"], fixed_options(self.options))),
                remedy="Start over with --fresh, or write to another folder",
            )
        loop_state = checkpoint.contents["loop"]
        self.state = _State(**{**loop_state, "scores": [(int(s), float(v)) for s, v in loop_state["scores"]]})
        self.module.load_state_dict(checkpoint.of("model/"))
        self.best = {name: value.to(self.options.device) for name, value in checkpoint.of("best/").items()}
        for number, parameter in enumerate(self._parameters()):
            for name, value in checkpoint.of(f"moments/{number}/").items():
                # Sums depend on the memory layout, so the restored moments get the layout of the parameter.
                moment = value if name == "step" else torch.empty_like(parameter).copy_(value)
                self.optimiser.state[parameter][name] = moment
        self.replica_count = int(checkpoint.contents["replicas"])
        self.batches.restore(checkpoint.contents["batches"])
        log_lines = (self.folder / LOG).read_text("utf-8").splitlines(keepends=True)[1:]
        self.log_lines = [line for line in log_lines if int(line.partition(",")[0]) <= self.state.step]
        self.progress.step = self._start_step = self.state.step
        self.progress.score = self.state.scores[-1][1] if self.state.scores else None

    def finish(self) -> FitReport:
        """Load the best weights into the module, and return the report."""
        if self.best:
            self.module.load_state_dict(self.best)
        state = self.state
        return FitReport(state.step, state.best, state.best_step, tuple(state.scores), self.replica_count)

    def close(self) -> None:
        """Stop the threads of the replicas, and close the TensorBoard file."""
        if self._replicas is not None:
            self._replicas.close()
        if self._event_file is not None:
            self._event_file.close()

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
