"""Gradient boosting of one (set, fold, seed) with the published parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from lobule.errors import ConfigError

if TYPE_CHECKING:
    import lightgbm


@dataclass(frozen=True)
class BoostingConfig:
    """The published parameters; everything else is LightGBM's default."""

    folds: int = 10
    seeds: int = 5
    rounds: int = 70
    learning_rate: float = 0.1
    num_leaves: int = 191
    max_depth: int = 7
    """Caps a tree at 128 leaves, so that `num_leaves` is never reached."""
    feature_fraction: float = 0.46
    bagging_fraction: float = 0.69
    bagging_freq: int = 0
    """0 switches bagging off, whatever `bagging_fraction` says."""
    min_data_in_leaf: int = 20
    early_stopping: int = 0
    """Rounds without a better loss on the held-out fold before a training stops; 0 never stops early. The
    held-out fold then influences its own models, so its predictions are slightly too good."""

    def __post_init__(self) -> None:
        for name in ("folds", "seeds", "rounds"):
            if getattr(self, name) < (2 if name == "folds" else 1):
                raise ConfigError(f"boosting.{name} is too small", actual=str(getattr(self, name)))

    def models(self) -> Iterator[tuple[int, int]]:
        """(seed, fold) of every model of a set."""
        for seed in range(self.seeds):
            for fold in range(self.folds):
                yield seed, fold

    def parameters(self, classes: int, seed: int, fold: int) -> dict[str, Any]:
        """LightGBM parameters of a model; deterministic on any machine with the same version of LightGBM."""
        stream = 1 + 10 * seed + fold
        return {
            "objective": "multiclass",
            "num_class": classes,
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "max_depth": self.max_depth,
            "feature_fraction": self.feature_fraction,
            "bagging_fraction": self.bagging_fraction,
            "bagging_freq": self.bagging_freq,
            "min_data_in_leaf": self.min_data_in_leaf,
            "feature_fraction_seed": stream,
            "bagging_seed": stream + 1,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }


def dataset(
    descriptors: NDArray[Any],
    labels: NDArray[Any],
    config: BoostingConfig,
    like: lightgbm.Dataset | None = None,
) -> lightgbm.Dataset:
    """The data of some images, with one row per augmentation; binned at first use, with the bins of `like`.

    Args:
        descriptors: (images, augmentations, d).
        labels: The class of each image.
        config: The settings of the boosting.
        like: The training data, for held-out data.
    """
    import lightgbm

    _, augmentations, width = descriptors.shape
    rows, row_labels = descriptors.reshape(-1, width), labels.repeat(augmentations)
    if like is not None:
        return lightgbm.Dataset(rows, row_labels, reference=like)
    binning = {"min_data_in_leaf": config.min_data_in_leaf, "num_threads": 1, "verbosity": -1}
    return lightgbm.Dataset(rows, row_labels, params=binning)


def boost(
    training: lightgbm.Dataset,
    held_out: lightgbm.Dataset | None,
    classes: int,
    config: BoostingConfig,
    seed: int,
    fold: int,
) -> lightgbm.Booster:
    """One model. The rounds are fixed unless `early_stopping`, which needs held-out data."""
    import lightgbm

    parameters = config.parameters(classes, seed, fold)
    if not config.early_stopping or held_out is None:
        return lightgbm.train(parameters, training, config.rounds)
    stop = lightgbm.early_stopping(config.early_stopping, verbose=False)
    return lightgbm.train(parameters, training, config.rounds, valid_sets=[held_out], callbacks=[stop])
