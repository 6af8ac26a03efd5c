"""Configs of the four-view classifier with some settings changed."""

from __future__ import annotations

from dataclasses import fields, replace

from lobule.methods.four_view import Config

DEFAULT = Config()


def changed(config: Config = DEFAULT, **settings: object) -> Config:
    """Return a config with changed settings, which are named without their group."""
    groups = {}
    for group in fields(config):
        values = getattr(config, group.name)
        names = {item.name for item in fields(values)} & settings.keys()
        groups[group.name] = replace(values, **{name: settings.pop(name) for name in names})
    assert not settings, f"there are no settings {settings}"
    return replace(config, **groups)
