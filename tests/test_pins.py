"""The pinned versions can be installed on the oldest Python that the project supports."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def oldest_python() -> Version:
    """The first release of the oldest supported Python, 3.11.0 for `>=3.11`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (lower_bound,) = SpecifierSet(project["requires-python"])
    assert lower_bound.operator == ">="
    return Version(lower_bound.version + ".0")


def required_python(pin: Requirement) -> SpecifierSet | None:
    """The versions of Python that a pinned package supports; None if another version is installed."""
    try:
        package = distribution(pin.name)
    except PackageNotFoundError:
        return None
    if not pin.specifier.contains(package.version, prereleases=True):
        return None
    return SpecifierSet(package.metadata["Requires-Python"] or "")


def test_pins_can_be_installed_on_the_oldest_supported_python() -> None:
    oldest = oldest_python()
    environment = {"python_full_version": str(oldest), "python_version": f"{oldest.major}.{oldest.minor}"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    checked, too_new = 0, []
    for pin in map(Requirement, lines):
        if pin.marker is not None and not pin.marker.evaluate(environment):
            continue
        python = required_python(pin)
        if python is not None:
            checked += 1
            if not python.contains(oldest):
                too_new.append(f"{pin} needs Python {python}")
    assert checked, "No pinned package is installed, so nothing was checked."
    assert not too_new


def test_pins_name_no_package_index() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert not any(line.startswith("-") for line in text.splitlines())
