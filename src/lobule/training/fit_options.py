"""How a module is fitted: steps, rates and their schedule, and the optimiser that they ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from lobule.errors import ConfigError

Schedule = Literal["plateau", "cosine", "step", "constant"]
Optimiser = Literal["sgd", "adam"]


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
    optimiser: Optimiser = "sgd"
    momentum: float = 0.9
    """Of SGD, and the first beta of Adam."""
    second_beta: float = 0.999
    """Of Adam."""
    weight_decay: float = 5e-4
    clip: float = 0.0
    """The largest norm of a step's gradient; longer ones are shortened. 0 is any."""
    precision: str = "float32"
    """Or bfloat16: the forward pass under autocast."""
    device: str = "cpu"
    lanes: int = 1
    """Parts of a step that are computed side by side on a CPU; a batch norm's statistics are those of a part.
    A training goes on with those that it began with."""
    seed: int = 0
    """Of what is random in the module, such as dropout."""

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            schedules = ", ".join(get_args(Schedule))
            raise ConfigError(f"no schedule '{self.schedule}'", expected=f"one of {schedules}")
        if self.optimiser not in get_args(Optimiser):
            raise ConfigError(f"no optimiser '{self.optimiser}'", expected=" or ".join(get_args(Optimiser)))
        for name in (
            "steps",
            "patience",
            "stop_after",
            "evaluate_every",
            "checkpoint_every",
            "log_every",
            "accumulate",
            "lanes",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    rate: float


def optimiser_of(options: FitOptions, groups: Sequence[Group]) -> torch.optim.Optimizer:
    parameters: list[dict[str, Any]] = [{"params": list(g.parameters), "lr": g.rate} for g in groups]
    if options.optimiser == "adam":
        betas = (options.momentum, options.second_beta)
        return torch.optim.Adam(parameters, lr=groups[0].rate, betas=betas, weight_decay=options.weight_decay)
    return torch.optim.SGD(
        parameters, lr=groups[0].rate, momentum=options.momentum, weight_decay=options.weight_decay
    )


def shape_of(options: FitOptions, step: int) -> float:
    """The share of the first rate that a schedule known beforehand allows at a step."""
    if options.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / options.steps))
    if options.schedule == "step":
        return float(options.factor ** (3 * step // options.steps))
    return 1.0


def lasting(options: FitOptions) -> dict[str, Any]:
    """What must not change when a training goes on; where it runs may."""
    return {name: value for name, value in asdict(options).items() if name not in ("device", "lanes")}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in before.items() if now.get(name) != value}
