"""The settings of a method: a frozen dataclass that is read from texts and JSON by its type hints.

`parse` reads the texts of `--set NAME=TEXT`, the values of a `model.json` and values from Python. `describe`
lists the settings with their types, defaults and meanings.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache, wraps
from itertools import pairwise
from math import isfinite
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)  # fmt: skip

from lobule.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)

P = ParamSpec("P")
R = TypeVar("R")

BOOLEAN_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
LARGEST_INTEGER = 1 << 64
TYPE_NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True)
class Settings:
    """Base class of the settings of a method."""

    def __post_init__(self) -> None:
        for name, annotation in _choices(type(self)).items():  # type: ignore[arg-type]
            convert(name, getattr(self, name), annotation)

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by name, with tuples as lists and groups of settings as dictionaries."""
        return asdict(
            self, dict_factory=lambda pairs: {n: list(v) if isinstance(v, tuple) else v for n, v in pairs}
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Create settings from the output of `to_dict`, or from texts; see `parse`."""
        return parse(cls, values)

    def require(self, low: float, *names: str) -> None:
        """Raise `ConfigError` if one of the named settings is below `low`; None is allowed."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ConfigError(f"{name} must be at least {low}, not {value}")


@cache
def _choices(kind: type) -> dict[str, Any]:
    """Return the annotations of the settings that are one of several texts or numbers."""
    return {
        name: annotation
        for name, annotation in get_type_hints(kind).items()
        if get_origin(annotation) is Literal
    }


def parse(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Create settings with some of them changed.

    Args:
        kind: The dataclass of the settings.
        values: Changed settings by name, as text or as values. A setting of a group has a dotted name, such
            as "augment.hue", or is in a dictionary, such as {"augment": {"hue": 0.1}}.

    Returns:
        The settings. Those without a value have their default.

    Raises:
        ConfigError: A name does not exist, a value does not have the type of its setting, or a setting
            without default is missing.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Net(Settings):
        ...     width: int = 8
        ...     sizes: tuple[int, ...] = ()
        >>> parse(Net, {"width": "16", "sizes": "400,650"})
        Net(width=16, sizes=(400, 650))
    """
    return _build(kind, values, "", None)


def _build(kind: type[Config], values: Mapping[str, Any], prefix: str, start: Config | None) -> Config:
    """Create settings of a group from `start`, or from the defaults of its class."""
    types, declared = get_type_hints(kind), {item.name: item for item in fields(kind) if item.init}
    changes: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        first, dot, rest = str(name).partition(".")
        if first not in declared or (dot and not is_dataclass(types[first])):
            _refuse_name(f"{prefix}{name}", _names(kind, prefix))
        if not is_dataclass(types[first]):
            changes[first] = convert(f"{prefix}{first}", value, types[first])
        elif isinstance(value, types[first]):
            changes[first] = value
        elif dot or isinstance(value, Mapping):
            groups.setdefault(first, {}).update({rest: value} if dot else value)
        else:
            names = ", ".join(_names(types[first], f"{prefix}{first}."))
            raise ConfigError(f"{prefix}{first} = {value!r} is not a group of settings", expected=names)
    for group, inner in groups.items():
        default = _default(declared[group]) if start is None else getattr(start, group)
        changes[group] = _build(types[group], inner, f"{prefix}{group}.", default)
    if start is not None:
        return replace(start, **changes)
    for name, item in declared.items():
        if name not in changes and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"the setting '{prefix}{name}' is missing")
    return kind(**changes)


def _default(item: Field[Any]) -> Any:
    """Return the default of a setting, or None if it has none."""
    if item.default_factory is not MISSING:
        return item.default_factory()
    return None if item.default is MISSING else item.default


def _names(kind: Any, prefix: str = "") -> list[str]:
    """Return the name of every setting; those of a group are dotted."""
    names: list[str] = []
    for name, annotation in get_type_hints(kind).items():
        is_group = is_dataclass(annotation)
        names += _names(annotation, f"{prefix}{name}.") if is_group else [f"{prefix}{name}"]
    return names


def _refuse_name(name: str, names: Sequence[str]) -> None:
    near = get_close_matches(name, names, 1) or [full for full in names if full.endswith(f".{name}")]
    raise ConfigError(
        f"there is no setting '{name}'",
        expected=", ".join(names),
        remedy=f"Did you mean '{near[0]}'?" if near else None,
    )


def convert(name: str, value: Any, annotation: Any) -> Any:
    """Convert a text or a JSON value to the annotated type of a setting.

    Args:
        name: The setting, for messages.
        value: The text or the value.
        annotation: The type: bool, int, float, str, a Literal, a tuple of these, or one of them or None.

    Raises:
        ConfigError: The value does not have the type.

    Examples:
        >>> convert("augment.scale", "0.1", float)
        0.1
        >>> convert("window", "1024x512", tuple[int, int] | None)
        (1024, 512)
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "")):
            return None
        (alternative,) = [kind for kind in arguments if kind is not NoneType]
        return convert(name, value, alternative)
    if origin is tuple:
        return _convert_tuple(name, value, arguments)
    if origin is Literal:
        return _convert_choice(name, value, arguments)
    return _convert_scalar(name, value, annotation)


def _convert_tuple(name: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    items = value
    if isinstance(value, str):
        if any(kind in (int, float) for kind in kinds):
            value = value.replace("x", ",")  # Sizes are often written as 1024x2048.
        items = [text.strip() for text in value.split(",")] if value.strip() else []
    if not isinstance(items, list | tuple):
        raise ConfigError(f"{name} = {value!r} is not a list")
    if kinds[-1] is Ellipsis:
        return tuple(convert(name, item, kinds[0]) for item in items)
    if len(items) != len(kinds):
        raise ConfigError(
            f"{name} = {value!r} has the wrong length", expected=f"{len(kinds)} values separated by commas"
        )
    return tuple(convert(name, item, kind) for item, kind in zip(items, kinds, strict=True))


def _convert_choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if (value == choice and type(value) is type(choice)) or value == str(choice):
            return choice
    near = get_close_matches(str(value), list(map(str, choices)), 1)
    raise ConfigError(
        f"{name} = {value!r} is not one of its values",
        expected=", ".join(map(str, choices)),
        remedy=f"Did you mean '{near[0]}'?" if near else None,
    )


def _convert_scalar(name: str, value: Any, kind: type) -> Any:
    if kind is bool:
        boolean = BOOLEAN_WORDS.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(boolean, bool):
            raise ConfigError(f"{name} = {value!r} is neither true nor false")
        return boolean
    if kind not in (int, float):
        if not isinstance(value, kind):
            raise ConfigError(f"{name} = {value!r} is not {TYPE_NAMES.get(kind, kind.__name__)}")
        return value
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        if kind is float or not str(value).strip().lstrip("+-").isdecimal():
            number = float(value)
            if not isfinite(number) or (kind is int and not number.is_integer()):
                raise ValueError
            value = number
        if abs(number := kind(value)) >= LARGEST_INTEGER and kind is int:
            raise ValueError
    except (ValueError, OverflowError):
        article = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name} = {value!r} is not {article}") from None
    return number


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return every setting with its dotted name, from dictionaries of groups."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= (
            flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return flat


def type_hints(kind: type[DataclassInstance], *names: str) -> dict[str, Any]:
    """Return the annotated types of the named settings."""
    hints = get_type_hints(kind)
    return {name: hints[name] for name in names}


# -- describing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One setting, as `lobule methods NAME` shows it."""

    name: str
    type: str
    default: Any
    """The default as a JSON value; None also if the setting must be chosen."""
    required: bool
    meaning: str
    """The docstring below the setting in the source."""


def describe(kind: type[DataclassInstance], defaults: Mapping[str, Any] | None = None) -> list[Setting]:
    """List the settings of a dataclass, and those of its groups with dotted names.

    Args:
        kind: The dataclass.
        defaults: Defaults that replace those of the dataclass.
    """
    types, meanings = get_type_hints(kind), _meanings(kind)
    described = []
    for item in fields(kind):
        required = item.default is MISSING and item.default_factory is MISSING
        default = {**(defaults or {})}.get(item.name, _default(item))
        if is_dataclass(types[item.name]):
            inner_defaults = default if isinstance(default, Mapping) else asdict(default)
            described += [
                replace(inner, name=f"{item.name}.{inner.name}")
                for inner in describe(types[item.name], inner_defaults)
            ]
            continue
        default = list(default) if isinstance(default, tuple) else default
        meaning = meanings.get(item.name, "")
        described.append(Setting(item.name, type_name(types[item.name]), default, required, meaning))
    return described


def type_name(annotation: Any) -> str:
    """Describe a type in words, such as "list of numbers" or "mean | max"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join("none" if kind is NoneType else type_name(kind) for kind in arguments)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        count = "list" if arguments[-1] is Ellipsis else str(len(arguments))
        inner = type_name(arguments[0])
        return f"{count} of {inner}" + ("s" if arguments[0] in (int, float, str) else "")
    return TYPE_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _meanings(kind: type) -> dict[str, str]:
    """Return the docstring of each attribute, from the source of the class."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    meanings = {}
    for statement, following in pairwise(definition.body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                meanings[name] = " ".join(meaning.split())
    return meanings


def checked_options(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that an unknown keyword raises `ConfigError` and names the nearest option."""
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        for name in options:
            if name not in names:
                near = get_close_matches(name, names, 1)
                raise ConfigError(
                    f"{function.__name__} has no option '{name}'",
                    expected=", ".join(names),
                    remedy=f"Did you mean '{near[0]}'?" if near else None,
                )
        return function(*arguments, **options)

    return call
