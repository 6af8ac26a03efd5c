"""`docs/papers.md` agrees with the defaults of the methods and with their docstrings."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import lobule
from lobule.methods import METHODS, find_method
from lobule.settings import flattened

PAGE = Path(__file__).parents[1] / "docs" / "papers.md"
SOURCE = Path(lobule.__file__).parent
STATUSES = ("as published", "ours: not stated", "option", "differs: ")
NOT_LISTED = re.compile(r"augment\..*")
"""Strengths of augmentation need no row; the table of ScanNet lists those that it uses."""

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests")


@dataclass(frozen=True)
class Row:
    element: str
    paper: str
    files: tuple[str, ...]
    setting: str | None
    default: Any
    status: str


def tables() -> dict[str, list[Row]]:
    """The rows of every method's table."""
    tables_by_method: dict[str, list[Row]] = {}
    method = None
    for line in PAGE.read_text("utf-8").splitlines():
        if heading := re.fullmatch(r"## .* \(`(\w+)`\)", line):
            method = heading[1]
            tables_by_method[method] = []
        elif line.startswith("| ") and method and not line.startswith("| element"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len(cells) == 6, line
            element, paper, files, setting, default, status = cells
            name = None if setting == "–" else setting.strip("`")
            value = None if default == "–" else json.loads(default.strip("`"))
            paths = tuple(re.findall(r"`([^`]+)`", files))
            tables_by_method[method].append(Row(element, paper, paths, name, value, status))
    return tables_by_method


TABLES = tables() if PAGE.exists() else {}


def defaults_of(name: str) -> dict[str, Any]:
    """The defaults of a method, with those that depend on another setting filled in."""
    config = find_method(name).config()
    if name in ("chowder", "rakhlin"):
        config = config.resolved()
    if name == "reverse_distillation":
        config = config.of_loss(config.loss)
    return flattened(config.to_dict())


def test_every_paper_has_a_table() -> None:
    assert set(TABLES) == {"scannet", "chowder", "reverse_distillation", "rakhlin", "four_view"}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_defaults_are_those_of_the_table(name: str) -> None:
    defaults = defaults_of(name)
    for row in TABLES[name]:
        if row.setting is not None:
            assert row.setting in defaults, f"{name} has no setting {row.setting}"
            assert row.default == defaults[row.setting], f"{row.setting} is {defaults[row.setting]!r}"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_setting_is_in_the_table(name: str) -> None:
    settings_of_rows = [row.setting for row in TABLES[name] if row.setting is not None]
    assert len(set(settings_of_rows)) == len(settings_of_rows)
    settings = {setting for setting in defaults_of(name) if not NOT_LISTED.fullmatch(setting)}
    missing = settings - set(settings_of_rows)
    assert not missing, f"add these settings to docs/papers.md: {sorted(missing)}"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_files_exist_and_statuses_are_known(name: str) -> None:
    for row in TABLES[name]:
        assert row.files
        assert all((SOURCE / file).is_file() for file in row.files), row
        assert row.status.startswith(STATUSES), row
        assert row.element
        assert row.paper


@pytest.mark.parametrize("name", sorted(TABLES))
def test_settings_that_differ_are_in_the_docstring(name: str) -> None:
    docstring = import_module(METHODS[name]).__doc__ or ""
    for row in TABLES[name]:
        if row.status.startswith("differs") and row.setting is not None:
            short = row.setting.rpartition(".")[2]
            assert short in docstring, f"{name}: {row.setting} differs from the paper"


def test_a_changed_default_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in TABLES["scannet"] if row.setting == "rate")
    monkeypatch.setitem(TABLES, "scannet", [replace(row, default=0.002)])
    with pytest.raises(AssertionError, match="rate is"):
        test_defaults_are_those_of_the_table("scannet")
