"""`lobule methods`: list the methods, or the settings of one."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command, table

if TYPE_CHECKING:
    from lobule.methods import Method
    from lobule.settings import Setting

WIDTH = 78
"""Characters in a line of a setting's meaning."""


@lobule_command("lobule methods", "lobule methods chowder")
@click.argument("name", required=False)
def command(name: str | None) -> CommandOutput:
    """List the methods and presets, or explain one: its settings with type, default and meaning.

    `lobule train --set KEY=VALUE` changes a setting. Settings that a scan may change are marked.
    """
    from lobule.methods import METHODS, find_method, installed_methods

    if name is None:
        return _list([find_method(name) for name in (*METHODS, *installed_methods())])
    return _explain(find_method(name))


def _list(methods: list[Method[Any]]) -> CommandOutput:
    data = [_data(method) for method in methods]
    rows = [(method.name, ", ".join(method.kinds), _summary(method)) for method in methods]
    return CommandOutput({"methods": data}, table(("method", "cases", "what it does"), rows))


def _data(method: Method[Any]) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "kinds": list(method.kinds),
        "is_trained": method.train is not None,
        "preset": dict(method.changed),
        "unsupported": list(method.unsupported),
    }


def _summary(method: Method[Any]) -> str:
    if not method.changed:
        return method.summary
    return "Preset: " + ", ".join(f"{name}={value}" for name, value in method.changed.items())


def _explain(method: Method[Any]) -> CommandOutput:
    from lobule.settings import describe

    settings = describe(method.config, method.changed)
    data = [{**asdict(setting), "scan": setting.name in method.scan_settings} for setting in settings]
    lines = [("method", method.name), ("what it does", _summary(method)), ("cases", ", ".join(method.kinds))]
    if method.train is None:
        lines.append(("training", "none: weights are converted with `lobule weights convert`"))
    if method.unsupported:
        options = ", ".join("--" + name.replace("_", "-") for name in method.unsupported)
        lines.append(("unsupported", f"{options} of `lobule scan`"))
    explained = format_fields([(setting.name, _explained(setting, method)) for setting in settings])
    return CommandOutput({**_data(method), "settings": data}, f"{format_fields(lines)}\n\n{explained}")


def _explained(setting: Setting, method: Method[Any]) -> str:
    """Format the default, the type and the meaning of a setting."""
    is_list = isinstance(setting.default, list)
    default = ",".join(map(str, setting.default)) if is_list else str(setting.default)
    head = f"{'required' if setting.required else default or 'empty'} ({setting.type})"
    if setting.name in method.scan_settings:
        head += ", also for scans"
    return "\n".join([head, *textwrap.wrap(setting.meaning, WIDTH)])
