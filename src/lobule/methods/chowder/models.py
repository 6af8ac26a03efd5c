"""The bag models that the settings of CHOWDER name."""

from __future__ import annotations

from collections.abc import Callable

from lobule.methods.chowder.config import Config
from lobule.nets.mil import (
    BagModel,
    Chowder,
    GatedAttention,
    MaxFeatures,
    MaxPool,
    MeanPool,
    TransMil,
    Weldon,
    chowder_modern,
)


def build(config: Config, dim: int) -> BagModel:
    """The bag model of a config, with newly initialised weights."""
    r, dropout = config.setting("r"), config.setting("dropout")
    if config.model == "chowder":
        return Chowder(dim, r, dropout=dropout, bottom=config.bottom)
    if config.model == "modern":
        return chowder_modern(dim, r)
    if config.model == "weldon":
        return Weldon(dim, r)
    if config.model == "abmil":
        return GatedAttention(dim, dropout=dropout)
    plain: dict[str, Callable[[int], BagModel]] = {
        "mean": MeanPool,
        "max": MaxPool,
        "max_features": MaxFeatures,
        "transmil": TransMil,
    }
    return plain[config.model](dim)
