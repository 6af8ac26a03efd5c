"""The entries of a comparison: each method, with each encoder and each label budget."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lobule.comparison.labels import LEARNS_FROM
from lobule.errors import ConfigError, UsageError
from lobule.methods import METHODS, Method, find_method

FEATURES = "features"
"""The setting of methods that learn from stored features of tiles."""
ENCODER_SETTINGS: dict[str, tuple[str, str]] = {
    "probe": ("encoder", "weights"),
    "reverse_distillation": ("teacher", "weights"),
    "rakhlin": ("encoders", "weights"),
}
"""The settings with the name and the weights of the encoder, of methods that choose one."""


@dataclass(frozen=True)
class Encoder:
    """An encoder and its weights."""

    name: str
    weights: str = "pretrained"


@dataclass(frozen=True)
class Entry:
    """One row of the table before it is measured."""

    method: str
    encoder: str | None = None
    weights: str | None = None
    """Weights of the encoder."""
    budget: int | None = None
    """Number of labelled training cases; None for all."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changed settings of the method, with those of the encoder."""

    @property
    def name(self) -> str:
        """The name of the row, which is also that of its folder."""
        names = [self.method, *([self.encoder] if self.encoder else [])]
        if self.budget is not None:
            names.append(f"{self.budget}")
        return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", name) for name in names)

    @property
    def learns_from(self) -> str | None:
        """The kind of label; None for a method of another package."""
        return LEARNS_FROM.get(base_name(self.method))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Entry:
        return cls(**stored)


def base_name(method: str) -> str:
    """The method that a preset belongs to."""
    return METHODS.get(method, "").rpartition(".")[2] or method


def reads_features(method: Method[Any]) -> bool:
    """Whether a method learns from stored features of tiles."""
    return base_name(method.name) == "chowder"


def plan_entries(
    methods: Sequence[str],
    encoders: Sequence[Encoder],
    budgets: Sequence[int],
    settings: Mapping[str, Mapping[str, Any]],
) -> list[Entry]:
    """The entries of a table, in the order of the methods.

    A method without a choice of encoder has one entry per budget.

    Raises:
        ConfigError: A method does not exist, or a setting is unknown or invalid.
        UsageError: A method, encoder or budget is named twice, or a setting belongs to no listed method.
    """
    names = [name.replace("-", "_") for name in methods]
    for kind, requested in (("method", names), ("encoder", [encoder.name for encoder in encoders])):
        if repeated := [name for name in requested if requested.count(name) > 1]:
            raise UsageError(f"the {kind} '{repeated[0]}' is named twice")
    if not names:
        raise UsageError("no method is named", remedy="Name at least one with --methods")
    if budgets and min(budgets) < 2:
        raise UsageError("a budget must be at least two labelled cases", actual=str(min(budgets)))
    if stray := sorted({name.replace("-", "_") for name in settings} - set(names)):
        raise UsageError(f"settings of '{stray[0]}' are given, but it is not compared")
    changed = {name.replace("-", "_"): dict(values) for name, values in settings.items()}
    entries: list[Entry] = []
    sizes: Sequence[int | None] = sorted(set(budgets)) or [None]
    for name in names:
        method = find_method(name)
        chosen: Sequence[Encoder | None] = [None]
        if encoders and (reads_features(method) or base_name(name) in ENCODER_SETTINGS):
            chosen = encoders
        for encoder in chosen:
            entries += [_entry(method, name, encoder, budget, changed.get(name, {})) for budget in sizes]
    return entries


def _entry(
    method: Method[Any], name: str, encoder: Encoder | None, budget: int | None, settings: Mapping[str, Any]
) -> Entry:
    full = dict(settings)
    if encoder is not None and not reads_features(method):
        setting, weights = ENCODER_SETTINGS[base_name(name)]
        full = {setting: encoder.name, **full}
        if encoder.weights != "pretrained":
            full = {weights: encoder.weights, **full}
    if method.train is not None:
        method.configured(full)  # An invalid setting is refused before anything is trained.
    if encoder is None:
        return Entry(name, None, None, budget, full)
    return Entry(name, encoder.name, encoder.weights, budget, full)


def parse_settings(pairs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Divide settings such as `probe.head=knn` by their methods.

    Raises:
        ConfigError: A setting does not begin with the name of a method.
    """
    divided: dict[str, dict[str, Any]] = {}
    for name, value in pairs.items():
        method, dot, setting = name.partition(".")
        if not dot:
            raise ConfigError(
                f"'{name}' does not say which method it is a setting of",
                expected="METHOD.SETTING=VALUE, such as probe.head=knn",
            )
        divided.setdefault(method.replace("-", "_"), {})[setting] = value
    return divided
