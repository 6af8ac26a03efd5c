"""Training: any module, loss and stream of batches; stopped at any instant and gone on with, bit for bit.

A checkpoint holds the weights, the optimiser, the best weights so far, the state of torch's generators and of
the stream, and takes its place by one rename. What is computed after it is computed again on resume, the same
way: the loop draws no other random numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor, nn

from lobule.engines.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from lobule.engines.placement import available_cores, choose_device
from lobule.errors import ConfigError, ModelError, ResultsError
from lobule.files import make_folder, write_text

Schedule = Literal["plateau", "cosine", "step", "constant"]
Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)
LOG = "log.csv"
COLUMNS = "step,loss,rate,score\n"


class Batches(Protocol[Item_co]):
    """Batches without end, and where in them the training stands."""

    def __next__(self) -> Item_co: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrainMachine:
    """What a training may use."""

    device: str = "auto"
    precision: str = "auto"
    """float32 or bfloat16; "auto" is bfloat16 on a GPU that has it."""
    workers: int | None = None
    """Workers that draw patches; None is one a core."""
    processes: bool = False
    """Workers are spawned processes, for machines with many cores a GPU."""
    max_ram: int = 2 << 30
    """Bytes beyond the model while mining."""

    def settled(self) -> TrainMachine:
        device = choose_device(self.device)
        has = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        auto = "bfloat16" if has else "float32"
        precision = auto if self.precision == "auto" else self.precision
        if precision not in ("float32", "bfloat16"):
            raise ConfigError(f"no precision '{precision}'", expected="auto, float32 or bfloat16")
        return replace(self, device=device, precision=precision, workers=self.workers or available_cores())


@dataclass(frozen=True)
class FitOptions:
    """How a module is fitted."""

    steps: int
    schedule: Schedule = "plateau"
    factor: float = 0.1
    """The rate is multiplied by it: at a plateau, or after each third of the steps ("step")."""
    patience: int = 5
    """Evaluations without a better score before the rate falls ("plateau")."""
    stop_after: int = 15
    """Evaluations without a better score before the training ends."""
    evaluate_every: int = 1000
    checkpoint_every: int = 1000
    log_every: int = 20
    accumulate: int = 1
    """Batches whose gradients are averaged into one step."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: str = "float32"
    """Or bfloat16: the forward pass under autocast."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            known = ", ".join(get_args(Schedule))
            raise ConfigError(f"no schedule '{self.schedule}'", expected=f"one of {known}")
        for name in (
            "steps",
            "patience",
            "stop_after",
            "evaluate_every",
            "checkpoint_every",
            "log_every",
            "accumulate",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    rate: float


@dataclass
class FitProgress:
    """What a display may show; the training never waits for it."""

    stage: str = ""
    step: int = 0
    steps: int = 0
    loss: float = float("nan")
    score: float | None = None
    steps_per_s: float = 0.0


@dataclass
class _State:
    """What of the loop is neither a tensor nor of the stream."""

    step: int = 0
    scale: float = 1.0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    """Evaluations since the best score."""
    waited_rate: int = 0
    """Evaluations since the best score or the last fall of the rate."""
    done: bool = False
    scores: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class FitReport:
    """How it ended; the module holds the best weights, or the last where nothing was evaluated."""

    steps: int
    best: float | None
    best_step: int
    scores: tuple[tuple[int, float], ...]


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
) -> FitReport:
    """Fit a module by SGD, going on from the checkpoint in `folder` where there is one.

    `validate` gives a score, higher is better; the module is in evaluation mode while it runs.
    """
    run = _Run(module, loss, batches, options, Path(folder), groups, validate, progress or FitProgress())
    run.resume()
    while not run.state.done:
        run.advance()
    return run.finish()


class _Run:
    """One fit: the loop's state and the steps that change it."""

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        batches: Batches[Any],
        options: FitOptions,
        folder: Path,
        groups: Sequence[Group],
        validate: Callable[[nn.Module], float] | None,
        progress: FitProgress,
    ) -> None:
        self.module, self.loss, self.batches, self.options = module, loss, batches, options
        self.folder, self.validate, self.progress = make_folder(folder), validate, progress
        self.rates = [group.rate for group in groups]
        self.optimiser = torch.optim.SGD(
            [{"params": list(group.parameters), "lr": group.rate} for group in groups],
            lr=self.rates[0],
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        self.state = _State()
        self.best: dict[str, Tensor] = {}
        self.log: list[str] = []
        self._losses: list[Tensor] = []
        self._began, self._began_at = time.monotonic(), 0
        progress.steps = options.steps

    # -- a step -------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """One step of the optimiser, and what is due after it."""
        options, state = self.options, self.state
        self.module.train()
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * state.scale * _shape(options, state.step)
        self.optimiser.zero_grad(set_to_none=True)
        for _ in range(options.accumulate):
            with self._precision():
                value = self.loss(self.module, next(self.batches)) / options.accumulate
            value.backward()
            self._losses.append(value.detach())
        self.optimiser.step()
        state.step += 1
        state.done = state.step >= options.steps
        evaluated = self.validate is not None and (state.step % options.evaluate_every == 0 or state.done)
        saved = evaluated or state.done or state.step % options.checkpoint_every == 0
        if saved or state.step % options.log_every == 0:
            self._note_losses()
        if evaluated:
            self._evaluate()
        if saved:
            self.save()
        self.progress.step = state.step
        self.progress.steps_per_s = (state.step - self._began_at) / (time.monotonic() - self._began + 1e-9)

    def _precision(self) -> Any:
        if self.options.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(torch.device(self.options.device).type, torch.bfloat16)

    def _note_losses(self) -> None:
        """Read the losses since the last time: reading each would make an accelerator wait at every step."""
        mean = float(torch.stack(self._losses).float().sum()) / (len(self._losses) / self.options.accumulate)
        self._losses.clear()
        if not math.isfinite(mean):
            raise ModelError(
                f"the loss is {mean} by step {self.state.step}",
                subject=self.folder,
                remedy="The last good checkpoint is kept; start over with a lower rate",
            )
        rate = self.optimiser.param_groups[0]["lr"]
        self.log.append(f"{self.state.step},{mean:.6g},{rate:.6g},\n")
        self.progress.loss = mean

    def _evaluate(self) -> None:
        """Score the module; keep it where it is the best, else count down to a lower rate and to the end."""
        assert self.validate is not None
        state, options = self.state, self.options
        self.module.eval()
        with torch.no_grad():
            score = float(self.validate(self.module))
        if not math.isfinite(score):
            raise ModelError(f"the score is {score} at step {state.step}", subject=self.folder)
        state.scores.append((state.step, score))
        self.log[-1] = self.log[-1].rstrip("\n") + f"{score:.6g}\n"
        self.progress.score = score
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
        write_text(self.folder / LOG, COLUMNS + "".join(self.log))
        tensors = {f"model/{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        for number, parameter in enumerate(self._parameters()):
            moments = self.optimiser.state[parameter]
            tensors |= {f"sgd/{number}/{k}": v for k, v in moments.items() if isinstance(v, Tensor)}
        tensors["random/cpu"] = torch.get_rng_state()
        if self.options.device.startswith("cuda"):
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.options.device)
        facts = {
            "options": _lasting(self.options),
            "loop": asdict(self.state),
            "batches": self.batches.state(),
        }
        write_checkpoint(self.folder, Checkpoint(facts, tensors), f"step-{self.state.step:08d}")

    def resume(self) -> None:
        """Take up the checkpoint in the folder, where there is one."""
        found = read_checkpoint(self.folder)
        if found is None:
            self.log = []
            return
        if found.facts["options"] != _lasting(self.options):
            raise ResultsError(
                "this training began with other settings",
                subject=self.folder,
                expected=str(_differing(found.facts["options"], _lasting(self.options))),
                remedy="Start over with --fresh, or write to another folder",
            )
        loop = found.facts["loop"]
        self.state = _State(**{**loop, "scores": [(int(s), float(v)) for s, v in loop["scores"]]})
        self.module.load_state_dict(found.of("model/"))
        self.best = {name: value.to(self.options.device) for name, value in found.of("best/").items()}
        for number, parameter in enumerate(self._parameters()):
            for name, value in found.of(f"sgd/{number}/").items():
                # laid out in memory as its parameter is, or sums would round in another order
                self.optimiser.state[parameter][name] = torch.empty_like(parameter).copy_(value)
        torch.set_rng_state(found.tensors["random/cpu"])
        if "random/cuda" in found.tensors and self.options.device.startswith("cuda"):
            torch.cuda.set_rng_state(found.tensors["random/cuda"], self.options.device)
        self.batches.restore(found.facts["batches"])
        lines = (self.folder / LOG).read_text("utf-8").splitlines(keepends=True)[1:]
        self.log = [line for line in lines if int(line.partition(",")[0]) <= self.state.step]
        self.progress.step = self._began_at = self.state.step
        self.progress.score = self.state.scores[-1][1] if self.state.scores else None

    def finish(self) -> FitReport:
        if self.best:
            self.module.load_state_dict(self.best)
        state = self.state
        return FitReport(state.step, state.best, state.best_step, tuple(state.scores))

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]


def _shape(options: FitOptions, step: int) -> float:
    """The share of the first rate that a schedule known beforehand allows at a step."""
    if options.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / options.steps))
    if options.schedule == "step":
        return float(options.factor ** (3 * step // options.steps))
    return 1.0


def _lasting(options: FitOptions) -> dict[str, Any]:
    """What must not change when a training goes on; where it runs may."""
    return {name: value for name, value in asdict(options).items() if name != "device"}


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in before.items() if now.get(name) != value}
