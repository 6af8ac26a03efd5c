"""The later form of CHOWDER by its authors (2023): a hidden layer for tile scores, and R = 10."""

from __future__ import annotations

from dataclasses import dataclass

from lobule.methods.chowder import KINDS, SCAN_SETTINGS, load, train
from lobule.methods.chowder import Config as BagConfig
from lobule.training.fitting import TrainMachine

__all__ = ["KINDS", "SCAN_SETTINGS", "Config", "TrainMachine", "load", "train"]


@dataclass(frozen=True)
class Config(BagConfig):
    """The settings shared by all bag models, with this model as the default."""

    model: str = "modern"
