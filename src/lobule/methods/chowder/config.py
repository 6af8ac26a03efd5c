"""The settings of CHOWDER and of its comparison models; the defaults are those of the papers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from lobule.errors import ConfigError
from lobule.settings import Settings

ModelName = Literal["chowder", "modern", "weldon", "mean", "max", "max_features", "abmil", "transmil"]

MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "chowder": {"r": 5, "epochs": 30, "batch": 10, "rate": 1e-3, "l2": 0.5, "decay": 0.0, "dropout": 0.5},
    "modern": {"r": 10, "epochs": 50, "batch": 16, "rate": 1e-3, "l2": 0.0, "decay": 0.0, "dropout": 0.0},
    "weldon": {"r": 10, "epochs": 50, "batch": 16, "rate": 1e-3, "l2": 0.0, "decay": 0.0, "dropout": 0.0},
    "mean": {"r": 10, "epochs": 50, "batch": 16, "rate": 1e-3, "l2": 0.0, "decay": 1e-4, "dropout": 0.0},
    "max": {"r": 10, "epochs": 50, "batch": 16, "rate": 1e-3, "l2": 0.0, "decay": 0.0, "dropout": 0.0},
    "max_features": {
        "r": 10,
        "epochs": 50,
        "batch": 16,
        "rate": 1e-3,
        "l2": 0.0,
        "decay": 1e-4,
        "dropout": 0.0,
    },
    "abmil": {"r": 10, "epochs": 50, "batch": 16, "rate": 2e-4, "l2": 0.0, "decay": 1e-5, "dropout": 0.25},
    "transmil": {"r": 10, "epochs": 50, "batch": 16, "rate": 2e-4, "l2": 0.0, "decay": 1e-5, "dropout": 0.0},
}
"""Defaults of each model for settings that are None. Those of `chowder` and `modern` are published."""


@dataclass(frozen=True)
class Config(Settings):
    """Settings of a bag model, of its training, and of the findings in its map."""

    model: ModelName = "chowder"
    """The model that turns the features of a slide's tiles into its score."""
    features: str = ""
    """The folder of features to train on (in a scan: to read instead of the slides)."""
    classes: tuple[str, ...] = ("normal", "tumour")
    positive: tuple[str, ...] = ()
    """Positive labels; if empty, the meaning of each label decides."""

    # None means the default of the model.
    r: int | None = None
    """Number of highest and of lowest tile scores that are used."""
    epochs: int | None = None
    batch: int | None = None
    rate: float | None = None
    l2: float | None = None
    """Factor of the penalty in the loss: the squared norm of the weights that score a tile."""
    decay: float | None = None
    """Weight decay of the optimiser, for all layers."""
    dropout: float | None = None
    bottom: Literal["minimum first", "descending"] = "minimum first"

    tiles: int = 1000
    """Tiles chosen at random from each slide for each member; 0 trains on whole bags."""
    members: int = 10
    """Models in the ensemble; each has a different seed and a different random sample of tiles."""
    standardise: bool = False
    """Standardise features by the mean and standard deviation of the training tiles."""
    balance: bool = False
    """Give both classes the same total weight in the loss."""
    patience: int = 10
    """Stop a member after this many epochs without a better validation result; 0 trains all epochs."""

    # Cross-validation before the final training
    folds: int = 0
    """Number of folds by patient, held out in turn; 0 skips cross-validation."""
    repeats: int = 1
    """How often cross-validation is repeated with different folds."""
    nested: bool = False
    """Choose rate and decay by an inner cross-validation of the training cases of each fold."""
    inner_folds: int = 5
    grid_rates: tuple[float, ...] = (1e-3, 1e-4)
    grid_decays: tuple[float, ...] = (0.0, 1e-4)
    by_site: bool = False
    """Hold out whole sites instead of patients."""

    threshold: float = 0.999
    """A tile is part of a finding if it scores above this share of the tiles of normal training slides."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.classes) != 2:
            raise ConfigError(
                "a bag model has exactly two classes", expected="two", actual=", ".join(self.classes)
            )
        self.require(1, "r", "epochs", "batch", "members", "repeats")
        if self.folds == 1 or self.inner_folds < 2 or self.folds < 0 or self.tiles < 0 or self.patience < 0:
            raise ConfigError(
                f"folds {self.folds}, inner folds {self.inner_folds}, tiles {self.tiles} or patience "
                f"{self.patience} is not allowed",
                expected="at least two folds (or 0 folds), and no negative value",
            )
        if not 0 < self.threshold < 1:
            raise ConfigError(f"the threshold {self.threshold} is out of range", expected="between 0 and 1")

    def resolved(self) -> Config:
        """The config in which every None is replaced by the default of the model."""
        defaults = {
            name: value for name, value in MODEL_DEFAULTS[self.model].items() if getattr(self, name) is None
        }
        return replace(self, **defaults)

    def setting(self, name: str) -> Any:
        """The value of a setting, or the default of the model if the setting is None."""
        value = getattr(self, name)
        return MODEL_DEFAULTS[self.model][name] if value is None else value

    def with_features(self) -> Config:
        """Return the resolved config if it names the features to train on, and raise `ConfigError` if not."""
        if not self.features:
            raise ConfigError(
                "a bag model is trained on stored features, and none are set",
                remedy="Extract them with `lobule features COHORT --out DIR`, then pass --set features=DIR",
            )
        return self.resolved()
