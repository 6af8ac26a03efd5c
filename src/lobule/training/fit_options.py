"""Options of the training loop: steps, learning rates with their schedule, and the optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from lobule.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

Schedule = Literal["plateau", "cosine", "step", "constant"]
Optimiser = Literal["sgd", "adam"]


@dataclass(frozen=True)
class FitOptions:
    """Options of the training loop."""

    steps: int
    schedule: Schedule = "plateau"
    factor: float = 0.1
    """Multiplies the learning rate at a plateau ("plateau") or after each third of the steps ("step")."""
    patience: int = 5
    """Evaluations without a better score before the learning rate is reduced ("plateau")."""
    stop_after: int = 15
    """Evaluations without a better score before the training ends."""
    evaluate_every: int = 1000
    checkpoint_every: int = 1000
    log_every: int = 20
    accumulate: int = 1
    """Batches whose gradients are averaged into one step."""
    optimiser: Optimiser = "sgd"
    momentum: float = 0.9
    """The momentum of SGD, or the first beta of Adam."""
    second_beta: float = 0.999
    """The second beta of Adam."""
    weight_decay: float = 5e-4
    clip: float = 0.0
    """The largest norm of a gradient; longer gradients are scaled down to it. 0 means no limit."""
    precision: str = "float32"
    """float32, or bfloat16 for a forward pass under autocast."""
    device: str = "cpu"
    replicas: int = 1
    """Number of micro-batches of a step that a CPU computes in parallel. Batch norms compute their statistics
    per micro-batch. A resumed training uses the number that it began with."""
    seed: int = 0
    """Seed of the randomness in the module, such as dropout."""

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            schedules = ", ".join(get_args(Schedule))
            raise ConfigError(f"unknown schedule '{self.schedule}'", expected=f"one of {schedules}")
        if self.optimiser not in get_args(Optimiser):
            raise ConfigError(
                f"unknown optimiser '{self.optimiser}'", expected=" or ".join(get_args(Optimiser))
            )
        for name in (
            "steps",
            "patience",
            "stop_after",
            "evaluate_every",
            "checkpoint_every",
            "log_every",
            "accumulate",
            "replicas",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    rate: float


def split_parameters(module: nn.Module, *prefixes: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters whose names start with a prefix, such as the trunk's, and the other ones."""
    named = list(module.named_parameters())
    chosen = [value for name, value in named if name.startswith(prefixes)]
    return chosen, [value for name, value in named if not name.startswith(prefixes)]


def make_optimiser(options: FitOptions, groups: Sequence[Group]) -> torch.optim.Optimizer:
    import torch

    parameters: list[dict[str, Any]] = [{"params": list(g.parameters), "lr": g.rate} for g in groups]
    if options.optimiser == "adam":
        betas = (options.momentum, options.second_beta)
        return torch.optim.Adam(parameters, lr=groups[0].rate, betas=betas, weight_decay=options.weight_decay)
    return torch.optim.SGD(
        parameters, lr=groups[0].rate, momentum=options.momentum, weight_decay=options.weight_decay
    )


def schedule_factor(options: FitOptions, step: int) -> float:
    """Return the factor on the learning rate at a step, for schedules that depend only on the step."""
    if options.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / options.steps))
    if options.schedule == "step":
        return float(options.factor ** (3 * step // options.steps))
    return 1.0


def fixed_options(options: FitOptions) -> dict[str, Any]:
    """Return the options that must not change when a training is resumed: all but device and replicas."""
    return {name: value for name, value in asdict(options).items() if name not in ("device", "replicas")}


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `before` that are different in `now`."""
    return {name: value for name, value in before.items() if now.get(name) != value}
