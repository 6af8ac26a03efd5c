"""Convert the settings of a method between a frozen dataclass, JSON and text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from lobule.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

BOOLEAN_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def as_json(settings: DataclassInstance) -> dict[str, Any]:
    """Return every setting by name, with tuples as lists."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}


def only_known(kind: type[DataclassInstance], values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Check that settings read from JSON belong to a method, and convert lists to tuples.

    Args:
        kind: The dataclass of the settings.
        values: Settings by name.
        method: Name of the method, for the error message.

    Raises:
        ConfigError: A name is not a setting of the method.
    """
    names = {item.name for item in fields(kind)}
    if unknown := sorted(set(values) - names):
        raise ConfigError(
            f"no setting '{unknown[0]}' in the method {method}", expected=", ".join(sorted(names))
        )
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def converted(name: str, value: Any, annotation: Any) -> Any:
    """Convert the text of `--set NAME=VALUE` to the annotated type of the setting.

    Args:
        name: The setting, for messages.
        value: Text to convert. A value that is not text is returned unchanged.
        annotation: The type from the dataclass, as `typing.get_type_hints` returns it.

    Returns:
        The converted value. A setting that may be None accepts the text "none".

    Raises:
        ConfigError: The text does not have the type.

    Examples:
        >>> converted("augment.scale", "0.1", float)
        0.1
        >>> converted("sizes", "400,650", tuple[int, ...])
        (400, 650)
    """
    if not isinstance(value, str):
        return value
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        if value.strip().lower() in ("none", ""):
            return None
        (alternative,) = [kind for kind in arguments if kind is not NoneType]
        return converted(name, value, alternative)
    if origin is tuple:
        return _converted_tuple(name, value, arguments)
    if origin is Literal:
        return value
    return _converted_scalar(name, value, annotation)


def _converted_tuple(name: str, value: str, item_types: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(kind in (int, float) for kind in item_types):
        value = value.replace("x", ",")  # Sizes are often written as 1024x2048.
    texts = [text.strip() for text in value.split(",")] if value.strip() else []
    if item_types[-1] is Ellipsis:
        return tuple(converted(name, text, item_types[0]) for text in texts)
    if len(texts) != len(item_types):
        raise ConfigError(
            f"{name} = '{value}' has the wrong length",
            expected=f"{len(item_types)} values separated by commas",
        )
    return tuple(converted(name, text, kind) for text, kind in zip(texts, item_types, strict=True))


def _converted_scalar(name: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value.lower() not in BOOLEAN_WORDS:
            raise ConfigError(f"{name} = '{value}' is neither true nor false")
        return BOOLEAN_WORDS[value.lower()]
    if kind not in (int, float):
        return value
    try:
        number = float(value)
        if kind is int and not number.is_integer():
            raise ValueError
    except (ValueError, OverflowError):
        article = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name} = '{value}' is not {article}") from None
    return int(value) if kind is int and value.strip().lstrip("+-").isdecimal() else kind(number)


def setting_types(kind: type[DataclassInstance]) -> dict[str, Any]:
    """Return the annotated type of every setting; a nested dataclass maps to its own class."""
    return get_type_hints(kind)
