"""Settings of a method: a frozen dataclass in memory, an object of JSON in its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from lobule.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def as_json(settings: DataclassInstance) -> dict[str, Any]:
    """Every setting by its name; tuples become lists."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}


def only_known(kind: type[DataclassInstance], facts: Mapping[str, Any], method: str) -> dict[str, Any]:
    """`facts` with tuples where JSON has lists. Raises `ConfigError` for what is no setting of the method."""
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(facts) - known):
        raise ConfigError(f"no setting '{unknown[0]}' in {method}", expected=", ".join(sorted(known)))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
