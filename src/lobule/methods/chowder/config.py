"""The settings of CHOWDER and of the bag models it is compared with; the defaults are each paper's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lobule.errors import ConfigError
from lobule.nets.mil import (
    BagModel,
    Chowder,
    GatedAttention,
    MaxPool,
    MeanPool,
    TransMil,
    Weldon,
    chowder_modern,
)
from lobule.settings import as_json, only_known

OWN: dict[str, dict[str, Any]] = {
    "chowder": {"r": 5, "epochs": 30, "batch": 10, "rate": 1e-3, "l2": 0.5, "decay": 0.0, "dropout": 0.5},
    "modern": {"r": 10, "epochs": 50, "batch": 16, "rate": 1e-3, "l2": 0.0, "decay": 0.0, "dropout": 0.0},
    "weldon": {"r": 10, "epochs": 50, "batch": 16, "rate": 1e-3, "l2": 0.0, "decay": 0.0, "dropout": 0.0},
    "mean": {"r": 10, "epochs": 50, "batch": 16, "rate": 1e-3, "l2": 0.0, "decay": 1e-4, "dropout": 0.0},
    "max": {"r": 10, "epochs": 50, "batch": 16, "rate": 1e-3, "l2": 0.0, "decay": 0.0, "dropout": 0.0},
    "abmil": {"r": 10, "epochs": 50, "batch": 16, "rate": 2e-4, "l2": 0.0, "decay": 1e-5, "dropout": 0.25},
    "transmil": {"r": 10, "epochs": 50, "batch": 16, "rate": 2e-4, "l2": 0.0, "decay": 1e-5, "dropout": 0.0},
}
"""What each model takes where a setting is left to it. CHOWDER's and the modern form's are published."""


@dataclass(frozen=True)
class Config:
    """What decides a bag model, how it is trained, and how its map is read."""

    model: str = "chowder"
    """A key of `OWN`."""
    features: str = ""
    """The folder of features that is trained on (and, in a scan, read in place of the slides)."""
    classes: tuple[str, ...] = ("normal", "tumour")
    positive: tuple[str, ...] = ()
    """Labels that are positive; by their meaning where none is named."""

    # each None is the model's own
    r: int | None = None
    """Tiles at each end of the scores."""
    epochs: int | None = None
    batch: int | None = None
    rate: float | None = None
    l2: float | None = None
    """Times the squared norm of what scores a tile, in the loss."""
    decay: float | None = None
    """Weight decay of the optimiser, on all layers."""
    dropout: float | None = None
    bottom: Literal["minimum first", "descending"] = "minimum first"

    tiles: int = 1000
    """Tiles drawn from a slide for each member; 0 trains on whole bags."""
    members: int = 10
    """Models of the ensemble: each has a seed and a draw of tiles of its own."""
    standardise: bool = False
    """Bring features to the mean and spread of the training tiles first."""
    balance: bool = False
    """Weigh the classes evenly in the loss."""
    patience: int = 10
    """Epochs without a better validation before a member stops; 0 trains all epochs."""

    # cross-validation before the final training
    folds: int = 0
    """Parts of the patients that are held out in turn; 0 leaves it out."""
    repeats: int = 1
    """Times that it is done over, with other parts."""
    nested: bool = False
    """Choose rate and decay by an inner cross-validation of each part's training cases."""
    inner_folds: int = 5
    grid_rates: tuple[float, ...] = (1e-3, 1e-4)
    grid_decays: tuple[float, ...] = (0.0, 1e-4)
    by_site: bool = False
    """Hold out whole sites, not patients."""

    threshold: float = 0.999
    """A finding is where a tile is above this share of the tiles of normal training slides."""

    def __post_init__(self) -> None:
        if self.model not in OWN:
            raise ConfigError(f"no bag model '{self.model}'", expected=", ".join(OWN))
        if len(self.classes) != 2:
            raise ConfigError(
                "one label a slide tells two classes", expected="two", actual=", ".join(self.classes)
            )
        if self.bottom not in ("minimum first", "descending"):
            raise ConfigError(f"no order '{self.bottom}'", expected="minimum first or descending")
        for name in ("r", "epochs", "batch", "members", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if self.folds == 1 or self.inner_folds < 2 or self.folds < 0 or self.tiles < 0 or self.patience < 0:
            raise ConfigError(
                f"folds {self.folds}, inner folds {self.inner_folds}, tiles {self.tiles} or patience "
                f"{self.patience} cannot be",
                expected="at least two folds (or 0), and nothing negative",
            )
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold {self.threshold} is no share", expected="between 0 and 1")

    def resolved(self) -> Config:
        """The config with what was left to the model filled in."""
        own = {name: value for name, value in OWN[self.model].items() if getattr(self, name) is None}
        return replace(self, **own)

    def own(self, name: str) -> Any:
        """A setting, or the model's own where it is left to it."""
        value = getattr(self, name)
        return OWN[self.model][name] if value is None else value

    def to_dict(self) -> dict[str, Any]:
        return as_json(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Config:
        values = only_known(cls, facts, "chowder")
        return cls(**{name: _typed(name, value) for name, value in values.items()})


WHOLE, REAL = ("r", "epochs", "batch"), ("rate", "l2", "decay", "dropout", "grid_rates", "grid_decays")


def _typed(name: str, value: Any) -> Any:
    """A value as its setting has it: what may be None, and lists of numbers, may come as text."""
    try:
        if name in REAL and isinstance(value, list | tuple):
            return tuple(float(part) for part in value)
        if isinstance(value, str) and name in (*WHOLE, *REAL):
            return int(value) if name in WHOLE else float(value)
    except ValueError:
        raise ConfigError(f"{name} = '{value}' is not a number") from None
    return value


def build(config: Config, dim: int) -> BagModel:
    """The bag model of a config, with fresh weights."""
    r, dropout = config.own("r"), config.own("dropout")
    if config.model == "chowder":
        return Chowder(dim, r, dropout=dropout, bottom=config.bottom)
    if config.model == "modern":
        return chowder_modern(dim, r)
    if config.model == "weldon":
        return Weldon(dim, r)
    if config.model == "abmil":
        return GatedAttention(dim, dropout=dropout)
    return {"mean": MeanPool, "max": MaxPool, "transmil": TransMil}[config.model](dim)
